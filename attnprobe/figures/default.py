"""Default figures, for measures without their own: profiles by offset and layer x head maps."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attnprobe.axes import label
from attnprobe.errors import UsageError, listed
from attnprobe.figures.panels import (
    caption,
    draws,
    interval_text,
    lines_height,
    note_undefined,
    null_text,
    over_steps,
    profile,
    shown_offsets,
    title,
    undefined_text,
)
from attnprobe.figures.requirements import RUN, required
from attnprobe.figures.style import DIVERGING, WIDTH, Page, paper

COLUMNS = 3
"""Number of maps per row."""


def figure(result: xr.Dataset) -> Figure:
    """Draw every variable of a result that has an interval, at one checkpoint.

    Variables by offset are drawn as profiles with one row per layer: lines are means over test sequences, ribbons their
    t-intervals, the grey band and the dashed lines the ranges of the two nulls (permuted positions, networks at
    initialisation) over heads and draws. Variables with one value per head are drawn as layer x head maps; a map with
    negative values is centred at 0 (red positive, blue negative). A cell is framed if its value is outside all draws of
    both nulls.

    Args:
        result: Result of any measure at one checkpoint.
    """
    profiles, maps = _names(result, ("offset",)), _names(result, ())
    if not profiles and not maps:
        raise UsageError(f"no variable with an interval has axes layer, head; the result has: {listed(result)}")
    variables = dict.fromkeys(profiles, "layer head offset, interval, null")
    attributes = {"sequences": "a whole number", **({"n": "a whole number"} if profiles else {})}
    result = required(result, variables | dict.fromkeys(maps, "layer head, interval, null"), attributes)
    layers, heads = result.sizes["layer"], result.sizes["head"]
    map_rows = -(-len(maps) // COLUMNS)
    heights = [
        *([0.5 + 1.5 * layers * len(profiles)] if profiles else []),
        *([map_rows * (0.7 + 0.22 * heads)] if maps else []),
        0.4 + lines_height(undefined := undefined_text(result, [*profiles, *maps])),
    ]
    with paper():
        page = Page(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
        parts = page.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        if profiles:
            axes = parts[0].subplots(len(profiles) * layers, 1, squeeze=False, sharex=True)[:, 0]
            shown = result.sel(offset=shown_offsets(int(result.attrs["n"]) // 2))
            for row, axis in enumerate(axes):
                name, layer = profiles[row // layers], row % layers
                profile(axis, shown, layer, name)
                axis.set_ylabel(_label(result, name, layer))
            axes[-1].set_xlabel(label("offset"))
            lines, names = axes[0].get_legend_handles_labels()
            parts[0].legend(lines, names, loc="outside lower center", ncols=6, handlelength=2.2)
        if maps:
            grid = parts[-2].subplots(map_rows, COLUMNS, squeeze=False)
            for number, axis in enumerate(grid.ravel()):
                if number < len(maps):
                    _map(axis, result, maps[number])
                else:
                    axis.set_axis_off()
        nulls = (
            "Grey: positions permuted; dashed: networks at initialisation; framed: outside all {draws} draws of both."
        )
        text = f"Means over {result.attrs['sequences']} test sequences with {interval_text(result)}. "
        caption(parts[-1], text + null_text(result, nulls) + undefined)
    return page


def figure_over_steps(result: xr.Dataset) -> Figure:
    """Draw accuracy and every variable with one value per head over the checkpoints of a run.

    Args:
        result: Results of any measure, joined along ``step``.
    """
    names = _names(result, ("step",))
    result = required(result, RUN | dict.fromkeys(names, "step layer head, interval, null"), {})
    return over_steps(result, {name: _label(result, name) for name in names})


def _names(result: xr.Dataset, axes: tuple[str, ...]) -> list[str]:
    """Return the variables over layer, head and ``axes`` that have an interval."""
    dims = {"layer", "head", *axes}
    return [str(name) for name, values in result.items() if set(values.dims) == dims and f"{name}_interval" in result]


def _label(result: xr.Dataset, name: str, layer: int | None = None) -> str:
    text = name.replace("_", " ")
    return text if layer is None or result.sizes["layer"] == 1 else f"layer {layer}\n{text}"


def _map(axis: Axes, result: xr.Dataset, name: str) -> None:
    values = result[name].transpose("head", "layer").values
    style: dict[str, Any] = {"cmap": "viridis"}
    if np.nanmin(values, initial=0) < 0:
        largest = float(np.nanmax(np.abs(values)))
        style = {"cmap": DIVERGING, "vmin": -largest, "vmax": largest}
    image = axis.imshow(values, aspect="auto", **style)
    note_undefined(axis, result[name])
    axis.figure.colorbar(image, ax=axis, aspect=12).outline.set_visible(False)  # pyright: ignore
    nulls = [null for kind in ("permuted", "initial") if (null := draws(result, name, kind)) is not None]
    for head, layer in np.ndindex(values.shape):
        cell_draws = [null.isel(head=head, layer=layer).values for null in nulls]
        if cell_draws and all(not null.min() <= values[head, layer] <= null.max() for null in cell_draws):
            corner = (layer - 0.46, head - 0.46)
            axis.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.9))
    axis.set_xticks(range(values.shape[1]), [str(layer) for layer in result["layer"].values])
    axis.set_yticks(range(values.shape[0]), [str(head) for head in result["head"].values])
    axis.set(
        xlabel=label("layer"),
        ylabel=label("head"),
        title=f"{name.replace('_', ' ')}\n({result[name].attrs.get('units', '')})",
    )
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
