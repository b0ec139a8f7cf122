r"""Geometry: which pairs of query and key a head can use, and which offset each pair has.

A function of the offset is fitted to scores in a way that respects what the softmax can see. Adding a constant to a row
of the score changes nothing, so the model is

$$S_{ij} = r_i + t(j - i) + \varepsilon_{ij}$$

with a free constant $r_i$ for each query, by least squares over the visible pairs. Centring each row and then averaging
each diagonal would *not* give t: rows of different lengths, or near an edge, have different means of t itself (the
profile of a causal $-m\,|j - i|$ would come out with three quarters of its slope). With $N_o$ pairs at offset o, $n_i$
keys visible to query i and $C_{io} = 1$ where query i has a key at offset o, t solves

$$(\mathrm{diag}(N) - C^\top \mathrm{diag}(1/n) C)\, t = b, \qquad b_o = \sum_{j - i = o} (S_{ij} - \bar S_{i\cdot}).$$

Nothing here is n x n: in reading order a key is visible or not by its offset alone, so $C t$ (`Geometry.windows`) and
$C^\top r$ (`Geometry.overlaps`) are running sums, and the system is solved by conjugate gradients, which take about ten
steps at any n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The pairs of n tokens in a line, or of rows x columns pixels read row by row.

    Axes of offsets are flat: from -(n - 1) to n - 1 in a line; on a grid row offsets by column offsets, in reading
    order. All tensors are float64 on the CPU.
    """

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
    def keys(self) -> Float[Tensor, " query"]:
        """Number of keys that each query sees, $n_i$."""
        return self.sum_over_keys(torch.ones(self.n, dtype=torch.float64))

    @cached_property
    def queries(self) -> Float[Tensor, " key"]:
        """Number of queries that see each key."""
        return self.sum_over_queries(torch.ones(self.n, dtype=torch.float64))

    @cached_property
    def count(self) -> Float[Tensor, " offset"]:
        """Number of pairs at each offset, $N_o$."""
        return self.overlaps(torch.ones(self.n, dtype=torch.float64))

    @cached_property
    def distance(self) -> Float[Tensor, " offset"]:
        """Euclidean length of each offset, in tokens or pixels."""
        axes = [torch.arange(-(side - 1), side, dtype=torch.float64) for side in self.shape]
        return torch.stack([axis.square() for axis in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt().flatten()

    @cached_property
    def uniform(self) -> Float[Tensor, " offset"]:
        """Sum over queries of the weight at each offset, where attention is uniform over the visible keys."""
        return self.overlaps(1 / self.keys)

    @cached_property
    def in_line(self) -> Int[Tensor, " offset"]:
        """Place of each offset among those of the same tokens in a line: row offset x columns + column offset."""
        line = torch.zeros(1, dtype=torch.long)
        for side in self.shape:
            line = (line[:, None] * side + torch.arange(-(side - 1), side)).flatten()
        return line + self.n - 1

    @cached_property
    def seen(self) -> Bool[Tensor, " offset"]:
        """Whether keys at each offset are visible; an offset inside the shape is visible to all queries or to none."""
        return self.in_line < self.n if self.causal else torch.ones(len(self.in_line), dtype=torch.bool)

    def sum_over_keys(self, x: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead query"]:
        """Return for each query the sum of x over its visible keys."""
        return x.cumsum(-1) if self.causal else x.sum(-1, keepdim=True).expand_as(x)

    def sum_over_queries(self, x: Float[Tensor, "*lead query"]) -> Float[Tensor, "*lead key"]:
        """Return for each key the sum of x over the queries that see it."""
        return x.flip(-1).cumsum(-1).flip(-1) if self.causal else x.sum(-1, keepdim=True).expand_as(x)

    def windows(self, t: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead query"]:
        """Return for each query the sum of t over its visible keys, $C t$."""
        return self._over_axes(_windows, t.where(self.seen, 0.0), self.sides)

    def windows_by_key(self, t: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead key"]:
        """Return for each key the sum of t over the queries that see it."""
        return self._over_axes(_windows, t.where(self.seen, 0.0).flip(-1), self.sides)

    def overlaps(self, r: Float[Tensor, "*lead query"]) -> Float[Tensor, "*lead offset"]:
        """Return for each offset the sum of r over the queries that see a key there, $C^T r$."""
        return self._over_axes(_overlaps, r, self.shape) * self.seen

    def overlaps_by_key(self, u: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead offset"]:
        """Return for each offset the sum of u over the keys that a query sees there."""
        return self._over_axes(_overlaps, u, self.shape).flip(-1) * self.seen

    def inner(self, f: Float[Tensor, "*#lead offset"], g: Float[Tensor, "*#lead offset"]) -> Float[Tensor, "*#lead"]:
        r"""Return the inner product over visible pairs of $f(j - i)$ and $g(j - i)$, both row-centred."""
        return (self.count * f * g).sum(-1) - (self.windows(f) * self.windows(g) / self.keys).sum(-1)

    def fold(self, sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead line_offset"]:
        """Return sums by offset on a grid as sums by offset of the same tokens in a line."""
        line = torch.zeros(*sums.shape[:-1], 2 * self.n - 1, dtype=sums.dtype)
        return line.index_add(-1, self.in_line, sums)

    def offset_profile(self, sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead offset"]:
        """Return the least-squares t for the offset sums b of centred scores: mean 0 over pairs, NaN without pairs."""

        def normal(t: Tensor) -> Tensor:
            return self.count * t - self.overlaps(self.windows(t) / self.keys)

        solved = _conjugate_gradients(normal, sums * self.seen, self.count)
        return solved.where(self.seen, torch.nan)

    def key_constants(self, sums: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead key"]:
        """Return the least-squares u in $S_{ij} = r_i + u_j$ for the sums over queries of centred scores."""

        def normal(u: Tensor) -> Tensor:
            return self.queries * u - self.sum_over_queries(self.sum_over_keys(u) / self.keys)

        return _conjugate_gradients(normal, sums, self.queries)

    def shared_energy(
        self, by_key: Float[Tensor, "*lead key"], by_offset: Float[Tensor, "*lead offset"]
    ) -> Float[Tensor, "*lead"]:
        r"""Return the sum of squares that $S_{ij} = r_i + u_j + t(j - i)$ explains of a row-centred array.

        It is given by its sums over queries and at each offset. What functions of the key and of the offset both are
        (linear ones) is counted once.
        """
        n, offsets = self.n, len(self.count)

        def normal(x: Tensor) -> Tensor:
            u, t = x[..., :n], x[..., n:]
            r = (self.sum_over_keys(u) + self.windows(t)) / self.keys
            of_key = self.queries * u + self.windows_by_key(t) - self.sum_over_queries(r)
            return torch.cat([of_key, self.count * t + self.overlaps_by_key(u) - self.overlaps(r)], dim=-1)

        # Constants of either kind, and along each axis what is linear: t = offset, u = -position.
        null = torch.zeros(n + offsets, 2 + len(self.shape), dtype=torch.float64)
        null[:n, 0] = null[n:, 1] = 1
        places = torch.meshgrid(*(torch.arange(side) for side in self.shape), indexing="ij")
        steps = torch.meshgrid(*(torch.arange(1 - side, side) for side in self.shape), indexing="ij")
        for axis, (place, step) in enumerate(zip(places, steps, strict=True)):
            null[:n, 2 + axis], null[n:, 2 + axis] = -place.flatten(), step.flatten()
        null[n:] *= self.seen[:, None]
        right = torch.cat([by_key, by_offset * self.seen], dim=-1)
        solved = _conjugate_gradients(normal, right, torch.cat([self.queries, self.count]), null)
        return (right * solved).sum(-1)

    def _over_axes(self, function: Callable[[Tensor], Tensor], x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        lead = x.shape[:-1]
        x = x.reshape(*lead, *sizes)
        for axis in range(-len(sizes), 0):
            x = function(x.movedim(axis, -1)).movedim(-1, axis)
        return x.reshape(*lead, -1)


@lru_cache(maxsize=64)
def geometry(shape: tuple[int, ...], causal: bool = False) -> Geometry:
    """Return the geometry of a shape; what it has computed is kept for the next caller."""
    return Geometry(shape, causal)


def _windows(t: Tensor) -> Tensor:
    """Return [..., n]: for each i the sum of t, [..., 2 n - 1], over offsets -i ... n - 1 - i."""
    n = (t.shape[-1] + 1) // 2
    before = t[..., :n].flip(-1).cumsum(-1)
    after = t[..., n:].cumsum(-1).flip(-1)
    return torch.cat([before[..., : n - 1] + after, before[..., n - 1 :]], dim=-1)


def _overlaps(r: Tensor) -> Tensor:
    """Return [..., 2 n - 1]: for each offset o the sum of r, [..., n], over those i where i + o is in 0 ... n - 1."""
    return torch.cat([r.flip(-1).cumsum(-1), r[..., :-1].cumsum(-1).flip(-1)], dim=-1)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Float[Tensor, "*lead unknown"],
    diagonal: Float[Tensor, " unknown"],
    null: Float[Tensor, "unknown vector"] | None = None,
) -> Float[Tensor, "*lead unknown"]:
    """Solve symmetric systems with a known null space (the constants), preconditioned by their diagonals, to rounding.

    The solution is the one that is orthogonal to the null space, weighted by the diagonal: for constants of mean 0.
    """
    given = (right * _quotient(right, diagonal)).sum(-1, keepdim=True)
    # Sums made in float32 do not cancel quite; what is left over has no solution.
    null = torch.ones_like(diagonal)[:, None] if null is None else null
    weighted = diagonal[:, None] * null
    residual = right - (right @ null) @ torch.linalg.pinv(null.mT @ weighted) @ weighted.mT
    direction = scaled = _quotient(residual, diagonal)
    solved, size = torch.zeros_like(right), (residual * scaled).sum(-1, keepdim=True)
    for _ in range(STEPS):
        left = size > TOLERANCE**2 * given
        if not left.any():
            return solved
        applied = apply(direction)
        # Those that are done stand still: their directions are nothing but rounding.
        length = _quotient(size, (direction * applied).sum(-1, keepdim=True)) * left
        solved = solved + length * direction
        residual = residual - length * applied
        scaled = _quotient(residual, diagonal)
        size, before = (residual * scaled).sum(-1, keepdim=True), size
        direction = scaled + _quotient(size, before) * direction
    raise ArithmeticError(f"conjugate gradients: not converged after {STEPS} steps")


STEPS = 200
TOLERANCE = 1e-14


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """Return above over below, which is not negative, and 0 where that is 0."""
    return torch.where(below > 0, above / below, 0.0)
