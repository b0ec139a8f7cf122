"""Attention scores of one layer, represented by queries, keys, biases and masks, and attention over them.

A score is the input of the softmax. This module is its only definition in the package: the network attends with it, the
measures read and edit it, and the statistics are computed from it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnprobe.errors import NonFiniteError, UsageError
from attnprobe.geometry import Geometry, geometry

ELEMENTS = 2**24
"""Maximum number of bias and mask entries that `Scores.attend` holds at a time."""


@dataclass(frozen=True)
class Scores:
    r"""Scores of a batch of sequences, stored as queries, keys, biases and masks instead of an n x n array.

    $$S_{ij} = \mathrm{scale}\; q_i \cdot k_j + b(j - i)$$

    for visible pairs of real tokens, and $-\infty$ elsewhere. Any device and floating-point type. Raises
    `UsageError` (a ``ValueError``) if shapes, types or devices do not match; `checked` also checks values.

    >>> q, k = torch.randn(2, 1, 4, 50, 8)
    >>> Scores(q, k, causal=True).geometry.count[:3]
    tensor([1., 2., 3.], dtype=torch.float64)
    """

    # Shapes are checked in __post_init__, with messages that name the field, so they are not in the annotations.
    q: Tensor
    """[batch, head, token, d_head]: queries, after any rotation."""
    k: Tensor
    """[batch, head, token, d_head]: keys, after any rotation."""
    scale: float | None = None
    """Factor of the query-key product; 1 / sqrt(d_head) by default."""
    bias: Tensor | None = None
    """[head, offset]: bias at offsets -(n - 1) ... n - 1, or on a grid at 2-D offsets (flattened as in `Geometry`)."""
    causal: bool = False
    """Whether keys after the query are masked."""
    real: Tensor | None = None
    """[batch, token]: False for tokens that are neither query nor key, such as padding; they keep their positions."""
    grid: tuple[int, int] | None = None
    """Rows and columns if the tokens are pixels in row-major order. Statistics are then over 2-D offsets and need the
    whole image; `attend` also accepts its first pixels."""
    order: Tensor | None = None
    """[token]: a permutation of the tokens, for a null: the same scores at other positions.

    Token ``order[p]`` moves to position p, as query and as key, and keeps its scores with every other token. A causal
    query stays at its position, and its visible keys are permuted to the sequence in which they appear in ``order``, so
    it keeps exactly the scores that it uses. If some tokens are not ``real``, the others are permuted among themselves
    (`order_among`). Used by the statistics only: `attend` ignores it.
    """
    prefix: int = 0
    """Number of prepended tokens ([CLS]): they attend and are attended to, but statistics exclude them."""
    suffix: int = 0
    """Number of appended tokens ([SEP]), likewise."""
    token_bias: Tensor | None = None
    """[head, offset]: bias between tokens that are not left out only, at the offsets of `geometry`."""
    window: int | None = None
    """Largest distance at which keys are visible (sliding-window attention), at least 1; all by default."""
    sink: Tensor | None = None
    """[head]: score of every query with a sink, an extra key without a value (gpt-oss); none by default."""
    special_width: int = 0
    """Number of last coordinates of q and k that hold the bias of prefix and suffix. Between other tokens they add only
    a constant per query."""
    left_out: Tensor | None = None
    """[batch, token]: True for tokens between prefix and suffix that statistics exclude in the same way ([SEP])."""

    def __post_init__(self) -> None:
        """Check shapes, types and devices, but no values."""
        _, heads, n, _ = check_shape("q", self.q, ("batch", "head", "token", "d_head"), nonempty_from=1)
        if (self.k.shape, self.k.dtype, self.k.device) != (self.q.shape, self.q.dtype, self.q.device):
            raise UsageError(
                f"k of shape {tuple(self.k.shape)} and type {self.k.dtype}: must match q, of shape "
                f"{tuple(self.q.shape)} and type {self.q.dtype} on {self.q.device}"
            )
        if not (0 <= self.prefix < n and 0 <= self.suffix < n - self.prefix):
            raise UsageError(f"prefix={self.prefix}, suffix={self.suffix}: must leave some of the {n} tokens of q")
        inner = n - self.prefix - self.suffix
        if self.grid is not None and (math.prod(self.grid) < inner or min(self.grid) < 1):
            raise UsageError(f"grid={self.grid}: must be (rows, columns) that hold the {inner} tokens of q")
        if self.window is not None and (self.window < 1 or self.grid is not None):
            raise UsageError(f"window={self.window}: must be at least 1, without a grid")
        if self.sink is not None and (self.sink.shape, self.sink.device) != ((heads,), self.q.device):
            raise UsageError(f"sink of shape {tuple(self.sink.shape)}: must be [head] = {(heads,)}, on {self.q.device}")
        if self.scale is not None and not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale}: must be finite")
        for name, tokens in (("real", self.real), ("left_out", self.left_out)):
            if tokens is not None and (tokens.shape != (len(self.q), n) or tokens.dtype != torch.bool):
                raise UsageError(
                    f"{name} of shape {tuple(tokens.shape)} and type {tokens.dtype}: must be [batch, token] = "
                    f"{(len(self.q), n)} and torch.bool"
                )
        sides = self.grid or (inner,)
        offset_count = math.prod([2 * side - 1 for side in sides])  # a list: a generator is a torch.compile graph break
        for name, bias, sizes in (
            ("bias", self.bias, {2 * n - 1} if inner < n else {2 * n - 1, offset_count}),
            ("token_bias", self.token_bias, {offset_count}),
        ):
            if bias is None:
                continue
            check_shape(name, bias, ("head", "offset"))
            if (len(bias), bias.device) != (heads, self.q.device) or bias.shape[1] not in sizes:
                valid = " or ".join(str((heads, size)) for size in sorted(sizes))
                raise UsageError(
                    f"{name} of shape {tuple(bias.shape)}: must be [head, offset] = {valid}, on {self.q.device}"
                )

    def checked(self) -> "Scores":
        """Check every value and return the scores between the tokens that are not left out (`inner`).

        Raises `UsageError` if a value is not finite (also in padding), if scores could exceed the range of their type
        (mask keys with ``causal`` or ``real``, not with a huge negative bias), if a sequence has no tokens, or if
        ``order`` is invalid.
        """
        if self.prefix or self.suffix or self.token_bias is not None or self.left_out is not None:
            return self.inner().checked()
        _, _, n, d_head = check_shape("q", self.q, ("batch", "head", "token", "d_head"))
        if self.grid is not None and math.prod(self.grid) != n:
            raise UsageError(f"grid={self.grid}: must be (rows, columns) with exactly the {n} tokens of q")
        q, k = check_finite("q", self.q), check_finite("k", self.k)
        bias = 0.0 if self.bias is None else check_finite("bias", self.bias)
        largest, limit = d_head * q * k * abs(self.factor) + bias, torch.finfo(self.type).max / 8
        if largest > limit:
            raise NonFiniteError(
                f"q, k of shape {tuple(self.q.shape)}: scores of up to {largest:.1e} exceed the range of {self.type}"
            )
        if self.real is not None and not (has_tokens := self.real.any(1)).all():
            raise UsageError(f"real of sequence {int((~has_tokens).int().argmax())}: is False for all tokens")
        if self.order is not None and not (
            self.order.dtype == torch.long and torch.equal(self.order.cpu().sort().values, torch.arange(n))
        ):
            raise UsageError(
                f"order of shape {tuple(self.order.shape)} and type {self.order.dtype}: must be a permutation of "
                f"0 ... {n - 1}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch size, number of heads and number of tokens."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2]

    @property
    def factor(self) -> float:
        """Factor of the query-key product: ``scale``, or its default."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def type(self) -> torch.dtype:
        """Type in which blocks of scores are computed: the type of q, promoted to at least float32."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of tokens outside prefix and suffix, or rows and columns; an incomplete image counts as a line."""
        n = self.shape[2] - self.prefix - self.suffix
        return (n,) if self.grid is None or math.prod(self.grid) != n else self.grid

    @property
    def geometry(self) -> Geometry:
        """Geometry of the tokens outside prefix and suffix, except those that are measured in no sequence."""
        measured = self.measured
        absent = () if measured is None else positions(~measured.any(0))
        return geometry(self.sides, self.causal, self.window, absent)

    @property
    def measured(self) -> Tensor | None:
        """[batch, token]: which tokens outside prefix and suffix are real and not left out; None if all are."""
        if self.left_out is None:
            return None if self.real is None else self.real[:, self.tokens]
        measured = ~self.left_out if self.real is None else self.real & ~self.left_out
        return measured[:, self.tokens]

    @property
    def biased(self) -> bool:
        """Whether the scores have any bias."""
        return self.bias is not None or self.token_bias is not None

    @property
    def bias_by_offset(self) -> Tensor | None:
        """Total bias between tokens outside prefix and suffix at the offsets of the geometry, [head, offset]."""
        if self.bias is None:
            return self.token_bias
        in_line = geometry(self.sides).in_line
        cut = self.prefix + self.suffix
        bias = self.bias[:, cut : self.bias.shape[1] - cut]
        # A grid with a single row or column has the same offsets as the line.
        bias = bias if bias.shape[1] == len(in_line) else bias[:, in_line]
        return bias if self.token_bias is None else self.token_bias + bias

    @property
    def tokens(self) -> slice:
        """The tokens outside prefix and suffix."""
        return slice(self.prefix, self.shape[2] - self.suffix)

    def inner(self) -> "Scores":
        """Return the scores between measured tokens, without prefix and suffix, with all biases merged into `bias`.

        Tokens that are left out elsewhere are no longer ``real``.
        """
        q, k = self.q[:, :, self.tokens], self.k[:, :, self.tokens]
        grid = self.grid if self.grid == self.sides else None
        if grid is None and self.grid is not None and self.token_bias is not None:
            raise UsageError(
                f"grid={self.grid}: token_bias is defined for the whole grid, not for its first {q.shape[2]} pixels"
            )
        return replace(
            self,
            q=q,
            k=k,
            bias=self.bias_by_offset,
            token_bias=None,
            real=self.measured,
            left_out=None,
            prefix=0,
            suffix=0,
            grid=grid,
        )

    def between_tokens(self) -> "Scores":
        """Return the `inner` scores up to a constant per query, without the `special_width` last coordinates."""
        inner = self.inner()
        if not self.special_width or self.sink is not None:
            return inner
        width = self.q.shape[-1] - self.special_width
        q, k = inner.q[..., :width], inner.k[..., :width]
        return replace(inner, q=q, k=k, scale=inner.factor, special_width=0)

    def detached(self) -> "Scores":
        """Return the scores detached from the autograd graph."""
        biases = {name: None if x is None else x.detach() for name, x in self._by_head.items()}
        return replace(self, q=self.q.detach(), k=self.k.detach(), **biases)

    def flat(self) -> "Scores":
        """Return scores of 0 at all visible keys: uniform attention."""
        return replace(self, q=torch.zeros_like(self.q), bias=None, token_bias=None)

    def with_bias(self, bias: Float[Tensor, "head offset"]) -> "Scores":
        """Return the scores with an added bias between tokens that are not left out, at offsets of `geometry`."""
        return replace(self, token_bias=bias if self.token_bias is None else self.token_bias + bias)

    def of_heads(self, heads: slice) -> "Scores":
        """Return the scores of a slice of the heads."""
        biases = {name: None if x is None else x[heads] for name, x in self._by_head.items()}
        return replace(self, q=self.q[:, heads], k=self.k[:, heads], **biases)

    def of_rows(self, rows: Int[Tensor, " row"]) -> "Scores":
        """Return the scores of some sequences."""
        masks = {name: None if x is None else x[rows.to(x.device)] for name, x in self._by_row.items()}
        rows = rows.to(self.q.device)
        return replace(self, q=self.q[rows], k=self.k[rows], **masks)

    @property
    def _by_row(self) -> dict[str, Tensor | None]:
        return {"real": self.real, "left_out": self.left_out}

    @property
    def _by_head(self) -> dict[str, Tensor | None]:
        return {"bias": self.bias, "token_bias": self.token_bias, "sink": self.sink}

    def of(self, q: Tensor, k: Tensor) -> "Scores":
        """Return the scores of other queries and keys with the same biases and masks.

        The bias and mask array, and its gradient, are computed once and shared by all layers of a forward pass.
        """
        scores = replace(self, q=q, k=k)
        # A causal mask alone needs no array: the attention kernel applies it.
        if (self.biased or self.real is not None or self.window is not None) and self._fits:
            vars(scores)["added"] = self.added
        return scores

    @cached_property
    def added(self) -> Float[Tensor, "#batch #head query key"] | None:
        """Sum of biases and mask (-inf at masked keys), or None, without any n x n array, if there are none."""
        return self.added_to(0, self.shape[2])

    def added_to(self, start: int, stop: int) -> Float[Tensor, "#batch #head query key"] | None:
        """Return `added` for the queries from start to stop - 1, or None."""
        if not self.biased and not self.causal and self.real is None and self.window is None:
            return None
        n, device = self.shape[2], self.q.device
        query, key = torch.arange(start, stop, device=device), torch.arange(n, device=device)
        added = torch.zeros(1, 1, 1, 1, device=device)
        sides = self.grid or (n - self.prefix - self.suffix,)
        if self.bias is not None:
            added = bias_of_pairs(self.bias, (n,) if self.bias.shape[1] == 2 * n - 1 else sides, query, key)[None]
        if self.token_bias is not None:
            tokens = self.tokens if self.prefix or self.suffix else None
            between = bias_of_pairs(self.token_bias, sides, query, key, tokens)[None]
            if self.left_out is not None:
                between = between * ~(self.left_out[:, None, start:stop, None] | self.left_out[:, None, None, :])
            added = added + between
        if self.causal:
            added = torch.where(key > query[:, None], -math.inf, added)
        if self.window is not None:
            added = torch.where((key - query[:, None]).abs() > self.window, -math.inf, added)
        return added if self.real is None else torch.where(self.real[:, None, None, :], added, -math.inf)

    @property
    def step(self) -> int:
        """Number of queries whose bias and mask entries are held at a time."""
        heads = max(1 if x is None else len(x) for x in self._by_head.values())
        rows = max(1 if x is None else len(x) for x in self._by_row.values())
        return max(1, ELEMENTS // (rows * heads * self.shape[2]))

    @property
    def _fits(self) -> bool:
        """Whether the bias and mask entries of all queries can be held at a time."""
        return self.shape[2] <= self.step

    def dense(self) -> Float[Tensor, "batch head query key"]:
        """Return the scores as an array with -inf at masked keys; for short sequences."""
        product = einsum(self.q, self.k, "batch head query d_head, batch head key d_head -> batch head query key")
        product = product * self.factor
        return product if self.added is None else product + self.added.to(product.dtype)

    def attend(self, v: Float[Tensor, "batch head key d_value"]) -> Float[Tensor, "batch head query d_value"]:
        """Return z by fused attention, without an n x n array of scores or a large one of biases and masks."""
        if self.sink is not None:
            return self._attend_with_sink(v)
        q, k, scale, n = self.q, self.k, self.scale, self.shape[2]
        if not self.biased and self.real is None and self.window is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        if self._fits:
            blocks = [(slice(0, n), self.added)]
        else:
            starts = range(0, n, self.step)
            blocks = ((slice(i, i + self.step), self.added_to(i, min(i + self.step, n))) for i in starts)
        parts = [
            # A mask whose type differs from that of q is silently misread (torch 2.13, float64 on a CPU).
            F.scaled_dot_product_attention(
                q[:, :, queries], k, v, attn_mask=None if added is None else added.to(q.dtype), scale=scale
            )
            for queries, added in blocks
        ]
        return torch.cat(parts, dim=2)

    def _attend_with_sink(self, v: Float[Tensor, "batch head key d_value"]) -> Tensor:
        assert self.sink is not None
        n = self.shape[2]
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (self.k, v))  # the last key is the sink
        parts = []
        for start in range(0, n, self.step):
            stop = min(start + self.step, n)
            added = self.added_to(start, stop)
            added = torch.zeros(1, 1, 1, 1, device=v.device) if added is None else added
            tokens = added.expand(-1, self.shape[1], stop - start, n)
            sink = self.sink[None, :, None, None].expand(len(tokens), -1, stop - start, 1)
            mask = torch.cat([tokens, sink], dim=-1).to(v.dtype)
            q = self.q[:, :, start:stop]
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale))
        return torch.cat(parts, dim=2)

    def parts(self) -> Iterator["Part"]:
        """Yield the sequences in groups that have the same real tokens, without padding at their ends."""
        batch, _, n = self.shape
        if self.real is None:
            yield Part(torch.arange(batch), slice(0, n), slice(0, None), self, self.geometry)
            return
        for rows, real in alike(self.real):
            found = real.nonzero()[:, 0]
            start, stop = (0, n) if self.grid is not None else (int(found[0]), int(found[-1]) + 1)
            tokens, offsets = slice(start, stop), slice(n - stop + start, n + stop - start - 1)
            if self.grid is not None:
                offsets = slice(0, None)
            order = None if self.order is None else order_among(self.order.cpu(), real)[tokens] - start
            part = self.of_rows(rows)
            bias = None if self.bias is None else self.bias[:, offsets]
            part = replace(part, q=part.q[:, :, tokens], k=part.k[:, :, tokens], bias=bias, real=None, order=order)
            absent = positions(~real[tokens])
            yield Part(rows, tokens, offsets, part, geometry(part.sides, self.causal, self.window, absent))


