"""Tasks from arrays of the user: in memory, or in an .npz file.

`ARRAYS` lists the arrays of a file; `from_arrays` accepts the same by name. The argument ``make`` of each function
constructs the task: `attnprobe.tasks.task.Task`.
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from attnprobe.errors import UsageError, listed
from attnprobe.files import atomic_path
from attnprobe.tasks.assemble import Made, Make, split_names, task_of
from attnprobe.tasks.inputs import Inputs, of_array, of_cells, of_images, on_grid
from attnprobe.tasks.labels import class_labels
from attnprobe.tasks.reading import Reading
from attnprobe.tasks.sequences import Sequences, concatenated

ARRAYS = {
    "tokens": "[sequence, token] ids, or",
    "values": "[sequence, token] or [sequence, token, channel] real numbers, or level numbers if levels is set, or",
    "images": "[sequence, row, column], with a colour axis before or after the pixels",
    "labels": "[sequence] numbers or texts; missing or negative: none",
    "lengths": "[sequence] number of tokens; the sequences may then also lie one after another, [token]",
    "split": "[sequence] train, validation, test, or unlabelled (for self-pretraining only)",
    "grid": "rows and columns of an image",
    "patch": "side of the patches that the tokens of an image are",
    "vocabulary": "number of ids; otherwise the largest id + 1",
    "classes": "number of classes; otherwise the labels that occur",
    "levels": "values are level numbers 0 ... levels - 1, which represent -1 to 1",
    "predicted_levels": "the same number, if masked values are predicted by cross-entropy over the levels",
    "shuffled": "1 if training sequences are in random order; otherwise they are shuffled in a fixed order",
    "mean": "[channel] subtracted from values, with",
    "std": "[channel] by which they are divided; otherwise those of the training split",
    "class_names": "name of each class",
    "symbols": "what each id stands for",
    "notes": "what was done to the data before",
}
"""Valid arrays of a file. Labels, and one of tokens, values and images, are required."""
SUFFIX = ".npz"
MOST = 10**7
"""Largest number of ids; more are surely a mistake."""
MAPPED = 2**28
"""Bytes from which an array of a file is memory-mapped instead of read."""
OPTIONS = ("n", "patch", "kind", "standardise", "unlabelled", "empty", "test_share")
"""Options of `Reading` that apply to arrays; the others are for tables."""


def load(make: Make[Made], path: Path, reading: Reading) -> Made:
    """Read a task from an .npz file, without unpickling; large arrays are memory-mapped if they are not compressed.

    Raises `UsageError`, naming file and array, if an array is unreadable or invalid.
    """
    try:
        # Opened here because numpy does not close a file that only looks like a zip archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError("holds a single unnamed array: write it with numpy.savez(file, tokens=...)")
            with archive:
                mapped = _mapped(path, file)
                arrays = {name: mapped.get(name, None) for name in archive.files}
                arrays = {name: _read(archive, name) if x is None else x for name, x in arrays.items()}
        return _task(make, arrays, path.stem, reading)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or "not a zip archive of arrays, or damaged"
        raise UsageError(f"{path}: not an .npz file ({why})") from error


def _mapped(path: Path, file: IO[bytes]) -> dict[str, np.ndarray]:
    """Return the large arrays of an .npz file that are stored without compression, memory-mapped."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
                continue
            # The sizes of name and extra field in the local header may differ from those of the directory.
            file.seek(member.header_offset + 26)
            file.seek(member.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist()))
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if not dtype.hasobject:
                order = "F" if fortran else "C"
                arrays[member.filename.removesuffix(".npy")] = np.memmap(path, dtype, "r", file.tell(), shape, order)
    return arrays


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
    try:
        with atomic_path(path) as part, zipfile.ZipFile(part, "w") as archive:
            for name, array in of_task(task).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write(member, array)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def _write(member: Any, array: np.ndarray | Sequences) -> None:
    """Write an array; sequences lie one after another if their lengths differ."""
    if isinstance(array, np.ndarray):
        np.lib.format.write_array(member, array, allow_pickle=False)
        return
    ragged = bool((array.lengths != array.n).any())
    shape = (int(array.lengths.sum()), *array.shape[2:]) if ragged else array.shape
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(member, header)
    for block in array.chunks() if ragged else array.blocks():
        member.write(block.tobytes())


def from_arrays(make: Make[Made], name: str = "own", **arrays: Any) -> Made:
    """Build a task from the arrays of an .npz file and options; see `ARRAYS` and `Reading`."""
    try:
        images = arrays.get("images") is not None
        options = {key: arrays.pop(key) for key in OPTIONS if key in arrays and (key != "patch" or images)}
        converted = {key: _array(key, array) for key, array in arrays.items() if array is not None}
        return _task(make, converted, name, Reading(**options))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _array(name: str, values: Any) -> Any:
    """Return values as an array of their own, or as a list if they are sequences of different lengths."""
    if isinstance(values, np.memmap):
        return values
    try:
        array = np.array(values)
        return list(values) if array.dtype == object and name in ("tokens", "values") else array
    except (TypeError, ValueError):
        if name in ("tokens", "values"):
            return list(values)
        raise UsageError(f"{name} is not an array: must be {ARRAYS.get(name, 'numbers')}") from None


