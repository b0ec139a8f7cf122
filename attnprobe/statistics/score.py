r"""Score statistics in near-linear time, O(n log n d + n d²), and in the memory of a few copies of one head's queries.

With the scale folded into q and the keys centred, $\hat k_j = k_j - \bar k$ (which adds a constant to each row):

- the sum at each offset, $\sum_{j - i = o} q_i \cdot \hat k_j$, is a cross-correlation, by FFT;
- the row means are $q_i \cdot \bar k$, plus, for a causal query, $q_i$ times the running mean of $\hat k$;
- the sum of squares is $\langle Q^\top Q, \hat K^\top \hat K \rangle$; for causal attention block by block, with the
  Gram matrix of the keys so far;
- a bias $b(o)$ enters exactly: by running sums, and through its products with the sums at each offset.

All is computed in float64 from q and k as they are given. Errors are about 1e-13 of the lengths that are multiplied,
$\|Q^\top Q\| \|\hat K^\top \hat K\|$ for sums of squares: relative errors grow where queries and keys are long in
directions in which their products cancel. The scores of a null (`Scores.order`) with causal attention or a bias are no
such products: those are streamed in blocks, in float64 too, in the time of attention.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.fft import next_fast_len
from torch import Tensor

from attnprobe.geometry import Geometry, geometry
from attnprobe.scores import Scores, check_alike
from attnprobe.statistics.blocks import OffsetSums, groups, over_queries

SMALLEST = 1e-13
"""Below this share of the products of lengths the sum of squares of a centred score is nothing but rounding."""
BLOCK = 64
"""Queries at a time in the causal sum of squares."""
ELEMENTS = 2**19
"""Numbers that go through the FFT at a time."""


@dataclass(frozen=True)
class ScoreStatistics:
    """Statistics of the scores of each sequence and head, over visible pairs of real tokens; float64 on the CPU.

    On a grid the axis of offsets is flat (see `Geometry`). Where there is no pair a mean is NaN.
    """

    geometry: Geometry
    """The pairs of a sequence without padding; shared, not to be changed."""
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
    """The same of the row-centred score."""
    offset_profile: Float[Tensor, "batch head offset"]
    """The function of the offset that fits the score best, row constants aside (`Geometry.offset_profile`)."""
    square: Float[Tensor, "batch head"]
    """Sum of squares."""
    square_row_centred: Float[Tensor, "batch head"]
    """Sum of squares of the row-centred score: all that the softmax sees."""
    square_double_centred: Float[Tensor, "batch head"]
    """What is left of it when the best function of the key is removed too."""
    toeplitz_share: Float[Tensor, "batch head"]
    """Share of the row-centred sum of squares that the kernel explains, 0 ... 1; NaN where the score is constant."""

    @property
    def std(self) -> Float[Tensor, "batch head"]:
        """Standard deviation of the row-centred score."""
        return (self.square_row_centred / self.pairs.sum(-1, keepdim=True)).sqrt()

    def contrast(self, window: int | float) -> Float[Tensor, "batch head"]:
        """Return `near_minus_far` over the score's std; NaN where the score is constant too."""
        return self.near_minus_far(window) / self.std.where(self.toeplitz_share.isfinite(), torch.nan)

    def near_minus_far(self, window: int | float) -> Float[Tensor, "batch head"]:
        """Return the mean centred score at 0 < distance <= window, minus that beyond.

        It is linear in the score. NaN where there is nothing near or nothing far.
        """
        distance = self.geometry.distance
        near, far = (distance > 0) & (distance <= window), distance > window
        sums = (self.centred_by_offset * self.pairs[:, None]).nan_to_num()
        pairs = self.pairs[:, None]
        means = [sums[..., of].sum(-1) / pairs[..., of].sum(-1) for of in (near, far)]
        return means[0] - means[1]

    def in_line(self) -> "ScoreStatistics":
        """Return the statistics by offset in the reading order, of pixels on a grid."""
        if len(self.geometry.shape) == 1:
            return self
        fold, line = self.geometry.fold, geometry((self.geometry.n,), self.geometry.causal)
        pairs = fold(self.pairs)
        mean, centred = (
            fold((one * self.pairs[:, None]).nan_to_num()) for one in (self.mean_by_offset, self.centred_by_offset)
        )
        kernel = line.offset_profile(centred)
        energy = self.square_row_centred.where(self.toeplitz_share.isfinite(), torch.nan)
        return replace(
            self,
            geometry=line,
            pairs=pairs,
            mean_by_offset=mean / pairs[:, None],
            centred_by_offset=centred / pairs[:, None],
            offset_profile=kernel,
            toeplitz_share=(centred * kernel.nan_to_num()).sum(-1) / energy,
        )


