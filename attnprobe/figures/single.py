"""Single panels, for figures of one's own."""

from collections.abc import Sequence

import xarray as xr
from matplotlib.axes import Axes

from attnprobe.axes import label
from attnprobe.figures import panels
from attnprobe.figures.requirements import required
from attnprobe.figures.selection import Head, at_one_step, chosen, with_all_axes
from attnprobe.figures.style import Page, paper


def head_map(result: xr.Dataset, name: str, ax: Axes | None = None) -> Axes:
    """Draw a variable with one value per head as a layer x head map, with its null range and colour bar.

    A dot marks a value that is not outside all draws of the nulls of that head.

    Args:
        result: Result of any measure at one checkpoint; of variables with more axes select one, as in
            ``result.sel(term="position-position")``.
        name: Name of the variable, such as ``proximity_contrast``.
        ax: Axes to draw into; by default those of a new figure (``ax.figure``).

    Raises:
        UsageError: If the result lacks the variable or an axis.
    """
    variables = {name: "layer head, null"}
    result = required(with_all_axes(at_one_step(result), variables), variables, {})
    with paper():
        ax = Page(figsize=(3.25, 2.2)).subplots() if ax is None else ax
        assert isinstance(ax, Axes)
        units = result[name].attrs.get("units", "1")
        text = name.replace("_", " ") + (f" ({units})" if units not in ("1", "") else "")
        panels.head_map(ax, result[name], panels.draws(result, name), None, name=text)
    return ax


def by_offset(result: xr.Dataset, name: str, heads: Sequence[Head] | None = None, ax: Axes | None = None) -> Axes:
    """Draw a variable by offset for some heads, with intervals, over the ranges of both nulls.

    Args:
        result: Result of any measure at one checkpoint; of variables with more axes select one.
        name: Name of the variable, such as ``score_by_offset``.
        heads: Heads to draw, as (layer, head); by default all of a small network, else the four with the largest
            absolute values beyond the nulls.
        ax: Axes to draw into; by default those of a new figure (``ax.figure``).

    Raises:
        UsageError: If the result lacks the variable or an axis, or a head is unknown.
    """
    variables = {name: "layer head offset, interval, null"}
    result = required(with_all_axes(at_one_step(result), variables), variables, {"n": "a whole number"})
    shown, null = panels.cut(result), panels.draws(result, name)
    largest = None if null is None else abs(null).max("offset")
    choice = chosen(result, name.replace("_", " "), abs(result[name]).max("offset"), largest, heads)
    with paper():
        ax = Page(figsize=(3.25, 2.2)).subplots() if ax is None else ax
        assert isinstance(ax, Axes)
        panels.profile(ax, shown, name, choice, choice.heads)
        ax.set(xlabel=label("offset"), ylabel=name.replace("_", " "))
        ax.legend()
    return ax
