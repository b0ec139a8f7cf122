"""``attnprobe train``."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import attnprobe as ap
from attnprobe.cli.parse import ReadsData, flag, helps, parse
from attnprobe.config import ModelConfig, TrainConfig, read_settings
from attnprobe.errors import UsageError
from attnprobe.former_names import SETTING_VALUES, SETTINGS, refuse_former_flags
from attnprobe.tables import OBJECTIVES, POSITIONS
from attnprobe.training.rank import writes_here

ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")
BESIDE_RESUME = {"resume", "log", "minutes", "data", "help"}


@dataclasses.dataclass(frozen=True)
class Train(ReadsData):
    """Train a network with one of the two recipes; every setting is a flag.

    Settings come from the task or the preset, over them those of a file, and over both the flags. The defaults below
    are those of no task.
    """

    out: Path | None = None
    """Run folder; runs/TASK-RECIPE-SEED by default."""
    preset: str | None = None
    """Settings to start from, under a name: amos-image, small-listops, ...; `attnprobe tasks` lists them."""
    config: Path | None = None
    """TOML or YAML file with the same settings, and perhaps a preset; flags win over it."""
    resume: Path | None = None
    """Continue the run in this folder, with its own settings; a finished one is left alone."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that get the metrics too, in the run folder (wandb: WANDB_MODE=offline needs no account)."""
    minutes: float | None = None
    """Save the state and stop after this many minutes of training; --resume continues."""


def run(arguments: list[str]) -> None:
    """Train, and say where the run is."""
    refuse_former_flags(arguments, SETTINGS, SETTING_VALUES)
    words = (one[2:].split("=")[0].replace("-", "_") for one in arguments if one.startswith("--"))
    given = {word.removeprefix("no_") for word in words}
    if "resume" in given and (others := [f"--{one.replace('_', '-')}" for one in given - BESIDE_RESUME]):
        raise UsageError(f"--resume continues a run with its own settings: {min(others)} cannot be given beside it")
    flags = parse(_with_settings(), "train", arguments, pairs=True)
    if flags.resume is not None:
        trained = ap.resume(flags.resume, log=flags.log, minutes=flags.minutes)
    else:
        trained = ap.train(_settings(flags, given), flags.out, log=flags.log, minutes=flags.minutes)
    if not writes_here():
        return
    if not trained.finished:
        again = f"next: attnprobe train --resume {trained.folder}"
        print(f"{trained.folder}: stopped after {flags.minutes:g} minutes\n{again}")
        return
    last = trained.metrics[-1]
    shown = ", ".join(f"{name.replace('_', ' ')} {last[name]:.3f}" for name in ACCURACIES if last.get(name) is not None)
    print(f"{trained.folder}: {last['objective']} {shown}\nnext: attnprobe proximity {trained.folder}")


def _settings(flags: Any, given: set[str]) -> TrainConfig:
    """Return the settings of the task or preset, over them those of the file, and over both the flags given."""
    of_file = read_settings(flags.config) if flags.config else {}
    named = of_file | {name: getattr(flags, name) for name in given & (_fields().keys() | {"preset"})}
    if "task_options" in given and isinstance(of_file.get("task_options"), dict):
        named["task_options"] = of_file["task_options"] | flags.task_options  # a flag names single options
    return ap.configure(**named)


def _fields() -> dict[str, tuple[Any, Any, str | None]]:
    """Return type, default and help of every setting."""
    found = {}
    for kind in (TrainConfig, ModelConfig):
        types, texts = typing.get_type_hints(kind, include_extras=True), helps(kind)
        for one in dataclasses.fields(kind):
            default = one.default
            if not isinstance(one.default_factory, dataclasses._MISSING_TYPE):
                default = one.default_factory()
            found[one.name] = types[one.name], default, texts.get(one.name)
    del found["model"]
    found["position"] = Literal[tuple(POSITIONS)], *found["position"][1:]
    pretraining = tuple(name for name in OBJECTIVES if name != "labels")
    found["pretrain_objective"] = Literal[pretraining], *found["pretrain_objective"][1:]
    return found


def _with_settings() -> Any:
    """Return the flags of the command: its own, and every setting."""
    fields = [flag(name, kind, text, default) for name, (kind, default, text) in _fields().items()]
    made = dataclasses.make_dataclass("Train", fields, bases=(Train,), frozen=True)
    made.__doc__ = Train.__doc__
    return made
