r"""Score statistics in near-linear time, O(n log n d + n d²), with memory for a few copies of the queries of one head.

With the scale folded into q and the keys centred, $\hat k_j = k_j - \bar k$ (which adds a constant to each row):

- the sum at each offset, $\sum_{j - i = o} q_i \cdot \hat k_j$, is a cross-correlation, computed by FFT;
- the row means are $q_i \cdot \bar k$, plus $q_i$ times the running mean of $\hat k$ for causal attention;
- the sum of squares is $\langle Q^\top Q, \hat K^\top \hat K \rangle$; causal attention computes it in
  blocks, with the Gram matrix of all previous keys;
- a bias $b(o)$ is included exactly, by running sums and by its products with the sums at each offset;
- tokens that are not real have $q_i = 0$ and $\hat k_j = 0$, so that they add nothing.

All computations are in float64. Errors are about 1e-13 of the product of norms, which is
$\|Q^\top Q\| \|\hat K^\top \hat K\|$ for sums of squares. The relative error therefore grows if queries and keys have
large components whose products cancel. With a null (`Scores.order`) and causal attention or a bias, scores are not
products of permuted queries and keys; they are computed in blocks, also in float64, in the time of attention.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from jaxtyping import Bool, Float
from scipy.fft import next_fast_len
from torch import Tensor

from attnprobe.errors import NonFiniteError
from attnprobe.geometry import Geometry, geometry, quotient
from attnprobe.scores import Part, Scores, alike, check_alike, positions
from attnprobe.statistics.blocks import Group, OffsetSums, groups, over_queries
from attnprobe.statistics.compiled import Task, in_threads, kernels_for, tasks

SMALLEST = 1e-13
"""Fraction of the product of norms below which the sum of squares of a centred score is rounding error."""
BLOCK = 64
"""Queries per block in the causal sum of squares."""
SHORT = 64
"""Longest sequence for which the scores themselves are computed and summed, which is then faster."""
ELEMENTS = 2**19
"""Number of elements per FFT call."""


@dataclass(frozen=True)
class ScoreStatistics:
    """Statistics of the scores per sequence and head, over visible pairs of real tokens; float64 on the CPU.

    On a grid the offset axis is flattened (see `Geometry`). Means over no pairs are NaN.
    """

    geometry: Geometry
    """Query-key pairs of the tokens that any sequence has; shared, do not modify."""
    real: Bool[Tensor, "batch token"]
    """Tokens over which the statistics are."""
    pairs: Float[Tensor, "batch offset"]
    """Number of pairs at each offset."""
    mean: Float[Tensor, "batch head"]
    """Mean score."""
    mean_by_query: Float[Tensor, "batch head query"]
    """Mean score of each row."""
    mean_by_key: Float[Tensor, "batch head key"]
    """Mean score of each column."""
    mean_by_offset: Float[Tensor, "batch head offset"]
    """Mean score of the pairs at each offset."""
    centred_by_offset: Float[Tensor, "batch head offset"]
    """Mean row-centred score of the pairs at each offset."""
    offset_profile: Float[Tensor, "batch head offset"]
    """Least-squares fit of the score by a function of the offset plus row constants (`Geometry.offset_profile`)."""
    square: Float[Tensor, "batch head"]
    """Sum of squares of the score."""
    square_row_centred: Float[Tensor, "batch head"]
    """Sum of squares of the row-centred score, the part that affects the softmax."""
    square_double_centred: Float[Tensor, "batch head"]
    """Sum of squares after also subtracting the best-fitting function of the key."""
    toeplitz_share: Float[Tensor, "batch head"]
    """Fraction of `square_row_centred` explained by `offset_profile`, between 0 and 1; NaN if the rows are constant."""

    @property
    def std(self) -> Float[Tensor, "batch head"]:
        """Standard deviation of the row-centred score."""
        return (self.square_row_centred / self.pairs.sum(-1, keepdim=True)).sqrt()

    def contrast(self, window: int | float) -> Float[Tensor, "batch head"]:
        """Return `near_minus_far` divided by `std`; also NaN if the rows are constant."""
        return self.near_minus_far(window) / self.std.where(self.toeplitz_share.isfinite(), torch.nan)

    def near_minus_far(self, window: int | float) -> Float[Tensor, "batch head"]:
        """Return the mean row-centred score at 0 < distance <= window minus the mean at larger distances.

        It is linear in the score, and NaN if there are no near or no far pairs.
        """
        distance = self.geometry.distance
        near, far = (distance > 0) & (distance <= window), distance > window
        sums = (self.centred_by_offset * self.pairs[:, None]).nan_to_num()
        pairs = self.pairs[:, None]
        means = [sums[..., mask].sum(-1) / pairs[..., mask].sum(-1) for mask in (near, far)]
        return means[0] - means[1]

    def in_line(self) -> "ScoreStatistics":
        """Convert the statistics by offset from 2-D offsets to 1-D offsets in row-major order."""
        if len(self.geometry.shape) == 1:
            return self
        fold, line = self.geometry.fold, self.geometry.line
        pairs = fold(self.pairs)
        mean, centred = (
            fold((means * self.pairs[:, None]).nan_to_num()) for means in (self.mean_by_offset, self.centred_by_offset)
        )
        profile = torch.empty_like(centred)
        for rows, real in alike(self.real):
            pairs_of_rows = geometry(line.shape, line.causal, line.window, positions(~real))
            profile[rows] = pairs_of_rows.offset_profile(centred[rows])
        energy = self.square_row_centred.where(self.toeplitz_share.isfinite(), torch.nan)
        return replace(
            self,
            geometry=line,
            pairs=pairs,
            mean_by_offset=mean / pairs[:, None],
            centred_by_offset=centred / pairs[:, None],
            offset_profile=profile,
            toeplitz_share=(centred * profile.nan_to_num()).sum(-1) / energy,
        )


@torch.no_grad()
def score_statistics(scores: Scores) -> ScoreStatistics:
    """Return statistics of scores; see the module docstring for the method and its cost."""
    scores = scores.checked()
    batch, heads, n = scores.shape
    full_geometry = scores.geometry
    empty = torch.full((batch, heads), torch.nan, dtype=torch.float64)

    def nan(size: int) -> Tensor:
        return torch.full((batch, heads, size), torch.nan, dtype=torch.float64)

    result = ScoreStatistics(
        geometry=full_geometry,
        real=torch.ones(batch, n, dtype=torch.bool) if scores.real is None else scores.real.cpu(),
        pairs=torch.zeros(batch, len(full_geometry.count), dtype=torch.float64),
        mean=empty.clone(),
        mean_by_query=nan(n),
        mean_by_key=nan(n),
        mean_by_offset=nan(len(full_geometry.count)),
        centred_by_offset=nan(len(full_geometry.count)),
        offset_profile=nan(len(full_geometry.count)),
        square=empty.clone(),
        square_row_centred=empty.clone(),
        square_double_centred=empty.clone(),
        toeplitz_share=empty.clone(),
    )
    for part in scores.parts():
        rows, tokens, offsets, geometry = part.rows, part.tokens, part.offsets, part.geometry
        sums = _sums(part)
        profile = geometry.offset_profile(sums.by_offset)
        energy = sums.square.where(sums.square > SMALLEST * sums.scale, torch.nan)
        key_constants = geometry.key_constants(sums.by_key)
        mean = sums.mean_by_query
        result.pairs[rows, offsets] = geometry.count
        result.mean[rows] = mean @ geometry.keys / geometry.keys.sum()
        result.mean_by_query[rows, :, tokens] = mean.where(geometry.present, torch.nan)
        by_key, by_offset = sums.by_key + geometry.sum_over_queries(mean), sums.by_offset + geometry.overlaps(mean)
        result.mean_by_key[rows, :, tokens] = _mean(by_key, geometry.queries)
        result.mean_by_offset[rows, :, offsets] = _mean(by_offset, geometry.count)
        result.centred_by_offset[rows, :, offsets] = _mean(sums.by_offset, geometry.count)
        result.offset_profile[rows, :, offsets] = profile
        result.square[rows] = sums.square + mean.square() @ geometry.keys
        result.square_row_centred[rows] = sums.square
        result.square_double_centred[rows] = (sums.square - (sums.by_key * key_constants).sum(-1)).clamp(min=0)
        result.toeplitz_share[rows] = (sums.by_offset * profile.nan_to_num()).sum(-1) / energy
    return result


def _mean(sums: Float[Tensor, "batch head place"], pairs: Float[Tensor, " place"]) -> Tensor:
    """Return means over pairs; NaN without pairs, where sums may be rounding errors."""
    return (sums / pairs).where(pairs > 0, torch.nan)


@torch.no_grad()
def covariance(a: Scores, b: Scores) -> Float[Tensor, "batch head"]:
    r"""Return $\sum_{ij} \hat a_{ij} \hat b_{ij}$ over visible pairs for two row-centred scores of the same tokens.

    It is computed like the sum of squares, from $\langle Q_a^\top Q_b, \hat K_a^\top \hat K_b \rangle$. Errors are
    about 1e-13 of the product of norms, and smaller results are set to 0. `Scores.order` has no effect.
    """
    a, b = a.checked(), b.checked()
    check_alike(a, b)
    result = torch.zeros(a.shape[:2], dtype=torch.float64)
    for parts in zip(*(replace(scores, order=None).parts() for scores in (a, b)), strict=True):
        product, scale = _covariance(*parts)
        result[parts[0].rows] = product.where(product.abs() > SMALLEST * scale, 0.0)
    return result


def _covariance(a: Part, b: Part) -> tuple[Tensor, Tensor]:
    """Return the covariance of the scores of two parts, and the magnitude of its terms, [batch, head]."""
    geometry, lead = a.geometry, a.scores.shape[:2]
    factors, means, biases, squares = [], [], [], []
    for part in (a, b):
        scores = part.scores
        q, k, _ = _centred(scores.q.flatten(0, 1).double(), scores.k.flatten(0, 1).double(), geometry)
        q = q * scores.factor
        bias = _centred_bias(part)
        mean = _mean_product(q, k, geometry).unflatten(0, lead).cpu()
        square = (q.square().sum((1, 2)) * k.square().sum((1, 2))).unflatten(0, lead).cpu()
        if bias is not None:
            mean = mean + geometry.mean_over_keys(geometry.windows(bias))
            square = square + bias.square() @ geometry.count
        factors.append((q, k))
        means.append(mean)
        biases.append(bias)
        squares.append(square)
    total = _sum_of_products(factors[0], factors[1], geometry).unflatten(0, lead).cpu()
    for (q, k), bias in zip(factors, biases[::-1], strict=True):
        if bias is not None:
            sums = _correlation(q, k, geometry.shape).unflatten(0, lead).cpu() * geometry.seen
            total = total + (sums * bias).sum(-1)
    if biases[0] is not None and biases[1] is not None:
        total = total + (biases[0] * biases[1]) @ geometry.count
    return total - (means[0] * means[1]) @ geometry.keys, (squares[0] * squares[1]).sqrt()


@dataclass(frozen=True)
class _Sums:
    """Sums that determine all score statistics; c is the row-centred score, over visible pairs."""

    by_offset: Float[Tensor, "batch head offset"]
    """Sums of c at each offset."""
    by_key: Float[Tensor, "batch head key"]
    """Sums of c over queries."""
    mean_by_query: Float[Tensor, "batch head query"]
    """Row means of the score."""
    square: Float[Tensor, "batch head"]
    """Sum of squares of c."""
    scale: Float[Tensor, "batch head"]
    """Magnitude of the terms of ``square``, to which rounding errors are relative."""


def _sums(part: Part) -> _Sums:
    """Return the sums."""
    scores, geometry = part.scores, part.geometry
    masked = geometry.causal or geometry.window is not None
    permuted = scores.order is not None and (masked or scores.bias is not None)  # no products of queries and keys
    if permuted or geometry.n <= SHORT:
        return _in_range(_summed(part), scores)
    order = slice(None) if scores.order is None else scores.order
    batch, heads, n = scores.shape
    q, k = (x[:, :, order].flatten(0, 1) for x in (scores.q, scores.k))
    size = max(1, ELEMENTS // (n * q.shape[-1]))
    chunks = [
        _products(q_chunk.double() * scores.factor, k_chunk.double(), geometry)
        for q_chunk, k_chunk in zip(q.split(size), k.split(size), strict=True)
    ]
    sums, by_key, mean, shift, square, scale = (
        torch.cat(parts).unflatten(0, (batch, heads)).cpu() for parts in zip(*chunks, strict=True)
    )
    bias = _centred_bias(part)
    if bias is not None and scores.bias_by_offset is not None:
        level = (scores.bias_by_offset.double().cpu() - bias)[:, :1]
        square = square + 2 * (sums * bias).sum(-1) + bias.square() @ geometry.count
        scale = scale + bias.square() @ geometry.count
        sums = sums + geometry.count * bias
        by_key = by_key + geometry.windows_by_key(bias)
        mean = mean + geometry.mean_over_keys(geometry.windows(bias))
        shift = shift + level
    found = _Sums(
        sums - geometry.overlaps(mean),
        by_key - geometry.sum_over_queries(mean),
        mean + shift,
        (square - mean.square() @ geometry.keys).clamp(min=0),
        scale,
    )
    return _in_range(found, scores)


def _centred_bias(part: Part) -> Tensor | None:
    """Return the bias minus its mean over pairs, [head, offset], in float64 on the CPU; None if there is no bias."""
    if part.scores.bias_by_offset is None:
        return None
    bias, count = part.scores.bias_by_offset.double().cpu(), part.geometry.count
    return bias - (bias @ count / count.sum())[:, None]


def _in_range(sums: _Sums, scores: Scores) -> _Sums:
    """Return the sums; raise `NonFiniteError` if squares overflow."""
    squares = sums.mean_by_query.square().sum(-1) + sums.square + sums.scale
    if not squares.isfinite().all():
        raise NonFiniteError(f"q, k of shape {tuple(scores.q.shape)}: squares of scores exceed the range of float64")
    return sums


def _centred(q: Tensor, k: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and centred k, 0 at absent tokens, and the mean of k."""
    q, k = (geometry.of_present(x.mT).mT for x in (q, k))
    level = k.sum(1, keepdim=True) / geometry.tokens
    return q, geometry.of_present((k - level).mT).mT, level


