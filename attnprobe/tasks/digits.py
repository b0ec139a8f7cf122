"""`digits`: handwritten digits, 8 x 8 pixels with 17 grey levels, bundled with scikit-learn."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pixels import patched, patched_data, permuted
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

IMAGES = 1797


@settings
class Digits(Source):
    """Handwritten digits from scikit-learn, read row by row; a token is the grey level of one pixel.

    The training and test images are a fixed random split, the same for every seed.
    """

    settings: ClassVar[dict[str, Any]] = {
        "d_model": 64,
        "n_heads": 4,
        "learning_rate": 2e-3,
        "batch_size": 32,
        "steps": 2700,
        "pretrain_steps": 2000,
    }
    licence: ClassVar[str] = "CC BY 4.0"
    origin: ClassVar[str] = "UCI optical recognition of handwritten digits (Alpaydin & Kaynak 1998), in scikit-learn"

    test_size: Annotated[int, Field(ge=1, le=IMAGES - 1)] = 600
    """Number of test images; the rest of the 1797 images are for training."""
    patch: Count = 1
    """Side of the squares of pixels that are the tokens, as in ViT: their grey levels are values from -1 to 1."""
    pixel_permuted: bool = False
    """Permute the pixels, in the same way in every image and for every seed: their neighbourhood is lost (control)."""

    @property
    def data(self) -> DataSpec:
        """Grey levels on an 8 x 8 grid, or patches of them."""
        if self.patch > 1:
            return patched_data("values", (8, 8), 1, self.patch)
        return DataSpec(n=64, inputs="tokens", classes=10, vocabulary=17, grid=(8, 8))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences in each split."""
        return {"train": IMAGES - self.test_size, "test": self.test_size}

    def build(self, seed: int) -> Task:
        """Read the images."""
        inputs, labels = read()
        order = numpy_generator(0, "digits split").permutation(len(inputs))
        inputs, labels = inputs[order], labels[order]
        train, test = (
            Split(inputs[part], labels[part]) for part in np.split(np.arange(len(inputs)), [self.sizes["train"]])
        )
        if self.pixel_permuted:
            train, test = map(permuted, (train, test))
        if self.patch > 1:
            train, test = (patched(replace(split, levels=17), (8, 8), self.patch) for split in (train, test))
        return Task("digits", self.data, train, test)


def read() -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels [image, pixel] from 0 to 16, and labels [image]."""
    from sklearn.datasets import load_digits

    inputs, labels = map(np.asarray, load_digits(return_X_y=True))
    return inputs.astype(np.int64), labels
