"""``attnprobe train``."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import attnprobe as ap
from attnprobe.cli.help import helps
from attnprobe.cli.parse import ReadsData, ShowsProgress, flag, given, parse, with_fields
from attnprobe.config import ModelConfig, TrainConfig, read_settings
from attnprobe.errors import UsageError
from attnprobe.former_names import SETTING_VALUES, SETTINGS, refuse_former_flags
from attnprobe.tables import OBJECTIVES, POSITIONS
from attnprobe.tasks.reading import Reading
from attnprobe.training.rank import is_main_process

ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")
ALLOWED_WITH_RESUME = {"resume", "more_steps", "log", "minutes", "data", "quiet", "help"}
UNBALANCED = 0.01
"""Difference of accuracy and balanced accuracy from which the latter is printed."""


@dataclasses.dataclass(frozen=True)
class Train(ReadsData, ShowsProgress):
    """Train a network with one of the two recipes; every setting is a flag.

    Flags override the settings of the file, which override those of the task or preset. The defaults below apply if
    none of these sets a value.
    """

    out: Path | None = None
    """Run folder; runs/TASK-RECIPE-SEED by default."""
    preset: str | None = None
    """Named settings to start from (amos-image, small-listops, ...); `attnprobe tasks` lists them."""
    config: Path | None = None
    """TOML or YAML file of settings, optionally with a preset; flags override it."""
    resume: Path | None = None
    """Resume the run in this folder with its own settings; a finished run is only changed by --more-steps."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that also log the metrics, into the run folder (wandb with WANDB_MODE=offline needs no account)."""
    minutes: float | None = None
    """Minutes of training after which to save the state and stop; --resume continues."""


def run(arguments: list[str]) -> None:
    """Train or resume a run, and print its folder and last accuracies."""
    refuse_former_flags(arguments, SETTINGS, SETTING_VALUES)
    names = (argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--"))
    provided = {name.removeprefix("no_") for name in names}
    if "resume" in provided and (others := [f"--{name.replace('_', '-')}" for name in provided - ALLOWED_WITH_RESUME]):
        raise UsageError(f"--resume uses the settings of the run: {min(others)} cannot be combined with it")
    flags = parse(with_settings(), "train", arguments, pairs=True)
    common = {"log": flags.log, "minutes": flags.minutes, "progress": not flags.quiet}
    if flags.resume is not None:
        if len(flags.more_steps) > 1:
            raise UsageError(f"--more-steps {' '.join(map(str, flags.more_steps))}: --resume adds one number of steps")
        more_steps = flags.more_steps[0] if flags.more_steps else None
        trained = ap.resume(flags.resume, more_steps=more_steps, **common)
    else:
        trained = ap.train(_settings(flags, provided), flags.out, **common)
    if not is_main_process():
        return
    if not trained.finished:
        command = f"next: attnprobe train --resume {trained.folder}"
        print(f"{trained.folder}: stopped after {flags.minutes:g} minutes\n{command}")
        return
    last = trained.metrics[-1]
    accuracies = [name for name in ACCURACIES if last.get(name) is not None]
    balanced = last.get("test_balanced_accuracy")
    if balanced is not None and abs(balanced - last["test_accuracy"]) >= UNBALANCED:
        accuracies.append("test_balanced_accuracy")
    shown = ", ".join(f"{name.replace('_', ' ')} {last[name]:.3f}" for name in accuracies)
    print(f"{trained.folder}: {last['objective']} {shown}\nnext: attnprobe proximity {trained.folder}")


def _settings(flags: Any, provided: set[str]) -> TrainConfig:
    """Combine the settings: flags override the file, which overrides the task or preset."""
    from_file = read_settings(flags.config) if flags.config else {}
    settings = from_file | {name: getattr(flags, name) for name in provided & (_fields().keys() | {"preset"})}
    options = flags.task_options | given(flags, Reading)
    if options:
        from_settings = from_file.get("task_options")
        # Flags override single options of the file.
        settings["task_options"] = (from_settings if isinstance(from_settings, dict) else {}) | options
    return ap.configure(**settings)


def _fields() -> dict[str, tuple[Any, Any, str | None]]:
    """Return type, default and help text of every setting."""
    settings = {}
    for kind in (TrainConfig, ModelConfig):
        types, texts = typing.get_type_hints(kind, include_extras=True), helps(kind)
        for field in dataclasses.fields(kind):
            default = field.default
            if not isinstance(field.default_factory, dataclasses._MISSING_TYPE):
                default = field.default_factory()
            settings[field.name] = types[field.name], default, texts.get(field.name)
    del settings["model"]
    settings["position"] = Literal[tuple(POSITIONS)], *settings["position"][1:]
    pretraining = tuple(name for name in OBJECTIVES if name != "labels")
    settings["pretrain_objective"] = Literal[pretraining], *settings["pretrain_objective"][1:]
    return settings


def with_settings() -> Any:
    """Return the dataclass of all flags: those of the command, and one per setting."""
    fields = [flag(name, kind, text, default) for name, (kind, default, text) in _fields().items()]
    flags = dataclasses.make_dataclass("Train", fields, bases=(Train,), frozen=True)
    flags.__doc__ = Train.__doc__
    return with_fields(flags, Reading)
