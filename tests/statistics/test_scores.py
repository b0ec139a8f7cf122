"""What cannot be measured is refused before any work, by name and shape; what can is taken in any type and layout."""

import dataclasses

import materialised
import pytest
import torch

from attnprobe.statistics import Scores, gradient_statistics, pattern_statistics, score_statistics

Q, K = torch.randn(2, 2, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def spoiled(x, value):
    x = x.clone()
    x[1, 2, 3, 0] = value
    return x


REAL = torch.tensor([[True] * 6, [True, True, False, True, False, False]])


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"q": Q[0]}, r"q of shape \(3, 6, 4\) and type torch.float32: must be real numbers over \[batch, head, token"),
        ({"q": Q.int()}, r"q of shape \(2, 3, 6, 4\) and type torch.int32"),
        ({"q": Q[:, :, :0], "k": K[:, :, :0]}, r"q of shape \(2, 3, 0, 4\)"),
        ({"k": K[..., :3]}, r"k of shape \(2, 3, 6, 3\) .*: must be that of q, \(2, 3, 6, 4\)"),
        ({"k": K.double()}, r"k of shape \(2, 3, 6, 4\) and type torch.float64: .*torch.float32"),
        ({"q": spoiled(Q, torch.nan)}, r"q of shape \(2, 3, 6, 4\): 1 of its values are NaN or infinite"),
        ({"k": spoiled(K, torch.inf)}, r"k of shape \(2, 3, 6, 4\): 1 of its values are NaN or infinite"),
        ({"bias": torch.zeros(3, 6)}, r"bias of shape \(3, 6\): must be \[head, offset\] = \(3, 11\)"),
        ({"bias": torch.full((3, 11), -torch.inf)}, r"bias of shape \(3, 11\): 33 of its values"),
        ({"scale": float("nan")}, "scale=nan: must be finite"),
        ({"real": REAL[:, :5]}, r"real of shape \(2, 5\): must be \[batch, token\] = \(2, 6\)"),
        ({"real": REAL}, "real of sequence 1: must be one run of tokens, not 2"),
        ({"real": REAL & False}, "real of sequence 0: must be one run of tokens, not 0"),
        ({"grid": (2, 4)}, r"grid=\(2, 4\): must have the 6 tokens of q"),
        ({"grid": (-2, -3)}, r"grid=\(-2, -3\)"),
        ({"order": torch.tensor([0, 1, 2, 3, 4, 4])}, r"order of shape \(6,\): must be a permutation of 0 ... 5"),
        ({"order": torch.arange(5)}, r"order of shape \(5,\)"),
        ({"real": REAL[:1].expand(2, -1), "grid": (2, 3)}, "real with a grid or an order"),
    ],
)
def test_scores_that_cannot_be(named, said):
    with pytest.raises(ValueError, match=said):
        Scores(**{"q": Q, "k": K, **named})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: pattern_statistics(s, top=7), "top=7: must be 0 ... 6"),
        (lambda s: pattern_statistics(s, top=-1), "top=-1"),
        (lambda s: pattern_statistics(s).mass([]), r"offsets=\[\]: must be one or more, each up to ±\[5\]"),
        (lambda s: pattern_statistics(s).mass([6]), r"offsets=\[6\]"),
        (lambda s: pattern_statistics(dataclasses.replace(s, grid=(2, 3))).mass([(1, 3)]), r"up to ±\[1, 2\]"),
        (lambda s: pattern_statistics(dataclasses.replace(s, grid=(2, 3))).mass([1]), r"offsets=\[1\]"),
        (lambda s: gradient_statistics(s, Q[:, :2], K), r"v of shape \(2, 2, 6, 4\): must be \[2, 3, 6, 'd_head'\]"),
        (lambda s: gradient_statistics(s, Q, K[..., :2]), r"dz of shape \(2, 3, 6, 2\)"),
        (lambda s: gradient_statistics(s, Q, spoiled(K, torch.nan)), r"dz of shape \(2, 3, 6, 4\): 1 of its values"),
        (lambda s: gradient_statistics(s, Q, K, [(Q, K[..., :2])]), r"right factor of direction 0 of shape"),
        (lambda s: gradient_statistics(s, Q, K, [(Q[0, 0], K[0, 0]), (Q[:, :2], K)]), "left factor of direction 1"),
        (lambda s: gradient_statistics(s, Q, K).along_offsets(torch.ones(6).double()), r"function of shape \(6,\)"),
        (lambda s: gradient_statistics(dataclasses.replace(s, order=torch.arange(6)), Q, K), "scores with an order"),
    ],
)
def test_questions_that_have_no_answer(call, said):
    with pytest.raises(ValueError, match=said):
        call(Scores(Q, K))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """The error is that of float32 with the same (rounded) queries and keys, not that of the type."""
    scores = Scores((3 * Q).to(dtype), K.to(dtype), bias=torch.randn(3, 11).to(dtype))
    expected = materialised.pattern_statistics(scores)
    found = pattern_statistics(scores)
    torch.testing.assert_close(found.mass_by_offset, expected["mass_by_offset"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.entropy, expected["entropy"], rtol=1e-5, atol=1e-6)
    kernel = materialised.score_statistics(scores)["kernel"]
    torch.testing.assert_close(score_statistics(scores).kernel, kernel, rtol=1e-10, atol=1e-12)


def test_neither_layout_nor_autograd_matters():
    plain = Scores(Q, K)
    odd = Scores(Q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(), K.mT.contiguous().mT)
    for of in (pattern_statistics, score_statistics):
        one, other = of(plain), of(odd)
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, equal_nan=True)
                assert not b.requires_grad


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_scores_of_any_size_have_a_pattern(size):
    """Where one key takes all the entropy is zero, not the difference of large numbers."""
    scores = Scores(size * Q, size * K)
    found, expected = pattern_statistics(scores), materialised.pattern_statistics(scores)
    torch.testing.assert_close(found.mass_by_offset, expected["mass_by_offset"], rtol=1e-4, atol=1e-4)
    assert (found.entropy >= 0).all()
    torch.testing.assert_close(found.entropy, expected["entropy"], rtol=1e-3, atol=1e-4)


def test_directions_share_the_work_and_functions_of_the_offset_may_be_many():
    v, dz = torch.randn(2, 2, 3, 6, 4)
    found = gradient_statistics(Scores(Q, K), v, dz, [(Q[0, 0], K[0, 0]), (Q, K)])
    assert found.along.shape == (2, 3, 2)
    functions = torch.randn(5, 11, dtype=torch.float64)
    each = torch.stack([found.along_offsets(one) for one in functions], dim=-1)
    torch.testing.assert_close(found.along_offsets(functions), each)
    # a direction that is the same for every key of a query is invisible to the softmax
    blind = gradient_statistics(Scores(Q, K), v, dz, [(torch.randn(6, 1), torch.ones(6, 1))])
    torch.testing.assert_close(blind.along, torch.zeros(2, 3, 1, dtype=torch.float64), atol=1e-5, rtol=0)
