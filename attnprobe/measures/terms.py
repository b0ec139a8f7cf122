r"""Decomposition of scores into four terms: content or position of the query times content or position of the key.

Queries and keys, as they enter the score, are decomposed, $q_i = q^c_i + q^p_i$ and $k_j = k^c_j + k^p_j$, so that

$$S_{ij} = \frac{1}{\sqrt{d_{head}}} \left( q^c_i k^c_j + q^c_i k^p_j + q^p_i k^c_j + q^p_i k^p_j \right) + b(j - i),$$

where the bias, of the encoding or imposed, counts as position-position. The position part is

- in layer 0, for encodings that add a vector $p_i$: the exact contribution of $p_i - \bar p$, through the norm, with
  its scale for this token in the forward pass, and through $W_Q$ or $W_K$;
- in layer 0, for rotary encodings: the mean query (key) over data and positions, rotated to position i, which is the
  average effect of the rotation on content;
- in deeper layers: the mean query (key) over data at position i minus its mean over positions (Song & Zhong 2023,
  arXiv:2310.04861); for rotary encodings, the latter is not subtracted, since the rotation makes it depend on i;
- zero if the network has no position information: in all layers without encoding and causal mask, and in layer 0
  without position vectors or rotation.

For a network with unknown encoding (not `KnowsPositions`), the mean over data is used in all layers, except in layer 0
if it is known to add position vectors (`AddsPositions`).

Components shared by all positions, including biases of the maps, are content. The means are over other sequences than
those that are decomposed, so that no sequence contributes to its own mean. In deeper layers, a mean that depends on the
position can come from the encoding or from the data (such as the border of an image); networks at initialisation show
the contribution of the data.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import NonFiniteError
from attnprobe.networks.base import AddsPositions, KnowsPositions, LeavesOut, Mask, Network, read
from attnprobe.scores import Heads, Scores
from attnprobe.training.objectives import Batch

TERMS = ("content-content", "content-position", "position-content", "position-position")
"""Names of the terms; the part of the query comes first."""


@dataclass(frozen=True)
class Parts:
    """Scores of one layer in float64, with the position parts of the queries and keys."""

    scores: Scores
    q_position: Float[Tensor, "batch head token d_head"]
    k_position: Float[Tensor, "batch head token d_head"]

    @property
    def terms(self) -> dict[str, Scores]:
        """The four terms, which add up to the scores; the bias counts as position-position."""
        queries = (self.scores.q - self.q_position, self.q_position)
        keys = (self.scores.k - self.k_position, self.k_position)
        pairs = [(q, k) for q in queries for k in keys]
        biases = [None, None, None, self.scores.bias]
        return {
            term: replace(self.scores, q=q, k=k, bias=bias)
            for term, (q, k), bias in zip(TERMS, pairs, biases, strict=True)
        }


@dataclass(frozen=True)
class Means:
    """Means over data of the queries and keys of each layer: lists [layer][query, key], float64 on the CPU."""

    by_position: list[list[Float[Tensor, "head token d_head"]]]
    """Means at each position, as they enter the score."""
    unrotated: list[list[Float[Tensor, "head d_head"]]]
    """Means over all positions, before any rotation."""
    lengths: list[list[Float[Tensor, "head pair"]]]
    """Mean norms in each pair of coordinates, over all positions; empty without rotation."""
    scale: Float[Tensor, "token 1"] | None
    """Harmonic mean of the scale of the first layer's norm at each position; None if unknown or without a norm."""
    factors: list[float]
    """Factor of the query-key product in each layer."""
    first: list[Float[Tensor, "head token d_head"]]
    """Means of `AddsPositions.first_position_parts`; empty if unknown."""


INVERSE = ("inverse scale", 0, 0)