@torch.no_grad()
def score_statistics(scores: Scores) -> ScoreStatistics:
    """Return the statistics of scores; see the module for the method and its cost."""
    scores = scores.checked()
    batch, heads, n = scores.shape
    places = scores.geometry
    empty = torch.full((batch, heads), torch.nan, dtype=torch.float64)

    def nan(size: int) -> Tensor:
        return torch.full((batch, heads, size), torch.nan, dtype=torch.float64)

    made = ScoreStatistics(
        geometry=places,
        pairs=torch.zeros(batch, len(places.count), dtype=torch.float64),
        mean=empty.clone(),
        mean_by_query=nan(n),
        mean_by_key=nan(n),
        mean_by_offset=nan(len(places.count)),
        centred_by_offset=nan(len(places.count)),
        offset_profile=nan(len(places.count)),
        square=empty.clone(),
        square_row_centred=empty.clone(),
        square_double_centred=empty.clone(),
        toeplitz_share=empty.clone(),
    )
    for part in scores.unpadded():
        rows, tokens, offsets, geometry = part.rows, part.tokens, part.offsets, part.scores.geometry
        sums = _sums(part.scores)
        kernel = geometry.offset_profile(sums.by_offset)
        energy = sums.square.where(sums.square > SMALLEST * sums.scale, torch.nan)
        key_constants = geometry.key_constants(sums.by_key)
        mean = sums.mean_by_query
        made.pairs[rows, offsets] = geometry.count
        made.mean[rows] = mean @ geometry.keys / geometry.keys.sum()
        made.mean_by_query[rows, :, tokens] = mean
        made.mean_by_key[rows, :, tokens] = (sums.by_key + geometry.sum_over_queries(mean)) / geometry.queries
        made.mean_by_offset[rows, :, offsets] = (sums.by_offset + geometry.overlaps(mean)) / geometry.count
        made.centred_by_offset[rows, :, offsets] = sums.by_offset / geometry.count
        made.offset_profile[rows, :, offsets] = kernel
        made.square[rows] = sums.square + mean.square() @ geometry.keys
        made.square_row_centred[rows] = sums.square
        made.square_double_centred[rows] = (sums.square - (sums.by_key * key_constants).sum(-1)).clamp(min=0)
        made.toeplitz_share[rows] = (sums.by_offset * kernel.nan_to_num()).sum(-1) / energy
    return made


@torch.no_grad()
def covariance(a: Scores, b: Scores) -> Float[Tensor, "batch head"]:
    r"""Return $\sum_{ij} \hat a_{ij} \hat b_{ij}$ over visible pairs for two row-centred scores of the same tokens.

    By polarisation: $a + b$ is a score too, whose queries and keys are those of both side by side. Errors are about
    1e-13 of the products of lengths; what is smaller comes out as 0. An order changes nothing here.
    """
    a, b = a.checked(), b.checked()
    check_alike(a, b)
    q = torch.cat([a.q.double() * a.factor, b.q.double() * b.factor], dim=-1)
    k = torch.cat([a.k.double(), b.k.double()], dim=-1)
    biases = [one.bias_by_offset.double() for one in (a, b) if one.bias_by_offset is not None]
    both = replace(a, q=q, k=k, scale=1.0, bias=sum(biases) if biases else None)
    of_both, of_a, of_b = (_sums(replace(one, order=None), by_offset=one.bias is not None) for one in (both, a, b))
    found = (of_both.square - of_a.square - of_b.square) / 2
    return found.where(found.abs() > SMALLEST * of_both.scale, 0.0)


@dataclass(frozen=True)
class _Sums:
    """What all score statistics follow from; c is the row-centred score, over visible pairs."""

    by_offset: Float[Tensor, "batch head offset"]
    """Sums of c at each offset."""
    by_key: Float[Tensor, "batch head key"]
    """Sums of c over queries."""
    mean_by_query: Float[Tensor, "batch head query"]
    """Row means of the score."""
    square: Float[Tensor, "batch head"]
    """Sum of squares of c."""
    scale: Float[Tensor, "batch head"]
    """How large the terms of that sum are, for the rounding."""