def _products(q: Tensor, k: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
    """Return the sums of products of q and centred k, and the row constants removed by centring."""
    q, k, level = _centred(q, k, geometry)
    mean = _mean_product(q, k, geometry)
    if geometry.causal or geometry.window is not None:
        by_key = (geometry.sum_over_queries(q.mT).mT * k).sum(-1)
    else:
        by_key = (k @ q.sum(1)[..., None])[..., 0]
    factors = (q, k)
    square = _sum_of_products(factors, factors, geometry)
    by_offset = _correlation(q, k, geometry.shape) * geometry.seen.to(q.device)
    scale = torch.linalg.matrix_norm(q.mT @ q) * torch.linalg.matrix_norm(k.mT @ k)
    return by_offset, by_key, mean, (q @ level.mT)[..., 0], square, scale


def _mean_product(q: Tensor, k: Tensor, geometry: Geometry) -> Tensor:
    """Return the mean of q_i . k_j over the visible keys of each query, for centred k."""
    if geometry.causal or geometry.window is not None:
        return geometry.mean_over_keys((q * geometry.sum_over_keys(k.mT).mT).sum(-1))
    return torch.zeros_like(q[..., 0])


def _sum_of_products(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], geometry: Geometry) -> Tensor:
    """Return the sum over visible pairs of the products of q_i . k_j for two pairs (q, k).

    With masks, for each block of queries, keys that all of its queries see enter by their Gram matrix, which moves
    along; only keys that some of its queries see are multiplied out.
    """
    (q_a, k_a), (q_b, k_b) = a, b
    if not geometry.causal and geometry.window is None:
        return ((q_a.mT @ q_b) * (k_a.mT @ k_b)).sum((-2, -1))
    n = q_a.shape[1]
    window = n if geometry.window is None else geometry.window
    gram = q_a.new_zeros(len(k_a), k_a.shape[2], k_b.shape[2])
    total = q_a.new_zeros(len(k_a))
    first = last = 0  # keys first ... last - 1 are in the Gram matrix
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        # All queries of the block see the keys low ... high - 1.
        low, high = max(0, stop - 1 - window), start if geometry.causal else min(n, start + window + 1)
        if low < high:
            gram = gram + k_a[:, last:high].mT @ k_b[:, last:high] - k_a[:, first:low].mT @ k_b[:, first:low]
            first, last = low, high
            total = total + ((q_a[:, start:stop] @ gram) * q_b[:, start:stop]).sum((-2, -1))
        edges = [slice(max(0, start - window), low), slice(high, stop if geometry.causal else min(n, stop + window))]
        if low >= high:
            edges = [slice(edges[0].start, edges[1].stop)]
        for edge in edges:
            offset = torch.arange(edge.start, edge.stop) - torch.arange(start, stop)[:, None]
            seen = (offset.abs() <= window) & (offset <= 0 if geometry.causal else torch.ones_like(offset).bool())
            products = (q_a[:, start:stop] @ k_a[:, edge].mT) * seen.to(q_a.device)
            other = products if a is b else q_b[:, start:stop] @ k_b[:, edge].mT
            total = total + (products * other).sum((-2, -1))
    return total


