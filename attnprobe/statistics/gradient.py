r"""Score gradients in one pass over blocks of queries: O(block x n) memory at any length.

With $g_i = \partial L / \partial z_i$, the gradient with respect to the output of the head before $W_O$
(TransformerLens's ``hook_z``), the exact gradient with respect to the score is

$$\frac{\partial L}{\partial S_{ij}} = A_{ij} \Big( g_i \cdot v_j - \sum_k A_{ik}\, g_i \cdot v_k \Big).$$

Its rows sum to 0. Each block of it is made, summed up and dropped; precision is that of `attnprobe.statistics.pattern`,
relative to the sum of the absolute values of what is summed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry, geometry
from attnprobe.scores import Part, Scores, check_alike, check_finite, check_shape
from attnprobe.statistics.blocks import Block, Group, OffsetSums, groups, over_queries


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
    bilinear: Float[Tensor, "batch head d_model d_model_"] | None
    r"""$X^\top (\partial L / \partial S) X$ for the inputs X that were given: where $S = X M X^\top$, this is
    $\partial L / \partial M$."""
    along: Float[Tensor, "batch head direction"]
    r"""$\langle \partial L / \partial S, D \rangle$ for each direction D that was given as factors."""

    def in_line(self) -> "GradientStatistics":
        """Return the statistics by offset in the reading order, of pixels on a grid."""
        fold = self.geometry.fold
        line = geometry((self.geometry.n,), self.geometry.causal)
        return replace(self, geometry=line, pairs=fold(self.pairs), by_offset=fold(self.by_offset))

    def along_offsets(self, function: Float[Tensor, "*direction offset"]) -> Float[Tensor, "batch head *direction"]:
        """Return the products with directions that are functions of the offset, $D_{ij} = f(j - i)$."""
        if function.shape[-1] != self.by_offset.shape[-1]:
            raise UsageError(f"function of shape {tuple(function.shape)}: must have {self.by_offset.shape[-1]} offsets")
        check_finite("function", function)
        return torch.einsum("bho,...o->bh...", self.by_offset, function.double().cpu())


@torch.no_grad()
def gradient_statistics(
    scores: Scores,
    v: Tensor,
    dz: Tensor,
    directions: Sequence[tuple[Tensor, Tensor]] = (),
    inputs: Tensor | None = None,
) -> GradientStatistics:
    r"""Return sums of the gradient of a loss with respect to scores.

    ``v`` and ``dz``, values and $\partial L / \partial z$, are [batch, head, token, d_head]; with one loss a sequence
    the sums are those of each sequence. A direction is two factors, left [..., query, rank] and right [..., key, rank],
    with leading axes that broadcast with [batch, head]: $D_{ij} = \sum_r l_{ir}\, r_{jr}$. ``inputs``, [batch, token,
    d_model], are for `GradientStatistics.bilinear`. With an order (a null) the gradient is that of the scores as they
    are, and its entries are rearranged as the order rearranges scores. Raises `UsageError` where shapes do not agree or
    a value is not finite.
    """
    scores = scores.checked()
    batch, heads, n = scores.shape
    _check(scores, v, dz)
    if inputs is not None:
        check_shape("inputs", inputs, ("batch", "token", "d_model"))
        if inputs.shape[:2] != (batch, n) or inputs.device != scores.q.device:
            raise UsageError(
                f"inputs of shape {tuple(inputs.shape)}: must be [batch, token, d_model] = {[batch, n, 'd_model']}, on "
                f"{scores.q.device}"
            )
        check_finite("inputs", inputs)
    expanded = [_factors(number, pair, scores) for number, pair in enumerate(directions)]
    offsets = len(scores.geometry.count)
    made = GradientStatistics(
        geometry=scores.geometry,
        pairs=torch.zeros(batch, offsets, dtype=torch.float64),
        by_offset=torch.zeros(batch, heads, offsets, dtype=torch.float64),
        by_key=torch.zeros(batch, heads, n, dtype=torch.float64),
        square=torch.zeros(batch, heads, dtype=torch.float64),
        bilinear=None
        if inputs is None
        else torch.zeros(batch, heads, inputs.shape[2], inputs.shape[2], dtype=torch.float64),
        along=torch.zeros(batch, heads, len(expanded), dtype=torch.float64),
    )
    given = [] if inputs is None else [inputs[:, None].expand(-1, heads, -1, -1)]
    for part in scores.unpadded():
        made.pairs[part.rows, part.offsets] = part.scores.geometry.count
        own = part.rows.to(v.device)
        shown = [x[own, :, part.tokens] for x in (v, dz, *given, *(factor for pair in expanded for factor in pair))]
        for group in groups(part.scores):
            _measure(group, part, made, [group.take(x) for x in shown])
    return made


@torch.no_grad()
def gradient_product(a: tuple[Scores, Tensor, Tensor], b: tuple[Scores, Tensor, Tensor]) -> Float[Tensor, "batch head"]:
    """Return the inner product of the score gradients of two losses, each given as scores, v and dz; no padding."""
    a, b = ((one[0].checked(), *one[1:]) for one in (a, b))
    check_alike(a[0], b[0])
    for scores, v, dz in (a, b):
        _check(scores, v, dz)
    made = torch.zeros(a[0].shape[:2], dtype=torch.float64)
    plain = [replace(scores, order=None) for scores, _, _ in (a, b)]  # an order changes no product
    for of_a, of_b in zip(*map(groups, plain), strict=True):
        total = of_a.totals()
        given = [(group, group.take(v), group.take(dz)) for group, (_, v, dz) in ((of_a, a), (of_b, b))]
        units = [_unit(dz) for _, _, dz in given]
        pairs = [_gradient(group, v, dz / unit) for (group, v, dz), unit in zip(given, units, strict=True)]
        for (_, one), (_, other) in zip(*pairs, strict=True):
            total += torch.linalg.vecdot(one, other).sum(1)
        made[of_a.sequences, of_a.heads] = total.cpu() * (units[0].double() * units[1].double())[:, 0, 0].cpu()
    return made


def _check(scores: Scores, v: Tensor, dz: Tensor) -> None:
    for name, x in (("v", v), ("dz", dz)):
        check_shape(name, x, ("batch", "head", "token", "d_head"))
        if x.shape[:3] != scores.shape or x.shape != v.shape or x.device != scores.q.device:
            raise UsageError(
                f"{name} of shape {tuple(x.shape)}: must be {[*scores.shape, 'd_head']} as q, on {scores.q.device}, "
                "and v as dz"
            )
        check_finite(name, x)


def _gradient(group: Group, v: Tensor, dz: Tensor) -> Iterator[tuple[Block, Tensor]]:
    """Yield the gradient in blocks, [matrix, query, key], each until the next is asked for."""
    room, more_room = group.memory(), group.memory()
    for block in group.blocks():
        gradient, pattern = block.of(room, group.size), block.of(more_room, group.size)
        group.write_scores(block, out=gradient)
        torch.softmax(gradient, -1, out=pattern)
        group.write_products(block, dz, v, out=gradient)
        gradient -= torch.linalg.vecdot(pattern, gradient)[..., None]
        gradient *= pattern
        yield block, gradient


def _unit(dz: Tensor) -> Tensor:
    """Return the size of gradients, [matrix, 1, 1], in units of which their squares do not vanish."""
    return dz.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(dz.dtype).tiny)


def _measure(group: Group, part: Part, made: GradientStatistics, taken: Sequence[Tensor]) -> None:
    """Fill in the sums of one group of matrices; taken are v, dz, inputs if any, and the factors of the directions."""
    v, dz, *factors = taken
    inputs = None if made.bilinear is None else factors.pop(0)
    rows, heads = part.rows[group.sequences], group.heads
    unit = _unit(dz)
    by_offset, by_key, square = OffsetSums(group), group.totals(group.geometry.n), group.totals()
    along = group.totals(len(factors) // 2)
    bilinear = None if inputs is None else group.totals(inputs.shape[2], inputs.shape[2])
    for block, gradient in _gradient(group, v, dz / unit):
        by_offset.add(gradient, block)
        by_key[:, : block.keys] += over_queries(gradient)
        square += torch.linalg.vecdot(gradient, gradient).sum(1)
        for number in range(along.shape[1]):
            left, right = factors[2 * number], factors[2 * number + 1]
            along[:, number] += (left[:, block.queries] * (gradient @ right[:, : block.keys])).sum((1, 2))
        if inputs is not None and bilinear is not None:
            bilinear += inputs[:, block.queries].mT @ (gradient @ inputs[:, : block.keys])
    back = unit[:, 0].double().cpu()
    made.by_offset[rows, heads, part.offsets] = by_offset.sums() * back
    made.by_key[rows, heads, part.tokens] = by_key.cpu() * back
    made.square[rows, heads] = square.cpu() * back[:, 0].square()
    made.along[rows, heads] = along.cpu() * back
    if made.bilinear is not None and bilinear is not None:
        made.bilinear[rows, heads] = bilinear.cpu() * back[..., None]


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
