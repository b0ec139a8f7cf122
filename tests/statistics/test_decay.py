import numpy as np
import pytest

from attnprobe.statistics.decay import fit_decay

DISTANCE = np.arange(1.0, 64.0)
WEIGHT = 2 * (64 - DISTANCE)


@pytest.mark.parametrize("length", [0.7, 3.0, 20.0, 190.0])
@pytest.mark.parametrize(("height", "floor"), [(1.0, 0.0), (5.0, -3.0)])
def test_a_planted_exponential_is_recovered(length, height, floor):
    fitted = fit_decay(height * np.exp(-DISTANCE / length) + floor, DISTANCE, WEIGHT)
    assert fitted.length == pytest.approx(length, rel=1e-3)
    assert fitted.r2 == pytest.approx(1, abs=1e-4)
    assert fitted.reason == ""


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (np.zeros(63), "the profile is constant"),
        (1 - np.exp(-DISTANCE / 3), "far keys score as high as near ones"),
        (np.cos(DISTANCE), "no exponential fits (R² below 0.5)"),
        ((DISTANCE == 1).astype(float), "ends within one token"),
        (-DISTANCE, "longer than the sequence can show"),
    ],
)
def test_profiles_without_decay_have_a_reason_and_no_length(profile, reason):
    fitted = fit_decay(profile, DISTANCE, WEIGHT)
    assert fitted.reason == reason
    assert np.isnan(fitted.length)


def test_a_poor_fit_has_no_length():
    """R² of a noisy decay, below and above one half."""
    rng, clean = np.random.default_rng(0), np.exp(-DISTANCE / 5)
    noise = rng.normal(size=63) * np.sqrt(np.average((clean - np.average(clean, weights=WEIGHT)) ** 2, weights=WEIGHT))
    poor, good = (fit_decay(clean + scale * noise, DISTANCE, WEIGHT) for scale in (1.5, 0.5))
    assert 0.1 < poor.r2 < 0.5 < good.r2
    assert np.isnan(poor.length)
    assert np.isfinite(good.length)


def test_distances_of_weight_0_are_ignored():
    profile, weight = np.exp(-DISTANCE / 5), WEIGHT.astype(float)
    profile[40:], weight[40:] = 7.0, 0.0
    assert fit_decay(profile, DISTANCE, weight).length == pytest.approx(5, rel=1e-3)


def test_profiles_are_fitted_independently():
    profiles = np.stack([[np.exp(-DISTANCE / 2), np.exp(-DISTANCE / 9)]])
    assert fit_decay(profiles, DISTANCE, WEIGHT).length == pytest.approx(np.array([[2, 9]]), rel=1e-3)
