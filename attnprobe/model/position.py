"""Position encodings: what a score knows of *where* its query and key stand.

Every encoding acts in one of three places, and is the identity in the other two:

- `embed` adds a vector to each token's embedding (learned, sinusoidal);
- `rotate` turns queries and keys (rotary);
- `bias` adds a number to the score for each offset (ALiBi, relative).

Adding one is one class here and one line in `attnprobe.tables.POSITIONS`. Beside the encoding stands the
`ProximityBias` that a network can have with any of them.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.geometry import geometry


class PositionEncoding(nn.Module):
    """No position encoding, and the base of the others: permuting tokens permutes scores."""

    rotates = False
    """Whether `rotate` does anything; such a network has ``hook_rot_q`` and ``hook_rot_k``."""
    frequency: Float[Tensor, " pair"] | None = None
    """Periods a token of each pair of coordinates, where the encoding is made of waves."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Take what is needed from the architecture and the longest sequence, n tokens."""
        super().__init__()

    def embed(self, n: int) -> Float[Tensor, "token d_model"] | None:
        """Return what is added to the embeddings of n tokens, or None."""
        return None

    def rotate(self, x: Float[Tensor, "batch token head d_head"]) -> Float[Tensor, "batch token head d_head"]:
        """Return queries or keys, turned by their positions."""
        return x

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return what is added to the score at offsets -(n - 1) ... n - 1, or None."""
        return None

    def turn(
        self, x: Float[Tensor, "batch token head d_head"], places: Float[Tensor, " token"]
    ) -> Float[Tensor, "batch token head d_head"]:
        """Return queries or keys with each token turned further, by that many positions."""
        return x


class Learned(PositionEncoding):
    """A free vector for each position, N(0, position_std) at the start (Gehring et al. 2017, arXiv:1705.03122)."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Make the table of n vectors; the network initialises it."""
        super().__init__(config, n)
        self.weight = nn.Parameter(torch.zeros(n, config.d_model))

    def embed(self, n: int) -> Float[Tensor, "token d_model"]:
        """Return the first n vectors."""
        return self.weight[:n]


class Sinusoidal(PositionEncoding):
    r"""Fixed waves: $p_{i,2m} = \sin(i\,\omega_m)$, $p_{i,2m+1} = \cos(i\,\omega_m)$, $\omega_m = 10000^{-2m/d}$.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5. The product $P P^\top$ is largest at offset 0 and falls off, so
    scores may look local before anything is learned.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute the waves once."""
        super().__init__(config, n)
        self.frequency = _frequency(config.d_model)
        angle = _angles(n, self.frequency)
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(n, config.d_model)
        self.register_buffer("waves", waves.to(torch.get_default_dtype()), persistent=False)
        self.waves: Tensor

    def embed(self, n: int) -> Float[Tensor, "token d_model"]:
        """Return the waves at positions 0 ... n - 1."""
        return self.waves[:n]


