"""Streaming statistics against the materialised reference, over random shapes, masks, biases and types."""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec

import materialised
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.scores import Scores
from attnprobe.statistics import blocks, compiled, score
from attnprobe.statistics.gradient import gradient_product, gradient_statistics
from attnprobe.statistics.pattern import pattern_statistics
from attnprobe.statistics.score import covariance, score_statistics

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXAMPLES = 15 if INTERPRETED else 100  # the interpreter takes half a second for each
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture(autouse=True, scope="module", params=["torch", "compiled", "triton"])
def small_blocks(request):
    """Use several blocks, groups, tasks and chunks even at tiny sizes, with each of the three ways.

    The kernels for a GPU run in Triton's interpreter, which has to be chosen before anything imports Triton.
    """
    with pytest.MonkeyPatch.context() as patched:
        for module in (blocks, compiled):
            patched.setattr(module, "FEWEST_QUERIES", 1)
            patched.setattr(module, "QUERIES", 3)
        patched.setattr(blocks, "ELEMENTS", 60)
        patched.setattr(score, "ELEMENTS", 100)
        patched.setattr(score, "BLOCK", 2)
        patched.setattr(score, "SHORT", 6)
        if request.param == "compiled":
            pytest.importorskip("numba")
            patched.setattr(compiled, "BLOCK_BYTES", 500)
            patched.setattr(compiled, "SPAN", 5)
            patched.setattr(compiled, "SHORTEST", 1)
        patched.setattr(compiled, "SMALLEST", 0 if request.param == "compiled" else sys.maxsize)
        if request.param == "triton":
            if find_spec("triton") is None or not INTERPRETED:
                pytest.skip("needs Triton and TRITON_INTERPRET=1")
            kernels = blocks.gpu_kernels("cpu")
            assert kernels is not None
            patched.setattr(kernels, "LANES", 4)
        else:
            patched.setattr(blocks, "gpu_kernels", lambda device: None)
        yield


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "grid": st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "n": st.integers(1, 11),
        "batch": st.integers(1, 3),
        "heads": st.integers(1, 3),
        "d_head": st.integers(1, 5),
        "dtype": st.sampled_from(list(TOLERANCE)),
        "causal": st.booleans(),
        "window": st.none() | st.integers(1, 12),
        "size": st.sampled_from([0.1, 1.0, 3.0]),
        "scale": st.sampled_from([None, 0.7]),
        "bias": st.sampled_from([None, 0.3, 4.0]),
        "bias_on_grid": st.booleans(),
        "real": st.sampled_from(["all", "run", "any"]),
        "order": st.booleans(),
        "sink": st.sampled_from([None, 0.3, 5.0]),
    }
)


def random_scores(
    seed, grid, n, batch, heads, d_head, dtype, causal, window, size, scale, bias, bias_on_grid, real, order, sink
):
    """Return random scores with the drawn options, and a generator for further draws."""
    generator = torch.Generator().manual_seed(seed)
    n = n if grid is None else grid[0] * grid[1]

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    q, k = size * normal(batch, heads, n, d_head) + normal(d_head), size * normal(batch, heads, n, d_head) + 1
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) if grid is not None and bias_on_grid else 2 * n - 1
    bias = None if bias is None else bias * normal(heads, offsets)
    if real == "run":
        ends = torch.randint(0, n + 1, (batch, 2), generator=generator).sort(1).values
        ends[:, 1] = ends[:, 1].clamp(min=1)
        ends[:, 0] = torch.minimum(ends[:, 0], ends[:, 1] - 1)
        real = (torch.arange(n) >= ends[:, :1]) & (torch.arange(n) < ends[:, 1:])
    elif real == "any":
        real = torch.rand(batch, n, generator=generator) < 0.7
        real[torch.arange(batch), torch.randint(n, (batch,), generator=generator)] = True
    real = None if real == "all" else real
    order = torch.randperm(n, generator=generator) if order else None
    window = window if grid is None else None
    sink = None if sink is None else sink * normal(heads)
    return Scores(q, k, scale, bias, causal, real, grid, order, window=window, sink=sink), generator


