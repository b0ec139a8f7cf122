"""Panels shared by the figures of several measures: each draws into one axes."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.colorbar import Colorbar
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attnprobe.axes import label
from attnprobe.errors import UsageError
from attnprobe.figures.layout import wrap
from attnprobe.figures.selection import Choice, Head, at, beyond, mathless
from attnprobe.figures.style import DIVERGING, INITIAL, PERMUTED, SEQUENTIAL, SMALL_SIZE, line
from attnprobe.results import distance_unit, reasons_of


def draws(result: xr.Dataset, name: str, kind: str | None = None) -> xr.DataArray | None:
    """Return the draws of one null of a variable (of all, if ``kind`` is None), or None if the result has none."""
    null = f"{name}_null"
    if null not in result or not result[null].size:
        return None
    if kind is None:
        return result[null]
    if kind not in result["null"].values:
        return None
    return result[null].sel(null=kind)


def null_kinds(result: xr.Dataset) -> list[str]:
    """Return the names of the result's nulls."""
    if "draw" not in result.coords or not result["draw"].size:
        return []
    return np.atleast_1d(result["null"].values).tolist()


def causal(result: xr.Dataset) -> bool:
    """Return whether the measured network has causal attention."""
    if "causal" in result.attrs:
        return bool(result.attrs["causal"])
    try:
        return json.loads(result.attrs["config"])["model"]["causal"]  # results from before 2026-11-25
    except (LookupError, TypeError, ValueError):
        raise UsageError("the result has neither an attribute 'causal' nor one in its config") from None


def tails(result: xr.Dataset, name: str) -> list[str]:
    """Return the name suffixes that exist for a variable: value (empty), interval and null."""
    return [tail for tail in ("", "_interval", "_null") if f"{name}{tail}" in result]


# --- parts of captions


def interval_text(result: xr.Dataset) -> str:
    """Return the name of the intervals for captions."""
    over = " over " + result.attrs["repeats"].split()[1] if "repeats" in result.attrs else ""
    return f"{100 * result.attrs.get('ci_prob', 0.95):g} % t-intervals{over}"


def means_text(result: xr.Dataset) -> str:
    """Return what the drawn values are means over."""
    if "repeats" in result.attrs:
        return (
            f"Means over {result.attrs['repeats']} with {interval_text(result)}; heads of each layer are sorted before "
            "averaging (in the nulls too), so that head is a rank. "
        )
    return f"Means over {result.attrs['sequences']} test sequences with {interval_text(result)}. "


def null_text(result: xr.Dataset, text: str) -> str:
    """Return the caption text about nulls, or an empty string if the result has none."""
    if not null_kinds(result):
        return ""
    count = np.atleast_1d(result["draw"].values).size
    return f"{text.format(draws='1 draw' if count == 1 else f'{count} draws')} "


def choice_text(choice: Choice) -> str:
    """Return the caption text about the drawn heads, or an empty string if all are drawn."""
    return f"Details: {choice.text}, framed in the maps. " if choice.text else ""


def undefined_text(result: xr.Dataset, names: Sequence[str]) -> str:
    """Return the caption text about undefined values of the drawn variables, or an empty string if there are none."""
    by_reason: dict[str, list[str]] = {}
    for name in names:
        for reason in dict.fromkeys(reasons_of(result[name]).values.ravel().tolist()):
            if reason:
                by_reason.setdefault(reason, []).append(name.removeprefix("grid_").replace("_", " "))
    listed = "; ".join(f"{', '.join(dict.fromkeys(texts))}: {reason}" for reason, texts in by_reason.items())
    return f" Undefined values are left out ({listed})." if listed else ""


CUT = "Offsets up to n / 2; larger ones have few pairs (the result has all)."
"""Caption text about `cut`."""


# --- layer x head maps

HEAD_MAP = "layer x head map"
"""Label by which `attnprobe.figures.animation` finds the images of these maps."""


