"""Readers of labelled sequences on disk: table files, folders of them, and folders of images or texts.

`read` returns a `Table` from any form that `is_readable` recognises. Nothing in a file is executed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.errors import UsageError, listed
from attnprobe.tasks.columns import (
    FORMATS,
    INPUTS,
    LISTOPS,
    MISSING,
    SPLIT,
    SPLIT_NAMES,
    TEXT_FORMATS,
    Columns,
    numbers,
    read_columns,
)
from attnprobe.tasks.labelled_files import is_pathfinder, read_class_folders, read_pathfinder
from attnprobe.tasks.listops import WORDS

if TYPE_CHECKING:
    import pandas as pd

FILE_OF_SPLIT = re.compile(rf"(?:.*[^a-z])?({'|'.join(SPLIT_NAMES)})(?:-\d+-of-(\d+))?", re.IGNORECASE)
"""Name of a file of one split, without its suffix: basic_train, valid, test-00000-of-00002."""
INTEGER = re.compile(r"\s*[+-]?\d{1,4000}\s*", re.ASCII)  # int() takes up to 4,300 digits
FLOAT = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
NUMBERS = re.compile(r"\s*\[[-+.,\d\seE\[\]naNifIty]*\]\s*", re.ASCII)
"""Text of a list of numbers, which may be NaN, nan, inf or Infinity."""
OPERATORS = [word for word in WORDS if word.startswith("[")]
PARENTHESES = str.maketrans("()", "  ")


@dataclass(frozen=True)
class Table:
    """Labelled sequences."""

    frame: "pd.DataFrame"
    """One row per sequence; all columns have the dtype object."""
    inputs: str
    """Column of the sequences: text, bytes, [token] numbers, or uint8 images [row, column] or [row, column, colour]."""
    labels: str
    """Column of the labels: text, integers or floats; None where there is no label."""
    split: str | None
    """Column of the splits train, validation and test; None if the sequences are not split."""
    words: bool = False
    """Whether the text consists of words separated by spaces; otherwise it is a sequence of bytes."""


def is_readable(path: Path) -> bool:
    """Return whether `read` accepts a path: a folder, or a file with a known suffix."""
    return path.suffix.lower() in FORMATS or path.is_dir()


def read(path: Path, inputs: str | None = None, labels: str | None = None) -> Table:
    """Read labelled sequences.

    ====================================  ==========================================================================
    path                                  content
    ====================================  ==========================================================================
    .csv, .tsv, .jsonl, .parquet          a table with a column per name, and optionally the split in a column "split"
    folder of these                       one file per split: train, val (valid, validation, dev), test, or a name that
                                          ends so (basic_train.tsv, test-00000-of-00001.parquet)
    folder/CLASS, folder/SPLIT/CLASS      images or .txt files; texts in the class unsup have no label
    folder with imgs/ and metadata/       Pathfinder of the Long Range Arena
    ====================================  ==========================================================================

    Cells of .csv and .tsv files are text. Labels become integers if all are integers, else floats if all are numbers;
    those that pandas reads as missing become None. Text becomes numbers if every cell is a list such as "[1, 2]". The
    ListOps files of the Long Range Arena, with columns Source and Target, are read as it does: as words, without
    parentheses. If all rows are in the split train, the table has no split.

    Args:
        path: File or folder.
        inputs: Column of the sequences, "text" by default, or a shell pattern such as "pixel*" of the columns that hold
            one number each. Missing numbers are NaN; those at the end of a row shorten its sequence.
        labels: Column of the labels, "label" by default.

    Raises:
        UsageError: The form is unknown or ambiguous, a file is damaged, or a cell is invalid.
    """
    try:
        if path.is_dir():
            return _folder(path, inputs, labels)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if path.suffix.lower() not in FORMATS:
            raise UsageError(f"{path}: must be a folder or end in {listed(FORMATS)}")
        return _tables([(None, path)], inputs, labels)
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _folder(path: Path, inputs: str | None, labels: str | None) -> Table:
    if files := _files_of_splits(path):
        return _tables(files, inputs, labels)
    columns = read_pathfinder(path) if is_pathfinder(path) else read_class_folders(path)
    for wanted, name in zip((inputs, labels), columns.names, strict=True):
        if wanted not in (None, name):
            raise UsageError(f"{path}: has no column {wanted!r}; columns: {listed(columns.names)}")
    return _table(columns)


def _files_of_splits(folder: Path) -> list[tuple[str | None, Path]]:
    """Return split and path of each table file in the order of the splits; none if no name ends in a split."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS and path.name[0] != ".")
    matches = {path: FILE_OF_SPLIT.fullmatch(path.stem) for path in tables}
    if not any(matches.values()):
        return []
    if len(formats := sorted({path.suffix.lower() for path in tables})) > 1:
        raise UsageError(f"{folder}: holds {listed(formats)} files: must hold tables of one format")
    found: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES.values()}
    parts: dict[str, set[int]] = {split: set() for split in found}
    for path, match in matches.items():
        if match is None:
            raise UsageError(f"{path}: the name must end in a split, as of other files here ({listed(SPLIT_NAMES)})")
        split = SPLIT_NAMES[match[1].lower()]
        found[split].append(path)
        parts[split].add(int(match[2] or 1))
    for split, paths in found.items():
        if paths and parts[split] != {len(paths)}:
            names = listed(path.name for path in paths)
            raise UsageError(f"{folder}: the split {split} must be one file, or all its parts -I-of-N; holds {names}")
    return [(split, path) for split, paths in found.items() for path in paths]


