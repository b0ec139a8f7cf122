"""Text files of a run: metrics.jsonl, which may be read while training appends to it, and finished.json.

finished.json holds digests of the content of config.json, of metrics.jsonl, and of its own other fields.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnprobe.errors import UsageError
from attnprobe.former_names import current_settings

SETTINGS, METRICS, FINISHED = "config.json", "metrics.jsonl", "finished.json"
ENDED = ("step", "why", "best_step", "rows")
"""Fields of finished.json other than the digests; see `attnprobe.training.run.Run.finished`."""
DIGESTS = "sha256"
"""Field of finished.json with the digest of each text file."""


class Damaged(UsageError):
    """A file of a run cannot be read as what it is; another file may hold the same content."""


class DamageWarning(UserWarning):
    """A file of a run is damaged, and another one was used instead."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a metrics.jsonl; empty if the file does not exist.

    An incomplete last line is being written and is ignored. Raises `Damaged` for any other line that is not a row.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def sealed(ended: Mapping[str, Any], settings: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a finished.json: how training ended, and digests of all text files of the run.

    Args:
        ended: Fields of finished.json other than the digests.
        settings: Content of config.json.
        rows: Rows of metrics.jsonl.
    """
    contents = {SETTINGS: settings, METRICS: rows, FINISHED: ended}
    return {**ended, DIGESTS: {name: digest(content) for name, content in contents.items()}}


def digest(content: Any) -> str:
    """Return the SHA-256 digest of the content of a JSON file."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_digest(path: Path, content: Any, finished: dict[str, Any]) -> None:
    """Raise `Damaged` if the content of a file differs from its digest in finished.json.

    Earlier versions wrote no digests.
    """
    if digest(content) != finished.get(DIGESTS, {}).get(path.name, digest(content)):
        raise Damaged(f"{path}: damaged or edited (its content differs from the digest in {FINISHED})")


def check_complete(path: Path, rows: list[dict[str, Any]], finished: dict[str, Any]) -> None:
    """Raise `Damaged` if rows of a finished run's metrics.jsonl are missing or differ from their digest.

    Earlier versions recorded the last step only, not the number of rows.
    """
    if len(rows) != finished.get("rows", len(rows)):
        raise Damaged(f"{path}: damaged (holds {len(rows)} rows of {finished['rows']})")
    if not rows or rows[-1]["step"] != finished["step"]:
        raise Damaged(f"{path}: damaged (ends before step {finished['step']}, the last one)")
    check_digest(path, rows, finished)


def read_finished(path: Path) -> dict[str, Any] | None:
    """Return the content of a finished.json, with its digests; None if the file does not exist.

    Raises `Damaged` if it is not valid.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: damaged ({error})") from None
    if not isinstance(content, dict) or not _is_count(content.get("step")):
        raise Damaged(f"{path}: damaged (does not say at which step training ended)")
    digests = content.get(DIGESTS)
    is_complete = digests is None or (isinstance(digests, dict) and set(digests) == {SETTINGS, METRICS, FINISHED})
    if not is_complete or not set(content) <= {*ENDED, DIGESTS}:
        raise Damaged(f"{path}: damaged (holds unknown fields or lacks digests)")
    check_digest(path, {name: value for name, value in content.items() if name != DIGESTS}, content)
    return content


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: damaged ({error})") from None
    if not isinstance(row, dict) or not _is_count(row.get("step")) or not isinstance(row.get("objective"), str):
        raise Damaged(f"{where}: damaged (not a row of metrics)")
    for name, value in row.items():
        is_metric = name.endswith(("_loss", "_accuracy", "_rate"))
        if is_metric and not (value is None or isinstance(value, float) or _is_count(value)):
            raise Damaged(f"{where}: damaged ({name} is not a number of a metric)")
    return current_settings(row)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def best(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row with the lowest validation loss on the labels after step 0; None if there is no such row.

    With ``eval_size``, the rows of the validation subset are not compared with those of the whole split.
    """
    labels = [row for row in metrics if row["objective"] == "labels" and row["step"]]
    rows = [row for row in labels if row.get("validation_loss") is not None]
    fewest = min((row.get("validation_sequences", 0) for row in rows), default=0)
    alike = [row for row in rows if row.get("validation_sequences", 0) == fewest]
    return min(alike, key=lambda row: row["validation_loss"], default=None)
