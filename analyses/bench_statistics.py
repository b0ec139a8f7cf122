"""Time and peak memory of the attention statistics, compared with materialised arrays and fused attention.

Each benchmark uses one sequence, 4 heads, d_head 32 and random float32 queries, keys, values and gradients, with n from
256 to 65,536. All implementations at a length are timed in one process, alternating, up to 15 times within 10 seconds.
Times are medians, and ratios medians over turns of the ratio to the engine in the same turn. The implementations
(column ``way``) are:

- engine: `attnprobe.statistics`, with numba (``pip install -e ".[fast]"``), which patterns and gradients use;
- engine in torch: the same without numba, patterns and gradients only;
- materialised: the same numbers from n x n arrays in plain torch, in float32, one head at a time;
- fused: `scaled_dot_product_attention`, forward for patterns, forward and backward for gradients: the cost of *using*
  the attention that the statistics describe;
- TransformerLens: only *retrieving* the pattern of one layer of the same size, with ``run_with_cache``.

Peak memory is the maximum that the process (on a GPU: the allocator) holds beyond its inputs. The limit is the time of
the multiply-adds and exponentials alone at this machine's rates, which are measured first: matrix products of
1024 x 1024 and exponentials of an array in cache.

    python analyses/bench_statistics.py                  # 8 minutes on 2 cores; 5 GiB
    python analyses/bench_statistics.py --longest 4096   # 20 seconds
"""

import ctypes
import gc
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from attnprobe.files import write_atomic
from attnprobe.statistics import Scores, compiled, gradient_statistics, pattern_statistics, score_statistics

HEADS, D_HEAD = 4, 32
LENGTHS = (256, 1024, 4096, 16_384, 65_536)
MATERIALISED = 4096
"""Longest sequence that is materialised: 64 MiB per array and head."""
CACHED = 4096
"""Longest sequence whose pattern is cached with TransformerLens."""


def main(longest: int = 65_536, device: str = "cpu", out: Path | None = None) -> None:
    """Print the table.

    Args:
        longest: Longest sequence length.
        device: Device to run on: cpu or cuda.
        out: Path for writing the table as CSV as well.
    """
    rates = measured_rates(device)
    hardware = f"{machine(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(hardware)
    print(", ".join(f"{rate / 1e9:.3g} G{operation}/s" for operation, rate in rates.items()))
    rows = []
    for n in [n for n in LENGTHS if n <= longest]:
        q, k, v, dz = torch.randn(4, 1, HEADS, n, D_HEAD, generator=torch.Generator().manual_seed(n)).to(device)
        for name, ways in comparisons(q, k, v, dz).items():
            rows += table(name, n, ways, limit(name, n, rates), device)
            print(f"{n} {name}", file=sys.stderr)
    results = pd.DataFrame(rows)
    print(results.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep=""))
    if out is not None:
        write_atomic(out, results.assign(machine=hardware).to_csv(index=False))


def comparisons(q: Tensor, k: Tensor, v: Tensor, dz: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """Return the implementations to compare for each kind of statistic; the first is the engine's."""
    n = q.shape[2]
    scores = Scores(q, k)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def fused_backward() -> object:
        return torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, dz)

    ways: dict[str, dict[str, Callable[[], object]]] = {
        "score": {"engine": lambda: score_statistics(scores)},
        "pattern": {
            "engine": lambda: pattern_statistics(scores),
            "engine in torch": without_numba(lambda: pattern_statistics(scores)),
            "fused": lambda: F.scaled_dot_product_attention(q, k, v),
        },
        "gradient": {
            "engine": lambda: gradient_statistics(scores, v, dz),
            "engine in torch": without_numba(lambda: gradient_statistics(scores, v, dz)),
            "fused": fused_backward,
        },
    }
    if n <= MATERIALISED:
        ways["score"]["materialised"] = lambda: by_head(score_materialised, q, k)
        ways["pattern"]["materialised"] = lambda: by_head(pattern_materialised, q, k)
        ways["gradient"]["materialised"] = lambda: by_head(gradient_materialised, q, k, v, dz)
    if n <= CACHED:
        ways["pattern"]["TransformerLens"] = cached_pattern(n, q.device)
    return ways


