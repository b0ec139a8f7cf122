"""Families of models that attnprobe measures from outside: what arrives, what is recognised, and how exact it is.

Every family is a small random configuration. Its attention calls are compared with independent references: patterns
with those that the model returns with eager attention, score gradients with autograd through materialised scores, and
edits with the same edits of materialised scores.

    python analyses/families.py    # writes analyses/results/families.csv (two minutes on one core)
"""

import functools
import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as tf
from torch import Tensor, nn

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic
from attnprobe.networks.calls import Call, calls, replay_error, watching
from attnprobe.networks.structure import scores_of

N, VOCABULARY, ROWS = 13, 40, 6
TABLE = Path(__file__).parent / "results/families.csv"


@dataclass(frozen=True)
class Family:
    """A small model of an architecture."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...] = ()
    """Shape of one row of real-valued inputs; token ids if it is empty."""
    library: str = "transformers"
    eager: bool = True
    """Whether the model returns its patterns with eager attention."""


EAGER = {"attn_implementation": "eager"}
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    **EAGER,
}
GROUPED = {**BASE, "num_key_value_heads": 1, "pad_token_id": 0}
VISION = {name: value for name, value in BASE.items() if name != "vocab_size"} | {"image_size": 12, "patch_size": 4}
IMAGE = (3, 12, 12)
GPT = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, **EAGER}
TWO_STACKS = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    **EAGER,
}
IDS = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}


def _model(name: str, *sizes: dict[str, Any], **options: Any) -> Callable[[], nn.Module]:
    """Return how to make a Hugging Face model by the name of its class, without ``Model``."""

    def make() -> nn.Module:
        config = getattr(tf, f"{name.removesuffix('Encoder')}Config")
        return getattr(tf, f"{name}Model")(config(**functools.reduce(dict.__or__, sizes, {}) | options))

    return make


class Attention(nn.Module):
    """Attention written out, with a softmax."""

    def __init__(self) -> None:
        """Initialise the maps."""
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        """Attend with 2 heads."""
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return x + (nn.functional.softmax(q @ k.mT / 8**0.5, dim=-1) @ v).transpose(1, 2).flatten(2)


def _torch_encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


def _timm(name: str, **options: Any) -> nn.Module:
    return importlib.import_module("timm").create_model(name, img_size=12, patch_size=4, depth=2, **options)


def _torchvision() -> nn.Module:
    kind = importlib.import_module("torchvision").models.VisionTransformer
    return kind(image_size=12, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)


def _x_transformers(kind: str, **options: Any) -> nn.Module:
    x = importlib.import_module("x_transformers")
    layers = getattr(x, kind)(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
    return x.TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=32, attn_layers=layers)


SEQUENCE = (N, 16)
FAMILIES = {
    "ALBERT": Family(_model("Albert", BASE, embedding_size=8)),
    "BART encoder": Family(lambda: _model("Bart", TWO_STACKS, max_position_embeddings=32)().get_encoder()),
    "BEiT": Family(_model("Beit", VISION, vocab_size=VOCABULARY, use_relative_position_bias=True), IMAGE),
    "BERT": Family(_model("Bert", BASE)),
    "BLOOM": Family(_model("Bloom", GPT, hidden_size=16)),
    "CamemBERT": Family(_model("Camembert", BASE)),
    "CLIP text": Family(_model("CLIPText", BASE, eos_token_id=1, bos_token_id=0)),
    "CLIP vision": Family(_model("CLIPVision", VISION), IMAGE),
    "DeBERTa-v2": Family(_model("DebertaV2", BASE, relative_attention=True, pos_att_type=["p2c", "c2p"])),
    "DeiT": Family(_model("DeiT", VISION), IMAGE),
    "DINOv2": Family(_model("Dinov2", VISION, mlp_ratio=2), IMAGE),
    "DistilBERT": Family(
        _model("DistilBert", EAGER, vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ),
    "ELECTRA": Family(_model("Electra", BASE, embedding_size=8)),
    "ESM": Family(_model("Esm", BASE, position_embedding_type="rotary", pad_token_id=1, mask_token_id=2)),
    "Falcon": Family(_model("Falcon", BASE, bos_token_id=1, eos_token_id=1)),
    "Falcon (ALiBi)": Family(_model("Falcon", BASE, alibi=True, bos_token_id=1, eos_token_id=1), eager=False),
    "Gemma 2": Family(_model("Gemma2", GROUPED, head_dim=8, sliding_window=5)),
    "Gemma 3": Family(_model("Gemma3Text", GROUPED, head_dim=8, sliding_window=5)),
    "GPT-2": Family(_model("GPT2", GPT, n_embd=16, bos_token_id=0, eos_token_id=1)),
    "GPT-J": Family(_model("GPTJ", GPT, n_embd=16, rotary_dim=4, bos_token_id=0, eos_token_id=1)),
    "GPT-Neo": Family(
        _model(
            "GPTNeo",
            EAGER,
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=32,
            attention_types=[[["global", "local"], 1]],
            window_size=5,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
    "GPT-NeoX": Family(_model("GPTNeoX", BASE)),
    "gpt-oss": Family(
        _model("GptOss", GROUPED, head_dim=8, sliding_window=5, num_local_experts=2, num_experts_per_tok=1)
    ),
    "Llama": Family(_model("Llama", GROUPED)),
    "Mistral": Family(_model("Mistral", GROUPED, sliding_window=5)),
    "ModernBERT": Family(_model("ModernBert", BASE, IDS, local_attention=6, global_attn_every_n_layers=2)),
    "MPNet": Family(_model("MPNet", BASE)),
    "MPT": Family(
        _model("Mpt", EAGER, vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=2, max_seq_len=32), eager=True
    ),
    "OPT": Family(
        _model(
            "OPT",
            EAGER,
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            word_embed_proj_dim=16,
            max_position_embeddings=32,
        )
    ),
    "Phi": Family(_model("Phi", BASE)),
    "Qwen3": Family(_model("Qwen3", GROUPED, head_dim=8)),
    "RoBERTa": Family(_model("Roberta", BASE)),
    "RoFormer": Family(_model("RoFormer", BASE)),
    "SigLIP vision": Family(_model("SiglipVision", VISION), IMAGE),
    "Starcoder2": Family(_model("Starcoder2", GROUPED, sliding_window=4)),
    "T5 encoder": Family(
        _model("T5Encoder", EAGER, vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ),
    "ViT": Family(_model("ViT", VISION), IMAGE),
    "Whisper encoder": Family(
        lambda: _model(
            "Whisper", TWO_STACKS, IDS, max_source_positions=N, num_mel_bins=8, decoder_start_token_id=0
        )().get_encoder(),
        (8, 2 * N),
    ),
    "XLM": Family(
        _model("XLM", EAGER, vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32)
    ),
    "XLNet": Family(_model("XLNet", vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32)),
    "written out": Family(lambda: nn.Sequential(Attention(), Attention()), SEQUENCE, "torch", eager=False),
    "nn.TransformerEncoder": Family(_torch_encoder, SEQUENCE, "torch", eager=False),
    "ViT (torchvision)": Family(_torchvision, IMAGE, "torchvision", eager=False),
    "ViT (timm)": Family(lambda: _timm("vit_tiny_patch16_224", embed_dim=16, num_heads=2), IMAGE, "timm", eager=False),
    "BEiT (timm)": Family(
        lambda: _timm("beit_base_patch16_224", embed_dim=16, num_heads=2), IMAGE, "timm", eager=False
    ),
    "EVA-02 (timm)": Family(
        lambda: _timm("eva02_tiny_patch14_224", embed_dim=16, num_heads=2), IMAGE, "timm", eager=False
    ),
    "encoder, rotary": Family(
        lambda: _x_transformers("Encoder", rotary_pos_emb=True), library="x_transformers", eager=False
    ),
    "decoder, ALiBi": Family(
        lambda: _x_transformers("Decoder", alibi_pos_bias=True), library="x_transformers", eager=False
    ),
}


def model_and_inputs(family: Family) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights of a visible size, and its inputs, [row, ...]."""
    torch.manual_seed(0)
    model = family.make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    generator = torch.Generator().manual_seed(1)
    if family.inputs:
        return model, torch.randn(ROWS, *family.inputs, generator=generator)
    return model, torch.randint(5, VOCABULARY, (ROWS, N), generator=generator)


