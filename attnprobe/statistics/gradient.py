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

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry
from attnprobe.scores import Part, Scores, check_alike, check_finite, check_shape
from attnprobe.statistics.blocks import Block, Group, OffsetSums, groups, over_queries
from attnprobe.statistics.compiled import Task, in_threads, kernels_for, tasks


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
    kernels = kernels_for(scores)
    for part in scores.parts():
        result.pairs[part.rows, part.offsets] = part.geometry.count
        rows, special = part.at(slice(None)), whole.special(part)
        of_part = [
            x[rows, :, part.tokens]
            for x in (v, dz, *optional_inputs, *(factor for pair in expanded for factor in pair))
        ]
        if kernels is None:
            sums = (_sums(group, of_part, inputs is not None, special) for group in groups(part))
        else:
            compute = partial(_compiled_sums, tensors=of_part, bilinear=inputs is not None, special=special)
            sums = in_threads(partial(compute, make, kernels) for make in tasks(part))
        for of_group in sums:
            _add(of_group, part, result)
    return result


@torch.no_grad()
def gradient_product(a: tuple[Scores, Tensor, Tensor], b: tuple[Scores, Tensor, Tensor]) -> Float[Tensor, "batch head"]:
    """Return the inner product of two score gradients, each given by (scores, v, dz), of the same tokens."""
    whole = [_Whole(scores, v) for scores, v, _ in (a, b)]
    inner = [_inner(*loss) for loss in (a, b)]
    check_alike(inner[0][0], inner[1][0])
    result = torch.zeros(inner[0][0].shape[:2], dtype=torch.float64)
    kernels = kernels_for(inner[0][0])
    # Products do not depend on the order.
    for parts in zip(*(replace(scores, order=None).parts() for scores, *_ in inner), strict=True):
        arguments = [
            ([x[part.at(slice(None)), :, part.tokens] for x in tensors], one.special(part))
            for one, part, (_, *tensors) in zip(whole, parts, inner, strict=True)
        ]
        if kernels is None:
            products = (_product(pair, arguments) for pair in zip(*map(groups, parts), strict=True))
        else:
            pairs = zip(*map(tasks, parts), strict=True)
            products = in_threads(partial(_compiled_product, pair, arguments, kernels) for pair in pairs)
        for group, product in products:
            result[parts[0].at(group.sequences), group.heads] += group.by_sequence(product)
    return result


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


_Arguments = Sequence[tuple[Sequence[Tensor], _Special | None]]
"""Values, output gradients and the keys that are left out, for each of two gradients."""


def _product(pair: tuple[Group, ...], arguments: _Arguments) -> tuple[Group, Tensor]:
    """Return the inner products of two gradients, and the group."""
    gradients, unit = [], 1.0
    for group, (tensors, special) in zip(pair, arguments, strict=True):
        v, dz = map(group.take, tensors)
        gradients.append(_gradient(group, v, dz / _unit(dz), special))
        unit = unit * _unit(dz).double()[:, 0, 0].cpu()
    return pair[0], _vecdot(pair[0], gradients) * unit


def _compiled_product(
    pair: tuple[Callable[[], Task], ...], arguments: _Arguments, kernels: ModuleType
) -> tuple[Group, Tensor]:
    """Return the inner products of two gradients over the queries of a task, and the group, by compiled loops."""
    gradients, unit, groups = [], 1.0, []
    for make, (tensors, special) in zip(pair, arguments, strict=True):
        task = make()
        group = task.group
        v, dz = map(group.take, tensors)
        sums = group.totals(group.geometry.n), group.totals(len(group.geometry.count)), group.totals()
        gradients.append(_compiled_gradient(task, v, dz / _unit(dz), special, kernels, sums))
        unit = unit * _unit(dz).double()[:, 0, 0]
        groups.append(group)
    return groups[0], _vecdot(groups[0], gradients) * unit


def _vecdot(group: Group, gradients: Sequence[Iterator[tuple[Block, Tensor]]]) -> Tensor:
    """Return the sum over all blocks of the products of two gradients, [matrix], on the CPU."""
    total = group.totals()
    for (_, a), (_, b) in zip(*gradients, strict=True):
        total += torch.linalg.vecdot(a, b).sum(1)
    return total.cpu()


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
            if group.kernels is not None:
                group.write_products(block, dz, v, out=pattern)
                group.kernels.gradient(gradient, pattern)
                gradient, pattern = pattern, gradient
            else:
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


@dataclass(frozen=True)
class _Sums:
    """Sums of the gradient over queries of the matrices of a group, in units of ``unit``."""

    group: Group
    unit: Float[Tensor, "matrix 1 1"]
    by_offset: Float[Tensor, "matrix offset"]
    by_key: Float[Tensor, "matrix key"]
    square: Float[Tensor, " matrix"]
    along: Float[Tensor, "matrix direction"]
    bilinear: Float[Tensor, "matrix d_model d_model_"] | None


