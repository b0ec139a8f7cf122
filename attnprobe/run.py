"""Run folders: what a training run leaves behind.

``config.json``, ``metrics.jsonl`` (one object a line), ``checkpoints/step-000000.pt`` ... and, once somebody measures,
``figures/``.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnprobe.checkpoint import Checkpoint, load
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.provenance import provenance


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> "Run":
        """Make the folder of a new run; raise `UsageError` where there is one already or none can be made."""
        if (folder / "config.json").exists():
            raise UsageError(f"{folder}: already holds a run; name another folder or remove it")
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            made = {"config": dataclasses.asdict(config), "provenance": provenance()}
            (folder / "config.json").write_text(json.dumps(made, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Return the run in a folder; raise `UsageError` where it holds no checkpoints."""
        run = cls(Path(folder))
        if not run.folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        if not run.checkpoint_paths:
            raise UsageError(f"{folder}: holds no checkpoints (checkpoints/step-*.pt)")
        return run

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
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics in order of their steps."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def path_of(self, step: int) -> Path:
        """Return the file of the checkpoint at a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}.pt"

    def log(self, row: dict[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
