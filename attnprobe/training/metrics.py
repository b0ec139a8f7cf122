"""Rows of a run's metrics.jsonl, which may be read while training appends to it."""

import json
from pathlib import Path
from typing import Any

from attnprobe.former_names import current_settings


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a metrics.jsonl; empty if the file does not exist."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [current_settings(json.loads(line)) for line in text.split("\n")[:-1]]


def best(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row with the lowest validation loss on the labels after step 0; None if there is no such row.

    With ``eval_size``, the rows of the validation subset are not compared with those of the whole split.
    """
    labels = [row for row in metrics if row["objective"] == "labels" and row["step"]]
    rows = [row for row in labels if row.get("validation_loss") is not None]
    fewest = min((row.get("validation_sequences", 0) for row in rows), default=0)
    alike = [row for row in rows if row.get("validation_sequences", 0) == fewest]
    return min(alike, key=lambda row: row["validation_loss"], default=None)
