r"""Pattern statistics in one pass over blocks of queries: O(block x n) memory at any length.

Each block of scores is made, turned into the pattern by one softmax over all keys of its queries, summed up and
dropped. With the row maximum m taken away the entropy of a row is
$-\log \max_j A_{ij} - \sum_j A_{ij} (S_{ij} - m_i)$, two terms that are never negative: nothing cancels.

Work inside a block is done in the type of q (float32 for half precision), sums over blocks in float64. Errors are about
1e-14 of the largest number for float64 and 1e-6 for float32, where the rounding of the scores themselves adds 1e-7 of
their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry, geometry
from attnprobe.scores import Part, Scores
from attnprobe.statistics.blocks import Group, OffsetSums, groups, over_queries


@dataclass(frozen=True)
class PatternStatistics:
    """Statistics of the pattern of each sequence and head, over real tokens; float64 on the CPU.

    On a grid the axis of offsets is flat (see `Geometry`).
    """

    geometry: Geometry
    """The pairs of a sequence without padding; shared, not to be changed."""
    pairs: Float[Tensor, "batch offset"]
    """Number of pairs at each offset."""
    uniform_by_offset: Float[Tensor, "batch offset"]
    """``mass_by_offset`` of uniform attention."""
    mass_by_offset: Float[Tensor, "batch head offset"]
    """Mean over queries of the attention at each offset; sums to 1."""
    mass_by_key: Float[Tensor, "batch head key"]
    """Attention that each key receives, summed over queries: its mean over real keys is 1, and a sink has much more."""
    entropy: Float[Tensor, "batch head"]
    """Mean over queries of the entropy, in nats."""
    top_keys: Int[Tensor, "batch head query rank"] | None
    """The keys with the largest weights of each query, largest first; -1 where it sees no more keys."""
    top_weights: Float[Tensor, "batch head query rank"] | None
    """Their weights."""

    @property
    def mean_distance(self) -> Float[Tensor, "batch head"]:
        """Mean over queries of the attention-weighted distance."""
        return self.mass_by_offset @ self.geometry.distance

    @property
    def mean_distance_ratio(self) -> Float[Tensor, "batch head"]:
        """The same over that of uniform attention; NaN for a single token."""
        return self.mean_distance / (self.uniform_by_offset @ self.geometry.distance)[:, None]

    def near_mass(self, distance: int | float) -> Float[Tensor, "batch head"]:
        """Return the attention at 0 < distance <= the given one over its uniform share."""
        near = ((self.geometry.distance > 0) & (self.geometry.distance <= distance)).double()
        return self.mass_by_offset @ near / (self.uniform_by_offset @ near)[:, None]

    def mass(self, offsets: Sequence[int] | Sequence[tuple[int, int]]) -> Float[Tensor, "batch head"]:
        """Return the mean over queries of the attention at the given offsets together, 0 ... 1.

        On a grid an offset is (row offset, column offset). Raises `UsageError` for no offset or one that is not there.
        """
        shape, asked = np.array(self.geometry.shape), np.asarray(offsets)
        asked = asked.reshape(len(asked), -1 if len(asked) else 0)
        if asked.size == 0 or asked.shape[1] != len(shape) or (abs(asked) >= shape).any():
            farthest = [int(side) - 1 for side in shape]
            raise UsageError(f"offsets={list(offsets)}: must be one or more, each up to ±{farthest}")
        places = np.ravel_multi_index(tuple((asked + shape - 1).T), self.geometry.sides)
        return self.mass_by_offset[..., np.unique(places)].sum(-1)

    def in_line(self) -> "PatternStatistics":
        """Return the statistics by offset in the reading order, of pixels on a grid."""
        fold = self.geometry.fold
        return replace(
            self,
            geometry=geometry((self.geometry.n,), self.geometry.causal),
            pairs=fold(self.pairs),
            uniform_by_offset=fold(self.uniform_by_offset),
            mass_by_offset=fold(self.mass_by_offset),
        )


@torch.no_grad()
def pattern_statistics(scores: Scores, top: int = 0) -> PatternStatistics:
    """Return the statistics of the softmax of scores, and for each query the ``top`` keys with the largest weights.

    Raises `UsageError` where ``top`` is negative or above the number of tokens.
    """
    scores = scores.checked()
    batch, heads, n = scores.shape
    if not 0 <= top <= n:
        raise UsageError(f"top={top}: must be 0 ... {n}, the number of tokens")
    offsets = len(scores.geometry.count)
    made = PatternStatistics(
        geometry=scores.geometry,
        pairs=torch.zeros(batch, offsets, dtype=torch.float64),
        uniform_by_offset=torch.zeros(batch, offsets, dtype=torch.float64),
        mass_by_offset=torch.zeros(batch, heads, offsets, dtype=torch.float64),
        mass_by_key=torch.zeros(batch, heads, n, dtype=torch.float64),
        entropy=torch.zeros(batch, heads, dtype=torch.float64),
        top_keys=torch.full((batch, heads, n, top), -1) if top else None,
        top_weights=torch.zeros(batch, heads, n, top, dtype=torch.float64) if top else None,
    )
    for part in scores.unpadded():
        places = part.scores.geometry
        made.pairs[part.rows, part.offsets] = places.count
        made.uniform_by_offset[part.rows, part.offsets] = places.uniform / places.n
        for group in groups(part.scores):
            _measure(group, part, made)
    return made


def _measure(group: Group, part: Part, made: PatternStatistics) -> None:
    """Fill in the statistics of one group of matrices."""
    rows, heads, n = part.rows[group.sequences], group.heads, group.geometry.n
    by_offset, by_key, entropy = OffsetSums(group), group.totals(n), group.totals()
    room, more_room = group.memory(), group.memory()
    for block in group.blocks():
        score, pattern = block.of(room, group.size), block.of(more_room, group.size)
        group.write_scores(block, out=score)
        score -= score.amax(-1, keepdim=True)
        torch.softmax(score, -1, out=pattern)
        entropy -= (torch.linalg.vecdot(pattern, score) + pattern.amax(-1).log()).sum(1)
        by_key[:, : block.keys] += over_queries(pattern)
        by_offset.add(pattern, block)
        if made.top_keys is not None and made.top_weights is not None:
            best = score.topk(min(made.top_keys.shape[-1], block.keys), dim=-1).indices
            first, found = part.tokens.start, slice(0, best.shape[-1])
            queries = slice(first + block.start, first + block.stop)
            keys = (best + first).where(group.visible(block).expand(score.shape).gather(-1, best), -1)
            made.top_keys[rows, heads, queries, found] = keys.cpu()
            made.top_weights[rows, heads, queries, found] = pattern.gather(-1, best).double().cpu()
    made.mass_by_offset[rows, heads, part.offsets] = by_offset.sums() / n
    made.mass_by_key[rows, heads, part.tokens] = by_key.cpu()
    made.entropy[rows, heads] = entropy.cpu() / n
