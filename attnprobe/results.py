"""Results: labelled arrays with units, method and provenance."""

import hashlib
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import attnprobe.results_accessor  # noqa: F401  registers ds.ap
from attnprobe.axes import KINDS, LABELS
from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.files import atomic_path, writing
from attnprobe.former_names import (
    ATTRIBUTES,
    AXES,
    COORDINATES,
    INTERVENTIONS,
    STD,
    VARIABLES,
    current_settings,
)
from attnprobe.provenance import provenance


def variable(axes: Sequence[str], values: Any, long_name: str, units: str, method: str = "") -> xr.Variable:
    """Build a variable over axes of `attnprobe.axes`; raise ``KeyError`` if an axis is unknown."""
    for axis in axes:
        LABELS[axis]
    attributes = {"long_name": long_name, "units": units}
    return xr.Variable(tuple(axes), np.asarray(values), {**attributes, **({"method": method} if method else {})})


def dataset(variables: dict[str, xr.Variable], coordinates: dict[str, Any], facts: dict[str, Any]) -> xr.Dataset:
    """Build a result from variables, coordinates and facts about the computation.

    Coordinates are labelled, and omitted if no variable has their axis. Facts are stored as attributes, together with
    the provenance; those that are not plain numbers or strings are encoded as JSON.
    """
    used = {axis for array in variables.values() for axis in array.dims}
    labelled = {
        axis: (axis, np.asarray(values), {"long_name": LABELS[axis]})
        for axis, values in coordinates.items()
        if axis in used
    }
    attributes = {**facts, "provenance": provenance()}
    plain = {name: _plain(value) for name, value in attributes.items()}
    return xr.Dataset(variables, labelled, plain)


def _plain(value: Any) -> str | int | float:
    """Convert a fact to a netCDF attribute: booleans to 0 or 1, anything except numbers and strings to JSON."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float) else json.dumps(value, default=str)


def join(results: Sequence[xr.Dataset], axis: str, values: Sequence[Any]) -> xr.Dataset:
    """Join results along a new axis, drop facts that differ between them, and record new provenance."""
    expanded: list[xr.Dataset] = [
        result.expand_dims({axis: [value]}) for result, value in zip(results, values, strict=True)
    ]
    joined = xr.concat(expanded, dim=axis, combine_attrs="drop_conflicts", join="exact")
    for name, array in joined.items():
        joined_rules: dict[str, dict[str, Any]] = {}
        for result, value in zip(results, values, strict=True):
            for rule in _rules(result[name]):
                joined_rules.setdefault(json.dumps(rule), {**rule, axis: []})[axis].append(value)
        if joined_rules:
            array.attrs[UNDEFINED] = json.dumps(list(joined_rules.values()), default=str)
    joined[axis].attrs["long_name"] = LABELS[axis]
    joined.attrs["provenance"] = json.dumps(provenance())
    return joined


# --- reasons for undefined values

UNDEFINED = "undefined"
"""Attribute of a variable that has NaN: a JSON list of rules.

