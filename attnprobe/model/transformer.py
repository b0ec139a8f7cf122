"""The network: a small Transformer encoder (or decoder) in which everything can be seen and edited.

It is a TransformerLens `HookedRootModule`: ``run_with_hooks``, ``run_with_cache`` and ``add_hook`` work as its users
know them, under its hook names. It has two heads: one reconstructs tokens, one predicts the label of the sequence.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.slice import Slice

from attnprobe.config import DataSpec, ModelConfig, NetworkConfig
from attnprobe.errors import UsageError, listed
from attnprobe.model.attention import Attend, Attention
from attnprobe.model.cache import Cache
from attnprobe.model.hooks import HookPoint, observe, watched
from attnprobe.model.initialisation import Map, mimetic, proximity
from attnprobe.model.position import PositionEncoding, ProximityBias
from attnprobe.randomness import torch_generator
from attnprobe.scores import Heads, Scores
from attnprobe.tables import POSITIONS

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Norm(nn.Module):
    """LayerNorm or RMSNorm with TransformerLens's ``hook_scale`` and ``hook_normalized``; or the identity.

    One fused kernel unless a hook looks at the scale.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make gain and bias (RMSNorm has none) and the hook points."""
        super().__init__()
        self.kind = config.norm
        if self.kind != "none":
            self.weight = nn.Parameter(torch.ones(config.d_model))
            self.hook_scale = HookPoint()
        if self.kind == "layer":
            self.bias = nn.Parameter(torch.zeros(config.d_model))
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Return x over its scale, token by token."""
        if self.kind == "none":
            return observe(self.hook_normalized, x)
        if watched(self.hook_scale):
            # As the fused kernels do, compute in float32 at least.
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            y = self.share(wide, observe(self.hook_scale, self.scale(wide)))
            return observe(self.hook_normalized, (y + self.bias if self.kind == "layer" else y).to(x.dtype))
        if self.kind == "layer":
            return observe(self.hook_normalized, F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS))
        return observe(self.hook_normalized, F.rms_norm(x, x.shape[-1:], self.weight, EPS))

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """Return what each token is divided by."""
        spread = x - x.mean(-1, keepdim=True) if self.kind == "layer" else x
        return (spread.square().mean(-1, keepdim=True) + EPS).sqrt()

    def share(
        self, part: Float[Tensor, "*#batch d_model"], scale: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return what a part of x contributes to the output, given the scale of the whole: it is linear in the part."""
        return (part - part.mean(-1, keepdim=True) if self.kind == "layer" else part) / scale * self.weight


EPS = 1e-5
OF_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
OF_MLP = ("W_in", "b_in", "W_out", "b_out")

Lengths = Int[Tensor, " batch"] | Sequence[int] | np.ndarray | None
"""Tokens of each sequence; None if no sequence is padded."""


def whole_numbers(lengths: Lengths) -> Tensor | None:
    """Return lengths as a tensor; raise `UsageError` if they are not whole numbers."""
    if lengths is None or isinstance(lengths, Tensor):
        return lengths
    numbers = np.asarray(lengths)
    if numbers.dtype.kind not in "iu":
        raise UsageError(f"lengths={lengths!r}: must be whole numbers, one a sequence")
    return torch.from_numpy(numbers.astype(np.int64))


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between them."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the maps and the hook points."""
        super().__init__()
        self.into, self.out = nn.Linear(config.d_model, config.d_mlp), nn.Linear(config.d_mlp, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """Return the sublayer's output."""
        return self.out(observe(self.hook_post, self.activation(observe(self.hook_pre, self.into(x)))))

    # TransformerLens's names and shapes.
    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Map from the residual stream to the neurons."""
        return self.into.weight.mT

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Bias of the neurons."""
        return self.into.bias

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Map from the neurons to the residual stream."""
        return self.out.weight.mT

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Bias of the output."""
        return self.out.bias


class Block(nn.Module):
    """Attention and MLP on the residual stream; the norm stands before each, or after each sum."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        """Make the sublayers and the hook points."""
        super().__init__()
        self.pre = config.norm_placement == "pre"
        self.ln1, self.attn = Norm(config), Attention(config, layer)
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.has_mlp = not config.attn_only
        if self.has_mlp:
            self.ln2, self.mlp = Norm(config), MLP(config)
            self.hook_resid_mid, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch token d_model"], position: PositionEncoding, form: Scores, attend: Attend
    ) -> Float[Tensor, "batch token d_model"]:
        """Return the residual stream after the block."""
        x = observe(self.hook_resid_pre, x)
        if self.pre:
            x = x + observe(self.hook_attn_out, self.attn(self.ln1(x), position, form, attend))
            if self.has_mlp:
                x = observe(self.hook_resid_mid, x)
                x = x + observe(self.hook_mlp_out, self.mlp(self.ln2(x)))
        else:
            x = self.ln1(x + observe(self.hook_attn_out, self.attn(x, position, form, attend)))
            if self.has_mlp:
                x = observe(self.hook_resid_mid, x)
                x = self.ln2(x + observe(self.hook_mlp_out, self.mlp(x)))
        return observe(self.hook_resid_post, x)


class Transformer(HookedRootModule):
    """The network for one architecture and one kind of data.

    >>> spec = DataSpec(n=6, inputs="tokens", classes=2, vocabulary=5)
    >>> model = Transformer(ModelConfig(d_model=8), spec)
    >>> logits, cache = model.run_with_cache(torch.tensor([[0, 1, 2, 3, 4, 0]]))
    >>> logits.shape, cache["blocks.0.attn.hook_attn_scores"].shape
    (torch.Size([1, 2]), torch.Size([1, 2, 6, 6]))
    """

    def __init__(self, config: ModelConfig, data: DataSpec, seed: int = 0) -> None:
        """Build the network with the initial weights that belong to the seed."""
        super().__init__()
        facts = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
        self.cfg = NetworkConfig(**facts, n_ctx=data.n, d_vocab=data.vocabulary)
        self.data = data
        self.n_prefix = int(config.pooling == "cls")
        """Tokens that the network itself puts in front of the sequence."""
        if data.inputs == "tokens":
            # One more row than ids: the last one stands for a masked token.
            self.embed = nn.Embedding(data.vocabulary + 1, config.d_model)
        else:
            self.embed = nn.Linear(2, config.d_model)
        if self.n_prefix:
            self.cls = nn.Parameter(torch.zeros(config.d_model))
        self.position = POSITIONS[config.position](config, data.n + self.n_prefix)
        self.score_bias = None if config.score_bias == "none" else ProximityBias(config, data)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        # With post-norm the last block has normalised already.
        self.ln_final = Norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.unembed = nn.Linear(config.d_model, data.vocabulary or data.levels or 1)
        self.classify = nn.Linear(config.d_model, data.classes)
        self.hook_embed, self.hook_pooled = HookPoint(), HookPoint()
        if self.position.embed(1) is not None:
            self.hook_pos_embed = HookPoint()
        self._initialise(seed)
        self._attend: Attend = Heads.attend
        self.setup()

    def _initialise(self, seed: int) -> None:
        """Draw every weight from a generator of its own name, so that networks that share a part share its weights."""
        with torch.no_grad():
            for name, weight in self.named_parameters():
                generator = torch_generator(seed, f"init {name}")
                if name.startswith("score_bias.") or (name.startswith("position.") and bool(weight.any())):
                    continue  # starts as it was made; of an encoding, what was made as zeros is drawn
                if name.startswith("position."):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * self.cfg.position_std)
                elif name.endswith(".bias"):
                    weight.zero_()
                elif name.startswith(("embed.", "cls")) or (weight.ndim == 2 and self.cfg.init == "normal"):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * self.cfg.init_std)
                elif weight.ndim == 2:
                    widest = math.sqrt(6 / sum(weight.shape))
                    weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * widest)
            if self.cfg.init_qk != "random":
                for layer in range(self.cfg.n_layers):
                    queries, keys = zip(*self._maps(seed, layer), strict=True)
                    for name, by_head in (("q", queries), ("k", keys)):
                        weight = self.get_parameter(f"blocks.{layer}.attn.{name}.weight")
                        weight.copy_(torch.cat(by_head, dim=1).mT)

    def _maps(self, seed: int, layer: int) -> list[tuple[Map, Map]]:
        """Return the query and the key map of each head that `attnprobe.model.initialisation` gives."""
        config = self.cfg
        if config.init_qk == "mimetic":
            name = f"init blocks.{layer}.attn.q.weight"
            generators = (torch_generator(seed, name, head) for head in range(config.n_heads))
            return [mimetic(config.d_model, config.d_head, generator) for generator in generators]
        positions = self.position.embed(self.data.n + self.n_prefix)
        assert positions is not None  # the configuration has checked it
        scale = 1.0
        # With post-norm the first layer reads the stream as it is.
        if config.norm != "none" and (config.norm_placement == "pre" or layer > 0):
            positions = positions - positions.mean(-1, keepdim=True) if config.norm == "layer" else positions
            scale = math.sqrt(config.init_std**2 + positions.square().mean().item() + EPS)
        shape = self.data.grid or (self.data.n,)
        maps = proximity(positions, config.init_std, scale, shape, config.length_scale, config.d_head)
        return [maps] * config.n_heads

    def forward(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
        output: Literal["labels", "tokens"] = "labels",
    ) -> Float[Tensor, "batch class_"] | Float[Tensor, "batch token vocabulary"]:
        """Return label logits [batch, class_], or token logits (or values) [batch, token, vocabulary].

        ``masked`` tokens are replaced before the network sees them; tokens at or after ``lengths`` are padding.
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
        """Return what `forward` makes of the residual stream that `residual` returns."""
        if output == "tokens":
            return self.unembed(x[:, self.n_prefix :])
        return self.classify(observe(self.hook_pooled, self.pool(x, whole_numbers(lengths))))

    def residual(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Return the residual stream after the last block and the final norm."""
        return self.through(self.embedded(inputs, masked=masked, lengths=lengths), lengths=lengths)

    def embedded(
        self,
        inputs: Int[Tensor, "batch token"] | Float[Tensor, "batch token"],
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Return the residual stream before the first block."""
        self._check(inputs, whole_numbers(lengths))
        x = observe(self.hook_embed, self._embed(inputs, masked))
        added = self.position.embed(x.shape[1])
        return x if added is None else x + observe(self.hook_pos_embed, added.expand_as(x))

    def through(
        self,
        x: Float[Tensor, "batch prefix_and_token d_model"],
        *,
        first: int = 0,
        lengths: Lengths = None,
    ) -> Float[Tensor, "batch prefix_and_token d_model"]:
        """Return the residual stream after the last block and the final norm, given that before the first block."""
        form = self._form(x, whole_numbers(lengths))
        for layer in range(first, self.cfg.n_layers):
            x = self.block(layer)(x, self.position, form, self._attend)
        return self.ln_final(x)

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        """Let a function take the place of attention in every layer of every forward pass."""
        before, self._attend = self._attend, attend
        try:
            yield
        finally:
            self._attend = before

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the whole bias among n tokens of the sequence at the offsets of their line, or of the grid."""
        scale = self.classify.weight
        return self._form(scale.new_empty(1, 1, 1).expand(1, n + self.n_prefix, 1), None).bias_by_offset

    def _form(self, x: Tensor, lengths: Tensor | None) -> Scores:
        """Return scores without queries and keys: the biases and the mask of every layer."""
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
        """Return one vector a sequence; padding takes no part."""
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
        """The names of the hook points where something can read or edit the activation."""
        modules = dict(self.named_modules())
        return [name for name in self.hook_dict if name in modules and watched(modules[name])]

    def hooks(self, *named_hooks: Any, **options: Any) -> Any:
        """Add hooks for the length of a ``with`` block, as TransformerLens does."""
        self._refuse_replaced()
        return super().hooks(*named_hooks, **options)

    def add_hook(self, *hook: Any, **options: Any) -> None:
        """Add a hook until `reset_hooks`, as TransformerLens does."""
        self._refuse_replaced()
        super().add_hook(*hook, **options)

    def _refuse_replaced(self) -> None:
        """Raise `UsageError` if a hook point has another module in its place: hooks would be added to the old one."""
        modules = dict(self.named_modules())  # without the hook points of a norm that was taken out
        replaced = [name for name, point in self.hook_dict.items() if modules.get(name, point) is not point]
        if replaced:
            raise UsageError(
                f"{listed(replaced)}: another module is in the place of the hook point, which hooks and caches cannot "
                "reach; put the hook point back, or call model.setup() to go without it"
            )

    def __getattr__(self, name: str) -> Any:
        """Return the weights of all layers under TransformerLens's names, [layer, ...]: W_Q, b_Q, QK, ..., W_out."""
        if name in ("QK", "OV"):
            left, right = (self.W_Q, self.W_K.mT) if name == "QK" else (self.W_V, self.W_O)
            return FactoredMatrix(left, right)
        part = "attn" if name in OF_ATTENTION else "mlp" if name in OF_MLP and not self.cfg.attn_only else None
        if part is None:
            return super().__getattr__(name)
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    def block(self, layer: int) -> Block:
        """Return the block of a layer."""
        return cast(Block, self.blocks[layer])

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *inputs: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **named: Any,
    ) -> tuple[Tensor, Cache | dict[str, Tensor]]:
        """Return the output and the `Cache` of hook points (or a plain dict).

        ``names_filter`` is a name, names or a predicate; ``pos_slice`` selects tokens (queries, of scores and patterns;
        position 0 is [CLS] if the network has one). Raises `UsageError` if no hook point passes the filter, and for
        ``incl_bwd``, which needs a network that returns a loss.
        """
        if incl_bwd:
            raise UsageError(
                "incl_bwd=True: this network returns logits, not a loss; use model.hooks(bwd_hooks=...) and call "
                "backward() on your loss"
            )
        if names_filter is None:
            names_filter = bool  # every name
        if not callable(names_filter):
            wanted: set[str] = {names_filter} if isinstance(names_filter, str) else set(names_filter)
            if not wanted or not wanted <= set(self.hook_dict):
                raise UsageError(
                    f"names_filter={names_filter!r}: no such hook point; valid: {listed(sorted(self.hook_dict))}"
                )
            names_filter = sorted(wanted)
        elif not any(map(names_filter, self.hook_dict)):
            raise UsageError(f"names_filter: passes none of the hook points {listed(sorted(self.hook_dict))}")
        output, cache = super().run_with_cache(
            *inputs, names_filter=names_filter, remove_batch_dim=remove_batch_dim, **named
        )
        if pos_slice is not None:
            # TransformerLens guesses the token axis from the number of axes, and is wrong for pooled activations.
            tokens = Slice.unwrap(pos_slice)
            for name in set(cache) - {"hook_pooled"}:
                by_query = name.endswith(("hook_attn_scores", "hook_pattern"))
                cache[name] = tokens.apply(cache[name], -2 if by_query else 1 - remove_batch_dim)
        return output, Cache(cache, self, has_batch_dim=not remove_batch_dim) if return_cache_object else cache

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Return the directions [..., d_model] that the logits of tokens read, the gain of the final norm included."""
        tokens = torch.as_tensor(tokens)
        if self.data.inputs != "tokens" or tokens.is_floating_point():
            raise UsageError(f"tokens of type {tokens.dtype}: directions belong to token ids of a network of tokens")
        directions = self.unembed.weight[tokens]
        if self.cfg.norm == "none" or not isinstance(self.ln_final, Norm):
            return directions
        return directions * cast(Tensor, self.ln_final.weight)

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """Return the sum of the biases b_O (and b_out) that sublayers before a layer (or its MLP) add."""
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
            m = torch.zeros_like(values) if masked is None else masked.to(values.dtype)
            x = self.embed(torch.stack([values * (1 - m), m], dim=-1))
        return torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1) if self.n_prefix else x

    def _check(self, inputs: Tensor, lengths: Tensor | None) -> None:
        if inputs.ndim != 2 or not 1 <= inputs.shape[1] <= self.data.n:
            raise UsageError(
                f"inputs of shape {tuple(inputs.shape)}: must be [batch, token] with 1 to {self.data.n} tokens"
            )
        if (self.data.inputs == "values") != inputs.is_floating_point():
            raise UsageError(f"inputs of type {inputs.dtype}: this network takes {self.data.inputs}")
        if lengths is not None and lengths.shape != inputs.shape[:1]:
            raise UsageError(f"lengths of shape {tuple(lengths.shape)}: must be [{len(inputs)}], one a sequence")
        if lengths is not None and not (1 <= lengths.min() and lengths.max() <= inputs.shape[1]):
            found = f"{lengths.min()} ... {lengths.max()}"
            raise UsageError(f"lengths {found}: must be 1 ... {inputs.shape[1]}, the tokens of the inputs")
