"""`image`, `image-16` and `image-rgb`: CIFAR-10 as pixel sequences, from the official binary archive."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.tasks import archives, pixels
from attnprobe.tasks.folder import Create, made_once
from attnprobe.tasks.pixels import Inputs, halved, patched, patched_data, permuted, pixel_data, split_levels
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import Source
from attnprobe.tasks.task import Task

ARCHIVE = archives.Archive(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)
FOLDER = "cifar-10-batches-bin"
BATCHES = {"train": [f"data_batch_{batch}.bin" for batch in range(1, 6)], "test": ["test_batch.bin"]}
RECORDS = 10000
"""Number of images in a batch file."""
RECORD = 1 + 3 * 32 * 32
"""Bytes of one image: the label, then the red, green and blue planes."""
Form = Literal["grey", "grey-16", "rgb"]
TOKENS = {"grey": 32 * 32, "grey-16": 16 * 16, "rgb": 3 * 32 * 32}


@settings
class Image(Source):
    """CIFAR-10 in grey, 32 x 32 pixels read row by row: the Image task of the Long Range Arena.

    The split is the official one; ``train_size`` and ``test_size`` select the first images of each split. The archive
    is in random order, so these subsets are approximately balanced.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-image")
    licence: ClassVar[str] = "none stated"
    origin: ClassVar[str] = f"CIFAR-10 (Krizhevsky 2009), {ARCHIVE.address}"
    name: ClassVar[str] = "image"
    form: ClassVar[Form] = "grey"
    grid: ClassVar[tuple[int, int] | None] = (32, 32)

    inputs: Inputs = "values"
    """values: levels are numbers from -1 to 1, with absolute error as the masked loss; tokens: levels are 256 ids."""
    train_size: Annotated[int, Field(ge=1, le=50000)] = 50000
    """Number of training images."""
    test_size: Annotated[int, Field(ge=1, le=10000)] = 10000
    """Number of test images."""
    patch: Count = 1
    """Side of the squares of pixels that are the tokens, as in ViT; their channels are pixels times colours."""
    pixel_permuted: bool = False
    """Permute the pixels, in the same way in every image and for every seed: their neighbourhood is lost (control)."""

    @property
    def data(self) -> DataSpec:
        """Grey or colour levels, on a grid if a token is a pixel or a patch."""
        if self.patch > 1:
            return patched_data(self.inputs, self._pixels, 3 if self.form == "rgb" else 1, self.patch)
        return pixel_data(self.inputs, self.grid, TOKENS[self.form], classes=10)

    def build(self, seed: int) -> Task:
        """Read the images."""
        arrays = read(self.form)
        levels = split_levels(self.inputs)
        train, test = (archives.made_split(arrays, split, size, levels) for split, size in self.sizes.items())
        if self.pixel_permuted:
            colours = 3 if self.form == "rgb" else 1
            train, test = (permuted(split, colours) for split in (train, test))
        if self.patch > 1:
            train, test = (patched(split, self._pixels, self.patch) for split in (train, test))
        return Task(self.name, self.data, train, test)

    @property
    def _pixels(self) -> tuple[int, int]:
        return self.grid or (32, 32)


@settings
class Image16(Image):
    """CIFAR-10 in grey at 16 x 16 pixels (means of 2 x 2): a quarter of the tokens of `image`."""

    name: ClassVar[str] = "image-16"
    form: ClassVar[Form] = "grey-16"
    grid: ClassVar[tuple[int, int] | None] = (16, 16)


@settings
class ImageRGB(Image):
    """CIFAR-10 in colour: red, green and blue of a pixel are three consecutive tokens."""

    name: ClassVar[str] = "image-rgb"
    form: ClassVar[Form] = "rgb"
    grid: ClassVar[tuple[int, int] | None] = None


@dataclass(frozen=True)
class Cifar:
    """Cache key of the arrays on disk."""

    form: Form


def read(form: Form) -> dict[str, np.ndarray]:
    """Return the CIFAR-10 arrays train_inputs [image, token], train_labels [image], test_inputs and test_labels."""
    path = ARCHIVE.find()
    batches = {f"{FOLDER}/{file}": split for split, files in BATCHES.items() for file in files}
    starts = {f"{FOLDER}/{file}": RECORDS * i for files in BATCHES.values() for i, file in enumerate(files)}

    def make(create: Create) -> None:
        sizes = {split: RECORDS * len(files) for split, files in BATCHES.items()}
        inputs = {split: create(f"{split}_inputs", (size, TOKENS[form]), np.uint8) for split, size in sizes.items()}
        labels = {split: create(f"{split}_labels", (size,), np.uint8) for split, size in sizes.items()}
        size = range(RECORDS * RECORD, RECORDS * RECORD + 1)
        present = set()
        for name, content in archives.members(path, lambda name: size if name in batches else None):
            records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD)
            if records[:, 0].max() > 9:
                raise UsageError(f"{path}: {name} holds the label {records[:, 0].max()}: must be 0 ... 9")
            rows = slice(starts[name], starts[name] + RECORDS)
            inputs[batches[name]][rows] = tokens(records[:, 1:].reshape(RECORDS, 3, 32, 32), form)
            labels[batches[name]][rows] = records[:, 0]
            present.add(name)
        archives.complete(path, present, batches)

    return made_once(Cifar(form), make, helpers=[archives, pixels], archive=archives.sha256(path))


def tokens(images: np.ndarray, form: Form) -> np.ndarray:
    """Convert images [image, colour, row, column] to [image, token].

    Grey is the luma 0.299 R + 0.587 G + 0.114 B in the integer arithmetic of Pillow and torchvision, and equals theirs
    exactly.
    """
    if form == "rgb":
        return images.transpose(0, 2, 3, 1).reshape(len(images), -1)
    red, green, blue = images.astype(np.uint32).transpose(1, 0, 2, 3)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).astype(np.uint8)
    return (halved(grey) if form == "grey-16" else grey).reshape(len(images), -1)
