"""One score: fused and explicit attention agree, hooks are never ignored, and a slow loop says the same."""

import math

import pytest
import torch

from attnprobe.config import ModelConfig
from attnprobe.model.attention import Attention
from attnprobe.scores import Heads, Scores
from attnprobe.tables import POSITIONS

N = 7


def layer(position="learned", causal=False):
    torch.manual_seed(0)
    config = ModelConfig(d_model=12, n_heads=2, position=position, causal=causal)
    attention = Attention(config).double()
    encoding = POSITIONS[position](config, N).double()
    for weight in encoding.parameters():
        torch.nn.init.normal_(weight)
    return attention, encoding


def form(encoding, causal, padded, batch=2, **more):
    """Return the biases and the mask of a layer's scores."""
    real = torch.tensor([[True] * N, [True] * (N - 3) + [False] * 3]) if padded else None
    empty = torch.empty(batch, 2, N, 1, dtype=torch.float64)
    return Scores(empty, empty, bias=encoding.bias(N), causal=causal, real=real, **more)


def run(attention, x, encoding, *more, **named):
    return attention(x, encoding, form(encoding, *more, **named), Heads.attend)


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_and_explicit_attention_agree_in_value_and_gradient(position, causal, padded):
    attention, encoding = layer(position, causal)
    x = torch.randn(2, N, 12, dtype=torch.float64)

    def both():
        attention.zero_grad()
        start = x.clone().requires_grad_()
        out = run(attention, start, encoding, causal, padded)
        out.square().sum().backward()
        return [out.detach(), start.grad, *(weight.grad for weight in attention.parameters())]

    fused = both()
    seen = []
    attention.hook_attn_scores.add_hook(lambda tensor, hook: seen.append(tensor))
    explicit = both()
    assert len(seen) == 1
    for one, other in zip(fused, explicit, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["none", "alibi"])
@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("elements", [2**24, 2 * 2 * N])
@pytest.mark.parametrize("padded", [False, True])
def test_a_proximity_bias_is_the_same_in_both_paths_and_learns_the_same(position, grid, elements, padded, monkeypatch):
    monkeypatch.setattr("attnprobe.scores.ELEMENTS", elements)
    attention, encoding = layer(position)
    x = torch.randn(2, N, 12, dtype=torch.float64)
    proximity = torch.randn(2, 3 * 5 if grid else 11, dtype=torch.float64, requires_grad=True)
    found = []
    for _ in range(2):
        out = run(attention, x, encoding, False, padded, token_bias=proximity, grid=grid, prefix=1)
        found += [out, torch.autograd.grad(out.square().sum(), proximity)[0]]
        attention.hook_attn_scores.add_hook(lambda tensor, hook: None)
    assert found[1].abs().min() > 0
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["none", "alibi", "relative"])
def test_scores_are_what_a_loop_computes(position):
    _, encoding = layer(position)
    q, k = torch.randn(2, 2, 2, N, 6, dtype=torch.float64)
    bias = encoding.bias(N)
    found = form(encoding, True, True).of(q, k).dense()
    for b in range(2):
        for h in range(2):
            for i in range(N):
                for j in range(N):
                    expected = (q[b, h, i] @ k[b, h, j] / math.sqrt(6)).item()
                    expected += 0 if bias is None else bias[h, j - i + N - 1].item()
                    hidden = j > i or (b == 1 and j >= N - 3)
                    assert found[b, h, i, j].item() == pytest.approx(-math.inf if hidden else expected, abs=1e-12)


def test_nothing_of_size_n_by_n_exists_where_nothing_is_added():
    _, encoding = layer("learned")
    assert form(encoding, False, False).added is None
    q = torch.randn(2, 2, N, 6, dtype=torch.float64)
    assert "added" not in vars(form(encoding, True, False).of(q, q)), "a causal mask is the kernel's own"


@pytest.mark.parametrize("position", ["alibi", "relative"])
@pytest.mark.parametrize("queries_at_once", [1, 3])
def test_a_long_sequence_takes_its_biases_a_few_queries_at_a_time(position, queries_at_once, monkeypatch):
    attention, encoding = layer(position)
    x = torch.randn(2, N, 12, dtype=torch.float64, requires_grad=True)
    found = []
    for elements in (2**24, queries_at_once * 2 * 2 * N):
        monkeypatch.setattr("attnprobe.scores.ELEMENTS", elements)
        asked = []
        added_to = Scores.added_to
        monkeypatch.setattr(Scores, "added_to", lambda s, *at: asked.append(at) or added_to(s, *at))  # noqa: B023
        out = run(attention, x, encoding, True, True)
        monkeypatch.setattr(Scores, "added_to", added_to)
        found.append((out, torch.autograd.grad(out.square().sum(), x)[0], len(asked)))
    assert [blocks for *_, blocks in found] == [1, -(-N // queries_at_once)]
    torch.testing.assert_close(found[0][:2], found[1][:2])


@pytest.mark.parametrize("name", ["hook_attn_scores", "hook_pattern"])
def test_edits_at_score_and_pattern_take_effect(name):
    attention, encoding = layer()
    x = torch.randn(2, N, 12, dtype=torch.float64)
    start = run(attention, x, encoding, False, False)
    value = math.log(1 / N) if name == "hook_attn_scores" else 1 / N
    getattr(attention, name).add_hook(lambda tensor, hook: torch.full_like(tensor, value))
    edited = run(attention, x, encoding, False, False)
    uniform = attention.o(attention.v(x).mean(1, keepdim=True).expand_as(x))
    torch.testing.assert_close(edited, uniform)
    assert not torch.allclose(edited, start)


def test_a_plain_torch_hook_and_a_backward_hook_also_see_the_pattern():
    attention, encoding = layer()
    x = torch.randn(2, N, 12, dtype=torch.float64, requires_grad=True)
    seen = []
    handle = attention.hook_pattern.register_forward_hook(lambda module, given, made: seen.append(made.shape))
    run(attention, x, encoding, False, False)
    handle.remove()
    attention.hook_attn_scores.add_hook(lambda gradient, hook: seen.append(gradient.shape), dir="bwd")
    run(attention, x, encoding, False, False).sum().backward()
    assert seen == [(2, 2, N, N)] * 2


def test_weights_in_transformerlens_shapes_are_the_maps():
    attention, encoding = layer("none")
    x = torch.randn(2, N, 12, dtype=torch.float64)
    seen = {}
    for name in ("q", "k", "v", "z"):
        getattr(attention, f"hook_{name}").add_hook(lambda tensor, hook, name=name: seen.update({name: tensor}))
    out = run(attention, x, encoding, False, False)
    for name, weight in (("q", attention.W_Q), ("k", attention.W_K), ("v", attention.W_V)):
        bias = getattr(attention, name).bias.unflatten(0, (2, 6))
        torch.testing.assert_close(seen[name], torch.einsum("btm,hmd->bthd", x, weight) + bias)
    torch.testing.assert_close(out, torch.einsum("bthd,hdm->btm", seen["z"], attention.W_O) + attention.o.bias)
