r"""Confidence intervals over a few paired seeds, for a mean and for a ratio of two means.

Two arms with the same seed share task instance, initial weights and batches, so differences are computed per seed and
the interval is over these differences. With about five seeds, nothing finer than a t-interval is justified.
"""

import math

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    r"""Return the mean over seeds and the ends of its t-interval, $\bar x \pm t\, s / \sqrt{n}$.

    The ends are NaN with fewer than two seeds. The interval has length 0 if all values are equal.

    >>> mean_interval([0.25, 0.5, 0.75])[0]
    0.5
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def ratio_interval(over: ArrayLike, under: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    r"""Return the ratio of two paired means and the ends of its Fieller interval (Fieller 1954).

    The interval contains every $\rho$ for which $\overline{a - \rho b}$ is within $t$ standard errors of 0, assuming
    jointly normal pairs $(a, b)$. Its ends are the roots of $(\bar a - \rho \bar b)^2 = t^2 (s_{aa} - 2 \rho s_{ab} +
    \rho^2 s_{bb}) / n$. If the mean of ``under`` is not significantly different from 0, no bounded interval exists and
    the ends are infinite. They are NaN with fewer than two seeds.

    >>> ratio_interval([1.0, 1.0], [2.0, 2.0])
    (0.5, 0.5, 0.5)
    """
    a, b = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    ratio = float(a.mean() / b.mean()) if b.mean() else math.nan
    if len(a) < 2:
        return ratio, math.nan, math.nan
    (aa, ab), (_, bb) = np.cov(a, b) / len(a) * scipy.stats.t.ppf((1 + level) / 2, len(a) - 1) ** 2
    square, half, constant = b.mean() ** 2 - bb, a.mean() * b.mean() - ab, a.mean() ** 2 - aa
    if square <= 0:
        return ratio, -math.inf, math.inf
    root = math.sqrt(max(half**2 - square * constant, 0.0))
    return ratio, float((half - root) / square), float((half + root) / square)
