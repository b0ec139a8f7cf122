"""Sweep results so far, as a tidy table with one row per cell."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnprobe.errors import UsageError
from attnprobe.former_names import current_settings
from attnprobe.sweeps.cells import STATUSES, look, planned_steps
from attnprobe.sweeps.plan import Cell
from attnprobe.training.metrics import best, digest

DIGEST = "sha256"
"""Field of sweep.json with the digest of its cells; earlier versions wrote none."""


def open_sweep(folder: str | Path) -> pd.DataFrame:
    """Return the table of a sweep: one row per cell, finished or not.

    Columns:

    - the settings that vary;
    - ``status`` (done, running, unfinished, failed, missing) and ``folder``;
    - ``step`` (the last evaluated step), ``steps`` (the total, with steps that were added later), ``objective`` and the
      metrics at ``step`` (``test_accuracy`` ...);
    - with a validation split, ``best_step`` (the step of the lowest validation loss on the labels) and the metrics at
      that step (``best_test_accuracy`` ...);
    - ``reason``, why a cell failed.

    Values that a cell does not have are missing. Raises `UsageError` if the folder holds no sweep, or if its sweep.json
    is damaged.
    """
    path = Path(folder) / "sweep.json"
    try:
        content = json.loads(path.read_bytes())
        cells = [
            (cell["folder"], current_settings(dict(cell["settings"].items())), cell["steps"])
            for cell in content["cells"]
        ]
        is_intact = set(content) <= {"cells", DIGEST} and content.get(DIGEST) in (None, digest(content["cells"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{folder}: holds no sweep (sweep.json: {error})") from error
    if not is_intact:
        raise UsageError(f"{path}: damaged (its content differs from its digest); repeat the command of the sweep")
    for name, _, steps in cells:
        if not isinstance(name, str) or Path(name).name != name or not isinstance(steps, int):
            raise UsageError(f"{folder}: holds no sweep (sweep.json: a cell without the name of its folder and steps)")
    return _table([_row(Path(folder) / name, settings, steps) for name, settings, steps in cells])


def sweep_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the table of `open_sweep` for some cells of a sweep, which need not have started."""
    return _table([_row(cell.folder, cell.settings, cell.config.total_steps) for cell in cells])


def summary(table: pd.DataFrame) -> str:
    """Return the number of cells of a table in each state, as one line."""
    counts = Counter(table["status"])
    states = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    return f"{len(table)} cell{'' if len(table) == 1 else 's'}: {states}"


def _row(folder: Path, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    state = look(folder)
    row = {name: _plain(value) for name, value in settings.items()}
    row |= {"status": state.status, "folder": str(folder), "step": state.step, "steps": planned_steps(folder, steps)}
    if state.metrics:
        row |= {"objective": state.metrics[-1]["objective"], **_measured(state.metrics[-1])}
    if (lowest := best(state.metrics)) is not None:
        row |= {f"best_{name}": value for name, value in {"step": lowest["step"], **_measured(lowest)}.items()}
    return row | {"reason": state.reason}


def _plain(value: Any) -> Any:
    """Return a setting as a value of a table cell."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.endswith(("_loss", "_accuracy"))}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not rows:  # a shard beyond the last cell
        return pd.DataFrame(columns=["status", "folder", "step", "steps", "reason"])
    longest = max(rows, key=len)  # the row with most metrics; all rows have them in the same order
    columns = [*longest, *(name for row in rows for name in row if name not in longest)]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
