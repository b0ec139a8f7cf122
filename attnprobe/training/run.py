"""Run folders: the files of a training run.

A run folder holds ``config.json``, ``metrics.jsonl`` (one object per line), ``checkpoints/step-000000.pt`` ..., and
``finished.json`` once training has ended. Until then ``latest.pt`` holds the state to resume from. Measurements are
written to ``figures/``.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attnprobe.config import TrainConfig, from_plain
from attnprobe.errors import UsageError, listed
from attnprobe.files import PART, write_atomic
from attnprobe.provenance import provenance
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.metrics import read_metrics


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> "Run":
        """Create the folder of a new run; raise `UsageError` if it already holds a run or cannot be written."""
        run = cls(folder)
        run.refuse_another()
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            content = {"config": dataclasses.asdict(config), "provenance": provenance()}
            write_atomic(folder / "config.json", json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open the run in a folder; raise `UsageError` if the folder has no checkpoints."""
        run = cls(Path(folder))
        if not run.folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        if not run.checkpoint_paths:
            runs = listed(sorted(path.parent.name for path in run.folder.glob("*/config.json")))
            raise UsageError(
                f"{folder}: holds no checkpoints (checkpoints/step-*.pt){runs and f'; runs in it: {runs}'}"
            )
        return run

    def refuse_another(self) -> None:
        """Raise `UsageError` if the folder already holds a run."""
        if self.exists:
            finished = f"finished; open it with attnprobe.Run.open({str(self.folder)!r})"
            advice = finished if self.finished else f"unfinished; continue it with --resume {self.folder}"
            raise UsageError(f"{self.folder}: already holds a run ({advice}); choose another folder or delete it")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for training; raise `UsageError` if another process is training in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "run.lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UsageError(f"{self.folder}: another process is training in this folder") from None
        except (OSError, NotImplementedError) as error:
            raise UsageError(f"{self.folder}: cannot be locked or written ({error})") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / "config.json").exists()

    @property
    def config(self) -> TrainConfig:
        """Settings of the run; raise `UsageError` if the folder holds no run."""
        path = self.folder / "config.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.folder}: holds no run (config.json: {error})") from error
        return from_plain(TrainConfig, content.get("config") if isinstance(content, dict) else content, str(path))

    @property
    def finished(self) -> dict[str, Any] | None:
        """How training ended: last step, reason, and the step of the lowest validation loss; None if unfinished.

        With early stopping (``patience``), the checkpoint of the lowest validation loss is kept.
        """
        path = self.folder / "finished.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def last(self) -> Checkpoint:
        """The final checkpoint; raise `UsageError` if the run has not finished."""
        if self.finished is None:
            raise UsageError(f"{self.folder}: has not finished; continue it with --resume {self.folder}")
        return load(self.path_of(self.finished["step"]))

    @property
    def checkpoint_paths(self) -> list[Path]:
        """Paths of the checkpoints, sorted by step."""
        paths = [path for path in (self.folder / "checkpoints").glob("step-*.pt") if path.stem[5:].isdigit()]
        return sorted(paths, key=lambda path: int(path.stem[5:]))

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints, sorted by step."""
        return [load(path) for path in self.checkpoint_paths]

    @property
    def latest(self) -> Checkpoint | None:
        """The latest saved state, from which the run can be resumed; None if there is none."""
        paths = [*self.checkpoint_paths[-1:], *([self.latest_path] if self.latest_path.exists() else [])]
        return max(map(load, paths), key=lambda checkpoint: checkpoint.step, default=None)

    @property
    def latest_path(self) -> Path:
        """Path of the latest state of an unfinished run."""
        return self.folder / "latest.pt"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics written so far, sorted by step."""
        return read_metrics(self.folder / "metrics.jsonl")

    def path_of(self, step: int) -> Path:
        """Return the path of the checkpoint at a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}.pt"

    def log(self, row: dict[str, Any]) -> None:
        """Append one row of metrics."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, metrics: list[dict[str, Any]], steps: Collection[int | None]) -> None:
        """Restore the folder to the state to resume from: write its metrics and delete checkpoints at other steps."""
        for path in [*self.folder.glob(f"*{PART}"), *(self.folder / "checkpoints").glob(f"*{PART}")]:
            path.unlink(missing_ok=True)
        for path in self.checkpoint_paths:
            if int(path.stem[5:]) not in steps:
                path.unlink()
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics))

    def reopen(self, config: TrainConfig) -> None:
        """Make a finished run unfinished, with settings that have more steps."""
        content = json.loads((self.folder / "config.json").read_text())
        # In this order: without finished.json, a run that has all its steps is just finished again.
        (self.folder / "finished.json").unlink()
        content["config"] = dataclasses.asdict(config)
        write_atomic(self.folder / "config.json", json.dumps(content, indent=1) + "\n")

    def finish(self, ended: dict[str, Any]) -> None:
        """Record how training ended and delete the state to resume from."""
        write_atomic(self.folder / "finished.json", json.dumps(ended) + "\n")
        self.latest_path.unlink(missing_ok=True)
