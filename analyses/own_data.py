"""Both recipes on data that are not built in: a multivariate series, and patches of images.

JapaneseVowels (Kudo et al. 1999): 12 coefficients of the speech of nine speakers, sequences of 7 to 29 tokens, with the
split of the UEA archive. The files are in the package aeon; nothing of it is imported. `digits` has 2 x 2 pixels as
tokens (4 channels), so that offsets are between patches on a 4 x 4 grid. Three paired seeds; test data are used only
for the final numbers; the settings were chosen before the first run and not changed.

    pip install --no-deps aeon
    python analyses/own_data.py                # 12 runs, 10 minutes on two cores
    python analyses/own_data.py --seeds 1

Table and figure are written to results/own_data.txt and figures/own_data.png, the runs to ``--out``.
"""

import contextlib
import io
import shutil
from importlib.util import find_spec
from pathlib import Path

import tyro

from attnprobe.demo import compare
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic

FOLDER = Path(__file__).parent
SERIES = "datasets/data/JapaneseVowels"
SHARED = {"d_model": 64, "n_heads": 4, "learning_rate": 1e-3, "batch_size": 32, "evaluations": 4, "checkpoints": 4}
STEPS = {"steps": 1000, "pretrain_steps": 700}


def main(seeds: int = 3, workers: int = 2, out: Path = Path("runs/own_data")) -> None:
    """Train, measure, and write table and figure.

    Args:
        seeds: Number of paired seeds.
        workers: Number of concurrent runs.
        out: Folder of the runs.
    """
    settings = {
        "JapaneseVowels": {"task": str(series()), **SHARED, **STEPS},
        "digits-patches": {"task": "digits", "task_options": {"patch": 2}, **SHARED, **STEPS},
    }
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        compare(settings, out, seeds, workers, "own_data")
    table = "\n".join(line for line in text.getvalue().splitlines() if str(out) not in line)
    print(table)
    write_atomic(FOLDER / "results/own_data.txt", table.strip("\n") + "\n")
    for suffix in (".png", ".pdf"):
        shutil.copy(out / f"own_data{suffix}", FOLDER / f"figures/own_data{suffix}")


def series() -> Path:
    """Return the folder of the series in aeon; raise `UsageError` if it is not installed."""
    spec = find_spec("aeon")
    if spec is None or spec.origin is None:
        raise UsageError("JapaneseVowels is in the package aeon: pip install --no-deps aeon")
    return Path(spec.origin).parent / SERIES


if __name__ == "__main__":
    tyro.cli(main)
