"""Positional and symbolic scores, against definitions and dense scores in float64."""

from dataclasses import replace

import materialised
import numpy as np
import pytest
import torch
from scipy.stats import t
from support import N, batch_of, checkpoint, own, scores_by_layer

from attnprobe import positions
from attnprobe.config import DataSpec
from attnprobe.measures import block_swap
from attnprobe.measures.block_swap import NUMBERS, Pool, covariances, draw_swap
from attnprobe.randomness import numpy_generator
from attnprobe.results import reasons
from attnprobe.statistics import Scores

FEW = {"sequences": 24, "nulls": 2}
NAMES = [number.name for number in NUMBERS]


def draws(sequences, seed=0):
    return torch.from_numpy(numpy_generator(seed, "positions block_swap").random((sequences, 3)))


def pooled(swap, before, after, visible):
    """Return both correlations, [head, 2], and those without each sequence, from dense scores by loops."""
    sums = np.zeros((len(before), before.shape[1], 4))
    used = np.zeros(len(before), dtype=bool)
    for b, keys in enumerate(swap.keys.tolist()):
        content = swap.order[b].tolist()
        # the position of each token after the swap
        moved = [content.index(key) for key in keys]
        for i in range(before.shape[2]):
            if i in keys or not swap.queries[b, i] or not visible[i, keys].all():
                continue
            used[b] = True
            s, same_place, same_token = before[b, :, i, keys], after[b, :, i, keys], after[b, :, i, moved]
            s, same_place, same_token = (x - x.mean(-1, keepdim=True) for x in (s, same_place, same_token))
            pairs = [(s, same_place), (s, same_token), (s, s), (same_place, same_place)]
            sums[b] += torch.stack([(x * y).sum(-1) for x, y in pairs], -1).numpy()

    def correlations(total):
        return total[:, :2] / np.sqrt(total[:, 2] * total[:, 3])[:, None]

    total = sums.sum(0)
    return correlations(total), np.stack([correlations(total - sums[b]) for b in np.flatnonzero(used)])


def expected_of(ckpt, lengths, sequences, causal):
    """Return value and interval of both numbers in each layer, from two passes of the network in float64."""
    model, uniform = ckpt.model.double(), draws(sequences)
    n, start = ckpt.data.n, ckpt.model.n_prefix
    order, keys, queries = torch.arange(n).expand(sequences, -1).clone(), [], torch.zeros(sequences, n).bool()
    for b, length in enumerate(lengths[:sequences]):
        swap = draw_swap(torch.ones(1, length, dtype=torch.bool), uniform[b : b + 1], causal, None)
        order[b, :length], queries[b, :length] = swap.order[0], swap.queries[0]
        keys.append(swap.keys[0])
    inputs = ckpt.tokens(sequences)
    swapped = torch.stack([tokens[of_row] for tokens, of_row in zip(inputs, order, strict=True)])
    real = torch.tensor(lengths[:sequences])
    caches = [model.run_with_cache(x, lengths=real)[1] for x in (inputs, swapped)]
    visible = torch.ones(n, n).tril().bool() if causal else torch.ones(n, n).bool()
    result = []
    for layer in range(model.cfg.n_layers):
        dense = [cache[f"blocks.{layer}.attn.hook_attn_scores"][:, :, start:, start:] for cache in caches]
        longest = max(map(len, keys))
        assert all(len(x) == longest for x in keys)
        swap = block_swap.Swap(order, torch.stack(keys), queries)
        value, without_one = pooled(swap, *dense, visible)
        g = len(without_one)
        error = np.sqrt((g - 1) / g * np.square(without_one - without_one.mean(0)).sum(0))
        result.append((value, t.ppf(0.975, g - 1) * error))
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {"n_layers": 2},
        {"position": "rotary", "causal": True, "n_layers": 2},
        {"position": "alibi"},
        {"position": "relative", "causal": True},
        {"position": "learned", "pooling": "cls"},
        {"position": "learned", "grid": (3, 4), "score_bias": "learned"},
        {"position": "sinusoidal", "padded": True, "n_layers": 2},
        {"position": "alibi", "padded": True, "causal": True, "n_layers": 2},
    ],
    ids=str,
)
def test_scores_are_those_of_two_dense_passes(settings):
    def spread(model):
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))

    settings = dict(settings)
    grid, padded = settings.pop("grid", None), settings.pop("padded", False)
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    lengths = np.array([N, 7, 9] * 10) if padded else None
    ckpt = checkpoint(data, lengths, edit=spread, **settings)
    result = positions(ckpt, **FEW)
    expected = expected_of(ckpt, np.full(30, N) if lengths is None else lengths, 24, settings.get("causal", False))
    for layer, (value, half) in enumerate(expected):
        for i, name in enumerate(NAMES):
            here = result.sel(layer=layer)
            assert here[name].values == pytest.approx(value[:, i], abs=1e-5)
            width = here[f"{name}_interval"].sel(bound="upper") - here[name]
            assert width.values == pytest.approx(half[:, i], abs=1e-5)
    assert (abs(result[NAMES].to_array()) < 0.9).any()


