"""Position encodings and the proximity bias.

Every encoding overrides one of three methods, and the other two do nothing:

- `embed` adds a vector to each token's embedding (learned, sinusoidal);
- `rotate` rotates queries and keys (rotary);
- `bias` adds a number per offset to the scores (ALiBi, relative).

To add an encoding, write a class and add one line to `attnprobe.tables.POSITIONS`. A `ProximityBias` can be combined
with any encoding.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.geometry import geometry


class PositionEncoding(nn.Module):
    """Base class of the encodings, and itself the encoding none: permuting tokens permutes scores."""

    rotates = False
    """Whether `rotate` rotates queries and keys; the network then has ``hook_rot_q`` and ``hook_rot_k``."""
    frequency: Float[Tensor, " pair"] | None = None
    """Periods per token of each coordinate pair of a sinusoidal or rotary encoding, else None."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Create the encoding for sequences of at most n tokens, prepended tokens included."""
        super().__init__()

    def embed(self, n: int) -> Float[Tensor, "token d_model"] | None:
        """Return the vectors added to the embeddings of n tokens, or None."""
        return None

    def rotate(self, x: Float[Tensor, "batch token head d_head"]) -> Float[Tensor, "batch token head d_head"]:
        """Rotate queries or keys according to their positions."""
        return x

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the bias added to scores at offsets -(n - 1) ... n - 1, or None."""
        return None

    def turn(
        self, x: Float[Tensor, "batch token head d_head"], places: Float[Tensor, " token"]
    ) -> Float[Tensor, "batch token head d_head"]:
        """Rotate the queries or keys of each token further, by the given number of positions."""
        return x


class Learned(PositionEncoding):
    """Learned vector per position, initialised with N(0, position_std^2) (Gehring et al. 2017, arXiv:1705.03122)."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Create the parameter for n vectors; the network initialises it."""
        super().__init__(config, n)
        self.weight = nn.Parameter(torch.zeros(n, config.d_model))

    def embed(self, n: int) -> Float[Tensor, "token d_model"]:
        """Return the first n vectors."""
        return self.weight[:n]


class Sinusoidal(PositionEncoding):
    r"""Fixed sinusoids: $p_{i,2m} = \sin(i\,\omega_m)$, $p_{i,2m+1} = \cos(i\,\omega_m)$, $\omega_m = 10000^{-2m/d}$.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5. The product $P P^\top$ is largest at offset 0 and decays with
    distance, so scores can be local before training.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute the sinusoids."""
        super().__init__(config, n)
        self.frequency = _frequency(config.d_model)
        angle = _angles(n, self.frequency)
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(n, config.d_model)
        self.register_buffer("waves", waves.to(torch.get_default_dtype()), persistent=False)
        self.waves: Tensor

    def embed(self, n: int) -> Float[Tensor, "token d_model"]:
        """Return the sinusoids at positions 0 ... n - 1."""
        return self.waves[:n]


class Rotary(PositionEncoding):
    r"""Query and key coordinate pairs rotated by $i\,\omega_m$, so that scores depend only on the offset $j - i$.

    Su et al. 2021, arXiv:2104.09864, equation 34; $\omega_m = 10000^{-2m/d_{head}}$. Coordinates (2m, 2m + 1) form a
    pair, as in the paper; some libraries pair m with m + d_head / 2 instead.
    """

    rotates = True

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute the cosines and sines of the angles."""
        super().__init__(config, n)
        self.frequency = _frequency(config.d_head)
        angle = _angles(n, self.frequency)
        self.register_buffer("cosine", angle.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sine", angle.sin().to(torch.get_default_dtype()), persistent=False)
        self.cosine: Tensor
        self.sine: Tensor

    def rotate(self, x: Float[Tensor, "batch token head d_head"]) -> Float[Tensor, "batch token head d_head"]:
        r"""Rotate each coordinate pair m of token i by $i\,\omega_m$."""
        return self._rotate_pairs(x, self.cosine[: x.shape[1]], self.sine[: x.shape[1]])

    def turn(
        self, x: Float[Tensor, "batch token head d_head"], places: Float[Tensor, " token"]
    ) -> Float[Tensor, "batch token head d_head"]:
        """Rotate the queries or keys of each token further, by the given number of positions."""
        assert self.frequency is not None
        angle = 2 * math.pi * places[:, None].double() * self.frequency.to(places.device)
        return self._rotate_pairs(x, angle.cos().to(x), angle.sin().to(x))

    def _rotate_pairs(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        even, odd, cosine, sine = x[..., ::2], x[..., 1::2], cosine[:, None], sine[:, None]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


class Alibi(PositionEncoding):
    r"""Fixed penalty $-m_h\,|j - i|$ with slopes $m_h = 2^{-8h/H}$, h = 1 ... H.

    Press et al. 2022, arXiv:2108.12409, section 3, for causal attention; bidirectional attention uses the absolute
    distance. If the number of heads is not a power of two, the same formula is used, whereas the authors' code
    interleaves two sequences of slopes.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Compute the slopes."""
        super().__init__(config, n)
        slopes = 2.0 ** (-8.0 * torch.arange(1, config.n_heads + 1) / config.n_heads)
        self.register_buffer("slopes", slopes, persistent=False)
        self.slopes: Tensor

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return the bias added to scores at offsets -(n - 1) ... n - 1."""
        distance = torch.arange(-(n - 1), n, device=self.slopes.device).abs()
        return -self.slopes[:, None] * distance