def loss(output: Any, batch: Any = None) -> Tensor:
    """Return a loss of each row, [batch]: the mean square of the output."""
    output = output if isinstance(output, Tensor) else output[0]
    return output.square().flatten(1).mean(1)


def row(name: str, only: tuple[str, ...] = ("positions", "gradients", "interventions")) -> dict[str, Any]:
    """Return the row of a family in the table, with the largest difference from each reference.

    Differences of patterns are absolute. Those of gradients and edits are relative to the largest entry.
    """
    family = FAMILIES[name]
    model, inputs = model_and_inputs(family)
    patterns = _eager_patterns(model, inputs) if family.eager else None
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa" if _is_fused_exact(model, inputs) else "eager")
    probe = ap.network(
        model,
        inputs,
        reference=inputs,
        loss=loss,
        leave_out="special" if family.inputs else "none",
        grid=(3, 3) if family.inputs == IMAGE else None,
    )
    sites = set(probe.facts["sites"])
    found = [pair for pair in calls(model, lambda: model(inputs)) if _name(pair[0]) in sites]
    prefix, suffix = probe.facts["special_tokens"]
    scores = [scores_of(call, prefix, suffix, probe.network.shape.grid) for call, _ in found]
    facts = {
        "family": name,
        "library": family.library,
        "arrives as": "softmax" if found[0][0].softmax else "scaled_dot_product_attention",
        "structure": _structure(probe, [call for call, _ in found], scores),
        "replay": max(replay_error(*pair) for pair in found),
        "pattern": np.nan if patterns is None else _pattern_difference(scores, patterns),
    }
    few = {"sequences": ROWS, "nulls": 0}
    only = tuple(one for one in only if one != "positions" or probe.network.shape.knows_queries)
    results = {measure: getattr(ap, measure)(probe, **few) for measure in ("proximity", *only)}
    tokens = slice(prefix, found[0][0].q.shape[2] - suffix)
    if "gradients" in results:
        facts["gradients"] = _gradient_difference(model, inputs, sites, tokens, results["gradients"])
    if "interventions" in results:
        facts["edits"] = _edit_difference(model, inputs, sites, tokens, results)
    missing = {key for one in results.values() for key in json.loads(one.attrs["left_out"])}
    facts["missing"] = "; ".join(sorted(missing | ({"positions"} - set(results))))
    return facts


