"""The rows of a run's metrics.jsonl, which grows while others read it."""

import json
from pathlib import Path
from typing import Any

from attnprobe.former_names import current_settings


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl up to the last whole line; none where there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [current_settings(json.loads(line)) for line in text.split("\n")[:-1]]


def best(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the lowest validation loss of the labels, after the first step; None without one."""
    rows = [row for row in metrics if row["objective"] == "labels" and row["step"] and "validation_loss" in row]
    return min(rows, key=lambda row: row["validation_loss"], default=None)
