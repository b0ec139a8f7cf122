"""What does a training step cost, beside the same network without hooks, and beside what others would use?

One step of masked-token training (forward, backward, gradient clipping, AdamW) of a network of 3 layers, d_model 64, 4
heads and d_mlp 128 on batches of 8,192 random token ids, half of them hidden, in sequences of n = 256, 1,024 and 4,096.
Every way takes one step in a turn, in random order, up to 200 turns for a minute; medians are shown, and of the ratio
within a turn the mean and its 95 % interval. The ways:

- attnprobe: the network with its hooks, as `attnprobe train` runs it;
- plain: the same network, weights and order of operations in plain torch, with fused attention and no hooks;
- nn.TransformerEncoder: torch's own, of the same size, in the same setting;
- TransformerLens: its bridge to a BERT of the same size of Hugging Face's transformers, as it boots it (scores and
  patterns are always made, so not at the longest n).

Beside it: *activations*, what a step keeps for its backward pass, a token; *data*, the share of a step that goes into
drawing the batch, its mask and its tensors; and the share of the machine's own rate of matrix products (1024 x 1024)
that the step's arithmetic reaches.

    python analyses/bench_training.py                      # 6 minutes on 2 cores
    python analyses/bench_training.py --device cuda --out analyses/results/bench_training_gpu.csv
"""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from attnprobe.config import DataSpec, ModelConfig, TrainConfig
from attnprobe.model.attention import Attention
from attnprobe.model.transformer import Transformer
from attnprobe.statistics import Moments
from attnprobe.tasks import Split
from attnprobe.training.batches import draw, take
from attnprobe.training.objectives import Batch, evaluate

MODEL = ModelConfig(n_layers=3, d_model=64, n_heads=4, position="sinusoidal", init_std=0.1)
VOCABULARY, CLASSES = 16, 2
TOKENS = 8192
MASK_SHARE = 0.5
EXPLICIT = 1024
"""Longest sequence for the way that makes n x n arrays."""


