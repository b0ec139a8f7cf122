r"""Multi-head attention, and the only place where a score is computed.

For the queries $q_i$ and keys $k_j$ of one head (already rotated, where the encoding rotates)

$$S_{ij} = q_i \cdot k_j / \sqrt{d_{head}} + b(j - i), \qquad A = \mathrm{softmax}_j S, \qquad z_i = \sum_j A_{ij} v_j$$

with $S_{ij} = -\infty$ where query i may not see key j. `Attention.attend` has two paths to z. The fused one never
holds an n x n array of scores, nor a large one of biases and masks, and is taken unless somebody looks; the
explicit one makes S and A, and is taken when a hook sits on ``hook_attn_scores`` or ``hook_pattern``, so that an edit
there is never ignored. Both start from the same q and k and the same `Additive`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from attnprobe.config import ModelConfig
from attnprobe.position import POSITIONS, PositionEncoding


@dataclass(frozen=True)
class Additive:
    """What enters a score besides the product of query and key: the biases, and -inf for hidden keys."""

    n: int
    """Tokens in the sequence, with those that the network puts in front."""
    device: torch.device
    """Where the network is."""
    bias: Float[Tensor, "head offset"] | None = None
    """Position bias at offsets -(n - 1) ... n - 1."""
    causal: bool = False
    """Whether keys after the query are hidden."""
    real: Bool[Tensor, "batch token"] | None = None
    """Tokens that are not padding; the others are hidden as keys."""
    proximity: Float[Tensor, "head token_offset"] | None = None
    """Proximity bias at the offsets of the tokens behind the prefix, in a line or flat on the grid as in `Geometry`."""
    grid: tuple[int, int] | None = None
    """Rows and columns, where the tokens are pixels and ``proximity`` is over 2-D offsets."""
    prefix: int = 0
    """Tokens in front, which have no proximity: the bias between them and everybody is 0."""

    @property
    def biased(self) -> bool:
        """Whether some bias is added."""
        return self.bias is not None or self.proximity is not None

    @cached_property
    def dense(self) -> Float[Tensor, "#batch #head query key"] | None:
        """The sum as an array, or None where there is nothing to add: then no n x n array exists."""
        return self.rows(0, self.n)

    def rows(self, start: int, stop: int) -> Float[Tensor, "#batch #head query key"] | None:
        """Return the sum for the queries from start to stop - 1, or None."""
        if not self.biased and not self.causal and self.real is None:
            return None
        query, key = torch.arange(start, stop, device=self.device)[:, None], torch.arange(self.n, device=self.device)
        added = torch.zeros(1, 1, 1, 1, device=self.device)
        if self.bias is not None:
            added = self.bias[None, :, key - query + self.n - 1]
        if self.proximity is not None:
            added = added + self._proximity(query - self.prefix, key - self.prefix)
        if self.causal:
            added = torch.where(key > query, -math.inf, added)
        return added if self.real is None else torch.where(self.real[:, None, None, :], added, -math.inf)

    def _proximity(self, query: Int[Tensor, "query 1"], key: Int[Tensor, " key"]) -> Float[Tensor, "1 head query key"]:
        """Return the proximity bias of pairs of tokens, which are numbered from the first one behind the prefix."""
        assert self.proximity is not None
        rows, columns = self.grid or (1, self.n - self.prefix)
        row_offset = key // columns - query // columns + rows - 1
        place = row_offset * (2 * columns - 1) + key % columns - query % columns + columns - 1
        nowhere = self.proximity.shape[1]
        place = place.where((query >= 0) & (key >= 0), nowhere)
        return F.pad(self.proximity, (0, 1))[None, :, place]

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "#batch #head query key"] | None]]:
        """Yield all queries, some at a time where the sum for all of them would be large, with their part of it."""
        heads = max(1 if one is None else len(one) for one in (self.bias, self.proximity))
        size = (1 if self.real is None else len(self.real)) * heads * self.n
        step = max(1, ELEMENTS // size)
        if self.n <= step:
            yield slice(0, self.n), self.dense
            return
        for start in range(0, self.n, step):
            stop = min(start + step, self.n)
            yield slice(start, stop), self.rows(start, stop)


ELEMENTS = 2**24
"""Numbers added to scores that are held at a time in the fused path."""


def scores(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key head d_head"],
    additive: Additive,
) -> Float[Tensor, "batch head query key"]:
    """Return the score: scaled products of queries and keys plus bias and mask, all that enters the softmax."""
    product = einsum(q, k, "batch query head d_head, batch key head d_head -> batch head query key")
    product = product / math.sqrt(q.shape[-1])
    return product if additive.dense is None else product + additive.dense


class Attention(nn.Module):
    """One layer of attention with TransformerLens's hook points.

    ``hook_q``, ``hook_k``, ``hook_v``, ``hook_z`` see [batch, token, head, d_head]; ``hook_rot_q``, ``hook_rot_k`` the
    same after rotation; ``hook_attn_scores`` and ``hook_pattern`` [batch, head, query, key].
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the four maps and the hook points."""
        super().__init__()
        self.n_heads = config.n_heads
        self.rotates = POSITIONS[config.position].rotates
        self.q = nn.Linear(config.d_model, config.d_model)
        self.k = nn.Linear(config.d_model, config.d_model)
        self.v = nn.Linear(config.d_model, config.d_model)
        self.o = nn.Linear(config.d_model, config.d_model)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        if self.rotates:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()

    def forward(
        self,
        x: Float[Tensor, "batch token d_model"],
        position: PositionEncoding,
        additive: Additive,
    ) -> Float[Tensor, "batch token d_model"]:
        """Return the layer's output for the (normalised) residual stream."""
        q, k, v = (
            hook(rearrange(map_(x), "batch token (head d_head) -> batch token head d_head", head=self.n_heads))
            for map_, hook in ((self.q, self.hook_q), (self.k, self.hook_k), (self.v, self.hook_v))
        )
        if self.rotates:
            q, k = self.hook_rot_q(position.rotate(q)), self.hook_rot_k(position.rotate(k))
        z = self.hook_z(self.attend(q, k, v, additive))
        return self.o(rearrange(z, "batch token head d_head -> batch token (head d_head)"))

    def attend(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_value"],
        additive: Additive,
    ) -> Float[Tensor, "batch query head d_value"]:
        """Return z: explicitly where a hook looks at score or pattern, else fused."""
        if watched(self.hook_attn_scores) or watched(self.hook_pattern):
            pattern = self.hook_pattern(self.hook_attn_scores(scores(q, k, additive)).softmax(dim=-1))
            return einsum(pattern, v, "batch head query key, batch key head d_head -> batch query head d_head")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if not additive.biased and additive.real is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=additive.causal).transpose(1, 2)
        parts = [
            # A mask of another type than q is misread without an error (torch 2.13, float64 on a CPU).
            F.scaled_dot_product_attention(
                q[:, :, queries], k, v, attn_mask=None if added is None else added.to(q.dtype)
            )
            for queries, added in additive.blocks()
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    # TransformerLens's names and shapes: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_model].
    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query map of each head."""
        return self._by_head(self.q)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key map of each head."""
        return self._by_head(self.k)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value map of each head."""
        return self._by_head(self.v)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output map of each head."""
        return rearrange(self.o.weight, "d_model (head d_head) -> head d_head d_model", head=self.n_heads)

    def _by_head(self, map_: nn.Linear) -> Tensor:
        return rearrange(map_.weight, "(head d_head) d_model -> head d_model d_head", head=self.n_heads)


def watched(hook: HookPoint) -> bool:
    """Say whether anything is registered there, through TransformerLens or plain torch, forward or backward."""
    return bool(hook._forward_hooks or hook._backward_hooks or hook._forward_pre_hooks or hook._backward_pre_hooks)
