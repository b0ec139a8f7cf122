r"""Initial query and key maps that use neither data nor labels.

The score of query i and key j is $x_i^\top W_Q W_K^\top x_j / \sqrt{d_{head}}$, with $x$ the (normalised) residual
stream. Each function here returns $W_Q$ and $W_K$ of one head, [d_model, d_head].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import geometry

ALPHA = BETA = 0.7
"""Weights of noise and identity in the mimetic product, as Trockman & Kolter recommend for vision."""
PEAK = 4.0
"""Score difference, in nats, between a key at distance 1 and the farthest key under the proximity maps."""
QUERIES = 64
"""Number of rows of K computed at a time."""

Map = Float[Tensor, "d_model d_head"]


def mimetic(d_model: int, d_head: int, generator: torch.Generator) -> tuple[Map, Map]:
    r"""Return mimetic maps: $W_Q W_K^\top \approx \alpha Z + \beta I$ with $\alpha = \beta = 0.7$.

    Trained vision Transformers have products of this form. $Z_{ij} \sim N(0, 1 / d_{model})$. With $U S V^\top$ the
    singular value decomposition of the sum, truncated to the d_head largest singular values, $W_Q = U \sqrt{S}$ and
    $W_K = V \sqrt{S}$: the closest product of rank d_head (Eckart & Young 1936). A token then attends most to similar
    tokens, and therefore to nearby ones if position vectors of nearby positions are similar.

    Trockman & Kolter 2023, arXiv:2305.09828. They also initialise the product of value and output maps, close to minus
    the identity, and use sinusoidal positions; here only query and key maps are set, with any position encoding.
    """
    noise = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64) / math.sqrt(d_model)
    left, values, right = torch.linalg.svd(ALPHA * noise + BETA * torch.eye(d_model, dtype=torch.float64))
    root = values[:d_head].sqrt()
    return left[:, :d_head] * root, right[:d_head].mT * root


def proximity(
    positions: Float[Tensor, "token d_model"],
    noise: float,
    scale: float,
    shape: tuple[int, ...],
    length_scale: float,
    d_head: int,
) -> tuple[Map, Map]:
    r"""Return maps under which position vectors, with random embeddings as noise, score nearby keys highest.

    Tokens are $x_i = (p_i + e_i) / \mathrm{scale}$ with embeddings $e_i$ of independent coordinates of std ``noise``.
    The target is $K_{ij} = \exp(-\|j - i\| / \lambda)$ with $\lambda$ = ``length_scale``, with rows and columns centred
    (the softmax ignores row means, and column means do not express proximity). With
    $R = P^\top P + n\, \mathrm{noise}^2 I$, the least-squares estimate of K from two such tokens (a Wiener filter on
    each side; exact except at i = j, where both tokens share one embedding) is given by

    $$M = R^{-1} P^\top K P R^{-1}, \qquad \mathrm{E} \sum_{ij} (K_{ij} - (p_i + e_i)^\top M (p_j + e'_j))^2
    = \| C - R^{1/2} M R^{1/2} \|^2 + \mathrm{const}, \quad C = R^{-1/2} P^\top K P R^{-1/2}.$$

    The best M of rank d_head therefore keeps the d_head largest eigenvalues of C, which are not negative because K is
    positive semidefinite: $W_Q = W_K = R^{-1/2} V \sqrt{\Lambda}$. The filter shrinks the scores, so the maps are
    rescaled: the least-squares fit of the position scores to K over all pairs has a difference of PEAK between a key at
    distance 1 and the farthest key.

    Args:
        positions: Position vectors of all tokens; those of prepended tokens ([CLS]) come first and have K = 0.
        noise: Std of the embedding coordinates.
        scale: Scale of the norm.
        shape: Shape of the sequence without prepended tokens, (n,) or (rows, columns).
        length_scale: Length scale of K.
        d_head: Rank of the product.

    Returns:
        $W_Q$ and $W_K$, computed without an n x n array.

    Raises:
        UsageError: If no two tokens are more than distance 1 apart.
    """
    positions = positions.double()
    n_positions, d_model = positions.shape
    layout = geometry(shape)
    farthest = layout.distance.max().item()
    if farthest <= 1:
        raise UsageError(f"init_qk='proximity' needs keys beyond distance 1; data of shape {shape} have none")
    tokens = positions[n_positions - layout.n :]
    product, square = _kernel_products(tokens - tokens.mean(0), shape, length_scale)
    contrast = math.expm1(-1 / length_scale) - math.expm1(-farthest / length_scale)
    second_moment = positions.mT @ positions + n_positions * noise**2 * torch.eye(d_model, dtype=torch.float64)
    eigenvalues, axes = torch.linalg.eigh(second_moment)
    # Without noise, directions outside the span of the position vectors have eigenvalue 0.
    inverse_root = torch.where(eigenvalues > 1e-12 * eigenvalues[-1], eigenvalues, torch.inf).rsqrt()
    whitener = axes * inverse_root @ axes.mT
    top_values, top_axes = (part[..., -d_head:] for part in torch.linalg.eigh(whitener @ product @ whitener))
    unscaled = whitener @ top_axes * top_values.clamp(min=0).sqrt()
    slope = ((unscaled.mT @ product) * unscaled.mT).sum() / square  # least-squares slope of the position scores on K
    map_ = unscaled * (PEAK / contrast / slope * math.sqrt(d_head)).sqrt() * scale
    return map_, map_


def _kernel_products(
    x: Float[Tensor, "token d_model"], shape: tuple[int, ...], length_scale: float
) -> tuple[Tensor, Tensor]:
    r"""Return $X^\top K X$, for X with column means 0, and the sum of squares of K with centred rows and columns.

    K is computed as exp(-distance / length_scale) - 1: centring removes the constant, and expm1 avoids cancellation at
    long length scales.
    """
    layout = geometry(shape)
    coordinates = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in shape)).view(layout.n, -1)
    product = torch.zeros_like(x.mT @ x)
    for queries in torch.arange(layout.n).split(QUERIES):
        distance = torch.linalg.vector_norm(coordinates[queries, None] - coordinates, dim=-1)
        product += x[queries].mT @ (torch.expm1(-distance / length_scale) @ x)
    profile = torch.expm1(-layout.distance / length_scale)
    n, row_sums = layout.n, layout.windows(profile)
    square = profile.square() @ layout.count - 2 * row_sums.square().sum() / n + (row_sums.sum() / n).square()
    return product, square
