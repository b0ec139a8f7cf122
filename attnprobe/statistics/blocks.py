"""Query-key arrays in blocks of queries.

A block has queries x n elements. On a grid a block covers full rows of pixels, and the sums by offset need about
2 n x columns elements: proportional to n^1.5 for a square image.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attnprobe.geometry import Geometry
from attnprobe.scores import Part, Scores, bias_of_pairs

FEWEST_QUERIES, QUERIES = 16, 64
"""Queries per block; rounded up to full rows of pixels on a grid."""
ELEMENTS = 2**18
"""Scores per block on a CPU, so that they stay in its second-level cache; 64 times this number on other devices."""


@functools.cache
def gpu_kernels(device: str) -> ModuleType | None:
    """Return the Triton kernels for a type of device, or None where they do not run; torch operations are used then.

    Before their first use they are compared with torch. They need Triton, which comes with torch for CUDA, and a C
    compiler.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") is None or not (device == "cuda" or (device == "cpu" and interpreted)):
        return None
    try:
        from attnprobe.statistics import gpu

        gpu.check(device)
    except Exception as error:  # Triton and the compiler raise many types; wrong numbers an AssertionError
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"Triton could not be used, so torch is: {reason}", RuntimeWarning, stacklevel=2)
        return None
    return gpu


@dataclass(frozen=True)
class Block:
    """Queries from start to stop - 1, and the consecutive keys that include all keys visible to them."""

    start: int
    stop: int
    keys: slice

    @property
    def width(self) -> int:
        """Number of keys."""
        return self.keys.stop - self.keys.start

    @property
    def queries(self) -> slice:
        """Slice of the queries."""
        return slice(self.start, self.stop)

    def of(self, memory: Float[Tensor, " element"], matrices: int) -> Float[Tensor, "matrix query key"]:
        """View the beginning of a buffer as an array for this block."""
        rows = self.stop - self.start
        return memory[: matrices * rows * self.width].view(matrices, rows, self.width)