def head_map(
    axis: Axes,
    values: xr.DataArray,
    null: xr.DataArray | None,
    choice: Choice | None,
    *,
    name: str,
    inside: xr.DataArray | None = None,
    limit: float | None = None,
    centred: bool | None = None,
    least: float = 0.0,
    bar: bool = True,
) -> AxesImage:
    """Draw one number per head as a layer x head map with colour bar, null range, and frames of the heads in detail.

    Centred maps have white at 0 (red positive, blue negative). Dots mark heads that are not outside the
    range of all draws of their nulls. Large cells contain their value.

    Args:
        axis: Axes to draw into.
        values: Number by layer and head.
        null: The same with further axes, such as null and draw.
        choice: Heads to frame in the colours of their lines; None for none.
        name: Title of the map, with units.
        inside: Whether to mark a head with a dot, if that is not decided by the null.
        limit: Largest absolute value of the colour scale; by default that of the values.
        centred: Centre the colour scale at 0; by default if there are negative values.
        least: Smallest limit of the colour scale, so that values near 0 look so.
        bar: Draw a colour bar.
    """
    values = values.transpose("layer", "head")
    cells, finite = values.values, values.values[np.isfinite(values.values)]
    largest = limit or max(float(np.abs(finite).max(initial=0)), least) or 1.0
    centred = bool((finite < 0).any()) if centred is None else centred
    colours = matplotlib.colormaps[DIVERGING if centred else SEQUENTIAL].with_extremes(bad="0.85")
    limits: dict[str, Any] = {"vmin": -largest if centred else 0.0, "vmax": largest}
    image = axis.imshow(cells, cmap=colours, aspect="auto", interpolation="nearest", label=HEAD_MAP, **limits)
    width, height = _size(axis)
    space = width - (0.5 if bar else 0.25)
    heading = wrap(name, space, 6.5)
    if null is not None and null.size and np.isfinite(null.values).any():
        low, high = np.nanmin(null.values), np.nanmax(null.values)
        heading += "\n" + wrap(f"nulls: {number_text(low)} to {number_text(high)}", space, 6.5)
    axis.set_title(heading, loc="left", fontsize=6.5, pad=3)
    if bar:
        scale = axis.figure.colorbar(image, ax=axis, aspect=12, fraction=0.1, pad=0.03)
        plain_bar(scale, 3)
    width, height = width * (0.72 if bar else 0.85) / cells.shape[1], max(height - 0.55, 0.15) / cells.shape[0]
    annotated = width > 0.36 and height > 0.16  # the number and, beside it, a dot
    for (row, column), value in np.ndenumerate(cells):
        if annotated:
            axis.text(column, row, number_text(value, 2), ha="center", va="center", fontsize=SMALL_SIZE)
    colour_numbers(axis)
    if inside is None and null is not None and null.size:
        inside = beyond(values, null) <= 0
    if inside is not None:
        rows, columns = np.nonzero(inside.transpose("layer", "head").values)
        if annotated:
            columns, rows = columns + 0.5 - 0.06 / width, rows - 0.5 + 0.05 / height
        size = float(np.clip(0.25 * 72 * min(width, height), 0.5, 2.2))
        # A black dot with a white rim is visible on every colour.
        style = {"marker": "o", "linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.2 * size}
        axis.plot(columns, rows, markersize=size, color="black", **style)
        axis.set(xlim=(-0.5, cells.shape[1] - 0.5), ylim=(cells.shape[0] - 0.5, -0.5))
    layers, heads = (np.atleast_1d(values[name].values).tolist() for name in ("layer", "head"))
    if choice is not None and len(choice.heads) < len(layers) * len(heads):
        for number, (layer, head) in enumerate(choice.heads):
            # inside of the cell, so that frames of neighbours are beside each other
            x, y = (min(0.15, 1.2 / 72 / inches) for inches in (width, height))
            corner = (heads.index(head) - 0.5 + x, layers.index(layer) - 0.5 + y)
            style = {"fill": False, "clip_on": False, "zorder": 3}
            for colour, thickness in (("white", 2.6), (line(number)["color"], 1.4)):
                axis.add_patch(Rectangle(corner, 1 - 2 * x, 1 - 2 * y, edgecolor=colour, linewidth=thickness, **style))
    index_ticks(axis.xaxis, heads, width)
    index_ticks(axis.yaxis, layers, height)
    axis.set(xlabel=label("head"), ylabel=label("layer"))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, pad=2)
    return image


