"""One cell of a sweep: a run folder that is trained once, whoever comes first.

Beside what a run leaves behind the folder holds ``cell.lock``, which the process that trains the cell holds (the
operating system releases it when the process dies), ``failed.json`` where the last attempt failed, and ``took.json``,
the seconds that its attempts took (none for one that was killed). The lock is
flock: on a file system that several nodes share it must reach all of them (NFS does; Lustre is mounted with ``flock``).
"""

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
from attnprobe.files import write_whole
from attnprobe.training.metrics import read_metrics

Status = Literal["done", "running", "unfinished", "failed", "missing"]
STATUSES: tuple[Status, ...] = ("done", "running", "unfinished", "failed", "missing")
Outcome = Literal["done", "failed", "held"]

HELD_AFTER = 2.0
"""Seconds after which a lock counts as held: longer than anybody needs to look at it."""


@dataclass(frozen=True)
class State:
    """How far a cell is."""

    status: Status
    metrics: list[dict[str, Any]]
    reason: str | None = None
    """Why it failed."""

    @property
    def step(self) -> int:
        """The last step that was evaluated; 0 before the first."""
        return self.metrics[-1]["step"] if self.metrics else 0


def look(folder: Path) -> State:
    """Return the state of the cell in a folder, which may not exist; nothing is loaded but text."""
    metrics = read_metrics(folder / "metrics.jsonl")
    if (folder / "finished.json").exists():
        return State("done", metrics)
    if _held(folder):
        return State("running", metrics)
    try:
        return State("failed", metrics, json.loads((folder / "failed.json").read_text())["reason"])
    except FileNotFoundError:
        return State("unfinished" if (folder / "config.json").exists() else "missing", metrics)


def reached(folder: Path) -> int:
    """Return the last step that the cell in a folder was evaluated at; 0 before the first."""
    return State("running", read_metrics(folder / "metrics.jsonl")).step


def complete(folder: Path, config: TrainConfig, on_step: Callable[[int], None] | None = None) -> "ap.Run":
    """Return the finished run of a configuration: trained, resumed where it was cut off, or as it lies there.

    Raises `UsageError` where the folder holds another run; else as `attnprobe.train`.
    """
    run = ap.Run(folder)
    if not run.exists:
        return ap.train(config, folder, progress=False, on_step=on_step)
    if run.config != config:
        raise UsageError(f"{folder}: holds another run; name another folder or remove it")
    return ap.resume(folder, progress=False, on_step=on_step)


def attempt(folder: Path, config: TrainConfig, on_step: Callable[[int], None] | None = None) -> Outcome:
    """Complete a cell and say how it went; one whose lock another process holds is left to it.

    A failure is recorded in the folder and does not raise; another attempt begins at the newest state.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "cell.lock", timeout=HELD_AFTER):
            began = time.monotonic()
            try:
                complete(folder, config, on_step)
            except UsageError as error:
                return record_failure(folder, str(error))
            except Exception as error:
                said = str(error).strip().split("\n")[0]
                return record_failure(folder, f"{type(error).__name__}: {said}", traceback.format_exc())
            finally:
                write_whole(folder / "took.json", json.dumps({"seconds": took(folder) + time.monotonic() - began}))
            (folder / "failed.json").unlink(missing_ok=True)
            return "done"
    except Timeout:
        return "held"
    except (OSError, NotImplementedError) as error:
        raise UsageError(f"{folder}: cannot be locked or written ({error})") from error


def took(folder: Path) -> float:
    """Return the seconds that attempts at the cell in a folder took."""
    path = folder / "took.json"
    return json.loads(path.read_text())["seconds"] if path.exists() else 0.0


def record_failure(folder: Path, reason: str, details: str | None = None) -> Outcome:
    """Keep in the cell's folder why it failed."""
    write_whole(folder / "failed.json", json.dumps({"reason": reason, "traceback": details}, indent=1) + "\n")
    return "failed"


def _held(folder: Path) -> bool:
    lock = folder / "cell.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's folder, that can only be read
        return False
