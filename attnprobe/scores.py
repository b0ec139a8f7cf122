"""The score: what enters the softmax of one layer, held as what it is made of, and attention over it.

This is the only definition of a score in the package. The network attends with it, the measures read and edit it, and
the statistics are taken of it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import Geometry, geometry

ELEMENTS = 2**24
"""Bias and mask entries held at a time by `attend`."""


@dataclass(frozen=True)
class Scores:
    r"""The scores of a batch of sequences as queries, keys and what is added: never an n x n array.

    $$S_{ij} = \mathrm{scale}\; q_i \cdot k_j + b(j - i)$$

    over the pairs of real tokens that are visible, and $-\infty$ elsewhere. Any device and real type. Raises
    `UsageError` (a ``ValueError``) if shapes, types or devices do not agree; `checked` also checks values.

    >>> q, k = torch.randn(2, 1, 4, 50, 8)
    >>> Scores(q, k, causal=True).geometry.count[:3]
    tensor([1., 2., 3.], dtype=torch.float64)
    """

    # Shapes are checked below, by name, for every caller; so they are not in the annotations.
    q: Tensor
    """[batch, head, token, d_head]: queries, after any rotation."""
    k: Tensor
    """[batch, head, token, d_head]: keys, after any rotation."""
    scale: float | None = None
    """Factor of the product; 1 / sqrt(d_head) by default."""
    bias: Tensor | None = None
    """[head, offset]: added at offsets -(n - 1) ... n - 1; with a grid, 2-D offsets (flat as in `Geometry`) also do."""
    causal: bool = False
    """Whether keys after the query are hidden."""
    real: Tensor | None = None
    """[batch, token]: true for tokens that are not padding, one run per sequence; padding is neither query nor key."""
    grid: tuple[int, int] | None = None
    """Rows and columns if the tokens are pixels read row by row: statistics are then over 2-D offsets, of whole images;
    `attend` also takes the first pixels of one."""
    order: Tensor | None = None
    """[token]: a permutation of the tokens, for a null: the same scores at other positions.

    Token ``order[p]`` takes position p, as query and as key, and keeps its scores with every other token. A causal
    query stays at its position, and the keys that it sees take each other's positions in the sequence of the order: it
    keeps exactly the scores that it uses. Statistics only: `attend` ignores it.
    """
    prefix: int = 0
    """Tokens in front that are not part of the sequence ([CLS]): they attend and are attended to, and statistics leave
    them out."""
    token_bias: Tensor | None = None
    """[head, offset]: added among the tokens behind the prefix only, at the offsets of `geometry`."""

    def __post_init__(self) -> None:
        """Check shapes, types and devices; no value is read."""
        _, heads, n, _ = check_shape("q", self.q, ("batch", "head", "token", "d_head"), nonempty_from=1)
        if (self.k.shape, self.k.dtype, self.k.device) != (self.q.shape, self.q.dtype, self.q.device):
            raise UsageError(
                f"k of shape {tuple(self.k.shape)} and type {self.k.dtype}: must be that of q, {tuple(self.q.shape)}, "
                f"{self.q.dtype}, and on {self.q.device}"
            )
        if not 0 <= self.prefix < n:
            raise UsageError(f"prefix={self.prefix}: must be 0 ... {n - 1}, with {n} tokens in q")
        if self.grid is not None and (math.prod(self.grid) < n - self.prefix or min(self.grid) < 1):
            raise UsageError(f"grid={self.grid}: must be (rows, columns) of the {n - self.prefix} tokens of q")
        if self.scale is not None and not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale}: must be finite")
        sides = self.grid or (n - self.prefix,)
        by_geometry = math.prod([2 * side - 1 for side in sides])  # a list: torch.compile breaks at a generator
        for name, bias, sizes in (
            ("bias", self.bias, {2 * n - 1} if self.prefix else {2 * n - 1, by_geometry}),
            ("token_bias", self.token_bias, {by_geometry}),
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
        """Return the scores among the tokens behind the prefix, after checking every value.

        Raises `UsageError` if a value is not finite (in padding too), if scores could leave the range of their type
        (hide a key by ``causal`` or ``real``, never by a huge negative bias), or if ``real`` or ``order`` do not fit.
        """
        if self.prefix or self.token_bias is not None:
            return self.behind_prefix().checked()
        batch, _, n, d_head = check_shape("q", self.q, ("batch", "head", "token", "d_head"))
        if self.grid is not None and math.prod(self.grid) != n:
            raise UsageError(f"grid={self.grid}: must be (rows, columns) of the {n} tokens of q")
        q, k = check_finite("q", self.q), check_finite("k", self.k)
        bias = 0.0 if self.bias is None else check_finite("bias", self.bias)
        largest, most = d_head * q * k * abs(self.factor) + bias, torch.finfo(self.type).max / 8
        if largest > most:
            raise UsageError(
                f"q, k of shape {tuple(self.q.shape)}: scores of up to {largest:.1e} leave the range of {self.type}"
            )
        if self.real is not None:
            if self.real.shape != (batch, n) or self.real.dtype != torch.bool:
                raise UsageError(
                    f"real of shape {tuple(self.real.shape)} and type {self.real.dtype}: must be [batch, token] = "
                    f"{(batch, n)} and torch.bool"
                )
            runs = (self.real[:, 1:] & ~self.real[:, :-1]).sum(1) + self.real[:, 0]
            if (runs != 1).any():
                row = int((runs != 1).int().argmax())
                raise UsageError(f"real of sequence {row}: must be one run of tokens, not {int(runs[row])}")
        if self.order is not None and not (
            self.order.dtype == torch.long and torch.equal(self.order.cpu().sort().values, torch.arange(n))
        ):
            raise UsageError(
                f"order of shape {tuple(self.order.shape)} and type {self.order.dtype}: must be a permutation of "
                f"0 ... {n - 1}"
            )
        if self.real is not None and (self.grid is not None or self.order is not None):
            raise UsageError("real with a grid or an order: give sequences of one length without padding")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, heads, tokens."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2]

    @property
    def factor(self) -> float:
        """What the product of query and key is multiplied by."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def type(self) -> torch.dtype:
        """The type in which blocks of scores are computed: that of q, but at least float32."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def geometry(self) -> Geometry:
        """The geometry of the tokens behind the prefix, padding included; the first pixels of an image are a line."""
        n = self.shape[2] - self.prefix
        return geometry((n,) if self.grid is None or math.prod(self.grid) != n else self.grid, self.causal)

    @property
    def biased(self) -> bool:
        """Whether some bias is added."""
        return self.bias is not None or self.token_bias is not None

    @property
    def bias_by_offset(self) -> Tensor | None:
        """The whole bias among the tokens behind the prefix at the offsets of the geometry, [head, offset]."""
        if self.bias is None:
            return self.token_bias
        in_line = self.geometry.in_line
        bias = self.bias[:, self.prefix : self.bias.shape[1] - self.prefix]
        # A grid of one row or column has as many offsets as the line, and the same ones.
        bias = bias if bias.shape[1] == len(in_line) else bias[:, in_line]
        return bias if self.token_bias is None else self.token_bias + bias

    def behind_prefix(self) -> "Scores":
        """Return the scores among the tokens behind the prefix, with one bias at the offsets of the geometry."""
        behind = slice(self.prefix, None)
        real = None if self.real is None else self.real[:, behind]
        q, k = self.q[:, :, behind], self.k[:, :, behind]
        grid = self.grid if self.grid == self.geometry.shape else None
        if grid is None and self.grid is not None and self.token_bias is not None:
            raise UsageError(f"grid={self.grid}: {q.shape[2]} of its pixels have no offsets that their bias belongs to")
        bias = self.bias_by_offset
        return replace(self, q=q, k=k, bias=bias, token_bias=None, real=real, prefix=0, grid=grid)

    def detached(self) -> "Scores":
        """Return the scores without a graph of gradients."""
        biases = {name: None if one is None else one.detach() for name, one in self._biases.items()}
        return replace(self, q=self.q.detach(), k=self.k.detach(), **biases)

    def flat(self) -> "Scores":
        """Return scores that are all 0 at visible keys: uniform attention."""
        return replace(self, q=torch.zeros_like(self.q), bias=None, token_bias=None)

    def with_bias(self, bias: Float[Tensor, "head offset"]) -> "Scores":
        """Return the scores with another bias added among the tokens behind the prefix, at offsets of `geometry`."""
        return replace(self, token_bias=bias if self.token_bias is None else self.token_bias + bias)

    def of_heads(self, heads: slice) -> "Scores":
        """Return the scores of some heads."""
        biases = {name: None if one is None else one[heads] for name, one in self._biases.items()}
        return replace(self, q=self.q[:, heads], k=self.k[:, heads], **biases)

    @property
    def _biases(self) -> dict[str, Tensor | None]:
        return {"bias": self.bias, "token_bias": self.token_bias}

    def of(self, q: Tensor, k: Tensor) -> "Scores":
        """Return the scores of other queries and keys with the same biases and mask.

        The array of what is added is made once for all layers of a forward pass, and so is its gradient.
        """
        made = replace(self, q=q, k=k)
        # A causal mask alone is left to the kernel: no array of it exists.
        if (self.biased or self.real is not None) and self._fits:
            vars(made)["added"] = self.added
        return made

    @cached_property
    def added(self) -> Float[Tensor, "#batch #head query key"] | None:
        """What is added to the products, -inf for hidden keys; None if nothing is: then no n x n array exists."""
        return self.added_to(0, self.shape[2])

    def added_to(self, start: int, stop: int) -> Float[Tensor, "#batch #head query key"] | None:
        """Return what is added for the queries from start to stop - 1, or None."""
        if not self.biased and not self.causal and self.real is None:
            return None
        n, device = self.shape[2], self.q.device
        query, key = torch.arange(start, stop, device=device), torch.arange(n, device=device)
        added = torch.zeros(1, 1, 1, 1, device=device)
        among = self.token_bias
        if self.bias is not None and self.bias.shape[1] != 2 * n - 1:
            among = self.bias if among is None else among + self.bias
        elif self.bias is not None:
            added = bias_of_pairs(self.bias, (n,), query, key)[None]
        if among is not None:
            sides = self.grid or (n - self.prefix,)
            added = added + bias_of_pairs(among, sides, query, key, self.prefix)[None]
        if self.causal:
            added = torch.where(key > query[:, None], -math.inf, added)
        return added if self.real is None else torch.where(self.real[:, None, None, :], added, -math.inf)

    @property
    def _step(self) -> int:
        """How many queries' worth of bias and mask are held at a time."""
        heads = max(1 if one is None else len(one) for one in self._biases.values())
        return max(1, ELEMENTS // ((1 if self.real is None else len(self.real)) * heads * self.shape[2]))

    @property
    def _fits(self) -> bool:
        return self.shape[2] <= self._step

    def dense(self) -> Float[Tensor, "batch head query key"]:
        """Return the score as an array, with -inf at hidden keys: for short sequences."""
        product = einsum(self.q, self.k, "batch head query d_head, batch head key d_head -> batch head query key")
        product = product * self.factor
        return product if self.added is None else product + self.added.to(product.dtype)

    def attend(self, v: Float[Tensor, "batch head key d_value"]) -> Float[Tensor, "batch head query d_value"]:
        """Return z, by fused attention: no n x n array of scores, nor a large one of biases and masks."""
        q, k, scale, n = self.q, self.k, self.scale, self.shape[2]
        if not self.biased and self.real is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        if self._fits:
            blocks = [(slice(0, n), self.added)]
        else:
            starts = range(0, n, self._step)
            blocks = ((slice(i, i + self._step), self.added_to(i, min(i + self._step, n))) for i in starts)
        parts = [
            # A mask of another type than q is misread without an error (torch 2.13, float64 on a CPU).
            F.scaled_dot_product_attention(
                q[:, :, queries], k, v, attn_mask=None if added is None else added.to(q.dtype), scale=scale
            )
            for queries, added in blocks
        ]
        return torch.cat(parts, dim=2)

    def unpadded(self) -> Iterator["Part"]:
        """Yield the sequences without their padding, those together that have it in the same place."""
        batch, _, n = self.shape
        if self.real is None:
            yield Part(torch.arange(batch), slice(0, n), slice(0, None), self)
            return
        real = self.real.cpu()
        starts = real.int().argmax(1)
        spans = torch.stack([starts, starts + real.sum(1)], dim=1)
        for start, stop in spans.unique(dim=0).tolist():
            rows = (spans == torch.tensor([start, stop])).all(1).nonzero()[:, 0]
            tokens, offsets = slice(start, stop), slice(n - stop + start, n + stop - start - 1)
            at = rows.to(self.q.device)
            bias = None if self.bias is None else self.bias[:, offsets]
            part = replace(self, q=self.q[at, :, tokens], k=self.k[at, :, tokens], bias=bias, real=None)
            yield Part(rows, tokens, offsets, part)


def bias_of_pairs(
    bias: Float[Tensor, "row offset"],
    sides: tuple[int, ...],
    query: Int[Tensor, " query"],
    key: Int[Tensor, " key"],
    prefix: int = 0,
) -> Float[Tensor, "row query key"]:
    """Return functions of the offset at pairs of tokens of a line or grid, numbered from the prefix in front of it.

    Pairs with a token of the prefix get 0.
    """
    rows, columns = sides if len(sides) == 2 else (1, *sides)
    query, key = query[:, None] - prefix, key - prefix
    row_offset = key // columns - query // columns + rows - 1
    place = row_offset * (2 * columns - 1) + key % columns - query % columns + columns - 1
    if prefix:
        bias, place = F.pad(bias, (0, 1)), place.where((query >= 0) & (key >= 0), bias.shape[1])
    if bias.is_cuda:
        return bias[:, place]  # slower than index_select, but its gradient is summed in one order
    return bias.index_select(1, place.flatten()).unflatten(1, place.shape)


@dataclass(frozen=True)
class Heads:
    """What one layer is about to attend with."""

    layer: int
    scores: Scores
    v: Float[Tensor, "batch head token d_head"]
    inputs: Float[Tensor, "batch token d_model"] | None = None
    """What the query and key maps read; None if no single map makes the score (rotary), or it is not known."""
    by: Callable[[Scores, Tensor], Tensor] = Scores.attend
    """How this network computes z."""

    def attend(self) -> Float[Tensor, "batch head token d_head"]:
        """Return z."""
        return self.by(self.scores, self.v)

    def behind_prefix(self) -> "Heads":
        """Return the same among the tokens of the sequence."""
        behind = slice(self.scores.prefix, None)
        inputs = None if self.inputs is None else self.inputs[:, behind]
        return replace(self, scores=self.scores.behind_prefix(), v=self.v[:, :, behind], inputs=inputs)

    def detached(self) -> "Heads":
        """Return the same without a graph of gradients."""
        inputs = None if self.inputs is None else self.inputs.detach()
        return replace(self, scores=self.scores.detached(), v=self.v.detach(), inputs=inputs)

    def of_heads(self, heads: slice) -> "Heads":
        """Return some heads of the layer."""
        return replace(self, scores=self.scores.of_heads(heads), v=self.v[:, heads])


@dataclass(frozen=True)
class Part:
    """Sequences of a batch without padding, and where they are in it."""

    rows: Int[Tensor, " sequence"]
    """Their places in the batch."""
    tokens: slice
    """Their tokens."""
    offsets: slice
    """Their offsets among those of the whole sequence."""
    scores: Scores
    """Their scores."""


def check_alike(a: Scores, b: Scores) -> None:
    """Raise `UsageError` where two scores are not of the same pairs, or have padding."""
    for name in ("shape", "causal", "grid"):
        if getattr(a, name) != getattr(b, name):
            raise UsageError(f"scores with {name} {getattr(a, name)} and {getattr(b, name)}: must be of the same pairs")
    if a.real is not None or b.real is not None:
        raise UsageError("scores with padding: give sequences of one length without it")


def check_shape(name: str, x: Tensor, axes: tuple[str, ...], nonempty_from: int = 0) -> torch.Size:
    """Return the shape of a tensor of real numbers; raise `UsageError` where it has other axes or an empty one."""
    if x.ndim != len(axes) or 0 in x.shape[nonempty_from:] or not x.is_floating_point():
        raise UsageError(
            f"{name} of shape {tuple(x.shape)} and type {x.dtype}: must be real numbers over [{', '.join(axes)}]"
        )
    return x.shape


def check_finite(name: str, x: Tensor) -> float:
    """Return the largest absolute value of a tensor; raise `UsageError` where one is NaN or infinite."""
    largest = max(abs(end.item()) for end in x.detach().aminmax())
    if not math.isfinite(largest):
        many = int((~x.isfinite()).sum())
        raise UsageError(f"{name} of shape {tuple(x.shape)}: {many} of its values are NaN or infinite")
    return largest
