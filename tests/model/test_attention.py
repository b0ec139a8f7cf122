"""Fused and explicit attention agree with each other and with a loop, and hooks always take effect."""

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
    """Return `Scores` with the biases and masks of a layer and empty queries and keys."""
    real = torch.tensor([[True] * N, [True] * (N - 3) + [False] * 3]) if padded else None
    empty = torch.empty(batch, 2, N, 1, dtype=torch.float64)
    return Scores(empty, empty, bias=encoding.bias(N), causal=causal, real=real, **more)


def run(attention, x, encoding, *more, **options):
    return attention(x, encoding, form(encoding, *more, **options), Heads.attend)


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_and_explicit_attention_agree_in_value_and_gradient(position, causal, padded):
    attention, encoding = layer(position, causal)
    x = torch.randn(2, N, 12, dtype=torch.float64)

    def output_and_gradients():
        attention.zero_grad()
        inputs = x.clone().requires_grad_()
        out = run(attention, inputs, encoding, causal, padded)
        out.square().sum().backward()
        return [out.detach(), inputs.grad, *(weight.grad for weight in attention.parameters())]

    fused = output_and_gradients()
    seen = []
    attention.hook_attn_scores.add_hook(lambda tensor, hook: seen.append(tensor))
    explicit = output_and_gradients()
    assert len(seen) == 1
    for a, b in zip(fused, explicit, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["none", "alibi"])
@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("elements", [2**24, 2 * 2 * N])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_and_explicit_attention_agree_with_a_proximity_bias(position, grid, elements, padded, monkeypatch):
    monkeypatch.setattr("attnprobe.scores.ELEMENTS", elements)
    attention, encoding = layer(position)
    x = torch.randn(2, N, 12, dtype=torch.float64)
    proximity = torch.randn(2, 3 * 5 if grid else 11, dtype=torch.float64, requires_grad=True)
    results = []
    for _ in range(2):
        out = run(attention, x, encoding, False, padded, token_bias=proximity, grid=grid, prefix=1)
        results += [out, torch.autograd.grad(out.square().sum(), proximity)[0]]
        attention.hook_attn_scores.add_hook(lambda tensor, hook: None)
    assert results[1].abs().min() > 0
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["none", "alibi", "relative"])
def test_scores_match_a_loop(position):
    _, encoding = layer(position)
    q, k = torch.randn(2, 2, 2, N, 6, dtype=torch.float64)
    bias = encoding.bias(N)
    scores = form(encoding, True, True).of(q, k).dense()
    for b in range(2):
        for h in range(2):
            for i in range(N):
                for j in range(N):
                    expected = (q[b, h, i] @ k[b, h, j] / math.sqrt(6)).item()
                    expected += 0 if bias is None else bias[h, j - i + N - 1].item()
                    masked = j > i or (b == 1 and j >= N - 3)
                    assert scores[b, h, i, j].item() == pytest.approx(-math.inf if masked else expected, abs=1e-12)


def test_no_n_by_n_array_exists_without_biases_and_padding():
    _, encoding = layer("learned")
    assert form(encoding, False, False).added is None
    q = torch.randn(2, 2, N, 6, dtype=torch.float64)
    assert "added" not in vars(form(encoding, True, False).of(q, q)), "the attention kernel applies the causal mask"


@pytest.mark.parametrize("position", ["alibi", "relative"])
@pytest.mark.parametrize("queries_per_chunk", [1, 3])
def test_biases_of_long_sequences_are_computed_in_chunks_of_queries(position, queries_per_chunk, monkeypatch):
    attention, encoding = layer(position)
    x = torch.randn(2, N, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for elements in (2**24, queries_per_chunk * 2 * 2 * N):
        monkeypatch.setattr("attnprobe.scores.ELEMENTS", elements)
        calls = []
        added_to = Scores.added_to
        monkeypatch.setattr(Scores, "added_to", lambda s, *rows: calls.append(rows) or added_to(s, *rows))  # noqa: B023
        out = run(attention, x, encoding, True, True)
        monkeypatch.setattr(Scores, "added_to", added_to)
        results.append((out, torch.autograd.grad(out.square().sum(), x)[0], len(calls)))
    assert [chunks for *_, chunks in results] == [1, -(-N // queries_per_chunk)]
    torch.testing.assert_close(results[0][:2], results[1][:2])


@pytest.mark.parametrize("name", ["hook_attn_scores", "hook_pattern"])
def test_edits_of_scores_and_pattern_take_effect(name):
    attention, encoding = layer()
    x = torch.randn(2, N, 12, dtype=torch.float64)
    unedited = run(attention, x, encoding, False, False)
    value = math.log(1 / N) if name == "hook_attn_scores" else 1 / N
    getattr(attention, name).add_hook(lambda tensor, hook: torch.full_like(tensor, value))
    edited = run(attention, x, encoding, False, False)
    uniform = attention.o(attention.v(x).mean(1, keepdim=True).expand_as(x))
    torch.testing.assert_close(edited, uniform)
    assert not torch.allclose(edited, unedited)


def test_plain_torch_hooks_and_backward_hooks_are_called():
    attention, encoding = layer()
    x = torch.randn(2, N, 12, dtype=torch.float64, requires_grad=True)
    seen = []
    handle = attention.hook_pattern.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    run(attention, x, encoding, False, False)
    handle.remove()
    attention.hook_attn_scores.add_hook(lambda gradient, hook: seen.append(gradient.shape), dir="bwd")
    run(attention, x, encoding, False, False).sum().backward()
    assert seen == [(2, 2, N, N)] * 2


def test_weights_in_transformerlens_shapes_reproduce_the_activations():
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
