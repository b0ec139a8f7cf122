"""Results: labelled arrays with units, method and provenance."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.axes import LABELS
from attnprobe.errors import UsageError
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
    joined[axis].attrs["long_name"] = LABELS[axis]
    joined.attrs["provenance"] = json.dumps(provenance())
    return joined


def over_steps(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the results of a run's checkpoints along ``step``."""
    return join(results, "step", [result.attrs["step"] for result in results])


def own_prefix(result: xr.Dataset) -> str:
    """Return the prefix of the variables in the geometry of the data: ``grid_`` for images, none for sequences."""
    return "grid_" if "grid_proximity_contrast" in result else ""


def distance_unit(result: xr.Dataset) -> str:
    """Return the unit of distances in the geometry of the data: tokens, pixels or patches."""
    return result.attrs.get("grid_unit", "pixels") if own_prefix(result) else "tokens"


def most_proximal(result: xr.Dataset) -> dict[Any, xr.DataArray]:
    """Return the ``isel`` indices of the head with the largest contrast in the geometry of the data."""
    return result[f"{own_prefix(result)}proximity_contrast"].argmax(("layer", "head"))


def save(result: xr.Dataset, path: Path) -> None:
    """Write a result as netCDF atomically."""
    part = path.with_name(path.name + ".part")
    result.to_netcdf(part, engine="h5netcdf")
    os.replace(part, path)


def open_result(path: str | Path) -> xr.Dataset:
    """Read a result written by `save`; raise `UsageError` if the file is not a result."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as result:
            return with_current_names(result.load())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not an attnprobe result ({str(error).strip().splitlines()[0]})") from error


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
