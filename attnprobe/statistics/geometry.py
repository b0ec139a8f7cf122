r"""Geometry: which pairs of query and key a head can use, and which offset each pair has.

A function of the offset is fitted to scores in a way that respects what the softmax can see. Adding a constant to a row
of the score changes nothing, so the model is

$$S_{ij} = r_i + t(j - i) + \varepsilon_{ij}$$

with a free constant $r_i$ for each query, by least squares over the visible pairs. Centring each row and then averaging
each diagonal would *not* give t: rows of different lengths, or near an edge, have different means of t itself (the
profile of a causal $-m\,|j - i|$ would come out with three quarters of its slope). With $N_o$ pairs at offset o, $n_i$
keys visible to query i and $C_{io} = 1$ where query i has a key at offset o, t solves

$$(\mathrm{diag}(N) - C^\top \mathrm{diag}(1/n) C)\, t = b, \qquad b_o = \sum_{j - i = o} (S_{ij} - \bar S_{i\cdot}).$$
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The pairs of n tokens in a line, or of rows x columns pixels read row by row."""

    shape: tuple[int, ...]
    """(n,) for a line, (rows, columns) for a grid."""
    causal: bool = False
    """Whether a query sees only keys at or before its own place in the reading order."""

    @property
    def n(self) -> int:
        """Number of tokens."""
        return int(np.prod(self.shape))

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of offsets along each axis: 2 n - 1."""
        return tuple(2 * side - 1 for side in self.shape)

    @cached_property
    def visible(self) -> Bool[Tensor, "query key"]:
        """Which pairs there are."""
        visible = torch.ones(self.n, self.n, dtype=torch.bool)
        return visible.tril() if self.causal else visible

    @cached_property
    def keys(self) -> Float[Tensor, " query"]:
        """Number of keys that each query sees, $n_i$."""
        return self.visible.double().sum(-1)

    @cached_property
    def count(self) -> Float[Tensor, " offset"]:
        """Number of pairs at each offset, $N_o$."""
        return self.sums(self.visible.double())

    @cached_property
    def distance(self) -> Float[Tensor, " offset"]:
        """Euclidean length of each offset, in tokens or pixels."""
        axes = [torch.arange(-(side - 1), side, dtype=torch.float64) for side in self.shape]
        return torch.stack([axis.square() for axis in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt().flatten()

    @cached_property
    def uniform(self) -> Float[Tensor, " offset"]:
        """Sum over queries of the weight at each offset, where attention is uniform over the visible keys."""
        return self.sums(self.visible / self.keys[:, None])

    def sums(self, x: Float[Tensor, "*lead query key"]) -> Float[Tensor, "*lead offset"]:
        """Return the sums over all pairs at each offset; on a grid offsets are in reading order too."""
        lead = x.shape[:-2]
        if len(self.shape) == 1:
            return _diagonal_sums(x)
        rows, columns = self.shape
        x = x.reshape(*lead, rows, columns, rows, columns).transpose(-3, -2)
        by_column = _diagonal_sums(x)  # [..., query row, key row, column offset]
        by_both = _diagonal_sums(by_column.movedim(-1, -3))  # [..., column offset, row offset]
        return by_both.transpose(-1, -2).reshape(*lead, -1)

    def centre(self, scores: Float[Tensor, "*lead query key"]) -> Float[Tensor, "*lead query key"]:
        """Return the scores minus their mean over each query's visible keys, and 0 at pairs that are not visible."""
        kept = scores * self.visible
        return (kept - kept.sum(-1, keepdim=True) / self.keys[:, None]) * self.visible

    def kernel(self, sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead offset"]:
        """Return the least-squares t for the offset sums b of centred scores: mean 0 over pairs, NaN without pairs."""
        present, factor = self._normal_equations
        right = sums[..., present].reshape(-1, int(present.sum())).numpy()
        solved = torch.full((len(right), len(present)), torch.nan, dtype=torch.float64)
        solved[:, present] = torch.from_numpy(scipy.linalg.cho_solve(factor, right.T).T)
        return solved.reshape(sums.shape)

    @cached_property
    def _normal_equations(self) -> tuple[Tensor, Any]:
        present = self.count > 0
        has = torch.zeros(self.n, len(self.count), dtype=torch.float64)
        query, key = self.visible.nonzero(as_tuple=True)
        has[query, self._index(query, key)] = 1
        has, count = has[:, present], self.count[present]
        matrix = count.diag() - has.T @ (has / self.keys[:, None])
        # A constant is invisible to rows; adding this rank-one term picks the t with mean 0 over pairs.
        matrix += torch.outer(count, count) / count.sum()
        return present, scipy.linalg.cho_factor(matrix.numpy())

    def _index(self, query: Tensor, key: Tensor) -> Tensor:
        index = torch.zeros_like(query)
        here, there = torch.unravel_index(query, self.shape), torch.unravel_index(key, self.shape)
        for one, other, side, offsets in zip(here, there, self.shape, self.sides, strict=True):
            index = index * offsets + (other - one) + side - 1
        return index


@lru_cache(maxsize=64)
def geometry(shape: tuple[int, ...], causal: bool = False) -> Geometry:
    """Return the geometry of a shape; what it has computed is kept for the next caller."""
    return Geometry(shape, causal)


def _diagonal_sums(x: Tensor) -> Tensor:
    """Return [..., 2 n - 1]: the sums along the diagonals of [..., n, n], key minus query from -(n - 1) to n - 1.

    Rows are turned upside down and padded to 2 n; read with a width of 2 n - 1 the diagonals stand in columns.
    """
    n = x.shape[-1]
    flat = F.pad(x.flip(-2), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    return flat.unflatten(-1, (n, 2 * n - 1)).sum(-2)
