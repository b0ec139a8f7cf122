"""Sequences, labels and splits from the columns of one table file: .csv, .tsv, .jsonl or .parquet."""

import contextlib
import csv
import fnmatch
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.errors import UsageError, listed

INPUTS, LABELS, SPLIT = "text", "label", "split"
"""Default names of the columns."""
LISTOPS = ("Source", "Target")
"""Names of the columns of the Long Range Arena's ListOps files."""
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Accepted names of splits in files, folders and cells, and the names of the splits."""
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"]
    + ["NULL", "NaN", "None", "n/a", "nan", "null"]
)
"""Labels and numbers of .csv and .tsv files that mean a missing value; pandas reads the same ones as missing."""
LONGEST = 2**31 - 1
"""Largest number of characters of a field of a .csv or .tsv file; Python's own limit is 131,072."""
MOST_NAMES = 20
"""Number of column names in an error message."""
Rows = Generator[tuple[str, list[Any]], None, None]
"""Place of each row in its file, for messages, and its cells."""


@dataclass(frozen=True)
class Columns:
    """Sequences, labels and splits, one item per row, and the names of the first two."""

    names: tuple[str, str]
    inputs: list[Any]
    """Text, bytes, [token] numbers or uint8 images."""
    labels: list[Any]
    """Text, integers or floats; None where there is no label."""
    splits: list[str] | None
    """Names of the splits, if the rows have one."""


@dataclass(frozen=True)
class Format:
    """How to read files of one format."""

    names: Callable[[Path], list[str]]
    """Returns the column names."""
    rows: Callable[[Path, list[str], list[int]], Rows]
    """Returns the rows in the columns at given positions, given all column names."""


