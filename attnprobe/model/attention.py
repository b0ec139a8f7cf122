r"""Multi-head attention with TransformerLens's hook points.

For the queries $q_i$ and keys $k_j$ of one head (after any rotation)

$$S_{ij} = q_i \cdot k_j / \sqrt{d_{head}} + b(j - i), \qquad A = \mathrm{softmax}_j S, \qquad z_i = \sum_j A_{ij} v_j$$

with $S_{ij} = -\infty$ if key j is masked for query i; `attnprobe.scores.Scores` represents S. `Attention.attend`
computes z in one of two ways. Fused attention never holds an n x n array of scores. Explicit attention computes S and
A; it is used if ``hook_attn_scores`` or ``hook_pattern`` has a hook, so that edits there always take effect. A query
whose scores are all -inf attends to nothing: its pattern and z are 0, as in TransformerLens.
"""

import math
from collections.abc import Callable

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attnprobe.config import ModelConfig
from attnprobe.model.hooks import HookPoint, observe, watched
from attnprobe.model.position import PositionEncoding
from attnprobe.scores import Heads, Scores
from attnprobe.tables import POSITIONS

Attend = Callable[[Heads], Tensor]
"""Function that maps the inputs of a layer's attention to its z, [batch, head, token, d_head]."""


class Attention(nn.Module):
    """One attention layer with TransformerLens's hook points.

    Axes are [batch, token, head, d_head] at ``hook_q``, ``hook_k``, ``hook_v``, ``hook_z`` and, after rotation, at
    ``hook_rot_q`` and ``hook_rot_k``; they are [batch, head, query, key] at ``hook_attn_scores`` and ``hook_pattern``.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        """Create the query, key, value and output maps and the hook points."""
        super().__init__()
        self.layer = layer
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
        self, x: Float[Tensor, "batch token d_model"], position: PositionEncoding, form: Scores, attend: Attend
    ) -> Float[Tensor, "batch token d_model"]:
        """Return the layer's output.

        ``x`` is the layer's input, normalised with pre-norm; ``form`` holds the biases and masks that the scores of all
        layers share; ``attend`` computes z.
        """
        q, k, v = (
            observe(hook, rearrange(map_(x), "batch token (head d_head) -> batch token head d_head", head=self.n_heads))
            for map_, hook in ((self.q, self.hook_q), (self.k, self.hook_k), (self.v, self.hook_v))
        )
        if self.rotates:
            q, k = observe(self.hook_rot_q, position.rotate(q)), observe(self.hook_rot_k, position.rotate(k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        heads = Heads(self.layer, form.of(q, k), v, None if self.rotates else x, self.attend)
        z = observe(self.hook_z, attend(heads).transpose(1, 2))
        return self.o(rearrange(z, "batch token head d_head -> batch token (head d_head)"))

    def attend(
        self, scores: Scores, v: Float[Tensor, "batch head key d_value"]
    ) -> Float[Tensor, "batch head query d_value"]:
        """Return z, with explicit attention if the scores or the pattern have a hook and fused attention otherwise."""
        if watched(self.hook_attn_scores) or watched(self.hook_pattern):
            dense = observe(self.hook_attn_scores, scores.dense())
            all_masked = (dense == -math.inf).all(dim=-1, keepdim=True)
            pattern = dense.masked_fill(all_masked, 0).softmax(dim=-1).masked_fill(all_masked, 0)
            pattern = observe(self.hook_pattern, pattern.to(v.dtype))
            return einsum(pattern, v, "batch head query key, batch head key d_value -> batch head query d_value")
        return scores.attend(v)

    # Weights under TransformerLens's names and with its shapes.
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

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias of each head."""
        return self.q.bias.unflatten(0, (self.n_heads, -1))

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key bias of each head."""
        return self.k.bias.unflatten(0, (self.n_heads, -1))

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value bias of each head."""
        return self.v.bias.unflatten(0, (self.n_heads, -1))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias, shared by all heads."""
        return self.o.bias

    def _by_head(self, map_: nn.Linear) -> Tensor:
        return rearrange(map_.weight, "(head d_head) d_model -> head d_model d_head", head=self.n_heads)
