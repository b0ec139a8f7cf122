"""Experiment trackers that log every row of metrics in addition to metrics.jsonl: TensorBoard and Weights & Biases.

The trackers are accelerate's and write into the run folder. With WANDB_MODE=offline, Weights & Biases needs no account.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError, listed
from attnprobe.files import writing

Log = Literal["tensorboard", "wandb"]


def check(names: Sequence[str]) -> None:
    """Raise `UsageError` for an unknown tracker or one whose package is not installed."""
    for name in names:
        if name not in get_args(Log):
            raise UsageError(f"log={name!r} is unknown; valid: {listed(get_args(Log))}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"log={name!r} needs a package that is not installed: pip install 'attnprobe[{name}]'")


@contextlib.contextmanager
def trackers(names: Sequence[str], folder: Path, config: TrainConfig) -> Iterator[list[Any]]:
    """Start the named trackers for a run and finish them on exit.

    Raises `UsageError` if their files cannot be written, unless the block has raised another exception.
    """
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


def _start(name: str, folder: Path, config: TrainConfig) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState(cpu=config.device == "cpu")  # the trackers get the rank from it
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder)
    else:
        tracker = WandBTracker("attnprobe", dir=str(folder), name=folder.name)
    tracker.start()
    tracker.store_init_configuration(_flat(config))
    return tracker


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as a flat dict of plain values, since TensorBoard accepts no nested ones."""
    flat = dataclasses.asdict(config)
    flat |= flat.pop("model")
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}
