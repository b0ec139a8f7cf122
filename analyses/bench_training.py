"""Cost of a training step, compared with the same network without hooks and with alternatives.

One step of masked-token training (forward, backward, gradient clipping, AdamW) of a network with 3 layers, d_model 64,
4 heads and d_mlp 128, on batches of 8,192 random token ids, half of them masked, in sequences of n = 256, 1,024 and
4,096. In every turn each implementation takes one step, in random order, for up to 200 turns or one minute. Medians are
reported, and the mean of the ratio within a turn with its 95 % interval. The implementations (column ``way``) are:

- attnprobe: the network with its hooks, as run by `attnprobe train`;
- plain: the same network, weights and order of operations in plain torch, with fused attention and no hooks;
- nn.TransformerEncoder: torch's own encoder, with the same size and setting;
- TransformerLens: its bridge to a BERT of the same size from Hugging Face transformers, with default boot options
  (scores and patterns are always materialised, so the longest n is left out).

With ``--compiled`` there is also the plain network under `torch.compile`, loss included; the optimiser is fused in all
of them. It takes 40 to 50 s to compile, and steps were 1.05 times (n = 32, 32 sequences) and 1.08 times (n = 256, 8
sequences) as fast as without on one core, so `attnprobe train` does not compile.

The table also reports *activations*, the memory that a step keeps for its backward pass, per token; *data*, the
fraction of a step spent drawing the batch, its mask and its tensors; and the fraction of the machine's rate of matrix
products (1024 x 1024) that the arithmetic of a step reaches.

    python analyses/bench_training.py                      # 6 minutes on 2 cores
    python analyses/bench_training.py --compiled --lengths 32 --tokens 1024
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
from attnprobe.files import write_atomic
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
"""Longest sequence for the implementation that materialises n x n arrays."""


def main(
    lengths: tuple[int, ...] = (256, 1024, 4096),
    turns: int = 200,
    seconds: float = 60.0,
    device: str = "cpu",
    precision: str = "float32",
    tokens: int = TOKENS,
    compiled: bool = False,
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        lengths: Tokens per sequence.
        turns: Maximum number of turns per length.
        seconds: Maximum seconds per length.
        device: Device to run on: cpu or cuda.
        precision: float32, or bf16 for autocast.
        tokens: Tokens per batch.
        compiled: Also measure the plain network under `torch.compile`.
        out: Path for writing the table as CSV as well.
    """
    hardware = machine(device)
    rate = matrix_rate(device)
    print(f"{hardware}; matrix products: {rate / 1e9:.3g} GFLOP/s")
    rows = []
    for n in lengths:
        rows += compare(n, turns, seconds, torch.device(device), precision, rate, tokens, compiled)
        print(f"n = {n}", file=sys.stderr)
    results = pd.DataFrame(rows)
    print(results.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep=""))
    if out is not None:
        write_atomic(out, results.assign(machine=hardware).to_csv(index=False))


def compare(
    n: int,
    turns: int,
    seconds: float,
    device: torch.device,
    precision: str,
    rate: float,
    tokens: int,
    compiled: bool,
) -> list[dict[str, object]]:
    """Return one row per implementation at one length."""
    config = TrainConfig(mask_probability=MASK_SHARE, batch_size=max(1, tokens // n), model=MODEL)
    rng = np.random.default_rng(n)
    inputs = rng.integers(VOCABULARY, size=(4 * config.batch_size, n)).astype(np.uint8)
    split = Split(inputs, np.zeros(len(inputs), dtype=np.int64))
    steps = {name: stepper(forward, model) for name, (model, forward) in ways(n, device, compiled).items()}
    step_seconds: dict[str, list[float]] = {name: [] for name in steps}
    data_seconds: list[float] = []
    began = time.perf_counter()
    for turn in range(1, turns + 1):
        start = time.perf_counter()
        sample = draw(config, split, "masked", turn)
        batch, mask = take(split, sample.rows, sample.mask, device)
        data_seconds.append(time.perf_counter() - start)
        for name in rng.permutation(
            list(steps)
        ):  # random order, since each implementation changes the caches for the next
            step_seconds[name].append(timed(partial(steps[name], batch, mask, precision), device))
        if turn == 1:  # a warm-up
            began = time.perf_counter()
        if time.perf_counter() - began > seconds:
            break
    rows = []
    for name, step in steps.items():
        median = statistics.median(step_seconds[name][1:] or step_seconds[name])
        ratios = Moments()
        ratios.add(
            np.array(step_seconds[name][1:]) / np.array(step_seconds["attnprobe"][1:])
        )  # the first turn is a warm-up
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
                "data share": statistics.median(data_seconds) / median if name == "attnprobe" else None,
                "share of matrix rate": operations(len(batch.inputs), n) / median / rate,
                "turns": len(data_seconds),
            }
        )
    return rows