def planted(model):
    """Let head 0 depend on positions only, via one-hot position vectors, and head 1 on tokens only."""
    attention = model.blocks[0].attn
    model.position.weight.zero_()
    model.position.weight[:, :N] = 10 * torch.eye(N)
    model.embed.weight[:, :N] = 0
    generator = torch.Generator().manual_seed(0)
    for side in (attention.q, attention.k):
        side.weight.zero_()
        side.weight[:16, :N] = torch.randn(16, N, generator=generator)
        side.weight[16:, N:] = torch.randn(16, 32 - N, generator=generator)


def test_planted_heads_are_purely_positional_and_purely_symbolic():
    result = positions(checkpoint(d_model=32, norm="none", edit=planted, init_std=1.0), **FEW).sel(layer=0)
    assert result["positional_score"].values[0] == pytest.approx(1)
    assert result["symbolic_score"].values[1] == pytest.approx(1)
    assert (abs(result["symbolic_score"][0]) < 0.7) and (abs(result["positional_score"][1]) < 0.7)
    null = result["positional_score_null"]
    assert null.sel(null="permuted").isnull().all() and null.sel(null="initial").notnull().all()
    why = "permuted positions leave a positional head positional and a symbolic head symbolic"
    assert (reasons(result)["positional_score_null"].sel(null="permuted") == why).all()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("of_position", [0.0, 0.3, 1.0])
def test_values_without_structure(size, of_position):
    """Independent keys of position and of content, with shares p and 1 - p of the variance of the scores.

    The expected correlations are p - (1 - p) / (2 m - 1) and (1 - p) - p / (2 m - 1).
    """
    sequences, n = 1500, 4 if size == 1 else 24
    generator = torch.Generator().manual_seed(size)
    q, content, position = torch.randn(3, sequences, 1, n, 4, generator=generator, dtype=torch.float64)
    swap = draw_swap(torch.ones(sequences, n, dtype=torch.bool), draws(sequences), causal=False, window=None)
    assert swap.keys.shape[1] == 2 * size
    moved = content[torch.arange(sequences)[:, None], :, swap.order].transpose(1, 2)
    p, pool = of_position, Pool()
    scores = [Scores(q, p**0.5 * position + (1 - p) ** 0.5 * k) for k in (content, moved)]
    pool.add(0, covariances(swap, *scores))
    found = pool.variables(0.95)
    baseline = 1 / (2 * size - 1)
    for name, expected in zip(NAMES, (p - (1 - p) * baseline, 1 - p - p * baseline), strict=True):
        assert found[name].item() == pytest.approx(expected, abs=0.03)
    # scores that have nothing to do with those of the first pass
    pool = Pool()
    pool.add(0, covariances(swap, scores[0], Scores(*torch.randn(2, sequences, 1, n, 4, generator=generator).double())))
    assert [pool.variables(0.95)[name].item() for name in NAMES] == pytest.approx([0, 0], abs=0.03)


