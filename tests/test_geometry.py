"""Counts, running sums and least-squares fits against their definitions."""

import materialised
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.geometry import Geometry, geometry
from attnprobe.statistics import Scores, score_statistics

SHAPES = [(1,), (2,), (5,), (8,), (1, 1), (1, 4), (4, 1), (3, 2), (3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_running_sums_follow_their_definition(shape, causal):
    """Every sum that the geometry takes, in a loop over pairs."""
    places = Geometry(shape, causal)
    n, offsets = places.n, int(np.prod(places.sides))
    rng = np.random.default_rng(0)
    t, x = rng.normal(size=(2, offsets)), rng.normal(size=(2, n))
    names = ("count", "windows", "windows_by_key", "overlaps", "sum_over_keys", "sum_over_queries", "fold")
    sums = dict.fromkeys(names)
    sums = {name: np.zeros((2, offsets if name in ("count", "overlaps") else n)) for name in sums}
    sums["fold"] = np.zeros((2, 2 * n - 1))
    for i, j, offset in materialised.pairs(shape, causal):
        sums["count"][:, offset] += 1
        sums["windows"][:, i] += t[:, offset]
        sums["windows_by_key"][:, j] += t[:, offset]
        sums["overlaps"][:, offset] += x[:, i]
        sums["sum_over_keys"][:, i] += x[:, j]
        sums["sum_over_queries"][:, j] += x[:, i]
        sums["fold"][:, j - i + n - 1] += x[:, i]
        here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
        assert places.distance[offset].item() == pytest.approx(np.hypot.reduce(np.subtract(there, here)))
        assert places.in_line[offset] == j - i + n - 1
        assert places.seen[offset]
    np.testing.assert_array_equal(places.count, sums["count"][0])
    for name in ("windows", "windows_by_key", "overlaps", "sum_over_keys", "sum_over_queries"):
        given = t if name.startswith("windows") else x
        np.testing.assert_allclose(getattr(places, name)(torch.from_numpy(given)), sums[name], atol=1e-12)
    folded = places.fold(places.overlaps(torch.from_numpy(x)))
    np.testing.assert_allclose(folded, sums["fold"], atol=1e-12)
    np.testing.assert_allclose(places.uniform, places.overlaps(1 / places.keys))
    assert places.keys.sum() == places.queries.sum() == places.count.sum()


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(SHAPES), causal=st.booleans(), seed=st.integers(0, 99))
def test_planted_kernels_and_key_constants_are_recovered_under_any_row_constants(shape, causal, seed):
    places = Geometry(shape, causal)
    n, offsets = places.n, int(np.prod(places.sides))
    rng = np.random.default_rng(seed)
    rows, t, u = 10 * rng.normal(size=n), rng.normal(size=offsets), rng.normal(size=n)
    of_kernel, of_keys = np.zeros((2, n, n))
    visible = np.zeros((n, n), dtype=bool)
    for i, j, offset in materialised.pairs(shape, causal):
        visible[i, j] = True
        of_kernel[i, j], of_keys[i, j] = rows[i] + t[offset], rows[i] + u[j]
    centred = [visible * (x - (x.sum(1) / visible.sum(1))[:, None]) for x in (of_kernel, of_keys)]
    sums = np.zeros(offsets)
    for i, j, offset in materialised.pairs(shape, causal):
        sums[offset] += centred[0][i, j]
    kernel = places.offset_profile(torch.from_numpy(sums)).numpy()
    assert (np.isnan(kernel) == (places.count.numpy() == 0)).all()
    difference = (kernel - t)[~np.isnan(kernel)]
    assert difference == pytest.approx(np.full(len(difference), difference[0]), abs=1e-9)
    assert np.nan_to_num(kernel) @ places.count.numpy() == pytest.approx(0, abs=1e-9)
    difference = places.key_constants(torch.from_numpy(centred[1].sum(0))).numpy() - u
    assert difference == pytest.approx(np.full(n, difference[0]), abs=1e-9)


@pytest.mark.parametrize(("shape", "causal"), [((4001,), False), ((4001,), True), ((50, 80), False), ((50, 80), True)])
def test_fits_are_exact_at_lengths_that_no_dense_solver_takes(shape, causal):
    """What `kernel` inverts is written out in running sums, so the residual of its equations can be seen at any n."""
    places = Geometry(shape, causal)
    planted = torch.randn(int(np.prod(places.sides)), dtype=torch.float64) * places.seen
    planted = (planted - planted @ places.count / places.count.sum()) * places.seen
    sums = places.count * planted - places.overlaps(places.windows(planted) / places.keys)
    error = (places.offset_profile(sums).nan_to_num() - planted).abs().max()
    assert error < 1e-12 * planted.abs().max()


def test_what_a_sum_leaves_over_by_rounding_is_no_obstacle():
    """Sums that do not add up to zero are fitted as those that do; nothing but constants stays nothing."""
    places = Geometry((6,), causal=True)
    sums = places.count * torch.randn(3, 11, dtype=torch.float64)
    level = (sums.sum(-1) / places.count.sum())[:, None] * places.count
    torch.testing.assert_close(places.offset_profile(sums), places.offset_profile(sums - level), equal_nan=True)
    assert places.offset_profile(places.count * 1e-9).nan_to_num().abs().max() < 1e-20


def test_averaging_centred_diagonals_would_bend_the_profile():
    """Why the kernel is fitted: a causal -distance keeps its slope there; the average has three quarters of it."""
    n = 64
    bias = -torch.arange(-(n - 1), n).abs().float()[None]
    found = score_statistics(Scores(torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1), bias=bias, causal=True))
    averaged, fitted = found.centred_by_offset[0, 0, :n], found.offset_profile[0, 0, :n]
    near = np.arange(n // 2)  # distances; the offsets end at 0
    slopes = [np.polyfit(near, profile[n // 2 :].flip(0), 1)[0] for profile in (averaged, fitted)]
    assert slopes[0] == pytest.approx(-0.75, abs=0.01)
    assert slopes[1] == pytest.approx(-1, abs=1e-9)


def test_geometries_are_kept():
    assert geometry((7,)) is geometry((7,))
    assert geometry((7,)) is not geometry((7,), True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 4), (1, 5), (4, 1)])
def test_inner_products_and_what_keys_and_offsets_share(shape, causal):
    """Against dense arrays and numpy's solver."""
    places, generator = Geometry(shape, causal), torch.Generator().manual_seed(0)
    used = list(materialised.pairs(shape, causal))
    query, key, offset = torch.tensor(used).T
    n, offsets = places.n, len(places.count)

    def centred(values):
        x = torch.zeros(n, n, dtype=torch.float64)
        x[query, key] = values
        x[query, key] -= (x.sum(1) / places.keys)[query]
        return x

    f, g = torch.randn(2, offsets, generator=generator, dtype=torch.float64)
    expected = (centred(f[offset]) * centred(g[offset])).sum()
    torch.testing.assert_close(places.inner(f * places.seen, g * places.seen), expected)
    x = centred(torch.randn(len(used), generator=generator, dtype=torch.float64))
    design = np.zeros((len(used), 2 * n + offsets))
    for column in (query, n + key, 2 * n + offset):
        design[np.arange(len(used)), column] = 1
    values = x[query, key].numpy()
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    by_offset = torch.zeros(offsets, dtype=torch.float64).index_add(0, offset, x[query, key])
    found = places.shared_energy(x.sum(0)[None], by_offset[None])
    assert found.numpy() == pytest.approx([np.square(fitted).sum()], abs=1e-12)