def _correlation(q: Tensor, k: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the sums of q_i . k_j at each offset j - i, [matrix, offset]."""
    axes = tuple(range(-len(shape), 0))
    # scipy.fft has no type stubs
    lengths: list[int] = [next_fast_len(2 * side - 1, real=True) for side in shape]  # pyright: ignore
    spectrum = None
    width = max(1, ELEMENTS // (len(q) * math.prod(lengths)))
    for start in range(0, q.shape[-1], width):
        q_spectrum, k_spectrum = (
            torch.fft.rfftn(x[..., start : start + width].mT.unflatten(-1, shape), lengths, axes) for x in (q, k)
        )
        product = (q_spectrum.conj_physical_() * k_spectrum).sum(1)
        spectrum = product if spectrum is None else spectrum + product
    assert spectrum is not None
    sums = torch.fft.irfftn(spectrum, lengths, axes)
    for axis, side, length in zip(axes, shape, lengths, strict=True):
        sums = sums.index_select(axis, torch.arange(-(side - 1), side, device=q.device) % length)
    return sums.flatten(1)


def _summed(part: Part) -> _Sums:
    """Return the sums from blocks of scores, in the time of attention."""
    part = replace(part, scores=replace(part.scores, q=part.scores.q.double(), k=part.scores.k.double()))
    batch, heads, n = part.scores.shape

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, heads, *shape, dtype=torch.float64)

    result = _Sums(zeros(len(part.geometry.count)), zeros(n), zeros(n), zeros(), _largest_square(part))
    kernels = kernels_for(part.scores)
    if kernels is None:
        sums = map(_of_group, groups(part))
    else:
        sums = in_threads(partial(_of_task, make, kernels) for make in tasks(part, unit=1.0))
    for group, of_group in sums:
        for name, values in of_group.items():
            getattr(result, name)[group.sequences, group.heads] += group.by_sequence(values)
    return result


def _largest_square(part: Part) -> Tensor:
    """Return an upper bound of the sum of squares of row-centred scores, [batch, head]: products of norms, and bias."""
    scores, geometry = part.scores, part.geometry
    q, k = (geometry.of_present(x.mT).mT for x in (scores.q, scores.k))
    k = geometry.of_present((k - k.sum(2, keepdim=True) / geometry.tokens).mT).mT
    squares = (scores.factor * q).square().sum((2, 3)) * k.square().sum((2, 3))
    bias = _centred_bias(part)
    return squares.cpu() if bias is None else squares.cpu() + bias.square() @ geometry.count


def _of_group(group: Group) -> tuple[Group, dict[str, Tensor]]:
    """Return a group and its `_Sums` by name except the scale, [matrix, ...]."""
    n = group.geometry.n
    by_offset, by_key, means = OffsetSums(group), group.totals(n), group.totals(n)
    square, buffer = group.totals(), group.memory()
    for block in group.blocks():
        score = block.of(buffer, group.size)
        group.write_scores(block, out=score)
        visible = group.visible(block)
        if group.masked:
            score *= visible
        mean = quotient(score.sum(-1, keepdim=True), visible.sum(-1, keepdim=True))
        score -= mean * visible if group.masked else mean
        by_offset.add(score, block)
        by_key[:, block.keys] += over_queries(score)
        square += score.square().sum((1, 2))
        means[:, block.queries] = mean[..., 0]
    return group, {"by_offset": by_offset.sums(), "by_key": by_key, "mean_by_query": means, "square": square}


def _of_task(make: Callable[[], Task], kernels: ModuleType) -> tuple[Group, dict[str, Tensor]]:
    """Return the group of a task and the `_Sums` of its queries by name except the scale, by compiled loops."""
    task = make()
    group, memory = task.group, task.group.memory()
    n, offsets = group.geometry.n, len(group.geometry.count)
    sums = {"by_offset": group.totals(offsets), "by_key": group.totals(n), "mean_by_query": group.totals(n)}
    sums["square"] = group.totals()
    arrays = [x.numpy() for x in sums.values()]
    for block in group.blocks(task.span):
        score = task.product(block, group.q, group.k, memory)
        kernels.score_block(score.numpy(), block.start, block.keys.start, *task.layout, *arrays)
    return group, sums
