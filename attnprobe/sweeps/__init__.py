"""Sweeps: train every combination of settings and seeds once and tabulate the results.

A sweep is a TOML or YAML file with the settings that all cells share and a grid over others:

    out = "runs/rates"                    # optional; runs/NAME-OF-THE-FILE by default

    [base]
    steps = 1000
    pretrain_steps = 700

    [grid]
    recipe = ["supervised", "spt"]            # the cells are the Cartesian product of all lists
    seed = [0, 1, 2]
    task_options.n = [32, 64]             # a task parameter

    [[grid.task]]                         # settings that vary together: each table is one value of the list;
    task = "pairs"                        # the list may have any name

    [[grid.task]]
    task = "bigrams"
    n_layers = 2

The grid overrides the base, and both override the settings that the task recommends (`attnprobe.configure`). A cell is
the run folder OUT/TASK-RECIPE-SEED-HASH, where HASH is computed from all its settings. Equal settings share a folder,
whatever their order and file, so a sweep can be interrupted, repeated and extended without training anything twice. The
content of a file that a setting refers to (``init_from``) is not hashed. OUT also holds ``sweep.json``, the plan of the
last sweep started there, and ``sweep.csv``, its table at the end of that sweep.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attnprobe as ap
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic, writing
from attnprobe.sweeps.cells import attempt, look, record_failure
from attnprobe.sweeps.plan import Cell, Sweep, read_sweep, run_folder
from attnprobe.sweeps.table import DIGEST, open_sweep, summary, sweep_table
from attnprobe.sweeps.workers import run_all
from attnprobe.training.metrics import digest

__all__ = ["Cell", "Sweep", "sweep_table", "open_sweep", "read_sweep", "run_sweep", "summary", "train_all"]

AGAIN_AFTER = 2.0
"""Seconds before `train_all` retries a run that another process is training."""


def run_sweep(sweep: Sweep, cells: Sequence[Cell], count: int = 1, ray: str | None = None) -> None:
    """Train cells of a sweep and write the table of the whole sweep.

    Finished cells are skipped, interrupted cells are resumed and failed cells are retried. A failure does not stop the
    other cells. A cell that another sweep is training is skipped (on Ray, it is waited for).

    Args:
        sweep: The sweep.
        cells: Cells to train: all of them or a shard.
        count: Number of worker processes of one thread each.
        ray: Address of a Ray cluster to use instead of worker processes.
    """
    if count < 1:
        raise UsageError(f"workers={count}: must be at least 1")
    with writing(sweep.out):
        sweep.out.mkdir(parents=True, exist_ok=True)
        _write_plan(sweep)
    plan = _unfinished({cell.folder.absolute(): cell.config for cell in cells})
    if plan and ray is not None:
        from attnprobe.sweeps.cluster import run_on_ray

        run_on_ray(plan, ray)
    elif plan:
        run_all(attempt, plan, count, lost=record_failure)
    with writing(table := sweep.out / "sweep.csv"):
        write_atomic(table, sweep_table(sweep.cells).to_csv(index=False))


def train_all(configs: Sequence[TrainConfig], out: str | Path, workers: int = 1) -> "list[ap.Run]":
    """Train the configurations that have no finished run in ``out`` and return the run of each, in order.

    Run folders are named as in a sweep: equal configurations share one run, also between successive or concurrent
    calls.

    Args:
        configs: Configurations, possibly with duplicates.
        out: Folder of the run folders.
        workers: Number of worker processes of one thread each.

    Raises:
        UsageError: If a run fails; the other runs end first.
    """
    out = Path(out)
    plan = {run_folder(out, config): config for config in configs}
    while unfinished := _unfinished(plan):
        outcomes = run_all(attempt, unfinished, workers, lost=record_failure)
        for folder, outcome in outcomes.items():
            if outcome == "failed":
                raise UsageError(f"{folder}: {look(folder).reason}")
        if "held" in outcomes.values():
            time.sleep(AGAIN_AFTER)
    return [ap.Run(run_folder(out, config)) for config in configs]


def _unfinished(plan: Mapping[Path, TrainConfig]) -> dict[Path, TrainConfig]:
    """Return the unfinished runs of a plan, longest first, so that no worker idles at the end."""
    unfinished = {folder: config for folder, config in plan.items() if look(folder).status != "done"}
    return dict(sorted(unfinished.items(), key=lambda item: -item[1].total_steps))


def _write_plan(sweep: Sweep) -> None:
    cells = [
        {"folder": cell.folder.name, "settings": cell.settings, "steps": cell.config.total_steps}
        for cell in sweep.cells
    ]
    content = {"cells": cells, DIGEST: digest(cells)}
    write_atomic(sweep.out / "sweep.json", json.dumps(content, indent=1) + "\n")
