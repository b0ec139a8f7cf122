"""Experiment trackers that log every row of metrics in addition to metrics.jsonl: TensorBoard and Weights & Biases.

The trackers are accelerate's and write into the run folder. With WANDB_MODE=offline, Weights & Biases needs no account.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError, choices
from attnprobe.files import writing
from attnprobe.training.rank import is_main_process

Log = Literal["tensorboard", "wandb"]
WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE with which nothing is uploaded."""


def check(names: Sequence[str]) -> None:
    """Raise `UsageError` for an unknown tracker, one whose package is not installed, or wandb without an account.

    In a terminal, Weights & Biases asks for the missing API key.
    """
    for name in names:
        if name not in get_args(Log):
            raise UsageError(f"log={name!r} is unknown; {choices(name, get_args(Log))}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"log={name!r} needs a package that is not installed: pip install 'attnprobe[{name}]'")
        if name == "wandb" and os.environ.get("WANDB_MODE") not in WITHOUT_ACCOUNT and is_main_process():
            import wandb

            with _errors_of(name):
                wandb.login()


@contextlib.contextmanager
def trackers(names: Sequence[str], folder: Path, config: TrainConfig) -> Iterator[list[Any]]:
    """Start the named trackers for a run and finish them on exit.

    Raises `UsageError` if their files cannot be written, unless the block has raised another exception.
    """
    with _quiet_logs():
        with writing(folder):
            started = [_start(name, folder, config) for name in names]
        try:
            yield started
        except BaseException:
            for tracker in started:
                with contextlib.suppress(OSError):
                    tracker.finish()
            raise
        with writing(folder):
            for tracker in started:
                tracker.finish()


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Print no traceback for every line that a tracker cannot add to its own log files."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _start(name: str, folder: Path, config: TrainConfig) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState(cpu=config.device == "cpu")  # the trackers get the rank from it
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder)
    else:
        tracker = WandBTracker("attnprobe", dir=str(folder), name=folder.name)
    with _errors_of(name):
        tracker.start()
    tracker.store_init_configuration(_flat(config))
    return tracker


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turn the errors of Weights & Biases, such as a missing account, into one line."""
    if name != "wandb":
        yield
        return
    import wandb

    try:
        yield
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"log='wandb': {reason}; WANDB_MODE=offline needs no account") from error


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as a flat dict of plain values, since TensorBoard accepts no nested ones."""
    flat = dataclasses.asdict(config)
    flat |= flat.pop("model")
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}
