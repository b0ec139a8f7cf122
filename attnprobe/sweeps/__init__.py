"""Sweeps: every combination of settings and seeds, each trained once, into one table.

A sweep is a TOML (or YAML) file with the settings that all cells share and a grid over any others:

    out = "runs/rates"                    # optional; else runs/NAME-OF-THE-FILE

    [base]
    steps = 1000
    pretrain_steps = 700

    [grid]
    recipe = ["labels", "spt"]            # the cells are the product of all lists
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
from collections.abc import Sequence

from attnprobe.errors import UsageError
from attnprobe.files import write_whole
from attnprobe.sweeps import workers
from attnprobe.sweeps.cells import attempt, look, record_failure
from attnprobe.sweeps.plan import Cell, Sweep, read_sweep
from attnprobe.sweeps.table import look_at, open_sweep, summary

__all__ = ["Cell", "Sweep", "look_at", "open_sweep", "read_sweep", "run_sweep", "summary"]


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
    # The longest first, so that no worker idles at the end.
    left = sorted((cell for cell in cells if look(cell.folder).status != "done"), key=lambda cell: -cell.config.steps)
    plan = {cell.folder.absolute(): cell.config for cell in left}
    if plan and ray is not None:
        from attnprobe.sweeps.cluster import run_on_ray

        run_on_ray(plan, ray)
    elif plan:
        workers.run_all(attempt, plan, count, lost=record_failure)
    write_whole(sweep.out / "sweep.csv", look_at(sweep.cells).to_csv(index=False))


def _write_plan(sweep: Sweep) -> None:
    cells = [
        {"folder": cell.folder.name, "settings": cell.settings, "steps": cell.config.steps} for cell in sweep.cells
    ]
    write_whole(sweep.out / "sweep.json", json.dumps({"cells": cells}, indent=1) + "\n")
