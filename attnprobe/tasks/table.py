"""Tasks from tables of the user: pandas, Hugging Face data sets, or one table per split."""

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.tasks.assemble import Made, Make, split_names, task_of
from attnprobe.tasks.inputs import Inputs, of_cells, on_grid, paired
from attnprobe.tasks.labels import class_labels
from attnprobe.tasks.reading import Reading
from attnprobe.tasks.split import SPLIT_NAMES, SPLITS, UNLABELLED

MOST_NAMES, MOST_CHARACTERS = 20, 200
"""Number of column names in an error message, and of their characters."""


def from_table(make: Make[Made], table: Any, *, name: str = "own", **options: Any) -> Made:
    """Build a task from a table; see `Task.from_table`."""
    try:
        return of_frame(make, table, name, Reading(**options))
    except UsageError as error:
        raise UsageError(f"table {name}: {error}") from None


def of_frame(make: Make[Made], table: Any, name: str, reading: Reading, class_names: tuple[str, ...] = ()) -> Made:
    """Build a task from a table with options; ``class_names`` names the classes if the table does not."""
    frame, splits, known_names = _frame(table, reading)
    labels, name_of_inputs = column_of(frame, reading.labels or "label"), reading.inputs or "text"
    if name_of_inputs == labels:
        raise UsageError(f"column {labels!r} cannot hold both sequences and labels; columns: {_some(frame)}")
    inputs = _inputs(frame, reading)
    cells, where = frame[labels].tolist(), f"labels in column {labels!r}"
    return task_of(make, name, inputs, class_labels(cells, where, names=known_names or class_names), splits, reading)


def _frame(table: Any, reading: Reading) -> tuple[Any, np.ndarray | None, tuple[str, ...]]:
    """Return a data frame of all rows, the split of each row if there is one, and the names of classes if known."""
    import pandas as pd

    if isinstance(table, Mapping):
        parts = {SPLIT_NAMES.get(str(name).lower(), str(name)): part for name, part in table.items()}
        unknown = [name for name in parts if name not in (*SPLITS, UNLABELLED)]
        if unknown or not table or len(parts) < len(table) or reading.split is not None:
            problem = f"splits and split={reading.split!r}" if reading.split else f"splits {listed(table) or 'none'}"
            raise UsageError(f"has {problem}: must map names among {listed((*SPLITS, UNLABELLED))} to tables")
        frames = {name: _named(part, reading) for name, part in parts.items()}
        combined = pd.concat(frames.values(), ignore_index=True)
        names = [name for name, part in frames.items() for _ in range(len(part))]
        splits = None if list(frames) == ["train"] else np.array(names)
        return combined, splits, _class_names(next(iter(parts.values())), reading)
    frame = _named(table, reading)
    column = reading.split or ("split" if "split" in frame.columns else None)
    splits = None if column is None else split_names(frame[column_of(frame, column)].tolist(), len(frame))
    return frame, splits, _class_names(table, reading)


def _named(table: Any, reading: Reading) -> Any:
    """Return a data frame; class numbers of a Hugging Face data set become names, whose order may differ by split."""
    frame, names = _frame_of(table), _class_names(table, reading)
    if not names:
        return frame
    labels = reading.labels or "label"
    numbers = frame[labels].fillna(-1).astype(int).tolist()
    return frame.assign(**{labels: pd_objects([names[number] if number >= 0 else None for number in numbers])})


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
        if all(_is_number(str(column)) for column in frame.columns):
            raise UsageError(f"has no column {name!r}: the first line must hold the names of the columns")
        noun = f"{count} columns" if count else "no column"
        raise UsageError(f"has {noun} {shown(name)}; columns: {_some(frame)}")
    return name


def _inputs(frame: Any, reading: Reading) -> Inputs:
    name = reading.inputs or "text"
    columns = columns_of(frame, name, reading.labels or "label", reading.split)
    options = {"kind": reading.kind, "tokens": reading.tokens, "patch": 1 if reading.grid else reading.patch}

    def read(cells: Any) -> Inputs:
        return of_cells(cells, f"column {name!r}", **options)

    if columns != [name]:
        inputs = _of_columns(frame, columns, name, options)
    elif reading.pair is None:
        inputs = read(frame[name].tolist())
    else:
        inputs = paired(frame[name].tolist(), frame[column_of(frame, reading.pair)].tolist(), reading.n, read)
    return inputs if reading.grid is None else on_grid(inputs, reading.grid, reading.patch)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def columns_of(frame: Any, inputs: str, labels: str, split: str | None = None) -> list[str]:
    """Return the column of the sequences, or the columns that a pattern matches, each of which holds one token.

    A pattern leaves out the columns of labels and splits, and the nameless one that pandas writes for its index.
    """
    if inputs in frame.columns or not any(character in inputs for character in "*?["):
        return [column_of(frame, inputs)]
    others = (labels, split or "split", "", "Unnamed: 0")
    found = [name for name in frame.columns if str(name) not in others and fnmatch.fnmatchcase(str(name), inputs)]
    if not found:
        raise UsageError(f"has no columns {inputs!r}; columns: {_some(frame)}")
    return found


def _of_columns(frame: Any, columns: list[str], pattern: str, options: Mapping[str, Any]) -> Inputs:
    for column in columns:
        if frame[column].dtype.kind not in "iuf":
            raise UsageError(f"column {shown(column)} of type {frame[column].dtype}: must be numbers")
    numbers = frame[columns]
    missing = bool(numbers.isna().any(axis=None))
    array = numbers.to_numpy(dtype=float, na_value=np.nan) if missing else numbers.to_numpy()
    inputs = of_cells(list(array), f"columns {pattern!r}", **options)
    first = listed(repr(str(name)) for name in columns[:3])
    last = f" ... {str(columns[-1])!r}" if len(columns) > 3 else ""
    return replace(inputs, notes=(*inputs.notes, f"tokens are {len(columns)} columns: {first}{last}"))


def pd_objects(values: list[Any]) -> Any:
    """Return values as an array of objects."""
    import pandas as pd

    return pd.Series(values, dtype=object).to_numpy()


def _some(frame: Any) -> str:
    names = [str(name) for name in frame.columns]
    return abridged(listed(names[:MOST_NAMES]), MOST_CHARACTERS) + (
        f" ... ({len(names)} columns)" if len(names) > MOST_NAMES else ""
    )
