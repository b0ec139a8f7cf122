"""Tasks from arrays of the user: in memory, or in an .npz file.

`ARRAYS` lists the arrays of a file; `from_arrays` accepts the same by name. The argument ``make`` of each function
constructs the task: `attnprobe.tasks.task.Task`.
"""

import dataclasses
import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from attnprobe.config import LARGEST
from attnprobe.errors import UsageError, abridged, choices, listed, shown
from attnprobe.files import atomic_path, opened_zip
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
VOCABULARY = 2**18
"""Number of ids that a file may declare whatever ids occur: those of the largest tokenizers."""
CLASSES = 2**16
"""Number of classes that a file may declare whatever labels occur: more than the 21,841 of ImageNet."""
LEVELS = 2**16
"""Largest number of levels: those of 16-bit audio."""
MOST_TEXTS = 10**6
"""Largest number of texts in an array, such as the names of classes; they become Python objects."""
RATIO = 200
"""Largest ratio of the unpacked to the packed size of a file; padded token ids have about 50."""
SMALL = 2**27
"""Unpacked size that is allowed in any case."""
MEMBERS = 1000
"""Largest number of arrays in a file."""
MAPPED = 2**28
"""Bytes from which an array of a file is memory-mapped instead of read."""
OPTIONS = ("n", "patch", "kind", "standardise", "unlabelled", "empty", "test_share")
"""Options of `Reading` that apply to arrays; the others are for tables."""

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for damaged arrays."""


def load(make: Make[Made], path: Path, reading: Reading) -> Made:
    """Read a task from an .npz file, without unpickling; large arrays are memory-mapped if they are not compressed.

    Raises `UsageError`, naming file and array, if an array is unreadable or invalid.
    """
    try:
        return _task(make, read_arrays(path, ARRAYS), path.stem, reading)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def read_arrays(path: Path, valid: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; large ones are memory-mapped if they are not compressed.

    Raises:
        UsageError: The file is damaged or no .npz file, unpacks to far more than its own size, has arrays other than
            the ``valid`` ones, or an array is not what its header claims. The message does not name the file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(np.lib.format.MAGIC_PREFIX))
            if magic == np.lib.format.MAGIC_PREFIX:
                raise UsageError("holds a single unnamed array: write it with numpy.savez(file, tokens=...)")
            with opened_zip(file) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                _check_members(archive.infolist(), path.stat().st_size)
                if valid is not None and (unknown := sorted(set(members) - set(valid))):
                    raise UsageError(f"unknown array {abridged(listed(unknown))}; {choices(unknown[0], valid)}")
                return {name: _array_of(path, file, archive, name, member) for name, member in members.items()}
    except UsageError:
        raise
    except _DAMAGED as error:
        why = getattr(error, "strerror", None) or "not a zip archive of arrays, or damaged"
        raise UsageError(f"not an .npz file ({why})") from error


def _check_members(members: Collection[zipfile.ZipInfo], size: int) -> None:
    """Raise `UsageError` if arrays are too many, or together far larger than the file that holds them."""
    if len(members) > MEMBERS:
        raise UsageError(f"holds {len(members):,} arrays: must hold at most {MEMBERS:,}")
    if (unpacked := sum(member.file_size for member in members)) > max(SMALL, RATIO * size):
        raise UsageError(f"unpacks to {unpacked:,} bytes, more than {RATIO} times its {size:,}")


def _array_of(path: Path, file: IO[bytes], archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """Return an array of an archive, after a check that its header claims the bytes that are there."""
    try:
        with archive.open(member) as content:
            shape, order, dtype = _header(content, name)
            held = member.file_size - content.tell()
            claimed = math.prod(shape) * dtype.itemsize
            if claimed != held or (dtype.itemsize == 0 and math.prod(shape)):
                raise UsageError(f"{abridged(name)} claims shape {_short(shape)} of {dtype}, but holds {held:,} bytes")
            if member.compress_type == zipfile.ZIP_STORED and member.file_size >= MAPPED:
                start = _start(file, member) + content.tell()
                return np.memmap(path, dtype, "r", start, shape, order)
            content.seek(0)
            return np.lib.format.read_array(content, allow_pickle=False)
    except UsageError:
        raise
    except _DAMAGED as error:
        reason = abridged(" ".join(str(error).split()) or type(error).__name__)
        raise UsageError(f"{abridged(name)} cannot be read ({reason})") from None


def _header(content: Any, name: str) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Return shape, order and type of an array; raise `UsageError` if it is none, or of Python objects."""
    try:
        version = np.lib.format.read_magic(content)
    except ValueError:
        raise UsageError(f"{abridged(name)} is not an array; valid: {listed(ARRAYS)}") from None
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(content)
    if dtype.hasobject:
        raise UsageError(f"{abridged(name)} holds Python objects: must hold numbers (pad sequences to one length)")
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {_short(shape)}")
    return shape, "F" if fortran else "C", dtype


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where the content of a stored member begins in the file."""
    # The sizes of name and extra field in the local header may differ from those of the directory.
    file.seek(member.header_offset + 26)
    return member.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())


def _short(shape: tuple[int, ...]) -> str:
    return shown(list(shape))


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
        raise UsageError(f"unknown array {abridged(listed(unknown))}; {choices(unknown[0], ARRAYS)}")
    kinds = [kind for kind in ("tokens", "values", "images") if kind in arrays]
    if len(kinds) != 1 or "labels" not in arrays:
        raise UsageError(f"must hold labels, and one of tokens, values and images; holds {listed(arrays) or 'nothing'}")
    arrays = {key: _native(array) for key, array in arrays.items()}
    inputs = _inputs(arrays, kinds[0], reading)
    count = len(inputs.sequences)
    if len(arrays["labels"].reshape(-1)) != count or arrays["labels"].ndim != 1:
        raise UsageError(f"labels of shape {arrays['labels'].shape}: must be [{count}]")
    classes = _number(arrays, "classes", 0, max(CLASSES, count)) or None
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
        predicted_levels=_number(arrays, "predicted_levels", 0, LEVELS),
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
    levels = _number(arrays, "levels", 0, LEVELS)
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
    # An embedding has a row for each id: more ids than tokens are surely a mistake.
    vocabulary = _number(arrays, "vocabulary", 0, max(VOCABULARY, inputs.sequences.flat.size)) or None
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
    if name not in arrays:
        return ()
    if arrays[name].size > MOST_TEXTS:
        raise UsageError(f"{name} holds {arrays[name].size:,} texts: must hold at most {MOST_TEXTS:,}")
    try:
        return tuple(arrays[name].astype(str).reshape(-1).tolist())
    except UnicodeDecodeError:
        raise UsageError(f"{name} holds bytes that are not text") from None


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


def _number(arrays: Mapping[str, Any], name: str, default: int, most: int = LARGEST) -> int:
    if name not in arrays:
        return default
    number = int(_integers({name: arrays[name].reshape(-1)}, name, (1,), 0)[0])
    if number > most:
        raise UsageError(f"{name} of {number}: must be at most {most}")
    return number
