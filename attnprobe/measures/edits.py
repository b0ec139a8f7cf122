"""Edits of what enters a score; no n x n array is made.

An edit gets some `Heads` of a layer and returns their z, by the attention of the network itself. A token that the
network puts in front ([CLS]) keeps its query and key, except if scores are made flat or a function of the offset.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnprobe.geometry import Geometry
from attnprobe.networks.base import KnowsPositions, Network, Swaps
from attnprobe.scores import Heads, Scores


@dataclass(frozen=True)
class Material:
    """What edits are made of, for some heads of one layer and one batch of sequences of n tokens."""

    network: Network
    profile: Float[Tensor, "head offset"]
    """The mean function of the offset that fits the scores best, biases included."""
    q_position: Float[Tensor, "batch head token d_head"]
    """Position parts of the queries (`attnprobe.measures.terms`)."""
    k_position: Float[Tensor, "batch head token d_head"]
    bias: Float[Tensor, "head offset"] | None
    """The whole bias among tokens, which counts as position-position; in a null, with its values at other offsets."""
    bias_change: Float[Tensor, "head offset"] | None
    """In a null, how that bias differs from the network's own."""
    imposed: Float[Tensor, "head offset"]
    """The bias that is imposed."""
    order: Int[Tensor, " token"]
    """A permutation of the positions."""
    patch_from: Scores | None
    """The scores of another network on the same inputs."""


@dataclass(frozen=True)
class Traits:
    """What decides which edits a network can have."""

    network: Network
    biased: bool
    """Whether a bias is added to its scores."""
    patch_from: bool
    """Whether there is another network to take scores and maps from."""

    @property
    def positional(self) -> bool:
        """Whether scores can depend on position."""
        encoding = self.network.encoding if isinstance(self.network, KnowsPositions) else "unknown"
        return self.biased or self.network.shape.causal or encoding != "none"

    @property
    def movable(self) -> bool:
        """Whether positions can be moved: the encoding is known, and no mask stays behind with a bias."""
        known = isinstance(self.network, KnowsPositions)
        return known and self.positional and not (self.network.shape.causal and self.biased)


@dataclass(frozen=True)
class Edit:
    """An edit, its null, and when it applies: adding one is an instance and a line in `attnprobe.tables.EDITS`."""

    edit: Callable[[Heads, Material], Tensor] | None
    """From what some heads are about to attend with to their z; None if maps are swapped (`Swaps.with_maps_of`)."""
    nulled: bool = False
    """Whether it has a null: the same edit with its numbers at other offsets or positions."""
    applies: Callable[[Traits], bool] = lambda traits: True


def _uniform_attention(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.flat()).attend()


def _keep_toeplitz(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.flat().with_bias(material.profile)).attend()


def _ablate_toeplitz(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.with_bias(-material.profile)).attend()


def _impose_proximity(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.with_bias(material.imposed)).attend()


def _keep_position(heads: Heads, material: Material) -> Tensor:
    q, k = _position_parts(heads, material, of_prefix=True)
    kept = replace(heads.scores, q=q, k=k)
    return replace(
        heads, scores=kept if material.bias_change is None else kept.with_bias(material.bias_change)
    ).attend()


def _ablate_position(heads: Heads, material: Material) -> Tensor:
    scores = heads.scores
    q, k = _position_parts(heads, material, of_prefix=False)
    # Side by side, the products are the difference.
    q, k = torch.cat([scores.q, q], dim=-1), torch.cat([scores.k, -k], dim=-1)
    without = replace(scores, q=q, k=k, scale=scores.factor)
    return replace(heads, scores=without if material.bias is None else without.with_bias(-material.bias)).attend()