def _name(call: Call) -> str:
    return f"{call.site}#{call.turn}" if call.turn else call.site


def _eager_patterns(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(inputs, output_attentions=True).attentions)


def _is_fused_exact(model: Any, inputs: Tensor) -> bool:
    """Return whether a model computes the same with fused as with eager attention.

    Before transformers 5.21, Gemma 2 ignores its softcap with fused attention: another function than the eager one.
    """
    if not getattr(model, "_supports_sdpa", False):
        return False
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            outputs.append(model(inputs)[0])
    return torch.allclose(*outputs, rtol=1e-4, atol=1e-5)


def _structure(probe: Any, found: list[Call], scores: list[Any]) -> str:
    """Return what was recognised in the attention calls, in words."""
    shape, parts = probe.network.shape, []
    if shape.causal:
        parts.append("causal")
    if shape.windows:
        parts.append(f"windows {list(shape.windows)}".replace("None", "-"))
    if any(one.biased for one in scores):
        parts.append("bias by offset")
    if any(call.bias is not None for call in found) and not any(one.biased for one in scores):
        parts.append("dense bias")
    if scores[0].sink is not None:
        parts.append("sink")
    if shape.grid is not None:
        parts.append(f"grid {shape.grid[0]} x {shape.grid[1]}")
    if shape.left_out:
        parts.append(f"{shape.left_out} special")
    return ", ".join(parts) or "all pairs"


