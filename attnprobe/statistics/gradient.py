r"""Statistics of score gradients in one pass over blocks of queries, with O(block x n) memory.

With $g_i = \partial L / \partial z_i$, the gradient with respect to the output of the head before $W_O$
(TransformerLens's ``hook_z``), the exact gradient with respect to the score is

$$\frac{\partial L}{\partial S_{ij}} = A_{ij} \Big( g_i \cdot v_j - \sum_k A_{ik}\, g_i \cdot v_k \Big).$$

Its rows sum to 0. If tokens attend but are left out (`Scores.prefix`, `Scores.suffix`, `Scores.left_out`), or with a
sink, A is the whole pattern, and the gradient between the other tokens is row-centred over them: a constant per row
only moves attention to or from what is left out.

Each block of the gradient is computed, reduced and discarded. The precision is that of `attnprobe.statistics.pattern`,
relative to the sum of the absolute values of the summands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry
from attnprobe.scores import Part, Scores, check_alike, check_finite, check_shape
from attnprobe.statistics.blocks import Block, Group, OffsetSums, groups, over_queries


@dataclass(frozen=True)
class GradientStatistics:
    """Sums of the score gradient per sequence and head, over visible pairs of real tokens; float64 on the CPU.

    On a grid the offset axis is flattened (see `Geometry`).
    """

    geometry: Geometry
    """Query-key pairs of the tokens that any sequence has; shared, do not modify."""
    pairs: Float[Tensor, "batch offset"]
    """Number of pairs at each offset."""
    by_offset: Float[Tensor, "batch head offset"]
    """Sum over the pairs at each offset."""
    by_key: Float[Tensor, "batch head key"]
    """Sum over queries."""
    square: Float[Tensor, "batch head"]
    """Sum of squares."""
    bilinear: Float[Tensor, "batch head d_model d_model_"] | None
    r"""$X^\top (\partial L / \partial S) X$ for ``inputs`` X; this is $\partial L / \partial M$ if $S = X M X^\top$."""
    along: Float[Tensor, "batch head direction"]
    r"""$\langle \partial L / \partial S, D \rangle$ for each direction D in ``directions``."""

    def in_line(self) -> "GradientStatistics":
        """Convert the statistics by offset from 2-D offsets to 1-D offsets in row-major order."""
        if len(self.geometry.shape) == 1:
            return self
        fold = self.geometry.fold
        return replace(self, geometry=self.geometry.line, pairs=fold(self.pairs), by_offset=fold(self.by_offset))

    def along_offsets(self, function: Float[Tensor, "*direction offset"]) -> Float[Tensor, "batch head *direction"]:
        """Return the inner products with directions that are functions of the offset, $D_{ij} = f(j - i)$."""
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

    With `Scores.order` (a null) the gradient is that of the original scores, and its entries are permuted in the same
    way as the scores.

    Args:
        scores: The scores.
        v: Values, [batch, head, token, d_head].
        dz: $\partial L / \partial z$, [batch, head, token, d_head]; with one loss per sequence the sums are those of
            each sequence.
        directions: Pairs of factors, left [..., query, rank] and right [..., key, rank], with leading axes that
            broadcast to [batch, head]: $D_{ij} = \sum_r l_{ir}\, r_{jr}$.
        inputs: [batch, token, d_model], for `GradientStatistics.bilinear`.

    Raises:
        UsageError: If shapes do not match or a value is not finite.
    """
    whole = _Whole(scores, v)
    scores, v, dz = _inner(scores, v, dz)
    batch, heads, n = scores.shape
    if inputs is not None:
        check_shape("inputs", inputs, ("batch", "token", "d_model"))
        if inputs.shape[:2] != (batch, n) or inputs.device != scores.q.device:
            raise UsageError(
                f"inputs of shape {tuple(inputs.shape)}: must be [batch, token, d_model] = {[batch, n, 'd_model']}, on "
                f"{scores.q.device}"
            )
        check_finite("inputs", inputs)
    expanded = [_expand_factors(number, pair, scores) for number, pair in enumerate(directions)]
    offsets = len(scores.geometry.count)
    result = GradientStatistics(
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
    optional_inputs = [] if inputs is None else [inputs[:, None].expand(-1, heads, -1, -1)]
    for part in scores.parts():
        result.pairs[part.rows, part.offsets] = part.geometry.count
        rows, special = part.rows.to(v.device), whole.special(part)
        of_part = [
            x[rows, :, part.tokens]
            for x in (v, dz, *optional_inputs, *(factor for pair in expanded for factor in pair))
        ]
        for group in groups(part):
            _accumulate(group, part, result, [group.take(x) for x in of_part], special)
    return result


@torch.no_grad()
def gradient_product(a: tuple[Scores, Tensor, Tensor], b: tuple[Scores, Tensor, Tensor]) -> Float[Tensor, "batch head"]:
    """Return the inner product of two score gradients, each given by (scores, v, dz), of the same tokens."""
    whole = [_Whole(scores, v) for scores, v, _ in (a, b)]
    inner = [_inner(*loss) for loss in (a, b)]
    check_alike(inner[0][0], inner[1][0])
    result = torch.zeros(inner[0][0].shape[:2], dtype=torch.float64)
    # Products do not depend on the order.
    for parts in zip(*(replace(scores, order=None).parts() for scores, *_ in inner), strict=True):
        special = [one.special(part) for one, part in zip(whole, parts, strict=True)]
        for pair in zip(*map(groups, parts), strict=True):
            total, units, gradients = pair[0].totals(), [], []
            for group, part, (_, v, dz), others in zip(pair, parts, inner, special, strict=True):
                v, dz = (group.take(x[part.rows.to(x.device), :, part.tokens]) for x in (v, dz))
                units.append(_unit(dz))
                gradients.append(_gradient(group, v, dz / units[-1], others))
            for (_, gradient_a), (_, gradient_b) in zip(*gradients, strict=True):
                total += torch.linalg.vecdot(gradient_a, gradient_b).sum(1)
            unit = (units[0].double() * units[1].double())[:, 0, 0].cpu()
            result[parts[0].rows[pair[0].sequences], pair[0].heads] = total.cpu() * unit
    return result


def _check(scores: Scores, v: Tensor, dz: Tensor) -> None:
    """Raise `UsageError` if values or output gradients do not match the scores, or are not finite."""
    for name, x in (("v", v), ("dz", dz)):
        check_shape(name, x, ("batch", "head", "token", "d_head"))
        if x.shape[:3] != scores.shape or x.shape != v.shape or x.device != scores.q.device:
            raise UsageError(
                f"{name} of shape {tuple(x.shape)}: must be {[*scores.shape, 'd_head']} like q, on {scores.q.device}, "
                "and v must match dz"
            )
        check_finite(name, x)


@dataclass(frozen=True)
class _Special:
    """Keys that are left out, as the queries of a part see them; a sink is one without a value."""

    scores: Tensor
    """[sequence, head, token, key]: scores of the queries with these keys; -inf if masked."""
    v: Tensor
    """[sequence, head, key, d_head]: values of these keys."""

    def of(self, group: Group) -> "_Special":
        """Return those of the matrices of a group, [matrix, ...]."""
        return _Special(group.take(self.scores), group.take(self.v))


@dataclass(frozen=True)
class _Whole:
    """Scores and values of all tokens, including those that are left out."""

    scores: Scores
    v: Tensor

    def special(self, part: Part) -> _Special | None:
        """Return the keys that are left out in a part, or None if there are none."""
        scores = self.scores
        if not (scores.prefix or scores.suffix or scores.left_out is not None or scores.sink is not None):
            return None
        n, rows = scores.shape[2], part.rows.to(self.v.device)
        scores = scores if len(rows) == len(self.v) else scores.of_rows(rows)  # all rows are in sequence
        start, stop = scores.prefix + part.tokens.start, scores.prefix + part.tokens.stop
        is_special = torch.ones(n, dtype=torch.bool)
        is_special[start:stop] = ~part.geometry.present
        if scores.real is not None:
            is_special &= scores.real.cpu().any(0)
        others = is_special.nonzero()[:, 0].to(scores.q.device)
        if not len(others) and scores.sink is None:
            return None
        special = (scores.q[:, :, start:stop] @ scores.k[:, :, others].mT).to(scores.type) * scores.factor
        for first in range(start, stop, scores.step) if len(others) else ():
            last = min(first + scores.step, stop)
            added = scores.added_to(first, last)
            if added is not None:
                special[:, :, first - start : last - start] += added.expand(-1, -1, last - first, -1)[..., others]
        v = self.v[:, :, others][rows]
        if scores.sink is not None:
            sink = scores.sink.to(special)[None, :, None, None]
            special = torch.cat([special, sink.expand(*special.shape[:3], 1)], dim=-1)
            v = F.pad(v, (0, 0, 0, 1))
        return _Special(special, v)


def _inner(scores: Scores, v: Tensor, dz: Tensor) -> tuple[Scores, Tensor, Tensor]:
    """Check the arguments and restrict them to the tokens outside prefix and suffix."""
    checked = scores.checked()
    _check(scores, v, dz)
    return checked, v[:, :, scores.tokens], dz[:, :, scores.tokens]


def _gradient(group: Group, v: Tensor, dz: Tensor, special: _Special | None = None) -> Iterator[tuple[Block, Tensor]]:
    """Yield the gradient in blocks, [matrix, query, key]; each is valid until the next one is requested."""
    gradient_buffer, pattern_buffer = group.memory(), group.memory()
    special = None if special is None else special.of(group)
    for block in group.blocks():
        gradient, pattern = block.of(gradient_buffer, group.size), block.of(pattern_buffer, group.size)
        group.write_scores(block, out=gradient)
        if special is None:
            torch.softmax(gradient, -1, out=pattern)
            group.write_products(block, dz, v, out=gradient)
            gradient -= torch.linalg.vecdot(pattern, gradient)[..., None]
            gradient *= pattern
            if group.geometry.absent:
                gradient *= group.present(block)[:, None]
            yield block, gradient
            continue
        sources = group.sources(block)
        other = special.scores[:, sources]
        peak = torch.maximum(gradient.amax(-1, keepdim=True), other.amax(-1, keepdim=True))
        torch.exp(gradient - peak, out=pattern)
        weights = (other - peak).exp()
        total = pattern.sum(-1, keepdim=True) + weights.sum(-1, keepdim=True)
        pattern /= total
        group.write_products(block, dz, v, out=gradient)
        mean = torch.linalg.vecdot(pattern, gradient)
        mean += torch.linalg.vecdot(weights / total, dz[:, sources] @ special.v.mT)
        gradient -= mean[..., None]
        gradient *= pattern
        visible = group.visible(block)
        if group.geometry.absent:
            gradient *= group.present(block)[:, None]
        gradient -= visible * (gradient.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1))
        yield block, gradient


