"""Tables in files: .csv, .tsv, .jsonl and .parquet."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnprobe.errors import UsageError, abridged

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 2**31 - 1
"""Largest number of characters of a field of a .csv or .tsv file; Python's own limit is 131,072."""

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""Characters between fields; spreadsheets write semicolons where the comma is the decimal sign."""
MOST_COLUMNS = 2**17
"""Largest number of columns, each of which pandas keeps as an object; tables of genes have 60,000."""
EMPTY_SHARE, SMALL_TABLE = 100, 2**22
"""Largest ratio of cells to the values that lines of JSON hold, and number of cells that is allowed in any case."""
RATIO, SMALL = 200, 2**27
"""Largest ratio of the unpacked to the packed size of a .parquet file, and unpacked size allowed in any case."""
ROWS_PER_BYTE, FEW_ROWS = 16, 2**20
"""Largest number of values of a .parquet column per byte of the file, and number that is allowed in any case."""
BATCH = 256
"""Rows of a .parquet file that are unpacked at once, so that one value repeated in all rows is noticed in time."""
PYARROW = (14, 0, 1)
"""First version of pyarrow that runs no code from files (CVE-2023-47248)."""


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
        _check_columns(len(frame.columns))
        return frame
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text (holds {error.object[error.start : error.end]!r}); save it as UTF-8"
        ) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _check_columns(count: int) -> None:
    if count > MOST_COLUMNS:
        raise UsageError(f"has {count:,} columns: must have at most {MOST_COLUMNS:,}")


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
            if expected is None:
                expected = len(row)
                _check_columns(expected)
            if len(row) != expected:
                raise UsageError(f"line {reader.line_num} has {len(row)} fields: must have {expected}")
            yield row
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} cannot be read ({error})") from None


def _objects(path: Path) -> "pd.DataFrame":
    """Read one JSON object per line; blank lines are skipped."""
    import pandas as pd

    rows, names, values = [], {}, 0
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
            names |= dict.fromkeys(row)
            values += len(row)
            _check_columns(len(names))
    if len(rows) * len(names) > max(SMALL_TABLE, EMPTY_SHARE * values):
        raise UsageError(f"has {len(names):,} columns, of which lines hold {values / len(rows):.1f}: must hold most")
    return pd.DataFrame(rows)


def _parquet(path: Path) -> "pd.DataFrame":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("reading .parquet files needs pyarrow: pip install pyarrow") from None
    if tuple(map(int, pyarrow.__version__.split(".")[:3])) < PYARROW:
        raise UsageError(f"pyarrow {pyarrow.__version__} can run code from a .parquet file: pip install -U pyarrow")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            size = path.stat().st_size
            _check_parquet(file.metadata, size)
            batches, unpacked = [], 0
            for batch in file.iter_batches(BATCH):
                batches.append(_without_dictionaries(batch))
                unpacked += batches[-1].nbytes
                if unpacked > max(SMALL, RATIO * size):
                    raise UsageError(f"unpacks to far more than its {size:,} bytes")
            table = pyarrow.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
            return table.replace_schema_metadata(file.schema_arrow.metadata).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UsageError(f"not a complete .parquet file ({abridged(' '.join(str(error).split()))})") from None


def _without_dictionaries(batch: Any) -> Any:
    """Return rows with the value itself in each cell, so that a long value in many rows counts as often."""
    columns = [
        column.dictionary_decode() if hasattr(column, "dictionary_decode") else column for column in batch.columns
    ]
    return type(batch).from_arrays(columns, names=batch.schema.names)


def _check_parquet(metadata: Any, size: int) -> None:
    """Raise `UsageError` if a .parquet file of ``size`` bytes claims far more columns, rows or bytes than it can hold.

    A column that repeats one value takes a few bytes, whatever its number of rows.
    """
    _check_columns(metadata.num_columns)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(column) for group in groups for column in range(group.num_columns)]
    values = max([metadata.num_rows, *(chunk.num_values for chunk in chunks)])
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    if values > max(FEW_ROWS, ROWS_PER_BYTE * size):
        raise UsageError(f"claims {values:,} values in a column: more than {size:,} bytes can hold")
    if unpacked > max(SMALL, RATIO * size):
        raise UsageError(f"unpacks to {unpacked:,} bytes, more than {RATIO} times its {size:,}")


FORMATS: dict[str, Callable[[Path], "pd.DataFrame"]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _objects,
    ".parquet": _parquet,
}
"""Readers by suffix."""
TEXT_FORMATS = (".csv", ".tsv")
"""Suffixes of the formats in which every cell is text."""
