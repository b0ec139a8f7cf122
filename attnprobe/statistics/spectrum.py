r"""Spectra of offset profiles (amplitude and preferred offset of each frequency) and of products of two maps."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def circulant_part(sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead shift"]:
    """Return the mean over pairs at each shift (offset modulo n) from the sums at each offset in a line."""
    n = (sums.shape[-1] + 1) // 2
    shifted = sums[..., n - 1 :].clone()
    shifted[..., 1:] += sums[..., : n - 1]
    return shifted / n


def waves(kernel: Float[Tensor, "*lead shift"]) -> tuple[Float[Tensor, "*lead wave"], Float[Tensor, "*lead wave"]]:
    r"""Return the amplitude and preferred offset of the waves with 1 ... n // 2 periods in n tokens.

    $$t(o) = \bar t + \sum_f a_f \cos\big(2 \pi f (o - \delta_f) / n\big), \quad a_f \ge 0, \quad
      -\tfrac{n}{2f} < \delta_f \le \tfrac{n}{2f}$$
    """
    n = kernel.shape[-1]
    spectrum = torch.fft.rfft(kernel.double(), dim=-1)[..., 1:]
    number = torch.arange(1, n // 2 + 1, dtype=torch.float64, device=kernel.device)
    conjugates = torch.where(2 * number == n, 1.0, 2.0)  # the highest wave of an even n has no conjugate
    return spectrum.abs() * conjugates / n, -spectrum.angle() * n / (2 * math.pi * number)


def pair_waves(
    queries: Float[Tensor, "*lead width"], keys: Float[Tensor, "*lead width"], frequency: Float[Tensor, " pair"]
) -> tuple[Float[Tensor, "*lead pair"], Float[Tensor, "*lead pair"]]:
    r"""Return the amplitude and preferred offset of the wave of each rotary pair, for one query and one key.

    Coordinates (2m, 2m + 1) are read as complex numbers: $\mathrm{Re}(\bar q_m k_m e^{i \omega_m o})
    = |q_m| |k_m| \cos(\omega_m (o - \delta_m))$; ``frequency`` is in periods per token.
    """
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (queries, keys))
    product = q * k.conj()
    return product.abs(), product.angle() / (2 * math.pi * frequency)


def vector_waves(
    w_q: Float[Tensor, "*lead d_model d_head"],
    w_k: Float[Tensor, "*lead d_model d_head"],
    frequency: Float[Tensor, " pair"],
) -> tuple[Float[Tensor, "*lead pair"], Float[Tensor, "*lead pair"]]:
    r"""Return the amplitude and preferred offset of each wave of sinusoidal position vectors under $W_Q W_K^\top$.

    Rows 2m and 2m + 1 belong to $\sin i \omega_m$ and $\cos i \omega_m$. With their 2 x 2 block B of the product,

    $$p_i^\top B p_j = \alpha \cos \omega o + \beta \sin \omega o + \dots, \quad
      \alpha = \tfrac{1}{2} (B_{00} + B_{11}), \quad \beta = \tfrac{1}{2} (B_{10} - B_{01}),$$

    where the omitted terms depend on i + j. Other blocks mix frequencies and are ignored.
    """
    rows = [x.unflatten(-2, (-1, 2)) for x in (w_q, w_k)]
    block = rows[0] @ rows[1].mT
    alpha = (block[..., 0, 0] + block[..., 1, 1]) / 2
    beta = (block[..., 1, 0] - block[..., 0, 1]) / 2
    return torch.hypot(alpha, beta), torch.atan2(beta, alpha) / (2 * math.pi * frequency)


def effective_rank(singular_values: Float[Tensor, "*lead component"]) -> Float[Tensor, "*lead"]:
    r"""Return the effective rank $\exp(-\sum_r p_r \log p_r)$, $p_r = \sigma_r / \sum \sigma$ (Roy & Vetterli 2007).

    It is between 1 and the number of components, and NaN if all singular values are 0.
    """
    share = singular_values / singular_values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def product_svd(
    a: Float[Tensor, "*lead row width"], b: Float[Tensor, "*lead column width"]
) -> tuple[
    Float[Tensor, "*lead component row"], Float[Tensor, "*lead component"], Float[Tensor, "*lead component column"]
]:
    r"""Return left vectors, singular values and right vectors of $a b^\top$ without forming the product."""
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a.double()), torch.linalg.qr(b.double())
    left, values, right = torch.linalg.svd(r_a @ r_b.mT)
    return (q_a @ left).mT, values, (q_b @ right.mT).mT


def symmetry(
    w_q: Float[Tensor, "*lead d_model d_head"], w_k: Float[Tensor, "*lead d_model d_head"]
) -> Float[Tensor, "*lead"]:
    r"""Return the symmetry score of $M = W_Q W_K^\top$ (Saponati et al. 2025, arXiv:2502.10927).

    $$\frac{\mathrm{tr}(M M)}{\lVert M \rVert_F^2} = \frac{\lVert M_s \rVert_F^2 - \lVert M_a \rVert_F^2}
      {\lVert M \rVert_F^2}$$

    with the symmetric part $M_s$ and the skew-symmetric part $M_a$: 1 for a symmetric and -1 for a skew-symmetric M,
    about 1 / d_model on average for independent normal maps; NaN if M is 0. Both terms are traces of products of
    d_head x d_head matrices.
    """
    product = w_k.mT @ w_q
    square = ((w_q.mT @ w_q) * (w_k.mT @ w_k)).sum((-2, -1))
    return (product * product.mT).sum((-2, -1)) / square.where(square > 0, torch.nan)


def directionality(
    w_q: Float[Tensor, "*lead d_model d_head"], w_k: Float[Tensor, "*lead d_model d_head"]
) -> Float[Tensor, "*lead"]:
    r"""Return the directionality score of $M = W_Q W_K^\top$ (Saponati et al. 2025, arXiv:2502.10927).

    $$\frac{\bar r - \bar c}{\bar r + \bar c}, \quad \bar r = \sum_{r_i > \mu_r + 2 \sigma_r} r_i$$

    with the norms $r_i$ of the rows of M, their mean $\mu_r$ and standard deviation $\sigma_r$, and $\bar c$ likewise
    of the columns: 1 if only rows (dimensions of the query side) have outliers, -1 if only columns (key side) have,
    0 if neither dominates or there are none; NaN if M is 0. (The authors' code sums $r_i - \mu_r - 2 \sigma_r$ instead
    of $r_i$.) Norms are computed from d_head x d_head matrices.
    """
    rows, columns = (
        torch.linalg.vecdot(w @ (other.mT @ other), w).clamp(min=0).sqrt() for w, other in ((w_q, w_k), (w_k, w_q))
    )
    r, c = (_outliers(norms) for norms in (rows, columns))
    score = torch.where(r + c > 0, (r - c) / (r + c), 0.0)
    return score.where(rows.amax(-1) > 0, torch.nan)


OUTLIER = 2
"""Standard deviations above the mean beyond which the norm of a row or column is an outlier."""


def _outliers(norms: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead"]:
    """Return the sum of the norms that are outliers; equal norms that differ by rounding are none."""
    threshold = norms.mean(-1, keepdim=True) + OUTLIER * norms.std(-1, keepdim=True)
    return (norms * (norms > threshold * (1 + 1e-9))).sum(-1)


def eigenvalue_positivity(
    w_q: Float[Tensor, "*lead d_model d_head"], w_k: Float[Tensor, "*lead d_model d_head"]
) -> Float[Tensor, "*lead"]:
    r"""Return $\sum_i \mathrm{Re}\,\lambda_i / \sum_i |\lambda_i|$ of the eigenvalues of $W_Q W_K^\top$.

    The copying score of Elhage et al. (2021) for the query-key circuit: 1 if a token scores highest with itself in
    every eigendirection, -1 if lowest, with mean 0 for independent random maps; NaN if all eigenvalues are 0. The
    eigenvalues other than 0 are those of the d_head x d_head matrix $W_K^\top W_Q$.
    """
    values = torch.linalg.eigvals(w_k.mT @ w_q)
    total = values.abs().sum(-1)
    return values.real.sum(-1) / total.where(total > 0, torch.nan)
