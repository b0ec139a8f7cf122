r"""Directions in score space that are functions of the offset, and the gradient energy in subspaces.

Adding a constant to a row of a score changes no loss, so a direction $D_{ij} = f(j - i)$ is row-centred and then
normalised (`unit`). A *circulant* direction is a function of the offset modulo n (on a grid, modulo rows and columns).
It has the same column sum at every key, so mean-pooled labels are blind to it at uniform attention (arXiv:2605.21070).
A *Toeplitz* direction is any function of the offset. Its column sums differ near the ends of the sequence, so labels
see part of it: a fraction of order 1 / n² for a profile that decays within a few tokens, but one ninth for -distance at
any length. Each profile is therefore provided in both forms.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry
from attnprobe.statistics.gradient import GradientStatistics

SUBSPACES = ("circulant", "toeplitz", "column", "rest")


def proximity_profiles(geometry: Geometry, length_scale: int | float) -> dict[str, Float[Tensor, " offset"]]:
    r"""Return the proximity profiles by name, as functions of the distance d.

    - band: 1 if d <= length_scale, else 0; exponential: $e^{-d / \lambda}$; linear: $-d$.

    Circulant profiles use the shortest distance around the ring. They do not exist for causal attention, and are NaN
    with a sliding window or absent tokens.
    """
    axes = [torch.arange(1 - side, side, dtype=torch.float64) for side in geometry.shape]
    ring = [torch.minimum(axis.abs(), len(axis) // 2 + 1 - axis.abs()) for axis in axes]
    squares = torch.stack([axis.square() for axis in torch.meshgrid(*ring, indexing="ij")])
    around = squares.sum(0).sqrt().flatten()
    around = torch.full_like(around, torch.nan) if geometry.window is not None or geometry.absent else around
    distances = {"circulant": around, "toeplitz": geometry.distance}
    if geometry.causal:
        distances.pop("circulant")
    return {
        f"{form} {kind}": profile
        for form, d in distances.items()
        for kind, profile in (
            ("band", (d <= length_scale).double().where(d.isfinite(), torch.nan)),
            ("exponential", (-d / length_scale).exp()),
            ("linear", -d),
        )
    }


def own_pair(geometry: Geometry) -> Float[Tensor, " offset"]:
    """Return the direction of offset 0: the score of each token with itself."""
    return (geometry.distance == 0).double()


def without_own_pair(f: Float[Tensor, "*lead offset"], geometry: Geometry) -> Float[Tensor, "*lead offset"]:
    """Make a function of the offset orthogonal to the direction of offset 0."""
    diagonal = own_pair(geometry)
    square = geometry.inner(diagonal, diagonal)
    coefficient = torch.where(square > 0, geometry.inner(f, diagonal) / square, 0.0)
    return f - coefficient[..., None] * diagonal


def unit(f: Float[Tensor, "*lead offset"], geometry: Geometry) -> Float[Tensor, "*lead offset"]:
    """Scale a function of the offset to a direction of length 1; NaN if the function is constant in every row."""
    square = geometry.inner(f, f)
    level = (f.square() * geometry.count).sum(-1)
    return f / square.where(square > SMALLEST * level, torch.nan).sqrt()[..., None]


SMALLEST = 1e-12
"""Fraction of the sum of squares below which a row-centred direction is rounding error."""


def dimensions(geometry: Geometry) -> dict[str, float]:
    """Return the fraction of the dimensions of row-centred scores in each subspace: the energy share of white noise.

    *rest* is NaN if it is unknown (`Geometry.shares_only_linear`).
    """
    tokens, pairs = geometry.tokens, float(geometry.count.sum())
    total = pairs - tokens
    toeplitz = float((geometry.count > 0).sum() - 1)
    column = float(tokens - geometry.pieces)  # in each piece, constants of the rows and of the keys are the same
    shared = toeplitz + column - sum(side > 1 for side in geometry.shape)
    sizes = {"circulant": tokens - 1.0, "toeplitz": toeplitz, "column": column, "rest": total - shared}
    if _masked(geometry):
        sizes["circulant"] = float("nan")
    if not geometry.shares_only_linear:
        sizes["rest"] = float("nan")
    return {name: sizes[name] / total if total else float("nan") for name in SUBSPACES}


def _masked(geometry: Geometry) -> bool:
    """Return whether some pairs of tokens are no query-key pairs."""
    return geometry.causal or geometry.window is not None or bool(geometry.absent)


def energy_shares(gradient: GradientStatistics) -> Float[Tensor, "batch head subspace"]:
    r"""Return the shares of $\|\partial L / \partial S\|^2$ in the subspaces, in the order of `SUBSPACES`.

    The subspaces are all functions of the offset modulo n, of the offset, of the key, and the orthogonal complement of
    the last two. The shares do not add up to 1: the first subspace is part of the second, and linear functions of the
    offset are also functions of the key. NaN if the gradient is 0, and for circulant functions if some keys are masked.
    All sequences must have the same real tokens.
    """
    geometry = gradient.geometry
    if not torch.equal(gradient.pairs, geometry.count.expand_as(gradient.pairs)):
        raise UsageError("gradients of sequences with different real tokens: pass those with the same tokens together")
    by_offset, by_key = gradient.by_offset, gradient.by_key
    toeplitz = (by_offset * geometry.offset_profile(by_offset).nan_to_num()).sum(-1)
    column = (by_key * geometry.key_constants(by_key)).sum(-1)
    circulant = torch.full_like(toeplitz, torch.nan) if _masked(geometry) else _circulant_energy(by_offset, geometry)
    shared = geometry.shared_energy(by_key, by_offset)
    energies = torch.stack([circulant, toeplitz, column, (gradient.square - shared).clamp(min=0)], dim=-1)
    return energies / gradient.square.where(gradient.square > 0, torch.nan)[..., None]


def _circulant_energy(by_offset: Float[Tensor, "*lead offset"], geometry: Geometry) -> Float[Tensor, "*lead"]:
    """Return the energy in functions of the offset modulo the sides, where every shift has n pairs."""
    sums = by_offset.unflatten(-1, geometry.sides)
    for axis, side in zip(range(-len(geometry.shape), 0), geometry.shape, strict=True):
        sums = sums.movedim(axis, -1)
        wrapped = sums[..., side - 1 :].clone()
        wrapped[..., 1:] += sums[..., : side - 1]
        sums = wrapped.movedim(-1, axis)
    return sums.flatten(-len(geometry.shape)).square().sum(-1) / geometry.n
