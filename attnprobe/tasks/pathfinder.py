"""`pathfinder`: are the two marked ends those of one dashed curve? Pathfinder, Path-X and Path-X-256, by their side."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, Index, settings
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import chunks
from attnprobe.tasks.chunks import Chunk, in_order, pour
from attnprobe.tasks.folder import Create, made_once
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

LEVELS = 256
"""Grey levels."""
PADDING = 1
"""Pixels between a paddle and the border."""
SAMPLES = 2
"""Samples of a pixel along each axis."""
DRAWS, PIXELS = 2048, 2**25
"""Images that are drawn at once, and their pixels, at most. Some are given up."""
ROUNDS = 1500
"""How often a paddle of the long curves is tried on an image before it is given up."""
TRIES = 16
"""How often one paddle is tried before the curve goes back, and where a short curve may begin before it is left out."""
BACK = 8
"""Most paddles that the long curves go back where one finds no room."""


@dataclass(frozen=True)
class Scale:
    """What depends on the side of the image: lengths in pixels, and what goes with them."""

    paddle: float
    """Length of a paddle."""
    thickness: float
    """Thickness of a paddle."""
    margins: tuple[float, ...]
    """Half the gap between paddles; each image takes one of them."""
    marker: float
    """Radius of a marker."""
    apart: float
    """Distance between the first ends of the two long curves."""
    continuity: float
    """How straight curves are: a paddle turns by at most 90 degrees over this."""
    contrast: float
    """Brightness of a paddle; that of a marker is 1."""
    distractors: int
    """Short curves, where there is room."""


SCALES = {
    16: Scale(2.0, 0.5, (1.0,), 1.0, 4.0, 1.0, 0.75, 1),
    32: Scale(2.0, 0.5, (1.0,), 1.5, 7.0, 1.0, 0.75, 5),
    128: Scale(5.0, 1.5, (2.0, 3.0), 3.0, 20.0, 1.8, 0.9, 8),
    256: Scale(5.0, 2.0, (3.0,), 5.0, 27.0, 1.8, 1.0, 7),
}
"""The Long Range Arena's, as its builders state them (``apart`` is their seed_distance); side 16 is ours."""


