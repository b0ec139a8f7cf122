r"""Query and key maps to start from that know neither data nor labels: what could be given instead of learned.

A head scores a query $x_i$ and a key $x_j$ of the (normalised) residual stream by $x_i^\top W_Q W_K^\top x_j /
\sqrt{d_{head}}$. Each function here returns $W_Q$ and $W_K$ for one head, [d_model, d_head].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import geometry

ALPHA = BETA = 0.7
"""Noise and identity in the mimetic product: what Trockman & Kolter recommend for vision."""
PEAK = 4.0
"""Score, in nats, by which the proximity map puts a key at distance 1 above the farthest one."""
QUERIES = 64
"""Rows of the kernel at a time."""

Map = Float[Tensor, "d_model d_head"]


def mimetic(d_model: int, d_head: int, generator: torch.Generator) -> tuple[Map, Map]:
    r"""Return maps whose product is that of trained vision Transformers: about $\alpha Z + \beta I$, both factors 0.7.

    $Z_{ij} \sim N(0, 1 / d_{model})$; of the singular value decomposition $U S V^\top$ of that sum the d_head largest
    values are kept, $W_Q = U \sqrt{S}$ and $W_K = V \sqrt{S}$: the product nearest to it (Eckart & Young 1936). A token
    then prefers tokens like itself, and with them, where vectors of near positions are alike, near ones.

    Trockman & Kolter 2023, arXiv:2305.09828. There values and outputs start as a pair too, near minus the
    identity, and positions are sinusoidal; here this is about queries and keys alone, with any positions.
    """
    noise = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64) / math.sqrt(d_model)
    left, size, right = torch.linalg.svd(ALPHA * noise + BETA * torch.eye(d_model, dtype=torch.float64))
    root = size[:d_head].sqrt()
    return left[:, :d_head] * root, right[:d_head].mT * root


def proximity(
    positions: Float[Tensor, "token d_model"],
    noise: float,
    scale: float,
    shape: tuple[int, ...],
    length_scale: float,
    d_head: int,
) -> tuple[Map, Map]:
    r"""Return maps by which position vectors, seen through random embeddings, score near keys high.

    Tokens are $x_i = (p_i + e_i) / \mathrm{scale}$ with embeddings $e_i$ of independent coordinates of std ``noise``.
    Wanted is the kernel $K_{ij} = \exp(-\|j - i\| / \lambda)$, rows and columns centred (the softmax ignores the
    first, and the second is no proximity). With $R = P^\top P + n\, \mathrm{noise}^2 I$ the least-squares estimate of
    K from two such tokens (a Wiener filter on either side; i = j aside, where both embeddings are one) is

    $$M = R^{-1} P^\top K P R^{-1}, \qquad \mathrm{E} \sum_{ij} (K_{ij} - (p_i + e_i)^\top M (p_j + e'_j))^2
    = \| C - R^{1/2} M R^{1/2} \|^2 + \mathrm{const}, \quad C = R^{-1/2} P^\top K P R^{-1/2}.$$

    So the best M of rank d_head has the d_head largest eigenvalues of C, none of them negative since K has none: $W_Q =
    W_K = R^{-1/2} V \sqrt{\Lambda}$. The filter shrinks; the maps are stretched until the score of the positions alone
    is, by least squares over pairs, PEAK (K at distance 1, minus K at the farthest) times K.

    ``positions`` are those of all tokens; those in front of the ``shape`` of the sequence, (n,) or (rows, columns),
    ([CLS]) have K = 0. No n x n array is made. Raises `UsageError` where no distance is beyond 1.
    """
    positions = positions.double()
    many, d_model = positions.shape
    places = geometry(shape)
    farthest = places.distance.max().item()
    if farthest <= 1:
        raise UsageError(f"init_qk='proximity' needs keys beyond distance 1, which data of shape {shape} do not have")
    tokens = positions[many - places.n :]
    product, square = _kernel_products(tokens - tokens.mean(0), shape, length_scale)
    contrast = math.expm1(-1 / length_scale) - math.expm1(-farthest / length_scale)
    size, axes = torch.linalg.eigh(positions.mT @ positions + many * noise**2 * torch.eye(d_model, dtype=torch.float64))
    # Directions in which nothing ever is: more dimensions than positions, and no noise.
    root = torch.where(size > 1e-12 * size[-1], size, torch.inf).rsqrt()
    whitener = axes * root @ axes.mT
    kept, best = (part[..., -d_head:] for part in torch.linalg.eigh(whitener @ product @ whitener))
    unscaled = whitener @ best * kept.clamp(min=0).sqrt()
    found = ((unscaled.mT @ product) * unscaled.mT).sum() / square  # score of the positions over K, by least squares
    map_ = unscaled * (PEAK / contrast / found * math.sqrt(d_head)).sqrt() * scale
    return map_, map_


def _kernel_products(
    x: Float[Tensor, "token d_model"], shape: tuple[int, ...], length_scale: float
) -> tuple[Tensor, Tensor]:
    r"""Return $X^\top K X$ for X of column means 0, and the sum of squares of K, rows and columns centred.

    K is exp(-distance / length_scale) - 1: centring removes constants, and expm1 keeps digits at long length scales.
    """
    places = geometry(shape)
    at = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in shape)).view(places.n, -1)
    product = torch.zeros_like(x.mT @ x)
    for queries in torch.arange(places.n).split(QUERIES):
        distance = torch.linalg.vector_norm(at[queries, None] - at, dim=-1)
        product += x[queries].mT @ (torch.expm1(-distance / length_scale) @ x)
    by_offset = torch.expm1(-places.distance / length_scale)
    rows = places.windows(by_offset)
    square = by_offset.square() @ places.count - 2 * rows.square().sum() / places.n + (rows.sum() / places.n).square()
    return product, square
