"""From the file of a sweep to its cells: every combination of settings, each with the folder that belongs to it."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnprobe import tasks
from attnprobe.config import TrainConfig, read_file
from attnprobe.errors import UsageError, listed
from attnprobe.former_names import former_settings, refuse_former_settings

OPTIONS = "task_options"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    folder: Path
    config: TrainConfig
    settings: dict[str, Any]
    """Task, recipe and seed, what the grid names and what else differs between cells; options as task_options.NAME."""


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, in the order of its grid: the last list changes fastest."""

    out: Path
    cells: tuple[Cell, ...]

    def shard(self, shard: str | None) -> tuple[Cell, ...]:
        """Return the cells of shard ``i/k``, those whose index is i modulo k; all for None."""
        if shard is None:
            return self.cells
        first, slash, count = shard.partition("/")
        if not (slash and first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            raise UsageError(f"shard={shard!r}: must be i/k with 0 <= i < k")
        return self.cells[int(first) :: int(count)]


def read_sweep(path: str | Path, out: str | Path | None = None) -> Sweep:
    """Read a sweep from a TOML or YAML file, into ``out`` or the folder that the file names, or runs/NAME-OF-THE-FILE.

    Raises `UsageError` naming the cell whose settings do not fit each other; nothing is written.
    """
    path = Path(path)
    found = read_file(path)
    valid = {"out": str, "base": dict, "grid": dict}
    for name, value in found.items():
        if name not in valid:
            raise UsageError(f"{path}: a sweep has no {name!r}; valid: {listed(valid)}")
        if not isinstance(value, valid[name]):
            raise UsageError(f"{path}: {name}={value!r} must be {'text' if name == 'out' else 'a section'}")
    folder = Path(out or found.get("out") or Path("runs") / path.stem)
    base = _flat(found.get("base", {}), str(path))
    named = [dict(itertools.chain(*map(dict.items, cell))) for cell in itertools.product(*_axes(found, str(path)))]
    configs = [_configure(base, settings, str(path)) for settings in named]
    shown = _shown(configs, named)
    folders = [run_folder(folder, config) for config in configs]
    first: dict[Path, int] = {}
    for index, (one, settings) in enumerate(zip(folders, named, strict=True)):
        # Merged, they would leave the table with fewer rows than the grid has cells, and a slip unseen.
        if first.setdefault(one, index) != index:
            raise UsageError(f"{path}: cells {first[one]} and {index} are the same run ({_said(settings)})")
    return Sweep(folder, tuple(map(Cell, folders, configs, shown)))


def _axes(found: Mapping[str, Any], where: str) -> list[list[dict[str, Any]]]:
    """Return for every list of the grid its values, each as the settings that it stands for."""
    lists: dict[str, Any] = {}
    for name, values in found.get("grid", {}).items():
        lists |= _flat({name: values}, where) if isinstance(values, dict) and name == OPTIONS else {name: values}
    axes: dict[str, list[dict[str, Any]]] = {}
    for name, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: grid.{name}={values!r} must be a list of values, or of tables")
        together = {isinstance(value, dict) and name != OPTIONS for value in values}
        if len(together) > 1:
            raise UsageError(f"{where}: grid.{name} mixes values and tables")
        axes[name] = [_flat(value if together == {True} else {name: value}, where) for value in values]
    owner: dict[str, str] = {}
    for name, axis in axes.items():
        for setting in dict.fromkeys(itertools.chain(*axis)):
            if owner.setdefault(setting, name) != name:
                raise UsageError(f"{where}: {setting} is in grid.{owner[setting]} and in grid.{name}")
    return list(axes.values())


def _flat(named: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return settings with the parameters of the task as task_options.NAME beside them."""
    for name in named:
        if not isinstance(name, str):
            raise UsageError(f"{where}: {name!r} is not the name of a setting")
    options = named.get(OPTIONS, {})
    if not isinstance(options, Mapping):
        raise UsageError(f"{where}: {OPTIONS}={options!r} must be names and values")
    try:
        refuse_former_settings(named)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    rest = {name: value for name, value in named.items() if name != OPTIONS}
    return rest | {f"{OPTIONS}.{name}": value for name, value in options.items()}


def _configure(base: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> TrainConfig:
    flat = {**base, **settings}
    options = {name: flat.pop(name) for name in list(flat) if name.startswith(f"{OPTIONS}.")}
    if options:
        flat[OPTIONS] = {name.removeprefix(f"{OPTIONS}."): value for name, value in options.items()}
    try:
        return tasks.configure(**flat)
    except UsageError as error:
        raise UsageError(f"{where}: cell {_said(settings)}: {error}") from None


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "base"


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return every setting of a run under one flat name, as plain values."""
    plain = dataclasses.asdict(config)
    options = {f"{OPTIONS}.{name}": value for name, value in plain.pop(OPTIONS).items()}
    return {**plain.pop("model"), **plain, **options}


def _shown(configs: list[TrainConfig], named: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for every cell the settings that tell it from the others."""
    plain = list(map(_plain, configs))
    values: dict[str, set[str]] = {}
    for name in dict.fromkeys(itertools.chain(*plain)):
        values[name] = {json.dumps(one.get(name)) for one in plain}
    given = list(dict.fromkeys(itertools.chain(*named)))
    differing = [name for name, found in values.items() if len(found) > 1]
    names = dict.fromkeys(["task", "recipe", "seed", *given, *differing])
    return [
        {name: one.get(name, settings.get(name)) for name in names} for one, settings in zip(plain, named, strict=True)
    ]


def run_folder(sweep: Path, config: TrainConfig) -> Path:
    """Return the folder of a configuration in a sweep, or the one that an earlier version gave it if that exists."""
    plain = dataclasses.asdict(config)
    current, former = (sweep / _folder_name(fields) for fields in (plain, former_settings(plain)))
    return former if former.exists() and not current.exists() else current


def _folder_name(fields: Mapping[str, Any]) -> str:
    """Return the name of the folder that belongs to settings: the same for the same settings."""
    text = json.dumps(_canonical(fields), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{tasks.short_name(fields['task'])}-{fields['recipe']}-{fields['seed']}-{digest}"


def _canonical(value: Any) -> Any:
    """Return a value in one form for all that are equal: 64.0 is 64."""
    if isinstance(value, dict):
        return {name: _canonical(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
