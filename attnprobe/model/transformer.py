"""Small Transformer encoder (or decoder, if causal) with TransformerLens hook points at all activations.

``run_with_hooks``, ``run_with_cache`` and ``add_hook`` work as in TransformerLens, with its hook names: the first use
makes the network a ``HookedRootModule`` (`attnprobe.model.lens`). The network has two output heads: one reconstructs
tokens and one predicts the label of the sequence.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnprobe.config import DataSpec, ModelConfig, NetworkConfig
from attnprobe.errors import UsageError
from attnprobe.model.attention import Attend, Attention
from attnprobe.model.hooks import HookPoint, observe, watched
from attnprobe.model.initialisation import Map, mimetic, proximity
from attnprobe.model.position import PositionEncoding, ProximityBias
from attnprobe.randomness import torch_generator
from attnprobe.scores import Heads, Scores
from attnprobe.tables import POSITIONS

METHODS = frozenset(
    "QK OV add_caching_hooks add_hook add_perma_hook cache_all cache_some check_and_add_hook check_hooks_to_add "
    "clear_contexts context_level get_caching_hooks hook_dict hook_points hooks is_caching list_hooks mod_dict "
    "remove_all_hook_fns reset_hooks run_with_cache run_with_hooks setup".split()
)
"""Methods and attributes of TransformerLens's ``HookedRootModule``, and its products of weights."""
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Norm(nn.Module):
    """LayerNorm, RMSNorm or identity, with TransformerLens's ``hook_scale`` and ``hook_normalized``.

    A fused kernel is used unless ``hook_scale`` has a hook.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create the gain, the bias (LayerNorm only) and the hook points."""
        super().__init__()
        self.kind = config.norm
        if self.kind != "none":
            self.weight = nn.Parameter(torch.ones(config.d_model))
            self.hook_scale = HookPoint()
        if self.kind == "layer":
            self.bias = nn.Parameter(torch.zeros(config.d_model))
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Normalise each token."""
        if self.kind == "none":
            return observe(self.hook_normalized, x)
        if watched(self.hook_scale):
            # The fused kernels also compute in float32 or wider.
            upcast = x.to(torch.promote_types(x.dtype, torch.float32))
            y = self.share(upcast, observe(self.hook_scale, self.scale(upcast)))
            return observe(self.hook_normalized, (y + self.bias if self.kind == "layer" else y).to(x.dtype))
        if self.kind == "layer":
            return observe(self.hook_normalized, F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS))
        return observe(self.hook_normalized, F.rms_norm(x, x.shape[-1:], self.weight, EPS))

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """Return the scale that each token is divided by."""
        centred = x - x.mean(-1, keepdim=True) if self.kind == "layer" else x
        return (centred.square().mean(-1, keepdim=True) + EPS).sqrt()

    def share(
        self, part: Float[Tensor, "*#batch d_model"], scale: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return the contribution of a summand of x to the output, which is linear in it at the given scale of x."""
        return (part - part.mean(-1, keepdim=True) if self.kind == "layer" else part) / scale * self.weight


EPS = 1e-5
OF_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
OF_MLP = ("W_in", "b_in", "W_out", "b_out")

Lengths = Int[Tensor, " batch"] | Sequence[int] | np.ndarray | None
"""Number of non-padding tokens of each sequence; None if no sequence is padded."""


