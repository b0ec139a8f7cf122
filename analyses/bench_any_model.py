"""Cost of measuring a PyTorch model, compared with its plain forward pass.

The models are Hugging Face encoders with random weights, 2 layers, width 384 and 12 heads, in float32, on one sequence
of n random tokens: a BERT, without any mask, and a ModernBERT whose second layer has a sliding window of 128 tokens,
passed as an n x n mask. Torch uses one thread. The ways to run a model (column ``way``) are:

- plain: a forward pass with fused attention (``sdpa``);
- watching: the same with its attention calls intercepted, and nothing computed from them;
- statistics: the same with score and pattern statistics of every layer, which `proximity` needs once per condition;
- eager: a forward pass that returns the patterns, as n x n arrays (``eager`` with ``output_attentions``);
- loading: `attnprobe.network`, once per model, which finds the attention calls of two sequences and checks that they
  reproduce z.

All ways of a model and a length are timed in one process, alternating, up to 15 times within a number of seconds each.
Times are medians of CPU time, which other processes on the machine affect less than elapsed time. Ratios are medians
over turns of the ratio to the plain forward pass of the same turn. Peak memory is the maximum that a new process holds
beyond the model and its inputs, after a call with a short sequence. Calls for different models and lengths are
independent: the rows of the committed table for n = 4,096 come from one call per model.

    python analyses/bench_any_model.py                                 # 6 minutes on one core; 4 GiB
    python analyses/bench_any_model.py --models BERT --lengths 512     # 40 seconds
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
import tyro
from bench_statistics import machine, peak_memory
from torch import Tensor, nn

import attnprobe as ap
from attnprobe.files import write_atomic
from attnprobe.networks.base import Probe, read
from attnprobe.networks.calls import watching
from attnprobe.statistics import PatternStatistics, ScoreStatistics, pattern_statistics, score_statistics
from attnprobe.training.objectives import Batch

VOCABULARY, WINDOW = 1000, 128
SHORT = 32
"""Tokens of the call before peak memory is measured."""
TURNS = 15
ROWS = 4
"""Number of inputs of `attnprobe.network`, which checks two of them."""


def main(
    models: tuple[str, ...] = ("BERT", "ModernBERT"),
    lengths: tuple[int, ...] = (512, 4096),
    only: tuple[str, ...] = (),
    seconds: float = 8.0,
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        models: Models to measure: BERT, ModernBERT or both.
        lengths: Tokens per sequence.
        only: Ways to compare with the plain forward pass; by default all.
        seconds: Maximum CPU seconds per model, length and way; each way has at least one turn.
        out: Path for writing the table as CSV as well.
    """
    torch.set_num_threads(1)
    hardware = f"{machine('cpu')}; torch {torch.__version__}, transformers {transformers.__version__}, 1 thread"
    print(hardware)
    rows = []
    for kind in models:
        for n in lengths:
            rows += compare(kind, n, only or tuple(WAYS), seconds)
            print(f"{kind} {n}", file=sys.stderr)
    results = pd.DataFrame(rows)
    print(results.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    if out is not None:
        write_atomic(out, results.assign(machine=hardware).to_csv(index=False))


def compare(kind: str, n: int, only: tuple[str, ...], seconds: float) -> list[dict[str, object]]:
    """Return one row per way to run a model at one length."""
    functions = {way: make(kind, n) for way, make in WAYS.items() if way == "plain" or way in only}
    first = {way: cpu_seconds(function) for way, function in functions.items()}
    times: dict[str, list[float]] = {way: [] for way in functions}
    for turn in range(TURNS):
        for way, function in functions.items():
            if turn == 0 or turn * first[way] < seconds:
                times[way].append(first[way] if first[way] > seconds else cpu_seconds(function))
    return [
        {
            "model": kind,
            "n": n,
            "way": way,
            "CPU seconds": statistics.median(turns),
            "over plain": statistics.median(x / plain for x, plain in zip(turns, times["plain"], strict=False)),
            "peak MiB": in_its_own_process(kind, n, way),
            "turns": len(turns),
        }
        for way, turns in times.items()
    ]


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_its_own_process(kind: str, n: int, way: str) -> float:
    """Return the peak memory in MiB of a way to run a model, in a new process."""
    code = (
        "import sys\n"
        "folder, kind, n, way = sys.argv[1:]\n"
        "sys.path.insert(0, folder)\n"
        "import bench_any_model\n"
        "print(bench_any_model.peak(kind, int(n), way))"
    )
    arguments = [str(Path(__file__).parent), kind, str(n), way]
    process = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True)
    return float(process.stdout)


