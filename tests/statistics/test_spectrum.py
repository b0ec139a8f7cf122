import numpy as np
import pytest
import torch

from attnprobe.geometry import geometry
from attnprobe.statistics.spectrum import (
    circulant_part,
    directionality,
    effective_rank,
    eigenvalue_positivity,
    product_svd,
    symmetry,
    vector_waves,
    waves,
)


@pytest.mark.parametrize("n", [2, 7, 8])
def test_waves_add_up_to_the_profile(n):
    profile = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    amplitude, shift = waves(profile)
    number, position = torch.arange(1, n // 2 + 1).double(), torch.arange(n)
    phase = 2 * torch.pi * number[:, None] * (position - shift[..., None]) / n
    rebuilt = (amplitude[..., None] * phase.cos()).sum(-2) + profile.mean(-1, keepdim=True)
    torch.testing.assert_close(rebuilt, profile)
    assert (amplitude >= 0).all() and (shift.abs() <= n / (2 * number) + 1e-9).all()


def test_the_preferred_offset_is_the_peak_of_the_wave():
    position = torch.arange(16, dtype=torch.float64)
    amplitude, shift = waves(3 * torch.cos(2 * torch.pi * 2 * (position - 1.5) / 16))
    assert amplitude.numpy() == pytest.approx([0, 3, 0, 0, 0, 0, 0, 0], abs=1e-12)
    assert float(shift[1]) == pytest.approx(1.5)


def test_the_circulant_part_is_the_mean_over_wrapped_diagonals():
    s = torch.randn(5, 5, dtype=torch.float64)
    sums = torch.stack([s.diagonal(offset).sum() for offset in range(-4, 5)])
    by_hand = [np.mean([float(s[i, (i + shift) % 5]) for i in range(5)]) for shift in range(5)]
    assert circulant_part(sums).numpy() == pytest.approx(np.array(by_hand))
    assert geometry((5,)).count.numpy().tolist() == [1, 2, 3, 4, 5, 4, 3, 2, 1]


def test_vector_waves_are_the_part_of_the_product_that_depends_on_the_offset():
    """Compare with the mean along diagonals of a long product of sinusoids; the other terms average out."""
    generator = torch.Generator().manual_seed(0)
    w_q, w_k = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    frequency = torch.tensor([0.25, 0.1], dtype=torch.float64)
    angle = 2 * torch.pi * frequency * torch.arange(2000)[:, None]
    p = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    offset = torch.arange(-5, 6)
    profile = torch.stack(
        [((p[10:-10] @ w_q) * (p[10 + o : o - 10 or None] @ w_k)).sum(-1).mean() for o in offset.tolist()]
    )
    amplitude, shift = vector_waves(w_q, w_k, frequency)
    wave = (amplitude * torch.cos(2 * torch.pi * frequency * (offset[:, None] - shift))).sum(-1)
    torch.testing.assert_close(profile, wave, atol=0.02, rtol=0)


def test_product_svd_matches_the_svd_of_the_matrix():
    a, b = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64)
    left, values, right = product_svd(a, b)
    torch.testing.assert_close(values, torch.linalg.svdvals(a @ b.mT)[:, :3])
    torch.testing.assert_close(left.mT @ (values[..., None] * right), a @ b.mT)


def test_effective_rank_counts_equal_components():
    values = torch.tensor([[2.0, 2, 2, 0], [5, 0, 0, 0]])
    torch.testing.assert_close(effective_rank(values), torch.tensor([3.0, 1.0]))


def random_maps(width=40, d_head=5, seed=0):
    return torch.randn(2, 3, width, d_head, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_numbers_of_maps_are_those_of_the_product_matrix():
    """By the definitions on M itself, where every matrix is d_model x d_model."""
    w_q, w_k = random_maps()
    w_q[0, 3] *= 20
    w_k[1, 5] *= 20
    m = w_q @ w_k.mT
    square = m.square().sum((-2, -1))
    symmetric, skew = (m + m.mT) / 2, (m - m.mT) / 2
    expected = (symmetric.square().sum((-2, -1)) - skew.square().sum((-2, -1))) / square
    torch.testing.assert_close(symmetry(w_q, w_k), expected)
    values = torch.linalg.eigvals(m)
    torch.testing.assert_close(eigenvalue_positivity(w_q, w_k), values.real.sum(-1) / values.abs().sum(-1))
    expected = []
    for matrix in m:
        sums = []
        for norms in (matrix.norm(dim=1), matrix.norm(dim=0)):
            sums.append(norms[norms > norms.mean() + 2 * norms.std()].sum())
        expected.append((sums[0] - sums[1]) / (sums[0] + sums[1]))
    torch.testing.assert_close(directionality(w_q, w_k), torch.stack(expected))


def test_symmetric_and_skew_maps_have_the_extreme_numbers():
    w = random_maps(d_head=6)[0]
    sign = torch.tensor([1.0, 1, -1, 1, -1, 1], dtype=torch.float64)
    turn = torch.block_diag(*[torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float64)] * 3)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(symmetry(w, w), one)
    torch.testing.assert_close(symmetry(w * sign, w), one)
    torch.testing.assert_close(symmetry(w @ turn, w), -one)
    torch.testing.assert_close(eigenvalue_positivity(w, w), one)
    torch.testing.assert_close(eigenvalue_positivity(w, -w), -one)
    assert eigenvalue_positivity(w @ turn, w).abs().max() < 1e-12  # imaginary eigenvalues
    basis = torch.linalg.qr(w).Q
    torch.testing.assert_close(eigenvalue_positivity(basis * sign, basis), one / 3)


def test_random_maps_have_neither_symmetry_nor_positive_eigenvalues():
    w_q, w_k = torch.randn(2, 400, 32, 4, generator=torch.Generator().manual_seed(0))
    for number, expected in ((symmetry, 1 / 32), (eigenvalue_positivity, 0), (directionality, 0)):
        values = number(w_q, w_k)
        assert abs(values.mean() - expected) < 3 * values.std() / 400**0.5


def test_the_direction_is_that_of_the_side_with_outlying_norms():
    """Of a map of rank 1, the norms of rows and columns are proportional to the entries of its two vectors."""
    even, two_outliers = torch.ones(2, 40, 1, dtype=torch.float64)
    even[::2] = -1
    one_outlier = even.clone()
    one_outlier[7] = 30
    two_outliers[:2] = torch.tensor([[20.0], [30]])
    assert directionality(one_outlier, even) == 1
    assert directionality(even, one_outlier) == -1
    assert directionality(even, even) == 0
    assert directionality(one_outlier, one_outlier) == 0
    rows = 30 * two_outliers.norm()
    columns = (20 + 30) * one_outlier.norm()
    torch.testing.assert_close(directionality(one_outlier, two_outliers), (rows - columns) / (rows + columns))


@pytest.mark.parametrize("number", [symmetry, directionality, eigenvalue_positivity])
def test_numbers_of_maps_do_not_depend_on_scale_and_basis(number):
    """Any invertible basis of the head's dimensions leaves M as it is."""
    w_q, w_k = random_maps(seed=2)
    basis = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(number(w_q @ basis, 3 * w_k @ torch.linalg.inv(basis).mT), number(w_q, w_k))
    assert number(0 * w_q, w_k).isnan().all()
