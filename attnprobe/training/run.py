"""Run folders: the files of a training run.

A run folder holds ``config.json``, ``metrics.jsonl`` (one object per line), ``checkpoints/step-000000.pt`` ..., and
``finished.json`` once training has ended. Until then ``latest.pt`` holds the state to resume from. Measurements are
written to ``figures/``.

Every checkpoint holds settings and all metrics up to its step, so it replaces damaged files of the run. finished.json
holds digests of the text files: values of a finished run that changed since are noticed.
"""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from attnprobe.config import TrainConfig, from_plain
from attnprobe.errors import UsageError, listed, shown
from attnprobe.files import PART, write_atomic
from attnprobe.provenance import provenance
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.metrics import (
    DIGESTS,
    FINISHED,
    METRICS,
    SETTINGS,
    Damaged,
    DamageWarning,
    check_complete,
    check_digest,
    read_finished,
    read_metrics,
)
from attnprobe.training.overview import run_html
from attnprobe.training.rank import is_main_process

if TYPE_CHECKING:
    import pandas as pd


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
            write_atomic(run.settings_path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open the run in a folder, which may also be its ``checkpoints``; raise `UsageError` if there are none."""
        run = cls(Path(folder))
        if run.folder.name == "checkpoints" and cls(run.folder.parent).checkpoint_paths:
            run = cls(run.folder.parent)
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
        return self.settings_path.exists()

    @property
    def config(self) -> TrainConfig:
        """Settings of the run; raise `UsageError` if the folder holds no run."""
        return from_plain(TrainConfig, self.content["config"], str(self.settings_path))

    @property
    def has_settings(self) -> bool:
        """Whether config.json is intact."""
        try:
            return bool(self.content)
        except Damaged:
            return False

    @property
    def content(self) -> dict[str, Any]:
        """Content of config.json; raise `UsageError` if there is no such file, and `Damaged` if it is not valid.

        That of a finished run must have the digest that finished.json holds, unless that file is damaged itself.
        """
        path = self.settings_path
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{self.folder}: holds no run (config.json: {error})") from error
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{path}: damaged ({error})") from error
        if not isinstance(content, dict) or "config" not in content:
            raise Damaged(f"{path}: damaged (holds no settings)")
        try:
            finished = read_finished(self.finished_path)
        except Damaged:
            finished = None
        check_digest(path, content, finished or {})
        return content

    @property
    def finished(self) -> dict[str, Any] | None:
        """How training ended: last step, reason, and the step of the lowest validation loss; None if unfinished.

        With early stopping (``patience``), the checkpoint of the lowest validation loss is kept. Raises `UsageError` if
        finished.json is damaged, which resuming the run repairs.
        """
        content = self._sealed
        return None if content is None else {name: value for name, value in content.items() if name != DIGESTS}

    @property
    def _sealed(self) -> dict[str, Any] | None:
        """Content of finished.json, with its digests."""
        try:
            return read_finished(self.finished_path)
        except Damaged as error:
            raise Damaged(f"{error}; repair it with --resume {self.folder}") from None

    @property
    def settings_path(self) -> Path:
        """Path of the settings and the provenance."""
        return self.folder / SETTINGS

    @property
    def finished_path(self) -> Path:
        """Path of the file that says how training ended."""
        return self.folder / FINISHED

    @property
    def metrics_path(self) -> Path:
        """Path of the metrics."""
        return self.folder / METRICS

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

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in ascending order."""
        return [int(path.stem[5:]) for path in self.checkpoint_paths]

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint at a step; raise `UsageError` if there is none."""
        if step not in self.steps:
            raise UsageError(f"{self.folder}: has no checkpoint at step {shown(step)}; valid: {listed(self.steps)}")
        return load(self.path_of(step))

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints, sorted by step."""
        return [load(path) for path in self.checkpoint_paths]

    @property
    def latest(self) -> Checkpoint | None:
        """The latest intact state, from which the run can be resumed; None if none was saved.

        Warns about files that are damaged, and raises `UsageError` if all are.
        """
        states: list[Checkpoint] = []
        damaged: list[UsageError] = []
        for paths in ([self.latest_path] if self.latest_path.exists() else [], reversed(self.checkpoint_paths)):
            for path in paths:
                try:
                    states.append(load(path))
                    break
                except UsageError as error:
                    damaged.append(error)
        if damaged and not states:
            raise damaged[0]
        state = max(states, key=lambda checkpoint: checkpoint.step, default=None)
        if state is not None:
            for error in damaged:
                _warn(f"{error}; the state of step {state.step} in {state.path} is used instead")
        return state

    @property
    def latest_path(self) -> Path:
        """Path of the latest state of an unfinished run."""
        return self.folder / "latest.pt"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics written so far, sorted by step.

        If metrics.jsonl is damaged, or differs from the digest of a finished run, they are those of the latest
        checkpoint, with a warning. Raises `UsageError` if that is damaged as well.
        """
        try:
            return self._intact_metrics()
        except Damaged as error:
            state = self.last if self.finished else self.latest
            if state is None:
                raise
            _warn(f"{error}; the metrics in {state.path} are used instead; repair it with --resume {self.folder}")
            return state.metrics

    @property
    def table(self) -> "pd.DataFrame":
        """The metrics as a table: one row per evaluation, without the numbers of each class and channel."""
        import pandas as pd

        return pd.DataFrame([{name: x for name, x in row.items() if not isinstance(x, list)} for row in self.metrics])

    def _intact_metrics(self) -> list[dict[str, Any]]:
        finished, rows = self._sealed, read_metrics(self.metrics_path)
        if finished is not None:
            check_complete(self.metrics_path, rows, finished)
        return rows

    def repaired(self) -> bool:
        """Return whether the run is finished, after the metrics of a finished run were restored from its checkpoint.

        A run whose finished.json, config.json or last checkpoint is damaged counts as unfinished, with a warning:
        training the steps after the latest intact state repairs all three.
        """
        try:
            if self.finished is None:
                return False
            last, _ = self.last, self.content
        except UsageError as error:
            _warn(f"{error}; training is resumed from the latest intact state")
            return False
        try:
            self._intact_metrics()
        except Damaged as error:
            if is_main_process():
                with self.held():
                    self._write_metrics(last.metrics)
            _warn(f"{error}; restored from {last.path}")
        return True

    def path_of(self, step: int) -> Path:
        """Return the path of the checkpoint at a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}.pt"

    def log(self, row: dict[str, Any]) -> None:
        """Append one row of metrics."""
        with self.metrics_path.open("ab") as file:
            end = file.tell()
            try:
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
            except OSError:
                os.truncate(self.metrics_path, end)  # no part of a row is left
                raise

    def rewind(self, metrics: list[dict[str, Any]], steps: Collection[int | None]) -> None:
        """Restore the folder to the state to resume from: write its metrics and delete checkpoints at other steps."""
        for path in [*self.folder.glob(f"*{PART}"), *(self.folder / "checkpoints").glob(f"*{PART}")]:
            path.unlink(missing_ok=True)
        for path in self.checkpoint_paths:
            if int(path.stem[5:]) not in steps:
                path.unlink()
        self._write_metrics(metrics)

    def _repr_html_(self) -> str:
        """Return status, settings, last metrics and steps as HTML for Jupyter, with the next call to make."""
        return run_html(self)

    def _write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        write_atomic(self.metrics_path, "".join(json.dumps(row) + "\n" for row in metrics))

    def settings(self, state: Checkpoint | None) -> TrainConfig:
        """Return the settings of the run; if config.json is damaged, those of its state, with a warning."""
        try:
            return self.config
        except Damaged as error:
            if state is None:
                raise
            _warn(f"{error}; restored from {state.path}")
            return state.config

    def reopen(self, config: TrainConfig, state: Checkpoint | None) -> None:
        """Make the run unfinished, with settings that may have more steps, and repair its config.json."""
        try:
            content = self.content
        except Damaged:
            content = {"provenance": provenance() if state is None else state.provenance}
        # In this order: without finished.json, a run that has all its steps is just finished again.
        self.finished_path.unlink(missing_ok=True)
        content = {"config": dataclasses.asdict(config), "provenance": content.get("provenance")}
        write_atomic(self.settings_path, json.dumps(content, indent=1) + "\n")

    def finish(self, ended: dict[str, Any]) -> None:
        """Record how training ended and delete the state to resume from."""
        write_atomic(self.finished_path, json.dumps(ended) + "\n")
        self.latest_path.unlink(missing_ok=True)


def _warn(message: str) -> None:
    """Warn once, not in every process of a training."""
    if is_main_process():
        warnings.warn(message, DamageWarning, stacklevel=3)
