r"""Directions in the space of scores, as functions of the offset, and the subspaces that a gradient's energy lies in.

A constant added to a row of a score is invisible to every loss, so a direction $D_{ij} = f(j - i)$ counts row-centred,
and has length 1 there (`unit`). A *circulant* direction is a function of the offset modulo n (on a grid modulo rows and
columns): with it every key is near to as many queries as any other, which is what makes mean-pooled labels blind to it
at uniform attention (arXiv:2605.21070). A Toeplitz direction is any function of the offset; its ends betray it: of a
kernel that falls off within a few tokens a part of order 1 / n² is visible to labels, but of -distance one ninth at any
length. So each kernel is given in both forms.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry
from attnprobe.statistics.gradient import GradientStatistics

SUBSPACES = ("circulant", "toeplitz", "column", "rest")


def proximity_profiles(geometry: Geometry, length_scale: int | float) -> dict[str, Float[Tensor, " offset"]]:
    r"""Return the kernels of proximity, of distance d: circulant ones are of the shortest distance around.

    - band: 1 where d <= length_scale, else 0; exponential: $e^{-d / \lambda}$; linear: $-d$.

    Where attention is causal no direction is circulant.
    """
    axes = [torch.arange(1 - side, side, dtype=torch.float64) for side in geometry.shape]
    around = [torch.minimum(axis.abs(), len(axis) // 2 + 1 - axis.abs()) for axis in axes]
    squares = torch.stack([axis.square() for axis in torch.meshgrid(*around, indexing="ij")])
    distances = {"circulant": squares.sum(0).sqrt().flatten(), "toeplitz": geometry.distance}
    if geometry.causal:
        distances.pop("circulant")
    return {
        f"{form} {kind}": made
        for form, d in distances.items()
        for kind, made in (
            ("band", (d <= length_scale).double()),
            ("exponential", (-d / length_scale).exp()),
            ("linear", -d),
        )
    }


def own_pair(geometry: Geometry) -> Float[Tensor, " offset"]:
    """Return the direction of offset 0: a token's score with itself."""
    return (geometry.distance == 0).double()


def without_own_pair(f: Float[Tensor, "*lead offset"], geometry: Geometry) -> Float[Tensor, "*lead offset"]:
    """Return a function of the offset whose direction is orthogonal to that of offset 0."""
    zero = own_pair(geometry)
    size = geometry.inner(zero, zero)
    share = torch.where(size > 0, geometry.inner(f, zero) / size, 0.0)
    return f - share[..., None] * zero


def unit(f: Float[Tensor, "*lead offset"], geometry: Geometry) -> Float[Tensor, "*lead offset"]:
    """Return a function of the offset whose direction has length 1; NaN where a row's scores are all alike."""
    square = geometry.inner(f, f)
    level = (f.square() * geometry.count).sum(-1)
    return f / square.where(square > SMALLEST * level, torch.nan).sqrt()[..., None]


SMALLEST = 1e-12


def dimensions(geometry: Geometry) -> dict[str, float]:
    """Return the share of each subspace in the dimensions of row-centred scores: the energy share of pure noise."""
    n, pairs = geometry.n, float(geometry.count.sum())
    whole = pairs - n
    toeplitz = float(geometry.seen.sum() - 1)
    column = n - 1.0
    shared = toeplitz + column - sum(side > 1 for side in geometry.shape)
    shares = {"circulant": n - 1.0, "toeplitz": toeplitz, "column": column, "rest": whole - shared}
    if geometry.causal:
        shares["circulant"] = float("nan")
    return {name: shares[name] / whole if whole else float("nan") for name in SUBSPACES}


def energy_shares(gradient: GradientStatistics) -> Float[Tensor, "batch head subspace"]:
    r"""Return the shares of $\|\partial L / \partial S\|^2$ in the subspaces, in the order of `SUBSPACES`.

    All functions of the offset modulo n, of the offset, of the key, and what neither offset nor key explains. The
    first lies in the second; linear functions of the offset are functions of the key as well. NaN where the gradient
    is 0, and for circulant functions where attention is causal. Sequences must have no padding.
    """
    places = gradient.geometry
    if not torch.equal(gradient.pairs, places.count.expand_as(gradient.pairs)):
        raise UsageError("gradients of padded sequences: measure sequences of one length at a time")
    by_offset, by_key = gradient.by_offset, gradient.by_key
    toeplitz = (by_offset * places.offset_profile(by_offset).nan_to_num()).sum(-1)
    column = (by_key * places.key_constants(by_key)).sum(-1)
    circulant = torch.full_like(toeplitz, torch.nan) if places.causal else _around(by_offset, places)
    shared = places.shared_energy(by_key, by_offset)
    energies = torch.stack([circulant, toeplitz, column, (gradient.square - shared).clamp(min=0)], dim=-1)
    return energies / gradient.square.where(gradient.square > 0, torch.nan)[..., None]


def _around(by_offset: Float[Tensor, "*lead offset"], places: Geometry) -> Float[Tensor, "*lead"]:
    """Return the energy in functions of the offset modulo the sides: each shift has n pairs."""
    sums = by_offset.unflatten(-1, places.sides)
    for axis, side in zip(range(-len(places.shape), 0), places.shape, strict=True):
        sums = sums.movedim(axis, -1)
        wrapped = sums[..., side - 1 :].clone()
        wrapped[..., 1:] += sums[..., : side - 1]
        sums = wrapped.movedim(-1, axis)
    return sums.flatten(-len(places.shape)).square().sum(-1) / places.n
