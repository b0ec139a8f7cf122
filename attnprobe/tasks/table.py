"""Tasks from tables of the user: pandas, Hugging Face data sets, or one table per split."""

import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np

from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.tasks.assemble import Made, Make, split_names, task_of
from attnprobe.tasks.inputs import Inputs, of_cells, paired
from attnprobe.tasks.labels import class_labels
from attnprobe.tasks.reading import Reading
from attnprobe.tasks.split import SPLITS, UNLABELLED

MOST_NAMES, MOST_CHARACTERS = 20, 200
"""Number of column names in an error message, and of their characters."""


def from_table(make: Make[Made], table: Any, *, name: str = "own", **options: Any) -> Made:
    """Build a task from a table; see `Task.from_table`."""
    try:
        return of_frame(make, table, name, Reading(**options))
    except UsageError as error:
        raise UsageError(f"table {name}: {error}") from None


def of_frame(make: Make[Made], table: Any, name: str, reading: Reading) -> Made:
    """Build a task from a table with options."""
    frame, splits, class_names = _frame(table, reading)
    labels, name_of_inputs = column_of(frame, reading.labels or "label"), reading.inputs or "text"
    if name_of_inputs == labels:
        raise UsageError(f"column {labels!r} cannot hold both sequences and labels; columns: {_some(frame)}")
    inputs = _inputs(frame, reading)
    numbered = class_labels(frame[labels].tolist(), f"labels in column {labels!r}", names=class_names)
    return task_of(make, name, inputs, numbered, splits, reading)


def _frame(table: Any, reading: Reading) -> tuple[Any, np.ndarray | None, tuple[str, ...]]:
    """Return a data frame of all rows, the split of each row if there is one, and the names of classes if known."""
    import pandas as pd

    if isinstance(table, Mapping):
        unknown = [name for name in table if name not in (*SPLITS, UNLABELLED)]
        if unknown or not table or reading.split is not None:
            problem = f"splits and split={reading.split!r}" if reading.split else f"splits {listed(table) or 'none'}"
            raise UsageError(f"has {problem}: must map names among {listed(SPLITS)} to tables")
        parts = {name: _frame_of(part) for name, part in table.items()}
        combined = pd.concat(parts.values(), ignore_index=True)
        names = [name for name, part in parts.items() for _ in range(len(part))]
        splits = None if list(parts) == ["train"] else np.array(names)
        return combined, splits, _class_names(next(iter(table.values())), reading)
    frame = _frame_of(table)
    column = reading.split or ("split" if "split" in frame.columns else None)
    splits = None if column is None else split_names(frame[column_of(frame, column)].tolist(), len(frame))
    return frame, splits, _class_names(table, reading)


def _frame_of(table: Any) -> Any:
    import pandas as pd

    frame = table.to_pandas() if hasattr(table, "to_pandas") else table
    if not isinstance(frame, pd.DataFrame):
        raise UsageError(f"is of type {type(table).__name__}: must be a DataFrame or have to_pandas()")
    if len(frame) == 0:
        raise UsageError("has no rows")
    return frame


def _class_names(table: Any, reading: Reading) -> tuple[str, ...]:
    """Return the names of the classes of a Hugging Face data set."""
    feature = (getattr(table, "features", None) or {}).get(reading.labels or "label")
    return tuple(getattr(feature, "names", None) or ())


def column_of(frame: Any, name: str) -> str:
    """Return the name of a column; raise `UsageError` if there is none or more than one of this name."""
    if (count := list(frame.columns).count(name)) != 1:
        noun = f"{count} columns" if count else "no column"
        raise UsageError(f"has {noun} {shown(name)}; columns: {_some(frame)}")
    return name


def _inputs(frame: Any, reading: Reading) -> Inputs:
    name = reading.inputs or "text"
    columns = columns_of(frame, name, reading.labels or "label")
    if columns != [name]:
        return _of_columns(frame, columns, name)

    def read(cells: Any) -> Inputs:
        return of_cells(cells, f"column {name!r}", reading.tokens, reading.patch)

    cells = frame[name].tolist()
    if reading.pair is None:
        return read(cells)
    return paired(cells, frame[column_of(frame, reading.pair)].tolist(), reading.n, read)


def columns_of(frame: Any, inputs: str, labels: str) -> list[str]:
    """Return the column of the sequences, or the columns that a pattern matches, each of which holds one token."""
    if inputs in frame.columns or not any(character in inputs for character in "*?["):
        return [column_of(frame, inputs)]
    others = (labels, "split")
    found = [name for name in frame.columns if name not in others and fnmatch.fnmatchcase(str(name), inputs)]
    if not found:
        raise UsageError(f"has no columns {inputs!r}; columns: {_some(frame)}")
    return found


def _of_columns(frame: Any, columns: list[str], pattern: str) -> Inputs:
    for column in columns:
        if frame[column].dtype.kind not in "iuf":
            raise UsageError(f"column {shown(column)} of type {frame[column].dtype}: must be numbers")
    return of_cells(list(frame[columns].to_numpy()), f"columns {pattern!r}", "bytes", patch=1)


def _some(frame: Any) -> str:
    names = [str(name) for name in frame.columns]
    return abridged(listed(names[:MOST_NAMES]), MOST_CHARACTERS) + (
        f" ... ({len(names)} columns)" if len(names) > MOST_NAMES else ""
    )