def _sums(group: Group, tensors: Sequence[Tensor], bilinear: bool, special: _Special | None) -> _Sums:
    """Return the sums of a group; tensors are v, dz, inputs (if ``bilinear``) and the factors of the directions."""
    v, dz, *factors = map(group.take, tensors)
    unit = _unit(dz)
    products = _Products(group, factors, bilinear)
    by_offset, by_key, square = OffsetSums(group), group.totals(group.geometry.n), group.totals()
    for block, gradient in _gradient(group, v, dz / unit, special):
        by_offset.add(gradient, block)
        by_key[:, block.keys] += over_queries(gradient)
        square += torch.linalg.vecdot(gradient, gradient).sum(1)
        products.add(gradient, block)
    return _Sums(group, unit, by_offset.sums(), by_key, square, products.along, products.bilinear)


def _compiled_sums(
    make: Callable[[], Task],
    kernels: ModuleType,
    tensors: Sequence[Tensor],
    bilinear: bool,
    special: _Special | None,
) -> _Sums:
    """Return the sums of the queries of a task, by compiled loops."""
    task = make()
    group = task.group
    v, dz, *factors = map(group.take, tensors)
    unit = _unit(dz)
    products = _Products(group, factors, bilinear)
    sums = group.totals(group.geometry.n), group.totals(len(group.geometry.count)), group.totals()
    for block, gradient in _compiled_gradient(task, v, dz / unit, special, kernels, sums):
        products.add(gradient, block)
    by_key, by_offset, square = sums
    return _Sums(group, unit, by_offset, by_key, square, products.along, products.bilinear)


def _compiled_gradient(
    task: Task, v: Tensor, dz: Tensor, special: _Special | None, kernels: ModuleType, sums: tuple[Tensor, ...]
) -> Iterator[tuple[Block, Tensor]]:
    """Yield the gradient in blocks as `_gradient` does, and add it to the sums by key, by offset and of squares."""
    group, layout, empty = task.group, task.layout, np.empty((0, 0))
    scores, products = group.memory(), group.memory()
    other = mean = None
    if special is not None:
        others = special.of(group)
        other = others.scores.double().logsumexp(-1) / math.log(2)
        weights = others.scores.double().softmax(-1).nan_to_num()  # without any visible key, other is -inf
        mean = torch.linalg.vecdot(weights, (dz @ others.v.mT).double())
    moved_v, moved_dz = task.moved(v), task.moved(dz)
    for block in group.blocks(task.span):
        score, gradient = (
            task.product(block, *pair) for pair in ((group.q, group.k, scores), (moved_dz, moved_v, products))
        )
        of_others = (
            (empty, empty)
            if other is None or mean is None
            else (
                other[:, group.sources(block)].numpy(),
                mean[:, group.sources(block)].numpy(),
            )
        )
        kernels.gradient_block(
            score.numpy(),
            gradient.numpy(),
            block.start,
            block.keys.start,
            *layout,
            *of_others,
            *(x.numpy() for x in sums),
        )
        yield block, gradient


class _Products:
    """Products of the gradient with directions and inputs, added up over blocks."""

    def __init__(self, group: Group, factors: list[Tensor], bilinear: bool) -> None:
        """Initialise the sums; factors are the inputs (if ``bilinear``) and those of the directions."""
        self.inputs, self.factors = (factors[0], factors[1:]) if bilinear else (None, factors)
        self.along = group.totals(len(self.factors) // 2)
        width = 0 if self.inputs is None else self.inputs.shape[2]
        self.bilinear = group.totals(width, width) if bilinear else None

    def add(self, gradient: Tensor, block: Block) -> None:
        """Add the gradient of a block, [matrix, query, key]."""
        for number in range(self.along.shape[1]):
            left, right = self.factors[2 * number], self.factors[2 * number + 1]
            self.along[:, number] += (left[:, block.queries] * (gradient @ right[:, block.keys])).sum((1, 2))
        if self.inputs is not None and self.bilinear is not None:
            self.bilinear += self.inputs[:, block.queries].mT @ (gradient @ self.inputs[:, block.keys])


def _add(sums: _Sums, part: Part, result: GradientStatistics) -> None:
    """Add the sums of a group, or of some of its queries, to the result."""
    rows, heads, by_sequence = part.at(sums.group.sequences), sums.group.heads, sums.group.by_sequence
    scale = by_sequence(sums.unit[:, 0].double())
    result.by_offset[rows, heads, part.offsets] += by_sequence(sums.by_offset) * scale
    result.by_key[rows, heads, part.tokens] += by_sequence(sums.by_key) * scale
    result.square[rows, heads] += by_sequence(sums.square) * scale[..., 0].square()
    result.along[rows, heads] += by_sequence(sums.along) * scale
    if result.bilinear is not None and sums.bilinear is not None:
        result.bilinear[rows, heads] += by_sequence(sums.bilinear) * scale[..., None]


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
