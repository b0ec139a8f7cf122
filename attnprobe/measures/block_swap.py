r"""Positional and symbolic score of a head, from a second forward pass with two blocks of tokens swapped.

A head is *positional* if its scores are invariant under a permutation of the contents of the keys, and *symbolic* if
they are equivariant, so that each score follows its content. Both hold only if the scores of all keys are equal
(Urrutia et al. 2025, arXiv:2511.11579). These definitions are theirs, this estimate is ours: two disjoint blocks of m
consecutive measured tokens, drawn for each sequence, change places in the input. The scores $s_{ij}$ and, with swapped
blocks, $s'_{ij}$ are compared at the 2 m keys j of the blocks, for all queries i outside of them that see all of them:

$$\mathrm{positional} = \frac{\sum \hat s_{ij} \hat s'_{ij}}{\sqrt{\sum \hat s_{ij}^2 \sum \hat s'^2_{ij}}}, \qquad
\mathrm{symbolic} = \frac{\sum \hat s_{ij} \hat s'_{i \pi(j)}}{\sqrt{\sum \hat s_{ij}^2 \sum \hat s'^2_{ij}}}$$

with sums over keys, queries and sequences, scores centred over the 2 m keys, and the content of key j at $\pi(j)$ after
the swap.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

from attnprobe.measures.driver import Number
from attnprobe.measures.proximity import CONSTANT
from attnprobe.networks.base import Network, Reorders
from attnprobe.results import variable
from attnprobe.scores import Scores, bias_of_pairs
from attnprobe.statistics.moments import jackknife_error
from attnprobe.statistics.score import SMALLEST
from attnprobe.training.objectives import Batch

SHARE = 8
"""A block has one of this many tokens of a sequence."""
ELEMENTS = 2**20
"""Maximum number of scores that are held at a time."""

NUMBERS = [
    Number(
        f"{name}_score",
        f"correlation with the score {place} after a swap of tokens",
        method="two blocks of m tokens swapped, pooled, row-centred",
        range=(-1.0, 1.0),
        unstructured="-1 / (2 m - 1)",
        undefined=CONSTANT,
    )
    for name, place in (("positional", "at the same position"), ("symbolic", "of the same token"))
]
"""The two correlations of a head."""


class Sums(NamedTuple):
    """Sums over the pairs of a block key and a query, for each sequence and head, [sequence, head]."""

    same_position: Any
    """Covariance of the scores before and after the swap at the same positions."""
    same_token: Any
    """Covariance of the scores before and after the swap of the same tokens."""
    variance: Any
    """Sum of squares before the swap."""
    variance_after: Any
    """Sum of squares after the swap."""
    scale: Any
    """Magnitude of the terms of the sums of squares, to which rounding errors are relative."""
    queries: Any
    """Number of queries."""


# --- the blocks


@dataclass(frozen=True)
class Swap:
    """Two blocks of tokens that change places in each sequence of a batch."""

    order: Int[Tensor, "batch token"]
    """Token that is at each position after the swap; sequences that are too short stay as they are."""
    keys: Int[Tensor, "batch key"]
    """Positions of the first block, then those of the second one."""
    queries: Bool[Tensor, "batch token"]
    """Measured tokens outside of the blocks; none in sequences that are too short."""


def draw_swap(
    measured: Bool[Tensor, "batch token"], uniform: Float[Tensor, "batch 3"], causal: bool, window: int | None
) -> Swap:
    """Return blocks of n / 8 consecutive measured tokens, but at least two if n > 4, and one in shorter sequences.

    With a sliding window, n is the number of tokens that all see each other, and both blocks are in a stretch of so
    many tokens. The last token of the stretch is in no block if attention is causal, so that at least one query sees
    both blocks.

    Args:
        measured: Which tokens are measured.
        uniform: Uniform random numbers, from which the places of the blocks are computed.
        causal: Whether keys after the query are masked.
        window: Largest distance of a visible key, in the layer in which it is smallest.
    """
    batch, length = measured.shape
    longest = length if window is None else min(length, window + 1)
    size = max(longest // SHARE, 2 if longest > 4 else 1)
    count = measured.sum(1)
    stretch = count.clamp(max=longest)
    long_enough = stretch > 2 * size

    def below(draw: Tensor, limit: Tensor) -> Tensor:
        return (draw * limit.clamp(min=1)).long()

    start = below(uniform[:, 0], count - stretch + 1)
    gaps = [below(uniform[:, i], stretch - 2 * size - int(causal) + 1) for i in (1, 2)]
    first, second = torch.minimum(*gaps), torch.maximum(*gaps) + size
    steps = torch.arange(size)
    places = (start[:, None] + torch.cat([first[:, None] + steps, second[:, None] + steps], dim=1)).clamp(
        max=length - 1
    )
    keys = (~measured).int().argsort(dim=1, stable=True).gather(1, places)
    same = torch.arange(length).expand(batch, -1)
    order = same.scatter(1, keys, keys.roll(size, 1)).where(long_enough[:, None], same)
    return Swap(order, keys, (measured & long_enough[:, None]).scatter(1, keys, False))


def swapped(network: Network, batch: Batch, swap: Swap) -> tuple[Network, Batch] | None:
    """Return a network and a batch with which it runs on swapped tokens, or None if tokens cannot be swapped."""
    if network.shape.inputs_are_tokens:
        order = swap.order.to(batch.inputs.device)
        return network, replace(batch, inputs=batch.inputs[torch.arange(len(order))[:, None], order])
    other = network.reordered(batch, swap.order) if isinstance(network, Reorders) else None
    return None if other is None else (other, batch)


# --- covariances


def covariances(swap: Swap, scores: Scores, after: Scores) -> Sums:
    r"""Return sums for the scores before and after a swap, in float64 on the CPU.

    Without bias they are computed from products $\langle Q_a^\top Q_b, \hat K_a^\top \hat K_b \rangle$, else from the
    scores of the blocks, for some queries at a time.
    """
    both, device = (scores, after), scores.q.device
    keys, seen = swap.keys.to(device), _queries(swap, scores).to(device)
    at_keys = keys[:, None, :, None].expand(-1, scores.shape[1], -1, scores.q.shape[-1])
    q = [one.factor * one.q.double() * seen[:, None, :, None] for one in both]
    k = [one.k.double().gather(2, at_keys) for one in both]
    scale = q[0].square().sum((2, 3)) * k[0].square().sum((2, 3))
    k = [x - x.mean(2, keepdim=True) for x in k]
    if scores.bias is None:
        sums = _sums_of_products(q, k)
    else:
        sums = _sums_of_blocks(q, k, [_bias_of_keys(one, keys) for one in both], seen)
    queries = seen.sum(1)[:, None].expand_as(scale)
    return Sums(*(x.cpu() for x in (*sums, scale, queries.double())))


def _sums_of_products(q: Sequence[Tensor], k: Sequence[Tensor]) -> Iterator[Float[Tensor, "batch head"]]:
    """Yield the first four `Sums` for queries and centred keys."""
    moved = k[1].roll(k[1].shape[2] // 2, 2)
    for i, j, other in ((0, 1, k[1]), (0, 1, moved), (0, 0, k[0]), (1, 1, k[1])):
        yield ((q[i].mT @ q[j]) * (k[i].mT @ other)).sum((-2, -1))


def _sums_of_blocks(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    biases: Sequence[Callable[[Tensor], Tensor]],
    seen: Bool[Tensor, "batch token"],
) -> Float[Tensor, "sum batch head"]:
    """Return the first four `Sums` for queries, centred keys and biases."""
    batch, heads, n, _ = q[0].shape
    total = q[0].new_zeros(4, batch, heads)
    used = seen.any(0).nonzero()[:, 0]
    step = max(1, ELEMENTS // (heads * max(batch * k[0].shape[2], n)))
    for queries in used.split(step) if len(used) else ():
        valid = seen[:, None, queries, None]
        a, b = (x[:, :, queries] @ y.mT + bias(queries) * valid for x, y, bias in zip(q, k, biases, strict=True))
        pairs = (a * b, a * b.roll(k[0].shape[2] // 2, -1), a.square(), b.square())
        total += torch.stack([x.sum((2, 3)) for x in pairs])
    return total


def _queries(swap: Swap, scores: Scores) -> Bool[Tensor, "batch token"]:
    """Return which queries outside of the blocks see all keys of both."""
    first, last = swap.keys.amin(1, keepdim=True), swap.keys.amax(1, keepdim=True)
    query = torch.arange(scores.shape[2])
    seen = swap.queries & (query > last) if scores.causal else swap.queries
    if scores.window is None:
        return seen
    return seen & (last - query <= scores.window) & (query - first <= scores.window)


def _bias_of_keys(scores: Scores, keys: Int[Tensor, "batch key"]) -> Callable[[Tensor], Tensor]:
    """Return a function from queries to their centred bias with the keys of the blocks, [batch, head, query, key]."""
    assert scores.bias is not None
    bias, tokens = scores.bias.double(), torch.arange(scores.shape[2], device=keys.device)

    def centred(queries: Int[Tensor, " query"]) -> Tensor:
        of_keys = bias_of_pairs(bias, scores.sides, queries, tokens)[:, :, keys].permute(2, 0, 1, 3)
        return of_keys - of_keys.mean(-1, keepdim=True)

    return centred


# --- pooled over sequences


@dataclass(frozen=True)
class Pool:
    """Sums of all measured sequences, by layer."""

    by_layer: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Chunks of sequences, [sum, sequence, head]."""

    def add(self, layer: int, sums: Sums) -> None:
        """Add the sums of a chunk of sequences."""
        self.by_layer.setdefault(layer, []).append(np.stack(sums))

    @property
    def layers(self) -> list[Sums]:
        """Sums of each layer."""
        return [Sums(*np.concatenate(self.by_layer[layer], axis=1)) for layer in sorted(self.by_layer)]

    @property
    def without_queries(self) -> np.ndarray:
        """[layer]: whether no query of any sequence sees two blocks."""
        return np.array([not sums.queries.any() for sums in self.layers])

    def variables(self, level: float) -> dict[str, xr.Variable]:
        """Return the `NUMBERS` with t-intervals, from the jackknife error over the sequences with any query."""
        values, errors, counts = [], [], []
        for sums in self.layers:
            total, used = Sums(*(x.sum(0) for x in sums)), sums.queries.any(1)
            without_one = Sums(*(whole - x[used] for whole, x in zip(total, sums, strict=True)))
            values.append(_correlations(total))
            errors.append(jackknife_error(_correlations(without_one)) if used.sum() > 1 else values[-1] * np.nan)
            counts.append(used.sum())
        degrees_of_freedom = np.maximum(np.array(counts) - 1, 1)[:, None, None]
        value, half = np.stack(values), stdtrit(degrees_of_freedom, (1 + level) / 2) * np.stack(errors)
        axes, result = ("layer", "head"), {}
        for i, number in enumerate(NUMBERS):
            estimate = variable(axes, value[..., i], number.meaning, number.units, number.method)
            ends = np.stack([(value - half)[..., i], (value + half)[..., i]], axis=-1)
            about = f"{100 * level:g} % interval: {number.meaning}"
            interval = variable((*axes, "bound"), ends, about, number.units, "jackknife over sequences")
            estimate.attrs |= number.attributes
            interval.attrs |= {"ci_kind": "t", "ci_prob": level}
            result |= {number.name: estimate, f"{number.name}_interval": interval}
        return result


def _correlations(sums: Sums) -> np.ndarray:
    """Return both correlations, [..., head, number], of pooled sums; NaN if all scores are equal up to rounding."""
    smallest = SMALLEST * sums.scale
    known = (sums.variance > smallest) & (sums.variance_after > smallest)
    scale = np.sqrt(np.where(known, sums.variance * sums.variance_after, np.nan))
    return np.clip(np.stack([sums.same_position, sums.same_token], axis=-1) / scale[..., None], -1, 1)
