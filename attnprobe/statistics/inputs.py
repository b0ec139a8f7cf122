"""What every statistic is taken of: the scores of a batch, held as what they are made of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.statistics.geometry import Geometry, geometry


@dataclass(frozen=True)
class Scores:
    r"""The scores of a batch of sequences as queries, keys and what is added: never an n x n array.

    $$S_{ij} = \mathrm{scale}\; q_i \cdot k_j + b(j - i)$$

    over the pairs of real tokens that are visible; this is the score of `attnprobe.attention.scores`. Any device and
    real type; patterns of half precision are computed in float32. Raises `UsageError` (a ``ValueError``) where shapes,
    types or devices do not agree, a value is not finite (in padding too), or scores could leave the range of their
    type: a key is hidden by ``causal`` or ``real``, never by a huge negative bias.

    >>> q, k = torch.randn(2, 1, 4, 50, 8)
    >>> Scores(q, k, causal=True).geometry.count[:3]
    tensor([1., 2., 3.], dtype=torch.float64)
    """

    # Shapes are checked below, for everybody and by name; so they are not in the annotations.
    q: Tensor
    """[batch, head, token, d_head]: queries, rotated where the encoding rotates."""
    k: Tensor
    """[batch, head, token, d_head]: keys, rotated where the encoding rotates."""
    scale: float | None = None
    """Factor of the product; 1 / sqrt(d_head) unless given."""
    bias: Tensor | None = None
    """[head, offset]: what is added at offsets -(n - 1) ... n - 1; with a grid also at its 2-D offsets, flat as in
    `Geometry`."""
    causal: bool = False
    """Whether keys after the query are hidden."""
    real: Tensor | None = None
    """[batch, token]: true where a token is not padding, one run in each sequence; padding is neither query nor key."""
    grid: tuple[int, int] | None = None
    """Rows and columns where the tokens are pixels read row by row: statistics are then over 2-D offsets."""
    order: Tensor | None = None
    """[token]: a permutation of the tokens, for a null: the same scores at other positions.

    Token ``order[p]`` takes position p, as query and as key, and keeps its scores with every other token. A causal
    query stays where it is, and the keys that it sees take each other's positions in the sequence of the order: it
    keeps exactly the scores that it uses.
    """

    def __post_init__(self) -> None:
        """Check everything before any work."""
        batch, heads, n, d_head = check_shape("q", self.q, ("batch", "head", "token", "d_head"))
        if (self.k.shape, self.k.dtype, self.k.device) != (self.q.shape, self.q.dtype, self.q.device):
            raise UsageError(
                f"k of shape {tuple(self.k.shape)} and type {self.k.dtype}: must be that of q, {tuple(self.q.shape)}, "
                f"{self.q.dtype}, and on {self.q.device}"
            )
        if self.scale is not None and not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale}: must be finite")
        if self.bias is not None:
            check_shape("bias", self.bias, ("head", "offset"))
            sizes = {2 * n - 1, math.prod(2 * side - 1 for side in self.grid or (n,))}
            if (len(self.bias), self.bias.device) != (heads, self.q.device) or self.bias.shape[1] not in sizes:
                valid = " or ".join(str((heads, size)) for size in sorted(sizes))
                raise UsageError(
                    f"bias of shape {tuple(self.bias.shape)}: must be [head, offset] = {valid}, on {self.q.device}"
                )
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
        if self.grid is not None and (math.prod(self.grid) != n or min(self.grid) < 1):
            raise UsageError(f"grid={self.grid}: must be (rows, columns) of the {n} tokens of q")
        if self.order is not None and not (
            self.order.dtype == torch.long and torch.equal(self.order.cpu().sort().values, torch.arange(n))
        ):
            raise UsageError(
                f"order of shape {tuple(self.order.shape)} and type {self.order.dtype}: must be a permutation of "
                f"0 ... {n - 1}"
            )
        if self.real is not None and (self.grid is not None or self.order is not None):
            raise UsageError("real with a grid or an order: give sequences of one length without padding")

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
        """The geometry of the whole sequence, padding included."""
        return geometry((self.shape[2],) if self.grid is None else self.grid, self.causal)

    @property
    def bias_by_offset(self) -> Tensor | None:
        """The bias at the offsets of the geometry, [head, offset]."""
        places = self.geometry.in_line
        # A grid of one row or column has as many offsets as the line, and the same ones.
        return self.bias if self.bias is None or self.bias.shape[1] == len(places) else self.bias[:, places]

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


def check_shape(name: str, x: Tensor, axes: tuple[str, ...]) -> torch.Size:
    """Return the shape of a tensor of real numbers; raise `UsageError` where it has other axes or an empty one."""
    if x.ndim != len(axes) or 0 in x.shape or not x.is_floating_point():
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
