"""Time and peak memory of each measure on one checkpoint.

The network has 3 layers, d_model 64 and 4 heads, on sequences of 1,024 tokens of `pairs`. It is trained for one step
only, which does not affect the cost. Each measure uses 16 sequences and default options (eight draws of each null, on
all sequences), in a separate process. Times include the start of the process.

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
from attnprobe.files import write_atomic


def main(n: int = 1024, sequences: int = 16, only: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Print the table.

    Args:
        n: Tokens per sequence.
        sequences: Number of test sequences, and of training sequences.
        only: Measures to run; by default all.
        out: Path for writing the table as CSV as well.
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
            seconds, peak = in_its_own_process(name, str(path), sequences)
            rows.append({"measure": name, "n": n, "sequences": sequences, "seconds": seconds, "peak MiB": peak})
            print(f"{name}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
    table = pd.DataFrame(rows).round(1)
    print(f"{platform.processor() or platform.machine()}\n{table.to_string(index=False)}")
    if out is not None:
        write_atomic(out, table.to_csv(index=False))


def in_its_own_process(name: str, path: str, sequences: int) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of one measure, run in a separate process."""
    code = (
        "import resource, sys, attnprobe as ap\n"
        "name, path, sequences = sys.argv[1:]\n"
        "ap.MEASURES[name](ap.load(path), sequences=int(sequences))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", code, name, path, str(sequences)], stdout=subprocess.PIPE, check=True
    )
    return time.perf_counter() - start, float(process.stdout)


if __name__ == "__main__":
    tyro.cli(main)
