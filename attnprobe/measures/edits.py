"""Edits of attention scores, without n x n arrays.

An edit is a function of some `Heads` of a layer that returns their z, computed with the attention of the network.
Tokens that are not measured ([CLS]) keep their queries and keys, unless the edit replaces the scores by 0 or by a
function of the offset.
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
    """Values that edits use, for some heads of one layer and one batch of sequences of n tokens."""

    network: Network
    profile: Float[Tensor, "head offset"]
    """Mean offset profile of the scores, including biases."""
    q_position: Float[Tensor, "batch head token d_head"]
    """Position parts of the queries (`attnprobe.measures.terms`)."""
    k_position: Float[Tensor, "batch head token d_head"]
    """Position parts of the keys."""
    bias: Float[Tensor, "head offset"] | None
    """Total bias between tokens, which counts as position-position; in a null, with values at permuted offsets."""
    bias_change: Float[Tensor, "head offset"] | None
    """Difference between ``bias`` and the bias of the network in a null, else None."""
    imposed: Float[Tensor, "head offset"]
    """Proximity bias to impose."""
    order: Int[Tensor, " token"]
    """Permutation of the positions."""
    patch_from: Scores | None
    """Scores of the network to patch from, on the same inputs."""
    with_positions: Callable[[Int[Tensor, " token"]], tuple[Tensor, Tensor] | None] | None
    """In the first layer, function from new positions to `KnowsPositions.with_positions` of these heads; else None."""


@dataclass(frozen=True)
class Traits:
    """Properties of a network that determine which edits apply to it."""

    network: Network
    biased: bool
    """Whether the scores have a bias."""
    patch_from: bool
    """Whether there is a network to patch from."""

    @property
    def positional(self) -> bool:
        """Whether scores can depend on position."""
        encoding = self.network.encoding if isinstance(self.network, KnowsPositions) else "unknown"
        return self.biased or self.network.shape.causal or encoding != "none"

    @property
    def movable(self) -> bool:
        """Whether positions can be moved: the encoding is known, and there is no bias with causal attention."""
        known = isinstance(self.network, KnowsPositions)
        return known and self.positional and not (self.network.shape.causal and self.biased)


@dataclass(frozen=True)
class Edit:
    """An edit, its null and its condition; to add one, create an instance and a line in `attnprobe.tables.EDITS`."""

    edit: Callable[[Heads, Material], Tensor] | None
    """Function that computes the z of some heads; None for an edit of the query and key maps (`Swaps.with_maps_of`)."""
    nulled: bool = False
    """Whether it has a null: the same edit with its values at permuted offsets or positions."""
    applies: Callable[[Traits], bool] = lambda traits: True
    """Whether the edit applies to a network."""
    on_request: bool = False
    """Whether the edit is made only if it is named."""


def _uniform_attention(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.flat()).attend()


def _keep_toeplitz(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.flat().with_bias(material.profile)).attend()


def _ablate_toeplitz(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.with_bias(-material.profile)).attend()


def _impose_proximity(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=heads.scores.with_bias(material.imposed)).attend()


def _keep_position(heads: Heads, material: Material) -> Tensor:
    q, k = _position_parts(heads, material, keep_special=True)
    kept = replace(heads.scores, q=q, k=k)
    return replace(
        heads, scores=kept if material.bias_change is None else kept.with_bias(material.bias_change)
    ).attend()


def _ablate_position(heads: Heads, material: Material) -> Tensor:
    without = _without(heads.scores, *_position_parts(heads, material, keep_special=False))
    return replace(heads, scores=without if material.bias is None else without.with_bias(-material.bias)).attend()


def _ablate_content(heads: Heads, material: Material) -> Tensor:
    return replace(heads, scores=_without(heads.scores, *_content_parts(heads, material))).attend()


def _ablate_content_position(heads: Heads, material: Material) -> Tensor:
    (q, _), (_, k) = _content_parts(heads, material), _position_parts(heads, material, keep_special=False)
    return replace(heads, scores=_without(heads.scores, q, k)).attend()


def _ablate_position_content(heads: Heads, material: Material) -> Tensor:
    (q, _), (_, k) = _position_parts(heads, material, keep_special=False), _content_parts(heads, material)
    return replace(heads, scores=_without(heads.scores, q, k)).attend()


def _without(scores: Scores, q: Tensor, k: Tensor) -> Scores:
    """Return the scores minus the scaled products of the given vectors."""
    # Concatenated vectors: their product is the difference of the products.
    concatenated = torch.cat([scores.q, q], dim=-1), torch.cat([scores.k, -k], dim=-1)
    return replace(scores, q=concatenated[0], k=concatenated[1], scale=scores.factor)


def _shift_positions(heads: Heads, material: Material) -> Tensor:
    n = len(material.order)
    return _move(heads, material, (torch.arange(n) + n // 2) % n)


def _permute_positions(heads: Heads, material: Material) -> Tensor:
    return _move(heads, material, material.order)


def _patch_scores(heads: Heads, material: Material) -> Tensor:
    assert material.patch_from is not None
    return replace(heads, scores=material.patch_from).attend()


def _positional(traits: Traits) -> bool:
    return traits.positional and traits.network.shape.knows_queries


def _movable(traits: Traits) -> bool:
    return traits.movable


uniform_attention = Edit(_uniform_attention)
"""Set all scores to 0: uniform attention."""
keep_toeplitz = Edit(_keep_toeplitz, nulled=True)
"""Replace the score by its mean offset profile."""
ablate_toeplitz = Edit(_ablate_toeplitz, nulled=True)
"""Subtract the mean offset profile from the score."""
keep_position = Edit(_keep_position, nulled=True, applies=_positional)
"""Replace the score by its position-position term, including the bias."""
ablate_position = Edit(_ablate_position, nulled=True, applies=_positional)
"""Subtract the position-position term, including the bias, from the score."""
ablate_content = Edit(_ablate_content, applies=_positional, on_request=True)
"""Subtract the content-content term from the score."""
ablate_content_position = Edit(_ablate_content_position, applies=_positional, on_request=True)
"""Subtract the content-position term (content of the query, position of the key) from the score."""
ablate_position_content = Edit(_ablate_position_content, applies=_positional, on_request=True)
"""Subtract the position-content term (position of the query, content of the key) from the score."""
shift_positions = Edit(_shift_positions, applies=_movable)
"""Shift the positions of all tokens by half the sequence, in vectors, rotations and biases; content stays (`_move`)."""
permute_positions = Edit(_permute_positions, applies=_movable)
"""Permute the positions of all tokens, in vectors, rotations and biases; content stays (`_move`)."""
impose_proximity = Edit(_impose_proximity, nulled=True)
"""Add a proximity bias."""
patch_scores = Edit(_patch_scores, applies=lambda traits: traits.patch_from)
"""Patch the scores, and hence the pattern, from another network on the same inputs; values stay."""
patch_qk = Edit(None, applies=lambda traits: traits.patch_from and isinstance(traits.network, Swaps))
"""Patch the query and key maps from another network."""


def _move(heads: Heads, material: Material, positions: Int[Tensor, " token"]) -> Tensor:
    """Return z with the position of each token replaced by ``positions`` in the queries and keys, not in the values.

    Exact for rotations and biases, and in the first layer for added position vectors: embeddings with the vectors of
    the new positions pass through the norm and the query and key maps. Deeper layers have no such vectors: the mean
    query and key at the old position are replaced by those at the new one, an approximation.
    """
    scores, network = heads.scores, material.network
    q, k, prefix, positions = scores.q, scores.k, scores.prefix, positions.to(scores.q.device)
    assert isinstance(network, KnowsPositions)
    if network.rotates:
        rotations = torch.cat(
            [positions.new_zeros(prefix), positions - torch.arange(len(positions), device=positions.device)]
        )
        q, k = network.turn(q, rotations.to(q)), network.turn(k, rotations.to(k))
    elif material.with_positions is not None and (recomputed := material.with_positions(positions)) is not None:
        q, k = recomputed
    else:
        parts = _position_parts(heads, material, keep_special=False)
        moved = _after_prefix(positions, prefix)
        q, k = (x - part + part[:, :, moved] for x, part in zip((q, k), parts, strict=True))
    if not scores.biased:
        return replace(heads, scores=replace(scores, q=q, k=k)).attend()
    # Sort the tokens by their new positions, so that the bias is evaluated at their new offsets.
    order = _after_prefix(positions.argsort(), prefix)
    arranged = replace(scores, q=q[:, :, order], k=k[:, :, order])
    return replace(heads, scores=arranged, v=heads.v[:, :, order]).attend()[:, :, order.argsort()]


def _position_parts(heads: Heads, material: Material, keep_special: bool) -> tuple[Tensor, Tensor]:
    """Return the position parts, [batch, head, token, d_head].

    Tokens that are not measured keep their vectors (``keep_special``) or are 0.
    """
    extended, measured = [], heads.scores.measured
    for vectors, part in ((heads.scores.q, material.q_position), (heads.scores.k, material.k_position)):
        whole = vectors.clone() if keep_special else torch.zeros_like(vectors)
        tokens = whole[:, :, heads.scores.tokens, : part.shape[-1]]
        tokens[:] = part.to(vectors) if measured is None else part.to(vectors).where(measured[:, None, :, None], tokens)
        extended.append(whole)
    return extended[0], extended[1]


def _content_parts(heads: Heads, material: Material) -> tuple[Tensor, Tensor]:
    """Return the content parts, [batch, head, token, d_head]; 0 for tokens that are not measured."""
    scores, measured = heads.scores, heads.scores.measured
    parts = _position_parts(heads, material, keep_special=False)
    contents = []
    for vectors, part in zip((scores.q, scores.k), parts, strict=True):
        content = torch.zeros_like(vectors)
        inner = (vectors - part)[:, :, scores.tokens]
        content[:, :, scores.tokens] = inner if measured is None else inner * measured[:, None, :, None]
        contents.append(content)
    return contents[0], contents[1]


def _after_prefix(indices: Tensor, prefix: int) -> Tensor:
    """Convert token indices to indices in a sequence with ``prefix`` prepended tokens, which stay."""
    return torch.cat([torch.arange(prefix, device=indices.device), indices + prefix])


def shuffled(f: Float[Tensor, "head offset"], pairs: Geometry, generator: np.random.Generator) -> Tensor:
    """Permute the values of functions of the offset and rescale them to the same norm (row-centred)."""
    visible = pairs.seen.nonzero()[:, 0].numpy()
    permuted = f.double().cpu().clone()
    permuted[:, visible] = permuted[:, generator.permutation(visible)]
    size, target = pairs.inner(permuted, permuted), pairs.inner(f.double().cpu(), f.double().cpu())
    return (permuted * torch.where(size > 0, target / size, 0.0).clamp(min=0).sqrt()[:, None]).to(f.device)
