r"""Statistics of attention patterns in one pass over blocks of queries, with O(block x n) memory.

Each block of scores is computed, normalised by a softmax over all keys of its queries, reduced and discarded. With the
row maximum $m_i$ subtracted, the entropy of a row is $-\log \max_j A_{ij} - \sum_j A_{ij} (S_{ij} - m_i)$. Both terms
are nonnegative, so there is no cancellation.

Blocks are computed in the type of q (float32 for half precision) and summed in float64. Relative to the largest number,
errors are about 1e-14 for float64 and 1e-6 for float32; float32 scores have an additional relative rounding error of
1e-7.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry, quotient
from attnprobe.scores import Part, Scores
from attnprobe.statistics.blocks import Block, Group, OffsetSums, groups, over_queries
from attnprobe.statistics.compiled import Task, in_threads, kernels_for, tasks


@dataclass(frozen=True)
class PatternStatistics:
    """Statistics of the pattern per sequence and head, over real tokens; float64 on the CPU.

    On a grid the offset axis is flattened (see `Geometry`).
    """

    geometry: Geometry
    """Query-key pairs of the tokens that any sequence has; shared, do not modify."""
    pairs: Float[Tensor, "batch offset"]
    """Number of pairs at each offset."""
    uniform_by_offset: Float[Tensor, "batch offset"]
    """``mass_by_offset`` of uniform attention."""
    mass_by_offset: Float[Tensor, "batch head offset"]
    """Mean over queries of the attention weight at each offset; sums to 1."""
    mass_by_key: Float[Tensor, "batch head key"]
    """Attention received by each key, summed over queries: 1 on average, much more for an attention sink."""
    entropy: Float[Tensor, "batch head"]
    """Mean over queries of the attention entropy, in nats."""
    sink_mass: Float[Tensor, "batch head"] | None
    """Mean over queries of the attention to the sink (`Scores.sink`); all others are statistics among tokens."""
    top_keys: Int[Tensor, "batch head query rank"] | None
    """Keys with the largest weights of each query, in descending order; -1 if fewer keys are visible."""
    top_weights: Float[Tensor, "batch head query rank"] | None
    """Weights of `top_keys`."""
    matched_mass: Float[Tensor, "batch head match"] | None
    """Total attention to the earlier keys that match the token of the query, in the sequence of `MATCHES`: mean over
    the queries that have such a key, NaN if none has; None without token ids."""

    @property
    def queries(self) -> Float[Tensor, " batch"]:
        """Number of queries: each has one pair at offset 0."""
        return self.pairs[:, self.pairs.shape[1] // 2]

    @property
    def mean_distance(self) -> Float[Tensor, "batch head"]:
        """Mean over queries of the attention-weighted distance."""
        return self.mass_by_offset @ self.geometry.distance

    @property
    def mean_distance_ratio(self) -> Float[Tensor, "batch head"]:
        """Ratio of `mean_distance` to its value for uniform attention; NaN for a single token."""
        return self.mean_distance / (self.uniform_by_offset @ self.geometry.distance)[:, None]

    @property
    def previous_token_mass(self) -> Float[Tensor, "batch head"]:
        """Mean attention to the token before the query in a line, over queries that have one; NaN if none has."""
        line = self.in_line()
        previous = line.pairs.shape[1] // 2 - 1
        pairs = line.pairs[:, previous] if previous >= 0 else torch.zeros_like(self.queries)
        total = line.mass_by_offset[..., previous] * self.queries[:, None]
        return total / pairs.where(pairs > 0, torch.nan)[:, None]

    @property
    def nmi(self) -> Float[Tensor, "batch head"]:
        r"""Normalised mutual information of query and key (Park et al. 2023, arXiv:2305.00729), from 0 to 1.

        $$\frac{I(Q; K)}{\sqrt{H(Q) H(K)}} = \frac{H(\bar A) - \frac{1}{n} \sum_i H(A_i)}{\sqrt{\log n \; H(\bar A)}}$$

        with uniformly distributed queries, rows $A_i$ of the pattern and their mean $\bar A$. 0 if all queries attend
        alike (also in the limit of a single key, where $H(\bar A) = 0$), 1 if each attends to one key of its own; NaN
        for a single token. Causal queries see different keys, so their NMI is above 0 for uniform attention too.
        """
        queries = self.queries[:, None]
        of_keys = torch.special.entr(self.mass_by_key / queries[..., None]).sum(-1)
        information = (of_keys - self.entropy).clamp(min=0)
        nmi = quotient(information, (queries.log() * of_keys).sqrt()).clamp(max=1)
        return nmi.where(queries > 1, torch.nan)

    def near_mass(self, distance: int | float) -> Float[Tensor, "batch head"]:
        """Return the attention at 0 < offset distance <= ``distance``, divided by its value for uniform attention."""
        near = ((self.geometry.distance > 0) & (self.geometry.distance <= distance)).double()
        return self.mass_by_offset @ near / (self.uniform_by_offset @ near)[:, None]

    def mass(self, offsets: Sequence[int] | Sequence[tuple[int, int]]) -> Float[Tensor, "batch head"]:
        """Return the mean over queries of the total attention at the given offsets, between 0 and 1.

        On a grid each offset is (row offset, column offset). Raises `UsageError` if there are no offsets, or if one is
        out of range.
        """
        shape, array = np.array(self.geometry.shape), np.asarray(offsets)
        array = array.reshape(len(array), -1 if len(array) else 0)
        if array.size == 0 or array.shape[1] != len(shape) or (abs(array) >= shape).any():
            largest = [int(side) - 1 for side in shape]
            raise UsageError(f"offsets={list(offsets)}: must be one or more, each up to ±{largest}")
        indices = np.ravel_multi_index(tuple((array + shape - 1).T), self.geometry.sides)
        return self.mass_by_offset[..., np.unique(indices)].sum(-1)

    def in_line(self) -> "PatternStatistics":
        """Convert the statistics by offset from 2-D offsets to 1-D offsets in row-major order."""
        if len(self.geometry.shape) == 1:
            return self
        fold = self.geometry.fold
        return replace(
            self,
            geometry=self.geometry.line,
            pairs=fold(self.pairs),
            uniform_by_offset=fold(self.uniform_by_offset),
            mass_by_offset=fold(self.mass_by_offset),
        )


MATCHES = ("duplicate", "induction")
"""Earlier keys that match the token of a query: those that are the same token, and those that follow the same token."""


@torch.no_grad()
def pattern_statistics(scores: Scores, top: int = 0, tokens: Tensor | None = None) -> PatternStatistics:
    """Return statistics of the softmax of scores, and for each query the ``top`` keys with the largest weights.

    A sink is not among the keys of the softmax. ``tokens``, [batch, token], are the token ids (without prefix and
    suffix) for `PatternStatistics.matched_mass`; `Scores.order` does not move them.

    Raises `UsageError` if ``top`` is negative or larger than the number of tokens, or if ``tokens`` has another shape.
    """
    scores = scores.checked()
    batch, heads, n = scores.shape
    if not 0 <= top <= n:
        raise UsageError(f"top={top}: must be 0 ... {n}, the number of tokens")
    if tokens is not None and (tokens.shape != (batch, n) or tokens.is_floating_point()):
        raise UsageError(
            f"tokens of shape {tuple(tokens.shape)} and type {tokens.dtype}: must be integers [batch, token] = "
            f"{(batch, n)}"
        )
    offsets = len(scores.geometry.count)
    result = PatternStatistics(
        geometry=scores.geometry,
        pairs=torch.zeros(batch, offsets, dtype=torch.float64),
        uniform_by_offset=torch.zeros(batch, offsets, dtype=torch.float64),
        mass_by_offset=torch.zeros(batch, heads, offsets, dtype=torch.float64),
        mass_by_key=torch.zeros(batch, heads, n, dtype=torch.float64),
        entropy=torch.zeros(batch, heads, dtype=torch.float64),
        sink_mass=None if scores.sink is None else torch.zeros(batch, heads, dtype=torch.float64),
        top_keys=torch.full((batch, heads, n, top), -1) if top else None,
        top_weights=torch.zeros(batch, heads, n, top, dtype=torch.float64) if top else None,
        matched_mass=None if tokens is None else torch.zeros(batch, heads, len(MATCHES), dtype=torch.float64),
    )
    kernels = kernels_for(scores)
    for part in scores.parts():
        result.pairs[part.rows, part.offsets] = part.geometry.count
        result.uniform_by_offset[part.rows, part.offsets] = part.geometry.uniform / part.geometry.tokens
        matches = None if tokens is None else _Matches.of(tokens, part)
        if kernels is None:
            sums = (_sums(group, top, matches) for group in groups(part))
        else:
            sums = in_threads(partial(_compiled_sums, make, top, matches, kernels) for make in tasks(part))
        for of_group in sums:
            _add(of_group, part, result)
        if matches is not None and result.matched_mass is not None:
            counts = matches.queries.where(matches.queries > 0, torch.nan)
            result.matched_mass[part.rows] /= counts[:, None]
    return result


@dataclass(frozen=True)
class _Matches:
    """Token ids of the sequences of a part, numbered from 0."""

    tokens: Int[Tensor, "sequence token"]
    """Id of each query."""
    keys: Int[Tensor, "sequence match token"]
    """Ids of each key: its own and that of the token before it; -1 if it never matches."""
    queries: Float[Tensor, "sequence match"]
    """Number of queries that have a visible earlier key with their id."""

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch token"], part: Part) -> "_Matches":
        """Number the ids of the sequences of a part."""
        ids = tokens[part.rows.to(tokens.device), part.tokens].unique(return_inverse=True)[1].cpu()
        present, n = part.geometry.present, ids.shape[1]
        own = ids.where(present, -1)
        before = F.pad(own[:, :-1], (1, 0), value=-1).where(present, -1)
        keys = torch.stack([own, before], dim=1)
        # The latest earlier key with the id of the query, from a search among keys sorted by id and position.
        places = (keys * n + torch.arange(n)).sort(-1).values
        wanted = (ids * n + torch.arange(n))[:, None].expand_as(keys).contiguous()
        found = places.gather(-1, (torch.searchsorted(places, wanted) - 1).clamp(min=0))
        window = n if part.geometry.window is None else part.geometry.window
        has_key = (found // n == ids[:, None]) & (found < wanted) & (wanted - found <= window) & present
        device = part.scores.q.device
        return cls(ids.int().to(device), keys.int().to(device), has_key.sum(-1).double())

    def mass(self, pattern: Float[Tensor, "matrix query key"], group: Group, block: Block) -> Tensor:
        """Return the attention of a block to the matching keys, [matrix, match]; it must be 0 at invisible keys."""
        tokens, keys = self.tokens[group.sequences], self.keys[group.sequences]
        matching = (tokens[:, None, block.queries, None] == keys[:, :, None, block.keys]).to(pattern)
        first = block.keys.start
        matching[..., block.start - first : block.stop - first].tril_(-1)
        matching[..., block.stop - first :] = 0
        by_sequence = pattern.unflatten(0, (len(keys), -1)).flatten(2)
        return torch.cat([by_sequence @ x.flatten(1)[..., None] for x in matching.unbind(1)], dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class _Sums:
    """Sums over queries of the matrices of a group."""

    group: Group
    by_offset: Float[Tensor, "matrix offset"]
    by_key: Float[Tensor, "matrix key"]
    entropy: Float[Tensor, " matrix"]
    sink_mass: Float[Tensor, " matrix"]
    matched_mass: Float[Tensor, "matrix match"]
    top: list[tuple[Block, Tensor, Tensor]]
    """For each block the keys with the largest weights, counted from its first key, and their weights, [matrix, query,
    rank]."""


def _sums(group: Group, top: int, matches: _Matches | None) -> _Sums:
    """Return the sums of all queries of a group."""
    by_offset, by_key = OffsetSums(group), group.totals(group.geometry.n)
    entropy, sink_mass = group.totals(), group.totals()
    matched_mass, best = group.totals(len(MATCHES)), []
    score_buffer, pattern_buffer = group.memory(), group.memory()
    for block in group.blocks():
        score, pattern = block.of(score_buffer, group.size), block.of(pattern_buffer, group.size)
        group.write_scores(block, out=score)
        entropies, level = _softmax(group, score, pattern)
        if group.geometry.absent:
            present = group.present(block)
            pattern *= present[:, None]
            entropies *= present
        entropy += entropies.sum(1)
        if group.sink is not None:
            weights = (group.sink[:, None] - level).sigmoid()
            sink_mass += (weights * group.present(block)).sum(1)
        by_key[:, block.keys] += over_queries(pattern)
        by_offset.add(pattern, block)
        if matches is not None:
            matched_mass += matches.mass(pattern, group, block)
        if top:
            keys = score.topk(min(top, block.width), dim=-1).indices
            best.append((block, keys, pattern.gather(-1, keys)))
    return _Sums(group, by_offset.sums(), by_key, entropy, sink_mass, matched_mass, best)


def _softmax(group: Group, score: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of a block, and return the entropy and the log of the sum of exponentials of each row.

    The maximum of each row may have been subtracted from its scores afterwards.
    """
    if group.kernels is not None:
        return group.kernels.softmax(score, pattern)
    largest = score.amax(-1, keepdim=True)
    score -= largest
    torch.softmax(score, -1, out=pattern)
    log_largest_weight = pattern.amax(-1).log()
    entropy = -(torch.linalg.vecdot(pattern, score) + log_largest_weight)
    return entropy, largest[..., 0] - log_largest_weight


