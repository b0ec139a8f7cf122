"""Each encoding compared with an independent float64 implementation of its formula."""

import math

import numpy as np
import pytest
import torch

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.model.position import ProximityBias
from attnprobe.scores import Heads, Scores
from attnprobe.tables import POSITIONS


def encoding(name, n, **options):
    config = ModelConfig(position=name, **{"d_model": 16, "n_heads": 2, **options})
    return POSITIONS[name](config, n)


def test_sinusoids_match_their_formula():
    waves = encoding("sinusoidal", 7).embed(7)
    for i in range(7):
        for m in range(8):
            angle = i / 10000 ** (2 * m / 16)
            assert waves[i, 2 * m].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert waves[i, 2 * m + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_scores_depend_on_the_offset_only():
    n = 9
    rotary = encoding("rotary", n).double()
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 2, 8, dtype=torch.float64)
    q, k = (rotary.rotate(x.expand(1, n, 2, 8)) for x in (q, k))
    scores = Scores(q.transpose(1, 2), k.transpose(1, 2)).dense()[0]
    for offset in range(-(n - 1), n):
        diagonal = scores.diagonal(offset, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=0, atol=1e-6)
    # ... but they are not constant.
    assert scores[0, 0].std() > 1e-3


def test_rotary_rotates_pairs_by_position_times_frequency():
    n, d = 5, 8
    torch.manual_seed(0)
    x = torch.randn(1, n, 1, d, dtype=torch.float64)
    rotated = encoding("rotary", n).double().rotate(x)
    for i in range(n):
        for m in range(d // 2):
            pair = complex(x[0, i, 0, 2 * m], x[0, i, 0, 2 * m + 1]) * np.exp(1j * i * 10000 ** (-2 * m / d))
            assert rotated[0, i, 0, 2 * m].item() == pytest.approx(pair.real, abs=1e-6)
            assert rotated[0, i, 0, 2 * m + 1].item() == pytest.approx(pair.imag, abs=1e-6)


def test_alibi_with_zero_queries_is_minus_slope_times_distance_exactly():
    n, heads = 6, 4
    bias = encoding("alibi", n, n_heads=heads).bias(n)
    zero = torch.zeros(1, heads, n, 4)
    scores = Scores(zero, torch.randn(1, heads, n, 4), bias=bias).dense()[0]
    for head in range(heads):
        slope = 2.0 ** (-8 * (head + 1) / heads)
        expected = torch.tensor([[-slope * abs(i - j) for j in range(n)] for i in range(n)])
        assert torch.equal(scores[head], expected)


@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_proximity_bias_is_minus_distance_over_length_scale_and_0_for_prepended_tokens(grid, prefix):
    n, config = 6, ModelConfig(score_bias="fixed", length_scale=1.5)
    proximity_bias = ProximityBias(config, DataSpec(n=n, inputs="values", classes=2, grid=grid))
    zero = torch.zeros(1, 2, n + prefix, 4)
    scores = Scores(zero, zero, token_bias=proximity_bias.bias(n), grid=grid, prefix=prefix).dense()[0]
    for i, j in np.ndindex(n, n):
        (a, b), (c, d) = (divmod(i, 3), divmod(j, 3)) if grid else ((0, i), (0, j))
        assert scores[:, prefix + i, prefix + j].tolist() == pytest.approx([-math.hypot(c - a, d - b) / 1.5] * 2)
    assert not scores[:, :prefix].any()
    assert not scores[..., :prefix].any()


def test_the_proximity_bias_of_short_sequences_covers_their_offsets():
    proximity_bias = ProximityBias(ModelConfig(score_bias="learned"), DataSpec(n=6, inputs="values", classes=2))
    with torch.no_grad():
        proximity_bias.weight.copy_(torch.arange(-5.0, 6).expand(2, 11))
    assert proximity_bias.bias(4).tolist() == [[-3, -2, -1, 0, 1, 2, 3]] * 2


def t5_bucket(offset, causal, buckets=32, max_distance=128):
    """Return the bucket of one offset (key minus query), after Raffel et al. 2020."""
    bucket = 0
    if causal:
        distance = max(-offset, 0)
    else:
        buckets //= 2
        bucket = buckets if offset > 0 else 0
        distance = abs(offset)
    exact = buckets // 2
    if distance < exact:
        return bucket + distance
    far = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact))
    return bucket + min(far, buckets - 1)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_biases_use_the_buckets_of_t5(causal):
    n = 200
    relative = encoding("relative", n, causal=causal)
    with torch.no_grad():
        relative.weight.copy_(torch.arange(32.0).expand(2, 32))
    expected = [t5_bucket(offset, causal) for offset in range(-(n - 1), n)]
    assert relative.bias(n)[0].tolist() == expected


def test_a_registered_encoding_rotates_queries(monkeypatch):
    """Register an encoding as the README describes: a class and its name."""
    from attnprobe.model.attention import Attention

    class Backwards(POSITIONS["rotary"]):
        def rotate(self, x):
            return x.flip(1)

    monkeypatch.setitem(POSITIONS, "learned", Backwards)
    config = ModelConfig(position="learned", d_model=16)
    attention = Attention(config)
    seen = {}
    attention.hook_q.add_hook(lambda tensor, hook: seen.update(before=tensor))
    attention.hook_rot_q.add_hook(lambda tensor, hook: seen.update(after=tensor))
    empty = torch.empty(1, 2, 5, 1)
    attention(torch.randn(1, 5, 16), Backwards(config, 5), Scores(empty, empty), Heads.attend)
    assert torch.equal(seen["after"], seen["before"].flip(1))


def test_learned_vectors_are_the_first_rows_of_the_parameter():
    learned = encoding("learned", 5)
    with torch.no_grad():
        learned.weight.normal_()
    assert torch.equal(learned.embed(3), learned.weight[:3])
