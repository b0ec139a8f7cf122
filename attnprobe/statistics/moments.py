"""Streaming mean and variance over the sequences of a data set, in constant memory."""

import numpy as np
from scipy.special import stdtrit


class Moments:
    """Elementwise count, mean and variance of samples that arrive in chunks (Chan et al. 1979).

    NaN elements are ignored, such as the offsets that a short sequence does not have.

    >>> moments = Moments()
    >>> for batch in ([[1.0, 2.0]], [[3.0, 6.0], [5.0, np.nan]]):
    ...     moments.add(np.array(batch))
    >>> moments.count.tolist(), moments.mean.tolist(), moments.variance.tolist()
    ([3, 2], [3.0, 4.0], [4.0, 8.0])
    """

    def __init__(self) -> None:
        """Initialise without samples."""
        self._count = np.zeros((), dtype=int)
        self._mean = self._square = np.zeros(())

    def add(self, values: np.ndarray) -> None:
        """Add samples, [sample, ...]."""
        known = ~np.isnan(values)
        count = known.sum(0)
        total = self._count + count
        divisor = np.maximum(count, 1)
        mean = np.where(known, values, 0.0).sum(0) / divisor
        square = np.square(np.where(known, values - mean, 0.0)).sum(0)
        share = count / np.maximum(total, 1)
        difference = mean - self._mean
        self._square = self._square + square + np.square(difference) * self._count * share
        self._mean = self._mean + difference * share
        self._count = total

    @property
    def count(self) -> np.ndarray:
        """Number of samples."""
        return np.asarray(self._count)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the samples; NaN without samples."""
        return np.where(self._count > 0, self._mean, np.nan)

    def mean_without(self, part: "Moments") -> np.ndarray:
        """Return the mean of the samples that are not in ``part``, a subset of these; NaN without such samples."""
        remaining = self._count - part._count
        total = self._count * self._mean - part._count * part._mean
        return np.where(remaining > 0, total / np.maximum(remaining, 1), np.nan)

    @property
    def variance(self) -> np.ndarray:
        """Sample variance (divisor count - 1); NaN below two samples."""
        return np.where(self._count > 1, self._square / np.maximum(self._count - 1, 1), np.nan)

    @property
    def std(self) -> np.ndarray:
        """Sample standard deviation; mean / std is the signal-to-noise ratio of a sample."""
        return np.asarray(np.sqrt(self.variance))

    def interval(self, level: float = 0.95) -> np.ndarray:
        """Return the t-interval of the mean, [..., 2]; NaN below two samples."""
        degrees_of_freedom = np.maximum(self._count - 1, 1)
        half = stdtrit(degrees_of_freedom, (1 + level) / 2) * self.std / np.sqrt(np.maximum(self._count, 1))
        return np.stack([self.mean - half, self.mean + half], axis=-1)


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    r"""Return the jackknife standard error of an estimate from its G leave-one-group-out values, [group, ...].

    $$\mathrm{se}^2 = \frac{G - 1}{G} \sum_g (\hat\theta_{(g)} - \bar\theta)^2$$

    (Efron & Stein 1981); NaN if any of the values is NaN.
    """
    groups = len(left_out)
    return np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean(0)).sum(0))