def main(
    lengths: tuple[int, ...] = (256, 1024, 4096),
    turns: int = 200,
    seconds: float = 60.0,
    device: str = "cpu",
    precision: str = "float32",
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        lengths: Tokens in a sequence.
        turns: Most turns a length.
        seconds: After so many the turns of a length end.
        device: Where to run: cpu or cuda.
        precision: float32, or bf16 for autocast.
        out: Where to write the table as CSV too.
    """
    where = machine(device)
    rate = matrix_rate(device)
    print(f"{where}; products of matrices: {rate / 1e9:.3g} GFLOP/s")
    rows = []
    for n in lengths:
        rows += compare(n, turns, seconds, torch.device(device), precision, rate)
        print(f"n = {n}", file=sys.stderr)
    found = pd.DataFrame(rows)
    print(found.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep=""))
    if out is not None:
        found.assign(machine=where).to_csv(out, index=False)


def compare(
    n: int, turns: int, seconds: float, device: torch.device, precision: str, rate: float
) -> list[dict[str, object]]:
    """Return a row for each way at one length."""
    config = TrainConfig(mask_probability=MASK_SHARE, batch_size=max(1, TOKENS // n), model=MODEL)
    rng = np.random.default_rng(n)
    inputs = rng.integers(VOCABULARY, size=(4 * config.batch_size, n)).astype(np.uint8)
    split = Split(inputs, np.zeros(len(inputs), dtype=np.int64))
    steps = {name: stepper(forward, model) for name, (model, forward) in ways(n, device).items()}
    took: dict[str, list[float]] = {name: [] for name in steps}
    loading: list[float] = []
    begun = time.perf_counter()
    for turn in range(1, turns + 1):
        start = time.perf_counter()
        drawn = draw(config, split, "masked", turn)
        batch, mask = take(split, drawn.rows, drawn.mask, device)
        loading.append(time.perf_counter() - start)
        for name in rng.permutation(list(steps)):  # what a way leaves in caches is not always the next one's burden
            took[name].append(timed(partial(steps[name], batch, mask, precision), device))
        if time.perf_counter() - begun > seconds:
            break
    rows = []
    for name, step in steps.items():
        median = statistics.median(took[name][1:] or took[name])
        ratios = Moments()
        ratios.add(np.array(took[name][1:]) / np.array(took["attnprobe"][1:]))  # the first turn warms up
        low, high = ratios.interval().tolist()
        rows.append(
            {
                "n": n,
                "way": name,
                "milliseconds": 1e3 * median,
                "over attnprobe": float(ratios.mean),
                "low": low,
                "high": high,
                "activations KiB a token": kept(step, batch, mask, precision) / 1024 / (len(batch.inputs) * n),
                "data share": statistics.median(loading) / median if name == "attnprobe" else None,
                "share of matrix rate": operations(len(batch.inputs), n) / median / rate,
                "turns": len(loading),
            }
        )
    return rows


Forward = Callable[[Batch, Tensor], Tensor]
Step = Callable[[Batch, Tensor, str], None]


def stepper(forward: Forward, model: nn.Module) -> Step:
    """Return what one step of training does, given what makes the loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch, mask: Tensor, precision: str) -> None:
        optimiser.zero_grad()
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(batch, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def ways(n: int, device: torch.device) -> dict[str, tuple[nn.Module, Forward]]:
    """Return the networks of the same size, each with what makes the masked-token loss with it."""
    data = DataSpec(n=n, inputs="tokens", classes=CLASSES, vocabulary=VOCABULARY)
    ours = Transformer(MODEL, data).to(device)
    plain = Plain(ours).to(device)
    encoder = Encoder(n).to(device)
    found: dict[str, tuple[nn.Module, Forward]] = {
        "attnprobe": (ours, lambda batch, mask: evaluate(ours, batch, "masked", mask).mean),
        "plain": (plain, lambda batch, mask: masked_loss(plain, batch, mask)),
        "nn.TransformerEncoder": (encoder, lambda batch, mask: masked_loss(encoder, batch, mask)),
    }
    if n <= EXPLICIT:
        bridge = bert(n, device)
        found["TransformerLens"] = (bridge, lambda batch, mask: masked_loss(bridge, batch, mask))
    return found


def masked_loss(model: nn.Module, batch: Batch, mask: Tensor) -> Tensor:
    """Return the cross-entropy of the hidden tokens, which the network sees as one more id."""
    logits = model(batch.inputs.masked_fill(mask, VOCABULARY))
    return F.cross_entropy(logits[mask][:, :VOCABULARY], batch.inputs[mask])


class Plain(nn.Module):
    """What `attnprobe.Transformer` computes for `MODEL`, written down without hooks; it starts from its weights."""

    def __init__(self, of: Transformer) -> None:
        """Copy the maps and norms."""
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(of.embed.weight.detach().clone(), freeze=False)
        self.unembed = linear(of.unembed)
        self.register_buffer("positions", of.position.embed(of.data.n))
        self.layers = nn.ModuleList()
        for layer in range(MODEL.n_layers):
            block = of.block(layer)
            attention: Attention = block.attn
            maps = [attention.q, attention.k, attention.v, attention.o, block.mlp.into, block.mlp.out]
            norms = [layer_norm(block.ln1), layer_norm(block.ln2)]
            self.layers.append(nn.ModuleList([*map(linear, maps), *norms]))
        self.norm = layer_norm(of.ln_final)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the token logits."""
        x = self.embed(inputs) + self.positions
        for q, k, v, o, into, out, first, second in self.layers:
            y = first(x)
            heads = (map_(y).unflatten(-1, (MODEL.n_heads, -1)).transpose(1, 2) for map_ in (q, k, v))
            x = x + o(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
            x = x + out(F.gelu(into(second(x))))
        return self.unembed(self.norm(x))


def linear(of: nn.Linear) -> nn.Linear:
    """Return a copy of a linear map."""
    made = nn.Linear(of.in_features, of.out_features)
    made.load_state_dict(of.state_dict())
    return made


def layer_norm(of: nn.Module) -> nn.LayerNorm:
    """Return torch's own LayerNorm with the weights of ours."""
    made = nn.LayerNorm(MODEL.d_model)
    made.load_state_dict(of.state_dict())
    return made


class Encoder(nn.Module):
    """Torch's TransformerEncoder with embeddings and a map to the ids."""

    def __init__(self, n: int) -> None:
        """Make a pre-norm encoder without dropout."""
        super().__init__()
        d = MODEL.d_model
        self.embed, self.positions = nn.Embedding(VOCABULARY + 1, d), nn.Parameter(torch.zeros(n, d))
        layer = nn.TransformerEncoderLayer(
            d, MODEL.n_heads, MODEL.d_mlp, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, MODEL.n_layers, nn.LayerNorm(d), enable_nested_tensor=False)
        self.unembed = nn.Linear(d, VOCABULARY)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the token logits."""
        return self.unembed(self.encoder(self.embed(inputs) + self.positions))


def bert(n: int, device: torch.device) -> nn.Module:
    """Return TransformerLens's bridge to a BERT of the same size with random weights."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=MODEL.d_model,
        num_hidden_layers=MODEL.n_layers,
        num_attention_heads=MODEL.n_heads,
        intermediate_size=MODEL.d_mlp,
        max_position_embeddings=n,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=["BertForMaskedLM"],
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=BertForMaskedLM(config), device=device)


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that some work takes, a GPU's included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept(step: Step, batch: Batch, mask: Tensor, precision: str) -> int:
    """Return the bytes that a step keeps for its backward pass, without its weights."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step(batch, mask, precision)
    return sum(seen.values())


def operations(sequences: int, n: int) -> int:
    """Return the floating-point operations of the matrix products and the attention of a step.

    Two a multiply-add; the backward pass has twice those of the forward pass.
    """
    d = MODEL.d_model
    maps = MODEL.n_layers * (4 * d * d + 2 * d * MODEL.d_mlp) + d * VOCABULARY
    attention = MODEL.n_layers * 2 * n * d
    return 3 * 2 * sequences * n * (maps + attention)


def matrix_rate(device: str) -> float:
    """Return how many floating-point operations a second products of 1024 x 1024 matrices reach."""
    a, b = torch.randn(2, 1024, 1024, device=device)
    best = min(timed(lambda: torch.mm(a, b, out=torch.empty_like(a)), torch.device(device)) for _ in range(30))
    return 2 * 1024**3 / best


def machine(device: str) -> str:
    """Return what the numbers were measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}; torch {torch.__version__}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    tyro.cli(main)
