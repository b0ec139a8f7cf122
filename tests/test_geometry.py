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


def absent_tokens(shape, missing):
    """Return a third of the tokens, or none."""
    return tuple(range(1, int(np.prod(shape)), 3)) if missing else ()


def pairs_of(geom):
    """Yield the pairs of present tokens within the window."""
    for i, j, offset in materialised.pairs(geom.shape, geom.causal):
        if not {i, j} & set(geom.absent) and (geom.window is None or abs(i - j) <= geom.window):
            yield i, j, offset


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_running_sums_follow_their_definition(shape, causal, missing, window):
    """Compare every sum with a loop over pairs."""
    geom = Geometry(shape, causal, window if len(shape) == 1 else None, absent_tokens(shape, missing))
    n, offsets = geom.n, int(np.prod(geom.sides))
    rng = np.random.default_rng(0)
    t, x = rng.normal(size=(2, offsets)), rng.normal(size=(2, n))
    by_token = ("windows", "windows_by_key", "sum_over_keys", "sum_over_queries")
    by_offset = ("count", "overlaps", "overlaps_by_key")
    sums = {name: np.zeros((2, offsets if name in by_offset else n)) for name in by_token + by_offset}
    sums["fold"] = np.zeros((2, 2 * n - 1))
    for i, j, offset in pairs_of(geom):
        sums["count"][:, offset] += 1
        sums["windows"][:, i] += t[:, offset]
        sums["windows_by_key"][:, j] += t[:, offset]
        sums["overlaps"][:, offset] += x[:, i]
        sums["overlaps_by_key"][:, offset] += x[:, j]
        sums["sum_over_keys"][:, i] += x[:, j]
        sums["sum_over_queries"][:, j] += x[:, i]
        sums["fold"][:, j - i + n - 1] += x[:, i]
        here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
        assert geom.distance[offset].item() == pytest.approx(np.hypot.reduce(np.subtract(there, here)))
        assert geom.in_line[offset] == j - i + n - 1
        assert geom.seen[offset]
    np.testing.assert_array_equal(geom.count, sums["count"][0])
    for name in (*by_token, *by_offset[1:]):
        argument = t if name.startswith("windows") else x
        np.testing.assert_allclose(getattr(geom, name)(torch.from_numpy(argument)), sums[name], atol=1e-12)
    folded = geom.fold(geom.overlaps(torch.from_numpy(x)))
    np.testing.assert_allclose(folded, sums["fold"], atol=1e-12)
    uniform = np.zeros(offsets)
    for i, _, offset in pairs_of(geom):
        uniform[offset] += 1 / geom.keys[i]
    np.testing.assert_allclose(geom.uniform, uniform, atol=1e-12)
    assert geom.tokens == geom.present.sum() and geom.line.keys.tolist() == geom.keys.tolist()
    assert geom.keys.sum() == geom.queries.sum() == geom.count.sum()


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(SHAPES), causal=st.booleans(), seed=st.integers(0, 99))
def test_planted_profiles_and_key_constants_are_recovered_under_any_row_constants(shape, causal, seed):
    geom = Geometry(shape, causal)
    n, offsets = geom.n, int(np.prod(geom.sides))
    rng = np.random.default_rng(seed)
    rows, t, u = 10 * rng.normal(size=n), rng.normal(size=offsets), rng.normal(size=n)
    of_profile, of_keys = np.zeros((2, n, n))
    visible = np.zeros((n, n), dtype=bool)
    for i, j, offset in materialised.pairs(shape, causal):
        visible[i, j] = True
        of_profile[i, j], of_keys[i, j] = rows[i] + t[offset], rows[i] + u[j]
    centred = [visible * (x - (x.sum(1) / visible.sum(1))[:, None]) for x in (of_profile, of_keys)]
    sums = np.zeros(offsets)
    for i, j, offset in materialised.pairs(shape, causal):
        sums[offset] += centred[0][i, j]
    profile = geom.offset_profile(torch.from_numpy(sums)).numpy()
    assert (np.isnan(profile) == (geom.count.numpy() == 0)).all()
    difference = (profile - t)[~np.isnan(profile)]
    assert difference == pytest.approx(np.full(len(difference), difference[0]), abs=1e-9)
    assert np.nan_to_num(profile) @ geom.count.numpy() == pytest.approx(0, abs=1e-9)
    difference = geom.key_constants(torch.from_numpy(centred[1].sum(0))).numpy() - u
    assert difference == pytest.approx(np.full(n, difference[0]), abs=1e-9)


