"""Sweep plans: expand a sweep file into cells, one per combination of settings, each with its run folder."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnprobe import tasks
from attnprobe.config import TrainConfig, read_file
from attnprobe.errors import UsageError, abridged, choices, shown
from attnprobe.former_names import former_settings, refuse_former_settings

OPTIONS = "task_options"
ADDED: dict[str, Any] = {"class_weights": "none", "eval_size": 0, "more_steps": [], "dropout": 0.0}
"""Settings that earlier versions lack, with their defaults, at which they do not change the name of a folder."""

MOST_CELLS = 10**4
"""Largest number of cells; each is a run, and a plan that holds more is surely a mistake in a list."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    folder: Path
    config: TrainConfig
    settings: dict[str, Any]
    """Task, recipe, seed and all settings in the grid or that differ between cells; options as task_options.NAME."""


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep in grid order: the last list varies fastest."""

    out: Path
    cells: tuple[Cell, ...]

    def shard(self, shard: str | None) -> tuple[Cell, ...]:
        """Return the cells of shard ``i/k``, whose index is i modulo k; all cells for None."""
        if shard is None:
            return self.cells
        first, slash, count = shard.partition("/")
        if not (slash and first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            raise UsageError(f"shard={shard!r}: must be i/k with 0 <= i < k")
        return self.cells[int(first) :: int(count)]


def read_sweep(path: str | Path, out: str | Path | None = None) -> Sweep:
    """Read a sweep from a TOML or YAML file; nothing is written.

    Args:
        path: The sweep file.
        out: Output folder; by default the file's ``out``, else runs/NAME-OF-THE-FILE.

    Raises:
        UsageError: If the file is invalid or the settings of a cell are inconsistent; the message names the cell.
    """
    path = Path(path)
    content = read_file(path)
    valid = {"out": str, "base": dict, "grid": dict}
    for name, value in content.items():
        if name not in valid:
            raise UsageError(f"{path}: unknown key {shown(name)}; {choices(name, valid)}")
        if not isinstance(value, valid[name]):
            raise UsageError(f"{path}: {name}={shown(value)}: must be {'a string' if name == 'out' else 'a section'}")
    folder = Path(out or content.get("out") or Path("runs") / path.stem)
    base = _flat(content.get("base", {}), str(path))
    axes = _axes(content, str(path))
    if math.prod(map(len, axes)) > MOST_CELLS:
        sizes = abridged(" x ".join(str(len(axis)) for axis in axes))
        raise UsageError(f"{path}: grid has {sizes} cells: must have at most {MOST_CELLS:,}")
    combinations = [dict(itertools.chain(*map(dict.items, cell))) for cell in itertools.product(*axes)]
    configs = [_configure(base, settings, str(path)) for settings in combinations]
    cell_settings = _distinguishing(configs, combinations)
    folders = [run_folder(folder, config) for config in configs]
    first: dict[Path, int] = {}
    for index, (run, settings) in enumerate(zip(folders, combinations, strict=True)):
        # Merging duplicates would hide a mistake: the table would have fewer rows than the grid has cells.
        if first.setdefault(run, index) != index:
            raise UsageError(f"{path}: cells {first[run]} and {index} are the same run ({_describe(settings)})")
    return Sweep(folder, tuple(map(Cell, folders, configs, cell_settings)))


def _axes(content: Mapping[str, Any], where: str) -> list[list[dict[str, Any]]]:
    """Return the values of each list in the grid, each value as a dict of settings."""
    lists: dict[str, Any] = {}
    for name, values in content.get("grid", {}).items():
        lists |= _flat({name: values}, where) if isinstance(values, dict) and name == OPTIONS else {name: values}
    axes: dict[str, list[dict[str, Any]]] = {}
    for name, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UsageError(
                f"{where}: grid.{abridged(str(name))}={shown(values)}: must be a non-empty list of values or of tables"
            )
        are_tables = {isinstance(value, dict) and name != OPTIONS for value in values}
        if len(are_tables) > 1:
            raise UsageError(f"{where}: grid.{name} mixes values and tables")
        axes[name] = [_flat(value if are_tables == {True} else {name: value}, where) for value in values]
    owner: dict[str, str] = {}
    for name, axis in axes.items():
        for setting in dict.fromkeys(itertools.chain(*axis)):
            if owner.setdefault(setting, name) != name:
                raise UsageError(f"{where}: {setting} is in both grid.{owner[setting]} and grid.{name}")
    return list(axes.values())


def _flat(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return settings with task parameters flattened to task_options.NAME."""
    for name in settings:
        if not isinstance(name, str):
            raise UsageError(f"{where}: {shown(name)} is not the name of a setting")
    options = settings.get(OPTIONS, {})
    if not isinstance(options, Mapping):
        raise UsageError(f"{where}: {OPTIONS}={shown(options)}: must be a table of names and values")
    try:
        refuse_former_settings(settings)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    rest = {name: value for name, value in settings.items() if name != OPTIONS}
    return rest | {f"{OPTIONS}.{name}": value for name, value in options.items()}


def _configure(base: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> TrainConfig:
    flat = {**base, **settings}
    options = {name: flat.pop(name) for name in list(flat) if name.startswith(f"{OPTIONS}.")}
    if options:
        flat[OPTIONS] = {name.removeprefix(f"{OPTIONS}."): value for name, value in options.items()}
    try:
        return tasks.configure(**flat)
    except UsageError as error:
        raise UsageError(f"{where}: cell {_describe(settings)}: {error}") from None


def _describe(settings: Mapping[str, Any]) -> str:
    return abridged(", ".join(f"{name}={value}" for name, value in settings.items()), 150) or "base"


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return all settings of a run as a flat dict of plain values."""
    plain = dataclasses.asdict(config)
    options = {f"{OPTIONS}.{name}": value for name, value in plain.pop(OPTIONS).items()}
    return {**plain.pop("model"), **plain, **options}


def _distinguishing(configs: list[TrainConfig], combinations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for every cell, the settings that distinguish it from the others."""
    cells = list(map(_plain, configs))
    values: dict[str, set[str]] = {}
    for name in dict.fromkeys(itertools.chain(*cells)):
        values[name] = {json.dumps(cell.get(name)) for cell in cells}
    in_grid = list(dict.fromkeys(itertools.chain(*combinations)))
    differing = [name for name, distinct in values.items() if len(distinct) > 1]
    names = dict.fromkeys(["task", "recipe", "seed", *in_grid, *differing])
    return [
        {name: cell.get(name, settings.get(name)) for name in names}
        for cell, settings in zip(cells, combinations, strict=True)
    ]


def run_folder(sweep: Path, config: TrainConfig) -> Path:
    """Return the run folder of a configuration in a sweep; an existing folder named by an earlier version is kept."""
    plain = dataclasses.asdict(config)
    current, former = (sweep / _folder_name(fields) for fields in (plain, former_settings(plain)))
    return former if former.exists() and not current.exists() else current


def _folder_name(fields: Mapping[str, Any]) -> str:
    """Return the folder name of settings; equal settings have equal names."""
    canonical = _canonical(fields)
    text = json.dumps(_without_defaults(canonical), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{tasks.short_name(fields['task'])}-{fields['recipe']}-{fields['seed']}-{digest}"


def _without_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, of the network too, without those of `ADDED` that have their defaults."""
    return {
        name: _without_defaults(value) if name == "model" else value
        for name, value in fields.items()
        if name not in ADDED or value != ADDED[name]
    }


def _canonical(value: Any) -> Any:
    """Return the canonical form of a value, the same for equal values (64.0 becomes 64)."""
    if isinstance(value, dict):
        return {name: _canonical(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