def whole_numbers(lengths: Lengths) -> Tensor | None:
    """Convert lengths to a tensor; raise `UsageError` if they are not whole numbers."""
    if lengths is None or isinstance(lengths, Tensor):
        return lengths
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu":
        raise UsageError(f"lengths={lengths!r}: must be whole numbers, one per sequence")
    return torch.from_numpy(array.astype(np.int64))


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between them."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the linear maps and the hook points."""
        super().__init__()
        self.into, self.out = nn.Linear(config.d_model, config.d_mlp), nn.Linear(config.d_mlp, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """Return the sublayer's output."""
        return self.out(observe(self.hook_post, self.activation(observe(self.hook_pre, self.into(x)))))

    # Weights under TransformerLens's names and with its shapes.
    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Map from the residual stream to the hidden units."""
        return self.into.weight.mT

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Bias of the hidden units."""
        return self.into.bias

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Map from the hidden units to the residual stream."""
        return self.out.weight.mT

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.out.bias


class Block(nn.Module):
    """Attention and MLP sublayers with residual connections, with pre-norm or post-norm."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        """Create the sublayers and the hook points."""
        super().__init__()
        self.pre = config.norm_placement == "pre"
        self.ln1, self.attn = Norm(config), Attention(config, layer)
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.has_mlp = not config.attn_only
        if self.has_mlp:
            self.ln2, self.mlp = Norm(config), MLP(config)
            self.hook_resid_mid, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_resid_post = HookPoint()
        self.dropout = config.dropout

    def forward(
        self, x: Float[Tensor, "batch token d_model"], position: PositionEncoding, form: Scores, attend: Attend
    ) -> Float[Tensor, "batch token d_model"]:
        """Return the residual stream after the block."""
        x = observe(self.hook_resid_pre, x)
        if self.pre:
            x = x + observe(self.hook_attn_out, self._dropped(self.attn(self.ln1(x), position, form, attend)))
            if self.has_mlp:
                x = observe(self.hook_resid_mid, x)
                x = x + observe(self.hook_mlp_out, self._dropped(self.mlp(self.ln2(x))))
        else:
            x = self.ln1(x + observe(self.hook_attn_out, self._dropped(self.attn(x, position, form, attend))))
            if self.has_mlp:
                x = observe(self.hook_resid_mid, x)
                x = self.ln2(x + observe(self.hook_mlp_out, self._dropped(self.mlp(x))))
        return observe(self.hook_resid_post, x)

    def _dropped(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        # No module, since messages name the module in whose output a value is NaN first.
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Transformer for one architecture and one data format.

    >>> spec = DataSpec(n=6, inputs="tokens", classes=2, vocabulary=5)
    >>> model = Transformer(ModelConfig(d_model=8), spec)
    >>> logits, cache = model.run_with_cache(torch.tensor([[0, 1, 2, 3, 4, 0]]))
    >>> logits.shape, cache["blocks.0.attn.hook_attn_scores"].shape
    (torch.Size([1, 2]), torch.Size([1, 2, 6, 6]))
    """

    def __init__(self, config: ModelConfig, data: DataSpec, seed: int = 0) -> None:
        """Build the network and draw its initial weights from a seed."""
        super().__init__()
        settings = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
        self.cfg = NetworkConfig(**settings, n_ctx=data.n, d_vocab=data.vocabulary)
        self.data = data
        self.n_prefix = int(config.pooling == "cls")
        """Number of prepended tokens ([CLS])."""
        if data.inputs == "tokens":
            # The last row is the embedding of masked tokens.
            self.embed = nn.Embedding(data.vocabulary + 1, config.d_model)
        else:
            # The last input is 1 for masked tokens, whose values are all 0.
            self.embed = nn.Linear(data.channels + 1, config.d_model)
        if self.n_prefix:
            self.cls = nn.Parameter(torch.zeros(config.d_model))
        self.position = POSITIONS[config.position](config, data.n + self.n_prefix)
        self.score_bias = None if config.score_bias == "none" else ProximityBias(config, data)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        # With post-norm the output of the last block is already normalised.
        self.ln_final = Norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.unembed = nn.Linear(config.d_model, data.vocabulary or data.levels or data.channels)
        self.classify = nn.Linear(config.d_model, data.classes)
        self.hook_embed, self.hook_pooled = HookPoint(), HookPoint()
        if self.position.embed(1) is not None:
            self.hook_pos_embed = HookPoint()
        self._initialise(seed)
        self._attend: Attend = Heads.attend
        self.points = {name: module for name, module in self.named_modules() if isinstance(module, HookPoint)}
        """Hook points by name, as created."""

    def _initialise(self, seed: int) -> None:
        """Draw each weight from a generator keyed by its name: networks with a common part share its weights."""
        with torch.no_grad():
            for name, weight in self.named_parameters():
                generator = torch_generator(seed, f"init {name}")
                if name.startswith("score_bias.") or (name.startswith("position.") and bool(weight.any())):
                    continue  # keep values set by the constructor; zero-filled parameters of encodings are drawn below
                if name.startswith("position."):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * self.cfg.position_std)
                elif name.endswith(".bias"):
                    weight.zero_()
                elif name.startswith(("embed.", "cls")) or (weight.ndim == 2 and self.cfg.init == "normal"):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * self.cfg.init_std)
                elif weight.ndim == 2:
                    bound = math.sqrt(6 / sum(weight.shape))
                    weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
            if self.cfg.init_qk != "random":
                for layer in range(self.cfg.n_layers):
                    query_maps, key_maps = zip(*self._query_key_maps(seed, layer), strict=True)
                    for name, maps in (("q", query_maps), ("k", key_maps)):
                        weight = self.get_parameter(f"blocks.{layer}.attn.{name}.weight")
                        weight.copy_(torch.cat(maps, dim=1).mT)

    def _query_key_maps(self, seed: int, layer: int) -> list[tuple[Map, Map]]:
        """Return the initial query and key maps of each head for init_qk proximity or mimetic."""
        config = self.cfg
        if config.init_qk == "mimetic":
            name = f"init blocks.{layer}.attn.q.weight"
            generators = (torch_generator(seed, name, head) for head in range(config.n_heads))
            return [mimetic(config.d_model, config.d_head, generator) for generator in generators]
        positions = self.position.embed(self.data.n + self.n_prefix)
        assert positions is not None  # checked by ModelConfig
        scale = 1.0
        # With post-norm the first layer reads the residual stream without normalisation.
        if config.norm != "none" and (config.norm_placement == "pre" or layer > 0):
            positions = positions - positions.mean(-1, keepdim=True) if config.norm == "layer" else positions
            scale = math.sqrt(config.init_std**2 + positions.square().mean().item() + EPS)
        shape = self.data.grid or (self.data.n,)
        maps = proximity(positions, config.init_std, scale, shape, config.length_scale, config.d_head)
        return [maps] * config.n_heads

    def forward(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token *channel"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
        output: Literal["labels", "tokens"] = "labels",
    ) -> Float[Tensor, "batch class_"] | Float[Tensor, "batch token vocabulary"]:
        """Return label logits [batch, class_], or token logits (values) [batch, token, vocabulary (channel)].

        Args:
            inputs: Token ids [batch, token]; or values [batch, token], [batch, token, channel] with several channels.
            masked: Tokens whose input is replaced by the mask embedding.
            lengths: Number of non-padding tokens of each sequence.
            output: Output head.
        """
        lengths = whole_numbers(lengths)
        return self.read(self.residual(inputs, masked=masked, lengths=lengths), lengths=lengths, output=output)

    def read(
        self,
        x: Float[Tensor, "batch prefix_and_token d_model"],
        *,
        lengths: Lengths = None,
        output: Literal["labels", "tokens"] = "labels",
    ) -> Float[Tensor, "batch class_"] | Float[Tensor, "batch token vocabulary"]:
        """Apply the output head to the residual stream that `residual` returns."""
        if output == "tokens":
            return self.unembed(x[:, self.n_prefix :])
        return self.classify(observe(self.hook_pooled, self.pool(x, whole_numbers(lengths))))

    def residual(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token *channel"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Return the residual stream after the last block and the final norm."""
        return self.through(self.embedded(inputs, masked=masked, lengths=lengths), lengths=lengths)

    def embedded(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token *channel"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Return the residual stream before the first block."""
        self._check(inputs, whole_numbers(lengths))
        x = observe(self.hook_embed, self._embed(inputs, masked))
        positions = self.position.embed(x.shape[1])
        x = x if positions is None else x + observe(self.hook_pos_embed, positions.expand_as(x))
        return F.dropout(x, self.cfg.dropout, self.training)

    def through(
        self,
        x: Float[Tensor, "batch prefix_and_token d_model"],
        *,
        first: int = 0,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Run the blocks from ``first`` on and the final norm, given the residual stream before that block."""
        form = self._form(x, whole_numbers(lengths))
        for layer in range(first, self.cfg.n_layers):
            x = self.block(layer)(x, self.position, form, self._attend)
        return self.ln_final(x)

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        """Replace attention with a function, in every layer of every forward pass within a ``with`` block."""
        previous, self._attend = self._attend, attend
        try:
            yield
        finally:
            self._attend = previous

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the total bias between n tokens at their 1-D or 2-D offsets, or None without one."""
        weight = self.classify.weight
        return self._form(weight.new_empty(1, 1, 1).expand(1, n + self.n_prefix, 1), None).bias_by_offset

    def _form(self, x: Tensor, lengths: Tensor | None) -> Scores:
        """Return `Scores` with empty queries and keys that hold the biases and masks shared by all layers."""
        total = x.shape[1]
        n, real = total - self.n_prefix, None
        if lengths is not None and bool((lengths < n).any()):
            real = torch.arange(total, device=x.device) < (lengths.to(x.device) + self.n_prefix)[:, None]
        empty = x.new_empty(1, 1, 1, 1).expand(len(x), self.cfg.n_heads, total, 1)
        return Scores(
            empty,
            empty,
            bias=self.position.bias(total),
            causal=self.cfg.causal,
            real=real,
            grid=self.data.grid,
            prefix=self.n_prefix,
            token_bias=None if self.score_bias is None else self.score_bias.bias(n),
        )

    def pool(
        self, x: Float[Tensor, "batch token d_model"], lengths: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch d_model"]:
        """Pool the non-padding tokens of each sequence into one vector."""
        if self.cfg.pooling == "cls":
            return x[:, 0]
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1])
        lengths = lengths.to(x.device)
        if self.cfg.pooling == "last":
            return x[torch.arange(len(x), device=x.device), lengths - 1]
        real = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        if self.cfg.pooling == "max":
            return x.masked_fill(~real, -math.inf).amax(dim=1)
        return (x * real).sum(dim=1) / lengths[:, None]

    @property
    def hooked(self) -> list[str]:
        """Names of the hook points at which a hook or a replacement module can read or edit the activation."""
        modules = dict(self.named_modules())
        names = vars(self).get("hook_dict", self.points)
        return [name for name in names if name in modules and watched(modules[name])]

    def __getattr__(self, name: str) -> Any:
        """Stack a weight of all layers, [layer, ...], under its TransformerLens name: W_Q, b_Q, ..., W_out.

        The first use of a method of TransformerLens makes the network a ``HookedRootModule``.
        """
        if name in METHODS and type(self) is Transformer:
            from attnprobe.model.lens import hooked_transformer

            return getattr(hooked_transformer(self), name)
        part = "attn" if name in OF_ATTENTION else "mlp" if name in OF_MLP and not self.cfg.attn_only else None
        if part is None:
            return super().__getattr__(name)
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    def block(self, layer: int) -> Block:
        """Return the block of a layer."""
        return cast(Block, self.blocks[layer])

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Return the residual directions [..., d_model] of token logits, including the gain of the final norm."""
        tokens = torch.as_tensor(tokens)
        if self.data.inputs != "tokens" or tokens.is_floating_point():
            raise UsageError(f"tokens of type {tokens.dtype}: must be token ids of a network with inputs='tokens'")
        directions = self.unembed.weight[tokens]
        if self.cfg.norm == "none" or not isinstance(self.ln_final, Norm):
            return directions
        return directions * cast(Tensor, self.ln_final.weight)

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """Return the sum of the biases b_O (and b_out) of all sublayers before a layer (or before its MLP)."""
        blocks = [self.block(index) for index in range(self.cfg.n_layers)]
        biases = [block.attn.b_O for block in blocks[: layer + mlp_input]]
        if include_mlp_biases and not self.cfg.attn_only:
            biases += [block.mlp.b_out for block in blocks[:layer]]
        return torch.stack(biases).sum(0) if biases else torch.zeros_like(self.classify.weight[0])

    def _embed(self, inputs: Tensor, masked: Tensor | None) -> Tensor:
        if self.data.inputs == "tokens":
            x = self.embed(inputs if masked is None else inputs.masked_fill(masked, self.data.vocabulary))
        else:
            values = inputs.to(self.classify.weight.dtype)
            values = values[..., None] if values.ndim == 2 else values
            mask = torch.zeros_like(values[..., :1]) if masked is None else masked.to(values.dtype)[..., None]
            x = self.embed(torch.cat([values * (1 - mask), mask], dim=-1))
        return torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1) if self.n_prefix else x

    def _check(self, inputs: Tensor, lengths: Tensor | None) -> None:
        channels = self.data.channels
        channel_axis = () if channels == 1 else (channels,)
        if inputs.ndim < 2 or inputs.shape[2:] != channel_axis or not 1 <= inputs.shape[1] <= self.data.n:
            axes = "[batch, token]" if channels == 1 else f"[batch, token, channel={channels}]"
            raise UsageError(f"inputs of shape {tuple(inputs.shape)}: must be {axes} with 1 to {self.data.n} tokens")
        if (self.data.inputs == "values") != inputs.is_floating_point():
            raise UsageError(f"inputs of type {inputs.dtype}: this network accepts {self.data.inputs}")
        if lengths is not None and lengths.shape != inputs.shape[:1]:
            raise UsageError(f"lengths of shape {tuple(lengths.shape)}: must be [{len(inputs)}], one per sequence")
        if lengths is not None and not (1 <= lengths.min() and lengths.max() <= inputs.shape[1]):
            extremes = f"{lengths.min()} ... {lengths.max()}"
            raise UsageError(f"lengths {extremes}: must be 1 ... {inputs.shape[1]}, the number of input tokens")