def without_numba(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function that computes the same with torch only."""

    def run() -> object:
        smallest, compiled.SMALLEST = compiled.SMALLEST, sys.maxsize
        try:
            return function()
        finally:
            compiled.SMALLEST = smallest

    return run


def by_head(function: Callable[..., object], *tensors: Tensor) -> list[object]:
    """Return the result of a function for each head."""
    return [function(*(x[0, head] for x in tensors)) for head in range(HEADS)]


def score_materialised(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Return means, sums of squares and row-centred sums by offset of the score."""
    s = q @ k.T / math.sqrt(D_HEAD)
    square, rows, columns = s.square().sum(), s.mean(1, keepdim=True), s.mean(0)
    s -= rows
    row_centred, offsets = s.square().sum(), sums_by_offset(s)
    s -= s.mean(0)
    return square, rows, columns, row_centred, offsets, s.square().sum()


def pattern_materialised(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Return the pattern's sums by offset and by key and its entropy."""
    a = (q @ k.T / math.sqrt(D_HEAD)).softmax(-1)
    return sums_by_offset(a), a.sum(0), torch.special.entr(a).sum()


def gradient_materialised(q: Tensor, k: Tensor, v: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    """Return the score gradient's sums by offset and by key and its sum of squares."""
    a = (q @ k.T / math.sqrt(D_HEAD)).softmax(-1)
    gradient = dz @ v.T
    gradient -= (a * gradient).sum(-1, keepdim=True)
    gradient *= a
    return sums_by_offset(gradient), gradient.sum(0), gradient.square().sum()


def sums_by_offset(x: Tensor) -> Tensor:
    """Return the sums along the diagonals of a square matrix, by reshaping padded rows to another width."""
    n = len(x)
    return F.pad(x.flip(0), (0, n)).flatten()[: n * (2 * n - 1)].view(n, 2 * n - 1).sum(0)


def cached_pattern(n: int, device: torch.device) -> Callable[[], object]:
    """Return a function that caches the pattern of a native one-layer TransformerLens model of this size."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot

    sizes = {"n_layers": 1, "n_heads": HEADS, "d_head": D_HEAD, "d_model": HEADS * D_HEAD, "n_ctx": n, "d_vocab": 8}
    model = boot(TransformerBridgeConfig(**sizes, d_mlp=1, act_fn="relu", seed=0), device=device)
    tokens = torch.arange(n, device=device)[None] % 8

    @torch.no_grad()
    def cached() -> object:
        return model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))

    return cached


def table(
    name: str, n: int, ways: dict[str, Callable[[], object]], least: float, device: str
) -> list[dict[str, object]]:
    """Return one row per implementation: median time, peak memory, and time relative to the engine and the limit."""
    first, memory = {}, {}
    for way, function in ways.items():
        start = time.perf_counter()
        memory[way] = peak_memory(function, device)
        first[way] = time.perf_counter() - start
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(15):
        for way, function in ways.items():
            if turn * first[way] < 10:  # 10 seconds per implementation, and at least one turn
                times[way].append(first[way] if first[way] > 10 else timed(function, device))
    median = {way: statistics.median(seconds) for way, seconds in times.items()}
    return [
        {
            "statistics": name,
            "n": n,
            "way": way,
            "milliseconds": 1e3 * seconds,
            "over engine": statistics.median(x / own for x, own in zip(times[way], times["engine"], strict=False)),
            "lowest ratio": min(x / own for x, own in zip(times[way], times["engine"], strict=False)),
            "highest ratio": max(x / own for x, own in zip(times[way], times["engine"], strict=False)),
            "peak MiB": memory[way],
            "limit ms": 1e3 * least if way == "engine" else math.nan,
            "over limit": seconds / least if way == "engine" else math.nan,
        }
        for way, seconds in median.items()
    ]


def limit(name: str, n: int, rates: dict[str, float]) -> float:
    """Return the minimum seconds for the multiply-adds and exponentials of the engine's statistics."""
    length = 2 * n
    fft = (2 * D_HEAD + 1) * 1.25 * length * math.log2(length)  # a real transform: 2.5 n log2 n operations
    return (
        HEADS
        * {
            "score": (fft + 2 * n * D_HEAD**2) / rates["multiply-add float64"],
            "pattern": n * n * (D_HEAD / rates["multiply-add float32"] + 1 / rates["exp float32"]),
            "gradient": n * n * (2 * D_HEAD / rates["multiply-add float32"] + 1 / rates["exp float32"]),
        }[name]
    )


def measured_rates(device: str) -> dict[str, float]:
    """Return the machine's multiply-adds and exponentials per second."""
    rates = {}
    for dtype, label in ((torch.float32, "float32"), (torch.float64, "float64")):
        a, b = torch.randn(2, 1024, 1024, dtype=dtype, device=device)
        rates[f"multiply-add {label}"] = 1024**3 / min(timed(lambda a=a, b=b: a @ b, device) for _ in range(20))
    x = torch.randn(2**16 if device == "cpu" else 2**26, device=device)
    y = torch.empty_like(x)
    rates["exp float32"] = len(x) / min(timed(lambda: torch.exp(x, out=y), device) for _ in range(200))
    return rates


def timed(function: Callable[[], object], device: str) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(function: Callable[[], object], device: str) -> float:
    """Return the peak memory of a call in MiB, beyond the memory held before it; NaN if it cannot be measured."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if platform.system() != "Linux":
        function()
        return math.nan
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # prevents reuse of memory from earlier calls
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    function()
    return (status("VmHWM") - before) / 2**10


def status(field: str) -> int:
    """Return a memory field of the process status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def machine(device: str) -> str:
    """Return the name of the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    tyro.cli(main)