class Rotary(PositionEncoding):
    r"""Pairs of query and key coordinates turned by $i\,\omega_m$: the score depends on the offset $j - i$ only.

    Su et al. 2021, arXiv:2104.09864, equation 34; $\omega_m = 10000^{-2m/d_{head}}$. Coordinates (2m, 2m + 1) form a
    pair, as in the paper; some libraries pair m with m + d_head / 2 instead.
    """

    rotates = True

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute cosines and sines once."""
        super().__init__(config, n)
        self.frequency = _frequency(config.d_head)
        angle = _angles(n, self.frequency)
        self.register_buffer("cosine", angle.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sine", angle.sin().to(torch.get_default_dtype()), persistent=False)
        self.cosine: Tensor
        self.sine: Tensor

    def rotate(self, x: Float[Tensor, "batch token head d_head"]) -> Float[Tensor, "batch token head d_head"]:
        """Return x with the pairs of token i turned by i times their frequencies."""
        return self._turned(x, self.cosine[: x.shape[1]], self.sine[: x.shape[1]])

    def turn(
        self, x: Float[Tensor, "batch token head d_head"], places: Float[Tensor, " token"]
    ) -> Float[Tensor, "batch token head d_head"]:
        """Return x with each token turned further, by that many positions."""
        assert self.frequency is not None
        angle = 2 * math.pi * places[:, None].double() * self.frequency.to(places.device)
        return self._turned(x, angle.cos().to(x), angle.sin().to(x))

    def _turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        even, odd, cosine, sine = x[..., ::2], x[..., 1::2], cosine[:, None], sine[:, None]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


class Alibi(PositionEncoding):
    r"""Fixed penalty $-m_h\,|j - i|$ with slopes $m_h = 2^{-8h/H}$, h = 1 ... H.

    Press et al. 2022, arXiv:2108.12409, section 3, there for causal attention; in both directions the distance takes
    its place. For numbers of heads that are not powers of two the same formula is used, where the authors' code mixes
    two sequences.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute the slopes."""
        super().__init__(config, n)
        slopes = 2.0 ** (-8.0 * torch.arange(1, config.n_heads + 1) / config.n_heads)
        self.register_buffer("slopes", slopes, persistent=False)
        self.slopes: Tensor

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return minus slope times distance."""
        distance = torch.arange(-(n - 1), n, device=self.slopes.device).abs()
        return -self.slopes[:, None] * distance


class Relative(PositionEncoding):
    """A free bias for each head and bucket of offsets, shared by the layers.

    Raffel et al. 2020 (T5), arXiv:1910.10683, section 2.1: with 32 buckets, offsets up to 8 (causal: 16) have one each
    and farther ones share logarithmic buckets up to distance 128.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Make the table of biases; the network initialises it."""
        super().__init__(config, n)
        self.causal = config.causal
        self.weight = nn.Parameter(torch.zeros(config.n_heads, BUCKETS))

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return each offset's bias."""
        offset = torch.arange(-(n - 1), n, device=self.weight.device)
        return self.weight[:, _bucket(offset, self.causal)]


class ProximityBias(nn.Module):
    r"""Proximity imposed from the start: $b_h(o) = -\|o\| / \mathrm{range}$, in every layer.

    A constant, or (score_bias learned) where one free number for each head and offset starts. On images o is the offset
    in rows and columns and the length Euclidean, so that the axis of offsets is that of the grid's `Geometry`.
    """

    def __init__(self, config: ModelConfig, data: DataSpec) -> None:
        """Compute the bias at every offset of the data."""
        super().__init__()
        self.grid = data.grid
        distance = geometry(data.grid or (data.n,)).distance.to(torch.get_default_dtype())
        start = (-distance / config.length_scale).expand(config.n_heads, -1).contiguous()
        self.weight: Tensor
        if config.score_bias == "learned":
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start, persistent=False)

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return the bias at offsets -(n - 1) ... n - 1 of n tokens in a line, or at all offsets of the grid."""
        if self.grid is not None:
            return self.weight
        longest = (self.weight.shape[1] + 1) // 2
        return self.weight[:, longest - n : longest + n - 1]


BUCKETS, FARTHEST = 32, 128


def _frequency(width: int) -> Tensor:
    return 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) / (2 * math.pi)


def _angles(n: int, frequency: Tensor) -> Tensor:
    return torch.arange(n, dtype=torch.float64)[:, None] * (2 * math.pi * frequency)


def _bucket(offset: Int[Tensor, " offset"], causal: bool) -> Int[Tensor, " offset"]:
    """Return T5's bucket of each offset; a causal model spends all buckets on the past."""
    buckets = BUCKETS if causal else BUCKETS // 2
    distance = (-offset).clamp(min=0) if causal else offset.abs()
    exact = buckets // 2
    far = exact + (distance.clamp(min=exact) / exact).log() / math.log(FARTHEST / exact) * (buckets - exact)
    bucket = torch.where(distance < exact, distance, far.long().clamp(max=buckets - 1))
    return bucket if causal else bucket + buckets * (offset > 0)
