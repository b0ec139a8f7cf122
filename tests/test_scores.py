"""Validation of scores, and statistics for any type and memory layout."""

import dataclasses

import materialised
import pytest
import torch

from attnprobe.statistics import Scores, gradient_product, gradient_statistics, pattern_statistics, score_statistics

Q, K = torch.randn(2, 2, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def spoiled(x, value):
    x = x.clone()
    x[1, 2, 3, 0] = value
    return x


REAL = torch.tensor([[True] * 6, [True, True, False, True, False, False]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"q": Q[0]},
            r"q of shape \(3, 6, 4\) and type torch.float32: must be floating-point with axes \[batch, head, to",
        ),
        ({"q": Q.int()}, r"q of shape \(2, 3, 6, 4\) and type torch.int32"),
        ({"q": Q[:, :, :0], "k": K[:, :, :0]}, r"q of shape \(2, 3, 0, 4\)"),
        ({"k": K[..., :3]}, r"k of shape \(2, 3, 6, 3\) .*: must match q, of shape \(2, 3, 6, 4\)"),
        ({"k": K.double()}, r"k of shape \(2, 3, 6, 4\) and type torch.float64: .*torch.float32"),
        ({"q": spoiled(Q, torch.nan)}, r"q of shape \(2, 3, 6, 4\): 1 of its values are NaN or infinite"),
        ({"k": spoiled(K, torch.inf)}, r"k of shape \(2, 3, 6, 4\): 1 of its values are NaN or infinite"),
        ({"bias": torch.zeros(3, 6)}, r"bias of shape \(3, 6\): must be \[head, offset\] = \(3, 11\)"),
        ({"bias": torch.zeros(3, 15)}, r"bias of shape \(3, 15\): must be \[head, offset\] = \(3, 11\), on"),
        (
            {"bias": torch.zeros(3, 14), "grid": (2, 3)},
            r"bias of shape \(3, 14\): must be \[head, offset\] = \(3, 11\) or \(3, 15\)",
        ),
        ({"bias": torch.zeros(2, 15), "grid": (2, 3)}, r"bias of shape \(2, 15\)"),
        ({"bias": torch.full((3, 11), -torch.inf)}, r"bias of shape \(3, 11\): 33 of its values"),
        ({"scale": float("nan")}, "scale=nan: must be finite"),
        ({"real": REAL[:, :5]}, r"real of shape \(2, 5\) .*: must be \[batch, token\] = \(2, 6\)"),
        ({"real": REAL & torch.tensor([[True], [False]])}, "real of sequence 1: is False for all tokens"),
        ({"left_out": REAL[:, :5]}, r"left_out of shape \(2, 5\) .*: must be \[batch, token\] = \(2, 6\)"),
        ({"left_out": REAL}, "real of sequence 0: is False for all tokens"),
        ({"grid": (2, 4)}, r"grid=\(2, 4\): must be \(rows, columns\) with exactly the 6 tokens of q"),
        ({"grid": (-2, -3)}, r"grid=\(-2, -3\)"),
        (
            {"order": torch.tensor([0, 1, 2, 3, 4, 4])},
            r"order of shape \(6,\) and type torch.int64: must be a permutation of 0 ... 5",
        ),
        ({"order": torch.arange(5)}, r"order of shape \(5,\)"),
        ({"order": torch.arange(6.0)}, r"order of shape \(6,\) and type torch.float32"),
        ({"real": REAL.float()}, "real of shape .* and type torch.float32: .* torch.bool"),
        ({"bias": torch.zeros(3, 11, dtype=torch.cfloat)}, "bias of shape .* and type torch.complex64"),
        ({"q": Q.to("meta"), "k": K}, "k of shape .* on meta"),
        (
            {"q": 1e20 * Q, "k": 1e20 * K},
            r"q, k of shape \(2, 3, 6, 4\): scores of up to .* exceed the range of torch.fl",
        ),
        ({"bias": torch.full((3, 11), torch.finfo(torch.float32).min)}, "scores of up to 3.4e.38 exceed the range"),
    ],
)
def test_invalid_scores_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Scores(**{"q": Q, "k": K, **options}).checked()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: pattern_statistics(s, top=7), "top=7: must be 0 ... 6"),
        (lambda s: pattern_statistics(s, top=-1), "top=-1"),
        (lambda s: pattern_statistics(s, tokens=torch.zeros(1, 6)), r"tokens of shape \(1, 6\) and type torch.float32"),
        (lambda s: pattern_statistics(s).mass([]), r"offsets=\[\]: must be one or more, each up to ±\[5\]"),
        (lambda s: pattern_statistics(s).mass([6]), r"offsets=\[6\]"),
        (lambda s: pattern_statistics(dataclasses.replace(s, grid=(2, 3))).mass([(1, 3)]), r"up to ±\[1, 2\]"),
        (lambda s: pattern_statistics(dataclasses.replace(s, grid=(2, 3))).mass([1]), r"offsets=\[1\]"),
        (lambda s: gradient_statistics(s, Q[:, :2], K), r"v of shape \(2, 2, 6, 4\): must be \[2, 3, 6, 'd_head'\]"),
        (lambda s: gradient_statistics(s, Q, K[..., :2]), r"dz of shape \(2, 3, 6, 2\)"),
        (lambda s: gradient_statistics(s, Q, spoiled(K, torch.nan)), r"dz of shape \(2, 3, 6, 4\): 1 of its values"),
        (lambda s: gradient_statistics(s, Q, K.int()), r"dz of shape .* and type torch.int32"),
        (
            lambda s: gradient_statistics(s, Q, K).along_offsets(torch.full((11,), torch.nan)),
            "11 of its values are NaN",
        ),
        (lambda s: gradient_statistics(s, Q, K, [(Q[0, 0, 0], K)]), "left factor of direction 0 of shape"),
        (lambda s: gradient_statistics(s, Q, K, [(Q, K[..., :2])]), r"right factor of direction 0 of shape"),
        (lambda s: gradient_statistics(s, Q, K, [(Q[0, 0], K[0, 0]), (Q[:, :2], K)]), "left factor of direction 1"),
        (lambda s: gradient_statistics(s, Q, K).along_offsets(torch.ones(6).double()), r"function of shape \(6,\)"),
        (lambda s: gradient_statistics(s, Q, K, inputs=torch.zeros(1, 6, 2)), r"inputs of shape \(1, 6, 2\)"),
        (lambda s: gradient_product((s, Q, K), (s, Q, K[:1])), "dz of shape"),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call(Scores(Q, K))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Given the rounded queries and keys, the error is that of float32."""
    scores = Scores((3 * Q).to(dtype), K.to(dtype), bias=torch.randn(3, 11).to(dtype))
    expected = materialised.pattern_statistics(scores)
    found = pattern_statistics(scores)
    torch.testing.assert_close(found.mass_by_offset, expected["mass_by_offset"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.entropy, expected["entropy"], rtol=1e-5, atol=1e-6)
    kernel = materialised.score_statistics(scores)["offset_profile"]
    torch.testing.assert_close(score_statistics(scores).offset_profile, kernel, rtol=1e-10, atol=1e-12)


def test_statistics_ignore_memory_layout_and_autograd():
    plain = Scores(Q, K)
    odd = Scores(Q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(), K.mT.contiguous().mT)
    for statistics in (pattern_statistics, score_statistics):
        one, other = statistics(plain), statistics(odd)
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, equal_nan=True)
                assert not b.requires_grad


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_scores_of_any_size_have_a_pattern(size):
    """If one key has all the weight, the entropy is zero instead of the difference of large numbers."""
    scores = Scores(size * Q, size * K)
    found, expected = pattern_statistics(scores), materialised.pattern_statistics(scores)
    torch.testing.assert_close(found.mass_by_offset, expected["mass_by_offset"], rtol=1e-4, atol=1e-4)
    assert (found.entropy >= 0).all()
    torch.testing.assert_close(found.entropy, expected["entropy"], rtol=1e-3, atol=1e-4)


def test_several_directions_and_functions_of_the_offset_at_once():
    v, dz = torch.randn(2, 2, 3, 6, 4)
    found = gradient_statistics(Scores(Q, K), v, dz, [(Q[0, 0], K[0, 0]), (Q, K)])
    assert found.along.shape == (2, 3, 2)
    functions = torch.randn(5, 11, dtype=torch.float64)
    each = torch.stack([found.along_offsets(function) for function in functions], dim=-1)
    torch.testing.assert_close(found.along_offsets(functions), each)
    # a direction that is the same for every key of a query is invisible to the softmax
    blind = gradient_statistics(Scores(Q, K), v, dz, [(torch.randn(6, 1), torch.ones(6, 1))])
    torch.testing.assert_close(blind.along, torch.zeros(2, 3, 1, dtype=torch.float64), atol=1e-5, rtol=0)


def test_small_gradients_keep_their_squares():
    v, dz = torch.randn(2, 2, 3, 6, 4)
    one, small = (gradient_statistics(Scores(Q, K), v, size * dz) for size in (1.0, 1e-30))
    torch.testing.assert_close(small.square * 1e60, one.square, rtol=1e-5, atol=0)
    torch.testing.assert_close(small.by_offset * 1e30, one.by_offset, rtol=1e-5, atol=1e-6)
    assert torch.equal(gradient_statistics(Scores(Q, K), v, 0 * dz).square, torch.zeros(2, 3).double())


def test_a_large_negative_bias_does_not_change_visibility():
    """Keys with scores near -1e5 are visible; keys after a causal query are not."""
    bias = torch.randn(3, 11) - 1e5
    scores = Scores(Q, K, bias=bias, causal=True, order=torch.tensor([3, 1, 0, 5, 2, 4]))
    plain = dataclasses.replace(scores, order=None)
    for one in (scores, plain):
        expected = materialised.score_statistics(one)
        torch.testing.assert_close(score_statistics(one).mean, expected["mean"])
        torch.testing.assert_close(score_statistics(one).square_row_centred, expected["square_row_centred"])
        found = pattern_statistics(one)
        assert (found.mass_by_offset[..., 6:] == 0).all()
        # the resolution of float32 at such scores is 1e-2
        torch.testing.assert_close(
            found.mass_by_offset, materialised.pattern_statistics(one)["mass_by_offset"], atol=2e-2, rtol=0
        )


def test_sums_on_a_tall_grid_are_accurate():
    zero = torch.zeros(1, 1, 4000, 1)
    found = pattern_statistics(Scores(zero, zero, grid=(1000, 4)))
    assert found.mass_by_offset.sum().item() == pytest.approx(1, abs=3e-7)
    torch.testing.assert_close(found.mass_by_offset[0, 0], found.uniform_by_offset[0], rtol=1e-6, atol=0)


def test_a_small_signal_on_large_row_constants_is_measured():
    """Noise of size 1e-5 keeps its share after adding constants of 1."""
    noise = 1e-5 * torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(8, dtype=torch.float64).expand(1, 1, 8, 8)
    share = score_statistics(Scores(noise, eye, scale=1.0)).toeplitz_share
    torch.testing.assert_close(
        score_statistics(Scores(noise + 1, eye, scale=1.0)).toeplitz_share, share, rtol=1e-6, atol=0
    )


def test_a_constant_in_the_bias_costs_no_accuracy():
    bias = torch.exp(-torch.arange(-5, 6).abs().double())[None]
    zero = torch.zeros(1, 1, 6, 1, dtype=torch.float64)
    low, high = (score_statistics(Scores(zero, zero, bias=level + bias)) for level in (0.0, 2.0**20))
    for name in ("offset_profile", "square_row_centred", "std"):
        torch.testing.assert_close(getattr(high, name), getattr(low, name), rtol=1e-9, atol=1e-9)


def test_top_keys_are_those_that_a_query_sees():
    found = pattern_statistics(Scores(100 * Q, 100 * K, causal=True), top=3)
    seen = torch.arange(6)[:, None] + 1 > torch.arange(3)
    assert torch.equal(found.top_keys >= 0, seen.expand(2, 3, 6, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device (or hidden: CUDA_VISIBLE_DEVICES)")
@pytest.mark.parametrize("causal", [False, True])
def test_gpu_and_cpu_agree(causal):
    v, dz = torch.randn(2, 2, 3, 6, 4)
    here, there = (
        Scores(Q.to(device), K.to(device), bias=torch.linspace(0, 1, 33).view(3, 11).to(device), causal=causal)
        for device in ("cpu", "cuda")
    )
    found = [
        (score_statistics(s), pattern_statistics(s, top=2), gradient_statistics(s, v.to(s.q), dz.to(s.q)))
        for s in (here, there)
    ]
    for one, other in zip(*found, strict=True):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
