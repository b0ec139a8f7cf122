"""Helpers of the image tasks: pixels from 0 to 255 as values or tokens, and downsampling."""

from typing import Literal

import numpy as np

from attnprobe.config import DataSpec

Inputs = Literal["values", "tokens"]


def pixel_data(inputs: Inputs, grid: tuple[int, int] | None, n: int, classes: int, levels: int = 256) -> DataSpec:
    """Return the specification of images with ``levels`` grey levels.

    Masked pixels are predicted with absolute error if they are values (from -1 to 1), as in Amos et al., and with
    cross-entropy over the levels if they are tokens.
    """
    return DataSpec(n=n, inputs=inputs, classes=classes, vocabulary=levels if inputs == "tokens" else 0, grid=grid)


def split_levels(inputs: Inputs, levels: int = 256) -> int:
    """Return the ``levels`` of a `Split` of pixels."""
    return levels if inputs == "values" else 0


def halved(images: np.ndarray) -> np.ndarray:
    """Return images [image, row, column] at half the size: rounded means of 2 x 2 pixels (halves round up).

    >>> halved(np.array([[[0, 1], [2, 3]]]))
    array([[[2]]])
    """
    count, rows, columns = images.shape
    blocks = images.astype(np.uint16).reshape(count, rows // 2, 2, columns // 2, 2)
    return ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(images.dtype)