A rule has a ``reason`` and, by axis, the coordinate values (numbers from 0 for axes without coordinate) of the values
that it explains; it explains all along axes that it does not name.
"""
TAILS = ("_interval", "_std", "_null", "_se")
"""Endings of the variables that belong to a statistic."""


@dataclass(frozen=True)
class Reason:
    """Why some values of some statistics are undefined (NaN)."""

    names: str
    """Patterns of the statistics, separated by spaces, without ``grid_`` and the endings `TAILS`; if a pattern has such
    an ending, it is for that variable only."""
    text: str
    where: Callable[[xr.Dataset, str], Any] = lambda result, name: True
    """Function from the result and the name of a variable to where the reason applies, over any of its axes."""


TOO_FEW = "fewer than two sequences have a value"


def with_reasons(result: xr.Dataset, reasons: Sequence[Reason]) -> xr.Dataset:
    """Return a result whose variables with NaN have the attribute `UNDEFINED`.

    Of the reasons that apply to a value, the first counts. Intervals, standard deviations and errors of statistics that
    are defined themselves are undefined if fewer than two sequences have a value.
    """
    for variable_name, array in result.items():
        name = str(variable_name)
        if array.dtype.kind != "f" or not (unexplained := array.isnull()).any():
            continue
        statistic, tail = _statistic(name, result)
        missing, rules = unexplained.values.copy(), []
        by_sequences = Reason("*", TOO_FEW, lambda result, name: result[_statistic(name, result)[0]].notnull())
        for reason in [*reasons, *([by_sequences] if tail in ("_interval", "_std", "_se") else [])]:
            plain = (statistic.removeprefix("grid_"), name.removeprefix("grid_"))
            if not any(fnmatchcase(one, pattern) for one in plain for pattern in reason.names.split()):
                continue
            explained = unexplained & reason.where(result, name)
            explained = explained.any([axis for axis in explained.dims if axis not in array.dims])
            if not explained.any():
                continue
            explained = explained.transpose(*array.dims)
            for box in _boxes(explained.values, np.asarray(missing & ~explained.values)):
                labels = {
                    str(axis): _labels(array, str(axis))[index].tolist()
                    for axis, index in zip(array.dims, box, strict=True)
                    if len(index) < array.sizes[axis]
                }
                rules.append({"reason": reason.text, **labels})
            unexplained = unexplained & ~explained
        if rules:
            array.attrs[UNDEFINED] = json.dumps(rules)
    return result


def reasons(result: xr.Dataset) -> xr.Dataset:
    """Return, for every variable that has NaN, an array of the same axes with the reason of each NaN, else "".

    A value without a reason has "no reason is stated", as in files of earlier versions.
    """
    names = [name for name, array in result.items() if array.dtype.kind == "f"]
    return result[names].map(reasons_of).assign_attrs(result.attrs)


def reasons_of(array: xr.DataArray) -> xr.DataArray:
    """Return the reason of each NaN of a variable, or "" where it is defined."""
    texts, missing = np.full(array.shape, "", dtype=object), np.isnan(array.values)
    for rule in _rules(array) if missing.any() else []:
        matches = missing & (texts == "")
        for axis, labels in rule.items():
            if axis in array.dims:
                inside = np.isin(_labels(array, axis), labels)
                matches = matches & inside.reshape([-1 if dim == axis else 1 for dim in array.dims])
            elif axis in array.coords:
                matches = matches & (array[axis].item() in labels)
        texts[matches] = rule["reason"]
    texts[missing & (texts == "")] = "no reason is stated"
    return xr.DataArray(texts, array.coords, array.dims)


def _rules(array: xr.DataArray) -> list[dict[str, Any]]:
    """Return the rules of `UNDEFINED`; raise `UsageError` if the attribute is not a list of rules."""
    text = array.attrs.get(UNDEFINED, "[]")
    try:
        rules = json.loads(text)
        if all(isinstance(rule.get("reason"), str) and _are_lists(rule) for rule in rules):
            return rules
    except (AttributeError, RecursionError, TypeError, ValueError):
        pass
    raise UsageError(f"{array.name}: attribute {UNDEFINED}={shown(text)}: must be a JSON list of rules with reasons")


def _are_lists(rule: dict[str, Any]) -> bool:
    return all(isinstance(labels, list) for axis, labels in rule.items() if axis != "reason")


def _statistic(name: str, result: xr.Dataset) -> tuple[str, str]:
    """Split a variable's name into the statistic that it belongs to and its ending."""
    for tail in TAILS:
        if name.endswith(tail) and name.removesuffix(tail) in result:
            return name.removesuffix(tail), tail
    return name, ""


def _labels(array: xr.DataArray, axis: str) -> np.ndarray:
    return array[axis].values if axis in array.coords else np.arange(array.sizes[axis])