def colour_numbers(axis: Axes) -> None:
    """Make the numbers in the cells of a map black or white, whichever is legible on the colour of the cell."""
    cells = np.ma.filled(axis.images[0].get_array(), np.nan)  # pyright: ignore
    for text in axis.texts:
        column, row = (round(place) for place in text.get_position())
        value = cells[row, column]
        shade = axis.images[0].cmap(axis.images[0].norm(value))
        luminance = float(np.dot(shade[:3], (0.299, 0.587, 0.114)))
        text.set_color("black" if luminance > 0.5 or not np.isfinite(value) else "white")


def plain_bar(bar: Colorbar, ticks: int) -> None:
    """Give a colour bar small labels, without outline and common exponent."""
    bar.outline.set_visible(False)  # pyright: ignore
    bar.ax.yaxis.set_major_locator(MaxNLocator(ticks))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "\N{MINUS SIGN}")))
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, pad=1.5)


def index_ticks(axis: Axis, numbers: Sequence[int], inches: float) -> None:
    """Label the cells of a map with the numbers of layers or heads; leave out labels that would overlap."""
    needed = 0.15 if isinstance(axis, YAxis) else 0.08 * len(str(max(numbers))) + 0.05
    step = next((step for step in (1, 2, 4, 8, 16, 32) if step * inches >= needed), 64)
    axis.set_ticks(range(0, len(numbers), step), [str(number) for number in numbers[::step]])


def map_height(result: xr.Dataset, row: float = 0.19, most: float = 1.9) -> float:
    """Return the height of a row of maps in inches, with title and labels, at ``row`` inches per layer."""
    return 0.64 + float(np.clip(row * result.sizes["layer"], 0.45, most))