def close(found, expected, tolerance, scale=None):
    """Assert that each matrix is correct to a tolerance relative to its largest number, or to ``scale``."""
    assert torch.equal(found.isfinite(), expected.isfinite())
    found, expected = found.nan_to_num(), expected.nan_to_num()
    if scale is None:
        scale = expected.abs().flatten(2).amax(-1) if expected.ndim > 2 else expected.abs()
    scale = scale.reshape(scale.shape + (1,) * (expected.ndim - scale.ndim))
    assert ((found - expected).abs() <= tolerance * scale + 1e-300).all(), ((found - expected).abs() / scale).max()


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS)
def test_score_statistics(drawn):
    scores, _ = random_scores(**drawn)
    found, expected = score_statistics(scores), materialised.score_statistics(scores)
    tolerance = 1e-10  # float64 whatever the type of q
    assert torch.equal(found.pairs, expected["pairs"])
    # Numbers that may be close to 0 by chance are compared on the scale of the scores.
    size = expected["square"] + expected["square_row_centred"]
    largest = (size / found.pairs.sum(1, keepdim=True)).sqrt() + 1e-3
    for name in (
        "mean",
        "mean_by_query",
        "mean_by_key",
        "mean_by_offset",
        "centred_by_offset",
        "offset_profile",
        "std",
    ):
        scale = largest * found.pairs.sum(1, keepdim=True).sqrt()
        close(getattr(found, name), expected[name], tolerance, scale)
    for name in ("square", "square_row_centred", "square_double_centred"):
        close(getattr(found, name), expected[name], tolerance, size + 1e-6)
    constant = expected["square_row_centred"] <= 1e-10 * (size + 1e-6)
    shares = [share.masked_fill(constant, torch.nan) for share in (found.toeplitz_share, expected["toeplitz_share"])]
    close(*shares, tolerance, (size / expected["square_row_centred"]).nan_to_num(1.0))
    if scores.grid is not None and (scores.bias is None or scores.bias.shape[1] == 2 * scores.shape[2] - 1):
        line, expected = found.in_line(), materialised.score_statistics(replace(scores, grid=None))
        close(line.offset_profile, expected["offset_profile"], tolerance, scale)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS, other=st.sampled_from([None, 0.5]))
def test_covariance(drawn, other):
    first, generator = random_scores(**drawn)
    q, k = torch.randn(2, *first.shape, 3, generator=generator, dtype=first.q.dtype)
    bias = None if other is None else other * torch.randn(first.shape[1], 2 * first.shape[2] - 1, generator=generator)
    second = Scores(q, k, 0.3, bias, first.causal, first.real, first.grid, window=first.window)
    found = covariance(first, second)
    first = replace(first, order=None)
    visible = materialised.dense(first).isfinite()
    centred = []
    for scores in (first, second):
        s = materialised.dense(scores).masked_fill(~visible, 0.0)
        centred.append((s - s.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)) * visible)
    sizes = [materialised.dense(scores).masked_fill(~visible, 0.0).square().sum((-2, -1)) for scores in (first, second)]
    close(found, (centred[0] * centred[1]).sum((-2, -1)), 1e-10, sizes[0] + sizes[1] + 1e-6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS)
def test_pattern_statistics(drawn):
    scores, generator = random_scores(**drawn)
    n = scores.shape[2]
    tokens = torch.randint(3, (scores.shape[0], n), generator=generator)
    found = pattern_statistics(scores, top=min(2, n), tokens=tokens)
    expected = materialised.pattern_statistics(scores)
    tolerance = TOLERANCE[scores.q.dtype]
    for name in ("mass_by_offset", "mass_by_key"):
        close(getattr(found, name), expected[name], tolerance)
    close(found.uniform_by_offset, expected["uniform_by_offset"], 1e-12, torch.ones(len(scores.q)))
    close(found.entropy, expected["entropy"], tolerance, expected["entropy"] + 1e-3)
    close(found.mass_by_offset.sum(-1), torch.ones(scores.shape[:2]).double(), tolerance)
    if scores.sink is not None:
        s, sink = materialised.dense(scores), scores.sink.double()[None, :, None]
        queries = s.isfinite().any(-1)
        mass = torch.where(queries, (sink - torch.logaddexp(s.logsumexp(-1), sink)).exp(), 0.0)
        close(found.sink_mass, mass.sum(-1) / queries.sum(-1), tolerance, torch.ones(scores.shape[:2]))
    close(found.matched_mass, materialised.matched_mass(scores, tokens), tolerance, torch.ones(scores.shape[:2]))
    best = materialised.pattern(scores).topk(min(2, n))
    close(found.top_weights, best.values, tolerance, torch.ones(scores.shape[:2]))
    at_keys = materialised.pattern(scores).gather(-1, found.top_keys.clamp(min=0)).where(found.top_keys >= 0, 0.0)
    close(at_keys, best.values, tolerance, torch.ones(scores.shape[:2]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS, leading=st.sampled_from([(), ("heads",), (1,), ("batch", 1), ("batch", "heads")]))
def test_gradient_statistics(drawn, leading):
    scores, generator = random_scores(**drawn)
    batch, heads, n = scores.shape
    v, dz = torch.randn(2, batch, heads, n, 3, generator=generator, dtype=scores.q.dtype)
    shape = [*(drawn.get(axis, axis) for axis in leading), n, 2]
    left, right = torch.randn(2, *shape, generator=generator, dtype=scores.q.dtype)
    found = gradient_statistics(scores, v, dz, [(left, right), (right, left[..., :2, :].sum(-2, keepdim=True) + right)])
    gradient = materialised.score_gradient(scores, v, dz)
    tolerance = TOLERANCE[scores.q.dtype]
    # The scale of the terms: if one key has all the weight, a small gradient is the difference of large numbers.
    products = torch.einsum("bhid,bhjd->bhij", dz.double(), v.double()).abs()
    scale = (materialised.pattern(replace(scores, order=None)) * products).sum((-2, -1))
    close(found.by_offset, materialised.by_offset(scores, gradient), tolerance, scale)
    close(found.by_key, gradient.sum(-2), tolerance, scale)
    close(found.square, gradient.square().sum((-2, -1)), tolerance, scale.square())
    directions = [(left, right), (right, left[..., :2, :].sum(-2, keepdim=True) + right)]
    for number, (a, b) in enumerate(directions):
        along = (gradient * (a.double() @ b.double().mT)).sum((-2, -1))
        close(found.along[..., number], along, tolerance, 10 * scale)
    function = torch.randn(found.by_offset.shape[-1], generator=generator, dtype=torch.float64)
    close(found.along_offsets(function), materialised.by_offset(scores, gradient) @ function, tolerance, 10 * scale)
    x = torch.randn(batch, n, 3, generator=generator, dtype=scores.q.dtype)
    bilinear = gradient_statistics(scores, v, dz, inputs=x).bilinear
    x = x.double()[:, None]
    close(bilinear, x.mT @ gradient @ x, tolerance, 10 * scale)
    line = materialised.by_offset(replace(scores, grid=None, bias=None), gradient)
    close(found.in_line().by_offset, line, tolerance, scale)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS)
