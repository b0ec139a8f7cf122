"""Tasks: sources of labelled sequences. One file per task, registered in `attnprobe.tables.TASKS`."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from attnprobe.config import DataSpec, TrainConfig, from_flat
from attnprobe.errors import UsageError, choices
from attnprobe.tables import TASKS
from attnprobe.tasks.own import Own, is_copied, is_path, kept
from attnprobe.tasks.presets import PRESETS
from attnprobe.tasks.source import Source, chance
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task, check_held_out

__all__ = ["PRESETS", "TASKS", "Source", "Split", "Task", "build", "chance", "configure", "short_name", "source"]


def source(name: Any, options: Any = None) -> Source:
    """Return the source of a task with the given parameters.

    A path is that of the user's file or folder: see `attnprobe.tasks.own`. Raises `UsageError` for an unknown task or
    parameter.
    """
    if not is_path(name) and (not isinstance(name, str) or name not in TASKS):
        raise UsageError(f"task={name!r} is unknown; {choices(name, TASKS)}, or the path of a file or folder")
    kind: type[Source] = Own if is_path(name) else TASKS[name]
    fixed = {"file": name} if is_path(name) else {}
    valid = [field.name for field in dataclasses.fields(kind) if field.name not in fixed]  # pyright: ignore[reportArgumentType]
    if not isinstance(options or {}, Mapping):
        raise UsageError(f"task_options={options!r}: must map parameter names to values")
    for option in options or {}:
        if option not in valid:
            raise UsageError(f"task {name} has no parameter {option!r}; {choices(option, valid)}")
    return kind(**fixed, **(options or {}))


def short_name(task: str) -> str:
    """Return the name of the task for folders, titles and progress bars.

    For a file, it is the stem, without the hash of a stored task and with - for characters that cannot be printed.
    """
    stem = re.sub(r"-[0-9a-f]{16}$", "", PurePath(task).stem)
    return "".join(character if character.isprintable() else "-" for character in stem)


def build(config: TrainConfig, trained: DataSpec | None = None) -> Task:
    """Build the configured task for the configured seed, including its validation split.

    ``trained`` is the specification that a network was trained with: own values are not standardised for networks that
    were trained before attnprobe standardised them.
    """
    options = config.task_options
    if trained is not None and trained.inputs == "values" and not trained.mean and is_path(config.task):
        options = {**options, "standardise": "none"}
    task_source = source(config.task, options)
    _check_splits(config, task_source)
    return task_source.build(config.seed).held_out(config.validation_size)


def configure(task: str | Task | None = None, *, preset: str | None = None, **named: Any) -> TrainConfig:
    """Return the `TrainConfig` of a task: its recommended settings or a preset, overridden by keyword arguments.

    ``task_options`` are merged with the preset's by name. Setting ``steps`` alone scales ``pretrain_steps`` in
    proportion.

    Args:
        task: A name in `TASKS`, or data: a `Task`, or the path of an .npz file, a table or a folder, which is read with
            ``task_options`` (`attnprobe.tasks.reading.Reading`). Data are written to the data folder once (see
            `attnprobe.tasks.own`). Default: the task of the preset, or pairs.
        preset: A name in `PRESETS`.
        **named: Settings that override the preset or the recommended settings.

    Raises:
        UsageError: The task, the preset or a setting is unknown, or the preset is for another task.

    >>> configure("digits", recipe="supervised", n_layers=2).model.d_model
    64
    >>> configure(preset="amos-image").stages
    (('masked', 45000), ('labels', 180000))
    >>> configure("pairs", steps=200).stages
    (('masked', 150), ('labels', 50))
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset={preset!r} is unknown; {choices(preset, PRESETS)}")
    chosen = {} if preset is None else PRESETS[preset]
    name = kept(task) if isinstance(task, Task) else task or chosen.get("task", "pairs")
    if chosen and name != chosen["task"]:
        raise UsageError(f"preset={preset!r} is for task {chosen['task']}, not {name}")
    options = named.get("task_options") or {}
    if isinstance(options, Mapping):
        named["task_options"] = options = {**chosen.get("task_options", {}), **options}
    if is_copied(name):
        name, named["task_options"] = kept(source(name, options).build(0)), {}
    task_source = source(name, named.get("task_options"))
    defaults = {**(chosen or task_source.settings), "task": name}
    config = from_flat({**defaults, **_scaled_pretraining(from_flat(defaults), named), **named})
    _check_splits(config, task_source)
    return config


def _scaled_pretraining(defaults: TrainConfig, overrides: Mapping[str, Any]) -> dict[str, int]:
    """Return ``pretrain_steps`` scaled in proportion to ``steps`` if only ``steps`` is overridden."""
    steps, recipe = overrides.get("steps"), overrides.get("recipe", defaults.recipe)
    if recipe != "spt" or not isinstance(steps, int) or "pretrain_steps" in overrides:
        return {}
    return {"pretrain_steps": max(1, round(steps * defaults.pretrain_steps / defaults.steps))}


def _check_splits(config: TrainConfig, source: Source) -> None:
    """Raise `UsageError` if the validation split is invalid, or missing although the configuration needs one."""
    check_held_out(short_name(config.task), config.validation_size, source.sizes)
    if config.patience and not config.validation_size and "validation" not in source.sizes:
        raise UsageError(
            f"patience={config.patience}: needs a validation split; set validation_size to hold out training sequences"
        )
