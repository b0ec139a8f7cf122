"""Tasks from user data: an .npz file, arrays in memory, or a table.

`ARRAYS` lists the arrays of an .npz file. `from_arrays` accepts the same arrays by name, and `from_table` builds them
from a table. The argument ``make`` of each function constructs the task: `attnprobe.tasks.task.Task`.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError, listed
from attnprobe.files import atomic_path
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.split import Split

ARRAYS = {
    "tokens": "[sequence, token] ids, or",
    "values": "[sequence, token] real numbers, or level numbers if levels is set",
    "labels": "[sequence] 0 ... classes - 1",
    "lengths": "[sequence] number of tokens before the padding",
    "split": "[sequence] train, validation or test",
    "grid": "rows and columns of an image",
    "vocabulary": "number of ids; otherwise the largest id + 1",
    "classes": "number of classes; otherwise the largest label + 1",
    "levels": "values are level numbers 0 ... levels - 1, which represent -1 to 1",
    "predicted_levels": "the same number, if masked values are predicted by cross-entropy over the levels",
    "shuffled": "1 if training sequences are in random order; otherwise they are shuffled in a fixed order",
}
"""Valid arrays of a file. Labels, and either tokens or values, are required."""
SPLITS = ("train", "validation", "test")
SUFFIX = ".npz"
TEST_SHARE = 0.2
MOST = 10**7
"""Largest number of ids or classes; more are surely a mistake."""
Made = TypeVar("Made")
Make = Callable[..., Made]
"""Constructs a task from its name, data and splits."""


def load(make: Make[Made], path: Path, test_share: float = TEST_SHARE) -> Made:
    """Read a task from an .npz file, without unpickling.

    Raises `UsageError`, naming file and array, if an array is unreadable or invalid.
    """
    try:
        # Opened here because numpy does not close a file that only looks like a zip archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError("holds a single unnamed array: write it with numpy.savez(file, tokens=...)")
            with archive:
                arrays = {name: _read(archive, name) for name in archive.files}
        return _task(make, arrays, path.stem, test_share)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or "not a zip archive of arrays, or damaged"
        raise UsageError(f"{path}: not an .npz file ({why})") from error


def _read(archive: Any, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if "Object arrays" in str(error):
            raise UsageError(f"{name} holds Python objects: must hold numbers (pad sequences to one length)") from None
        raise UsageError(f"{name} cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{name} is not an array; valid: {listed(ARRAYS)}")
    return array


def save(task: Any, path: Path) -> None:
    """Write a task to an .npz file atomically; raise `UsageError` if that fails."""
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: the name must end in {SUFFIX}")
    arrays: dict[str, Any] = of_task(task)
    try:
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def from_arrays(make: Make[Made], name: str = "own", *, test_share: float = TEST_SHARE, **arrays: Any) -> Made:
    """Build a task from the arrays of an .npz file; see `ARRAYS`."""
    try:
        converted = {key: _array(key, array) for key, array in arrays.items() if array is not None}
        return _task(make, converted, name, test_share)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is not an array: pad sequences to one length and pass their lengths") from None


def from_table(
    make: Make[Made],
    table: Any,
    inputs: str = "text",
    labels: str = "label",
    *,
    split: str | None = None,
    n: int | None = None,
    name: str = "own",
    test_share: float = TEST_SHARE,
) -> Made:
    """Build a task from a table; see `Task.from_table`."""
    try:
        frame, splits = _frame(table, split)
        for column in (inputs, labels, *([split] if split else [])):
            if (count := list(frame.columns).count(column)) != 1:
                noun = f"{count} columns" if count else "no column"
                raise UsageError(f"has {noun} {column!r}; columns: {listed(frame.columns)}")
        arrays = _sequences(frame[inputs].tolist(), inputs, n)
        arrays["labels"] = _classes(frame[labels].tolist(), labels)
        arrays["classes"] = np.array(arrays["labels"].max() + 1)
        if splits is not None:
            arrays["split"] = np.array([str(part) for part in splits])
        return _task(make, arrays, name, test_share)
    except UsageError as error:
        raise UsageError(f"table {name}: {error}") from None


def _frame(table: Any, split: str | None) -> tuple[Any, list[Any] | None]:
    """Return a data frame of all rows, and the split of each row if the table has splits."""
    import pandas as pd

    if isinstance(table, Mapping):
        unknown = [name for name in table if name not in SPLITS]
        if unknown or not table or split is not None:
            error = f"splits and split={split!r}" if split is not None else f"splits {listed(table) or 'none'}"
            raise UsageError(f"has {error}: must map names among {listed(SPLITS)} to tables")
        frames = {name: _frame(part, None)[0] for name, part in table.items()}
        combined = pd.concat(frames.values(), ignore_index=True)
        names = [name for name, frame in frames.items() for _ in range(len(frame))]
        return combined, None if list(frames) == ["train"] else names
    frame = table.to_pandas() if hasattr(table, "to_pandas") else table
    if not isinstance(frame, pd.DataFrame):
        raise UsageError(f"is of type {type(table).__name__}: must be a DataFrame or have to_pandas()")
    if len(frame) == 0:
        raise UsageError("has no rows")
    return frame, None if split is None or split not in frame.columns else frame[split].tolist()


def _sequences(cells: list[Any], column: str, n: int | None) -> dict[str, np.ndarray]:
    """Return the cells of a column as padded tokens or values, with their lengths if they differ."""
    if n is not None and not (isinstance(n, int) and n >= 1):
        raise UsageError(f"n={n}: must be an integer of at least 1")
    rows = [_sequence(cell, f"column {column!r}, row {row}")[:n] for row, cell in enumerate(cells)]
    is_text = [isinstance(cell, str | bytes) for cell in cells]
    if len(set(is_text)) > 1:
        raise UsageError(
            f"column {column!r} mixes text and lists of numbers, first in row {is_text.index(not is_text[0])}"
        )
    real = any(np.issubdtype(row.dtype, np.floating) for row in rows)
    lengths = np.array([len(row) for row in rows])
    kind = np.float32 if real else np.result_type(*{row.dtype for row in rows})
    padded = np.zeros((len(rows), lengths.max()), kind)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
    arrays = {"values" if real else "tokens": padded}
    if lengths.min() < lengths.max():
        arrays["lengths"] = lengths
    if is_text[0]:
        arrays["vocabulary"] = np.array(256)
    return arrays


def _sequence(cell: Any, where: str) -> np.ndarray:
    if isinstance(cell, str | bytes):
        try:
            row = np.frombuffer(cell.encode() if isinstance(cell, str) else cell, np.uint8)
        except UnicodeEncodeError as error:
            raise UsageError(f"{where} holds text that is not valid Unicode ({error.reason})") from None
    else:
        try:
            row = np.asarray(cell)
        except ValueError:  # nested lists of different lengths
            row = np.empty(())
        if row.ndim != 1 or (len(row) and row.dtype.kind not in "iuf"):
            raise UsageError(f"{where} holds {type(cell).__name__}: must be text or a list of ids or numbers")
    if len(row) == 0:
        raise UsageError(f"{where} is empty")
    return row


def _classes(cells: list[Any], column: str) -> np.ndarray:
    """Number labels of any sortable type 0 ... classes - 1, in sorted order."""
    import pandas as pd

    for row, cell in enumerate(cells):
        if not pd.api.types.is_scalar(cell):
            raise UsageError(f"column {column!r}, row {row} holds {type(cell).__name__}: must be one label")
        if pd.isna(cell):
            raise UsageError(f"column {column!r}, row {row} has no label ({cell})")
    try:
        numbers = {label: i for i, label in enumerate(sorted(set(cells)))}
    except TypeError:
        kinds = sorted({type(cell).__name__ for cell in cells})
        raise UsageError(f"column {column!r} holds {listed(kinds)}: labels must be sortable") from None
    return np.array([numbers[cell] for cell in cells])


def of_task(task: Any) -> dict[str, np.ndarray]:
    """Return the arrays of the .npz file of a task."""
    splits, data = list(task.splits.values()), task.data
    if len({split.levels for split in splits}) > 1:
        raise UsageError(f"{task.name}: one file cannot hold splits with different levels")
    arrays = {
        data.inputs: np.concatenate([split.inputs for split in splits]),
        "labels": np.concatenate([split.labels for split in splits]),
        "split": np.repeat(list(task.splits), [len(split) for split in splits]),
        "classes": np.array(data.classes),
        "shuffled": np.array(1),
    }
    if any(split.lengths is not None for split in splits):
        lengths = [np.full(len(split), data.n) if split.lengths is None else split.lengths for split in splits]
        arrays["lengths"] = np.concatenate(lengths)
    numbers = {"vocabulary": data.vocabulary, "levels": splits[0].levels, "predicted_levels": data.levels}
    if data.grid is not None:
        arrays["grid"] = np.array(data.grid)
    return arrays | {name: np.array(number) for name, number in numbers.items() if number}


def _task(make: Make[Made], arrays: Mapping[str, np.ndarray], name: str, test_share: float) -> Made:
    """Check the arrays and build their task; every error names its array."""
    arrays = {key: array.astype(array.dtype.newbyteorder("="), copy=False) for key, array in arrays.items()}
    if unknown := sorted(set(arrays) - set(ARRAYS)):
        raise UsageError(f"unknown array {listed(unknown)}; valid: {listed(ARRAYS)}")
    if ("tokens" in arrays) == ("values" in arrays) or "labels" not in arrays:
        raise UsageError(f"must hold labels, and tokens or values; holds {listed(arrays) or 'nothing'}")
    kind = "tokens" if "tokens" in arrays else "values"
    levels = _number(arrays, "levels", 0)
    if levels == 1:
        raise UsageError("levels=1: must be 2 or more")
    inputs = _inputs(arrays[kind], kind, levels)
    count, n = inputs.shape
    labels = _integers(arrays, "labels", (count,), 0)
    if labels.max() >= MOST:
        raise UsageError(f"labels hold {labels.max()}: must be below {MOST}")
    classes = _number(arrays, "classes", int(labels.max()) + 1)
    if "classes" not in arrays and (skipped := sorted(set(range(classes)) - set(labels.tolist()))):
        first = listed(skipped[:5]) + (" ..." if len(skipped) > 5 else "")
        raise UsageError(f"labels 0 ... {classes - 1} skip {first}; set the number of classes with an array classes")
    if labels.max() >= classes:
        raise UsageError(f"labels hold {labels.max()}: must be 0 ... classes - 1 = {classes - 1}")
    lengths = _integers(arrays, "lengths", (count,), 1, n) if "lengths" in arrays else None
    data = DataSpec(
        n=n,
        inputs=kind,
        classes=classes,
        vocabulary=_number(arrays, "vocabulary", int(inputs.max()) + 1) if kind == "tokens" else 0,
        grid=tuple(_integers(arrays, "grid", (2,), 1).tolist()) if "grid" in arrays else None,
        levels=_number(arrays, "predicted_levels", 0),
    )
    if data.vocabulary > MOST:
        raise UsageError(f"tokens of a vocabulary of {data.vocabulary}: must be at most {MOST}")
    rows = _rows(arrays, count, test_share)
    full = Split(inputs, labels, lengths, levels)
    if not _number(arrays, "shuffled", 0):
        rows["train"] = numpy_generator(0, "own order").permutation(rows["train"])
    return make(name, data, **{split: _select(full, selected) for split, selected in rows.items()})


def _inputs(inputs: np.ndarray, kind: str, levels: int) -> np.ndarray:
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise UsageError(f"{kind} of shape {inputs.shape}: must be [sequence, token]")
    if kind == "tokens" or levels:
        if not np.issubdtype(inputs.dtype, np.integer):
            raise UsageError(f"{kind} of type {inputs.dtype}: must be {'ids' if kind == 'tokens' else 'level numbers'}")
        if inputs.min() < 0:
            raise UsageError(f"{kind} hold {inputs.min()}: must be 0 or more")
    elif inputs.dtype not in (np.float16, np.float32, np.float64):
        raise UsageError(f"{kind} of type {inputs.dtype}: must be real numbers (float32)")
    elif not np.isfinite(inputs).all():
        raise UsageError(f"{kind} hold NaN or infinite numbers")
    return inputs


def _integers(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], least: int, most: int | None = None
) -> np.ndarray:
    array = arrays[name]
    if array.shape != shape:
        raise UsageError(f"{name} of shape {array.shape}: must be {list(shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{name} of type {array.dtype}: must be integers")
    if array.min() < least or (most is not None and array.max() > most):
        valid = f"{least} or more" if most is None else f"{least} ... {most}"
        raise UsageError(f"{name} hold {array.min()} ... {array.max()}: must be {valid}")
    return array.astype(np.int64)


def _number(arrays: Mapping[str, np.ndarray], name: str, default: int) -> int:
    if name not in arrays:
        return default
    return int(_integers({name: arrays[name].reshape(-1)}, name, (1,), 0)[0])


def _rows(arrays: Mapping[str, np.ndarray], count: int, test_share: float) -> dict[str, np.ndarray]:
    """Return the row indices of each split."""
    if "split" not in arrays:
        if not 0 < test_share < 1:
            raise UsageError(f"test_share={test_share}: must be between 0 and 1")
        if count < 2:
            raise UsageError(f"{count} sequence cannot be split into train and test")
        rows = numpy_generator(0, "own split").permutation(count)
        test = min(max(1, round(test_share * count)), count - 1)
        return {"train": rows[test:], "test": rows[:test]}
    try:
        split = arrays["split"].astype(str) if arrays["split"].dtype.kind in "US" else arrays["split"]
    except UnicodeDecodeError:
        raise UsageError(f"split holds bytes that are not text; valid: {listed(SPLITS)}") from None
    if split.dtype.kind != "U" or split.shape != (count,):
        raise UsageError(f"split of type {split.dtype} and shape {split.shape}: must be strings of shape [{count}]")
    if test_share != TEST_SHARE:
        raise UsageError(f"test_share={test_share}: the sequences already have a split")
    present = np.unique(split)
    if unknown := sorted(set(present) - set(SPLITS)):
        raise UsageError(f"split holds {listed(unknown[:5])}; valid: {listed(SPLITS)}")
    for needed in ("train", "test"):
        if needed not in present:
            raise UsageError(f"split has no {needed} sequences; it has {listed(present)}")
    return {name: np.flatnonzero(split == name) for name in SPLITS if name in present}


def _select(split: Split, rows: np.ndarray) -> Split:
    lengths = None if split.lengths is None else split.lengths[rows]
    return Split(split.inputs[rows], split.labels[rows], lengths, split.levels)