def test_fewer_queries_at_a_time_give_the_same_sums(monkeypatch):
    ckpt = checkpoint(position="relative", causal=True)
    (scores,), (after,) = (scores_by_layer(ckpt.model, x) for x in (ckpt.tokens(5), ckpt.tokens(10)[5:]))
    swap = draw_swap(torch.ones(5, N, dtype=torch.bool), draws(5), causal=True, window=None)
    expected = covariances(swap, scores, after)
    monkeypatch.setattr(block_swap, "ELEMENTS", 1)
    for one, other in zip(covariances(swap, scores, after), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("n", [*range(1, 9), 16, 17, 33])
def test_blocks_are_disjoint_runs_that_a_query_sees(n, causal, window):
    swap = draw_swap(torch.ones(60, n, dtype=torch.bool), draws(60, n), causal, window)
    together = n if window is None else min(n, window + 1)
    size = swap.keys.shape[1] // 2
    assert size == max(together // 8, 2 if together > 4 else 1)
    if n < 3:
        assert not swap.queries.any() and (swap.order == torch.arange(n)).all()
        return
    first, second = swap.keys.unflatten(1, (2, size)).unbind(1)
    for block in (first, second):
        assert (block.diff() == 1).all()
    assert (first[:, -1] < second[:, 0]).all() and (second[:, -1] < n).all()
    for order, keys, a, b in zip(swap.order, swap.keys, first, second, strict=True):
        assert order[a].equal(b) and order[b].equal(a)
        assert (order == torch.arange(n)).sum() == n - len(keys)
    assert (swap.queries.sum(1) == n - 2 * size).all()
    scores = Scores(torch.zeros(60, 1, n, 1), torch.zeros(60, 1, n, 1), causal=causal, window=window)
    visible = materialised.dense(replace(scores, q=scores.q[:1], k=scores.k[:1]))[0, 0].isfinite()
    seen = torch.stack([visible[:, keys].all(1) for keys in swap.keys]) & swap.queries
    assert seen.any(1).all()
    assert covariances(swap, scores, scores).queries[:, 0].equal(seen.sum(1).double())
    ends = torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)[:, None].expand(2, 3)
    edges = draw_swap(torch.ones(2, n, dtype=torch.bool), ends, causal, window).keys
    assert edges[0].tolist() == list(range(2 * size))
    assert edges[1].tolist() == list(range(n - 2 * size - causal, n - causal))


def test_tokens_that_are_not_measured_stay():
    measured = torch.rand(300, 16, generator=torch.Generator().manual_seed(0)) < 0.7
    swap = draw_swap(measured, draws(300), causal=False, window=None)
    moved = swap.order != torch.arange(16)
    assert not (moved & ~measured).any() and not (swap.queries & ~measured).any() and not (swap.queries & moved).any()
    long_enough = measured.sum(1) > 4
    assert not long_enough.all() or measured.sum(1).min() > 4
    assert (moved.sum(1) == 4 * long_enough).all() and swap.queries.any(1).equal(long_enough)
    for keys, row in zip(swap.keys[long_enough], measured[long_enough], strict=True):
        rank = row.cumsum(0)[keys]
        assert rank.unflatten(0, (2, 2)).diff().eq(1).all()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("position", ["learned", "alibi"])
def test_scores_of_sequences_that_are_too_short_are_undefined(n, position):
    data = DataSpec(n=n, inputs="tokens", classes=2, vocabulary=6)
    result = positions(checkpoint(data, position=position), sequences=4, nulls=1)
    for name in NAMES:
        assert result[name].isnull().all()
        assert (reasons(result)[name] == "no query sees two blocks of keys, or the sequences are too short").all()
    assert positions(checkpoint(replace(data, n=3)), sequences=4, nulls=1, window=1)[NAMES].notnull().to_array().all()


def test_scores_that_are_the_same_for_all_keys_are_undefined():
    def equal(model):
        model.embed.weight[:] = model.embed.weight[0].clone()

    result = positions(checkpoint(position="none", edit=equal), **FEW)
    for name in NAMES:
        assert result[name].isnull().all() and result[f"{name}_interval"].isnull().all()
        assert (reasons(result)[name] == "all scores of each query are equal").all()


def test_differences_that_are_rounding_errors_are_none():
    q, k = torch.randn(2, 5, 2, N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    swap, pool = draw_swap(torch.ones(5, N, dtype=torch.bool), draws(5), causal=False, window=None), Pool()
    k = 1000 + k * torch.tensor([1e-10, 1.0], dtype=torch.float64)[:, None, None]  # one factor per head
    pool.add(0, covariances(swap, Scores(q, k), Scores(q, k)))
    assert np.isnan(pool.variables(0.95)["positional_score"].values).tolist() == [[True, False]]


def test_the_swapped_batch_has_the_tokens_of_the_order():
    tokens = torch.arange(24).view(2, 12)
    swap = draw_swap(torch.ones(2, 12, dtype=torch.bool), draws(2), causal=False, window=None)
    _, batch = block_swap.swapped(own(checkpoint().model), batch_of(tokens), swap)
    assert batch.inputs.equal(tokens.gather(1, swap.order))
