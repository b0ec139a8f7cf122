"""What a figure draws: results with all axes, means over seeds, and the heads that matter most."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import xarray as xr

from attnprobe.errors import UsageError, listed, printable, shown
from attnprobe.figures.style import WIDE, width_in_inches
from attnprobe.results import TAILS, as_result, distance_unit

Head = tuple[int, int]
"""Layer and head, as the result numbers them."""
HEAD = ("layer", "head")
ALL = 8
"""Largest number of heads of a network whose heads are all drawn."""
CHOSEN = 4
"""Number of heads that are chosen in larger networks."""
RESTORED = ("layer", "head", "loss", "null", "draw")
"""Axes that a figure draws with one value, too, if another one was selected away."""
REPEATS = ("seed", "run")
"""Axes over which figures draw means."""


@dataclass(frozen=True)
class Choice:
    """The heads whose details a figure draws."""

    heads: tuple[Head, ...]
    text: str
    """How they were chosen, such as "4 of 128 heads: largest |contrast| beyond the nulls"; empty if all are drawn."""
    one_layer: bool
    """Whether the network has one layer only, so that names of heads leave it out."""
    kind = "heads"

    def name(self, head: Head) -> str:
        """Return the name of a head for legends and titles."""
        return f"head {head[1]}" if self.one_layer else f"layer {head[0]}, head {head[1]}"


def with_all_axes(result: xr.Dataset, variables: Mapping[str, str]) -> xr.Dataset:
    """Return a result with axes that were selected away, as in ``result.sel(head=1)``, as axes of one value.

    Args:
        result: Result of a measure, or a selection of it.
        variables: Axes of each variable, as in `attnprobe.figures.requirements.required`.

    Raises:
        UsageError: If a variable has an axis that the figure does not draw.
    """
    restored = {}
    for name, specification in variables.items():
        axes = specification.partition(",")[0].split()
        for tail in ("", *TAILS):
            array = result.get(f"{name}{tail}")
            if not isinstance(array, xr.DataArray):
                continue
            expected = [*axes, *(("null", "draw") if tail == "_null" else ())]
            for axis in expected:
                if axis not in array.dims and axis in array.coords and axis in RESTORED:
                    array = array.expand_dims(axis)
            if extra := [str(axis) for axis in array.dims if axis not in {*expected, "bound"}]:
                raise UsageError(f"{array.name} has an axis {_to_select(array, extra[0])}")
            restored[array.name] = array
    return result.drop_vars(list(restored)).assign(restored)


def at_one_step(result: xr.Dataset) -> xr.Dataset:
    """Return the result of one checkpoint; raise `UsageError` if it has several."""
    if "step" in as_result(result).dims:
        if result.sizes["step"] > 1:
            raise UsageError(f"axis {_to_select(result, 'step')}, or draw_over_steps")
        return result.isel(step=0)
    return result


def _to_select(array: xr.DataArray | xr.Dataset, axis: str) -> str:
    values = array[axis].values.tolist()
    return f"{axis} with several values; select one, as in sel({axis}={values[0]!r}); valid: {shown(values)}"


# --- means over seeds


def is_repeated(result: xr.Dataset) -> bool:
    """Return whether a result is joined along seed or run."""
    return any(axis in result.dims for axis in REPEATS)


def over_repeats(result: xr.Dataset, key: xr.DataArray, key_null: xr.DataArray | None) -> xr.Dataset:
    """Return means over seeds or runs, with t-intervals over them instead of over sequences.

    Heads of different networks do not correspond, so the heads of each layer are first sorted by ``key``, from the
    largest value down, in every network and in every draw of the nulls: ``head`` is then the rank.

    Args:
        result: Results joined along ``seed`` or ``run``; others are returned unchanged.
        key: Variable to sort by, over seed or run, layer and head.
        key_null: The same of the draws of the nulls.
    """
    axes = [axis for axis in REPEATS if axis in result.dims]
    if not axes:
        return result
    axis, level = axes[0], float(result.attrs.get("ci_prob", 0.95))
    if len(axes) > 1:
        raise UsageError(f"axis {_to_select(result, axes[1])}")
    count = result.sizes[axis]
    reduced = {}
    for name, array in result.items():
        statistic = str(name)
        if statistic.endswith(TAILS) and not statistic.endswith("_null") and statistic.rsplit("_", 1)[0] in result:
            continue
        if axis not in array.dims:
            reduced[name] = array
            continue
        if array.dtype.kind not in "fiu":
            values = np.unique(array.values)
            if len(values) > 1 and statistic == "objective":
                raise UsageError(f"results along {axis} have different objectives: {listed(values)}")
            reduced[name] = array.isel({axis: 0})
            continue
        attributes = array.attrs
        if "head" in array.dims:
            array = _sorted(array, key_null if statistic.endswith("_null") and key_null is not None else key)
        mean = array.mean(axis, skipna=False)
        reduced[name] = mean.assign_attrs(attributes)
        if f"{name}_interval" in result:
            half = scipy.stats.t.ppf((1 + level) / 2, max(count - 1, 1)) * array.std(axis, ddof=1) / np.sqrt(count)
            half = half if count > 1 else half * np.nan
            bounds = xr.concat([mean - half, mean + half], "bound").assign_coords(bound=["lower", "upper"])
            reduced[f"{name}_interval"] = bounds.assign_attrs(attributes)
    values = result[axis].values.tolist() if axis in result.coords else list(range(count))
    facts = {"measure": result.attrs["measure"], "repeats": f"{count} {axis}s ({listed(values)})"}
    return xr.Dataset(reduced, attrs=result.attrs | facts)


def _sorted(array: xr.DataArray, by: xr.DataArray) -> xr.DataArray:
    """Return an array whose heads are in descending order of another one, which has some of its axes."""
    axis = by.get_axis_num("head")
    assert isinstance(axis, int)
    filled = by.fillna(-np.inf)
    order = xr.DataArray(np.argsort(-filled.values, axis=axis, kind="stable"), dims=by.dims)
    order = order.broadcast_like(array.drop_vars(list(array.coords))).transpose(*array.dims)
    values = np.take_along_axis(array.values, order.values, array.get_axis_num("head"))  # pyright: ignore
    return array.copy(data=values)


# --- titles


def title(result: xr.Dataset) -> str:
    """Return the title of a result (of a checkpoint or a run) on two lines."""
    text = result.attrs.get("run_title", result.attrs.get("title", result.attrs.get("measure", "")))
    if repeats := result.attrs.get("repeats"):  # of runs joined by xarray, the title is that of the first
        text = f"{result.attrs['measure']}: mean over {repeats}"
    return mathless(printable(text)).replace("; ", "\n", 1)


def mathless(text: str) -> str:
    """Return text in which Matplotlib finds no mathematics, which it reads between two $."""
    return text.replace("$", r"\$")


# --- choice of heads


def chosen(
    result: xr.Dataset,
    name: str,
    values: xr.DataArray,
    null: xr.DataArray | None,
    heads: Sequence[Head] | None = None,
    most: int = ALL,
) -> Choice:
    """Return the heads to draw: those named, else all of a small network, else those with the largest values.

    Args:
        result: Result with the axes layer and head.
        name: Name of the criterion in the text.
        values: Criterion by layer and head, such as the contrast; its absolute value counts.
        null: The same with the axes null and draw; distances from their range then count, if values are outside.
        heads: Heads to draw, as (layer, head).
        most: Largest number of heads that fit.

    Raises:
        UsageError: If a head is not in the result or there are too many.
    """
    every = all_heads(result)
    one_layer = len({layer for layer, _ in every}) == 1
    one_layer = one_layer and _layers_of_network(result) in (1, None)
    if heads is not None:
        named = [(int(layer), int(head)) for layer, head in heads]
        if unknown := [head for head in named if head not in every]:
            layers, numbers = (listed(_ranges(result[axis].values)) for axis in ("layer", "head"))
            raise UsageError(f"heads: {unknown[0]} is not in the result; valid: layer {layers}, head {numbers}")
        named = list(dict.fromkeys(named))
        if not 0 < len(named) <= most:
            raise UsageError(f"heads: 1 to {most} fit on one page, got {len(named)}; figures.pages draws more")
        return Choice(
            tuple(named), "" if len(named) == len(every) else f"{len(named)} of {len(every)} heads", one_layer
        )
    if len(every) <= min(ALL, most):
        return Choice(tuple(every), "", one_layer)
    scores = beyond(values, null).transpose("layer", "head").values.ravel()
    ranks = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[: min(CHOSEN, most)]
    what = f"largest |{name}|" + ("" if null is None else " beyond the nulls")
    text = f"{len(ranks)} of {len(every)} heads: {what}"
    return Choice(tuple(every[rank] for rank in sorted(ranks)), text, one_layer)


def beyond(values: xr.DataArray, null: xr.DataArray | None) -> xr.DataArray:
    """Return how far values are outside the range of all draws of the nulls; negative values are inside.

    Without null, the absolute value.
    """
    if null is None:
        return abs(values)
    over = [axis for axis in null.dims if axis not in values.dims]
    return np.maximum(values - null.max(over), null.min(over) - values)  # pyright: ignore


def most_heads(measure: str, width: float | str) -> int:
    """Return how many heads of a measure fit on a page of a width."""
    if width_in_inches(width) >= WIDE:
        return ALL
    return 2 if measure == "positions" else 4


def all_heads(result: xr.Dataset) -> list[Head]:
    """Return all heads of a result, layer by layer."""
    layers, heads = (np.atleast_1d(result[axis].values).tolist() for axis in ("layer", "head"))
    return [(layer, head) for layer in layers for head in heads]


def pages_of_heads(result: xr.Dataset, heads: Sequence[Head] | str, most: int) -> list[list[Head]]:
    """Divide heads into groups of equal size that fit on a page; with "all", each page shows heads of one layer."""
    if isinstance(heads, str):
        if heads != "all":
            raise UsageError(f"heads={heads!r}; valid: 'all' or a list of (layer, head)")
        layers = [[head for head in all_heads(result) if head[0] == layer] for layer in np.atleast_1d(result["layer"])]
        return [group for of_layer in layers for group in pages_of_heads(result, of_layer, most)]
    count = -(-len(heads) // most)
    size = -(-len(heads) // max(count, 1))
    return [list(heads[start : start + size]) for start in range(0, len(heads), max(size, 1))]


def at(array: xr.DataArray, head: Head) -> xr.DataArray:
    """Return the values of one head."""
    return array.sel(layer=head[0], head=head[1])


def _layers_of_network(result: xr.Dataset) -> int | None:
    """Return the number of layers of the measured network, if the result has its configuration."""
    try:
        return json.loads(result.attrs["config"])["model"]["n_layers"]
    except (KeyError, TypeError, ValueError):
        return None


def _ranges(values: np.ndarray) -> list[str]:
    numbers = np.atleast_1d(values).tolist()
    whole = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return [f"{numbers[0]} to {numbers[-1]}"] if whole else [str(number) for number in numbers]


def near_keys(result: xr.Dataset) -> str:
    """Return the largest distance of a near key with its unit: 1 token, 2 pixels."""
    window, unit = result.attrs["window"], distance_unit(result)
    return f"{window} {unit.removesuffix('es' if unit == 'patches' else 's') if window == 1 else unit}"