def test_gradient_product(drawn):
    one, generator = random_scores(**drawn | {"order": True})
    size = (*one.shape, 3)
    v, dz, other_v, other_dz, q, k = torch.randn(6, *size, generator=generator, dtype=one.q.dtype)
    other = Scores(q, k, None, None, one.causal, one.real, one.grid, one.order, window=one.window)
    found = gradient_product((one, v, dz), (other, other_v, other_dz))
    gradients = [materialised.score_gradient(one, v, dz), materialised.score_gradient(other, other_v, other_dz)]
    sizes = [
        (v.double().abs().sum((-2, -1)) * dz.double().abs().sum((-2, -1))) for v, dz in ((v, dz), (other_v, other_dz))
    ]
    close(found, (gradients[0] * gradients[1]).sum((-2, -1)), TOLERANCE[one.q.dtype], sizes[0] * sizes[1])
    unordered = replace(one, order=None), replace(other, order=None)
    product = gradient_product((unordered[0], v, dz), (unordered[1], other_v, other_dz))
    close(found, product, TOLERANCE[one.q.dtype], sizes[0] * sizes[1])  # invariant to permuting both


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn=OPTIONS, prefix=st.integers(0, 2), suffix=st.integers(0, 2), inside=st.booleans())
def test_gradients_with_tokens_that_are_left_out(drawn, prefix, suffix, inside):
    """The gradient of the whole softmax, between the measured tokens, row-centred over those that each query sees."""
    inner, generator = random_scores(**drawn | {"grid": None, "bias_on_grid": False})
    batch, heads, n = inner.shape
    total = n + prefix + suffix

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=inner.q.dtype)

    q, k, v, dz = (normal(batch, heads, total, 3) for _ in range(4))
    bias = None if drawn["bias"] is None else normal(heads, 2 * total - 1)
    tokens = slice(prefix, total - suffix)
    real = torch.ones(batch, total, dtype=torch.bool)
    if inner.real is not None:
        real[:, tokens] = inner.real
    measured = inner.real
    left_out = torch.zeros(batch, total, dtype=torch.bool)
    if inside:
        # Each sequence keeps its first real token.
        left_out = real & (torch.rand(batch, total, generator=generator) < 0.3)
        left_out[torch.arange(batch), prefix + real[:, tokens].int().argmax(1)] = False
        measured = (real & ~left_out)[:, tokens]
    scores = Scores(
        q,
        k,
        None,
        bias,
        inner.causal,
        real=real,
        order=inner.order,
        prefix=prefix,
        suffix=suffix,
        window=inner.window,
        sink=inner.sink,
        left_out=left_out if inside else None,
    )
    found = gradient_statistics(scores, v, dz)
    whole = replace(scores, prefix=0, suffix=0, order=None, left_out=None)
    gradient = materialised.score_gradient(whole, v, dz)[..., tokens, tokens]
    seen = materialised.dense(whole)[..., tokens, tokens].isfinite()
    if measured is not None:
        seen = seen & measured[:, None, :, None] & measured[:, None, None]
    gradient = gradient * seen
    gradient = (gradient - gradient.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)) * seen
    shown = Scores(
        q[:, :, tokens], k[:, :, tokens], None, None, inner.causal, measured, order=inner.order, window=inner.window
    )
    gradient = materialised.rearranged(shown, gradient)
    size = v.double().abs().sum((-2, -1)) * dz.double().abs().sum((-2, -1))
    close(found.by_offset, materialised.by_offset(shown, gradient), TOLERANCE[q.dtype], size)
    close(found.by_key, gradient.sum(-2), TOLERANCE[q.dtype], size)
    close(found.square, gradient.square().sum((-2, -1)), TOLERANCE[q.dtype], size.square())
    close(gradient_product((scores, v, dz), (scores, v, dz)), found.square, TOLERANCE[q.dtype], size.square())