def of_task(task: Any) -> dict[str, np.ndarray | Sequences]:
    """Return the arrays of the .npz file of a task."""
    splits, data = task.all_splits, task.data
    if len({split.levels for split in task.splits.values()}) > 1:
        raise UsageError(f"{task.name}: one file cannot hold splits with different levels")
    arrays: dict[str, Any] = {
        data.inputs: concatenated([split.inputs for split in splits.values()]),
        "labels": np.concatenate([split.labels for split in splits.values()]),
        "split": np.repeat(list(splits), [len(split) for split in splits.values()]),
        "classes": np.array(data.classes),
        "shuffled": np.array(1),
    }
    if any(split.lengths is not None for split in splits.values()):
        lengths = [np.full(len(x), data.n) if x.lengths is None else x.lengths for x in splits.values()]
        arrays["lengths"] = np.concatenate(lengths)
    levels = task.train.levels
    numbers = {"vocabulary": data.vocabulary, "levels": levels, "predicted_levels": data.levels}
    if data.patch > 1:
        numbers["patch"] = data.patch
    texts = {name: getattr(data, name) for name in ("grid", "mean", "std", "class_names", "symbols")}
    arrays |= {name: np.array(value) for name, value in {**texts, "notes": task.notes}.items() if value}
    # Real values without mean and std are used as they are, which an empty mean says.
    if data.inputs == "values" and not levels and not data.mean:
        arrays |= {"mean": np.zeros(0), "std": np.zeros(0)}
    return arrays | {name: np.array(number) for name, number in numbers.items() if number}


def _task(make: Make[Made], arrays: Mapping[str, Any], name: str, reading: Reading) -> Made:
    """Check the arrays and build their task; every error names its array."""
    for option in ("inputs", "labels", "split", "pair", "kind", "tokens"):
        if (value := getattr(reading, option)) != getattr(Reading(), option):
            raise UsageError(f"{option}={value!r}: is for tables, not for arrays")
    if unknown := sorted(set(arrays) - set(ARRAYS)):
        raise UsageError(
            f"unknown array {listed(unknown)}: name them labels and tokens, values or images; valid: {listed(ARRAYS)}"
        )
    kinds = [kind for kind in ("tokens", "values", "images") if kind in arrays]
    if len(kinds) != 1 or "labels" not in arrays:
        raise UsageError(f"must hold labels, and one of tokens, values and images; holds {listed(arrays) or 'nothing'}")
    arrays = {key: _native(array) for key, array in arrays.items()}
    inputs = _inputs(arrays, kinds[0], reading)
    count = len(inputs.sequences)
    if len(arrays["labels"].reshape(-1)) != count or arrays["labels"].ndim != 1:
        raise UsageError(f"labels of shape {arrays['labels'].shape}: must be [{count}]")
    classes = _number(arrays, "classes", 0) or None
    labels = class_labels(arrays["labels"], "labels", classes, _texts(arrays, "class_names"))
    scale = None
    if "mean" in arrays or "std" in arrays:
        mean, std = (arrays[key].astype(float).reshape(-1).tolist() for key in ("mean", "std") if key in arrays)
        scale = tuple(mean), tuple(std)
    return task_of(
        make,
        name,
        inputs,
        labels,
        split_names(arrays["split"], count) if "split" in arrays else None,
        reading,
        predicted_levels=_number(arrays, "predicted_levels", 0),
        shuffle=not _number(arrays, "shuffled", 0),
        scale=scale,
        symbols=_texts(arrays, "symbols"),
        notes=_texts(arrays, "notes"),
    )


def _native(array: Any) -> Any:
    """Return an array in the byte order of this machine; other values as they are."""
    if not isinstance(array, np.ndarray) or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def _inputs(arrays: Mapping[str, Any], kind: str, reading: Reading) -> Inputs:
    if kind == "images":
        return of_images(arrays["images"], reading.patch)
    if reading.patch > 1 and reading.grid is None:
        raise UsageError(f"patch={reading.patch}: needs images, not {kind}")
    levels = _number(arrays, "levels", 0)
    if levels == 1:
        raise UsageError("levels=1: must be 2 or more")
    if isinstance(arrays[kind], list):
        if "lengths" in arrays:
            raise UsageError(f"lengths: not needed for {kind} of different lengths")
        inputs = of_cells(arrays[kind], kind, kind="tokens" if kind == "tokens" else "values")
    else:
        lengths = _lengths(arrays, arrays[kind])
        inputs = of_array(arrays[kind], "tokens" if kind == "tokens" else "values", lengths, levels)
    grid = tuple(_integers(arrays, "grid", (2,), 1).tolist()) if "grid" in arrays else None
    patch = _number(arrays, "patch", 1)
    if patch > 1 and grid is None:
        raise UsageError(f"patch={patch}: needs images, or the grid of patches that the tokens are")
    vocabulary = _number(arrays, "vocabulary", 0) or None
    if vocabulary is not None and vocabulary > MOST:
        raise UsageError(f"vocabulary of {vocabulary}: must be at most {MOST}")
    inputs = dataclasses.replace(inputs, grid=grid, vocabulary=vocabulary, patch=patch)
    return inputs if reading.grid is None else on_grid(inputs, reading.grid, reading.patch)


def _lengths(arrays: Mapping[str, Any], inputs: np.ndarray) -> np.ndarray | None:
    if "lengths" not in arrays:
        return None
    lengths = _integers(arrays, "lengths", (len(arrays["labels"]),), 0)
    if len(inputs) != len(lengths) and len(inputs) == lengths.sum():
        return lengths
    return _integers(arrays, "lengths", (len(inputs),), 0, inputs.shape[1] if inputs.ndim > 1 else None)


def _texts(arrays: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(arrays[name].astype(str).tolist()) if name in arrays else ()


def _integers(
    arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], least: int, most: int | None = None
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


def _number(arrays: Mapping[str, Any], name: str, default: int) -> int:
    if name not in arrays:
        return default
    return int(_integers({name: arrays[name].reshape(-1)}, name, (1,), 0)[0])
