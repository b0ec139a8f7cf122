"""Results as rows of plain values, for tables and programs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from attnprobe.axes import KINDS
from attnprobe.results import reasons


def head_rows(result: xr.Dataset, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return one dictionary per head (and step) with the variables that have one or a few values per head.

    Each value ``NAME`` is accompanied by ``NAME_interval``, ``NAME_null_permuted`` and so on, the two ends of each
    range. For variables with several values per head, the coordinate is appended to the name: ``near_mass_1``,
    ``variance_share_content-content``.

    Args:
        result: Result of any measure, of one checkpoint or joined along ``step``.
        names: Variables to include; all if None.
    """
    selected = [str(name) for name in result if names is None or name in names]
    return _rows(result, [axis for axis in ("step", "layer", "head") if axis in result.dims], selected)


def shown_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return the rows of the variables that the measure selects for its table; all variables if it selects none."""
    names = result.attrs.get("table", "").split()
    return head_rows(result, names or None)


def layer_rows(result: xr.Dataset, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return one dictionary per layer (and step) with the variables that have one or a few values per layer.

    Args:
        result: Result of any measure, of one checkpoint or joined along ``step``.
        names: Variables to include; all that have an interval if None.
    """
    selected = [str(name) for name in result if f"{name}_interval" in result and (names is None or name in names)]
    axes = [axis for axis in ("step", "layer") if axis in result.dims]
    return [row for row in _rows(result, axes, selected) if set(row) - set(axes)]


def network_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return one dictionary (per step) with the variables of the whole network that have an interval."""
    names = [str(name) for name in result if f"{name}_interval" in result]
    rows = _rows(result, [axis for axis in ("step",) if axis in result.dims], names)
    return [row for row in rows if set(row) - {"step"}]


def _rows(result: xr.Dataset, axes: list[str], names: list[str]) -> list[dict[str, Any]]:
    columns = {}
    for name in names:
        kinds = [axis for axis in KINDS if axis in result[name].dims]
        if set(result[name].dims) == {*axes, *kinds}:
            for values in itertools.product(*(result[axis].values.tolist() for axis in kinds)):
                columns["_".join(map(str, [name, *values]))] = name, dict(zip(kinds, values, strict=True))
    rows = []
    for position in itertools.product(*(range(result.sizes[axis]) for axis in axes)):
        indices = dict(zip(axes, position, strict=True))
        row: dict[str, Any] = {axis: result[axis].values[index].item() for axis, index in indices.items()}
        for column, (name, coordinates) in columns.items():
            row[column] = result[name].isel(indices).sel(coordinates).item()
            if f"{name}_interval" in result:
                row[f"{column}_interval"] = result[f"{name}_interval"].isel(indices).sel(coordinates).values.tolist()
            if f"{name}_null" in result:
                for null in result["null"].values.tolist():
                    draws = result[f"{name}_null"].isel(indices).sel(coordinates).sel(null=null)
                    row[f"{column}_null_{null}"] = [draws.min().item(), draws.max().item()]
        rows.append(row)
    return rows


def why(result: xr.Dataset) -> xr.Dataset:
    """Return the reasons for undefined values as a result, whose rows have the same columns."""
    texts = reasons(result)
    return texts.drop_vars([name for name in texts if str(name).endswith("_null")])


def undefined(row: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the undefined values of a row, with their reasons.

    Args:
        row: A row of `head_rows`, `shown_rows` or `network_rows`.
        texts: The same row of the result that `why` returns.
    """
    return {name: texts[name] for name, value in row.items() if isinstance(value, float) and math.isnan(value)}


def table(row: Mapping[str, Any], level: float) -> list[dict[str, str]]:
    """Return one row as the lines of a table: each value with its interval and the ranges of its nulls.

    Args:
        row: A row of `head_rows`, `shown_rows` or `network_rows`.
        level: Level of the intervals, for the heading.
    """
    columns = {
        "interval": f"{100 * level:g} % interval",
        "null_permuted": "permuted",
        "null_initial": "at initialisation",
    }
    lines = []
    for name, value in row.items():
        if isinstance(value, float) and math.isfinite(value):
            ranges = {heading: row.get(f"{name}_{key}") for key, heading in columns.items()}
            cells = {
                heading: f"{ends[0]:.3f} … {ends[1]:.3f}" if ends and math.isfinite(ends[0]) else ""
                for heading, ends in ranges.items()
            }
            lines.append({"": name, "value": f"{value:.3f}", **cells})
    return lines
