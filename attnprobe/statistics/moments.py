"""Mean and spread over the sequences of a data set, in memory that does not grow with it."""

import numpy as np
from scipy.special import stdtrit


class Moments:
    """Count, mean and variance of each number over samples that come a few at a time (Chan et al. 1979).

    A sample that is NaN somewhere takes no part there: a sequence too short for an offset.

    >>> moments = Moments()
    >>> for batch in ([[1.0, 2.0]], [[3.0, 6.0], [5.0, np.nan]]):
    ...     moments.add(np.array(batch))
    >>> moments.count.tolist(), moments.mean.tolist(), moments.variance.tolist()
    ([3, 2], [3.0, 4.0], [4.0, 8.0])
    """

    def __init__(self) -> None:
        """Start with no sample."""
        self._count = np.zeros((), dtype=int)
        self._mean = self._square = np.zeros(())

    def add(self, values: np.ndarray) -> None:
        """Take in samples, [sample, ...]."""
        known = ~np.isnan(values)
        count = known.sum(0)
        total = self._count + count
        below = np.maximum(count, 1)
        mean = np.where(known, values, 0.0).sum(0) / below
        square = np.square(np.where(known, values - mean, 0.0)).sum(0)
        share = count / np.maximum(total, 1)
        gap = mean - self._mean
        self._square = self._square + square + np.square(gap) * self._count * share
        self._mean = self._mean + gap * share
        self._count = total

    @property
    def count(self) -> np.ndarray:
        """Number of samples."""
        return np.asarray(self._count)

    @property
    def mean(self) -> np.ndarray:
        """Their mean; NaN without any."""
        return np.where(self._count > 0, self._mean, np.nan)

    def mean_without(self, part: "Moments") -> np.ndarray:
        """Return the mean of the samples that are not in a part, whose samples all are here; NaN without any."""
        left = self._count - part._count
        total = self._count * self._mean - part._count * part._mean
        return np.where(left > 0, total / np.maximum(left, 1), np.nan)

    @property
    def variance(self) -> np.ndarray:
        """Their variance, divided by count - 1; NaN below two."""
        return np.where(self._count > 1, self._square / np.maximum(self._count - 1, 1), np.nan)

    @property
    def std(self) -> np.ndarray:
        """Their standard deviation; mean / std is the signal-to-noise ratio of a sample."""
        return np.asarray(np.sqrt(self.variance))

    def interval(self, level: float = 0.95) -> np.ndarray:
        """Return [..., 2]: Student's interval of the mean; NaN below two samples."""
        freedom = np.maximum(self._count - 1, 1)
        half = stdtrit(freedom, (1 + level) / 2) * self.std / np.sqrt(np.maximum(self._count, 1))
        return np.stack([self.mean - half, self.mean + half], axis=-1)


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    r"""Return the standard error of an estimate from [group, ...]: its values with each of G groups left out.

    $$\mathrm{se}^2 = \frac{G - 1}{G} \sum_g (\hat\theta_{(g)} - \bar\theta)^2$$

    (Efron & Stein 1981); NaN where one of them is NaN.
    """
    groups = len(left_out)
    return np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean(0)).sum(0))
