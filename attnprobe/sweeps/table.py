"""What came of a sweep, so far: one tidy row a cell."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnprobe.errors import UsageError
from attnprobe.former_names import current_settings
from attnprobe.sweeps.cells import STATUSES, look
from attnprobe.sweeps.plan import Cell
from attnprobe.training.metrics import best


def open_sweep(folder: str | Path) -> pd.DataFrame:
    """Return the table of a sweep, a row a cell, finished or not.

    Columns: the settings that vary; ``status`` (done, running, unfinished, failed, missing), ``folder``, ``step`` (the
    last evaluated) of ``steps``, ``objective``; the metrics at that step (``test_accuracy`` ...); with a validation
    split ``best_step``, that of the lowest validation loss of the labels, and the metrics there
    (``best_test_accuracy`` ...); and the ``reason`` of a failure. What a cell does not have is missing.

    Raises `UsageError` where the folder holds no sweep.
    """
    path = Path(folder) / "sweep.json"
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: holds no sweep (sweep.json: {error})") from error
    return _table(
        [_row(Path(folder) / cell["folder"], current_settings(cell["settings"]), cell["steps"]) for cell in cells]
    )


def look_at(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the same table of some cells of a sweep, which may not have begun."""
    return _table([_row(cell.folder, cell.settings, cell.config.steps) for cell in cells])


def summary(table: pd.DataFrame) -> str:
    """Say in one line how many cells of a table there are in each state."""
    counts = Counter(table["status"])
    said = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    return f"{len(table)} cell{'' if len(table) == 1 else 's'}: {said}"


def _row(folder: Path, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    state = look(folder)
    row = {name: ",".join(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}
    row |= {"status": state.status, "folder": str(folder), "step": state.step, "steps": steps}
    if state.metrics:
        row |= {"objective": state.metrics[-1]["objective"], **_measured(state.metrics[-1])}
    if (lowest := best(state.metrics)) is not None:
        row |= {f"best_{name}": value for name, value in {"step": lowest["step"], **_measured(lowest)}.items()}
    return row | {"reason": state.reason}


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.endswith(("_loss", "_accuracy"))}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not rows:  # a shard beyond the last cell
        return pd.DataFrame(columns=["status", "folder", "step", "steps", "reason"])
    longest = max(rows, key=len)  # the one with most metrics; all have theirs in the same order
    columns = [*longest, *(name for row in rows for name in row if name not in longest)]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
