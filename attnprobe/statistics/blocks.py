"""Arrays over query and key, a block of queries at a time.

A block holds queries x n numbers. On a grid it holds whole rows of pixels, and the sums by offset need twice n x
columns numbers: for a square image that is n to the power 1.5.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnprobe.geometry import Geometry
from attnprobe.scores import Scores, bias_of_pairs

QUERIES = 64
"""Queries in a block; on a grid the next number of whole rows of pixels."""
ELEMENTS = 2**21
"""Scores held at a time on a CPU, where they should fit its caches; other devices take 64 times as many."""


@dataclass(frozen=True)
class Block:
    """The queries from start to stop - 1, and the keys before ``keys``, which are all that they see."""

    start: int
    stop: int
    keys: int

    @property
    def queries(self) -> slice:
        """The queries."""
        return slice(self.start, self.stop)

    def of(self, memory: Float[Tensor, " element"], matrices: int) -> Float[Tensor, "matrix query key"]:
        """Return the beginning of some memory as an array for this block."""
        rows = self.stop - self.start
        return memory[: matrices * rows * self.keys].view(matrices, rows, self.keys)


@dataclass(frozen=True)
class Group:
    """Some (sequence, head) matrices of the scores of one batch without padding, worked on together."""

    scores: Scores
    sequences: Int[Tensor, " matrix"]
    """The place of each matrix in the batch."""
    heads: Int[Tensor, " matrix"]
    """The head of each matrix."""
    q: Float[Tensor, "matrix token d_head"]
    """Queries times the scale, in `Scores.type`."""
    k: Float[Tensor, "matrix token d_head"]
    """Keys."""
    bias: Float[Tensor, "matrix offset"] | None
    """Bias at the offsets of the geometry."""
    queries: int
    """Queries in a block."""

    @property
    def size(self) -> int:
        """Number of matrices."""
        return len(self.q)

    @property
    def geometry(self) -> Geometry:
        """The geometry of the scores."""
        return self.scores.geometry

    def take(self, x: Float[Tensor, "batch head token width"]) -> Float[Tensor, "matrix token width"]:
        """Return the group's part of values, gradients or factors, in the type of its queries."""
        return x[self.sequences.to(x.device), self.heads.to(x.device)].to(self.q)

    def memory(self) -> Float[Tensor, " element"]:
        """Return room for one block of every matrix."""
        return self.q.new_empty(self.size * self.queries * self.geometry.n)

    def totals(self, *shape: int) -> Float[Tensor, "matrix ..."]:
        """Return zeros to add up in."""
        return torch.zeros(self.size, *shape, dtype=torch.float64, device=self.q.device)

    def blocks(self) -> Iterator[Block]:
        """Yield blocks that hold each query once."""
        n = self.geometry.n
        for start in range(0, n, self.queries):
            stop = min(start + self.queries, n)
            yield Block(start, stop, stop if self.scores.causal else n)

    def write_scores(self, block: Block, out: Float[Tensor, "matrix query key"]) -> None:
        """Write the scores of a block, and for keys after a causal query a number far below any score.

        It is finite, since it is multiplied by the weight 0.
        """
        self.write_products(block, self.q, self.k, out, self.bias)
        if self.scores.causal:
            out.masked_fill_(~self.visible(block), torch.finfo(out.dtype).min / 4)

    def write_products(
        self,
        block: Block,
        left: Float[Tensor, "matrix token width"],
        right: Float[Tensor, "matrix token width"],
        out: Float[Tensor, "matrix query key"],
        bias: Float[Tensor, "matrix offset"] | None = None,
    ) -> None:
        """Write the products of left with right, plus a bias, for the pairs of a block in their order.

        What stands at keys after a causal query is finite, and has no meaning.
        """
        causal, order = self.scores.causal, self.scores.order
        queries = torch.arange(block.start, block.stop, device=out.device)
        if order is None:
            torch.bmm(left[:, block.queries], right[:, : block.keys].mT, out=out)
            if bias is not None:
                out += self._windows(bias, queries, block.keys)
            return
        order = order.to(out.device)
        taken = queries if causal else order[queries]
        arranged = left[:, taken] @ right.mT
        if bias is not None:
            arranged += self._windows(bias, taken, self.geometry.n)
        arranged = arranged[..., order]
        if causal:
            out.zero_().masked_scatter_(self.visible(block), arranged[:, order <= queries[:, None]])
        else:
            out.copy_(arranged)

    def visible(self, block: Block) -> Bool[Tensor, "#query key"]:
        """Return which keys the queries of a block see."""
        key = torch.arange(block.keys, device=self.q.device)
        if not self.scores.causal:
            return (key >= 0)[None]
        return key <= torch.arange(block.start, block.stop, device=self.q.device)[:, None]

    def _windows(
        self, bias: Float[Tensor, "matrix offset"], queries: Int[Tensor, " query"], keys: int
    ) -> Float[Tensor, "matrix query key"]:
        """Return the bias of some queries with the first keys."""
        return bias_of_pairs(bias, self.geometry.shape, queries, torch.arange(keys, device=bias.device))


