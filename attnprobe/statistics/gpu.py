"""Triton kernels that replace the torch operations on the blocks of a GPU: one pass over a row instead of about six.

They run on devices of type cuda, and with ``TRITON_INTERPRET=1`` on the CPU, where the tests compare them with the
float64 reference. A block is [matrix, query, key]. Masks, biases and permutations are in its scores already. Numbers of
a row are added in `LANES` lanes in the type of the block, and lanes and blocks in float64; no sum is atomic, so results
do not depend on the order in which programs run.
"""

from typing import no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

LANES = 1024
"""Keys, or offsets, that a program handles at a time."""


def softmax(scores: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of each row, and return the entropy and the log of the sum of exponentials of each row.

    Args:
        scores: [matrix, query, key].
        pattern: [matrix, query, key]: written.

    Returns:
        Two arrays [matrix, query], float64, in nats.
    """
    matrices, queries, width = scores.shape
    entropy, level = (torch.empty(matrices, queries, dtype=torch.float64, device=scores.device) for _ in range(2))
    _softmax[(matrices * queries,)](scores, pattern, entropy, level, width, lanes=LANES)  # pyright: ignore[reportIndexIssue]
    return entropy, level


def gradient(scores: Tensor, products: Tensor) -> None:
    """Replace the products of output gradients and values by the gradient of the scores, both [matrix, query, key]."""
    matrices, queries, width = scores.shape
    _gradient[(matrices * queries,)](scores, products, width, lanes=LANES)  # pyright: ignore[reportIndexIssue]


def add_by_offset(x: Tensor, total: Tensor, start: int, first: int, rows: int, columns: int) -> None:
    """Add the sums by offset of a block.

    Args:
        x: [matrix, query, key], of the queries start ... with the keys first ....
        total: [matrix, offset], float64.
        start: First query.
        first: First key.
        rows: Rows of the grid; 1 for a line.
        columns: Columns of the grid.
    """
    matrices, queries, width = x.shape
    last, offsets = start + queries - 1, total.shape[1]
    begin, end = 0, offsets
    if rows == 1:  # the offsets that the block has: few of those of a long sequence with a sliding window
        begin, end = first - last + columns - 1, first + width - start + columns - 1
    grid = (matrices, triton.cdiv(end - begin, LANES))
    _add_by_offset[grid](x, total, begin, end, offsets, start, first, queries, width, rows, columns, lanes=LANES)  # pyright: ignore[reportIndexIssue]


def check(device: str) -> None:
    """Raise an exception if the kernels do not run on a device, or give other numbers than torch."""
    matrices, queries, n = 2, 3, LANES + 76
    scores = torch.linspace(-3, 3, matrices * queries * n, device=device).sin().view(matrices, queries, n)
    products, pattern, expected = scores.cos(), torch.empty_like(scores), scores.softmax(-1)
    entropy, level = softmax(scores, pattern)
    torch.testing.assert_close(pattern, expected)
    torch.testing.assert_close(entropy.float(), -(expected * expected.log()).sum(-1))
    torch.testing.assert_close(level.float(), scores.logsumexp(-1))
    mean = (expected * products).sum(-1, keepdim=True)
    expected_gradient = expected * (products - mean)
    gradient(scores, products)
    torch.testing.assert_close(products, expected_gradient, rtol=1e-4, atol=1e-8)
    sums = torch.zeros(matrices, 2 * n - 1, dtype=torch.float64, device=device)
    expected_sums = sums.clone()
    start = 5
    add_by_offset(pattern, sums, start, 0, 1, n)
    for query in range(queries):
        first = n - 1 - start - query
        expected_sums[:, first : first + n] += expected[:, query]
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-8)


@triton.jit
@no_type_check
def _softmax(
    scores: tl.tensor, pattern: tl.tensor, entropy: tl.tensor, level: tl.tensor, width: tl.tensor, lanes: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, lanes)
    scores += row * width
    pattern += row * width
    kind = scores.dtype.element_ty
    peaks = tl.full([lanes], float("-inf"), kind)
    for key in range(0, width, lanes):
        peaks = tl.maximum(peaks, tl.load(scores + key + lane, mask=key + lane < width, other=float("-inf")))
    peak = tl.max(peaks)
    totals = tl.zeros([lanes], kind)
    means = tl.zeros([lanes], kind)
    for key in range(0, width, lanes):
        inside = key + lane < width
        score = tl.where(inside, tl.load(scores + key + lane, mask=inside, other=0.0) - peak, 0.0)
        weight = tl.where(inside, tl.exp(score), 0.0)
        totals += weight
        means += weight * score
    total = tl.sum(totals.to(tl.float64))
    logarithm = tl.log(total)
    tl.store(entropy + row, logarithm - tl.sum(means.to(tl.float64)) / total)
    tl.store(level + row, peak.to(tl.float64) + logarithm)
    factor = (1 / total).to(kind)
    for key in range(0, width, lanes):
        inside = key + lane < width
        weight = tl.exp(tl.load(scores + key + lane, mask=inside, other=float("-inf")) - peak)
        tl.store(pattern + key + lane, factor * weight, mask=inside)


@triton.jit
@no_type_check
def _gradient(scores: tl.tensor, products: tl.tensor, width: tl.tensor, lanes: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, lanes)
    scores += row * width
    products += row * width
    kind = scores.dtype.element_ty
    peaks = tl.full([lanes], float("-inf"), kind)
    for key in range(0, width, lanes):
        peaks = tl.maximum(peaks, tl.load(scores + key + lane, mask=key + lane < width, other=float("-inf")))
    peak = tl.max(peaks)
    totals = tl.zeros([lanes], kind)
    means = tl.zeros([lanes], kind)
    for key in range(0, width, lanes):
        inside = key + lane < width
        weight = tl.exp(tl.load(scores + key + lane, mask=inside, other=float("-inf")) - peak)
        totals += weight
        means += weight * tl.load(products + key + lane, mask=inside, other=0.0)
    total = tl.sum(totals.to(tl.float64))
    mean = (tl.sum(means.to(tl.float64)) / total).to(kind)
    factor = (1 / total).to(kind)
    for key in range(0, width, lanes):
        inside = key + lane < width
        weight = tl.exp(tl.load(scores + key + lane, mask=inside, other=float("-inf")) - peak)
        product = tl.load(products + key + lane, mask=inside, other=0.0)
        tl.store(products + key + lane, factor * weight * (product - mean), mask=inside)


@triton.jit
@no_type_check
def _add_by_offset(
    x: tl.tensor,
    total: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    offsets: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    queries: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    lanes: tl.constexpr,
) -> None:
    matrix = tl.program_id(0).to(tl.int64)
    at = begin + tl.program_id(1) * lanes + tl.arange(0, lanes)
    by_row = at // (2 * columns - 1) - (rows - 1)
    by_column = at % (2 * columns - 1) - (columns - 1)
    x += matrix * queries * width
    sums = tl.zeros([lanes], x.dtype.element_ty)
    for r in range(queries):
        row = (start + r) // columns + by_row
        column = (start + r) % columns + by_column
        key = row * columns + column - first
        inside = (at < end) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        sums += tl.load(x + r * width + key, mask=inside & (key >= 0) & (key < width), other=0.0)
    place = total + matrix * offsets + at
    tl.store(place, tl.load(place, mask=at < end) + sums.to(tl.float64), mask=at < end)
