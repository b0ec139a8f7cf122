import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.statistics.moments import Moments, jackknife_error


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), level=st.integers(0, 1))
def test_moments_do_not_depend_on_the_chunks(seed, sizes, level):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(sum(sizes), 3, 4)) + 1e6 * level
    samples[rng.random(samples.shape) < 0.2] = np.nan
    moments = Moments()
    for part in np.split(samples, np.cumsum(sizes)[:-1]):
        moments.add(part)
    count = np.isfinite(samples).sum(0)
    np.testing.assert_array_equal(moments.count, count)
    for index in np.ndindex(3, 4):
        known = samples[(slice(None), *index)]
        known = known[np.isfinite(known)]
        assert moments.mean[index] == pytest.approx(known.mean() if len(known) else np.nan, nan_ok=True)
        variance = known.var(ddof=1) if len(known) > 1 else np.nan
        assert moments.variance[index] == pytest.approx(variance, nan_ok=True, rel=1e-6)
        if len(known) > 1:
            expected = scipy.stats.t.interval(0.9, len(known) - 1, known.mean(), scipy.stats.sem(known))
            assert moments.interval(0.9)[index] == pytest.approx(expected)
        else:
            assert np.isnan(moments.interval()[index]).all()


def test_mean_without_a_part_is_the_mean_of_the_remaining_samples():
    values = np.random.default_rng(0).normal(size=(9, 5))
    values[4:, 1] = values[2:, 2] = values[:, 3] = np.nan
    total, part = Moments(), Moments()
    total.add(values)
    part.add(values[:3])
    expected = np.append([np.nanmean(values[3:, column]) for column in (0, 1)], [np.nan, np.nan])
    np.testing.assert_allclose(total.mean_without(part)[:4], expected)


@pytest.mark.parametrize("size", [4, 100])
def test_the_interval_has_its_nominal_coverage(size):
    values = np.random.default_rng(0).normal(size=(size, 4000))  # 4000 experiments
    moments = Moments()
    moments.add(values)
    ends = moments.interval()
    covered = np.mean((ends[:, 0] < 0) & (ends[:, 1] > 0))
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 4000))


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=(12, 3))
    left_out = (values.sum(0) - values) / 11
    assert jackknife_error(left_out) == pytest.approx(values.std(0, ddof=1) / np.sqrt(12))
    left_out[4, 1] = np.nan
    assert np.isnan(jackknife_error(left_out)).tolist() == [False, True, False]