def _softmax(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Return the pattern among tokens, with the sink in the normalisation."""
    if sink is None:
        return scores.softmax(-1)
    sinks = sink[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]


def _pattern_difference(scores: list[Any], patterns: list[Tensor]) -> float:
    """Return the largest difference between patterns of the recognised scores and those of the eager model."""
    differences = []
    for one, pattern in zip(scores, patterns, strict=True):
        whole = _softmax(one.dense(), one.sink)
        differences.append(float((whole - pattern[..., : whole.shape[-1]]).abs().max()))
    return max(differences)


def _gradient_difference(model: nn.Module, inputs: Tensor, sites: set[str], tokens: slice, result: Any) -> float:
    """Return the largest relative difference from autograd of the materialised scores, summed by offset."""
    leaves: list[Tensor] = []

    def answer(call: Call, own: Callable[[], Tensor]) -> Tensor:
        if _name(call) not in sites:
            return own()
        scores = call.dense()
        leaves.append(scores if scores.requires_grad else scores.requires_grad_())
        return _softmax(scores, call.sink) @ call.v

    with watching(model, answer):
        gradients = torch.autograd.grad(loss(model(inputs)).sum(), leaves)
    n = tokens.stop - tokens.start
    offset = torch.arange(n) - torch.arange(n)[:, None] + n - 1
    differences = []
    for layer, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        visible = leaf[..., tokens, tokens].isfinite()
        inner = gradient[..., tokens, tokens].double()
        inner = (inner - inner.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)) * visible
        sums = (
            torch.zeros(inner.shape[1], 2 * n - 1).double().index_add_(-1, offset.flatten(), inner.mean(0).flatten(1))
        )
        found = -result["descent_by_offset"].sel(layer=layer, loss="labels").values
        differences.append(np.abs(found - sums.numpy()).max() / np.abs(sums.numpy()).max())
    return float(max(differences))


def _edit_difference(
    model: nn.Module, inputs: Tensor, sites: set[str], tokens: slice, results: dict[str, Any]
) -> float:
    """Return the largest relative difference in the loss under three edits of the materialised scores of all heads."""
    n = tokens.stop - tokens.start
    position = torch.arange(n)
    offset = position - position[:, None] + n - 1
    distance = (offset - n + 1).abs().float()
    profile = results["proximity"]["score_by_offset"].values
    if "grid_score_by_offset" in results["proximity"]:
        columns = results["proximity"].sizes["column_offset"] // 2 + 1
        row, column = position // columns, position % columns
        down, right = row - row[:, None], column - column[:, None]
        distance = (down.square() + right.square()).sqrt()
        profile = results["proximity"]["grid_score_by_offset"].values
        offset = (down + n // columns - 1) * (2 * columns - 1) + right + columns - 1
        profile = profile.reshape(*profile.shape[:2], -1)
    profiles = torch.from_numpy(profile).nan_to_num()[..., offset].float()
    base = float(results["interventions"]["base_loss"])
    differences = []
    for name in ("uniform_attention", "ablate_toeplitz", "impose_proximity"):
        layer = 0

        def answer(call: Call, own: Callable[[], Tensor], name: str = name) -> Tensor:
            nonlocal layer
            if _name(call) not in sites:
                return own()
            scores = call.dense()
            if name == "uniform_attention":
                scores = torch.zeros_like(scores).where(scores.isfinite(), scores)
            else:
                scores[..., tokens, tokens] -= profiles[layer] if name == "ablate_toeplitz" else distance / 2
            layer += 1
            return _softmax(scores, call.sink) @ call.v

        with torch.no_grad(), watching(model, answer):
            expected = float(loss(model(inputs)).mean())
        found = float(results["interventions"]["all_loss"].sel(intervention=name))
        differences.append(abs(found - expected) / max(abs(expected), abs(base)))
    return max(differences)


def available(family: Family) -> bool:
    """Return whether the library of a family can be imported."""
    try:
        importlib.import_module(family.library)
    except (ImportError, RuntimeError):
        return False
    return True


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for name, family in FAMILIES.items():
        if not available(family):
            print(f"{name}: {family.library} cannot be imported")
            continue
        try:
            rows.append(row(name))
        except UsageError as error:
            print(f"{name}: {error}")
            continue
        print(rows[-1])
    write_atomic(TABLE, pd.DataFrame(rows).to_csv(index=False, float_format="%.1e"))


if __name__ == "__main__":
    main()
