import math

import pytest
import torch

from attnprobe.statistics.geometry import Geometry
from attnprobe.statistics.proximity import proximity_statistics

N = 16


def toeplitz(kernel):
    """Return [query, key] from a function of the offset."""
    offset = torch.arange(N) - torch.arange(N)[:, None]
    return kernel(offset.double())


@pytest.mark.parametrize("causal", [False, True])
def test_a_planted_toeplitz_score_has_share_1_whatever_the_row_constants(causal):
    torch.manual_seed(0)
    scores = toeplitz(lambda o: torch.exp(-o.abs() / 3) + 0.1 * o) + 5 * torch.randn(N, 1, dtype=torch.float64)
    found = proximity_statistics(scores, Geometry((N,), causal), (1, 2))
    assert found.toeplitz_share.item() == pytest.approx(1)


def test_a_random_score_has_share_of_about_two_over_n():
    """2 n - 2 of the n (n - 1) directions that a row-centred score has; (2 n - 1) / n² to leading order."""
    scores = torch.randn(400, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = proximity_statistics(scores, Geometry((4, 4)), (1, 2)).toeplitz_share
    assert grid.mean().item() == pytest.approx((7 * 7 - 1) / (N * (N - 1)), abs=4 * grid.std().item() / 20)
    share = proximity_statistics(scores, Geometry((N,)), (1, 2)).toeplitz_share
    assert share.mean().item() == pytest.approx((2 * N - 2) / (N * (N - 1)), abs=4 * share.std().item() / 20)
    assert share.mean().item() == pytest.approx((2 * N - 1) / N**2, rel=0.1)


@pytest.mark.parametrize(("shape", "causal"), [((N,), False), ((N,), True), ((4, 4), False)])
def test_uniform_attention_has_every_ratio_1(shape, causal):
    found = proximity_statistics(torch.zeros(N, N), Geometry(shape, causal), (1, 2))
    assert found.mean_distance_ratio.item() == pytest.approx(1)
    assert found.near_mass.tolist() == pytest.approx([1, 1])
    if not causal:
        assert found.entropy.item() == pytest.approx(math.log(N))
    if shape == (N,) and not causal:
        assert found.mean_distance.item() == pytest.approx((N**2 - 1) / (3 * N))


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e6 / 3])
def test_a_constant_score_has_no_share_and_no_contrast(value):
    found = proximity_statistics(torch.full((N, N), value, dtype=torch.float64), Geometry((N,)), (1, 2))
    assert math.isnan(found.toeplitz_share)
    assert math.isnan(found.proximity_contrast)


@pytest.mark.parametrize("causal", [False, True])
def test_statistics_follow_their_definitions(causal):
    """A loop over pairs, straight from the definitions."""
    scores = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = proximity_statistics(scores, Geometry((N,), causal), (1, 3))
    near, far, everything, distance, entropy, mass, uniform = [], [], [], 0.0, 0.0, [0.0, 0.0], [0.0, 0.0]
    for i in range(N):
        keys = range(i + 1 if causal else N)
        row = scores[i, : len(keys)]
        for j, weight in zip(keys, row.softmax(-1).tolist(), strict=True):
            centred, d = (row[j] - row.mean()).item(), abs(i - j)
            everything.append(centred)
            (near if 0 < d <= 3 else far if d > 3 else []).append(centred)
            distance += weight * d / N
            entropy -= weight * math.log(weight) / N
            for place, within in enumerate((1, 3)):
                mass[place] += weight * (0 < d <= within)
                uniform[place] += (0 < d <= within) / len(keys)
    sd = math.sqrt(sum(c * c for c in everything) / len(everything))
    contrast = (sum(near) / len(near) - sum(far) / len(far)) / sd
    assert found.proximity_contrast.item() == pytest.approx(contrast)
    assert found.mean_distance.item() == pytest.approx(distance)
    assert found.entropy.item() == pytest.approx(entropy)
    assert found.near_mass.tolist() == pytest.approx([m / u for m, u in zip(mass, uniform, strict=True)])


def test_row_constants_change_nothing():
    torch.manual_seed(0)
    scores = torch.randn(N, N, dtype=torch.float64)
    one, other = (proximity_statistics(x, Geometry((N,)), (1, 2)) for x in (scores, scores + torch.randn(N, 1)))
    for name in one.__dataclass_fields__:
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_weights_by_offset_sum_to_the_queries():
    places = Geometry((N,))
    weight = proximity_statistics(torch.randn(3, N, N), places, (1, 2)).pattern_by_offset
    torch.testing.assert_close(weight @ places.count, torch.full((3,), float(N), dtype=torch.float64))
