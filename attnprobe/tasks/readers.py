"""Readers of the forms in which labelled sequences lie on disk: tables, one table per split, images, texts, series.

`read` returns a `Table`, whatever the form. Nothing in a file is executed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.tasks.labelled_files import INPUTS, LABELS, is_pathfinder, read_class_folders, read_pathfinder
from attnprobe.tasks.labels import WORDS_FOR_NONE
from attnprobe.tasks.listops import WORDS
from attnprobe.tasks.series_files import read_series
from attnprobe.tasks.split import SPLIT_NAMES
from attnprobe.tasks.table import column_of, columns_of, pd_objects
from attnprobe.tasks.table_files import FORMATS, TEXT_FORMATS, read_table

if TYPE_CHECKING:
    import pandas as pd

SERIES = ".ts"
SUFFIXES = (*FORMATS, SERIES)
FILE_OF_SPLIT = re.compile(rf"(?:.*[^a-z])?({'|'.join(SPLIT_NAMES)})(?:-\d+-of-(\d+))?", re.IGNORECASE)
"""Name of a file of one split, without its suffix: basic_train, valid, test-00000-of-00002."""
INTEGER = re.compile(r"\s*[+-]?\d{1,18}\s*", re.ASCII)
FLOAT = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
"""A digit can be matched in one way only: otherwise a long text of digits takes quadratic time."""
OPERATORS = [word for word in WORDS if word.startswith("[")]
LISTOPS = ("Source", "Target")
"""Columns of the Long Range Arena's ListOps files."""
PARENTHESES = str.maketrans("()", "  ")


@dataclass(frozen=True)
class Table:
    """Labelled sequences as a table, one row per sequence."""

    frame: "pd.DataFrame"
    inputs: str
    """Column of the sequences, or a pattern of the columns that hold one token each."""
    labels: str
    """Column of the labels."""
    words: bool = False
    """Whether texts are words in any case."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, if labels are these names whatever they mean elsewhere ("None")."""


def read(path: Path, inputs: str | None = None, labels: str | None = None, split: str | None = None) -> Table:
    """Read labelled sequences.

    ====================================  ==========================================================================
    path                                  content
    ====================================  ==========================================================================
    .csv, .tsv, .jsonl, .parquet          a table with a column per name
    .ts                                   time series as in the UEA and UCR archives
    folder of these                       one file per split: train, val (valid, validation, dev), test, or a name that
                                          ends so (basic_train.tsv, NAME_TRAIN.ts, test-00000-of-00001.parquet)
    folder/CLASS, folder/SPLIT/CLASS      images or .txt files; texts in the class unsup have no label
    folder with imgs/ and metadata/       Pathfinder of the Long Range Arena
    ====================================  ==========================================================================

    In .csv and .tsv files, labels become numbers if all are. The ListOps files of the Long Range Arena, with columns
    Source and Target, are read as it does: as words, without parentheses.

    Args:
        path: File or folder.
        inputs: Column of the sequences, "text" by default, or a pattern such as "pixel*".
        labels: Column of the labels, "label" by default.
        split: Column of the splits, "split" by default; a pattern leaves it out.

    Raises:
        UsageError: The form is unknown or ambiguous, or a file is damaged.
    """
    try:
        if path.is_dir():
            return _folder(path, inputs, labels, split)
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{path}: must be a folder or end in {listed(SUFFIXES)}")
        return _tables({path: None}, inputs, labels, split)
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _folder(path: Path, inputs: str | None, labels: str | None, split: str | None) -> Table:
    if files := _files_of_splits(path):
        return _tables(files, inputs, labels, split)
    if is_pathfinder(path):
        table = Table(*read_pathfinder(path))
    else:
        frame, inputs_found, labels_found = read_class_folders(path)
        names = tuple(sorted(set(frame[labels_found].dropna())))
        table = Table(frame, inputs_found, labels_found, class_names=names)
    for wanted, name in ((inputs, table.inputs), (labels, table.labels)):
        if wanted not in (None, name):
            raise UsageError(f"{path}: has no column {wanted!r}; columns: {table.inputs}, {table.labels}")
    return table