@settings
class Pathfinder(Source):
    """Two long dashed curves among short ones; the label is whether the two marked ends are those of one long curve.

    The first end of one long curve has a marker, and the last end of the same curve (label 1) or of the other (label
    0); where the curves are does not depend on the label. Paddles of different curves are at least two margins apart,
    successive ones of a curve at most. As in the reference, short curves that find no room are left out: at side 32
    three of five are there on average. Other than there, directions and places are real numbers and short curves are as
    bright as long ones.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-pathfinder")
    origin: ClassVar[str] = "attnprobe, after Linsley et al. 2018 and the Long Range Arena (Tay et al. 2021)"

    side: Literal[16, 32, 128, 256] = 32
    """Pixels along each side: 32 (Pathfinder), 128 (Path-X), 256 (Path-X-256); or 16, with room for curves of 5."""
    contour_length: Annotated[int, Field(ge=3)] = 14
    """Paddles of a long curve; a short one has a third of them."""
    distractors: Index | None = None
    """Short curves at most; None: 5, 8 or 7, by the side."""
    train_size: Count = 160000
    """Training images."""
    validation_size: Count = 20000
    """Validation images."""
    test_size: Count = 20000
    """Test images."""

    @property
    def data(self) -> DataSpec:
        """Grey levels on a grid."""
        grid = (self.side, self.side)
        return DataSpec(n=self.side**2, inputs="values", classes=2, grid=grid, levels=LEVELS)

    def build(self, seed: int) -> Task:
        """Read the images that belong to the seed, or draw them."""
        arrays = made_once(self, lambda create: self._make(seed, create), helpers=[chunks], seed=seed)
        train, validation, test = (
            Split(arrays[f"{split}_inputs"], arrays[f"{split}_labels"], levels=LEVELS) for split in self.sizes
        )
        return Task("pathfinder", self.data, train, test, validation)

    def drawing(self, seed: int, number: int) -> "Drawing":
        """Return what is on the images of a chunk."""
        count = min(DRAWS, PIXELS // self.side**2)
        distractors = SCALES[self.side].distractors if self.distractors is None else self.distractors
        return drawn(self.side, self.contour_length, distractors, count, numpy_generator(seed, "pathfinder", number))

    def _make(self, seed: int, create: Create) -> None:
        def chunk(number: int) -> Chunk:
            drawing = self.drawing(seed, number)
            return {"inputs": rendered(drawing).reshape(-1, self.side**2), "labels": drawing.labels}

        columns = {"inputs": ((self.side**2,), np.uint8), "labels": ((), np.int64)}
        pour(create, self.sizes, columns, in_order(chunk, 1 if sum(self.sizes.values()) < DRAWS // 2 else None))


@dataclass
class Drawing:
    """What is on some images. A place is a complex number, column + i row, in pixels from the upper left corner.

    The first two curves are the long ones. Paddles that are not there are NaN.
    """

    side: int
    curves: np.ndarray
    """[paddle]: the curve that it belongs to; a curve's paddles follow each other."""
    margins: np.ndarray
    """[image]: half the gap between paddles."""
    tails: np.ndarray
    """[image, paddle]: where it begins."""
    directions: np.ndarray
    """[image, paddle]: where it points, a unit number."""
    markers: np.ndarray
    """[image, 2]: centres of the markers."""
    labels: np.ndarray
    """[image]: whether they are on the ends of one curve."""

    @property
    def scale(self) -> Scale:
        """Lengths in pixels."""
        return SCALES[self.side]

    @property
    def heads(self) -> np.ndarray:
        """[image, paddle]: where it ends."""
        return self.tails + self.scale.paddle * self.directions

    @property
    def ends(self) -> np.ndarray:
        """[image, curve, 2]: the first and the last end of the two long curves."""
        length = np.count_nonzero(self.curves == 0)
        return np.stack([self.tails[:, [0, length]], self.heads[:, [length - 1, 2 * length - 1]]], axis=2)

    def kept(self, images: np.ndarray) -> "Drawing":
        """Return some of the images."""
        arrays = self.margins, self.tails, self.directions, self.markers, self.labels
        return Drawing(self.side, self.curves, *(array[images] for array in arrays))

    def place(
        self, images: np.ndarray, paddles: np.ndarray, tails: np.ndarray, directions: np.ndarray, touched: np.ndarray
    ) -> np.ndarray:
        """Place one paddle an image where it is inside and away from all but ``touched``; return where that was so.

        Two segments of one length that cross have an end within half that length of the other, which is less than the
        gap; so the distances of the ends decide.
        """
        length = self.scale.paddle
        ends = np.stack([tails, tails + length * directions])
        places = np.stack([ends.real, ends.imag])
        free = np.all((places > PADDING) & (places < self.side - PADDING), axis=(0, 1))
        rows = np.flatnonzero(free)
        others = images[rows], slice(paddles.max(initial=0) + 1)
        its_tails, its_directions = self.tails[others], self.directions[others]
        gaps = 4 * self.margins[images[rows], None] ** 2
        taken = np.zeros(its_tails.shape, dtype=bool)
        for end in ends[:, rows, None]:
            taken |= _squared_distance(end, its_tails, its_directions, length) < gaps
        for end in (its_tails, its_tails + length * its_directions):
            taken |= _squared_distance(end, tails[rows, None], directions[rows, None], length) < gaps
        taken[np.arange(len(rows)), touched[rows]] = False
        free[rows] = ~taken.any(axis=1)
        where = images[free], paddles[free]
        self.tails[where], self.directions[where] = tails[free], directions[free]
        return free

    def seed(self, images: np.ndarray, paddles: np.ndarray, tails: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Place the first paddle of a curve, in any direction, where there is room; return where there was."""
        return self.place(images, paddles, tails, _turned(rng.random(len(images))), paddles)

    def extend(self, images: np.ndarray, paddles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Place a paddle after the one before it, in a random direction, where there is room; return where there was.

        The turn d has density 2c / pi cos(c d)^2, where c is the continuity: sin(c d) is a coordinate of a uniform
        point of the unit disc.
        """
        before, margins = self.directions[images, paddles - 1], self.margins[images]
        sines = np.sqrt(rng.random(len(images))) * np.cos(2 * np.pi * rng.random(len(images)))
        after = before * np.exp(1j * np.arcsin(sines) / self.scale.continuity)
        tails = self.tails[images, paddles - 1] + (self.scale.paddle + margins) * before + margins * after
        return self.place(images, paddles, tails, after, paddles - 1)


def drawn(side: int, length: int, distractors: int, count: int, rng: np.random.Generator) -> Drawing:
    """Return those of ``count`` images whose long curves found room, in time and with markers apart from each other."""
    scale = SCALES[side]
    curves = np.repeat(np.arange(2 + distractors), [length] * 2 + [length // 3] * distractors)
    nowhere = np.full((count, len(curves)), np.nan, dtype=complex)
    margins, labels, marked = rng.choice(np.array(scale.margins), size=count), *rng.integers(2, size=(2, count))
    drawing = Drawing(side, curves, margins, nowhere, nowhere.copy(), np.zeros((count, 2), dtype=complex), labels)
    _grow(drawing, np.arange(2 * length).reshape(2, length).T.ravel(), rng)
    first, last = drawing.ends[:, :, 0], drawing.ends[:, :, 1]
    every = np.arange(count)
    drawing.markers[:] = np.stack([first[every, marked], last[every, np.where(labels, marked, 1 - marked)]], axis=1)
    apart = abs(first[:, :, None] - last[:, None]) > 2 * (scale.marker + PADDING)
    drawing = drawing.kept(np.flatnonzero(apart.all(axis=(1, 2))))  # NaN, where the curves are not there, is not apart
    for curve in range(2, 2 + distractors):
        _distract(drawing, np.flatnonzero(curves == curve), rng)
    return drawing


def _grow(drawing: Drawing, order: np.ndarray, rng: np.random.Generator) -> None:
    """Place the long curves' paddles in this order; where one finds no room, go back some paddles."""
    placed, misses = np.zeros((2, len(drawing.margins)), dtype=np.int64)
    for _ in range(ROUNDS):
        images = np.flatnonzero(placed < len(order))
        if len(images) == 0:
            break
        paddles, begins = order[placed[images]], placed[images] < 2
        done = np.zeros(len(images), dtype=bool)
        done[begins] = _begin(drawing, images[begins], paddles[begins], rng)
        done[~begins] = drawing.extend(images[~begins], paddles[~begins], rng)
        placed[images[done]] += 1
        misses[images] = np.where(done, 0, misses[images] + 1)
        stuck = np.flatnonzero(misses == TRIES)
        misses[stuck] = 0
        placed[stuck] = np.maximum(placed[stuck] - rng.integers(1, BACK + 1, size=len(stuck)), 0)
        there = np.arange(len(order)) < placed[stuck, None]
        drawing.tails[stuck[:, None], order] = np.where(there, drawing.tails[stuck[:, None], order], np.nan)


def _begin(drawing: Drawing, images: np.ndarray, paddles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place the first paddle of a long curve: anywhere, or beside that of the first one; return where it found room."""
    beside = drawing.tails[images, 0] + drawing.scale.apart * _turned(rng.random(len(images)))
    return drawing.seed(images, paddles, np.where(paddles == 0, _anywhere(drawing, images, rng), beside), rng)


def _distract(drawing: Drawing, paddles: np.ndarray, rng: np.random.Generator) -> None:
    """Place a short curve on the images that have room for it at one of some places."""
    pending = np.arange(len(drawing.margins))
    for _ in range(TRIES):
        paddle = np.full(len(pending), paddles[0])
        growing = pending[drawing.seed(pending, paddle, _anywhere(drawing, pending, rng), rng)]
        for follower in paddles[1:]:
            left = growing
            for _ in range(TRIES // 2):
                left = left[~drawing.extend(left, np.full(len(left), follower), rng)]
            growing = np.setdiff1d(growing, left)
        pending = np.setdiff1d(pending, growing)
        drawing.tails[pending[:, None], paddles] = np.nan


def rendered(drawing: Drawing) -> np.ndarray:
    """Return [image, row, column]: grey levels, black where nothing is."""
    images = np.arange(len(drawing.margins))
    return np.concatenate([_rendered(drawing.kept(images[at : at + 32])) for at in range(0, len(images), 32)])


def _rendered(drawing: Drawing) -> np.ndarray:
    scale = drawing.scale
    images, paddles = np.nonzero(~np.isnan(drawing.tails))
    edge = int(np.ceil(scale.paddle + scale.thickness + 2 * scale.marker)) + 2  # no stroke is larger
    canvas = np.zeros((len(drawing.margins), *[drawing.side + 2 * edge] * 2), dtype=np.float32)
    strokes = drawing.tails[images, paddles], drawing.directions[images, paddles]
    most = min(1.0, scale.thickness)  # of a pixel, that a paddle covers
    _stroke(canvas, edge, images, *strokes, scale.paddle, scale.thickness, scale.contrast / most)
    images = np.repeat(np.arange(len(canvas)), 2)
    _stroke(canvas, edge, images, drawing.markers.ravel(), np.ones(len(images)), 0.0, 2 * scale.marker, 1.0)
    return np.rint((LEVELS - 1) * canvas[:, edge:-edge, edge:-edge].clip(0, 1)).astype(np.uint8)


def _stroke(
    canvas: np.ndarray,
    edge: int,
    images: np.ndarray,
    tails: np.ndarray,
    directions: np.ndarray,
    length: float,
    thickness: float,
    brightness: float,
) -> None:
    """Draw segments with round ends, each on its image, with borders as soft as the distance of two samples."""
    reach = (length + thickness) / 2 + 1
    middles = tails + directions * length / 2
    corners = np.floor(middles.real - reach) + 1j * np.floor(middles.imag - reach)
    size = int(np.ceil(2 * reach)) + 1
    grid = (np.arange(size * SAMPLES) + 0.5) / SAMPLES
    local = (grid + 1j * grid[:, None]) + (corners - tails)[:, None, None]
    distances = np.sqrt(_squared_distance(local, 0, directions[:, None, None], length))
    ink = (0.5 + SAMPLES * (thickness / 2 - distances)).clip(0, 1)
    covered = ink.reshape(-1, size, SAMPLES, size, SAMPLES).mean(axis=(2, 4))
    rows, columns = ((part.astype(int) + edge)[:, None] + np.arange(size) for part in (corners.imag, corners.real))
    where = images[:, None, None], rows[:, :, None], columns[:, None]
    np.maximum.at(canvas, where, (brightness * covered).astype(np.float32))


def _squared_distance(points: np.ndarray, tails: Any, directions: np.ndarray, length: float) -> np.ndarray:
    """Return the squared distances of points from segments."""
    local = (points - tails) * directions.conj()
    return (local.real - local.real.clip(0, length)) ** 2 + local.imag**2


def _turned(share: np.ndarray) -> np.ndarray:
    """Return the unit number at a share of the circle."""
    return np.exp(2j * np.pi * share)


def _anywhere(drawing: Drawing, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a uniform place on each image."""
    return drawing.side * (rng.random(len(images)) + 1j * rng.random(len(images)))
