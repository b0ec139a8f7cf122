"""Scores with statistics known in closed form."""

import dataclasses
import math

import materialised
import pytest
import torch
from materialised import dense

from attnprobe.statistics import Scores, pattern_statistics, score_statistics

N = 16
ZERO = torch.zeros(1, 1, N, 1, dtype=torch.float64)
OFFSET = torch.arange(-(N - 1), N, dtype=torch.float64)


def from_array(scores, **options):
    """Wrap any [..., query, key] array as `Scores`, with its rows as queries and unit vectors as keys."""
    scores = scores.reshape(1, -1, N, N).double()
    return Scores(scores, torch.eye(N, dtype=torch.float64).expand_as(scores), scale=1.0, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_a_planted_toeplitz_score_has_share_1_for_any_row_constants(causal):
    kernel = torch.exp(-OFFSET.abs() / 3) + 0.1 * OFFSET
    rows = 5 * torch.randn(1, 1, N, 1, dtype=torch.float64)
    found = score_statistics(Scores(rows, torch.ones_like(rows), bias=kernel[None], causal=causal))
    assert found.toeplitz_share.item() == pytest.approx(1)
    seen = found.pairs[0] > 0
    level = (kernel * found.pairs[0]).sum() / found.pairs.sum()
    torch.testing.assert_close(found.offset_profile[0, 0, seen], (kernel - level)[seen])


def test_a_random_score_has_a_toeplitz_share_of_about_two_over_n():
    """2 n - 2 of the n (n - 1) dimensions of row-centred scores are Toeplitz; (2 n - 1) / n² to leading order."""
    scores = torch.randn(400, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = score_statistics(from_array(scores, grid=(4, 4))).toeplitz_share
    assert grid.mean().item() == pytest.approx((7 * 7 - 1) / (N * (N - 1)), abs=4 * grid.std().item() / 20)
    share = score_statistics(from_array(scores)).toeplitz_share
    assert share.mean().item() == pytest.approx((2 * N - 2) / (N * (N - 1)), abs=4 * share.std().item() / 20)
    assert share.mean().item() == pytest.approx((2 * N - 1) / N**2, rel=0.1)


@pytest.mark.parametrize(("grid", "causal"), [(None, False), (None, True), ((4, 4), False)])
def test_all_ratios_are_1_for_uniform_attention(grid, causal):
    found = pattern_statistics(Scores(ZERO, ZERO, causal=causal, grid=grid))
    assert found.mean_distance_ratio.item() == pytest.approx(1)
    assert [found.near_mass(distance).item() for distance in (1, 2)] == pytest.approx([1, 1])
    if not causal:
        assert found.entropy.item() == pytest.approx(math.log(N))
        assert found.mass_by_key.flatten().tolist() == pytest.approx([1] * N)
    if grid is None and not causal:
        assert found.mean_distance.item() == pytest.approx((N**2 - 1) / (3 * N))
        assert found.mass([0]).item() == pytest.approx(1 / N)
        assert found.mass([-1, 1]).item() == pytest.approx(2 * (N - 1) / N**2)


@pytest.mark.parametrize("causal", [False, True])
def test_the_mutual_information_of_query_and_key_is_that_of_their_joint_distribution(causal):
    scores = from_array(3 * torch.randn(3, N, N, generator=torch.Generator().manual_seed(0)), causal=causal)
    real = torch.ones(1, N, dtype=torch.bool)
    real[0, [3, N - 1]] = False
    for one in (scores, dataclasses.replace(scores, real=real)):
        expected = torch.stack([materialised.nmi(a) for a in materialised.pattern(one)[0]])
        torch.testing.assert_close(pattern_statistics(one).nmi[0], expected)


def test_the_mutual_information_of_known_patterns():
    """0 if all queries attend alike, 1 if each attends to a key of its own, and 1 / sqrt(2) with half as many keys."""
    uniform, own_key, one_key = torch.zeros(N, N), 1000 * torch.eye(N).roll(5, 1), torch.zeros(N, N)
    alike = torch.randn(N).expand(N, N)
    one_key[:, 2] = 1000
    pairs = 1000 * torch.eye(N // 2).repeat_interleave(2, 0)  # two queries share a key
    pairs = torch.nn.functional.pad(pairs, (0, N // 2), value=-1000)
    found = pattern_statistics(from_array(torch.stack([uniform, alike, one_key, own_key, pairs]))).nmi[0]
    assert found.tolist() == pytest.approx([0, 0, 0, 1, math.sqrt(math.log(N / 2) / math.log(N))], abs=1e-7)
    causal = pattern_statistics(Scores(ZERO, ZERO, causal=True)).nmi.item()
    of_keys = [sum(1 / i for i in range(key, N + 1)) / N for key in range(1, N + 1)]
    entropy = -sum(p * math.log(p) for p in of_keys)
    information = entropy - sum(math.log(i) for i in range(1, N + 1)) / N
    assert causal == pytest.approx(information / math.sqrt(math.log(N) * entropy))
    assert pattern_statistics(Scores(ZERO[:, :, :1], ZERO[:, :, :1])).nmi.isnan().all()


def test_the_previous_token_receives_what_is_at_offset_minus_1():
    previous = pattern_statistics(from_array(1000 * torch.eye(N).roll(-1, 1)))
    assert previous.previous_token_mass.item() == pytest.approx(1)
    assert pattern_statistics(Scores(ZERO, ZERO)).previous_token_mass.item() == pytest.approx(1 / N)
    uniform = pattern_statistics(Scores(ZERO, ZERO, causal=True)).previous_token_mass.item()
    assert uniform == pytest.approx(sum(1 / i for i in range(2, N + 1)) / (N - 1))
    real = torch.ones(1, N, dtype=torch.bool)
    real[0, [2, 5, 9]] = False  # 3, 6 and 10 have no previous token
    array = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    scores = from_array(array, real=real)
    queries = [i for i in range(1, N) if real[0, i] and real[0, i - 1]]
    expected = materialised.pattern(scores)[0, 0, queries, [i - 1 for i in queries]].mean()
    assert pattern_statistics(scores).previous_token_mass.item() == pytest.approx(float(expected))
    grid = pattern_statistics(dataclasses.replace(scores, grid=(4, 4)))
    assert grid.previous_token_mass.item() == pytest.approx(float(expected))
    real[0] = torch.arange(N) % 2 == 0
    assert pattern_statistics(from_array(array, real=real)).previous_token_mass.isnan().all()
    assert pattern_statistics(Scores(ZERO[:, :, :1], ZERO[:, :, :1])).previous_token_mass.isnan().all()


@pytest.mark.parametrize("causal", [False, True])
def test_duplicates_and_induction_of_a_sequence_by_hand(causal):
    """Of b in ``abcab``, the duplicate is the first b; of the second a, the token after the first a is that b."""
    tokens = torch.tensor([[0, 1, 2, 0, 1]])
    uniform = Scores(*torch.zeros(2, 1, 1, 5, 1), causal=causal)
    found = pattern_statistics(uniform, tokens=tokens).matched_mass[0, 0].tolist()
    seen = [1 / 4, 1 / 5] if causal else [1 / 5, 1 / 5]  # both of the last two queries have one match of each kind
    assert found == pytest.approx([sum(seen) / 2] * 2)
    induction = torch.zeros(1, 1, 5, 5)
    induction[0, 0, 3, 1] = induction[0, 0, 4, 2] = 1000
    heads = Scores(induction, torch.eye(5)[None, None], scale=1.0, causal=causal)
    assert pattern_statistics(heads, tokens=tokens).matched_mass[0, 0].tolist() == pytest.approx([0, 1])
    assert pattern_statistics(uniform, tokens=torch.arange(5)[None]).matched_mass.isnan().all()


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e6 / 3])
def test_share_and_contrast_of_a_constant_score_are_nan(value):
    q = torch.full((1, 1, N, 3), value, dtype=torch.float64)
    for scores in (Scores(q, torch.ones_like(q)), Scores(ZERO, ZERO, bias=torch.full((1, 2 * N - 1), value))):
        found = score_statistics(scores)
        assert found.toeplitz_share.isnan().all()
        assert found.contrast(2).isnan().all()


@pytest.mark.parametrize("causal", [False, True])
def test_derived_numbers_follow_their_definitions(causal):
    """Compare with a loop over pairs that follows the definitions."""
    array = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = from_array(array, causal=causal)
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
    assert score.contrast(N).isnan().all()  # no far pairs


def test_row_constants_change_only_statistics_of_the_raw_score():
    torch.manual_seed(0)
    array = torch.randn(N, N, dtype=torch.float64)
    one, other = (from_array(x) for x in (array, array + torch.randn(N, 1)))
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


def test_double_centring_removes_a_function_of_the_key():
    q = torch.ones(1, 1, N, 1, dtype=torch.float64)
    k = torch.randn(1, 1, N, 1, dtype=torch.float64)
    for causal in (False, True):
        found = score_statistics(Scores(q, k, causal=causal))
        assert found.square_row_centred.item() > 1
        assert found.square_double_centred.item() == pytest.approx(0, abs=1e-12)


def test_statistics_on_a_grid_convert_to_statistics_in_a_line():
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
def test_statistics_with_a_bias_on_the_grid_convert_to_a_line(causal):
    """No bias over 1-D offsets yields the same scores, so the reference is the dense array."""
    zero = torch.zeros(1, 2, N, 1, dtype=torch.float64)
    bias = torch.randn(2, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = Scores(zero, zero, bias=bias, causal=causal, grid=(4, 4))
    array = dense(dataclasses.replace(scores, causal=False))
    same_in_line(score_statistics(scores), score_statistics(from_array(array, causal=causal)))


def test_constant_scores_on_a_grid_have_no_share_in_a_line():
    """Orthogonal queries and keys: the scores are rounding errors only."""
    q, k = torch.randn(2, 1, 20, 15, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right_angles = torch.tensor([[0.1, 0.3], [0.3, -0.1]], dtype=torch.float64)
    found = score_statistics(Scores(q * right_angles[0], k * right_angles[1], grid=(3, 5)))
    assert (found.square_row_centred > 0).any()
    assert found.in_line().toeplitz_share.isnan().all()


def test_mass_on_a_grid_accepts_row_and_column_offsets():
    found = pattern_statistics(Scores(ZERO, ZERO, grid=(4, 4)))
    assert found.mass([(0, 1), (0, -1)]).item() == pytest.approx(2 * 12 / N / N)
    assert found.mass([(3, -3), (3, -3)]).item() == pytest.approx(1 / N / N)
