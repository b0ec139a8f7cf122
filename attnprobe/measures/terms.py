r"""The four terms of a score: content and position of the query, times content and position of the key.

Queries and keys, as they enter the score, are split, $q_i = q^c_i + q^p_i$ and $k_j = k^c_j + k^p_j$, so that

$$S_{ij} = \frac{1}{\sqrt{d_{head}}} \left( q^c_i k^c_j + q^c_i k^p_j + q^p_i k^c_j + q^p_i k^p_j \right) + b(j - i),$$

where the bias, of the encoding or imposed, counts as position-position. The position part is

- layer 0, encodings that add a vector $p_i$: what $p_i - \bar p$ contributes, exactly: through the norm, with the
  scale that it had for this token in the forward pass, and through $W_Q$ or $W_K$;
- layer 0, rotary: the mean query (key) over data and positions, rotated to position i: all that the rotation does to
  content on average;
- deeper layers: the mean over data of what stands at position i, less its mean over positions (Song & Zhong 2023,
  arXiv:2310.04861); with rotary positions not less that mean, which the rotation makes depend on i;
- nothing where the network cannot know positions: without encoding and mask in every layer, and in layer 0 without a
  vector or rotation.

A network that does not know its encoding (`KnowsPositions`) has the mean over data in every layer.

What all positions have in common, biases of the maps included, is content. Means are taken over other sequences than
those that are split, so that no sequence finds itself in its mean. In deeper layers a mean that differs between
positions may come from the encoding or from data that do (the border of an image): networks at initialisation show how
much the data do alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.networks.base import KnowsPositions, Mask, Network, read
from attnprobe.scores import Heads, Scores
from attnprobe.training.objectives import Batch

TERMS = ("content-content", "content-position", "position-content", "position-position")
"""Query first."""


@dataclass(frozen=True)
class Parts:
    """The score of one layer in float64, and the position's part of its queries and keys."""

    scores: Scores
    q_position: Float[Tensor, "batch head token d_head"]
    k_position: Float[Tensor, "batch head token d_head"]

    @property
    def terms(self) -> dict[str, Scores]:
        """The four scores that add up to it; the bias counts as position-position."""
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
    """Means over data, by layer, of queries and keys; float64 on the CPU."""

    by_position: list[list[Float[Tensor, "head token d_head"]]]
    """As they enter the score, at each position."""
    unrotated: list[list[Float[Tensor, "head d_head"]]]
    """Before any rotation, over all positions."""
    lengths: list[list[Float[Tensor, "head pair"]]]
    """Of the lengths in each pair of coordinates, over all positions; empty if nothing rotates."""
    scale: Float[Tensor, "token 1"] | None
    """Harmonic mean of the scale of the first layer's norm, at each position; None without a norm, or if not known."""


INVERSE = ("inverse scale", 0, 0)


@torch.no_grad()
def means(network: Network, batches: Iterable[Batch], objective: str = "labels") -> Means:
    """Return the means over batches; a position that no sequence has gets the mean of the others."""
    n, layers = network.shape.n, range(network.shape.layers)
    rotates = isinstance(network, KnowsPositions) and network.rotates
    sums: dict[tuple[str, int, int], Tensor] = {}
    count = torch.zeros(n, dtype=torch.float64)

    def add(key: tuple[str, int, int], x: Float[Tensor, "*lead token width"]) -> None:
        if key not in sums:
            sums[key] = x.new_zeros(*x.shape[:-2], n, x.shape[-1])
        sums[key][..., : x.shape[-2], :] += x

    def see(heads: Heads) -> None:
        scores = heads.scores
        for side, x in enumerate((scores.q.double(), scores.k.double())):
            add(("score", heads.layer, side), x.sum(0).cpu())
            if isinstance(network, KnowsPositions) and rotates:
                places = -torch.arange(x.shape[2], dtype=torch.float64) - network.shape.prefix
                add(("unrotated", heads.layer, side), network.turn(x, places).sum(0).cpu())
                add(("lengths", heads.layer, side), x.unflatten(-1, (-1, 2)).norm(dim=-1).sum(0).cpu())

    for batch in batches:
        count[: batch.inputs.shape[1]] += len(batch.inputs)
        read(network, batch, objective, see)
        scale = network.first_scale(batch) if isinstance(network, KnowsPositions) else None
        if scale is not None:
            add(INVERSE, (1 / scale.double()).sum(0).cpu())

    def over_positions(key: tuple[str, int, int]) -> Tensor:
        return sums[key].sum(-2) / count.sum()

    def at_positions(key: tuple[str, int, int]) -> Tensor:
        known = (count > 0)[:, None]
        return (sums[key] / count[:, None]).where(known, over_positions(key)[..., None, :])

    def by_layer(what: str, of: Callable[[tuple[str, int, int]], Tensor]) -> list[list[Tensor]]:
        return [[of((what, layer, side)) for side in range(2)] for layer in layers]

    return Means(
        by_layer("score", at_positions),
        by_layer("unrotated" if rotates else "score", over_positions),
        by_layer("lengths", over_positions) if rotates else [],
        1 / at_positions(INVERSE) if INVERSE in sums else None,
    )


def visit_parts(
    network: Network,
    batch: Batch,
    of: Means,
    see: Callable[[int, Parts], object],
    objective: str = "labels",
    mask: Mask = None,
) -> None:
    """Show each layer's parts on a batch, some of its tokens hidden, as they come in a forward pass."""
    scale = network.first_scale(batch, mask) if isinstance(network, KnowsPositions) else None

    def see_heads(heads: Heads) -> None:
        scores = heads.scores
        scores = replace(scores, q=scores.q.double(), k=scores.k.double())
        shares = position_shares(network, heads.layer, of, scale, scores.shape[2])
        q, k = (share.to(scores.q).expand_as(scores.q) for share in shares)
        see(heads.layer, Parts(scores, q, k))

    read(network, batch, objective, see_heads, mask)


def position_shares(
    network: Network, layer: int, of: Means, scale: Float[Tensor, "*batch token 1"] | None, n: int
) -> list[Float[Tensor, "#batch head token d_head"]]:
    """Return the position parts of one layer's queries and keys in sequences of n tokens.

    ``scale`` is that of the first layer's norm.
    """
    means_here = [mean[None, :, :n] for mean in of.by_position[layer]]
    # The mean over positions is that over all of them, whatever the length of the sequence.
    centred = [
        mean - of_all[None].mean(2, keepdim=True)
        for mean, of_all in zip(means_here, of.by_position[layer], strict=True)
    ]
    if not isinstance(network, KnowsPositions):
        return centred
    if layer == 0 and (vectors := network.position_parts(scale, n)) is not None:
        return list(vectors)
    if network.rotates:
        if layer > 0:
            return means_here
        places = torch.arange(n, dtype=torch.float64) + network.shape.prefix
        return [network.turn(level[None, :, None].expand(1, -1, n, -1), places).cpu() for level in of.unrotated[0]]
    return [torch.zeros_like(mean) for mean in means_here] if layer == 0 or network.silent else centred


def mean_position_parts(network: Network, of: Means) -> list[Float[Tensor, "layer head token d_head"]]:
    """Return the position parts of queries and of keys, mean over data, in float64 on the CPU."""
    scale, n = None if of.scale is None else of.scale[None], network.shape.n
    shares = [position_shares(network, layer, of, scale, n) for layer in range(network.shape.layers)]
    return [torch.cat([of_layer[side].double().cpu() for of_layer in shares]) for side in range(2)]
