r"""Exponential decay fits of profiles: $t(d) \approx a\, e^{-d/\lambda} + c$ with $a > 0$."""

from dataclasses import dataclass

import numpy as np

SHORTEST = 0.25
"""Shortest length in tokens: the exponential falls to 2 % between distances 1 and 2."""
WORST_FIT = 0.5
"""Smallest R² for which a length is reported."""


@dataclass(frozen=True)
class Decay:
    """Decay fits; arrays have the leading axes of the profiles."""

    length: np.ndarray
    """Decay length in tokens; NaN if no decay is found."""
    r2: np.ndarray
    """Weighted R² of the best fit with a > 0; 0 if there is no such fit."""
    reason: np.ndarray
    """Reason for a missing length; empty if there is a length."""


def fit_decay(profile: np.ndarray, distance: np.ndarray, weight: np.ndarray) -> Decay:
    r"""Fit the exponential to profiles [..., distance] by weighted least squares.

    For each length on a grid, a and c follow from a simple regression on $e^{-d/\lambda}$, so no starting value is
    needed. A parabola in $\log \lambda$ then refines the maximum of R² between grid points. Lengths range
    from 0.25 to four times the largest distance.
    """
    if len(distance) < 2:
        missing = np.full(profile.shape[:-1], np.nan)
        return Decay(missing, np.zeros_like(missing), np.full(missing.shape, "fewer than two distances"))
    weight = weight / weight.sum()
    grid = np.geomspace(SHORTEST, 4 * distance.max(), 400)
    curves = np.exp(-distance / grid[:, None])
    curves = curves - (curves @ weight)[:, None]
    curve_variance = np.square(curves) @ weight
    centred = profile - (profile @ weight)[..., None]
    slope = (centred * weight) @ curves.T
    variance = np.square(centred) @ weight
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.nan_to_num(np.where(slope > 0, slope**2 / curve_variance / variance[..., None], 0.0))
    best = r2.argmax(-1)
    best_r2 = np.take_along_axis(r2, best[..., None], -1)[..., 0]

    centre = best.clip(1, len(grid) - 2)
    left, middle, right = (np.take_along_axis(r2, (centre + side)[..., None], -1)[..., 0] for side in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature < 0, 0.5 * (left - right) / np.where(curvature < 0, curvature, 1), 0).clip(-1, 1)
    length = np.exp(np.log(grid[centre]) + shift * np.log(grid[1] / grid[0]))

    reason = np.select(
        [
            variance <= (1e-12 * np.abs(profile).max(-1)) ** 2,
            best_r2 == 0,
            best_r2 < WORST_FIT,
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
    return Decay(np.where(reason == "", length, np.nan), np.asarray(best_r2), np.asarray(reason))
