"""Results as cubes: plain arrays over named axes, small enough for a page.

Every variable over layers and heads becomes one cube per combination of its other categories (windows, terms,
directions ...): a *number* has one value per head and step, a *profile* one more axis, a *map* two. A cube holds the
value, its interval and the range of each null.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from attnprobe.axes import KINDS, LABELS
from attnprobe.errors import printable
from attnprobe.results import TAILS, reasons_of

SHARED = ("step", "layer", "head")
"""Axes that are chosen on the page."""
PROFILES = ("offset", "frequency", "pair", "component")
"""Axes of profiles."""
MAPS = (("row_offset", "column_offset"), ("query_bin", "key_bin"))
"""Axes of maps, from top to bottom and from left to right."""
POINTS = 257
"""Most points of a profile; longer ones are averaged over bins that widen with the distance."""
NEAR = 32
"""Distance up to which every offset is a point of its own."""
DIGITS = 5
"""Significant digits on the page."""
MOST = 120_000
"""Values of the profiles and maps of one result; of longer runs, evenly spaced steps are kept."""


@dataclass(frozen=True)
class Cube:
    """Values of one statistic over named axes."""

    kind: Literal["number", "profile", "map"]
    label: str
    """Name of the variable and its categories, such as ``near_mass, window 2``."""
    meaning: str
    units: str
    axes: dict[str, list[int | float]]
    """Coordinates of each axis, in the sequence of the values."""
    titles: dict[str, str]
    """Label of each axis that is not chosen on the page."""
    columns: dict[str, list[float | None]]
    """Flattened ``value`` and, if the result has them, ``low`` and ``high`` (interval) and ``NULL_low`` and
    ``NULL_high`` (range of the draws of a null)."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a number is undefined, by its place among the flattened values."""


def cubes(result: xr.Dataset) -> list[Cube]:
    """Return the cubes of a result, at one checkpoint or over steps.

    Variables with other axes (vectors over tokens or dimensions) and texts have no cube.
    """
    if "step" not in result.dims:
        result = result.expand_dims(step=[int(result.attrs.get("step", 0))])
    names = [str(name) for name in result if _statistic(str(name), result) and result[name].dtype.kind == "f"]
    kept = result.isel(step=_kept_steps(result, names))
    found = []
    for name in names:
        others = [str(axis) for axis in result[name].dims if axis not in (*SHARED, *KINDS)]
        if not others:
            found += _of_variable("number", name, result, [])
        elif len(others) == 1 and others[0] in PROFILES and _is_measured(name, result):
            found += _of_variable("profile", name, _binned(kept, others[0]), others)
        elif tuple(others) in MAPS and _is_measured(name, result):
            found += _of_variable("map", name, kept, others)
    return found


def _statistic(name: str, result: xr.Dataset) -> bool:
    """Return whether a variable is a statistic of its own, not an interval, spread or null of another."""
    return not any(name.endswith(tail) and name.removesuffix(tail) in result for tail in TAILS)


def _is_measured(name: str, result: xr.Dataset) -> bool:
    """Return whether a variable describes heads or layers, rather than their data or uniform attention."""
    return "head" in result[name].dims or ("layer" in result[name].dims and f"{name}_interval" in result)


