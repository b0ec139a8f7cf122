"""Intervals over seeds: against scipy, and by how often they hold the truth."""

import math

import numpy as np
import pytest
import scipy.stats

from attnprobe.statistics.seeds import mean_interval, ratio_interval


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).standard_normal(7)
    found = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((values.mean(), found.low, found.high))


def test_one_seed_has_no_interval():
    for mean, low, high in (mean_interval([0.5]), ratio_interval([1.0], [2.0])):
        assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_the_ends_of_the_ratio_are_where_the_t_test_of_the_difference_is_just_lost():
    rng = np.random.default_rng(1)
    b = 1 + 0.2 * rng.standard_normal(6)
    a = 0.5 * b + 0.1 * rng.standard_normal(6)
    ratio, *ends = ratio_interval(a, b)
    assert ends[0] < ratio == a.mean() / b.mean() < ends[1]
    for end in ends:
        assert scipy.stats.ttest_1samp(a - end * b, 0.0).pvalue == pytest.approx(0.05)


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    b = 1 + 0.3 * rng.standard_normal((4000, 5))
    a = 0.4 + 0.5 * (b - 1) + 0.3 * rng.standard_normal((4000, 5))
    ends = np.array([ratio_interval(*pair)[1:] for pair in zip(a, b, strict=True)])
    bounded = np.isfinite(ends[:, 0])
    held = (ends[:, 0] <= 0.4) & (0.4 <= ends[:, 1])
    assert bounded.mean() > 0.99
    assert held.mean() == pytest.approx(0.95, abs=0.015)


def test_a_ratio_over_what_may_be_nothing_is_unbounded():
    ratio, low, high = ratio_interval([0.1, 0.2, 0.1], [0.1, -0.1, 0.05])
    assert math.isfinite(ratio) and low == -math.inf and high == math.inf
