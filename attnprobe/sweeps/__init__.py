"""Sweeps: every combination of settings and seeds, each trained once, into one table.

A sweep is a TOML (or YAML) file with the settings that all cells share and a grid over any others:

    out = "runs/rates"                    # optional; else runs/NAME-OF-THE-FILE

    [base]
    steps = 1000
    pretrain_steps = 700

    [grid]
    recipe = ["supervised", "spt"]            # the cells are the product of all lists
    seed = [0, 1, 2]
    task_options.n = [32, 64]             # one parameter of the task

    [[grid.task]]                         # settings that go together: each table is one value of the list,
    task = "pairs"                        # the list's name is free

    [[grid.task]]
    task = "bigrams"
    n_layers = 2

The grid wins over the base, and both over what the task recommends (`attnprobe.configure`). A cell is the run folder
OUT/TASK-RECIPE-SEED-HASH, where HASH is that of all its settings: the same settings are the same folder, in any order
and from any file, so that a sweep can be cut off, repeated and extended, and nothing is trained twice. What a file that
a setting names holds (``init_from``) is not in the hash. OUT also holds ``sweep.json``, the plan of the last sweep that
began there, and ``sweep.csv``, its table as it was when that ended.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attnprobe as ap
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.files import write_whole
from attnprobe.sweeps.cells import attempt, look, record_failure
from attnprobe.sweeps.plan import Cell, Sweep, read_sweep, run_folder
from attnprobe.sweeps.table import look_at, open_sweep, summary
from attnprobe.sweeps.workers import run_all

__all__ = ["Cell", "Sweep", "look_at", "open_sweep", "read_sweep", "run_sweep", "summary", "train_all"]

AGAIN_AFTER = 2.0
"""Seconds until `train_all` looks again at a run that another process is training."""


def run_sweep(sweep: Sweep, cells: Sequence[Cell], count: int = 1, ray: str | None = None) -> None:
    """Bring cells of the sweep, a shard of it or all, to their end, and write the table of the whole sweep.

    Cells run in ``count`` processes of one thread each, or on the Ray cluster at the address ``ray``. What is finished
    is left alone, what was cut off is resumed, what failed is tried again and does not stop the others. A cell that
    another sweep is training is left to it (on Ray it is waited for).
    """
    if count < 1:
        raise UsageError(f"workers={count}: must be at least 1")
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
        _write_plan(sweep)
    except OSError as error:
        raise UsageError(f"{sweep.out}: cannot be written ({error.strerror})") from error
    plan = _left({cell.folder.absolute(): cell.config for cell in cells})
    if plan and ray is not None:
        from attnprobe.sweeps.cluster import run_on_ray

        run_on_ray(plan, ray)
    elif plan:
        run_all(attempt, plan, count, lost=record_failure)
    write_whole(sweep.out / "sweep.csv", look_at(sweep.cells).to_csv(index=False))


def train_all(configs: Sequence[TrainConfig], out: str | Path, workers: int = 1) -> "list[ap.Run]":
    """Return the finished run of every configuration, in their order, training those that ``out`` does not hold yet.

    A run's folder is that of a sweep's cell: equal configurations are one run, and several calls, one after the other
    or at once, share what they have in common. Raises `UsageError` where a run fails, when the others have ended.
    """
    out = Path(out)
    plan = {run_folder(out, config): config for config in configs}
    while left := _left(plan):
        outcomes = run_all(attempt, left, workers, lost=record_failure)
        for folder, outcome in outcomes.items():
            if outcome == "failed":
                raise UsageError(f"{folder}: {look(folder).reason}")
        if "held" in outcomes.values():
            time.sleep(AGAIN_AFTER)
    return [ap.Run(run_folder(out, config)) for config in configs]


def _left(plan: Mapping[Path, TrainConfig]) -> dict[Path, TrainConfig]:
    """Return what is not done of a plan, the longest first, so that no worker idles at the end."""
    left = {folder: config for folder, config in plan.items() if look(folder).status != "done"}
    return dict(sorted(left.items(), key=lambda one: -one[1].steps))


def _write_plan(sweep: Sweep) -> None:
    cells = [
        {"folder": cell.folder.name, "settings": cell.settings, "steps": cell.config.steps} for cell in sweep.cells
    ]
    write_whole(sweep.out / "sweep.json", json.dumps({"cells": cells}, indent=1) + "\n")