def _shift_positions(heads: Heads, material: Material) -> Tensor:
    n = len(material.order)
    return _move(heads, material, (torch.arange(n) + n // 2) % n)


def _permute_positions(heads: Heads, material: Material) -> Tensor:
    return _move(heads, material, material.order)


def _patch_scores(heads: Heads, material: Material) -> Tensor:
    assert material.patch_from is not None
    return replace(heads, scores=material.patch_from).attend()


def _positional(traits: Traits) -> bool:
    return traits.positional


def _movable(traits: Traits) -> bool:
    return traits.movable


uniform_attention = Edit(_uniform_attention)
"""All scores are 0: attention is uniform."""
keep_toeplitz = Edit(_keep_toeplitz, nulled=True)
"""The score is the mean function of the offset alone."""
ablate_toeplitz = Edit(_ablate_toeplitz, nulled=True)
"""The mean function of the offset is subtracted."""
keep_position = Edit(_keep_position, nulled=True, applies=_positional)
"""The score is its position-position term alone, with the bias."""
ablate_position = Edit(_ablate_position, nulled=True, applies=_positional)
"""The position-position term and the bias are subtracted."""
shift_positions = Edit(_shift_positions, applies=_movable)
"""Each token keeps its content and gets the position half a sequence away, in vectors, rotations and biases."""
permute_positions = Edit(_permute_positions, applies=_movable)
"""Each token keeps its content and gets the position of another."""
impose_proximity = Edit(_impose_proximity, nulled=True)
"""A proximity bias is added."""
patch_scores = Edit(_patch_scores, applies=lambda traits: traits.patch_from)
"""The scores, and so the pattern, are those of another network on the same inputs; values stay."""
patch_qk = Edit(None, applies=lambda traits: traits.patch_from and isinstance(traits.network, Swaps))
"""The query and key maps are those of another network."""


def _move(heads: Heads, material: Material, places: Int[Tensor, " token"]) -> Tensor:
    """Return z with each token's position moved to a place."""
    scores, network = heads.scores, material.network
    q, k, prefix, places = scores.q, scores.k, scores.prefix, places.to(scores.q.device)
    assert isinstance(network, KnowsPositions)
    if network.rotates:
        steps = torch.cat([places.new_zeros(prefix), places - torch.arange(len(places), device=places.device)])
        q, k = network.turn(q, steps.to(q)), network.turn(k, steps.to(k))
    else:
        parts = _position_parts(heads, material, of_prefix=False)
        moved = _behind(places, prefix)
        q, k = (x - part + part[:, :, moved] for x, part in zip((q, k), parts, strict=True))
    if not scores.biased:
        return replace(heads, scores=replace(scores, q=q, k=k)).attend()
    # With the tokens in the order of their new positions the bias is that of their new offsets.
    order = _behind(places.argsort(), prefix)
    arranged = replace(scores, q=q[:, :, order], k=k[:, :, order])
    return replace(heads, scores=arranged, v=heads.v[:, :, order]).attend()[:, :, order.argsort()]


def _position_parts(heads: Heads, material: Material, of_prefix: bool) -> tuple[Tensor, Tensor]:
    """Return the position parts, [batch, head, token, d_head]; in front the whole query and key, or nothing."""
    found = []
    for whole, part in ((heads.scores.q, material.q_position), (heads.scores.k, material.k_position)):
        front = whole[:, :, : heads.scores.prefix]
        found.append(torch.cat([front if of_prefix else torch.zeros_like(front), part.to(whole)], dim=2))
    return found[0], found[1]


def _behind(places: Tensor, prefix: int) -> Tensor:
    """Return indices of tokens as indices in a sequence with some in front, which stay."""
    return torch.cat([torch.arange(prefix, device=places.device), places + prefix])


def shuffled(f: Float[Tensor, "head offset"], pairs: Geometry, generator: np.random.Generator) -> Tensor:
    """Return functions of the offset with their values at other offsets, and the same length."""
    seen = pairs.seen.nonzero()[:, 0].numpy()
    moved = f.double().cpu().clone()
    moved[:, seen] = moved[:, generator.permutation(seen)]
    size, length = pairs.inner(moved, moved), pairs.inner(f.double().cpu(), f.double().cpu())
    return (moved * torch.where(size > 0, length / size, 0.0).clamp(min=0).sqrt()[:, None]).to(f.device)
