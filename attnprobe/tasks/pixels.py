"""Helpers of images: pixels from 0 to 255 as values or tokens, patches, and downsampling."""

from dataclasses import replace
from typing import Literal

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.split import Split

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


def patched_data(inputs: str, grid: tuple[int, int], colours: int, patch: int) -> DataSpec:
    """Return the specification of images of ten classes whose tokens are patches; raise `UsageError` if it is wrong."""
    rows, columns = grid
    if rows % patch or columns % patch:
        raise UsageError(f"patch={patch}: must divide {rows} and {columns}, the pixels of a side")
    if inputs != "values":
        raise UsageError(f"patch={patch}: needs inputs='values', not {inputs!r}")
    grid = rows // patch, columns // patch
    channels = patch * patch * colours
    return DataSpec(n=grid[0] * grid[1], inputs="values", classes=10, grid=grid, channels=channels, patch=patch)


def patched(split: Split, grid: tuple[int, int], patch: int) -> Split:
    """Return a split of images [image, pixel and colour] with patches as tokens, [image, token, channel]."""
    images = np.asarray(split.inputs).reshape(len(split), *grid, -1)
    return replace(split, inputs=patches(images, patch))


def permutation(count: int) -> np.ndarray:
    """Return the fixed permutation of pixels, the same for every image, split and seed."""
    return numpy_generator(0, "pixel permutation").permutation(count)


def permuted(split: Split, colours: int = 1) -> Split:
    """Return a split of images [image, token] with permuted pixels; the colours of a pixel stay together."""
    inputs = np.asarray(split.inputs)
    pixels = inputs.reshape(len(inputs), -1, colours)
    moved = pixels[:, permutation(pixels.shape[1])]
    return replace(split, inputs=moved.reshape(inputs.shape))


def on_canvas(images: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """Return images [image, row, column], each at a random place of a canvas of zeros with ``side`` pixels per side."""
    count, rows, columns = images.shape
    canvas = np.zeros((count, side, side), images.dtype)
    top = generator.integers(side - rows + 1, size=count)[:, None, None] + np.arange(rows)[:, None]
    left = generator.integers(side - columns + 1, size=count)[:, None, None] + np.arange(columns)
    canvas[np.arange(count)[:, None, None], top, left] = images
    return canvas


def halved(images: np.ndarray) -> np.ndarray:
    """Return images [image, row, column] at half the size: rounded means of 2 x 2 pixels (halves round up).

    >>> halved(np.array([[[0, 1], [2, 3]]]))
    array([[[2]]])
    """
    count, rows, columns = images.shape
    blocks = images.astype(np.uint16).reshape(count, rows // 2, 2, columns // 2, 2)
    return ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(images.dtype)


def patches(images: np.ndarray, patch: int) -> np.ndarray:
    """Return images [image, row, column, ...] as patches [image, token, channel] in row-major order.

    A patch has patch x patch pixels, and its channels are its pixels in row-major order, each with all its colours. A
    single channel has no axis: [image, token].

    >>> patches(np.arange(8).reshape(1, 2, 4), 2)
    array([[[0, 1, 4, 5],
            [2, 3, 6, 7]]])
    """
    count, rows, columns, *colours = images.shape
    tiles = images.reshape(count, rows // patch, patch, columns // patch, patch, *colours).swapaxes(2, 3)
    tokens = tiles.reshape(count, (rows // patch) * (columns // patch), -1)
    return tokens[..., 0] if tokens.shape[2] == 1 else tokens
