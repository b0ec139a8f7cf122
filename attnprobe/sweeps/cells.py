"""Cells of a sweep: run folders, each trained once by the first process that locks it.

In addition to the files of a run, the folder holds ``cell.lock``, locked by the process that trains the cell (the
operating system releases the lock if the process dies), ``failed.json`` if the last attempt failed, and ``took.json``,
the total seconds of its attempts, without killed ones. The lock uses flock. A file system shared by several nodes must
support flock across nodes (NFS does; Lustre must be mounted with ``flock``).
"""

import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

import attnprobe as ap
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic, writing
from attnprobe.training.metrics import SETTINGS, Damaged, check_complete, check_digest, read_finished, read_metrics

Status = Literal["done", "running", "unfinished", "failed", "missing"]
STATUSES: tuple[Status, ...] = ("done", "running", "unfinished", "failed", "missing")
Outcome = Literal["done", "failed", "held"]

HELD_AFTER = 2.0
"""Seconds to wait for a lock before it counts as held; a status check holds it for less."""


@dataclass(frozen=True)
class State:
    """Status and metrics of a cell."""

    status: Status
    metrics: list[dict[str, Any]]
    reason: str | None = None
    """Why the cell failed, if it did."""

    @property
    def step(self) -> int:
        """The last evaluated step; 0 before the first evaluation."""
        return self.metrics[-1]["step"] if self.metrics else 0


def look(folder: Path) -> State:
    """Return the state of the cell in a folder, which need not exist; only text files are read unless one is damaged.

    A finished cell with a damaged finished.json, config.json or metrics.jsonl counts as unfinished: training it again
    repairs them.
    """
    try:
        finished = read_finished(folder / "finished.json")
        metrics = read_metrics(folder / "metrics.jsonl")
        if finished is not None:
            check_complete(folder / "metrics.jsonl", metrics, finished)
            check_digest(folder / SETTINGS, _json(folder / SETTINGS), finished)
            return State("done", metrics)
    except Damaged:
        metrics = []
    if _is_locked(folder):
        return State("running", metrics)
    failed = folder / "failed.json"
    if failed.exists():
        return State("failed", metrics, _field(failed, "reason", f"{failed}: damaged"))
    return State("unfinished" if (folder / "config.json").exists() else "missing", metrics)


def planned_steps(folder: Path, steps: int) -> int:
    """Return the total steps of the cell in a folder, with those added to its run; ``steps`` if it has no run."""
    config = _field(folder / "config.json", "config", {"steps": steps})
    try:
        return config["steps"] + sum(config.get("more_steps", ()))
    except (KeyError, TypeError):  # damaged
        return steps


def reached(folder: Path) -> int:
    """Return the last evaluated step of the cell in a folder; 0 before the first evaluation."""
    try:
        return State("running", read_metrics(folder / "metrics.jsonl")).step
    except Damaged:
        return 0


def complete(folder: Path, config: TrainConfig, on_step: Callable[[int], None] | None = None) -> "ap.Run":
    """Train or resume the run of a configuration in a folder and return it; a finished run is returned unchanged.

    Raises `UsageError` if the folder holds another run; otherwise as `attnprobe.train`.
    """
    run = ap.Run(folder)
    if not run.exists:
        return ap.train(config, folder, progress=False, on_step=on_step)
    held = run.settings(run.latest) if not run.has_settings else run.config
    more_steps = held.more_steps[: len(config.more_steps)]  # steps may have been added since
    if dataclasses.replace(held, more_steps=more_steps) != config:
        raise UsageError(f"{folder}: holds another run; choose another folder or delete it")
    return ap.resume(folder, progress=False, on_step=on_step)


def attempt(folder: Path, config: TrainConfig, on_step: Callable[[int], None] | None = None) -> Outcome:
    """Complete a cell and return the outcome; "held" if another process has locked the cell.

    A failure is recorded in the folder instead of raised; the next attempt resumes from the latest state.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "cell.lock", timeout=HELD_AFTER):
            start = time.monotonic()
            try:
                complete(folder, config, on_step)
            except UsageError as error:
                return record_failure(folder, str(error))
            except Exception as error:
                message = str(error).strip().split("\n")[0]
                return record_failure(folder, f"{type(error).__name__}: {message}", traceback.format_exc())
            finally:
                write_atomic(folder / "took.json", json.dumps({"seconds": took(folder) + time.monotonic() - start}))
            (folder / "failed.json").unlink(missing_ok=True)
            return "done"
    except Timeout:
        return "held"
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{folder}: cannot be locked or written ({reason}); repeat the command to continue") from error


def took(folder: Path) -> float:
    """Return the total seconds of the attempts at the cell in a folder."""
    return _field(folder / "took.json", "seconds", 0.0)


def _field(path: Path, name: str, default: Any) -> Any:
    """Return a field of a JSON file; the default if there is no such file, if it is damaged, or of another type."""
    content = _json(path)
    value = content.get(name, default) if isinstance(content, dict) else default
    return value if isinstance(value, type(default)) else default


def _json(path: Path) -> Any:
    """Return the content of a JSON file; None if there is no such file or if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def record_failure(folder: Path, reason: str, details: str | None = None) -> Outcome:
    """Record in the cell's folder why it failed."""
    with writing(failed := folder / "failed.json"):
        write_atomic(failed, json.dumps({"reason": reason, "traceback": details}, indent=1) + "\n")
    return "failed"


def _is_locked(folder: Path) -> bool:
    lock = folder / "cell.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a read-only folder, for example of another user
        return False
