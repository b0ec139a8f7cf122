"""Sequences that are files: images or texts in one folder per class, and the Long Range Arena's Pathfinder."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.tasks.split import SPLIT_NAMES
from attnprobe.tasks.table_files import FORMATS

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

INPUTS, LABELS = "text", "label"
"""Default names of the columns of sequences and labels."""
IMAGE = "image"
"""Name of the column of images."""
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF")
"""Pillow's names of the formats. It tells formats by content, and decoders of others (EPS) run programs."""
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}
"""Pillow's names of kinds of images, and of the kinds to which they are converted: grey (L) or RGB, 8 bits each."""
MOST_PIXELS = 2**24
"""Largest number of pixels of an image, 16.8 million: a few bytes can claim any number."""
RATIO, SMALL = 200, 2**28
"""Largest ratio of the bytes of all pixels to those of the files, and number of bytes that is allowed in any case."""
TEXTS = (".txt",)
UNLABELLED = "unsup"
"""Class folder of texts without a label in the Large Movie Review Dataset."""
CLUTTER = ("Thumbs.db", "desktop.ini")
"""Files that file managers create; they are ignored, as hidden files are."""


def read_class_folders(root: Path) -> tuple["pd.DataFrame", str, str]:
    """Read ROOT/CLASS/FILE or ROOT/SPLIT/CLASS/FILE; the label is the name of the class folder.

    All files are images, or all are texts. Rows are sorted by split, class and name. Texts are bytes as in the file.

    Raises:
        UsageError: The layout is another one, a file cannot be read, or images differ in size or colours.
    """
    files = [(split, path.name, file) for split, path in _class_folders(root) for file in _files(path)]
    paths, labels = [path for _, _, path in files], [label for _, label, _ in files]
    splits = [split for split, _, _ in files if split is not None] or None
    if paths[0].suffix.lower() in IMAGES:
        _check_suffixes(paths, IMAGES)
        return _table(IMAGE, read_images(paths), labels, splits)
    _check_suffixes(paths, TEXTS)
    known = [None if label == UNLABELLED else label for label in labels]
    return _table(INPUTS, [path.read_bytes() for path in paths], known, splits)


def _table(
    inputs: str, cells: Sequence[Any], labels: Sequence[Any], splits: Sequence[str] | None
) -> tuple["pd.DataFrame", str, str]:
    """Return a table and the names of its columns of sequences and labels."""
    import pandas as pd

    columns = {inputs: pd.Series(list(cells), dtype=object), LABELS: pd.Series(list(labels), dtype=object)}
    has_splits = splits is not None and set(splits) != {"train"}
    return pd.DataFrame(columns | ({"split": splits} if has_splits else {})), inputs, LABELS


def _class_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Return split and path of each class folder; the split is None if the folders are not in folders of splits."""
    folders = _folders(root)
    found: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES.get(path.name.lower())
        if split in found:
            raise UsageError(f"{root}: both {found[split].name} and {path.name} are folders of the split {split}")
        if split is not None:
            found[split] = path
    if not found:
        return [(None, path) for path in folders]
    if others := [path.name for path in folders if path not in found.values()]:
        splits = listed(path.name for path in found.values())
        raise UsageError(f"{root}: has folders of splits ({splits}) and others ({listed(others)}): must have one kind")
    order = dict.fromkeys(SPLIT_NAMES.values())
    return [(split, path) for split in order if split in found for path in _folders(found[split])]


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder; files beside them, such as a readme, are ignored."""
    folders = [Path(entry) for entry in _entries(path) if entry.is_dir()]
    if not folders:
        raise UsageError(
            f"{path}: must hold one folder per class, one per split with one per class in it, or one table per split "
            f"({listed(f'train{suffix}' for suffix in FORMATS)})"
        )
    return folders


def _files(folder: Path) -> list[Path]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_file():
            raise UsageError(f"{folder}: holds {entry.name}, which is not a file: a class folder must hold only files")
    if not entries:
        raise UsageError(f"{folder}: holds no files of its class")
    return [folder / entry.name for entry in entries]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in CLUTTER]
    return sorted(visible, key=lambda entry: entry.name)


