r"""Score gradients in one pass over blocks of queries: O(block x n) memory at any length.

With $g_i = \partial L / \partial z_i$, the gradient with respect to the output of the head before $W_O$
(TransformerLens's ``hook_z``), the exact gradient with respect to the score is

$$\frac{\partial L}{\partial S_{ij}} = A_{ij} \Big( g_i \cdot v_j - \sum_k A_{ik}\, g_i \cdot v_k \Big).$$

Its rows sum to 0. Each block of it is made, summed up and dropped; precision is that of `attnprobe.statistics.pattern`,
relative to the sum of the absolute values of what is summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.statistics.blocks import Group, OffsetSums, groups, over_queries
from attnprobe.statistics.geometry import Geometry
from attnprobe.statistics.inputs import Part, Scores, check_finite, check_shape


@dataclass(frozen=True)
class GradientStatistics:
    """Sums of the score gradient of each sequence and head, over visible pairs of real tokens; float64 on the CPU.

    On a grid the axis of offsets is flat (see `Geometry`).
    """

    geometry: Geometry
    """The pairs of a sequence without padding; shared, not to be changed."""
    pairs: Float[Tensor, "batch offset"]
    """Number of pairs at each offset."""
    by_offset: Float[Tensor, "batch head offset"]
    """Sum over the pairs at each offset."""
    by_key: Float[Tensor, "batch head key"]
    """Sum over queries."""
    square: Float[Tensor, "batch head"]
    """Sum of squares."""
    along: Float[Tensor, "batch head direction"]
    r"""$\langle \partial L / \partial S, D \rangle$ for each direction D that was given as factors."""

    def along_offsets(self, function: Float[Tensor, "*direction offset"]) -> Float[Tensor, "batch head *direction"]:
        """Return the products with directions that are functions of the offset, $D_{ij} = f(j - i)$."""
        if function.shape[-1] != self.by_offset.shape[-1]:
            raise UsageError(f"function of shape {tuple(function.shape)}: must have {self.by_offset.shape[-1]} offsets")
        check_finite("function", function)
        return torch.einsum("bho,...o->bh...", self.by_offset, function.double().cpu())


@torch.no_grad()
def gradient_statistics(
    scores: Scores, v: Tensor, dz: Tensor, directions: Sequence[tuple[Tensor, Tensor]] = ()
) -> GradientStatistics:
    r"""Return sums of the gradient of a loss with respect to scores.

    ``v`` and ``dz``, values and $\partial L / \partial z$, are [batch, head, token, d_head]; with one loss a sequence
    the sums are those of each sequence. A direction is two factors, left [..., query, rank] and right [..., key, rank],
    with leading axes that broadcast with [batch, head]: $D_{ij} = \sum_r l_{ir}\, r_{jr}$. Raises `UsageError` where
    shapes do not agree or a value is not finite.
    """
    batch, heads, n = scores.shape
    for name, x in (("v", v), ("dz", dz)):
        check_shape(name, x, ("batch", "head", "token", "d_head"))
        if x.shape[:3] != scores.shape or x.shape != v.shape or x.device != scores.q.device:
            raise UsageError(
                f"{name} of shape {tuple(x.shape)}: must be {[*scores.shape, 'd_head']} as q, on {scores.q.device}, "
                "and v as dz"
            )
        check_finite(name, x)
    if scores.order is not None:
        raise UsageError("scores with an order: a gradient belongs to the scores as they are")
    expanded = [_factors(number, pair, scores) for number, pair in enumerate(directions)]
    offsets = len(scores.geometry.count)
    made = GradientStatistics(
        geometry=scores.geometry,
        pairs=torch.zeros(batch, offsets, dtype=torch.float64),
        by_offset=torch.zeros(batch, heads, offsets, dtype=torch.float64),
        by_key=torch.zeros(batch, heads, n, dtype=torch.float64),
        square=torch.zeros(batch, heads, dtype=torch.float64),
        along=torch.zeros(batch, heads, len(expanded), dtype=torch.float64),
    )
    for part in scores.unpadded():
        made.pairs[part.rows, part.offsets] = part.scores.geometry.count
        own = part.rows.to(v.device)
        shown = [x[own, :, part.tokens] for x in (v, dz, *(factor for pair in expanded for factor in pair))]
        for group in groups(part.scores):
            _measure(group, part, made, [group.take(x) for x in shown])
    return made


def _measure(group: Group, part: Part, made: GradientStatistics, taken: Sequence[Tensor]) -> None:
    """Fill in the sums of one group of matrices; taken are v, dz and the factors of the directions."""
    v, dz, *factors = taken
    rows, heads = part.rows[group.sequences], group.heads
    unit = dz.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(dz.dtype).tiny)  # squares of small gradients
    dz = dz / unit
    by_offset, by_key, square = OffsetSums(group), group.totals(group.geometry.n), group.totals()
    along = group.totals(len(factors) // 2)
    room, more_room = group.memory(), group.memory()
    for block in group.blocks():
        gradient, pattern = block.of(room, group.size), block.of(more_room, group.size)
        group.write_scores(block, out=gradient)
        torch.softmax(gradient, -1, out=pattern)
        torch.bmm(dz[:, block.queries], v[:, : block.keys].mT, out=gradient)
        gradient -= torch.linalg.vecdot(pattern, gradient)[..., None]
        gradient *= pattern
        by_offset.add(gradient, block)
        by_key[:, : block.keys] += over_queries(gradient)
        square += torch.linalg.vecdot(gradient, gradient).sum(1)
        for number in range(along.shape[1]):
            left, right = factors[2 * number], factors[2 * number + 1]
            along[:, number] += (left[:, block.queries] * (gradient @ right[:, : block.keys])).sum((1, 2))
    back = unit[:, 0].double().cpu()
    made.by_offset[rows, heads, part.offsets] = by_offset.sums() * back
    made.by_key[rows, heads, part.tokens] = by_key.cpu() * back
    made.square[rows, heads] = square.cpu() * back[:, 0].square()
    made.along[rows, heads] = along.cpu() * back


def _factors(number: int, pair: tuple[Tensor, Tensor], scores: Scores) -> tuple[Tensor, Tensor]:
    """Return both factors of a direction as [batch, head, token, rank]."""
    batch, heads, n = scores.shape
    for side, factor in zip(("left", "right"), pair, strict=True):
        name = f"{side} factor of direction {number}"
        fits = factor.ndim >= 2 and factor.shape[-2:] == (n, pair[0].shape[-1]) and factor.device == scores.q.device
        leading = factor.shape[:-2]
        if (
            not fits
            or len(leading) > 2
            or any(a not in (1, b) for a, b in zip(leading[::-1], (heads, batch), strict=False))
        ):
            raise UsageError(
                f"{name} of shape {tuple(factor.shape)}: must be [batch, head, token, rank] = "
                f"{[batch, heads, n, pair[0].shape[-1]]} or broadcast to it"
            )
        check_finite(name, factor)
    left, right = (factor.expand(batch, heads, *factor.shape[-2:]) for factor in pair)
    return left, right