def _compiled_sums(make: Callable[[], Task], top: int, matches: _Matches | None, kernels: ModuleType) -> _Sums:
    """Return the sums of the queries of a task, by compiled loops."""
    task = make()
    group, layout, memory = task.group, task.layout, task.group.memory()
    by_offset, by_key = group.totals(len(group.geometry.count)), group.totals(group.geometry.n)
    entropy, sink_mass, best = group.totals(), group.totals(), []
    matched_mass = group.totals(len(MATCHES))
    for block in group.blocks(task.span):
        weights = task.product(block, group.q, group.k, memory)
        peaks, totals = torch.zeros(2, *weights.shape[:2], dtype=torch.float64)
        sums = [x.numpy() for x in (by_key, by_offset, entropy, peaks, totals)]
        kernels.pattern_block(weights.numpy(), block.start, block.keys.start, *layout, *sums)
        if group.sink is not None:
            level = peaks * math.log(2) + totals.log()
            sink_mass += ((group.sink[:, None] - level).sigmoid() * group.present(block)).sum(1)
        if matches is not None:
            window = group.geometry.n if group.geometry.window is None else group.geometry.window
            ids = [x[group.sequences].numpy() for x in (matches.tokens, matches.keys)]
            sums = (totals.numpy(), matched_mass.numpy())
            kernels.add_matches(weights.numpy(), block.start, block.keys.start, window, *ids, *sums)
        if top:
            weights /= totals[..., None]
            weights.masked_fill_(~group.visible(block), 0)
            largest = weights.topk(min(top, block.width), dim=-1)
            best.append((block, largest.indices, largest.values))
    return _Sums(group, by_offset, by_key, entropy, sink_mass, matched_mass, best)


