r"""The range of a profile: $t(d) \approx a\, e^{-d/\lambda} + c$ with $a > 0$."""

from dataclasses import dataclass

import numpy as np

SHORTEST = 0.25
"""Below this length (tokens) the profile falls to 2 % between distances 1 and 2: all of it is at distance 1."""
WORST_FIT = 0.5
"""Least R² at which a length is reported."""


@dataclass(frozen=True)
class Decay:
    """Fits of many profiles; arrays have the leading axes of the profiles."""

    length: np.ndarray
    """The decay length in tokens, or NaN where nothing decays."""
    r2: np.ndarray
    """Weighted R² of the best fit with a > 0, or 0 where there is none."""
    reason: np.ndarray
    """Why there is no length; empty where there is one."""


def fit_decay(profile: np.ndarray, distance: np.ndarray, weight: np.ndarray) -> Decay:
    r"""Fit the exponential to profiles [..., distance] by weighted least squares.

    For each length on a grid the best a and c are those of a simple regression on $e^{-d/\lambda}$, so every length is
    tried and no starting value can mislead; the maximum of R² is then placed between grid points by a parabola in
    $\log \lambda$. Lengths run from 0.25 to four times the longest distance.
    """
    if len(distance) < 2:
        nothing = np.full(profile.shape[:-1], np.nan)
        return Decay(nothing, np.zeros_like(nothing), np.full(nothing.shape, "fewer than two distances"))
    weight = weight / weight.sum()
    grid = np.geomspace(SHORTEST, 4 * distance.max(), 400)
    shape = np.exp(-distance / grid[:, None])
    shape = shape - (shape @ weight)[:, None]
    spread = np.square(shape) @ weight
    centred = profile - (profile @ weight)[..., None]
    slope = (centred * weight) @ shape.T
    variance = np.square(centred) @ weight
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.nan_to_num(np.where(slope > 0, slope**2 / spread / variance[..., None], 0.0))
    best = r2.argmax(-1)
    top = np.take_along_axis(r2, best[..., None], -1)[..., 0]

    inner = best.clip(1, len(grid) - 2)
    left, middle, right = (np.take_along_axis(r2, (inner + side)[..., None], -1)[..., 0] for side in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0).clip(-1, 1)
    length = np.exp(np.log(grid[inner]) + shift * np.log(grid[1] / grid[0]))

    reason = np.select(
        [
            variance <= (1e-12 * np.abs(profile).max(-1)) ** 2,
            top == 0,
            top < WORST_FIT,
            best == 0,
            best == len(grid) - 1,
        ],
        [
            "the profile is constant",
            "far keys score as high as near ones",
            "no exponential fits (R² below 0.5)",
            "ends within one token",
            "longer than the sequence can show",
        ],
        default="",
    )
    return Decay(np.where(reason == "", length, np.nan), np.asarray(top), np.asarray(reason))