def map_columns(result: xr.Dataset, inches: float, most: int) -> int:
    """Return the number of maps per row: fewer for narrow pages and for many heads."""
    fitting = int(inches // 1.5)
    if result.sizes["head"] > 16:
        fitting = 1 if result.sizes["head"] > 32 else 2
    return max(1, min(fitting, most))


def _size(axis: Axes) -> tuple[float, float]:
    """Return the size of an axes with its labels in inches, before the page is laid out."""
    spec, part = axis.get_subplotspec(), axis.figure
    assert part is not None
    whole = part.bbox.transformed(part.dpi_scale_trans.inverted())  # pyright: ignore
    if spec is None:
        return whole.width * axis.get_position().width, whole.height * axis.get_position().height
    grid = spec.get_gridspec()
    widths, heights = np.asarray(grid.get_width_ratios()), np.asarray(grid.get_height_ratios())
    columns, rows = slice(spec.colspan.start, spec.colspan.stop), slice(spec.rowspan.start, spec.rowspan.stop)
    return (
        whole.width * float(widths[columns].sum() / widths.sum()),
        whole.height * float(heights[rows].sum() / heights.sum()),
    )


def number_text(value: float, digits: int = 2) -> str:
    """Return a number for a figure: decimals for usual sizes, never "-0.00"; a dash if undefined."""
    if not np.isfinite(value):
        return "–"
    size = abs(value)
    if size < 1e-12:
        return f"{0:.{digits}f}"
    if not 10**-digits / 2 <= size < 1000:
        text = f"{size:.0e}".replace("e-0", "e-").replace("e+0", "e")
    else:
        text = f"{size:.{digits if size < 100 else 0}f}"
    return f"\N{MINUS SIGN}{text}" if value < 0 else text


def by_layer(
    axis: Axes, values: xr.DataArray, null: xr.DataArray | None, choice: Choice, uniform: xr.DataArray | None = None
) -> None:
    """Draw one number per head as dots over the layers, with the range of the permuted null of each layer.

    The heads of a layer are sorted from the smallest to the largest number, from left to right. Heads in detail have
    their colours, others are grey. With the mean attention distance as the number, this is the plot of Dosovitskiy et
    al. (2021, figures 7 and 11).

    Args:
        axis: Axes to draw into.
        values: Number by layer and head.
        null: The same with the axis draw.
        choice: Heads in detail.
        uniform: Value under uniform attention by layer and head.
    """
    layers = np.atleast_1d(values["layer"].values).tolist()
    rows = np.arange(len(layers))
    if null is not None:
        over = [axis_name for axis_name in null.dims if axis_name != "layer"]
        low, high = null.min(over).values, null.max(over).values
        axis.bar(rows, high - low, 0.8, low, color=PERMUTED, alpha=0.45, linewidth=0)
    if uniform is not None:
        axis.hlines(uniform.mean("head"), rows - 0.45, rows + 0.45, color="black", linewidth=0.7)
    numbers = {head: number for number, head in enumerate(choice.heads)}
    for row, layer in enumerate(layers):
        of_layer = values.sel(layer=layer)
        heads, numbers_of_heads = (np.atleast_1d(x) for x in (of_layer["head"].values, of_layer.values))
        ranks = np.argsort(numbers_of_heads)
        shift = np.linspace(-0.25, 0.25, len(heads)) if len(heads) > 1 else np.zeros(1)
        for x, head, value in zip(row + shift, heads[ranks].tolist(), numbers_of_heads[ranks], strict=True):
            number = numbers.get((layer, head))
            style = {"color": "0.45", "markersize": 1.6, "zorder": 2}
            if number is not None:
                style = {"color": line(number)["color"], "markersize": 3.2, "zorder": 3}
            axis.plot(x, value, marker="o", markeredgewidth=0, linestyle="", **style)
    axis.set_xlim(-0.6, len(layers) - 0.4)
    index_ticks(axis.xaxis, layers, 0.7 * _size(axis)[0] / len(layers))
    axis.set_xlabel(label("layer"))
    drawn = [part.values.ravel() for part in (values, null, uniform) if part is not None]
    drawn = np.concatenate(drawn)
    if np.isfinite(drawn).any():
        low, high = np.nanmin(drawn), np.nanmax(drawn)
        margin = 0.07 * (high - low) or 0.07
        axis.set_ylim(low - margin, high + margin)
    axis.yaxis.set_major_locator(MaxNLocator(4))


def dots(axis: Axes, mean: xr.DataArray, interval: xr.DataArray, rows: np.ndarray, colour: str) -> None:
    """Draw means with their intervals as dots in rows."""
    bounds = interval.transpose("bound", ...).values
    style: dict[str, Any] = {"fmt": "o", "markersize": 2.6, "elinewidth": 0.8, "color": colour}
    axis.errorbar(mean.values, rows, xerr=np.abs(bounds - mean.values), **style)


def pad_x(axis: Axes) -> None:
    """Widen the horizontal limits, so that no marker is cut."""
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.04 * (right - left), right + 0.04 * (right - left))


# --- profiles


def note_undefined(axis: Axes, arrays: Sequence[xr.DataArray]) -> None:
    """Write the reasons into a panel none of whose values is defined."""
    if all(array.isnull().all() for array in arrays):
        texts = "; ".join(dict.fromkeys(text for array in arrays for text in reasons_of(array).values.ravel().tolist()))
        note(axis, f"undefined: {texts}")


def note(axis: Axes, text: str) -> None:
    """Write a note into a panel, wrapped to its width."""
    characters = max(12, int(0.62 * _size(axis)[0] / 0.046))
    style = {"ha": "center", "va": "center", "fontsize": SMALL_SIZE, "color": "0.4"}
    axis.text(0.5, 0.6, textwrap.fill(mathless(text), characters), transform=axis.transAxes, **style)


