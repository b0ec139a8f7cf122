"""Attention profiles of a pretrained architecture by attnprobe and by other tools: time, peak memory, agreement.

The model is one BERT with random weights, 4 layers, width 128 and 4 heads, in float32, on one sequence of n random
tokens. Every tool returns the same numbers, for each layer and head: mean attention by offset, and mean attention
distance. Those that give the pattern itself are followed by the same sums in torch. The tools (column ``tool``) are:

- attnprobe: `attnprobe.statistics.pattern_statistics` on the heads that `attnprobe.network` finds;
- Hugging Face: ``output_attentions`` with ``attn_implementation="eager"``;
- TransformerLens: ``run_with_cache`` of its bridge, patterns only;
- nnsight: a trace that saves the output of the dropout after the softmax, eager;
- attnspectra: ``HFTransformerAdapter.capture_from_ids``, eager;
- identity values: fused attention with blocks of the identity as values, which returns the pattern in blocks of keys.
  It is how attnread reads patterns; attnread itself needs other versions of torch and transformers.

omnilens 0.1 does not find the patterns of a BERT. Tools that are not installed are left out and named. All tools at a
length run in one process, alternating, up to 15 times within 3 seconds each, after one call of each. Times are medians
of elapsed time, and ratios medians over turns of the ratio to attnprobe. Peak memory is the maximum that a new process
holds beyond model and inputs, after a call with a short sequence. A tool whose patterns of all layers would need 4 GiB,
and as much again for copies, is not run, and identity values only up to 2,048 tokens, since their time grows with n³.

    pip install nnsight attnspectra
    python analyses/bench_peers.py                    # 3 minutes on 2 cores; 8 GiB
    python analyses/bench_peers.py --lengths 128 512  # 1 minute
"""

import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import transformers
import tyro
from bench_statistics import machine, peak_memory
from torch import Tensor, nn

import attnprobe as ap
from attnprobe.files import write_atomic
from attnprobe.networks.base import read
from attnprobe.networks.calls import watching
from attnprobe.statistics import pattern_statistics
from attnprobe.training.objectives import Batch

LAYERS, HEADS, WIDTH, VOCABULARY = 4, 4, 128, 1000
SHORT = 32
"""Tokens of the call before peak memory is measured."""
LIMIT = 4 * 2**30
"""Bytes of the patterns of all layers above which they are not computed."""
TURNS, SECONDS = 15, 3
ROWS = 4
"""Number of inputs of `attnprobe.network`, which needs more than the one that is measured."""
COLUMNS = 256
"""Keys per block of identity values."""

Profiles = list[tuple[Tensor, Tensor]]
"""For each layer, mean attention by offset, [head, offset], and mean distance, [head]."""


