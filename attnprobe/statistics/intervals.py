"""Bootstrap over sequences."""

import numpy as np


def resampling(size: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return [resample, sequence] weights that sum to 1: how often each sequence is drawn, with replacement."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [resample, ...]: means of [sequence, ...] values under each row of weights.

    A NaN (a sequence too short for an offset) takes no part; where nothing is left the mean is NaN.
    """
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat)
    total = weights @ np.where(known, flat, 0.0)
    share = np.ones_like(total) if known.all() else weights @ known
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / share).reshape(len(weights), *values.shape[1:])


def bootstrap_interval(values: np.ndarray, weights: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Return [..., 2]: the percentile interval of the mean over sequences of [sequence, ...] values.

    All values share the resamples of `resampling`, a block of columns at a time, so that memory stays small.
    """
    flat = values.reshape(len(values), -1)
    ends = np.empty((flat.shape[1], 2))
    tails = [(1 - level) / 2, (1 + level) / 2]
    for start in range(0, flat.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        means = weighted_means(flat[:, block], weights)
        ends[block] = np.quantile(means, tails, axis=0).T
    return ends.reshape(*values.shape[1:], 2)


BLOCK = 8192
