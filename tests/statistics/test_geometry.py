"""Sums by offset against loops, the offset kernel against a general least-squares solver."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.statistics.geometry import Geometry, geometry

SHAPES = [(1,), (2,), (5,), (8,), (1, 1), (1, 4), (3, 2), (3, 4)]


def pairs(shape, causal):
    """Yield (query, key, offset index) for every visible pair, by the definition."""
    n = int(np.prod(shape))
    sides = [2 * side - 1 for side in shape]
    for i in range(n):
        for j in range(i + 1 if causal else n):
            here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
            shifted = [int(b - a) + side - 1 for a, b, side in zip(here, there, shape, strict=True)]
            yield i, j, int(np.ravel_multi_index(shifted, sides))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_sums_counts_and_distances_follow_their_definition(shape, causal):
    places = Geometry(shape, causal)
    x = torch.randn(2, places.n, places.n, dtype=torch.float64)
    sums, count = np.zeros((2, np.prod(places.sides))), np.zeros(np.prod(places.sides))
    for i, j, offset in pairs(shape, causal):
        sums[:, offset] += x[:, i, j].numpy()
        count[offset] += 1
        here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
        assert places.distance[offset].item() == pytest.approx(np.hypot.reduce(np.subtract(there, here)))
    np.testing.assert_allclose(places.sums(x * places.visible), sums, atol=1e-12)
    np.testing.assert_array_equal(places.count, count)


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(SHAPES), causal=st.booleans(), seed=st.integers(0, 99))
def test_the_kernel_is_the_least_squares_one(shape, causal, seed):
    """numpy's solver on the full design of row constants and offsets explains exactly as much, with the same kernel."""
    places = Geometry(shape, causal)
    rng = np.random.default_rng(seed)
    visible = list(pairs(shape, causal))
    scores = rng.normal(size=(places.n, places.n))
    design = np.zeros((len(visible), places.n + int(np.prod(places.sides))))
    for row, (i, _, offset) in enumerate(visible):
        design[row, i] = design[row, places.n + offset] = 1
    values = np.array([scores[i, j] for i, j, _ in visible])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    by_row = np.array([i for i, _, _ in visible])
    centre = np.bincount(by_row, values) / np.bincount(by_row)
    explained = np.sum((values - centre[by_row]) ** 2) - np.sum((values - fitted) ** 2)

    centred = places.centre(torch.from_numpy(scores))
    sums = places.sums(centred)
    kernel = places.kernel(sums)
    assert (sums * kernel.nan_to_num()).sum().item() == pytest.approx(explained, abs=1e-9)
    assert (kernel.nan_to_num() @ places.count).item() == pytest.approx(0, abs=1e-9)
    assert torch.equal(kernel.isnan(), places.count == 0)


@pytest.mark.parametrize("shape", [(9,), (3, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_planted_kernel_is_recovered_under_any_row_constants(shape, causal):
    places = Geometry(shape, causal)
    planted, rows = (
        torch.randn(int(np.prod(places.sides)), dtype=torch.float64),
        torch.randn(places.n, dtype=torch.float64),
    )
    scores = torch.zeros(places.n, places.n, dtype=torch.float64)
    for i, j, offset in pairs(shape, causal):
        scores[i, j] = planted[offset] + 10 * rows[i]
    kernel = places.kernel(places.sums(places.centre(scores)))
    present = places.count > 0
    difference = (kernel - planted)[present]
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))


def test_averaging_centred_diagonals_would_bend_the_profile():
    """Why the kernel is fitted: a causal -distance keeps its slope there; the average has three quarters of it."""
    n = 64
    places = Geometry((n,), causal=True)
    scores = -(torch.arange(n)[:, None] - torch.arange(n)).abs().double()
    sums = places.sums(places.centre(scores))
    averaged, fitted = (sums / places.count)[:n], places.kernel(sums)[:n]
    near = np.arange(n // 2)  # distances; the offsets end at 0
    slopes = [np.polyfit(near, profile[n // 2 :].flip(0), 1)[0] for profile in (averaged, fitted)]
    assert slopes[0] == pytest.approx(-0.75, abs=0.01)
    assert slopes[1] == pytest.approx(-1, abs=1e-9)


def test_geometries_are_kept():
    assert geometry((7,)) is geometry((7,))
    assert geometry((7,)) is not geometry((7,), True)
