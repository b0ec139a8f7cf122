"""Shapes of the weights of a `Transformer`, without building it."""

from attnprobe.config import DataSpec, ModelConfig

BUILT_IN = ("none", "learned", "sinusoidal", "rotary", "alibi", "relative")
"""Position encodings whose weights are known here; those of encodings that users register are not."""
BUCKETS = 32
"""Offset buckets of the relative encoding; `attnprobe.model.position` needs torch."""


def shapes(config: ModelConfig, data: DataSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of ``Transformer(config, data).state_dict()``.

    The weights of a registered position encoding (``position.*``) are omitted.
    """
    width, inputs = config.d_model, data.channels + 1
    named: dict[str, tuple[int, ...]] = {
        "embed.weight": (data.vocabulary + 1, width) if data.inputs == "tokens" else (width, inputs)
    }
    if data.inputs == "values":
        named["embed.bias"] = (width,)
    if config.pooling == "cls":
        named["cls"] = (width,)
    if config.position == "learned":
        named["position.weight"] = (data.n + (config.pooling == "cls"), width)
    if config.position == "relative":
        named["position.weight"] = (config.n_heads, BUCKETS)
    if config.score_bias == "learned":
        rows, columns = data.grid or (1, data.n)
        named["score_bias.weight"] = (config.n_heads, (2 * rows - 1) * (2 * columns - 1))
    for layer in range(config.n_layers):
        named |= {f"blocks.{layer}.{name}": shape for name, shape in _block(config).items()}
    if config.norm_placement == "pre":
        named |= _norm(config, "ln_final")
    named |= _linear("unembed", width, data.vocabulary or data.levels or data.channels)
    return named | _linear("classify", width, data.classes)


def _block(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width = config.d_model
    named = _norm(config, "ln1")
    for name in ("q", "k", "v", "o"):
        named |= _linear(f"attn.{name}", width, width)
    if config.attn_only:
        return named
    named |= _norm(config, "ln2")
    return named | _linear("mlp.into", width, config.d_mlp) | _linear("mlp.out", config.d_mlp, width)


def _norm(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    parts = {"layer": ("weight", "bias"), "rms": ("weight",), "none": ()}[config.norm]
    return {f"{name}.{part}": (config.d_model,) for part in parts}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
