"""The numbers of a result as rows, for tables and programs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

KINDS = ("window", "term", "loss", "other_loss", "direction", "subspace", "intervention")
"""Axes along which one head has several numbers."""


def head_rows(result: xr.Dataset, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return every number that a head has one or a few of, a dictionary a head (and step), for tables and programs.

    Beside ``NAME`` stand ``NAME_interval``, ``NAME_null_permuted`` and so on: the two ends of each range. Where there
    are several the kind ends the name: ``near_mass_1``, ``variance_share_content-content``.
    """
    chosen = [str(name) for name in result if names is None or name in names]
    return _rows(result, [axis for axis in ("step", "layer", "head") if axis in result.dims], chosen)


def shown_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return the rows of the numbers that the measure names for its table; all where it names none."""
    names = result.attrs.get("table", "").split()
    return head_rows(result, names or None)


def whole_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return the same for numbers of the whole network that have an interval, a dictionary a step."""
    names = [str(name) for name in result if f"{name}_interval" in result]
    rows = _rows(result, [axis for axis in ("step",) if axis in result.dims], names)
    return [row for row in rows if set(row) - {"step"}]


def _rows(result: xr.Dataset, axes: list[str], names: list[str]) -> list[dict[str, Any]]:
    numbers = {}
    for name in names:
        kinds = [axis for axis in KINDS if axis in result[name].dims]
        if set(result[name].dims) == {*axes, *kinds}:
            for chosen in itertools.product(*(result[axis].values.tolist() for axis in kinds)):
                numbers["_".join(map(str, [name, *chosen]))] = name, dict(zip(kinds, chosen, strict=True))
    rows = []
    for place in itertools.product(*(range(result.sizes[axis]) for axis in axes)):
        at = dict(zip(axes, place, strict=True))
        row: dict[str, Any] = {axis: result[axis].values[index].item() for axis, index in at.items()}
        for label, (name, chosen) in numbers.items():
            row[label] = result[name].isel(at).sel(chosen).item()
            if f"{name}_interval" in result:
                row[f"{label}_interval"] = result[f"{name}_interval"].isel(at).sel(chosen).values.tolist()
            if f"{name}_null" in result:
                for null in result["null"].values.tolist():
                    draws = result[f"{name}_null"].isel(at).sel(chosen).sel(null=null)
                    row[f"{label}_null_{null}"] = [draws.min().item(), draws.max().item()]
        rows.append(row)
    return rows


def table(row: Mapping[str, Any], level: float) -> list[dict[str, str]]:
    """Return the lines of a table of one row's numbers: each with its interval and the ranges of its nulls."""
    columns = {
        "interval": f"{100 * level:g} % interval",
        "null_permuted": "permuted",
        "null_initial": "at initialisation",
    }
    lines = []
    for name, value in row.items():
        if isinstance(value, float) and math.isfinite(value):
            beside = {head: row.get(f"{name}_{key}") for key, head in columns.items()}
            ends = {head: f"{a[0]:.3f} … {a[1]:.3f}" if a and math.isfinite(a[0]) else "" for head, a in beside.items()}
            lines.append({"": name, "value": f"{value:.3f}", **ends})
    return lines