@dataclass(frozen=True)
class Group:
    """A set of (sequence, head) score matrices of the sequences of a part, processed together."""

    scores: Scores
    geometry: Geometry
    """Query-key pairs of the sequences."""
    sequences: slice
    """Sequences of the part. Its matrices are those of all heads of the first one, of the second one, ...."""
    heads: slice
    """Heads."""
    q: Float[Tensor, "matrix token d_head"]
    """Queries times the scale, of type `Scores.type`."""
    k: Float[Tensor, "matrix token d_head"]
    """Keys."""
    bias: Float[Tensor, "head offset"] | None
    """Bias at the offsets of the geometry."""
    sink: Float[Tensor, " matrix"] | None
    """Score of each query with the sink."""
    queries: int
    """Queries per block."""

    @property
    def size(self) -> int:
        """Number of matrices."""
        return len(self.q)

    @property
    def kernels(self) -> ModuleType | None:
        """Triton kernels for the blocks of this group, or None."""
        return gpu_kernels(self.q.device.type)

    @property
    def stays(self) -> bool:
        """Whether `Scores.order` permutes only the keys that each query sees, since they depend on its position."""
        return self.geometry.causal or self.geometry.window is not None

    def take(self, x: Float[Tensor, "batch head token width"]) -> Float[Tensor, "matrix token width"]:
        """Select the matrices of this group from values, gradients or factors, in the type of its queries."""
        return x[self.sequences, self.heads].flatten(0, 1).to(self.q)

    def by_sequence(self, x: Shaped[Tensor, "matrix ..."]) -> Shaped[Tensor, "sequence head ..."]:
        """Split the axis of the matrices, and move the result to the CPU."""
        return x.unflatten(0, (-1, self.heads.stop - self.heads.start)).cpu()

    def memory(self) -> Float[Tensor, " element"]:
        """Allocate a buffer for one block of every matrix."""
        return self.q.new_empty(self.size * self.queries * self.geometry.n)

    def totals(self, *shape: int) -> Float[Tensor, "matrix ..."]:
        """Allocate a float64 accumulator of zeros per matrix."""
        return torch.zeros(self.size, *shape, dtype=torch.float64, device=self.q.device)

    def blocks(self, span: slice = slice(0, None)) -> Iterator[Block]:
        """Yield blocks that partition the queries, or a span of them."""
        n, window = self.geometry.n, self.geometry.window
        begin, end, _ = span.indices(n)
        for start in range(begin, end, self.queries):
            stop = min(start + self.queries, end)
            first, last = 0, stop if self.scores.causal else n
            if window is not None:
                first, last = max(0, start - window), min(last, stop + window)
            yield Block(start, stop, slice(first, last))

    def write_scores(self, block: Block, out: Float[Tensor, "matrix query key"]) -> None:
        """Write the scores of a block; masked keys get a number far below any score.

        That number is finite because it is later multiplied by an attention weight of 0.
        """
        self.write_products(block, self.q, self.k, out, self.bias)
        if self.masked:
            out.masked_fill_(~self.visible(block), torch.finfo(out.dtype).min / 4)

    def write_products(
        self,
        block: Block,
        left: Float[Tensor, "matrix token width"],
        right: Float[Tensor, "matrix token width"],
        out: Float[Tensor, "matrix query key"],
        bias: Float[Tensor, "head offset"] | None = None,
    ) -> None:
        """Write the products of left and right, plus a bias, for the pairs of a block, permuted by `Scores.order`.

        The numbers at masked keys are finite but meaningless.
        """
        order = self.scores.order
        queries = torch.arange(block.start, block.stop, device=out.device)
        sources = self.sources(block)
        if order is None:
            torch.bmm(left[:, block.queries], right[:, block.keys].mT, out=out)
            if bias is not None:
                self._add_windows(out, bias, queries, block.keys)
            return
        order = order.to(out.device)
        products = left[:, sources] @ right.mT
        if bias is not None:
            self._add_windows(products, bias, sources, slice(0, self.geometry.n))
        products = products[..., order]
        if self.stays:
            out.zero_().masked_scatter_(self.visible(block), products[:, self._sees(queries, order)])
        else:
            out.copy_(products)

    def sources(self, block: Block) -> Int[Tensor, " query"]:
        """Return the tokens whose scores the queries of a block have, before `Scores.order` permutes their keys."""
        queries = torch.arange(block.start, block.stop, device=self.q.device)
        order = self.scores.order
        return queries if order is None or self.stays else order.to(queries.device)[queries]

    def visible(self, block: Block) -> Bool[Tensor, "#query key"]:
        """Return which keys are visible to the queries of a block."""
        device = self.q.device
        keys = torch.arange(block.keys.start, block.keys.stop, device=device)
        if not self.masked:
            return (keys >= 0)[None]
        return self._sees(torch.arange(block.start, block.stop, device=device), keys)

    @property
    def masked(self) -> bool:
        """Whether some keys are not visible to some queries."""
        return self.stays or bool(self.geometry.absent)

    def present(self, block: Block) -> Bool[Tensor, " query"]:
        """Return which queries of a block are present."""
        return self.geometry.present[block.queries].to(self.q.device)

    def _sees(self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"]) -> Bool[Tensor, "query key"]:
        """Return which keys are visible to which queries."""
        offset, window = keys - queries[:, None], self.geometry.window
        seen = offset <= 0 if self.geometry.causal else torch.ones_like(offset, dtype=torch.bool)
        seen = seen if window is None else seen & (offset.abs() <= window)
        if not self.geometry.absent:
            return seen
        present = self.geometry.present.to(offset.device)
        return seen & present[queries][:, None] & present[keys]

    def _add_windows(
        self,
        out: Float[Tensor, "matrix query key"],
        bias: Float[Tensor, "head offset"],
        queries: Int[Tensor, " query"],
        keys: slice,
    ) -> None:
        """Add the bias of the given queries with the given keys."""
        key = torch.arange(keys.start, keys.stop, device=bias.device)
        by_head = out.unflatten(0, (-1, len(bias)))
        by_head += bias_of_pairs(bias, self.geometry.shape, queries, key)


def groups(part: Part) -> Iterator[Group]:
    """Split the matrices of a part into groups, and choose the block size."""
    n = part.scores.shape[2]
    rows, columns = rows_and_columns(part.geometry)
    multiple = 1 if rows == 1 else columns
    elements = ELEMENTS if part.scores.q.device.type == "cpu" else 64 * ELEMENTS
    queries = min(QUERIES, max(FEWEST_QUERIES, elements // n))
    queries = min(n, -(-queries // multiple) * multiple)
    for sequences, heads in matrices(part.scores, elements // (queries * n)):
        yield group(part, sequences, heads, queries)


def matrices(scores: Scores, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of sequences and heads that have about ``size`` matrices: whole sequences, or heads of one."""
    batch, heads, _ = scores.shape
    sequences, of_one = max(1, size // heads), min(heads, max(1, size))
    for start in range(0, batch, sequences):
        for head in range(0, heads, of_one):
            yield slice(start, min(start + sequences, batch)), slice(head, min(head + of_one, heads))


def group(part: Part, sequences: slice, heads: slice, queries: int, unit: float = 1.0) -> Group:
    """Return some matrices of a part as a group, with scores divided by ``unit``."""
    scores, dtype = part.scores, part.scores.type
    q, k = (x[sequences, heads].flatten(0, 1).to(dtype) for x in (scores.q, scores.k))
    bias = None if scores.bias_by_offset is None else scores.bias_by_offset[heads].to(dtype) / unit
    sink = None if scores.sink is None else scores.sink[heads].to(dtype).repeat(sequences.stop - sequences.start)
    return Group(scores, part.geometry, sequences, heads, q * (scores.factor / unit), k, bias, sink, queries)


def rows_and_columns(geometry: Geometry) -> tuple[int, int]:
    """Return the numbers of rows and columns; a line is a single row."""
    return (1, geometry.n) if len(geometry.shape) == 1 else (geometry.shape[0], geometry.shape[1])


class OffsetSums:
    """Sums by offset of query-key arrays, accumulated over blocks.

    In a line each offset is a diagonal of the block. A view with a row stride of width + 1 turns diagonals into
    columns, which are summed in place; the corners, where a diagonal does not cross all rows, are handled separately.
    On a grid a block covers whole rows of pixels. The accumulator is over (query column, row offset, key column), and
    its diagonals are summed at the end.
    """

    def __init__(self, group: Group) -> None:
        """Initialise the sums to zero."""
        self.rows, self.columns = rows_and_columns(group.geometry)
        self.kernels = group.kernels
        if self.kernels is not None:
            self.total = group.totals(len(group.geometry.count))
        elif self.rows == 1:
            self.total = group.totals(2 * self.columns - 1)
        else:
            self.total = group.totals(self.columns, 2 * self.rows - 1, self.columns)

    def add(self, x: Float[Tensor, "matrix query key"], block: Block) -> None:
        """Add the array of a block."""
        matrices, queries, keys = x.shape
        if self.kernels is not None:
            self.kernels.add_by_offset(x, self.total, block.start, block.keys.start, self.rows, self.columns)
            return
        if self.rows == 1 and queries == keys == self.columns:
            self.total += diagonal_sums(x)
            return
        if self.rows == 1:
            zero = self.columns - 1 - block.start + block.keys.start  # index of the offset of the first query and key
            full = x.as_strided((matrices, queries, keys - queries + 1), (queries * keys, keys + 1, 1))
            corners = diagonal_sums(x[..., :queries].tril(-1) + x[..., keys - queries :].triu(1))
            self.total[:, zero : zero + keys - queries + 1] += over_queries(full)
            self.total[:, zero - queries + 1 : zero] += corners[:, : queries - 1]
            self.total[:, zero + keys - queries + 1 : zero + keys] += corners[:, queries:]
            return
        shape = (-1, self.columns)
        pixels = x.unflatten(1, shape).unflatten(-1, shape)  # [matrix, query row, query column, key row, key column]
        for row in range(queries // self.columns):
            first = self.rows - 1 - (block.start // self.columns + row)
            self.total[:, :, first : first + pixels.shape[3]] += pixels[:, row]

    def sums(self) -> Float[Tensor, "matrix offset"]:
        """Return the sums, in float64 on the CPU."""
        if self.rows == 1 or self.kernels is not None:
            return self.total.cpu()
        sums = self.total.new_zeros(len(self.total), 2 * self.rows - 1, 2 * self.columns - 1)
        for column in range(self.columns):
            first = self.columns - 1 - column
            sums[..., first : first + self.columns] += self.total[:, column]
        return sums.flatten(1).cpu()


def over_queries(x: Float[Tensor, "matrix query key"]) -> Float[Tensor, "matrix key"]:
    """Sum over the queries of a block, by a matrix product with ones, which is faster than a reduction."""
    return torch.bmm(x.new_ones(len(x), 1, x.shape[1]), x)[:, 0]


def diagonal_sums(x: Float[Tensor, "*lead n n"]) -> Float[Tensor, "*lead offset"]:
    """Sum along the diagonals of square matrices, from offset -(n - 1) to n - 1.

    The order of the rows is reversed and each row is padded to length 2 n. Read with a width of 2 n - 1, the diagonals
    are columns.
    """
    n = x.shape[-1]
    flat = F.pad(x.flip(-2), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    return flat.unflatten(-1, (n, 2 * n - 1)).sum(-2)