def _tables(files: Sequence[tuple[str | None, Path]], inputs: str | None, labels: str | None) -> Table:
    """Read table files as one table: one file without a split, or the files of all splits."""
    parts = [(split, path, read_columns(path, inputs, labels)) for split, path in files]
    for split, path, part in parts:
        if split is not None and part.splits is not None and (held := set(part.splits)) != {split}:
            raise UsageError(f"{path}: column {SPLIT!r} holds {listed(sorted(held))} in the file of {split}")
    _, path, first = parts[0]
    cells = [cell for _, _, part in parts for cell in part.inputs]
    labels_of_rows = [label for _, _, part in parts for label in part.labels]
    splits = [split for split, _, part in parts for _ in part.inputs if split is not None]
    columns = Columns(
        first.names,
        cells,
        _labels(labels_of_rows) if path.suffix.lower() in TEXT_FORMATS else labels_of_rows,
        splits or first.splits,
    )
    if first.names == LISTOPS and _are_listops(cells):
        expressions = [" ".join(cell.translate(PARENTHESES).split()) for cell in cells]
        return _table(replace(columns, inputs=expressions), words=True)
    if first.names == LISTOPS and inputs is None:
        raise UsageError(f"{path}: has no column {INPUTS!r}, and Source holds no ListOps; columns: {listed(LISTOPS)}")
    if _are_lists(cells):
        cells = [
            _parsed(cell, f"{path}: row {row}, column {first.names[0]!r}")
            for _, path, part in parts
            for row, cell in enumerate(part.inputs)
        ]
    return _table(replace(columns, inputs=_of_one_type(cells)))


def _labels(cells: list[str]) -> list[str | int | float | None]:
    """Return labels from their text: integers or floats if all are, and None for missing ones."""
    present = {cell for cell in cells if cell not in MISSING}
    kind = str
    if all(map(FLOAT.fullmatch, present)):
        kind = int if all(map(INTEGER.fullmatch, present)) else float
    return [kind(cell) if cell in present else None for cell in cells]


def _are_listops(cells: list[Any]) -> bool:
    """Return whether the sequences, up to the first that has an operator, consist of the words of ListOps."""
    for cell in cells:
        words = set(cell.split()) if isinstance(cell, str) else {None}
        if not words <= {*WORDS, "(", ")"}:
            return False
        if not words.isdisjoint(OPERATORS):
            return True
    return False


def _are_lists(cells: list[Any]) -> bool:
    """Return whether all cells are text in brackets and some are lists of numbers: then all must be."""
    in_brackets = all(isinstance(cell, str) and re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL) for cell in cells)
    return in_brackets and any(map(NUMBERS.fullmatch, cells))


def _parsed(text: str, where: str) -> np.ndarray:
    try:
        values = json.loads(text.replace("nan", "NaN"))  # as pandas writes it
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise UsageError(f"{where} holds {text.strip()[:40]!r}: not a list such as [1, 2] ({reason})") from None
    return numbers(values, where)


def _of_one_type(cells: list[Any]) -> list[Any]:
    """Return the sequences; if some are floats, those of integers become floats too."""
    if any(isinstance(cell, np.ndarray) and cell.dtype.kind == "f" for cell in cells):
        return [cell.astype(np.float64, copy=False) if isinstance(cell, np.ndarray) else cell for cell in cells]
    return cells


def _table(columns: Columns, words: bool = False) -> Table:
    import pandas as pd

    inputs, labels = columns.names
    cells = {inputs: columns.inputs, labels: columns.labels}
    splits = None if columns.splits is None or set(columns.splits) == {"train"} else columns.splits
    if splits is not None:
        cells[SPLIT] = splits
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in cells.items()})
    return Table(frame, inputs, labels, None if splits is None else SPLIT, words)
