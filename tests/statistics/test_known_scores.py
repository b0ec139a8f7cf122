"""Scores whose statistics are known in closed form."""

import dataclasses
import math

import pytest
import torch
from materialised import dense

from attnprobe.statistics import Scores, pattern_statistics, score_statistics

N = 16
NOTHING = torch.zeros(1, 1, N, 1, dtype=torch.float64)
OFFSET = torch.arange(-(N - 1), N, dtype=torch.float64)


def given(scores, **named):
    """Return statistics input for any [..., query, key] array: it is its own query, and the keys are unit vectors."""
    scores = scores.reshape(1, -1, N, N).double()
    return Scores(scores, torch.eye(N, dtype=torch.float64).expand_as(scores), scale=1.0, **named)


@pytest.mark.parametrize("causal", [False, True])
def test_a_planted_toeplitz_score_has_share_1_whatever_the_row_constants(causal):
    kernel = torch.exp(-OFFSET.abs() / 3) + 0.1 * OFFSET
    rows = 5 * torch.randn(1, 1, N, 1, dtype=torch.float64)
    found = score_statistics(Scores(rows, torch.ones_like(rows), bias=kernel[None], causal=causal))
    assert found.toeplitz_share.item() == pytest.approx(1)
    seen = found.pairs[0] > 0
    level = (kernel * found.pairs[0]).sum() / found.pairs.sum()
    torch.testing.assert_close(found.offset_profile[0, 0, seen], (kernel - level)[seen])


def test_a_random_score_has_share_of_about_two_over_n():
    """2 n - 2 of the n (n - 1) directions that a row-centred score has; (2 n - 1) / n² to leading order."""
    scores = torch.randn(400, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = score_statistics(given(scores, grid=(4, 4))).toeplitz_share
    assert grid.mean().item() == pytest.approx((7 * 7 - 1) / (N * (N - 1)), abs=4 * grid.std().item() / 20)
    share = score_statistics(given(scores)).toeplitz_share
    assert share.mean().item() == pytest.approx((2 * N - 2) / (N * (N - 1)), abs=4 * share.std().item() / 20)
    assert share.mean().item() == pytest.approx((2 * N - 1) / N**2, rel=0.1)


@pytest.mark.parametrize(("grid", "causal"), [(None, False), (None, True), ((4, 4), False)])
def test_uniform_attention_has_every_ratio_1(grid, causal):
    found = pattern_statistics(Scores(NOTHING, NOTHING, causal=causal, grid=grid))
    assert found.mean_distance_ratio.item() == pytest.approx(1)
    assert [found.near_mass(distance).item() for distance in (1, 2)] == pytest.approx([1, 1])
    if not causal:
        assert found.entropy.item() == pytest.approx(math.log(N))
        assert found.mass_by_key.flatten().tolist() == pytest.approx([1] * N)
    if grid is None and not causal:
        assert found.mean_distance.item() == pytest.approx((N**2 - 1) / (3 * N))
        assert found.mass([0]).item() == pytest.approx(1 / N)
        assert found.mass([-1, 1]).item() == pytest.approx(2 * (N - 1) / N**2)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e6 / 3])
def test_a_constant_score_has_no_share_and_no_contrast(value):
    q = torch.full((1, 1, N, 3), value, dtype=torch.float64)
    for scores in (Scores(q, torch.ones_like(q)), Scores(NOTHING, NOTHING, bias=torch.full((1, 2 * N - 1), value))):
        found = score_statistics(scores)
        assert found.toeplitz_share.isnan().all()
        assert found.contrast(2).isnan().all()


@pytest.mark.parametrize("causal", [False, True])
def test_derived_numbers_follow_their_definitions(causal):
    """A loop over pairs, straight from the definitions."""
    array = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = given(array, causal=causal)
    score, pattern = score_statistics(scores), pattern_statistics(scores)
    near, far, everything, distance, mass, uniform, least = [], [], [], 0.0, 0.0, 0.0, 0.0
    for i in range(N):
        keys = range(i + 1 if causal else N)
        row = array[i, : len(keys)]
        for j, weight in zip(keys, row.softmax(-1).tolist(), strict=True):
            centred, d = (row[j] - row.mean()).item(), abs(i - j)
            everything.append(centred)
            (near if 0 < d <= 3 else far if d > 3 else []).append(centred)
            distance += weight * d / N
            least += d / len(keys) / N
            mass += weight * (0 < d <= 3)
            uniform += (0 < d <= 3) / len(keys)
    std = math.sqrt(sum(c * c for c in everything) / len(everything))
    assert score.std.item() == pytest.approx(std)
    assert score.contrast(3).item() == pytest.approx((sum(near) / len(near) - sum(far) / len(far)) / std)
    assert pattern.mean_distance.item() == pytest.approx(distance)
    assert pattern.mean_distance_ratio.item() == pytest.approx(distance / least)
    assert pattern.near_mass(3).item() == pytest.approx(mass / uniform)
    assert score.contrast(N).isnan().all()  # nothing is far


