"""`pathfinder`: whether two marked ends belong to one dashed curve: Pathfinder, Path-X or Path-X-256 by image side."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, Index, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import chunks
from attnprobe.tasks.chunks import Chunk, in_order, pour
from attnprobe.tasks.folder import Create, made_once
from attnprobe.tasks.pixels import permutation
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import ON_DISK, Source, check_size
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

LEVELS = 256
"""Number of grey levels."""
PADDING = 1
"""Smallest distance in pixels between a paddle and the border."""
SAMPLES = 2
"""Samples per pixel along each axis."""
DRAWS, PIXELS = 2048, 2**25
"""Largest number of images drawn at once, and of their pixels. Some images are discarded."""
ROUNDS = 1500
"""Attempts to place a paddle of the long curves before the image is discarded."""
TRIES = 16
"""Attempts per paddle before the long curves backtrack, and starting points of a short curve before it is omitted."""
BACK = 8
"""Largest number of paddles by which the long curves backtrack."""


@dataclass(frozen=True)
class Scale:
    """Parameters that depend on the side of the image; lengths are in pixels."""

    paddle: float
    """Length of a paddle."""
    thickness: float
    """Thickness of a paddle."""
    margins: tuple[float, ...]
    """Half the gap between paddles; each image uses one of these values."""
    marker: float
    """Radius of a marker."""
    apart: float
    """Distance between the first ends of the two long curves."""
    continuity: float
    """Straightness of the curves: successive paddles turn by at most 90 degrees divided by this."""
    contrast: float
    """Brightness of a paddle; a marker has brightness 1."""
    distractors: int
    """Number of short curves to place if there is room."""


SCALES = {
    16: Scale(2.0, 0.5, (1.0,), 1.0, 4.0, 1.0, 0.75, 1),
    32: Scale(2.0, 0.5, (1.0,), 1.5, 7.0, 1.0, 0.75, 5),
    128: Scale(5.0, 1.5, (2.0, 3.0), 3.0, 20.0, 1.8, 0.9, 8),
    256: Scale(5.0, 2.0, (3.0,), 5.0, 27.0, 1.8, 1.0, 7),
}
"""Published parameters of the Long Range Arena (``apart`` is their seed_distance); side 16 is ours."""


@settings
class Pathfinder(Source):
    """Two long dashed curves among short ones; the label is whether the two marked ends belong to one long curve.

    One marker is on the first end of a long curve, the other on the last end of the same curve (label 1) or of the
    other long curve (label 0). The positions of the curves do not depend on the label. Paddles of different curves are
    at least two margins apart; successive paddles of a curve are at most two margins apart. As in the reference, short
    curves that do not fit are omitted: at side 32, three of five are drawn on average. Unlike in the reference,
    directions and positions are real numbers, and short curves are as bright as long ones.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-pathfinder")
    origin: ClassVar[str] = "attnprobe, after Linsley et al. 2018 and the Long Range Arena (Tay et al. 2021)"

    side: Literal[16, 32, 128, 256] = 32
    """Pixels per side: 32 (Pathfinder), 128 (Path-X), 256 (Path-X-256), or 16, which fits contours of length 5."""
    contour_length: Annotated[int, Field(ge=3)] = 14
    """Number of paddles of a long curve; a short curve has a third as many."""
    distractors: Index | None = None
    """Largest number of short curves. None: 1, 5, 8 or 7 for side 16, 32, 128 or 256."""
    train_size: Count = 160000
    """Number of training images."""
    validation_size: Count = 20000
    """Number of validation images."""
    test_size: Count = 20000
    """Number of test images."""
    pixel_permuted: bool = False
    """Permute the pixels, in the same way in every image and for every seed: their neighbourhood is lost (control)."""

    def __post_init__(self) -> None:
        """Check that the curves may fit and that the images can be stored."""
        check_size("pathfinder", self.side**2, self.sizes, ON_DISK)
        scale = SCALES[self.side]
        area = (scale.paddle + 2 * min(scale.margins)) * 2 * min(scale.margins)  # of a paddle and its gaps
        longest = int(self.side**2 / area / 2)
        if self.contour_length > longest:
            raise UsageError(
                f"pathfinder: contour_length={self.contour_length}: must be at most {longest} at side={self.side}"
            )
        if self._distractors * (self.contour_length // 3) > 4 * longest:
            raise UsageError(
                f"pathfinder: distractors={self._distractors}: must be at most "
                f"{4 * longest // (self.contour_length // 3)} at side={self.side} and "
                f"contour_length={self.contour_length}"
            )

    @property
    def _distractors(self) -> int:
        return SCALES[self.side].distractors if self.distractors is None else self.distractors

    @property
    def data(self) -> DataSpec:
        """Grey levels on a grid."""
        grid = (self.side, self.side)
        return DataSpec(n=self.side**2, inputs="values", classes=2, grid=grid, levels=LEVELS)

    def build(self, seed: int) -> Task:
        """Read the images of the seed from the cache, or draw them."""
        arrays = made_once(self, lambda create: self._make(seed, create), helpers=[chunks], seed=seed)
        train, validation, test = (
            Split(arrays[f"{split}_inputs"], arrays[f"{split}_labels"], levels=LEVELS) for split in self.sizes
        )
        return Task("pathfinder", self.data, train, test, validation)

    def drawing(self, seed: int, number: int) -> "Drawing":
        """Draw the curves and markers of the images of a chunk."""
        count = min(DRAWS, PIXELS // self.side**2)
        rng = numpy_generator(seed, "pathfinder", number)
        return drawn(self.side, self.contour_length, self._distractors, count, rng)

    def _make(self, seed: int, create: Create) -> None:
        def chunk(number: int) -> Chunk:
            drawing = self.drawing(seed, number)
            if len(drawing.labels) == 0:
                raise UsageError(
                    f"pathfinder: two curves of contour_length={self.contour_length} fit no image of side={self.side}"
                )
            pixels = rendered(drawing).reshape(-1, self.side**2)
            return {"inputs": pixels[:, order], "labels": drawing.labels}

        order = permutation(self.side**2) if self.pixel_permuted else slice(None)

        columns = {"inputs": ((self.side**2,), np.uint8), "labels": ((), np.int64)}
        pour(create, self.sizes, columns, in_order(chunk, 1 if sum(self.sizes.values()) < DRAWS // 2 else None))


@dataclass
class Drawing:
    """Curves and markers of a batch of images.

    A position is a complex number, column + i row, in pixels from the upper left corner. The first two curves are the
    long ones. Missing paddles are NaN.
    """

    side: int
    curves: np.ndarray
    """[paddle]: index of its curve; the paddles of a curve are consecutive."""
    margins: np.ndarray
    """[image]: half the gap between paddles."""
    tails: np.ndarray
    """[image, paddle]: position of its tail."""
    directions: np.ndarray
    """[image, paddle]: direction, a complex number of modulus 1."""
    markers: np.ndarray
    """[image, 2]: positions of the marker centres."""
    labels: np.ndarray
    """[image]: whether the markers are on the ends of one curve."""

    @property
    def scale(self) -> Scale:
        """Parameters of this side."""
        return SCALES[self.side]

    @property
    def heads(self) -> np.ndarray:
        """[image, paddle]: position of its head."""
        return self.tails + self.scale.paddle * self.directions

    @property
    def ends(self) -> np.ndarray:
        """[image, curve, 2]: first and last end of the two long curves."""
        length = np.count_nonzero(self.curves == 0)
        return np.stack([self.tails[:, [0, length]], self.heads[:, [length - 1, 2 * length - 1]]], axis=2)

    def kept(self, images: np.ndarray) -> "Drawing":
        """Return a subset of the images."""
        arrays = self.margins, self.tails, self.directions, self.markers, self.labels
        return Drawing(self.side, self.curves, *(array[images] for array in arrays))

    def place(
        self, images: np.ndarray, paddles: np.ndarray, tails: np.ndarray, directions: np.ndarray, touched: np.ndarray
    ) -> np.ndarray:
        """Place one paddle per image if it is inside and keeps its distance from all paddles except ``touched``.

        If two segments of the same length cross, one end is within half that length of the other segment, which is
        below the gap. The distances of the ends are therefore sufficient.

        Returns:
            [image]: whether the paddle was placed.
        """
        length = self.scale.paddle
        ends = np.stack([tails, tails + length * directions])
        coordinates = np.stack([ends.real, ends.imag])
        free = np.all((coordinates > PADDING) & (coordinates < self.side - PADDING), axis=(0, 1))
        rows = np.flatnonzero(free)
        others = images[rows], slice(paddles.max(initial=0) + 1)
        other_tails, other_directions = self.tails[others], self.directions[others]
        gaps = 4 * self.margins[images[rows], None] ** 2
        blocked = np.zeros(other_tails.shape, dtype=bool)
        for end in ends[:, rows, None]:
            blocked |= _squared_distance(end, other_tails, other_directions, length) < gaps
        for end in (other_tails, other_tails + length * other_directions):
            blocked |= _squared_distance(end, tails[rows, None], directions[rows, None], length) < gaps
        blocked[np.arange(len(rows)), touched[rows]] = False
        free[rows] = ~blocked.any(axis=1)
        index = images[free], paddles[free]
        self.tails[index], self.directions[index] = tails[free], directions[free]
        return free

    def seed(self, images: np.ndarray, paddles: np.ndarray, tails: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Place the first paddle of a curve in a random direction; return whether it fitted, per image."""
        return self.place(images, paddles, tails, _direction(rng.random(len(images))), paddles)

    def extend(self, images: np.ndarray, paddles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Place a paddle after its predecessor, in a random direction; return whether it fitted, per image.

        The turn d has density 2c / pi cos(c d)^2, where c is the continuity: sin(c d) is one coordinate of a uniform
        point in the unit disc.
        """
        before, margins = self.directions[images, paddles - 1], self.margins[images]
        sines = np.sqrt(rng.random(len(images))) * np.cos(2 * np.pi * rng.random(len(images)))
        after = before * np.exp(1j * np.arcsin(sines) / self.scale.continuity)
        tails = self.tails[images, paddles - 1] + (self.scale.paddle + margins) * before + margins * after
        return self.place(images, paddles, tails, after, paddles - 1)


def drawn(side: int, length: int, distractors: int, count: int, rng: np.random.Generator) -> Drawing:
    """Draw ``count`` images and discard those with incomplete long curves or overlapping markers."""
    scale = SCALES[side]
    curves = np.repeat(np.arange(2 + distractors), [length] * 2 + [length // 3] * distractors)
    missing = np.full((count, len(curves)), np.nan, dtype=complex)
    margins, labels, marked = rng.choice(np.array(scale.margins), size=count), *rng.integers(2, size=(2, count))
    drawing = Drawing(side, curves, margins, missing, missing.copy(), np.zeros((count, 2), dtype=complex), labels)
    _grow(drawing, np.arange(2 * length).reshape(2, length).T.ravel(), rng)
    first, last = drawing.ends[:, :, 0], drawing.ends[:, :, 1]
    images = np.arange(count)
    drawing.markers[:] = np.stack([first[images, marked], last[images, np.where(labels, marked, 1 - marked)]], axis=1)
    apart = abs(first[:, :, None] - last[:, None]) > 2 * (scale.marker + PADDING)
    drawing = drawing.kept(np.flatnonzero(apart.all(axis=(1, 2))))  # NaN of incomplete curves compares False
    for curve in range(2, 2 + distractors):
        _distract(drawing, np.flatnonzero(curves == curve), rng)
    return drawing


def _grow(drawing: Drawing, order: np.ndarray, rng: np.random.Generator) -> None:
    """Place the paddles of the long curves in the given order; backtrack if a paddle does not fit."""
    placed, misses = np.zeros((2, len(drawing.margins)), dtype=np.int64)
    for _ in range(ROUNDS):
        images = np.flatnonzero(placed < len(order))
        if len(images) == 0:
            break
        paddles, begins = order[placed[images]], placed[images] < 2
        success = np.zeros(len(images), dtype=bool)
        success[begins] = _begin(drawing, images[begins], paddles[begins], rng)
        success[~begins] = drawing.extend(images[~begins], paddles[~begins], rng)
        placed[images[success]] += 1
        misses[images] = np.where(success, 0, misses[images] + 1)
        stuck = np.flatnonzero(misses == TRIES)
        misses[stuck] = 0
        placed[stuck] = np.maximum(placed[stuck] - rng.integers(1, BACK + 1, size=len(stuck)), 0)
        remaining = np.arange(len(order)) < placed[stuck, None]
        drawing.tails[stuck[:, None], order] = np.where(remaining, drawing.tails[stuck[:, None], order], np.nan)


def _begin(drawing: Drawing, images: np.ndarray, paddles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place the first paddle of a long curve: anywhere, or near the first curve's; return whether it fitted."""
    nearby = drawing.tails[images, 0] + drawing.scale.apart * _direction(rng.random(len(images)))
    return drawing.seed(images, paddles, np.where(paddles == 0, _anywhere(drawing, images, rng), nearby), rng)


def _distract(drawing: Drawing, paddles: np.ndarray, rng: np.random.Generator) -> None:
    """Place a short curve on the images that have room for it, trying several starting points."""
    pending = np.arange(len(drawing.margins))
    for _ in range(TRIES):
        paddle = np.full(len(pending), paddles[0])
        growing = pending[drawing.seed(pending, paddle, _anywhere(drawing, pending, rng), rng)]
        for follower in paddles[1:]:
            failed = growing
            for _ in range(TRIES // 2):
                failed = failed[~drawing.extend(failed, np.full(len(failed), follower), rng)]
            growing = np.setdiff1d(growing, failed)
        pending = np.setdiff1d(pending, growing)
        drawing.tails[pending[:, None], paddles] = np.nan


def rendered(drawing: Drawing) -> np.ndarray:
    """Return the grey levels [image, row, column] of the drawn images, on a black background."""
    images = np.arange(len(drawing.margins))
    return np.concatenate([_render_chunk(drawing.kept(images[i : i + 32])) for i in range(0, len(images), 32)])


def _render_chunk(drawing: Drawing) -> np.ndarray:
    scale = drawing.scale
    images, paddles = np.nonzero(~np.isnan(drawing.tails))
    edge = int(np.ceil(scale.paddle + scale.thickness + 2 * scale.marker)) + 2  # larger than any stroke
    canvas = np.zeros((len(drawing.margins), *[drawing.side + 2 * edge] * 2), dtype=np.float32)
    strokes = drawing.tails[images, paddles], drawing.directions[images, paddles]
    coverage = min(1.0, scale.thickness)  # largest share of a pixel that a paddle covers
    _stroke(canvas, edge, images, *strokes, scale.paddle, scale.thickness, scale.contrast / coverage)
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
    """Draw segments with round ends, each on its image; edges are as soft as the sample spacing."""
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
    index = images[:, None, None], rows[:, :, None], columns[:, None]
    np.maximum.at(canvas, index, (brightness * covered).astype(np.float32))


def _squared_distance(points: np.ndarray, tails: Any, directions: np.ndarray, length: float) -> np.ndarray:
    """Return the squared distances from points to segments."""
    local = (points - tails) * directions.conj()
    return (local.real - local.real.clip(0, length)) ** 2 + local.imag**2


def _direction(fraction: np.ndarray) -> np.ndarray:
    """Return the complex number of modulus 1 at a fraction of the full turn."""
    return np.exp(2j * np.pi * fraction)


def _anywhere(drawing: Drawing, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a uniform random position on each image."""
    return drawing.side * (rng.random(len(images)) + 1j * rng.random(len(images)))