def _unit(dz: Tensor) -> Tensor:
    """Return the largest absolute value, [matrix, 1, 1], as a unit in which squares of gradients do not underflow."""
    return dz.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(dz.dtype).tiny)


def _accumulate(
    group: Group, part: Part, result: GradientStatistics, tensors: Sequence[Tensor], special: _Special | None
) -> None:
    """Compute the sums of one group; tensors are v, dz, inputs (if used) and the factors of the directions."""
    v, dz, *factors = tensors
    inputs = None if result.bilinear is None else factors.pop(0)
    rows, heads = part.rows[group.sequences], group.heads
    unit = _unit(dz)
    by_offset, by_key, square = OffsetSums(group), group.totals(group.geometry.n), group.totals()
    along = group.totals(len(factors) // 2)
    bilinear = None if inputs is None else group.totals(inputs.shape[2], inputs.shape[2])
    for block, gradient in _gradient(group, v, dz / unit, special):
        by_offset.add(gradient, block)
        by_key[:, block.keys] += over_queries(gradient)
        square += torch.linalg.vecdot(gradient, gradient).sum(1)
        for number in range(along.shape[1]):
            left, right = factors[2 * number], factors[2 * number + 1]
            along[:, number] += (left[:, block.queries] * (gradient @ right[:, block.keys])).sum((1, 2))
        if inputs is not None and bilinear is not None:
            bilinear += inputs[:, block.queries].mT @ (gradient @ inputs[:, block.keys])
    scale = unit[:, 0].double().cpu()
    result.by_offset[rows, heads, part.offsets] = by_offset.sums() * scale
    result.by_key[rows, heads, part.tokens] = by_key.cpu() * scale
    result.square[rows, heads] = square.cpu() * scale[:, 0].square()
    result.along[rows, heads] = along.cpu() * scale
    if result.bilinear is not None and bilinear is not None:
        result.bilinear[rows, heads] = bilinear.cpu() * scale[..., None]


def _expand_factors(number: int, pair: tuple[Tensor, Tensor], scores: Scores) -> tuple[Tensor, Tensor]:
    """Check the two factors of a direction and expand them to [batch, head, token, rank]."""
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
