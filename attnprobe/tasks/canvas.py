"""`digits-canvas` and `mnist-canvas`: handwritten digits at random places, which say nothing about the class."""

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import digits, mnist
from attnprobe.tasks.pixels import halved, on_canvas, permuted, pixel_data
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task


@settings
class DigitsCanvas(Source):
    """The images of `digits`, each at one random place of an empty canvas; a token is the grey level of one pixel.

    The seed determines the places and the split.
    """

    settings: ClassVar[dict[str, Any]] = {
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "init": "xavier",
        "init_std": 0.1,
        "position_std": 0.1,
        "learning_rate": 1e-3,
        "batch_size": 32,
        "steps": 8000,
        "pretrain_steps": 6000,
    }
    licence: ClassVar[str] = digits.Digits.licence
    origin: ClassVar[str] = digits.Digits.origin
    name: ClassVar[str] = "digits-canvas"
    image: ClassVar[int] = 8
    """Pixels per side of an image."""
    images: ClassVar[int] = digits.IMAGES
    """Number of images."""
    levels: ClassVar[int] = 17
    """Number of grey levels."""

    side: Annotated[int, Field(le=64)] = 12
    """Pixels per side of the canvas."""
    test_size: Annotated[int, Field(ge=1)] = 600
    """Number of test images; the rest are for training."""
    pixel_permuted: bool = False
    """Permute the pixels of the canvas, in the same way in every image and for every seed: their neighbourhood is lost
    (control)."""

    def __post_init__(self) -> None:
        """Check that the images fit and that some are left for training."""
        if self.side < self.image:
            raise UsageError(f"{self.name}: side={self.side}: must be at least {self.image}, the side of an image")
        if self.test_size >= self.images:
            raise UsageError(f"{self.name}: test_size={self.test_size}: must be below {self.images}, all images")

    @property
    def data(self) -> DataSpec:
        """Grey levels on a grid."""
        return pixel_data("tokens", (self.side, self.side), self.side**2, classes=10, levels=self.levels)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences in each split."""
        return {"train": self.images - self.test_size, "test": self.test_size}

    def build(self, seed: int) -> Task:
        """Place and split the images."""
        images, labels = self.read()
        placed = on_canvas(images, self.side, numpy_generator(seed, f"{self.name} places")).reshape(len(images), -1)
        order = numpy_generator(seed, f"{self.name} split").permutation(len(images))
        rows = np.split(order, [self.sizes["train"]])
        train, test = (Split(placed[part], labels[part]) for part in rows)
        if self.pixel_permuted:
            train, test = map(permuted, (train, test))
        return Task(self.name, self.data, train, test)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return grey levels [image, row, column] and labels [image]."""
        pixels, labels = digits.read()
        return pixels.reshape(-1, self.image, self.image), labels


@settings
class MnistCanvas(DigitsCanvas):
    """The images of `mnist-5k` at half their size, each at one random place of an empty canvas.

    A token is one of 16 grey levels of a pixel. The seed determines the places and the split.
    """

    licence: ClassVar[str] = mnist.Mnist.licence
    origin: ClassVar[str] = mnist.Mnist.origin
    name: ClassVar[str] = "mnist-canvas"
    image: ClassVar[int] = 10
    images: ClassVar[int] = mnist.IMAGES
    levels: ClassVar[int] = 16

    side: Annotated[int, Field(le=64)] = 14
    """Pixels per side of the canvas."""
    test_size: Annotated[int, Field(ge=1)] = 1000
    """Number of test images; the rest are for training."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return grey levels [image, row, column] and labels [image]; digits fill 20 x 20 pixels at most in MNIST."""
        images, labels = mnist.read()
        cut = np.stack([image[_extent(image.any(1))][:, _extent(image.any(0))] for image in images])
        return halved(cut).astype(np.int64) * self.levels // 256, labels


def _extent(inked: np.ndarray) -> slice:
    """Return the 20 rows or columns of an image from the first inked one on, or the last 20."""
    start = min(int(inked.argmax()), len(inked) - 20)
    return slice(start, start + 20)