def _boxes(cells: np.ndarray, others: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yield the indices along each axis of boxes that together cover all ``cells`` and none of ``others``."""
    if not cells.any():
        return
    indices = [np.unique(axis_indices) for axis_indices in np.argwhere(cells).T]
    if not cells.ndim or not others[np.ix_(*indices)].any():
        yield indices
        return
    axis = next(axis for axis, index in enumerate(indices) if len(index) > 1)
    for index in indices[axis]:
        slab = np.zeros(cells.shape, dtype=bool)
        slab[(slice(None),) * axis + (index,)] = True
        yield from _boxes(cells & slab, others)


def over_steps(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the results of a run's checkpoints along ``step``.

    Raises:
        UsageError: If there are none, they are of different measures or runs, or a step occurs twice.
    """
    if not results:
        raise UsageError("over_steps: no results; pass those of the checkpoints of one run")
    if len(measures := dict.fromkeys(map(measure_of, results))) > 1:
        raise UsageError(f"over_steps: results of different measures, {' and '.join(measures)}; pass those of one")
    first, steps = results[0], [result.attrs["step"] for result in results]
    for result in results[1:]:
        if differing := [name for name, value in _run(result).items() if value != _run(first).get(name, value)]:
            titles = " and ".join(abridged(str(one.attrs.get("title", ""))) for one in (first, result))
            raise UsageError(f"over_steps: results of different runs ({listed(differing)} differ): {titles}")
    if twice := sorted({step for step in steps if steps.count(step) > 1}):
        raise UsageError(f"over_steps: step {twice[0]} occurs twice; pass one result per checkpoint of one run")
    return join(results, "step", steps)


def over_seeds(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the results of runs that differ in their seeds only along ``seed``; figures draw means over them.

    Raises:
        UsageError: If there are none, they are of different measures, or the runs do not differ in their seeds only.
    """
    if not results:
        raise UsageError("over_seeds: no results; pass those of runs with different seeds")
    if len(measures := dict.fromkeys(map(measure_of, results))) > 1:
        raise UsageError(f"over_seeds: results of different measures, {listed(measures)}; pass those of one")
    runs = [_run(result) for result in results]
    seeds = [run.pop("config seed", None) for run in runs]
    if None in seeds:
        raise UsageError("over_seeds: a result has no seed of training; join such results with xarray, along run")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"over_seeds: seeds {listed(seeds)} are not different; pass one result per seed")
    for run in runs:
        varying = ("config init_seed", "data_fingerprint")  # data are generated from the seed
        differing = [name for name, value in run.items() if value != runs[0].get(name, value) and name not in varying]
        if differing:
            raise UsageError(f"over_seeds: the runs differ in more than their seeds: {listed(differing)}")
    return join(results, "seed", seeds)


def _run(result: xr.Dataset) -> dict[str, Any]:
    """Return what identifies the run of a result: its configuration, except for later extensions, data and model."""
    config = json.loads(result.attrs.get("config", "{}"))
    for name in ("more_steps", "device"):
        config.pop(name, None)
    identity = {f"config {name}": value for name, value in config.items()}
    names = ("data_fingerprint", "model", "inputs_fingerprint")
    return identity | {name: result.attrs[name] for name in names if name in result.attrs}


def as_result(result: xr.Dataset) -> xr.Dataset:
    """Return a result; raise `UsageError` for anything else, such as the path of one."""
    if not isinstance(result, xr.Dataset):
        raise UsageError(f"{shown(result)}: must be a result, an xarray.Dataset; open files with attnprobe.open_result")
    return result


def measure_of(result: xr.Dataset) -> str:
    """Return the name of the measure that a result is of."""
    measure = as_result(result).attrs.get("measure")
    if not isinstance(measure, str):
        raise UsageError(
            f"attribute measure={shown(measure)}: must be the measure's name, such as {listed(MAIN_NUMBERS)}"
        )
    return measure


def own_prefix(result: xr.Dataset) -> str:
    """Return the prefix of the variables in the geometry of the data: ``grid_`` for images, none for sequences."""
    return "grid_" if any(str(name).startswith("grid_") for name in as_result(result)) else ""


MAIN_NUMBERS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "proximity": [("proximity_contrast", {})],
    "positions": [("variance_share", {"term": "position-position"})],
    "gradients": [("snr", {"loss": loss, "direction": "circulant exponential"}) for loss in ("masked", "labels")],
    "interventions": [(f"{name}_change", {"intervention": "ablate_toeplitz"}) for name in ("accuracy", "loss")],
    "flow": [("entropy_ratio", {})],
}
"""Number of a head that tables and pages show first, by measure: variables and categories, in order of preference."""


def main_number(result: xr.Dataset) -> tuple[str, dict[str, Any]] | None:
    """Return the variable that tables and pages show first, and its categories (loss, term ...), in order of `KINDS`.

    It is the first of `MAIN_NUMBERS` with a value, or without any value the first of them, in the geometry of the data;
    for other measures, their first number. None if no variable has one number per head.
    """
    candidates = MAIN_NUMBERS.get(str(result.attrs.get("measure")), [])
    preferred = [(prefix + name, chosen) for name, chosen in candidates for prefix in (own_prefix(result), "")]
    found = [number for name, chosen in preferred if (number := _number_of_heads(result, name, chosen))]
    with_values = [(name, chosen) for name, chosen in found if result[name].sel(chosen).notnull().any()]
    names = [*result.attrs.get("table", "").split(), *map(str, result)]
    others = (_number_of_heads(result, name, {}) for name in names)
    return next(iter(with_values or found), None) or next(filter(None, others), None)


def _number_of_heads(result: xr.Dataset, name: str, chosen: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return a variable and its categories, the first one where none is chosen; None if it is no number per head."""
    if name not in result or result[name].dtype.kind != "f" or not {"layer", "head"} <= set(result[name].dims):
        return None
    kinds = [axis for axis in KINDS if axis in result[name].dims]
    if set(result[name].dims) - {"step", "seed", "run", "layer", "head", *kinds}:
        return None
    categories = {axis: chosen.get(axis, result[axis].values.tolist()[0]) for axis in kinds}
    exists = all(value in result[axis].values for axis, value in categories.items())
    return (name, categories) if exists else None


def distance_unit(result: xr.Dataset) -> str:
    """Return the unit of distances in the geometry of the data: tokens, pixels or patches."""
    return result.attrs.get("grid_unit", "pixels") if own_prefix(result) else "tokens"


def most_proximal(result: xr.Dataset) -> dict[Any, xr.DataArray]:
    """Return the ``isel`` indices of the head with the largest contrast in the geometry of the data."""
    return result[f"{own_prefix(result)}proximity_contrast"].argmax(("layer", "head"))


def save(result: xr.Dataset, path: Path) -> None:
    """Write a result as netCDF atomically, with a checksum after the end of the netCDF content.

    Raises:
        UsageError: If the file cannot be written; the previous file is kept.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    # HDF5 itself writes to memory only: it can crash the process if the disk is full.
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        result.dump_to_store(H5NetCDFStore(file))
    content = buffer.getvalue()
    with writing(path), atomic_path(path) as part:
        part.write_bytes(content + _checksum(content))


def open_result(path: str | Path) -> xr.Dataset:
    """Read a result written by `save`; raise `UsageError` if the file is damaged or not a result.

    Files of earlier versions have no checksum; their damage is found only if it makes them unreadable.
    """
    import h5py

    try:
        content = _verified(Path(path).read_bytes())
        with h5py.File(io.BytesIO(content), "r") as file:
            dict(file.attrs)  # if they are damaged, h5netcdf prints an error of its own destructor
            _check_objects(file, len(content))
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as result:
            _check_attributes(result)
            return with_current_names(result.load())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:  # HDF5, h5netcdf and xarray raise many kinds for a damaged file
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
        reason = textwrap.shorten(reason, 300)
        raise UsageError(f"{path}: not an attnprobe result, or damaged ({reason}); measure again") from error


def _check_attributes(result: xr.Dataset) -> None:
    """Raise `UsageError` if an attribute of settings or provenance is no JSON object."""
    for name in ("config", "provenance", "left_out"):
        if not isinstance(json.loads(result.attrs.get(name, "{}")), dict):
            raise UsageError(f"its {name} is not a JSON object")


RATIO, SMALL = 1000, 2**28
"""Largest ratio of the bytes of all variables to those of the file, and number of bytes that is allowed in any case."""


def _check_objects(file: Any, size: int) -> None:
    """Raise `UsageError` if variables are elsewhere than in the file, or far larger than it: HDF5 stores no zeros."""
    import h5py

    claimed = 0
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UsageError(f"{shown(name)} is a link: a result holds all of its variables")
        variable = file[name]
        if isinstance(variable, h5py.Dataset):
            if variable.external or variable.is_virtual:
                raise UsageError(f"the values of {shown(name)} are in another file")
            claimed += variable.size * variable.dtype.itemsize if variable.shape is not None else 0
    if claimed > max(SMALL, RATIO * size):
        raise UsageError(f"claims {claimed:,} bytes, more than {RATIO} times its {size:,}")


def _checksum(content: bytes) -> bytes:
    return f"attnprobe sha256 {hashlib.sha256(content).hexdigest()}".encode()


def _verified(content: bytes) -> bytes:
    """Return a file's content without the checksum that follows it; raise `UsageError` if the checksum is wrong.

    The checksum is not an attribute: programs that edit a result copy its attributes. They ignore what follows the end.
    """
    end = _end(content)
    content, checksum = content[:end], content[end:]
    if checksum and checksum != _checksum(content):
        raise UsageError("its content differs from its checksum")
    return content


def _end(content: bytes) -> int:
    """Return the size of an HDF5 file according to its superblock, whose place depends on the version."""
    place = {0: 40, 1: 44, 2: 28, 3: 28}.get(content[8] if len(content) > 8 else -1)
    return len(content) if place is None else int.from_bytes(content[place : place + 8], "little")


def with_current_names(result: xr.Dataset) -> xr.Dataset:
    """Rename variables, axes, coordinate values, attributes and units of earlier versions to their current names."""
    variables = {str(name): _current_variable(str(name), result) for name in result.data_vars}
    renamed = result.rename({name: new for name, new in variables.items() if name != new})
    renamed = renamed.rename({axis: new for axis, new in AXES.items() if axis in renamed.dims})
    for axis, values in COORDINATES.items():
        if axis in renamed.coords and renamed[axis].dtype.kind in "UOT":
            current = np.array([values.get(str(value), str(value)) for value in renamed[axis].values.ravel()])
            attributes = renamed[axis].attrs
            renamed = renamed.assign_coords({axis: (renamed[axis].dims, current.reshape(renamed[axis].shape))})
            renamed[axis].attrs = attributes
    for variable in renamed.variables.values():
        if variable.attrs.get("units") == "sd of the score":
            variable.attrs["units"] = "std of the score"
    renamed.attrs = {ATTRIBUTES.get(name, name): value for name, value in renamed.attrs.items()}
    if "config" in renamed.attrs:
        config = json.loads(renamed.attrs["config"])
        config["model"] = current_settings(config.get("model", {}))
        renamed.attrs["config"] = json.dumps(current_settings(config))
    if "left_out" in renamed.attrs:
        left_out = json.loads(renamed.attrs["left_out"])
        renamed.attrs["left_out"] = json.dumps({INTERVENTIONS.get(name, name): why for name, why in left_out.items()})
    return renamed


def _current_variable(name: str, result: xr.Dataset) -> str:
    former, current = STD
    if name.endswith(former) and f"{name.removesuffix(former)}_interval" in result:
        name = name.removesuffix(former) + current
    for prefix in ("", "grid_"):
        for old, new in VARIABLES.items():
            if name == prefix + old or name.startswith(f"{prefix}{old}_"):
                return prefix + new + name.removeprefix(prefix + old)
    return name
