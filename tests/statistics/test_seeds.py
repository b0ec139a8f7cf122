"""Intervals over seeds: against scipy, and their coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from attnprobe.statistics.seeds import mean_interval, ratio_interval


def test_the_interval_of_a_mean_matches_scipy():
    values = np.random.default_rng(0).standard_normal(7)
    found = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((values.mean(), found.low, found.high))


def test_one_seed_has_no_interval():
    for mean, low, high in (mean_interval([0.5]), ratio_interval([1.0], [2.0])):
        assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_at_the_ends_of_the_ratio_interval_the_t_test_has_p_005():
    rng = np.random.default_rng(1)
    b = 1 + 0.2 * rng.standard_normal(6)
    a = 0.5 * b + 0.1 * rng.standard_normal(6)
    ratio, *ends = ratio_interval(a, b)
    assert ends[0] < ratio == a.mean() / b.mean() < ends[1]
    for end in ends:
        assert scipy.stats.ttest_1samp(a - end * b, 0.0).pvalue == pytest.approx(0.05)


def test_the_interval_of_a_ratio_has_its_nominal_coverage():
    rng = np.random.default_rng(2)
    b = 1 + 0.3 * rng.standard_normal((4000, 5))
    a = 0.4 + 0.5 * (b - 1) + 0.3 * rng.standard_normal((4000, 5))
    ends = np.array([ratio_interval(*pair)[1:] for pair in zip(a, b, strict=True)])
    bounded = np.isfinite(ends[:, 0])
    covered = (ends[:, 0] <= 0.4) & (0.4 <= ends[:, 1])
    assert bounded.mean() > 0.99
    assert covered.mean() == pytest.approx(0.95, abs=0.015)


def test_a_ratio_with_an_insignificant_denominator_is_unbounded():
    ratio, low, high = ratio_interval([0.1, 0.2, 0.1], [0.1, -0.1, 0.05])
    assert math.isfinite(ratio) and low == -math.inf and high == math.inf