def alike(tokens: Bool[Tensor, "row token"]) -> Iterator[tuple[Int[Tensor, " row"], Bool[Tensor, " token"]]]:
    """Yield the rows that are equal, and their values, on the CPU."""
    values, value_of_row = tokens.cpu().unique(dim=0, return_inverse=True)
    for number, value in enumerate(values):
        yield (value_of_row == number).nonzero()[:, 0], value


def order_among(order: Int[Tensor, " token"], real: Bool[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Return the permutation that puts the real tokens in the sequence of an order; the others stay."""
    result = torch.arange(len(order))
    result[real] = order[real[order]]
    return result


def positions(tokens: Bool[Tensor, " token"]) -> tuple[int, ...]:
    """Return the positions at which tokens is True."""
    return tuple(tokens.nonzero()[:, 0].tolist())


def bias_of_pairs(
    bias: Float[Tensor, "row offset"],
    sides: tuple[int, ...],
    query: Int[Tensor, " query"],
    key: Int[Tensor, " key"],
    tokens: slice | None = None,
) -> Float[Tensor, "row query key"]:
    """Evaluate functions of the offset at pairs of tokens in a line or grid.

    ``tokens`` are the tokens that the offsets refer to, all by default; pairs with any other token get 0.
    """
    in_line = len(sides) == 1 and tokens is None and not bias.is_cuda and not bias.requires_grad
    if in_line and all(bool((x.diff() == 1).all()) for x in (query, key)):
        # Rows are overlapping windows of the bias: copying them is much faster than gathering each number.
        first = int(key[0] - query[-1]) + sides[0] - 1
        return bias.unfold(1, len(key), 1)[:, first : first + len(query)].flip(1)
    rows, columns = sides if len(sides) == 2 else (1, *sides)
    start, stop = (0, None) if tokens is None else (tokens.start, tokens.stop)
    query, key = query[:, None] - start, key - start
    row_offset = key // columns - query // columns + rows - 1
    index = row_offset * (2 * columns - 1) + key % columns - query % columns + columns - 1
    if stop is not None:
        inside = (query >= 0) & (key >= 0) & (query < stop - start) & (key < stop - start)
        bias, index = F.pad(bias, (0, 1)), index.where(inside, bias.shape[1])
    if bias.is_cuda:
        return bias[:, index]  # slower than index_select, but its gradient is deterministic
    return bias.index_select(1, index.flatten()).unflatten(1, index.shape)


@dataclass(frozen=True)
class Heads:
    """Inputs of the attention of one layer."""

    layer: int
    scores: Scores
    v: Float[Tensor, "batch head token d_head"]
    inputs: Float[Tensor, "batch token d_model"] | None = None
    """Input of the query and key maps; None if it is unknown or if the score is not bilinear in it (rotary)."""
    by: Callable[[Scores, Tensor], Tensor] = Scores.attend
    """Function with which the network computes z."""

    def attend(self) -> Float[Tensor, "batch head token d_head"]:
        """Return z."""
        return self.by(self.scores, self.v)

    def inner(self) -> "Heads":
        """Return the heads without prefix and suffix, with the scores between measured tokens (`between_tokens`)."""
        tokens = self.scores.tokens
        inputs = None if self.inputs is None else self.inputs[:, tokens]
        return replace(self, scores=self.scores.between_tokens(), v=self.v[:, :, tokens], inputs=inputs)

    def detached(self) -> "Heads":
        """Return the heads detached from the autograd graph."""
        inputs = None if self.inputs is None else self.inputs.detach()
        return replace(self, scores=self.scores.detached(), v=self.v.detach(), inputs=inputs)

    def of_heads(self, heads: slice) -> "Heads":
        """Return a slice of the heads."""
        return replace(self, scores=self.scores.of_heads(heads), v=self.v[:, heads])

    def of_rows(self, rows: Int[Tensor, " row"]) -> "Heads":
        """Return the heads of some sequences."""
        at = rows.to(self.v.device)
        inputs = None if self.inputs is None else self.inputs[at]
        return replace(self, scores=self.scores.of_rows(rows), v=self.v[at], inputs=inputs)


@dataclass(frozen=True)
class Part:
    """Sequences of a batch that have the same real tokens, and their location in the batch."""

    rows: Int[Tensor, " sequence"]
    """Indices of the sequences in the batch."""
    tokens: slice
    """Tokens from the first to the last real one; all tokens of an image."""
    offsets: slice
    """Offsets of these tokens among the offsets of the batch."""
    scores: Scores
    """Scores between these tokens."""
    geometry: Geometry
    """Geometry of these tokens, in which those that are not real are absent."""

    def at(self, sequences: slice) -> slice | Int[Tensor, " sequence"]:
        """Return the location in the batch of some of the sequences, as a slice if they are consecutive."""
        rows = self.rows[sequences]
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def check_alike(a: Scores, b: Scores) -> None:
    """Raise `UsageError` if two scores do not have the same query-key pairs."""
    for name in ("shape", "causal", "window", "grid"):
        if getattr(a, name) != getattr(b, name):
            raise UsageError(f"scores with {name} {getattr(a, name)} and {getattr(b, name)}: must be equal")
    all_real = torch.ones(1, 1, dtype=torch.bool)
    if not torch.equal(*(all_real if x.real is None else x.real.cpu() for x in (a, b))):
        raise UsageError("scores with different real tokens: must be equal")


def check_shape(name: str, x: Tensor, axes: tuple[str, ...], nonempty_from: int = 0) -> torch.Size:
    """Return the shape of a floating-point tensor; raise `UsageError` if it has other axes or an empty one."""
    if x.ndim != len(axes) or 0 in x.shape[nonempty_from:] or not x.is_floating_point():
        raise UsageError(
            f"{name} of shape {tuple(x.shape)} and type {x.dtype}: must be floating-point with axes [{', '.join(axes)}]"
        )
    return x.shape


def check_finite(name: str, x: Tensor) -> float:
    """Return the largest absolute value of a tensor; raise `NonFiniteError` if any value is NaN or infinite."""
    largest = max(abs(end.item()) for end in x.detach().aminmax())
    if not math.isfinite(largest):
        invalid = int((~x.isfinite()).sum())
        raise NonFiniteError(f"{name} of shape {tuple(x.shape)}: {invalid} of its values are NaN or infinite")
    return largest