def read_columns(path: Path, inputs: str | None, labels: str | None) -> Columns:
    """Read sequences, labels and, if there is a column "split", the split of each row.

    Args:
        path: A file whose suffix is in `FORMATS`.
        inputs: Column of the sequences, or a shell pattern of the columns over which each sequence is spread. The
            default is "text", or "Source" in the ListOps files of the Long Range Arena.
        labels: Column of the labels. The default is "label", or "Target" in those ListOps files.

    Raises:
        UsageError: The file is damaged, lacks a column or holds an invalid cell. The message names file, row and cell.
    """
    form = FORMATS[path.suffix.lower()]
    try:
        names = form.names(path)
        if not names:
            raise UsageError("is empty")
        if inputs is None and labels is None and INPUTS not in names and set(LISTOPS) <= set(names):
            inputs, labels = LISTOPS
        inputs, labels = inputs or INPUTS, labels or LABELS
        sequence, label, split = _positions(names, inputs, labels)
        is_spread = names[sequence[0]] != inputs
        columns = Columns((inputs, labels), [], [], [] if split else None)
        with contextlib.closing(form.rows(path, names, sequence + label + split)) as rows:
            for where, cells in rows:
                parts = cells[: len(sequence)]
                columns.inputs.append(
                    _spread(parts, inputs, where) if is_spread else _sequence(parts[0], inputs, where)
                )
                columns.labels.append(_label(cells[len(sequence)], labels, where))
                if columns.splits is not None:
                    columns.splits.append(_split(cells[-1], where))
        if not columns.inputs:
            raise UsageError("has no rows")
        return columns
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (holds {error.object[error.start : error.end]!r})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _positions(names: list[str], inputs: str, labels: str) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of the columns of sequences, labels and splits (none if there is no such column)."""
    is_pattern = inputs not in names and any(character in inputs for character in "*?[")
    wanted = [labels] if is_pattern else [inputs, labels]
    if SPLIT in wanted:
        raise UsageError(f"column {SPLIT!r} holds the splits: it cannot hold sequences or labels")
    split = [SPLIT] if SPLIT in names else []
    for name in wanted + split:
        if (count := names.count(name)) != 1:
            raise UsageError(f"has {f'{count} columns' if count else 'no column'} {name!r}; columns: {_some(names)}")
    if inputs == labels:
        raise UsageError(f"column {inputs!r} cannot hold both sequences and labels; columns: {_some(names)}")
    if is_pattern:
        others = [labels, *split]
        sequence = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, inputs) and name not in others]
        if not sequence:
            raise UsageError(f"no column matches {inputs!r}; columns: {_some(names)}")
    else:
        sequence = [names.index(inputs)]
    return sequence, [names.index(labels)], [names.index(name) for name in split]


def _some(names: list[str]) -> str:
    return listed(names[:MOST_NAMES]) + (f" ... ({len(names)} columns)" if len(names) > MOST_NAMES else "")


def _sequence(cell: Any, column: str, where: str) -> Any:
    """Return the sequence of a cell: text, bytes or [token] numbers."""
    where = f"{where}, column {column!r}"
    if isinstance(cell, list):
        return numbers(cell, where)
    if not isinstance(cell, str | bytes):
        raise UsageError(f"{where} holds {_short(cell)}: must be text or a list of numbers")
    if not cell:
        raise UsageError(f"{where} is empty")
    return cell


def _spread(cells: list[Any], pattern: str, where: str) -> np.ndarray:
    """Return the [token] numbers of the cells of a row: NaN where a cell is missing, shorter if the last ones are."""
    while cells and _is_missing(cells[-1]):
        cells.pop()
    where = f"{where} in columns {pattern!r}"
    try:
        return numbers(cells, where)
    except UsageError:  # for speed, missing numbers are looked for only now
        return numbers(["nan" if _is_missing(cell) else str(cell) for cell in cells], where)


def numbers(cells: list[Any], where: str) -> np.ndarray:
    """Return [token] numbers, int64 if all are integers and else float64, from numbers or from their text."""
    if not cells:
        raise UsageError(f"{where} is empty")
    kinds = set(map(type, cells))
    try:
        if kinds == {str}:
            return _parsed(cells)
        if kinds <= {int, float}:
            return np.array(cells, np.int64 if kinds == {int} else np.float64)
    except (ValueError, OverflowError):
        pass
    wrong = next((cell for cell in cells if not _is_number(cell)), cells)
    raise UsageError(f"{where} holds {_short(wrong)}: must be 64-bit numbers")


def _parsed(cells: list[str]) -> np.ndarray:
    try:
        return np.array(list(map(int, cells)), np.int64)
    except ValueError:
        return np.array(list(map(float, cells)), np.float64)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return not isinstance(cell, bool)


def _is_missing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and cell in MISSING)


def _label(cell: Any, column: str, where: str) -> str | int | float | None:
    if cell is None or cell != cell:
        return None
    if not isinstance(cell, str | int | float):
        raise UsageError(f"{where}, column {column!r} holds {_short(cell)}: must be text or one number")
    return cell


def _split(cell: Any, where: str) -> str:
    if not isinstance(cell, str) or cell not in SPLIT_NAMES:
        raise UsageError(f"{where}, column {SPLIT!r} holds {_short(cell)}; valid: {listed(SPLIT_NAMES)}")
    return SPLIT_NAMES[cell]


def _short(value: Any) -> str:
    """Return the representation of a value, abridged and on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _separated(delimiter: str) -> Format:
    """Return the format of files of fields that a delimiter separates."""

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[Any]:
        limit = csv.field_size_limit(LONGEST)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield csv.reader(file, delimiter=delimiter, strict=True)
        finally:
            csv.field_size_limit(limit)

    def names(path: Path) -> list[str]:
        with opened(path) as reader:
            return next(_fields(reader), ("", []))[1]

    def rows(path: Path, names: list[str], columns: list[int]) -> Rows:
        with opened(path) as reader:
            fields = _fields(reader)
            next(fields)  # the column names
            for where, row in fields:
                if len(row) != len(names):
                    raise UsageError(f"{where} has {len(row)} fields: must have {len(names)}")
                yield where, [row[i] for i in columns]

    return Format(names, rows)


def _fields(reader: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the fields of each row; blank lines are skipped."""
    try:
        for row in reader:
            if row:
                yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} cannot be read ({error})") from None


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of each line; blank lines are skipped."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"line {number} is not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(value, dict):
                raise UsageError(f"line {number} holds {_short(value)}: must be one JSON object")
            yield f"line {number}", value


def _object_names(path: Path) -> list[str]:
    return list(dict.fromkeys(name for _, value in _objects(path) for name in value))


def _object_rows(path: Path, names: list[str], columns: list[int]) -> Rows:
    for where, value in _objects(path):
        yield where, [value.get(names[i]) for i in columns]


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("reading .parquet files needs pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise UsageError(f"not a complete .parquet file ({' '.join(str(error).split())})") from None


def _parquet_names(path: Path) -> list[str]:
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


def _parquet_rows(path: Path, names: list[str], columns: list[int]) -> Rows:
    row, wanted = 0, [names[i] for i in columns]
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for cells in zip(*(batch.column(name).to_pylist() for name in wanted), strict=True):
                yield f"row {row}", list(cells)
                row += 1


FORMATS = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": Format(_object_names, _object_rows),
    ".parquet": Format(_parquet_names, _parquet_rows),
}
"""Table files by suffix."""
TEXT_FORMATS = (".csv", ".tsv")
"""Suffixes of the formats in which every cell is text."""