def _kept_steps(result: xr.Dataset, names: Sequence[str]) -> np.ndarray:
    """Return the indices of the steps whose profiles and maps are kept, always with the first and the last one."""
    per_step = 0
    for name in names:
        sizes = {str(axis): size for axis, size in result[name].sizes.items() if axis != "step"}
        if {*sizes} - {*SHARED, *KINDS}:
            columns = 1 + 2 * (f"{name}_interval" in result) + 2 * result.sizes.get("null", 0)
            per_step += columns * math.prod(min(size, POINTS) for size in sizes.values())
    steps = result.sizes["step"]
    most = max(2, MOST // max(per_step, 1))
    return np.arange(steps) if steps <= most else np.unique(np.linspace(0, steps - 1, most).round().astype(int))


def _of_variable(
    kind: Literal["number", "profile", "map"], name: str, result: xr.Dataset, others: list[str]
) -> Iterator[Cube]:
    """Yield one cube per combination of the categories of a variable."""
    array = result[name]
    if tuple(others[::-1]) in MAPS:
        others = others[::-1]
    shared, kinds = ([axis for axis in axes if axis in array.dims] for axes in (SHARED, KINDS))
    columns, why = {"value": array}, reasons_of(array)
    if f"{name}_interval" in result:
        columns |= {
            end: result[f"{name}_interval"].sel(bound=bound) for end, bound in (("low", "lower"), ("high", "upper"))
        }
    if f"{name}_null" in result and result.sizes["draw"]:
        for null in result["null"].values.tolist():
            draws = result[f"{name}_null"].sel(null=null)
            columns |= {f"{null}_low": draws.min("draw"), f"{null}_high": draws.max("draw")}
    places = [(axis, result[axis].values if axis in result.coords else np.arange(result.sizes[axis])) for axis in kinds]
    for position in itertools.product(*(range(len(values)) for _, values in places)):
        chosen = dict(zip(kinds, position, strict=True))
        label = label_of(name, {axis: values[chosen[axis]] for axis, values in places})
        flat = {
            column: values.isel(chosen).transpose(*shared, *others).values.ravel() for column, values in columns.items()
        }
        flat = {column: values for column, values in flat.items() if column == "value" or np.isfinite(values).any()}
        if kind != "number" and not np.isfinite(flat["value"]).any():
            continue
        axes = {axis: _coordinates(result, axis) for axis in (*shared, *others)}
        titles = {axis: _title(result, axis) for axis in others}
        meaning, units = str(array.attrs.get("long_name", name)), str(array.attrs.get("units", ""))
        values = {column: rounded(values) for column, values in flat.items()}
        texts = why.isel(chosen).transpose(*shared).values.ravel().tolist() if kind == "number" else []
        reasons = {place: text for place, text in enumerate(texts) if text}
        yield Cube(kind, label, meaning, units, axes, titles, values, reasons)


def label_of(name: str, categories: Mapping[str, Any]) -> str:
    """Return the label of the cube of a variable and its categories."""
    words = {"window": "within {}", "other_loss": "and {}"}
    return printable(", ".join([name, *(words.get(axis, "{}").format(value) for axis, value in categories.items())]))


def _coordinates(result: xr.Dataset, axis: str) -> list[int | float]:
    return result[axis].values.tolist() if axis in result.coords else list(range(result.sizes[axis]))


def _title(result: xr.Dataset, axis: str) -> str:
    title = result[axis].attrs.get("long_name") if axis in result.coords else None
    return str(title or LABELS.get(axis, axis)).replace("$-$", "−")


def _binned(result: xr.Dataset, axis: str) -> xr.Dataset:
    """Return the means of a result over bins of offsets; of other long axes, evenly spaced values."""
    size = result.sizes[axis]
    if size <= POINTS:
        return result
    if axis != "offset":
        return result.isel({axis: np.unique(np.linspace(0, size - 1, POINTS).round().astype(int))})
    farthest = int(abs(result[axis]).max())
    far = np.unique(np.geomspace(NEAR + 1, farthest + 1, (POINTS - 2 * NEAR) // 2).round().astype(int))
    edges = np.concatenate([-far[::-1] + 1, np.arange(-NEAR, NEAR + 1), far])  # first offset of each bin
    index = np.searchsorted(edges, result[axis].values, side="right") - 1
    names = [name for name in result if axis in result[name].dims and result[name].dtype.kind == "f"]
    with_axis = result[names].assign_coords({axis: (axis, index)})
    binned = with_axis.groupby(axis).mean(keep_attrs=True)
    centres = [float(result[axis].values[index == one].mean()) for one in binned[axis].values]
    attributes = result[axis].attrs
    binned = binned.assign_coords({axis: (axis, centres, attributes)})
    return result.drop_dims(axis).merge(binned, combine_attrs="override")


def rounded(values: np.ndarray, digits: int = DIGITS) -> list[float | None]:
    """Return numbers with some significant digits, and None for NaN and infinite ones, which JSON lacks."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def scope(result: xr.Dataset) -> dict[str, Any]:
    """Return what the page says of a result: nulls, intervals, sequences, and statistics that are left out."""
    attributes = result.attrs
    return {
        "sequences": attributes.get("sequences", ""),
        "nulls": attributes.get("nulls", ""),
        "interval": f"{100 * float(attributes.get('ci_prob', math.nan)):g} %",
        "left_out": json.loads(attributes.get("left_out", "{}")),
    }
