r"""Geometry of query-key pairs: visibility, offsets, and least-squares fits of functions of the offset.

The softmax is invariant to adding a constant to a row of the score, so a function of the offset t is fitted to scores
together with row constants. The model is

$$S_{ij} = r_i + t(j - i) + \varepsilon_{ij}$$

with a free constant $r_i$ for each query, by least squares over the visible pairs. Centring each row and then averaging
each diagonal does *not* recover t, because rows of different lengths, or near an edge, have different means of t itself
(the profile of a causal $-m\,|j - i|$ would have three quarters of its slope). With $N_o$ pairs at offset o, $n_i$ keys
visible to query i, and $C_{io} = 1$ if query i has a key at offset o, t solves

$$(\mathrm{diag}(N) - C^\top \mathrm{diag}(1/n) C)\, t = b, \qquad b_o = \sum_{j - i = o} (S_{ij} - \bar S_{i\cdot}).$$

No array is n x n. In row-major order visibility depends on the offset alone, so $C t$ (`Geometry.windows`) and
$C^\top r$ (`Geometry.overlaps`) are running sums, from which the terms of absent tokens are subtracted one by one. The
system is solved by conjugate gradients, which need about ten steps at any n.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Query-key pairs of n tokens in a line, or of rows x columns pixels in row-major order.

    The offset axis has a single dimension: -(n - 1) ... n - 1 in a line, and row offsets x column offsets, flattened in
    row-major order, on a grid. All tensors are float64 on the CPU.
    """

    shape: tuple[int, ...]
    """(n,) for a line, (rows, columns) for a grid."""
    causal: bool = False
    """Whether a query sees only keys at or before its own position in row-major order."""
    window: int | None = None
    """Largest visible distance in a line (sliding-window attention); None if all distances are visible."""
    absent: tuple[int, ...] = ()
    """Tokens that are neither query nor key. They count as positions, and all sums over pairs are without them."""

    @property
    def n(self) -> int:
        """Number of positions."""
        return int(np.prod(self.shape))

    @property
    def tokens(self) -> int:
        """Number of tokens that are present."""
        return self.n - len(self.absent)

    @cached_property
    def present(self) -> Bool[Tensor, " token"]:
        """Whether each token is a query and a key."""
        present = torch.ones(self.n, dtype=torch.bool)
        present[list(self.absent)] = False
        return present

    @cached_property
    def gaps(self) -> Int[Tensor, " gap"]:
        """Distances in a line between consecutive present tokens."""
        return self.present.nonzero()[:, 0].diff()

    @property
    def pieces(self) -> int:
        """Number of pieces of a line between which no query sees keys on both sides."""
        return 1 if self.window is None else 1 + int((self.gaps > self.window).sum())

    @cached_property
    def shares_only_linear(self) -> bool:
        """Whether linear functions are the only ones of the offset that are functions of the key; False if unknown.

        If a run of tokens spans the longest gap, any such function u of the key has a slope u(j + 1) - u(j) that is the
        same in all runs, and that gives the difference of u over every gap.
        """
        if not self.absent:
            return True
        runs = [len(list(run)) for adjacent, run in itertools.groupby((self.gaps == 1).tolist()) if adjacent]
        spanned = len(self.gaps) == 0 or max(runs, default=0) >= int(self.gaps.max())
        return len(self.shape) == 1 and self.pieces == 1 and spanned

    @property
    def line(self) -> "Geometry":
        """Geometry of the same tokens in a line, in row-major order."""
        return geometry((self.n,), self.causal, self.window, self.absent)

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of offsets along each axis: 2 n - 1."""
        return tuple(2 * side - 1 for side in self.shape)

    @cached_property
    def keys(self) -> Float[Tensor, " query"]:
        """Number of keys visible to each query, $n_i$."""
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
        """Sum over queries of the weight at each offset, for uniform attention over the visible keys."""
        return self.overlaps(quotient(torch.ones_like(self.keys), self.keys)).where(self.count > 0, 0.0)

    @cached_property
    def in_line(self) -> Int[Tensor, " offset"]:
        """Index of the 1-D offset that corresponds to each offset: row offset x columns + column offset + n - 1."""
        line = torch.zeros(1, dtype=torch.long)
        for side in self.shape:
            line = (line[:, None] * side + torch.arange(-(side - 1), side)).flatten()
        return line + self.n - 1

    @cached_property
    def seen(self) -> Bool[Tensor, " offset"]:
        """Whether keys at each offset are visible if they are present; this does not depend on the query."""
        offset = self.in_line - (self.n - 1)
        seen = offset <= 0 if self.causal else torch.ones(len(offset), dtype=torch.bool)
        return seen if self.window is None else seen & (offset.abs() <= self.window)

    def sum_over_keys(self, x: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead query"]:
        """Sum x over the visible keys of each query."""
        x = self.of_present(x)
        if self.window is not None:
            sums = _window_sums(x, self.window, 0 if self.causal else self.window)
        else:
            sums = x.cumsum(-1) if self.causal else x.sum(-1, keepdim=True).expand_as(x)
        return self.of_present(sums)

    def sum_over_queries(self, x: Float[Tensor, "*lead query"]) -> Float[Tensor, "*lead key"]:
        """Sum x over the queries that see each key."""
        x = self.of_present(x)
        if self.window is not None:
            sums = _window_sums(x, 0 if self.causal else self.window, self.window)
        else:
            sums = x.flip(-1).cumsum(-1).flip(-1) if self.causal else x.sum(-1, keepdim=True).expand_as(x)
        return self.of_present(sums)

    def windows(self, t: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead query"]:
        """Sum t over the visible keys of each query, $C t$."""
        return self._window_sums(t.where(self.seen, 0.0))

    def windows_by_key(self, t: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead key"]:
        """Sum t over the queries that see each key."""
        return self._window_sums(t.where(self.seen, 0.0).flip(-1))

    def overlaps(self, r: Float[Tensor, "*lead query"]) -> Float[Tensor, "*lead offset"]:
        """Sum r over the queries that see a key at each offset, $C^T r$."""
        return self._overlap_sums(r) * self.seen

    def overlaps_by_key(self, u: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead offset"]:
        """Sum u over the keys that a query sees at each offset."""
        return self._overlap_sums(u).flip(-1) * self.seen

    def mean_over_keys(self, sums: Float[Tensor, "*lead query"]) -> Float[Tensor, "*lead query"]:
        """Divide sums over the visible keys of each query by their number; 0 for absent queries."""
        return quotient(sums, self.keys.to(sums.device))

    def inner(self, f: Float[Tensor, "*#lead offset"], g: Float[Tensor, "*#lead offset"]) -> Float[Tensor, "*#lead"]:
        r"""Return the inner product over visible pairs of $f(j - i)$ and $g(j - i)$, both row-centred."""
        return (self.count * f * g).sum(-1) - self.mean_over_keys(self.windows(f) * self.windows(g)).sum(-1)

    def fold(self, sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead line_offset"]:
        """Convert sums by 2-D offset to sums by 1-D offset of the same tokens in row-major order."""
        line = torch.zeros(*sums.shape[:-1], 2 * self.n - 1, dtype=sums.dtype)
        return line.index_add(-1, self.in_line, sums)

    def offset_profile(self, sums: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead offset"]:
        """Return the least-squares t for the offset sums b of row-centred scores.

        Its mean over pairs is 0; it is NaN at offsets without pairs.
        """
        has_pairs = self.count > 0
        return self._solved("offset", sums * has_pairs).where(has_pairs, torch.nan)

    def key_constants(self, sums: Float[Tensor, "*lead key"]) -> Float[Tensor, "*lead key"]:
        """Return the least-squares u in $S_{ij} = r_i + u_j$ for the sums over queries of row-centred scores."""
        return self._solved("key", self.of_present(sums))

    def shared_energy(
        self, by_key: Float[Tensor, "*lead key"], by_offset: Float[Tensor, "*lead offset"]
    ) -> Float[Tensor, "*lead"]:
        r"""Return the sum of squares of a row-centred array explained by $S_{ij} = r_i + u_j + t(j - i)$.

        The array is given by its sums by key and by offset. Linear functions, which are functions of the key as well as
        of the offset, are counted once.
        """
        right = torch.cat([self.of_present(by_key), by_offset * (self.count > 0)], dim=-1)
        return (right * self._solved("key and offset", right)).sum(-1)

    def _solved(self, unknown: str, right: Float[Tensor, "*lead unknown"]) -> Float[Tensor, "*lead unknown"]:
        """Solve the normal equations of a fit by functions of the offset, of the key, or of both.

        With many right sides the factorised matrix is used, which depends on the geometry alone.
        """
        equations = self._equations[unknown]
        size = len(equations.diagonal)
        if equations.null is not None and size <= LARGEST_FACTOR and size <= UNKNOWNS * right[..., 0].numel():
            return _factor(self, unknown).solve(right)
        return _conjugate_gradients(equations.apply, right, equations.diagonal, equations.null)

    @cached_property
    def _equations(self) -> dict[str, "_Equations"]:
        """Normal equations of the fits by the unknown function."""
        n, offsets = self.n, len(self.count)

        def of_offset(t: Tensor) -> Tensor:
            return self.count * t - self.overlaps(self.mean_over_keys(self.windows(t)))

        def of_key(u: Tensor) -> Tensor:
            return self.queries * u - self.sum_over_queries(self.mean_over_keys(self.sum_over_keys(u)))

        def of_both(x: Tensor) -> Tensor:
            u, t = x[..., :n], x[..., n:]
            r = self.mean_over_keys(self.sum_over_keys(u) + self.windows(t))
            key_part = self.queries * u + self.windows_by_key(t) - self.sum_over_queries(r)
            return torch.cat([key_part, self.count * t + self.overlaps_by_key(u) - self.overlaps(r)], dim=-1)

        # Every row has a pair at offset 0, so only a constant of the offset is free, also with absent tokens.
        constant_offset, constant_key = torch.ones_like(self.count)[:, None], torch.ones_like(self.queries)[:, None]
        both = None
        if self.shares_only_linear:
            # Constant u, constant t, and for each axis the linear functions t = offset, u = -position.
            both = torch.zeros(n + offsets, 2 + len(self.shape), dtype=torch.float64)
            both[:n, 0] = both[n:, 1] = 1
            positions = torch.meshgrid(*(torch.arange(side) for side in self.shape), indexing="ij")
            axis_offsets = torch.meshgrid(*(torch.arange(1 - side, side) for side in self.shape), indexing="ij")
            for axis, (position, offset) in enumerate(zip(positions, axis_offsets, strict=True)):
                both[:n, 2 + axis], both[n:, 2 + axis] = -position.flatten(), offset.flatten()
            both[n:] *= self.seen[:, None]
        return {
            "offset": _Equations(of_offset, self.count, constant_offset),
            "key": _Equations(of_key, self.queries, constant_key if self.pieces == 1 else None),
            "key and offset": _Equations(of_both, torch.cat([self.queries, self.count]), both),
        }

    def of_present(self, x: Float[Tensor, "*lead token"]) -> Float[Tensor, "*lead token"]:
        """Set x to 0 at absent tokens."""
        return x.where(self.present.to(x.device), 0.0) if self.absent else x

    def _window_sums(self, t: Float[Tensor, "*lead offset"]) -> Float[Tensor, "*lead token"]:
        """For each present token, sum t over the offsets to present tokens."""
        sums = self._over_axes(_windows, t, self.sides)
        for token in self.absent:
            values = t.unflatten(-1, self.sides)[self._offsets_to(token)].flatten(-len(self.shape))
            sums = sums - values.flip(-1)
        return self.of_present(sums)

    def _overlap_sums(self, r: Float[Tensor, "*lead token"]) -> Float[Tensor, "*lead offset"]:
        """For each offset, sum r over the present tokens that have a present token at this offset."""
        r = self.of_present(r)
        sums = self._over_axes(_overlaps, r, self.shape)
        by_axis, reversed_r = sums.unflatten(-1, self.sides), r.flip(-1).unflatten(-1, self.shape)
        for token in self.absent:
            by_axis[self._offsets_to(token)] -= reversed_r
        return sums

    def _offsets_to(self, token: int) -> tuple[Any, ...]:
        """Return the index of the offset axes at the offsets from the last, ..., the first token to a token."""
        place = np.unravel_index(token, self.shape)
        return (..., *(slice(int(first), int(first) + side) for first, side in zip(place, self.shape, strict=True)))

    def _over_axes(self, function: Callable[[Tensor], Tensor], x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        lead = x.shape[:-1]
        x = x.reshape(*lead, *sizes)
        for axis in range(-len(sizes), 0):
            x = function(x.movedim(axis, -1)).movedim(-1, axis)
        return x.reshape(*lead, -1)


def geometry(
    shape: tuple[int, ...], causal: bool = False, window: int | None = None, absent: tuple[int, ...] = ()
) -> Geometry:
    """Return the cached geometry of a shape, including the properties it has already computed.

    A window that covers all tokens is no window.
    """
    return _cached(shape, causal, window if window is None or window < int(np.prod(shape)) - 1 else None, absent)


_cached = lru_cache(maxsize=1024)(Geometry)


def _window_sums(x: Float[Tensor, "*lead token"], before: int, after: int) -> Float[Tensor, "*lead token"]:
    """Return for each i the sum of x over tokens i - before ... i + after."""
    n = x.shape[-1]
    cumulative = torch.cat([torch.zeros_like(x[..., :1]), x.cumsum(-1)], dim=-1)
    token = torch.arange(n, device=x.device)
    return cumulative[..., (token + after + 1).clamp(max=n)] - cumulative[..., (token - before).clamp(min=0)]


def _windows(t: Tensor) -> Tensor:
    """For each i, sum t, [..., 2 n - 1], over offsets -i ... n - 1 - i; return [..., n]."""
    n = (t.shape[-1] + 1) // 2
    before = t[..., :n].flip(-1).cumsum(-1)
    after = t[..., n:].cumsum(-1).flip(-1)
    return torch.cat([before[..., : n - 1] + after, before[..., n - 1 :]], dim=-1)


def _overlaps(r: Tensor) -> Tensor:
    """For each offset o, sum r, [..., n], over i with i + o in 0 ... n - 1; return [..., 2 n - 1]."""
    return torch.cat([r.flip(-1).cumsum(-1), r[..., :-1].cumsum(-1).flip(-1)], dim=-1)


@dataclass(frozen=True)
class _Equations:
    """Singular linear equations with a symmetric, positive semidefinite matrix."""

    apply: Callable[[Tensor], Tensor]
    """Product of the matrix with vectors."""
    diagonal: Float[Tensor, " unknown"]
    """Weights of the unknowns, in which a solution is orthogonal to the null space; unknowns of weight 0 are 0."""
    null: Float[Tensor, "unknown vector"] | None
    """Vectors that span the null space, if it is known."""


@dataclass(frozen=True)
class _Factor:
    """Equations whose matrix, plus W Z Zᵀ W of the weights W and the null space Z, is factorised."""

    lower: Float[Tensor, "unknown unknown_"]
    """Cholesky factor."""
    equations: _Equations

    def solve(self, right: Float[Tensor, "*lead unknown"]) -> Float[Tensor, "*lead unknown"]:
        """Return the solutions that are orthogonal to the null space."""
        assert self.equations.null is not None
        residual = _without_null(right, self.equations.diagonal, self.equations.null)
        flat = residual.reshape(-1, residual.shape[-1])
        solution = torch.cholesky_solve(flat.mT, self.lower).mT.reshape(right.shape)
        return solution.where(self.equations.diagonal > 0, 0.0)


@lru_cache(maxsize=6)
def _factor(of: Geometry, unknown: str) -> _Factor:
    """Factorise normal equations."""
    equations = of._equations[unknown]
    diagonal, null = equations.diagonal, equations.null
    assert null is not None
    matrix = equations.apply(torch.eye(len(diagonal), dtype=torch.float64))
    weighted = diagonal[:, None] * null
    # The level of the added part is that of the matrix, which keeps the system well conditioned.
    matrix += weighted @ torch.linalg.pinv(null.mT @ weighted) @ weighted.mT
    matrix += torch.diag((diagonal == 0).double())
    return _Factor(torch.linalg.cholesky(matrix), equations)


LARGEST_FACTOR = 2048
"""Largest number of unknowns for which the matrix is factorised."""
UNKNOWNS = 8
"""Unknowns per right side up to which a factor is faster than conjugate gradients."""


def _without_null(
    right: Float[Tensor, "*lead unknown"], diagonal: Float[Tensor, " unknown"], null: Float[Tensor, "unknown vector"]
) -> Float[Tensor, "*lead unknown"]:
    """Remove the component in the null space, which has no solution: float32 sums do not cancel exactly."""
    weighted = diagonal[:, None] * null
    return right - (right @ null) @ torch.linalg.pinv(null.mT @ weighted) @ weighted.mT


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Float[Tensor, "*lead unknown"],
    diagonal: Float[Tensor, " unknown"],
    null: Float[Tensor, "unknown vector"] | None = None,
) -> Float[Tensor, "*lead unknown"]:
    """Solve symmetric systems to machine precision; the diagonal is the preconditioner.

    With a known null space the solution is orthogonal to it, weighted by the diagonal; for constants this means a
    weighted mean of 0. Without, it is the solution at which the residual stops decreasing.
    """
    scale = (right * quotient(right, diagonal)).sum(-1, keepdim=True)
    residual = right
    if null is not None:
        residual = _without_null(right, diagonal, null)
    direction = preconditioned = quotient(residual, diagonal)
    solution, size = torch.zeros_like(right), (residual * preconditioned).sum(-1, keepdim=True)
    best = _Best(solution, size) if null is None else None
    for _ in range(STEPS):
        active = size > TOLERANCE**2 * scale
        if best is not None:
            active = active & (best.age < PATIENCE)
        if not active.any():
            return solution if best is None else best.solution
        applied = apply(direction)
        # Converged systems are no longer updated: their search directions are rounding errors.
        step = quotient(size, (direction * applied).sum(-1, keepdim=True)) * active
        solution = solution + step * direction
        residual = residual - step * applied
        preconditioned = quotient(residual, diagonal)
        size, previous = (residual * preconditioned).sum(-1, keepdim=True), size
        direction = preconditioned + quotient(size, previous) * direction
        if best is not None:
            remaining = right - apply(solution)  # the updated residual is not accurate if the solution grows
            best.update(solution, (remaining * quotient(remaining, diagonal)).sum(-1, keepdim=True))
    raise ArithmeticError(f"conjugate gradients: not converged after {STEPS} steps")


class _Best:
    """Solutions with the smallest residuals so far; later ones grow along null vectors that rounding errors excite."""

    def __init__(self, solution: Tensor, size: Tensor) -> None:
        self.solution, self.size, self.age = solution, size, torch.zeros_like(size)

    def update(self, solution: Tensor, size: Tensor) -> None:
        better = size < 0.5 * self.size
        self.solution, self.size = solution.where(better, self.solution), size.where(better, self.size)
        self.age = (self.age + 1).where(~better, 0.0)


STEPS = 10_000
"""Maximum number of conjugate-gradient steps."""
PATIENCE = 50
"""Number of steps without a smaller residual after which it only consists of rounding errors."""
TOLERANCE = 1e-14
"""Relative residual at which conjugate gradients stop."""


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, or 0 if the (nonnegative) denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