class Relative(PositionEncoding):
    """Learned bias per head and bucket of offsets, shared by all layers.

    Raffel et al. 2020 (T5), arXiv:1910.10683, section 2.1. There are 32 buckets: one for each distance below 8 in each
    direction (causal: below 16), and logarithmic buckets up to distance 128 for larger ones.
    """

    def __init__(self, config: ModelConfig, n: int) -> None:
        """Create the bias parameter; the network initialises it."""
        super().__init__(config, n)
        self.causal = config.causal
        self.weight = nn.Parameter(torch.zeros(config.n_heads, BUCKETS))

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return the bias added to scores at offsets -(n - 1) ... n - 1."""
        offset = torch.arange(-(n - 1), n, device=self.weight.device)
        return self.weight[:, _bucket(offset, self.causal)]


class ProximityBias(nn.Module):
    r"""Bias that favours nearby keys in every layer: $b_h(o) = -\|o\| / \mathrm{length\_scale}$.

    With score_bias fixed it is constant; with score_bias learned it is the initial value of one parameter per head and
    offset. For images, o is the 2-D offset and its norm is Euclidean; the offset axis is the one of the grid's
    `Geometry`.
    """

    def __init__(self, config: ModelConfig, data: DataSpec) -> None:
        """Compute the bias at every offset in the data."""
        super().__init__()
        self.grid = data.grid
        distance = geometry(data.grid or (data.n,)).distance.to(torch.get_default_dtype())
        initial = (-distance / config.length_scale).expand(config.n_heads, -1).contiguous()
        self.weight: Tensor
        if config.score_bias == "learned":
            self.weight = nn.Parameter(initial)
        else:
            self.register_buffer("weight", initial, persistent=False)

    def bias(self, n: int) -> Float[Tensor, "head offset"]:
        """Return the bias at offsets -(n - 1) ... n - 1, or at all 2-D offsets of the grid for images."""
        if self.grid is not None:
            return self.weight
        n_max = (self.weight.shape[1] + 1) // 2
        return self.weight[:, n_max - n : n_max + n - 1]


BUCKETS, FARTHEST = 32, 128


def _frequency(width: int) -> Tensor:
    return 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) / (2 * math.pi)


def _angles(n: int, frequency: Tensor) -> Tensor:
    return torch.arange(n, dtype=torch.float64)[:, None] * (2 * math.pi * frequency)


def _bucket(offset: Int[Tensor, " offset"], causal: bool) -> Int[Tensor, " offset"]:
    """Return T5's bucket of each offset; with causal attention all buckets cover preceding keys."""
    buckets = BUCKETS if causal else BUCKETS // 2
    distance = (-offset).clamp(min=0) if causal else offset.abs()
    exact = buckets // 2
    far = exact + (distance.clamp(min=exact) / exact).log() / math.log(FARTHEST / exact) * (buckets - exact)
    bucket = torch.where(distance < exact, distance, far.long().clamp(max=buckets - 1))
    return bucket if causal else bucket + buckets * (offset > 0)
