"""Files that are whole or not there, and the rows of metrics, which grow while others read them."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART = ".part"
"""How the name of a file ends that is not whole yet."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the name of a new file that takes the place of ``path`` at the end, and none at all after an exception.

    Whoever else writes the same path at the same time has another name.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with whole(path) as part:
        part.write_text(text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl up to the last whole line; none where there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def best(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the lowest validation loss of the labels, after the first step; None without one."""
    rows = [row for row in metrics if row["objective"] == "labels" and row["step"] and "validation_loss" in row]
    return min(rows, key=lambda row: row["validation_loss"], default=None)