@pytest.mark.parametrize(("shape", "causal"), [((4001,), False), ((4001,), True), ((50, 80), False), ((50, 80), True)])
def test_fits_are_exact_at_lengths_beyond_dense_solvers(shape, causal):
    """Running sums give the exact right-hand side of a planted profile at any n."""
    geom = Geometry(shape, causal)
    planted = torch.randn(int(np.prod(geom.sides)), dtype=torch.float64) * geom.seen
    planted = (planted - planted @ geom.count / geom.count.sum()) * geom.seen
    sums = geom.count * planted - geom.overlaps(geom.windows(planted) / geom.keys)
    error = (geom.offset_profile(sums).nan_to_num() - planted).abs().max()
    assert error < 1e-12 * planted.abs().max()


def test_fits_tolerate_sums_that_do_not_add_up_to_zero():
    """The constant component of the sums is ignored; constant sums yield a profile of 0."""
    geom = Geometry((6,), causal=True)
    sums = geom.count * torch.randn(3, 11, dtype=torch.float64)
    level = (sums.sum(-1) / geom.count.sum())[:, None] * geom.count
    torch.testing.assert_close(geom.offset_profile(sums), geom.offset_profile(sums - level), equal_nan=True)
    assert geom.offset_profile(geom.count * 1e-9).nan_to_num().abs().max() < 1e-20


def test_averaging_centred_diagonals_distorts_the_profile():
    """The fitted profile of a causal -distance has its slope; the average has three quarters of it."""
    n = 64
    bias = -torch.arange(-(n - 1), n).abs().float()[None]
    found = score_statistics(Scores(torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1), bias=bias, causal=True))
    averaged, fitted = found.centred_by_offset[0, 0, :n], found.offset_profile[0, 0, :n]
    near = np.arange(n // 2)  # distances; the offsets end at 0
    slopes = [np.polyfit(near, profile[n // 2 :].flip(0), 1)[0] for profile in (averaged, fitted)]
    assert slopes[0] == pytest.approx(-0.75, abs=0.01)
    assert slopes[1] == pytest.approx(-1, abs=1e-9)


def test_geometries_are_cached():
    assert geometry((7,)) is geometry((7,))
    assert geometry((7,)) is not geometry((7,), True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 4), (1, 5), (4, 1), (30,)])
@pytest.mark.parametrize(("missing", "noise"), [(False, 0.0), (True, 0.0), (True, 1e-7)])
def test_inner_products_and_shared_energy(shape, causal, missing, noise):
    """Compare with dense arrays and numpy's solver; sums computed in float32 have errors in the null space."""
    geom, generator = Geometry(shape, causal, absent=absent_tokens(shape, missing)), torch.Generator().manual_seed(0)
    pairs = list(pairs_of(geom))
    query, key, offset = torch.tensor(pairs).T
    n, offsets = geom.n, len(geom.count)

    def centred(values):
        x = torch.zeros(n, n, dtype=torch.float64)
        x[query, key] = values
        x[query, key] -= (x.sum(1) / geom.keys.clamp(min=1))[query]
        return x

    f, g = torch.randn(2, offsets, generator=generator, dtype=torch.float64)
    expected = (centred(f[offset]) * centred(g[offset])).sum()
    torch.testing.assert_close(geom.inner(f, g), expected)
    x = centred(torch.randn(len(pairs), generator=generator, dtype=torch.float64))
    design = np.zeros((len(pairs), 2 * n + offsets))
    for column in (query, n + key, 2 * n + offset):
        design[np.arange(len(pairs)), column] = 1
    values = x[query, key].numpy()
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    by_offset = torch.zeros(offsets, dtype=torch.float64).index_add(0, offset, x[query, key])
    errors = noise * torch.randn(n + offsets, generator=generator, dtype=torch.float64)
    found = geom.shared_energy((x.sum(0) + errors[:n])[None], (by_offset + errors[n:])[None])
    assert found.numpy() == pytest.approx([np.square(fitted).sum()], rel=10 * noise, abs=1e-12)