def _add(sums: _Sums, part: Part, result: PatternStatistics) -> None:
    """Add the sums of a group, or of some of its queries, to the result."""
    group, queries = sums.group, sums.group.geometry.tokens
    rows, heads, by_sequence = part.at(group.sequences), group.heads, group.by_sequence
    result.mass_by_offset[rows, heads, part.offsets] += by_sequence(sums.by_offset / queries)
    result.mass_by_key[rows, heads, part.tokens] += by_sequence(sums.by_key)
    result.entropy[rows, heads] += by_sequence(sums.entropy / queries)
    if result.sink_mass is not None:
        result.sink_mass[rows, heads] += by_sequence(sums.sink_mass / queries)
    if result.matched_mass is not None:
        result.matched_mass[rows, heads] += by_sequence(sums.matched_mass)
    if result.top_keys is not None and result.top_weights is not None:
        for block, keys, weights in sums.top:
            first, ranks = part.tokens.start, slice(0, keys.shape[-1])
            at = slice(first + block.start, first + block.stop)
            visible = group.visible(block).expand(*keys.shape[:2], -1).gather(-1, keys)
            keys = (keys + first + block.keys.start).where(visible, -1)
            result.top_keys[rows, heads, at, ranks] = by_sequence(keys)
            result.top_weights[rows, heads, at, ranks] = by_sequence(weights.double())
