"""Results: labelled arrays that carry their units, their method and where they come from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.axes import LABELS
from attnprobe.errors import UsageError
from attnprobe.provenance import provenance


def variable(axes: Sequence[str], values: Any, long_name: str, units: str, method: str = "") -> xr.Variable:
    """Return a variable over axes of the glossary; raise ``KeyError`` for a word that the glossary lacks."""
    for axis in axes:
        LABELS[axis]
    attributes = {"long_name": long_name, "units": units}
    return xr.Variable(tuple(axes), np.asarray(values), {**attributes, **({"method": method} if method else {})})


def dataset(variables: dict[str, xr.Variable], coordinates: dict[str, Any], facts: dict[str, Any]) -> xr.Dataset:
    """Return a result: variables, coordinates with the glossary's labels, and the facts of how it was made.

    Facts that are not plain numbers or strings are stored as JSON; provenance is added.
    """
    labelled = {axis: (axis, np.asarray(values), {"long_name": LABELS[axis]}) for axis, values in coordinates.items()}
    attributes = {**facts, "provenance": provenance()}
    plain = {
        name: value if isinstance(value, str | int | float) else json.dumps(value) for name, value in attributes.items()
    }
    return xr.Dataset(variables, labelled, plain)


def over_steps(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the results of a run's checkpoints along ``step``; facts that differ between them are left out."""
    by_step: list[xr.Dataset] = [result.expand_dims(step=[result.attrs["step"]]) for result in results]
    joined = xr.concat(by_step, dim="step", combine_attrs="drop_conflicts", join="exact")
    joined["step"].attrs["long_name"] = LABELS["step"]
    return joined


def save(result: xr.Dataset, path: Path) -> None:
    """Write a result as netCDF, whole or not at all."""
    part = path.with_name(path.name + ".part")
    result.to_netcdf(part, engine="h5netcdf")
    os.replace(part, path)


def open_result(path: str | Path) -> xr.Dataset:
    """Read a result that `save` wrote; raise `UsageError` where the file is none."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as result:
            return result.load()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a result of attnprobe ({str(error).strip().splitlines()[0]})") from error
