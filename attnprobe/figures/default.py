"""The figure of a measure that has none of its own: profiles by offset, and layer x head maps of single numbers."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attnprobe.axes import label
from attnprobe.figures.panels import caption, draws, interval_text, null_text, over_steps, profile, shown_offsets, title
from attnprobe.figures.style import DIVERGING, WIDTH, Page, paper

COLUMNS = 3
"""Maps in a row."""


def figure(result: xr.Dataset) -> Figure:
    """Draw one checkpoint: each number by offset as profiles, a row a layer; each single number as a layer x head map.

    A cell is framed if its number lies outside all draws of both nulls.
    """
    profiles, maps = _names(result, ("offset",)), _names(result, ())
    layers, heads = result.sizes["layer"], result.sizes["head"]
    map_rows = -(-len(maps) // COLUMNS)
    heights = [
        *([0.5 + 1.5 * layers * len(profiles)] if profiles else []),
        *([map_rows * (0.7 + 0.22 * heads)] if maps else []),
        0.4,
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
        caption(parts[-1], text + null_text(result, nulls))
    return page


def figure_over_steps(result: xr.Dataset) -> Figure:
    """Draw a run: accuracies, and each single number of every head at each checkpoint."""
    return over_steps(result, {name: _label(result, name) for name in _names(result.isel(step=0), ())})


def _names(result: xr.Dataset, axes: tuple[str, ...]) -> list[str]:
    """Return the numbers over layer, head and some axes that have an interval."""
    over = {"layer", "head", *axes}
    return [str(name) for name, one in result.items() if set(one.dims) == over and f"{name}_interval" in result]


def _label(result: xr.Dataset, name: str, layer: int | None = None) -> str:
    words = name.replace("_", " ")
    return words if layer is None or result.sizes["layer"] == 1 else f"layer {layer}\n{words}"


def _map(axis: Axes, result: xr.Dataset, name: str) -> None:
    values = result[name].transpose("head", "layer").values
    drawn: dict[str, Any] = {"cmap": "viridis"}
    if np.nanmin(values, initial=0) < 0:
        most = float(np.nanmax(np.abs(values)))
        drawn = {"cmap": DIVERGING, "vmin": -most, "vmax": most}
    image = axis.imshow(values, aspect="auto", **drawn)
    axis.figure.colorbar(image, ax=axis, aspect=12).outline.set_visible(False)  # pyright: ignore
    nulls = [null for kind in ("permuted", "initial") if (null := draws(result, name, kind)) is not None]
    for head, layer in np.ndindex(values.shape):
        ranges = [null.isel(head=head, layer=layer).values for null in nulls]
        if ranges and all(not one.min() <= values[head, layer] <= one.max() for one in ranges):
            corner = (layer - 0.46, head - 0.46)
            axis.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.9))
    axis.set_xticks(range(values.shape[1]), [str(one) for one in result["layer"].values])
    axis.set_yticks(range(values.shape[0]), [str(one) for one in result["head"].values])
    axis.set(xlabel=label("layer"), ylabel=label("head"), title=f"{name.replace('_', ' ')} ({result[name].units})")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
