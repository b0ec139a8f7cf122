"""What a figure requires of a result: variables with their axes, coordinates and attributes."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.axes import LABELS
from attnprobe.errors import UsageError, listed, shown
from attnprobe.figures.panels import shown_offsets

TEXTS = ("bound", "null", "term", "loss", "direction", "subspace", "intervention")
"""Axes whose coordinates are text; those of all others are numbers."""
UNLABELLED = ("draw", "pair")
"""Axes that need no coordinate."""
EMPTY = ("frequency",)
"""Axes that have no value in sequences of one token."""
VALUES = {
    "bound": ("lower", "upper"),
    "term": ("position-position", "content-content"),
    "subspace": ("circulant", "toeplitz"),
}
"""Coordinate values that figures select."""
TAIL_AXES = {"interval": ("bound",), "std": (), "null": ("null", "draw")}
KINDS = {
    "text": str,
    "a whole number": numbers.Integral,
    "a number": numbers.Real,
}
RUN = {"objective": "step", "train_accuracy": "step", "test_accuracy": "step"}
"""Variables that every figure over steps requires."""
OPTIONAL = {"ci_prob": "a number", "grid_unit": "text", "causal": "a whole number"}
"""Attributes that may be missing, but must have this type."""


def required(result: xr.Dataset, variables: Mapping[str, str], attributes: Mapping[str, str]) -> xr.Dataset:
    """Return a result whose variables have their axes in the order in which a figure reads them.

    Args:
        result: Result of any origin, such as an edited file.
        variables: Axes of each variable that the figure draws and, after a comma, the endings of further variables:
            ``"layer head offset, interval, null"``. A null may be missing.
        attributes: Type of each attribute, a key of `KINDS`.

    Raises:
        UsageError: If the result lacks a variable, an axis, a coordinate or an attribute, or if one is empty, infinite
            or of the wrong type.
    """
    for name, kind in {**OPTIONAL, **attributes}.items():
        if name in result.attrs or name in attributes:
            _check_attribute(result, name, kind)
    ordered = {}
    for name, specification in variables.items():
        axes, *tails = (part.split() for part in specification.split(","))
        every = {name: axes} | {f"{name}_{tail}": [*axes, *TAIL_AXES[tail]] for (tail,) in tails}
        for full_name, its_axes in every.items():
            if full_name in result.data_vars or not full_name.endswith("_null"):
                ordered[full_name] = _checked(result, full_name, its_axes)
    used = dict.fromkeys(str(axis) for array in ordered.values() for axis in array.dims)
    for axis in used:
        _check_axis(result, axis)
    if "offset" in used and not set(shown_offsets(int(result.attrs["n"]) // 2)) & set(result["offset"].values):
        offsets = shown(result["offset"].values.tolist())
        raise UsageError(f"n={result.attrs['n']}, but offset has values {offsets}: must have some of -n // 2 to n // 2")
    return result.assign(ordered)


def required_of_run(result: xr.Dataset, variables: Mapping[str, str]) -> xr.Dataset:
    """Return results joined along step, and possibly along seed or run, whose variables were checked."""
    repeats = [axis for axis in ("seed", "run") if axis in result.dims]
    every = {name: f"{' '.join(repeats)} {axes}" for name, axes in (RUN | dict(variables)).items()}
    return required(result, every, {})


def _check_attribute(result: xr.Dataset, name: str, kind: str) -> None:
    if name not in result.attrs:
        raise UsageError(f"the result has no attribute {name!r} ({kind}); it has: {listed(result.attrs)}")
    value = result.attrs[name]
    if not isinstance(value, KINDS[kind]) or (kind != "text" and not 0 <= value < 2**31):
        raise UsageError(f"attribute {name}={shown(value)}: must be {kind}{'' if kind == 'text' else ', 0 or larger'}")


def _checked(result: xr.Dataset, name: str, axes: list[str]) -> xr.DataArray:
    """Return a variable with its axes in the given order."""
    if name not in result.data_vars:
        raise UsageError(f"the result has no variable {name!r}; it has: {listed(result.data_vars)}")
    array = result[name]
    if set(array.dims) != set(axes):
        have = listed(array.dims) or "none"
        raise UsageError(f"{name} has axes {have}: must have {listed(axes) or 'none'}")
    text = name == "objective"
    if array.dtype.kind not in ("UO" if text else "fiu"):
        raise UsageError(f"{name} has type {array.dtype}: must be {'text' if text else 'real numbers'}")
    if array.dtype.kind == "f" and np.isinf(array.values).any():
        raise UsageError(f"{name} has infinite values: must be finite or NaN")
    return array.transpose(*axes)


def _check_axis(result: xr.Dataset, axis: str) -> None:
    if not result.sizes[axis] and axis not in EMPTY:
        raise UsageError(f"axis {axis} ({LABELS.get(axis, axis)}) is empty: must have at least one value")
    if axis in UNLABELLED:
        return
    if axis not in result.coords:
        raise UsageError(f"axis {axis} has no coordinate; axes with one: {listed(result.coords)}")
    values: Any = result[axis].values
    kind, kinds = ("text", "UO") if axis in TEXTS else ("numbers", "fiu")
    if values.dtype.kind not in kinds or len(set(values.tolist())) < len(values):
        raise UsageError(f"axis {axis} has values {shown(values.tolist())}: must be {kind}, each once")
    if missing := set(VALUES.get(axis, ())) - set(values.tolist()):
        raise UsageError(f"axis {axis} has values {listed(values)}: must include {listed(sorted(missing))}")