def _files_of_splits(folder: Path) -> dict[Path, str | None]:
    """Return the split of each table file in the order of the splits; none if no name ends in a split."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    matches = {path: FILE_OF_SPLIT.fullmatch(path.stem) for path in tables}
    if not any(matches.values()):
        return {}
    named = {path: match for path, match in matches.items() if path.stem.startswith(f"{folder.name}_") and match}
    if len({path.stem.rsplit("_", 1)[0] for path in named}) > 1:  # variants of one data set, as in the UCR archive
        named = {path: match for path, match in named.items() if path.stem.rsplit("_", 1)[0] == folder.name}
    if len({path.suffix.lower() for path in named or matches}) > 1:
        formats = listed(sorted({path.suffix.lower() for path in named or matches}))
        raise UsageError(f"{folder}: holds {formats} files: must hold tables of one format")
    found: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES.values()}
    parts: dict[str, set[int]] = {split: set() for split in found}
    for path, match in (named or matches).items():
        if match is None:
            raise UsageError(f"{path}: the name must end in a split, as of other files here ({listed(SPLIT_NAMES)})")
        split = SPLIT_NAMES[match[1].lower()]
        found[split].append(path)
        parts[split].add(int(match[2] or 1))
    for split, paths in found.items():
        if paths and parts[split] != {len(paths)}:
            names = listed(path.name for path in paths)
            raise UsageError(f"{folder}: the split {split} must be one file, or all its parts -I-of-N; holds {names}")
    return {path: split for split, paths in found.items() for path in paths}


def _tables(files: dict[Path, str | None], inputs: str | None, labels: str | None, column: str | None) -> Table:
    """Read table files as one table: one file, or the files of all splits."""
    import pandas as pd

    frames = {path: read_series(path) if path.suffix.lower() == SERIES else read_table(path) for path in files}
    first = next(iter(frames.values()))
    if inputs is None and labels is None and set(LISTOPS) <= set(first.columns) and _are_listops(first[LISTOPS[0]]):
        inputs, labels = LISTOPS
    inputs, labels = inputs or INPUTS, labels or LABELS
    for path, split in files.items():
        _check(frames[path], path, split, inputs, labels)
        if not set(files.values()) <= {None, "train"}:  # with train alone, a split is drawn
            frames[path] = frames[path].assign(split=split)
    frame = pd.concat(frames.values(), ignore_index=True)
    if (inputs, labels) == LISTOPS and _are_listops(frame[inputs]):
        expressions = [" ".join(cell.translate(PARENTHESES).split()) for cell in frame[inputs]]
        frame = frame.assign(**{inputs: expressions, labels: _numbers(frame[labels].tolist())})
        return Table(frame, inputs, labels, words=True)
    path = next(iter(files))
    if path.suffix.lower() in TEXT_FORMATS and inputs != labels:
        try:
            frame = _converted(frame, inputs, labels, column)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    return Table(frame, inputs, labels)


def _check(frame: "pd.DataFrame", path: Path, split: str | None, inputs: str, labels: str) -> None:
    """Raise `UsageError` if a table lacks a column, or if its column "split" contradicts its name."""
    try:
        column_of(frame, labels)
        columns_of(frame, inputs, labels)
        if split is not None and "split" in frame and set(frame["split"].map(SPLIT_NAMES.get)) != {split}:
            raise UsageError(f"its column 'split' holds {abridged(listed(sorted(set(frame['split']))))}, not {split}")
        if inputs in frame:
            _refuse_links(frame[inputs], inputs)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _refuse_links(cells: "pd.Series", column: str) -> None:
    """Raise `UsageError` if a cell has the path of an image instead of the image: a file must not open other files."""
    for row, cell in enumerate(cells if cells.dtype == object else ()):
        if isinstance(cell, dict) and cell.keys() == {"bytes", "path"} and cell["bytes"] is None:
            path = shown(cell["path"])
            raise UsageError(f"column {shown(column)}, row {row} refers to the image {path}: must hold it")


def _are_listops(cells: "pd.Series") -> bool:
    """Return whether sequences consist of the words of ListOps."""
    words = {word for cell in cells[:100] for word in str(cell).split()}
    return words <= {*WORDS, "(", ")"} and not words.isdisjoint(OPERATORS)


def _converted(frame: "pd.DataFrame", inputs: str, labels: str, split: str | None) -> "pd.DataFrame":
    """Return a table of texts with its labels, and columns that are one token each, as numbers if they are."""
    frame = frame.copy()
    frame[labels] = _numbers(frame[column_of(frame, labels)].tolist())
    for column in columns_of(frame, inputs, labels, split):
        if column != inputs:
            cells = [None if cell in WORDS_FOR_NONE else cell for cell in frame[column]]
            frame[column] = _parsed_numbers(cells, column)
    return frame


def _numbers(cells: Sequence[Any]) -> np.ndarray:
    """Return labels from their text: integers or floats if all are, and None for missing ones."""
    cells = [cell.strip() if isinstance(cell, str) else None for cell in cells]
    present = {cell for cell in cells if cell is not None and cell not in WORDS_FOR_NONE}
    kind: Any = str
    if all(map(FLOAT.fullmatch, present)):
        kind = int if all(map(INTEGER.fullmatch, present)) else float
        if len(set(map(kind, present))) < len(present):  # 01 and 1 are different labels
            kind = str
    return pd_objects([kind(cell) if cell in present else None for cell in cells])


def _parsed_numbers(cells: Sequence[str | None], column: str) -> np.ndarray:
    """Return a column of numbers from their text: integers if all are, else floats, NaN where one is missing."""
    if all(cell is not None and INTEGER.fullmatch(cell) for cell in cells):
        return np.array([int(cell) for cell in cells if cell is not None])
    for row, cell in enumerate(cells):
        if cell is not None and not FLOAT.fullmatch(cell):
            raise UsageError(f"column {shown(column)}, row {row} holds {cell[:40]!r}: must be a number")
    return np.array([np.nan if cell is None else float(cell) for cell in cells])
