"""How long does each measure take on one checkpoint, and how much memory?

A network of 3 layers, d_model 64 and 4 heads on sequences of 1,024 tokens of `pairs`, hardly trained, which no measure
minds; 16 sequences, default options (eight draws of each null, on all sequences), each measure in a process of its own.
Times include the start of that process.

    python analyses/bench_measures.py                       # 4 minutes on 2 cores
    python analyses/bench_measures.py --n 4096 --sequences 4 --only gradients
"""

import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import tyro

import attnprobe as ap


def main(n: int = 1024, sequences: int = 16, only: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Print the table.

    Args:
        n: Tokens in a sequence.
        sequences: Test sequences, and as many training sequences.
        only: Measures to run; all unless named.
        out: Where to write the table as CSV too.
    """
    options = {"n": n, "train_size": sequences, "test_size": sequences}
    shape = {"n_layers": 3, "d_model": 64, "n_heads": 4, "batch_size": 4}
    config = ap.configure(
        "pairs", recipe="supervised", steps=1, evaluations=1, checkpoints=1, task_options=options, **shape
    )
    with tempfile.TemporaryDirectory() as folder:
        path = ap.train(config, f"{folder}/run", progress=False).checkpoint_paths[-1]
        rows = []
        for name in only or tuple(ap.MEASURES):
            took, peak = in_its_own_process(name, str(path), sequences)
            rows.append({"measure": name, "n": n, "sequences": sequences, "seconds": took, "peak MiB": peak})
            print(f"{name}: {took:.1f} s, {peak:.0f} MiB", flush=True)
    table = pd.DataFrame(rows).round(1)
    print(f"{platform.processor() or platform.machine()}\n{table.to_string(index=False)}")
    if out is not None:
        table.to_csv(out, index=False)


def in_its_own_process(name: str, path: str, sequences: int) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of one measure."""
    code = (
        "import resource, sys, attnprobe as ap\n"
        "name, path, sequences = sys.argv[1:]\n"
        "ap.MEASURES[name](ap.load(path), sequences=int(sequences))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, name, path, str(sequences)], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, float(done.stdout)


if __name__ == "__main__":
    tyro.cli(main)
