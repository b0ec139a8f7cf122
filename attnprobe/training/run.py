"""Run folders: what a training run leaves behind.

``config.json``, ``metrics.jsonl`` (one object a line), ``checkpoints/step-000000.pt`` ..., once it has ended
``finished.json`` (until then ``latest.pt``, from which it can be resumed), and once somebody measures ``figures/``.
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
from attnprobe.files import PART, write_whole
from attnprobe.provenance import provenance
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.metrics import read_metrics


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> "Run":
        """Make the folder of a new run; raise `UsageError` where there is one already or none can be made."""
        run = cls(folder)
        run.refuse_another()
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            made = {"config": dataclasses.asdict(config), "provenance": provenance()}
            write_whole(folder / "config.json", json.dumps(made, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Return the run in a folder; raise `UsageError` where it holds no checkpoints."""
        run = cls(Path(folder))
        if not run.folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        if not run.checkpoint_paths:
            inside = listed(sorted(path.parent.name for path in run.folder.glob("*/config.json")))
            raise UsageError(
                f"{folder}: holds no checkpoints (checkpoints/step-*.pt){inside and f'; runs in it: {inside}'}"
            )
        return run

    def refuse_another(self) -> None:
        """Raise `UsageError` where the folder holds a run already."""
        if self.exists:
            read = f"finished; attnprobe.Run.open({str(self.folder)!r}) reads it"
            again = read if self.finished else f"unfinished; --resume {self.folder} continues it"
            raise UsageError(f"{self.folder}: already holds a run ({again}); name another folder or remove it")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process from training in the folder; raise `UsageError` where one does."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "run.lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UsageError(f"{self.folder}: another process is training there") from None
        except (OSError, NotImplementedError) as error:
            raise UsageError(f"{self.folder}: cannot be locked or written ({error})") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def exists(self) -> bool:
        """Whether a run has begun in the folder."""
        return (self.folder / "config.json").exists()

    @property
    def config(self) -> TrainConfig:
        """What the run does; raise `UsageError` where the folder holds no run."""
        path = self.folder / "config.json"
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.folder}: holds no run (config.json: {error})") from error
        return from_plain(TrainConfig, held.get("config") if isinstance(held, dict) else held, str(path))

    @property
    def finished(self) -> dict[str, Any] | None:
        """How the run ended: its last step, why, and the step of the lowest validation loss; None before it has.

        With patience the checkpoint of that lowest loss is kept.
        """
        path = self.folder / "finished.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def last(self) -> Checkpoint:
        """The checkpoint at which the run ended; raise `UsageError` before it has."""
        if self.finished is None:
            raise UsageError(f"{self.folder}: has not finished; --resume {self.folder} continues it")
        return load(self.path_of(self.finished["step"]))

    @property
    def checkpoint_paths(self) -> list[Path]:
        """The checkpoint files in order of their steps."""
        found = [path for path in (self.folder / "checkpoints").glob("step-*.pt") if path.stem[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.stem[5:]))

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints in order of their steps."""
        return [load(path) for path in self.checkpoint_paths]

    @property
    def latest(self) -> Checkpoint | None:
        """The newest state from which the run can be resumed."""
        kept = [*self.checkpoint_paths[-1:], *([self.latest_path] if self.latest_path.exists() else [])]
        return max(map(load, kept), key=lambda checkpoint: checkpoint.step, default=None)

    @property
    def latest_path(self) -> Path:
        """The file of the newest state."""
        return self.folder / "latest.pt"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics in order of their steps, as far as they are written."""
        return read_metrics(self.folder / "metrics.jsonl")

    def path_of(self, step: int) -> Path:
        """Return the file of the checkpoint at a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}.pt"

    def log(self, row: dict[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, metrics: list[dict[str, Any]], steps: Collection[int | None]) -> None:
        """Bring the folder to the state from which the run is resumed: its metrics, and checkpoints of these steps."""
        for path in [*self.folder.glob(f"*{PART}"), *(self.folder / "checkpoints").glob(f"*{PART}")]:
            path.unlink(missing_ok=True)
        for path in self.checkpoint_paths:
            if int(path.stem[5:]) not in steps:
                path.unlink()
        write_whole(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics))

    def finish(self, ended: dict[str, Any]) -> None:
        """Say how the run ended; nothing is left to resume."""
        write_whole(self.folder / "finished.json", json.dumps(ended) + "\n")
        self.latest_path.unlink(missing_ok=True)