def main(lengths: tuple[int, ...] = (128, 512, 2048, 8192), out: Path | None = None) -> None:
    """Print the table.

    Args:
        lengths: Tokens per sequence.
        out: Path for writing the table as CSV as well.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES.values() if find_spec(name)]
    threads = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    about = f"{machine('cpu')}; {threads}; {', '.join(sorted(set(versions)))}"
    print(about)
    missing = [tool for tool, package in PACKAGES.items() if not find_spec(package)]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    rows = []
    for n in lengths:
        rows += compared(n, [tool for tool in TOOLS if tool not in missing])
        print(f"n = {n}", file=sys.stderr)
    results = pd.DataFrame(rows)
    print(results.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep="not run"))
    if out is not None:
        write_atomic(out, results.assign(machine=about).to_csv(index=False))


def compared(n: int, tools: list[str]) -> list[dict[str, object]]:
    """Return one row per tool at one length; tools that would need too much memory have no numbers."""
    fits = [
        tool
        for tool in tools
        if n <= LONGEST.get(tool, n) and (tool == "attnprobe" or LAYERS * HEADS * n * n * 4 < LIMIT)
    ]
    functions = {tool: TOOLS[tool](n) for tool in fits}
    found = {tool: function() for tool, function in functions.items()}
    times: dict[str, list[float]] = {tool: [] for tool in fits}
    for _ in range(TURNS):
        for tool, function in functions.items():
            if sum(times[tool]) < SECONDS:
                begin = time.perf_counter()
                function()
                times[tool].append(time.perf_counter() - begin)
    rows = []
    for tool in tools:
        row: dict[str, object] = {"tool": tool, "n": n}
        if tool in fits:
            ratios = [x / own for x, own in zip(times[tool], times["attnprobe"], strict=False)]
            row |= {"milliseconds": 1e3 * statistics.median(times[tool]), "over attnprobe": statistics.median(ratios)}
            row |= {"lowest ratio": min(ratios), "highest ratio": max(ratios), "peak MiB": in_its_own_process(tool, n)}
            row |= {"difference": difference(found[tool], found["Hugging Face" if "Hugging Face" in fits else tool])}
        rows.append(row)
    return rows


def difference(found: Profiles, expected: Profiles) -> float:
    """Return the largest difference of the profiles, relative to the largest attention, over layers."""
    return max(
        float((a.double() - b.double()).abs().max() / b.abs().max())
        for (a, _), (b, _) in zip(found, expected, strict=True)
    )


def in_its_own_process(tool: str, n: int) -> float:
    """Return the peak memory in MiB of a tool, in a new process."""
    code = "import sys\nsys.path.insert(0, sys.argv[1])\nimport bench_peers\nprint(bench_peers.peak(*sys.argv[2:]))"
    arguments = [str(Path(__file__).parent), tool, str(n)]
    process = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True)
    return float(process.stdout.splitlines()[-1])


def peak(tool: str, n: str) -> float:
    """Return the peak memory in MiB of a tool, in this process."""
    TOOLS[tool](SHORT)()
    return peak_memory(TOOLS[tool](int(n)), "cpu")


# --- the model, and numbers from patterns


def build(n: int, attention: str) -> nn.Module:
    """Return the model; its weights do not depend on the implementation of attention."""
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(configuration(n), attn_implementation=attention).eval()


def configuration(n: int) -> transformers.BertConfig:
    """Return the sizes of the model, and weights so large that attention is not uniform."""
    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=n,
        initializer_range=0.2,
        architectures=["BertForMaskedLM"],
    )


def tokens(n: int) -> Tensor:
    """Return one sequence of random tokens, [1, n]; token 0 is special."""
    return torch.randint(1, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))


def profile(pattern: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean attention by offset and mean distance of patterns, [head, query, key]."""
    n = pattern.shape[-1]
    padded = F.pad(pattern.flip(-2), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    by_offset = padded.unflatten(-1, (n, 2 * n - 1)).sum(-2) / n
    return by_offset, by_offset @ torch.arange(1 - n, n).abs().to(by_offset)


# --- tools: functions from a length to a function that returns the profiles


def by_attnprobe(n: int) -> Callable[[], Profiles]:
    """Sums by offset in one pass over blocks of queries."""
    network = ap.network(build(n, "sdpa"), tokens(n).expand(ROWS, n), leave_out="none").network
    batch = Batch(torch.zeros(1, n, dtype=torch.long), torch.zeros(1, dtype=torch.long))  # row 0, one label

    def run() -> Profiles:
        layers: Profiles = []

        def add(heads: Any) -> None:
            found = pattern_statistics(heads.scores)
            layers.append((found.mass_by_offset[0], found.mean_distance[0]))

        read(network, batch, "labels", add)
        return layers

    return run


def by_hugging_face(n: int) -> Callable[[], Profiles]:
    """Patterns as outputs of the model."""
    model, ids = build(n, "eager"), tokens(n)

    @torch.no_grad()
    def run() -> Profiles:
        return [profile(pattern[0]) for pattern in model(input_ids=ids, output_attentions=True).attentions]

    return run


def by_transformer_lens(n: int) -> Callable[[], Profiles]:
    """Patterns in the cache of TransformerLens's bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    model, ids = transformers.BertForMaskedLM(configuration(n)).eval(), tokens(n)
    model.bert.load_state_dict(build(n, "eager").state_dict(), strict=False)  # without the pooler
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=model)

    @torch.no_grad()
    def run() -> Profiles:
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
        return [profile(cache[f"blocks.{layer}.attn.hook_pattern"][0]) for layer in range(LAYERS)]

    return run


def by_nnsight(n: int) -> Callable[[], Profiles]:
    """Patterns saved in a trace."""
    import nnsight

    model, ids = nnsight.NNsight(build(n, "eager")), tokens(n)

    @torch.no_grad()
    def run() -> Profiles:
        with model.trace(ids):
            patterns = nnsight.save([layer.attention.self.output[1] for layer in model.encoder.layer])
        return [profile(pattern[0]) for pattern in patterns]

    return run


def by_attnspectra(n: int) -> Callable[[], Profiles]:
    """Patterns captured by attnspectra."""
    import attnspectra

    tokenizer = SimpleNamespace(decode=str)  # it names the tokens
    adapter, ids = attnspectra.HFTransformerAdapter(build(n, "eager"), tokenizer), tokens(n)
    config = attnspectra.CaptureConfig()

    @torch.no_grad()
    def run() -> Profiles:
        return [profile(pattern[0]) for pattern in adapter.capture_from_ids(ids, config).attentions]

    return run


def by_identity_values(n: int) -> Callable[[], Profiles]:
    """Blocks of the pattern as outputs of fused attention, whose values are columns of the identity."""
    model, ids, pattern = build(n, "sdpa"), tokens(n), torch.empty(HEADS, n, n)

    @torch.no_grad()
    def run() -> Profiles:
        layers: Profiles = []

        def answer(call: Any, own: Callable[[], Tensor]) -> Tensor:
            for start in range(0, n, COLUMNS):
                stop = min(start + COLUMNS, n)
                columns = torch.eye(n)[:, start:stop].expand(1, HEADS, n, stop - start)
                pattern[..., start:stop] = F.scaled_dot_product_attention(call.q, call.k, columns)[0]
            layers.append(profile(pattern))
            return own()

        with watching(model, answer):
            model(input_ids=ids)
        return layers

    return run


TOOLS: dict[str, Callable[[int], Callable[[], Profiles]]] = {
    "attnprobe": by_attnprobe,
    "Hugging Face": by_hugging_face,
    "TransformerLens": by_transformer_lens,
    "nnsight": by_nnsight,
    "attnspectra": by_attnspectra,
    "identity values": by_identity_values,
}
PACKAGES = {
    "Hugging Face": "transformers",
    "TransformerLens": "transformer_lens",
    "nnsight": "nnsight",
    "attnspectra": "attnspectra",
}
"""Package that each tool needs."""
LONGEST = {"identity values": 2048}
"""Longest sequence of a tool whose time grows with the cube of the length."""


if __name__ == "__main__":
    tyro.cli(main)
