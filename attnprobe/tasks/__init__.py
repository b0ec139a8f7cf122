"""Tasks: where sequences and labels come from. One file each, and one line in `attnprobe.tables.TASKS`."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from attnprobe.config import TrainConfig, from_flat
from attnprobe.errors import UsageError, listed
from attnprobe.tables import TASKS
from attnprobe.tasks.arrays import SUFFIX
from attnprobe.tasks.own import Own, is_file, kept
from attnprobe.tasks.presets import PRESETS
from attnprobe.tasks.source import Source, chance
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task, check_held_out

__all__ = ["PRESETS", "TASKS", "Source", "Split", "Task", "build", "chance", "configure", "short_name", "source"]


def source(name: Any, options: Any = None) -> Source:
    """Return the task's source with its parameters; raise `UsageError` for an unknown task or parameter.

    A name that ends in .npz is that of a file of your own: see `attnprobe.tasks.own`.
    """
    if not is_file(name) and (not isinstance(name, str) or name not in TASKS):
        raise UsageError(f"task={name!r} is unknown; valid: {listed(TASKS)}, or a file that ends in {SUFFIX}")
    kind: type[Source] = Own if is_file(name) else TASKS[name]
    fixed = {"file": name} if is_file(name) else {}
    valid = [one.name for one in dataclasses.fields(kind) if one.name not in fixed]  # pyright: ignore[reportArgumentType]
    if not isinstance(options or {}, Mapping):
        raise UsageError(f"task_options={options!r} must be names and values")
    for option in options or {}:
        if option not in valid:
            raise UsageError(f"task {name} has no parameter {option!r}; valid: {listed(valid)}")
    return kind(**fixed, **(options or {}))


def short_name(task: str) -> str:
    """Return the task's name for a folder or a title: that of the file, where it is one."""
    return PurePath(task).stem


def build(config: TrainConfig) -> Task:
    """Make the instance of the configured task that belongs to the configured seed, with its validation split."""
    found = source(config.task, config.task_options)
    _check_splits(config, found)
    return found.build(config.seed).held_out(config.validation_size)


def configure(task: str | Task | None = None, *, preset: str | None = None, **named: Any) -> TrainConfig:
    """Return the `TrainConfig` of a task: its recommended settings, or those of a preset, and over them the named ones.

    The task is one that `TASKS` lists, an .npz file, or a `Task`, which is then written to the data folder once;
    without one it is that of the preset, or else pairs. ``task_options`` are joined name by name, and ``steps`` alone
    keep the share of self-pretraining. Raises `UsageError` for an unknown task, preset or setting, and for a preset
    that is made for another task.

    >>> configure("digits", recipe="supervised", n_layers=2).model.d_model
    64
    >>> configure(preset="amos-image").stages
    (('masked', 45000), ('labels', 180000))
    >>> configure("pairs", steps=200).stages
    (('masked', 150), ('labels', 50))
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset={preset!r} is unknown; valid: {listed(PRESETS)}")
    chosen = {} if preset is None else PRESETS[preset]
    name = kept(task) if isinstance(task, Task) else task or chosen.get("task", "pairs")
    if chosen and name != chosen["task"]:
        raise UsageError(f"preset={preset!r} is for task {chosen['task']}, not {name}")
    options = named.get("task_options") or {}
    if isinstance(options, Mapping):
        named["task_options"] = options = {**chosen.get("task_options", {}), **options}
    found = source(name, options)
    begun = {**(chosen or found.settings), "task": name}
    config = from_flat({**begun, **_stretched(from_flat(begun), named), **named})
    _check_splits(config, found)
    return config


def _stretched(begun: TrainConfig, named: Mapping[str, Any]) -> dict[str, int]:
    """Return the steps of self-pretraining where only those of both stages are named: the same share."""
    steps, recipe = named.get("steps"), named.get("recipe", begun.recipe)
    if recipe != "spt" or not isinstance(steps, int) or "pretrain_steps" in named:
        return {}
    return {"pretrain_steps": max(1, round(steps * begun.pretrain_steps / begun.steps))}


def _check_splits(config: TrainConfig, source: Source) -> None:
    """Raise `UsageError` where the configuration needs a validation split that there will not be."""
    check_held_out(short_name(config.task), config.validation_size, source.sizes)
    if config.patience and not config.validation_size and "validation" not in source.sizes:
        raise UsageError(
            f"patience={config.patience}: needs a validation split; validation_size keeps training sequences for it"
        )