def peak(kind: str, n: int, way: str) -> float:
    """Return the peak memory in MiB of a way to run a model, in this process."""
    torch.set_num_threads(1)
    WAYS[way](kind, SHORT)()
    return peak_memory(WAYS[way](kind, n), "cpu")


# --- models


def bert(n: int) -> transformers.PretrainedConfig:
    """Return the configuration of a BERT."""
    return transformers.BertConfig(**sizes(n))


def modern_bert(n: int) -> transformers.PretrainedConfig:
    """Return the configuration of a ModernBERT with one full and one sliding-window layer."""
    options = sizes(n)
    options |= {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    options |= {"global_attn_every_n_layers": 2, "local_attention": WINDOW}
    return transformers.ModernBertConfig(**options)


MODELS: dict[str, Callable[[int], transformers.PretrainedConfig]] = {"BERT": bert, "ModernBERT": modern_bert}


def sizes(n: int) -> dict[str, Any]:
    """Return the sizes of a model."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "num_hidden_layers": 2,
        "intermediate_size": 1536,
        "max_position_embeddings": n,
    }


def build(kind: str, n: int, attention: str = "sdpa") -> nn.Module:
    """Return a model in evaluation mode; its weights do not depend on the implementation of attention."""
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(MODELS[kind](n), attn_implementation=attention).eval()


def tokens(n: int) -> Tensor:
    """Return one sequence of random tokens, [1, n]; token 0 is special."""
    return torch.randint(1, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))


# --- ways to run a model: functions from a model's name and a length to a function that runs it


def plain(kind: str, n: int) -> Callable[[], Tensor]:
    """Run the forward pass."""
    model, ids = build(kind, n), tokens(n)

    @torch.no_grad()
    def run() -> Tensor:
        return model(input_ids=ids).last_hidden_state

    return run


def watched(kind: str, n: int) -> Callable[[], Tensor]:
    """Run the forward pass with its attention calls intercepted."""
    model, ids = build(kind, n), tokens(n)

    @torch.no_grad()
    def run() -> Tensor:
        with watching(model, lambda call, own: own()):
            return model(input_ids=ids).last_hidden_state

    return run


def streamed(kind: str, n: int) -> Callable[[], list[tuple[ScoreStatistics, PatternStatistics]]]:
    """Run the forward pass with the statistics of every layer."""
    network = ap.network(build(kind, n), tokens(n).expand(ROWS, n), leave_out="none").network
    batch = Batch(torch.zeros(1, n, dtype=torch.long), torch.zeros(1, dtype=torch.long))  # row 0, one label

    def run() -> list[tuple[ScoreStatistics, PatternStatistics]]:
        layers: list[tuple[ScoreStatistics, PatternStatistics]] = []
        read(
            network,
            batch,
            "labels",
            lambda heads: layers.append((score_statistics(heads.scores), pattern_statistics(heads.scores))),
        )
        return layers

    return run


def eager(kind: str, n: int) -> Callable[[], tuple[Tensor, ...]]:
    """Run the forward pass and return the pattern of every layer, [batch, head, query, key]."""
    model, ids = build(kind, n, "eager"), tokens(n)

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        return model(input_ids=ids, output_attentions=True).attentions

    return run


def loading(kind: str, n: int) -> Callable[[], Probe]:
    """Find and check the attention calls."""
    model, ids = build(kind, n), tokens(n).expand(ROWS, n)
    return lambda: ap.network(model, ids, leave_out="none")


WAYS: dict[str, Callable[[str, int], Callable[[], object]]] = {
    "plain": plain,
    "watching": watched,
    "statistics": streamed,
    "eager": eager,
    "loading": loading,
}


if __name__ == "__main__":
    tyro.cli(main)
