import numpy as np
import pytest
import torch

from attnprobe.geometry import geometry
from attnprobe.statistics.spectrum import circulant_part, effective_rank, product_svd, vector_waves, waves


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