def _check_suffixes(paths: Sequence[Path], suffixes: tuple[str, ...]) -> None:
    for path in paths:
        if path.suffix.lower() not in suffixes:
            kinds = f"all be images ({listed(IMAGES)}) or all be texts ({listed(TEXTS)})"
            raise UsageError(f"{path}: the files of the classes must {kinds}")


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read images as uint8 [row, column] (grey) or [row, column, colour] (RGB); all must have one shape."""
    images = [read_image(paths[0])]
    unpacked = images[0].nbytes * len(paths)
    if unpacked > max(SMALL, RATIO * sum(path.stat().st_size for path in paths)):
        raise UsageError(f"{paths[0].parent}: images unpack to {unpacked:,} bytes, more than {RATIO} times their size")
    for path in paths[1:]:
        image = read_image(path)
        if image.shape != images[0].shape:
            first = f"{paths[0]} has {_shape(images[0])}"
            raise UsageError(
                f"{path}: has {_shape(image)}, but {first}: all images must have the same size and colours"
            )
        images.append(image)
    return images


def _shape(image: np.ndarray) -> str:
    rows, columns, *colours = image.shape
    return f"{rows} x {columns} pixels ({'RGB' if colours else 'grey'})"


def read_image(file: Any) -> np.ndarray:
    """Read an image from a path or an open file; see `pixels`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `pixels` has a lower limit
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                return pixels(image)
    except UsageError as error:
        raise UsageError(f"{_name(file)}{error}") from None
    except Exception as error:  # decoders raise many types for damaged files
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"{_name(file)}not an image that can be read ({reason})") from None


def _name(file: Any) -> str:
    return f"{file}: " if isinstance(file, str | Path) else ""


def pixels(image: "Image.Image") -> np.ndarray:
    """Return an image as uint8 [row, column] (grey) or [row, column, colour] (RGB, without transparency)."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UsageError(f"claims {width} x {height} pixels: must have at most {MOST_PIXELS:,}")
    if image.mode not in MODES:
        raise UsageError(f"is an image of mode {image.mode}: must be grey or RGB with 8 bits per colour")
    if getattr(image, "is_animated", False):
        raise UsageError("has several frames: must be one image")
    mode = MODES[image.mode]
    if image.mode == "P":
        image = image.convert("RGBA")  # from a palette straight to RGB, Pillow warns of a transparent colour
    return np.asarray(image.convert(mode))


def is_pathfinder(root: Path) -> bool:
    """Return whether a folder has the layout of the Long Range Arena's Pathfinder."""
    return (root / "imgs").is_dir() and (root / "metadata").is_dir()


def read_pathfinder(root: Path) -> tuple["pd.DataFrame", str, str]:
    """Read the images listed in ROOT/metadata/*.npy; label 1 means that a path connects the two dots.

    Raises:
        UsageError: A line of these files is invalid, or its image cannot be read.
    """
    files = sorted((root / "metadata").glob("*.npy"))
    if not files:
        raise UsageError(f"{root / 'metadata'}: holds no .npy files")
    paths, labels = [], []
    for file in files:
        for row, fields in enumerate(_metadata(file), 1):
            if not fields:
                continue
            if len(fields) < 4 or fields[3] not in ("0", "1"):
                line = " ".join(fields)[:60]
                raise UsageError(f"{file}: line {row} is {line!r}: must be FOLDER NAME NUMBER LABEL ..., LABEL 0 or 1")
            path = root / fields[0] / fields[1]
            if any(Path(part).is_absolute() or ".." in Path(part).parts for part in fields[:2]):
                raise UsageError(f"{file}: line {row} names {shown(' '.join(fields[:2]))}: outside the folder")
            if not path.is_file() or path.stat().st_size == 0:
                raise UsageError(f"{path}: no such image, or an empty file; {file} lists it in line {row}")
            paths.append(path)
            labels.append(int(fields[3]))
    if not paths:
        raise UsageError(f"{root / 'metadata'}: lists no images")
    return _table(IMAGE, read_images(paths), labels, None)


def _metadata(file: Path) -> Iterator[list[str]]:
    """Yield the fields of each image: the official files are text despite their suffix, the generator's are arrays."""
    with file.open("rb") as content:
        is_array = content.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
    try:
        if not is_array:
            yield from (line.split() for line in file.read_text("utf-8").splitlines())
            return
        array = np.load(file, allow_pickle=False).astype(str)
        if array.ndim not in (1, 2):
            raise ValueError(f"shape {array.shape}")
    except (ValueError, MemoryError) as error:
        reason = abridged(" ".join(str(error).split()))
        raise UsageError(f"{file}: neither text nor an array of strings [image, field] ({reason})") from None
    yield from (row.split() if isinstance(row, str) else row for row in array.tolist())