@torch.no_grad()
def means(network: Network, batches: Iterable[Batch], objective: str = "labels") -> Means:
    """Return the means over batches, of measured tokens; positions without any get the mean of the others.

    Raises `NonFiniteError` if a query, a key or a position part is NaN or infinite.
    """
    n, layers = network.shape.n, range(network.shape.layers)
    rotates = isinstance(network, KnowsPositions) and network.rotates
    sums: dict[tuple[str, int, int], Tensor] = {}
    count = torch.zeros(n, dtype=torch.float64)
    factors: dict[int, float] = {}

    def add(key: tuple[str, int, int], x: Float[Tensor, "batch *head token width"]) -> None:
        if left_out is not None:
            shape = (len(x), *[1] * (x.ndim - 3), x.shape[-2], 1)
            x = x.masked_fill(left_out.to(x.device).view(shape), 0.0)
        total = x.sum(0).cpu()
        if not total.isfinite().all():
            raise NonFiniteError("queries or keys of training sequences are NaN or infinite")
        if key not in sums:
            sums[key] = total.new_zeros(*total.shape[:-2], n, total.shape[-1])
        sums[key][..., : total.shape[-2], :] += total

    def add_heads(heads: Heads) -> None:
        scores = heads.scores
        factors[heads.layer] = scores.factor
        for side, x in enumerate((scores.q.double(), scores.k.double())):
            add(("score", heads.layer, side), x)
            if isinstance(network, KnowsPositions) and rotates:
                rotations = -torch.arange(x.shape[2], dtype=torch.float64) - network.shape.prefix
                add(("unrotated", heads.layer, side), network.turn(x, rotations))
                add(("lengths", heads.layer, side), x.unflatten(-1, (-1, 2)).norm(dim=-1))

    for batch in batches:
        left_out = network.left_out(batch) if isinstance(network, LeavesOut) else None
        count[: batch.inputs.shape[1]] += len(batch.inputs) if left_out is None else (~left_out).sum(0)
        read(network, batch, objective, add_heads)
        scale = network.first_scale(batch) if isinstance(network, KnowsPositions) else None
        if scale is not None:
            add(INVERSE, 1 / scale.double())
        parts = network.first_position_parts(batch) if isinstance(network, AddsPositions) else None
        for side, part in enumerate(parts or ()):
            add(("first", 0, side), part.double())

    def over_positions(key: tuple[str, int, int]) -> Tensor:
        return sums[key].sum(-2) / count.sum()

    def at_positions(key: tuple[str, int, int]) -> Tensor:
        observed = (count > 0)[:, None]
        return (sums[key] / count[:, None]).where(observed, over_positions(key)[..., None, :])

    def by_layer(name: str, evaluate: Callable[[tuple[str, int, int]], Tensor]) -> list[list[Tensor]]:
        return [[evaluate((name, layer, side)) for side in range(2)] for layer in layers]

    return Means(
        by_layer("score", at_positions),
        by_layer("unrotated" if rotates else "score", over_positions),
        by_layer("lengths", over_positions) if rotates else [],
        1 / at_positions(INVERSE) if INVERSE in sums else None,
        [factors[layer] for layer in layers],
        [at_positions(("first", 0, side)) for side in range(2)] if ("first", 0, 0) in sums else [],
    )


def visit_parts(
    network: Network,
    batch: Batch,
    of: Means,
    see: Callable[[int, Parts], object],
    objective: str = "labels",
    mask: Mask = None,
) -> None:
    """Run the network on a batch and call ``see`` with each layer and its parts; ``mask`` masks tokens."""
    scale = network.first_scale(batch, mask) if isinstance(network, KnowsPositions) else None
    first = network.first_position_parts(batch, mask) if isinstance(network, AddsPositions) else None

    def visit(heads: Heads) -> None:
        scores = heads.scores
        scores = replace(scores, q=scores.q.double(), k=scores.k.double())
        position_parts = first if heads.layer == 0 else None
        if position_parts is None:
            position_parts = position_shares(network, heads.layer, of, scale, scores.shape[2])
        q, k = (part.to(scores.q).expand_as(scores.q) for part in position_parts)
        see(heads.layer, Parts(scores, q, k))

    read(network, batch, objective, visit, mask)


def position_shares(
    network: Network, layer: int, of: Means, scale: Float[Tensor, "*batch token 1"] | None, n: int
) -> list[Float[Tensor, "#batch head token d_head"]]:
    """Return the position parts of one layer's queries and keys in sequences of n tokens.

    ``scale`` is the scale of the first layer's norm.
    """
    position_means = [mean[None, :, :n] for mean in of.by_position[layer]]
    # The mean over positions covers all positions, also for shorter sequences.
    centred_means = [
        mean - all_positions[None].mean(2, keepdim=True)
        for mean, all_positions in zip(position_means, of.by_position[layer], strict=True)
    ]
    if not isinstance(network, KnowsPositions):
        return [part[None, :, :n] for part in of.first] if layer == 0 and of.first else centred_means
    if layer == 0 and (vectors := network.position_parts(scale, n)) is not None:
        return list(vectors)
    if network.rotates:
        if layer > 0:
            return position_means
        token_positions = torch.arange(n, dtype=torch.float64) + network.shape.prefix
        return [
            network.turn(mean_vector[None, :, None].expand(1, -1, n, -1), token_positions).cpu()
            for mean_vector in of.unrotated[0]
        ]
    return [torch.zeros_like(mean) for mean in position_means] if layer == 0 or network.silent else centred_means


def mean_position_parts(network: Network, of: Means) -> list[Float[Tensor, "layer head token d_head"]]:
    """Return the mean position parts of queries and of keys over data, in float64 on the CPU."""
    scale, n = None if of.scale is None else of.scale[None], network.shape.n
    parts = [position_shares(network, layer, of, scale, n) for layer in range(network.shape.layers)]
    return [torch.cat([layer_parts[side].double().cpu() for layer_parts in parts]) for side in range(2)]