Forward = Callable[[Batch, Tensor], Tensor]
Step = Callable[[Batch, Tensor, str], None]


def stepper(forward: Forward, model: nn.Module) -> Step:
    """Return a function that takes one training step, given a function that computes the loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch, mask: Tensor, precision: str) -> None:
        optimiser.zero_grad()
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(batch, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def ways(n: int, device: torch.device, compiled: bool = False) -> dict[str, tuple[nn.Module, Forward]]:
    """Return the networks of the same size, each with a function that computes its masked-token loss."""
    data = DataSpec(n=n, inputs="tokens", classes=CLASSES, vocabulary=VOCABULARY)
    ours = Transformer(MODEL, data).to(device)
    plain = Plain(ours).to(device)
    encoder = Encoder(n).to(device)
    networks: dict[str, tuple[nn.Module, Forward]] = {
        "attnprobe": (ours, lambda batch, mask: evaluate(ours, batch, "masked", mask).mean),
        "plain": (plain, lambda batch, mask: masked_loss(plain, batch, mask)),
        "nn.TransformerEncoder": (encoder, lambda batch, mask: masked_loss(encoder, batch, mask)),
    }
    if n <= EXPLICIT:
        bridge = bert(n, device)
        networks["TransformerLens"] = (bridge, lambda batch, mask: masked_loss(bridge, batch, mask))
    if compiled:
        copy = Plain(ours).to(device)
        networks["plain, compiled"] = (copy, torch.compile(lambda batch, mask: masked_loss(copy, batch, mask)))
    return networks


def masked_loss(model: nn.Module, batch: Batch, mask: Tensor) -> Tensor:
    """Return the cross-entropy of the masked tokens; the mask is an additional token id."""
    logits = model(batch.inputs.masked_fill(mask, VOCABULARY))[..., :VOCABULARY]
    # Shapes do not depend on the mask, so that torch.compile can compile the loss as a whole.
    return F.cross_entropy(logits.flatten(0, 1), batch.inputs.masked_fill(~mask, -100).flatten())


class Plain(nn.Module):
    """`attnprobe.Transformer` with the configuration `MODEL`, written without hooks, with the same initial weights."""

    def __init__(self, of: Transformer) -> None:
        """Copy linear maps and norms."""
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
    copy = nn.Linear(of.in_features, of.out_features)
    copy.load_state_dict(of.state_dict())
    return copy


def layer_norm(of: nn.Module) -> nn.LayerNorm:
    """Return torch's LayerNorm with the weights of attnprobe's."""
    copy = nn.LayerNorm(MODEL.d_model)
    copy.load_state_dict(of.state_dict())
    return copy


class Encoder(nn.Module):
    """Torch's TransformerEncoder with embeddings and an unembedding."""

    def __init__(self, n: int) -> None:
        """Build a pre-norm encoder without dropout."""
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
    """Return TransformerLens's bridge to a BERT of the same size, with random weights."""
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
    """Return the seconds of a call, including the work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept(step: Step, batch: Batch, mask: Tensor, precision: str) -> int:
    """Return the bytes that a step keeps for its backward pass, excluding weights."""
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step(batch, mask, precision)
    return sum(stored.values())


def operations(sequences: int, n: int) -> int:
    """Return the floating-point operations of the matrix products and the attention of a step.

    A multiply-add counts as two operations; the backward pass has twice as many as the forward pass.
    """
    d = MODEL.d_model
    maps = MODEL.n_layers * (4 * d * d + 2 * d * MODEL.d_mlp) + d * VOCABULARY
    attention = MODEL.n_layers * 2 * n * d
    return 3 * 2 * sequences * n * (maps + attention)


def matrix_rate(device: str) -> float:
    """Return the floating-point operations per second of 1024 x 1024 matrix products."""
    a, b = torch.randn(2, 1024, 1024, device=device)
    best = min(timed(lambda: torch.mm(a, b, out=torch.empty_like(a)), torch.device(device)) for _ in range(30))
    return 2 * 1024**3 / best


def machine(device: str) -> str:
    """Return the hardware, torch version and number of threads."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}; torch {torch.__version__}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    tyro.cli(main)