def test_row_constants_change_nothing_that_the_softmax_ignores():
    torch.manual_seed(0)
    array = torch.randn(N, N, dtype=torch.float64)
    one, other = (given(x) for x in (array, array + torch.randn(N, 1)))
    for name in (
        "offset_profile",
        "centred_by_offset",
        "toeplitz_share",
        "square_row_centred",
        "square_double_centred",
        "std",
    ):
        torch.testing.assert_close(getattr(score_statistics(one), name), getattr(score_statistics(other), name))
    for name in ("mass_by_offset", "mass_by_key", "entropy"):
        torch.testing.assert_close(getattr(pattern_statistics(one), name), getattr(pattern_statistics(other), name))


def test_a_score_of_keys_alone_is_gone_when_double_centred():
    q = torch.ones(1, 1, N, 1, dtype=torch.float64)
    k = torch.randn(1, 1, N, 1, dtype=torch.float64)
    for causal in (False, True):
        found = score_statistics(Scores(q, k, causal=causal))
        assert found.square_row_centred.item() > 1
        assert found.square_double_centred.item() == pytest.approx(0, abs=1e-12)


def test_a_grid_seen_in_a_line_is_the_line():
    q, k = torch.randn(2, 2, 3, 12, 4, dtype=torch.float64)
    for causal in (False, True):
        line = pattern_statistics(Scores(q, k, causal=causal))
        folded = pattern_statistics(Scores(q, k, causal=causal, grid=(3, 4))).in_line()
        for name in ("pairs", "uniform_by_offset", "mass_by_offset", "mean_distance", "mean_distance_ratio"):
            torch.testing.assert_close(getattr(folded, name), getattr(line, name))
        line = score_statistics(Scores(q, k, causal=causal))
        assert line.in_line() is line
        same_in_line(score_statistics(Scores(q, k, causal=causal, grid=(3, 4))), line)


def same_in_line(on_grid, line):
    folded = on_grid.in_line()
    for field in dataclasses.fields(line):
        if field.name == "geometry":
            assert folded.geometry == line.geometry
        else:
            torch.testing.assert_close(getattr(folded, field.name), getattr(line, field.name), equal_nan=True)


@pytest.mark.parametrize("causal", [False, True])
def test_scores_with_a_bias_on_the_grid_have_statistics_in_the_line_too(causal):
    """No bias over offsets in the line gives the same scores: there they are an array like any other."""
    zero = torch.zeros(1, 2, N, 1, dtype=torch.float64)
    bias = torch.randn(2, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = Scores(zero, zero, bias=bias, causal=causal, grid=(4, 4))
    array = dense(dataclasses.replace(scores, causal=False))
    same_in_line(score_statistics(scores), score_statistics(given(array, causal=causal)))


def test_constant_scores_on_a_grid_have_no_share_in_the_line():
    """Queries and keys at right angles: nothing but rounding is left, and that is no score."""
    q, k = torch.randn(2, 1, 20, 15, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right_angles = torch.tensor([[0.1, 0.3], [0.3, -0.1]], dtype=torch.float64)
    found = score_statistics(Scores(q * right_angles[0], k * right_angles[1], grid=(3, 5)))
    assert (found.square_row_centred > 0).any()
    assert found.in_line().toeplitz_share.isnan().all()


def test_mass_on_a_grid_takes_offsets_in_rows_and_columns():
    found = pattern_statistics(Scores(NOTHING, NOTHING, grid=(4, 4)))
    assert found.mass([(0, 1), (0, -1)]).item() == pytest.approx(2 * 12 / N / N)
    assert found.mass([(3, -3), (3, -3)]).item() == pytest.approx(1 / N / N)
