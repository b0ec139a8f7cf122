"""Tables in files: .csv, .tsv, .jsonl and .parquet."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnprobe.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 2**31 - 1
"""Largest number of characters of a field of a .csv or .tsv file; Python's own limit is 131,072."""

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""Characters between fields; spreadsheets write semicolons where the comma is the decimal sign."""


def read_table(path: Path) -> "pd.DataFrame":
    """Read all columns of a table file.

    Cells of .csv and .tsv files are text. Raises `UsageError`, naming file and line, if the file is damaged.
    """
    try:
        frame = FORMATS[path.suffix.lower()](path)
        if frame.columns.empty:
            raise UsageError("is empty")
        if len(frame) == 0:
            raise UsageError("has no rows")
        return frame
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text (holds {error.object[error.start : error.end]!r}); save it as UTF-8"
        ) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _separated(path: Path) -> "pd.DataFrame":
    """Read fields that the most frequent delimiter of the first line separates."""
    import pandas as pd

    limit = csv.field_size_limit(LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(DELIMITERS[path.suffix.lower()], key=first.count)
            file.seek(0)
            rows = list(_fields(csv.reader(file, delimiter=delimiter, strict=True)))
            if delimiter == "\t" and any("\n" in field for row in rows for field in row):
                # In such files a quote is a character like any other: pairs of them would join lines.
                file.seek(0)
                rows = list(_fields(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)))
    finally:
        csv.field_size_limit(limit)
    names = [name.strip() for name in rows[0]] if rows else []
    return pd.DataFrame(rows[1:], columns=names, dtype=object)


def _fields(reader: Any) -> Iterator[list[str]]:
    """Yield the fields of each row; blank lines are skipped. Pandas would fill rows that are too short in silence."""
    expected = None
    try:
        for row in reader:
            if not row:
                continue
            expected = expected or len(row)
            if len(row) != expected:
                raise UsageError(f"line {reader.line_num} has {len(row)} fields: must have {expected}")
            yield row
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} cannot be read ({error})") from None


def _objects(path: Path) -> "pd.DataFrame":
    """Read one JSON object per line; blank lines are skipped."""
    import pandas as pd

    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"line {number} is not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise UsageError(f"line {number} holds {str(row)[:60]}: must be one JSON object")
            rows.append(row)
    return pd.DataFrame(rows)


def _parquet(path: Path) -> "pd.DataFrame":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("reading .parquet files needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.read_table(path).to_pandas()
    except pyarrow.ArrowException as error:
        raise UsageError(f"not a complete .parquet file ({' '.join(str(error).split())})") from None


FORMATS: dict[str, Callable[[Path], "pd.DataFrame"]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _objects,
    ".parquet": _parquet,
}
"""Readers by suffix."""
TEXT_FORMATS = (".csv", ".tsv")
"""Suffixes of the formats in which every cell is text."""