def groups(scores: Scores) -> Iterator[Group]:
    """Yield all matrices of scores without padding, some together, with the size of their blocks."""
    batch, heads, n = scores.shape
    rows, columns = rows_and_columns(scores.geometry)
    step = 1 if rows == 1 else columns
    queries = min(n, -(-QUERIES // step) * step)
    elements = ELEMENTS if scores.q.device.type == "cpu" else 64 * ELEMENTS
    at_once = max(1, elements // (queries * n))
    wide = scores.type
    for matrices in torch.arange(batch * heads, device=scores.q.device).split(at_once):
        sequence, head = matrices // heads, matrices % heads
        q, k = (x[sequence, head].to(wide) for x in (scores.q, scores.k))
        bias = None if scores.bias_by_offset is None else scores.bias_by_offset[head].to(wide)
        yield Group(scores, sequence.cpu(), head.cpu(), q * scores.factor, k, bias, queries)


def rows_and_columns(geometry: Geometry) -> tuple[int, int]:
    """Return the sides of a grid; a line is one row."""
    return (1, geometry.n) if len(geometry.shape) == 1 else (geometry.shape[0], geometry.shape[1])


class OffsetSums:
    """Sums by offset of arrays that come in blocks.

    In a line an offset is a diagonal of the block, and with a row stride of one more than its width diagonals are
    columns: their sums are read off in place, but for the corners, where a diagonal misses some rows. On a grid, where
    a block is a number of whole rows of pixels, what is added up is the array over (query column, row offset, key
    column), whose diagonals remain for the end.
    """

    def __init__(self, group: Group) -> None:
        """Start from zero."""
        self.rows, self.columns = rows_and_columns(group.geometry)
        if self.rows == 1:
            self.total = group.totals(2 * self.columns - 1)
        else:
            self.total = group.totals(self.columns, 2 * self.rows - 1, self.columns)

    def add(self, x: Float[Tensor, "matrix query key"], block: Block) -> None:
        """Add the array of a block."""
        matrices, queries, keys = x.shape
        if self.rows == 1:
            zero = self.columns - 1 - block.start  # where the offsets of the first query with key 0 are
            whole = x.as_strided((matrices, queries, keys - queries + 1), (queries * keys, keys + 1, 1))
            corners = diagonal_sums(x[..., :queries].tril(-1) + x[..., keys - queries :].triu(1))
            self.total[:, zero : zero + keys - queries + 1] += over_queries(whole)
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
        if self.rows == 1:
            return self.total.cpu()
        found = self.total.new_zeros(len(self.total), 2 * self.rows - 1, 2 * self.columns - 1)
        for column in range(self.columns):
            first = self.columns - 1 - column
            found[..., first : first + self.columns] += self.total[:, column]
        return found.flatten(1).cpu()


def over_queries(x: Float[Tensor, "matrix query key"]) -> Float[Tensor, "matrix key"]:
    """Return the sums over the queries of a block, as a product with ones: faster than a reduction."""
    return torch.bmm(x.new_ones(len(x), 1, x.shape[1]), x)[:, 0]


def diagonal_sums(x: Float[Tensor, "*lead n n"]) -> Float[Tensor, "*lead offset"]:
    """Return the sums along the diagonals of squares, from offset -(n - 1) to n - 1.

    Rows are turned upside down and padded to 2 n; read with a width of 2 n - 1 the diagonals stand in columns.
    """
    n = x.shape[-1]
    flat = F.pad(x.flip(-2), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    return flat.unflatten(-1, (n, 2 * n - 1)).sum(-2)