def _sums(scores: Scores, by_offset: bool = True) -> _Sums:
    """Return the sums; those by offset, which a bias needs too, cost more than all others and may be left out."""
    if scores.order is not None and (scores.causal or scores.bias is not None):
        return _streamed_sums(scores)  # such scores are no function of rearranged queries and keys
    order = slice(None) if scores.order is None else scores.order
    batch, heads, n = scores.shape
    geometry = scores.geometry
    q, k = (x[:, :, order].flatten(0, 1) for x in (scores.q, scores.k))
    size = max(1, ELEMENTS // (n * q.shape[-1]))
    found = [
        _products(some_q.double() * scores.factor, some_k.double(), geometry, by_offset)
        for some_q, some_k in zip(q.split(size), k.split(size), strict=True)
    ]
    sums, by_key, mean, shift, square, scale = (
        torch.cat(parts).unflatten(0, (batch, heads)).cpu() for parts in zip(*found, strict=True)
    )
    if scores.bias_by_offset is not None:
        bias = scores.bias_by_offset.double().cpu()
        level = (bias @ geometry.count / geometry.count.sum())[:, None]
        bias = bias - level
        square = square + 2 * (sums * bias).sum(-1) + bias.square() @ geometry.count
        scale = scale + bias.square() @ geometry.count
        sums = sums + geometry.count * bias
        by_key = by_key + geometry.windows_by_key(bias)
        mean = mean + geometry.windows(bias) / geometry.keys
        shift = shift + level
    return _Sums(
        sums - geometry.overlaps(mean),
        by_key - geometry.sum_over_queries(mean),
        mean + shift,
        (square - mean.square() @ geometry.keys).clamp(min=0),
        scale,
    )


def _products(q: Tensor, k: Tensor, geometry: Geometry, correlate: bool) -> tuple[Tensor, ...]:
    """Return the sums of products of q and centred k, and the row constants that centring took away."""
    level = k.mean(1, keepdim=True)
    k = k - level
    gram_q, gram_k = q.mT @ q, k.mT @ k
    if geometry.causal:
        keys = geometry.keys.to(q.device)
        mean = (q * k.cumsum(1)).sum(-1) / keys
        by_key = (q.flip(1).cumsum(1).flip(1) * k).sum(-1)
        square = _causal_square(q, k)
    else:
        mean = torch.zeros_like(q[..., 0])
        by_key = (k @ q.sum(1)[..., None])[..., 0]
        square = (gram_q * gram_k).sum((-2, -1))
    by_offset = q.new_zeros(len(q), len(geometry.count))
    if correlate:
        by_offset = _correlation(q, k, geometry.shape) * geometry.seen.to(q.device)
    scale = torch.linalg.matrix_norm(gram_q) * torch.linalg.matrix_norm(gram_k)
    return by_offset, by_key, mean, (q @ level.mT)[..., 0], square, scale


def _causal_square(q: Tensor, k: Tensor) -> Tensor:
    """Return the sum over j <= i of the squares of q_i . k_j."""
    gram = torch.zeros_like(k.mT @ k)
    total = torch.zeros_like(gram[:, 0, 0])
    for start in range(0, q.shape[1], BLOCK):
        now = slice(start, start + BLOCK)
        total = total + (q[:, now] @ k[:, now].mT).tril().square().sum((-2, -1))
        total = total + ((q[:, now] @ gram) * q[:, now]).sum((-2, -1))
        gram = gram + k[:, now].mT @ k[:, now]
    return total


def _correlation(q: Tensor, k: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return [matrix, offset]: the sums of q_i . k_j at each offset j - i."""
    axes = tuple(range(-len(shape), 0))
    # scipy has no types for it
    lengths: list[int] = [next_fast_len(2 * side - 1, real=True) for side in shape]  # pyright: ignore
    spectrum = None
    at_once = max(1, ELEMENTS // (len(q) * math.prod(lengths)))
    for start in range(0, q.shape[-1], at_once):
        of_q, of_k = (
            torch.fft.rfftn(x[..., start : start + at_once].mT.unflatten(-1, shape), lengths, axes) for x in (q, k)
        )
        product = (of_q.conj_physical_() * of_k).sum(1)
        spectrum = product if spectrum is None else spectrum + product
    assert spectrum is not None
    sums = torch.fft.irfftn(spectrum, lengths, axes)
    for axis, side, length in zip(axes, shape, lengths, strict=True):
        sums = sums.index_select(axis, torch.arange(-(side - 1), side, device=q.device) % length)
    return sums.flatten(1)


def _streamed_sums(scores: Scores) -> _Sums:
    """Return the same from blocks of scores, in the time of attention, for scores that are no such products."""
    scores = replace(scores, q=scores.q.double(), k=scores.k.double())
    batch, heads, n = scores.shape
    geometry = scores.geometry
    made = _Sums(
        by_offset=torch.zeros(batch, heads, len(geometry.count), dtype=torch.float64),
        by_key=torch.zeros(batch, heads, n, dtype=torch.float64),
        mean_by_query=torch.zeros(batch, heads, n, dtype=torch.float64),
        square=torch.zeros(batch, heads, dtype=torch.float64),
        scale=torch.zeros(batch, heads, dtype=torch.float64),
    )
    for group in groups(scores):
        rows, head = group.sequences, group.heads
        by_offset, room = OffsetSums(group), group.memory()
        for block in group.blocks():
            score = block.of(room, group.size)
            group.write_scores(block, out=score)
            seen = group.visible(block)
            score *= seen
            made.scale[rows, head] += score.square().sum((1, 2)).cpu()
            mean = score.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
            score -= mean * seen
            by_offset.add(score, block)
            made.by_key[rows, head, : block.keys] += over_queries(score).cpu()
            made.square[rows, head] += score.square().sum((1, 2)).cpu()
            made.mean_by_query[rows, head, block.queries] = mean[..., 0].cpu()
        made.by_offset[rows, head] = by_offset.sums()
    return made