def shown_offsets(farthest: int) -> np.ndarray:
    """Return the offsets to draw: all for short sequences; log-spaced beyond `DENSE` for long ones."""
    distance = np.arange(min(farthest, DENSE if farthest > LINEAR else LINEAR) + 1)
    if farthest > LINEAR:
        distance = np.unique(np.concatenate([distance, np.geomspace(DENSE, farthest, 100).round().astype(int)]))
    return np.concatenate([-distance[:0:-1], distance])


LINEAR, DENSE = 256, 16
"""Largest offset with a linear axis; largest offset up to which a logarithmic axis shows every offset."""


def cut(result: xr.Dataset) -> xr.Dataset:
    """Return a result at the offsets to draw, of those that it has: up to half the sequence."""
    return result.isel(offset=np.isin(result["offset"].values, shown_offsets(int(result.attrs["n"]) // 2)))


def profile(
    axis: Axes, result: xr.Dataset, name: str, choice: Choice, heads: Sequence[Head], x: str = "offset"
) -> None:
    """Draw a variable by offset for some of the chosen heads, with intervals, over the ranges of both nulls.

    Args:
        axis: Axes to draw into.
        result: Result at the offsets to draw.
        name: Variable by layer, head and ``x``.
        choice: Heads of the page, which number the line styles.
        heads: Heads of this panel.
        x: Name of the horizontal axis.
    """
    where = result[x]
    envelopes(axis, where, result, name, heads)
    for head in heads:
        style = line(choice.heads.index(head))
        axis.plot(where, at(result[name], head), label=choice.name(head), **style)
        if f"{name}_interval" in result:
            interval = at(result[f"{name}_interval"], head)
            bounds = interval.sel(bound="lower"), interval.sel(bound="upper")
            axis.fill_between(where, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    note_undefined(axis, [at(result[name], head) for head in heads])
    axis.margins(x=0)
    farthest = int(abs(where).max()) if where.size else 0
    if x == "offset" and farthest > LINEAR:
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        outer_tick = 100 if farthest < 1000 else 1000
        axis.set_xticks([-outer_tick, -10, 0, 10, outer_tick])
    elif x in ("offset", "distance"):
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))


def envelopes(axis: Axes, x: xr.DataArray | np.ndarray, result: xr.Dataset, name: str, heads: Sequence[Head]) -> None:
    """Draw the ranges of both nulls over heads and draws: a band for permuted positions, dashes for initialisation."""
    for kind in ("permuted", "initial"):
        null = draws(result, name, kind)
        if null is None:
            continue
        of_heads = [at(null, head) for head in heads]
        low = np.fmin.reduce([draw.min("draw").values for draw in of_heads])
        high = np.fmax.reduce([draw.max("draw").values for draw in of_heads])
        if kind == "permuted":
            axis.fill_between(x, low, high, color=PERMUTED, alpha=0.35, linewidth=0)
        else:
            for limit in (low, high):
                axis.plot(x, limit, color=INITIAL, linewidth=0.7, linestyle=(0, (3, 2)))


def rows_of_heads(choice: Choice) -> list[tuple[Head, ...]]:
    """Divide the heads of a page into rows of panels with at most `PER_PANEL` lines each."""
    return [choice.heads[start : start + PER_PANEL] for start in range(0, len(choice.heads), PER_PANEL)]


PER_PANEL = 4
"""Largest number of lines in a panel."""


# --- images


def by_distance(result: xr.Dataset, name: str, weights: xr.DataArray, divided: bool = False) -> xr.Dataset:
    r"""Return a variable of two-dimensional offsets as a function of distance, with interval and nulls.

    With weights $w_o$ proportional to the number of pairs at offset $o$, the value at distance $d$ is the mean over the
    pairs at that distance, $\sum_{|o| = d} w_o x_o / \sum_{|o| = d} w_o$. Distances are rounded to whole pixels and
    go up to half the larger side. The half-width of the interval is the mean of those of the offsets, an upper bound,
    since the std of a mean is at most the mean of the stds.

    Args:
        result: Result of an image task.
        name: Variable over row and column offsets.
        weights: Weight of each offset.
        divided: ``name`` is a sum over pairs (attention by offset) and already has the weights.
    """
    axes = ("row_offset", "column_offset")
    length = np.round(np.hypot(result["row_offset"].values[:, None], result["column_offset"].values))
    distance = np.arange(max(1, max(int(abs(result[axis]).max()) + 1 for axis in axes) // 2) + 1)
    member = xr.DataArray((length == distance[:, None, None]).astype(float), dims=("distance", *axes))

    def averaged(array: xr.DataArray) -> xr.DataArray:
        total = xr.dot(member, weights.where(np.isfinite(array), 0.0), dim=axes)
        weighted = array if divided else array * weights
        return xr.dot(member, weighted.fillna(0.0), dim=axes) / total.where(total > 0)

    value, interval = averaged(result[name]), result[f"{name}_interval"]
    half = averaged((interval.sel(bound="upper") - interval.sel(bound="lower")) / 2)
    bounds = xr.concat([value - half, value + half], "bound", coords="minimal").assign_coords(bound=["lower", "upper"])
    variables = {name: value, f"{name}_interval": bounds}
    if (null := draws(result, name)) is not None:
        variables[f"{name}_null"] = averaged(null)
    return xr.Dataset(variables).assign_coords(distance=distance)


def pair_counts(result: xr.Dataset) -> xr.DataArray:
    """Return the number of pairs of pixels at each row and column offset, visible or not."""
    counts = []
    for name in ("row_offset", "column_offset"):
        distance = abs(result[name]).astype(float)
        counts.append(distance.max() + 1 - distance)
    return counts[0] * counts[1]


def draw_grid_pattern(axis: Axes, ratio: xr.DataArray) -> AxesImage:
    """Draw attention over uniform by row and column offset, up to half the image, on a log2 scale from 1/8 to 8."""
    log_ratio = np.log2(half_image(ratio).clip(min=2.0**-3))
    image = axis.imshow(log_ratio, cmap=DIVERGING, vmin=-3, vmax=3, extent=extent(log_ratio))
    axis.spines[:].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return image


def half_image(array: xr.DataArray) -> xr.DataArray:
    """Return values over row and column offsets up to half the image, of those that the result has."""
    array = array.transpose("row_offset", "column_offset")
    row, column = ((int(abs(array[name]).max()) + 1) // 2 for name in array.dims)
    return array.sel(row_offset=slice(-row, row), column_offset=slice(-column, column))


def extent(array: xr.DataArray) -> tuple[float, float, float, float]:
    """Return the extent of an image of an array [row, column] whose cells are centred at their coordinates."""
    edges = []
    for name in reversed(array.dims):
        centres = array[name].values
        half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
        edges.append((float(centres[0] - half), float(centres[-1] + half)))
    (left, right), (top, bottom) = edges
    return left, right, bottom, top


def colour_bar(part: SubFigure, image: AxesImage, axes: list[Axes]) -> None:
    """Add the colour bar of `draw_grid_pattern` next to the axes."""
    bar = part.colorbar(image, ax=axes, shrink=0.9, aspect=12, ticks=range(-3, 4))
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    bar.set_label("attention / uniform")


def shared_labels(part: SubFigure, x: str, y: str = "") -> None:
    """Label the axes of all panels of a part together."""
    style = {"fontsize": matplotlib.rcParams["axes.labelsize"]}
    part.supxlabel(x, **style)
    if y:
        part.supylabel(y, **style)


def offset_label(result: xr.Dataset, axis: str) -> str:
    """Return the short label of row or column offsets, with their unit."""
    return f"{axis.replace('_', ' ')} ({distance_unit(result)})"
