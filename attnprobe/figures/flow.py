"""Figures of the flow measure: the receptive field of each layer, and the collapse of its tokens and attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.errors import UsageError
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, legend_block, null_entries
from attnprobe.figures.panels import (
    CUT,
    by_distance,
    cut,
    draws,
    index_ticks,
    means_text,
    note_undefined,
    null_kinds,
    null_text,
    pair_counts,
    undefined_text,
)
from attnprobe.figures.requirements import required, required_of_run
from attnprobe.figures.selection import Choice, Head, all_heads, at_one_step, over_repeats, title, with_all_axes
from attnprobe.figures.style import COLOURS, PERMUTED, SEQUENTIAL, WIDE, WIDTH, width_in_inches
from attnprobe.results import as_result, distance_unit, own_prefix

DRAWN = 6
"""Largest number of layers whose fields are drawn, evenly spaced in deeper networks."""
NUMBERS = {
    "entropy_ratio": "attention entropy / uniform",
    "field_distance_ratio": "field distance / uniform",
    "token_similarity": "similarity of tokens",
    "mean_residual": "distance to mean token",
}
"""Numbers of the second panel, and their labels."""
MARKERS = "osD^"
BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}


def flow(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw the receptive field by offset after each layer, and how tokens and attention collapse, at one checkpoint.

    Left, on a logarithmic scale: mean share of the token at each offset in the effective receptive field, after at most
    six layers (dark: first, light: last), with the interval of the last one. The grey band is the range of the permuted
    null over the drawn layers and draws. For images, shares are means over the pairs at each distance, without
    interval.

    Right: entropy of attention (mean over heads; small dots: heads) and distance of the field, both relative to uniform
    ones (line at 1), mean cosine between tokens, and relative distance of tokens from their mean; the last two also for
    the input. Bars are intervals, bands the range of networks at initialisation.

    Args:
        result: Result of `attnprobe.flow` at one checkpoint, or joined along ``seed`` or ``run``.
        heads: None; the figure shows layers, and no heads in detail.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.

    Raises:
        UsageError: If the result lacks a variable or an axis, or heads are named.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | str | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `flow` draws."""
    if heads and heads != "all":
        raise UsageError(f"heads={heads!r}: the figure of flow shows layers, and no heads in detail; must be None")
    inches, prefix, result = width_in_inches(width), own_prefix(result), at_one_step(result)
    if "entropy_ratio" in result:
        result = over_repeats(result, result["entropy_ratio"], draws(result, "entropy_ratio"))
    variables, field = _variables(result), f"{prefix}field_by_offset"
    attributes = {"sequences": "a whole number"}
    if _has_streams(result):
        variables[field] = f"layer {'row_offset column_offset' if prefix else 'offset'}, interval, null"
        attributes |= {} if prefix else {"n": "a whole number"}
    result = required(with_all_axes(result, variables), variables, attributes)
    kinds, layers = null_kinds(result), result["layer"].values.tolist()
    entries: list[tuple[Any, str]] = []
    names = [name for name in _numbers(result) if name in result]
    for number, name in enumerate(names):
        entries.append((Line2D([], [], **_style(number)), NUMBERS[name.removeprefix("grid_")]))
    if "initial" in kinds:
        entries.append((Patch(color="black", **BAND), "networks at initialisation"))
    legends, panels, drawn = [legend_block(entries, inches, "After each layer")], 1, []
    if field in result:
        drawn = [layers[index] for index in np.unique(np.linspace(0, len(layers) - 1, DRAWN).round().astype(int))]
        entries = [(Line2D([], [], color=_shade(layer, layers)), f"layer {layer}") for layer in drawn]
        entries += null_entries([kind for kind in kinds if kind == "permuted"])
        legends.insert(0, legend_block(entries, inches, "Receptive field after"))
        panels = 2
    shape = (1, panels) if inches >= WIDE else (panels, 1)

    def draw(part: SubFigure) -> None:
        axes = part.subplots(*shape, squeeze=False).ravel()
        if field in result:
            _field(axes[0], result, field, layers, drawn)
        _collapse(axes[-1], result, names, (inches / shape[1] - 0.8) / (len(layers) + 1))

    return Sheet(inches, title(result), [*legends, Block(2.3 * shape[0], draw)], _caption(result, names, field))


def _has_streams(result: xr.Dataset) -> bool:
    """Return whether the network gave its residual streams, so that there are more numbers than the entropy."""
    return "field_*" not in str(as_result(result).attrs.get("left_out"))


def _numbers(result: xr.Dataset) -> list[str]:
    """Return the numbers of the second panel in the geometry of the data."""
    return [f"{own_prefix(result)}{name}" if name.startswith("field") else name for name in NUMBERS]


def _variables(result: xr.Dataset) -> dict[str, str]:
    if not _has_streams(result):
        return {"entropy_ratio": "layer head, interval, null"}
    variables = dict.fromkeys(_numbers(result), "layer, interval, null")
    inputs = dict.fromkeys(("input_token_similarity", "input_mean_residual"), ", interval")
    return variables | inputs | {"entropy_ratio": "layer head, interval, null"}


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3, "markeredgewidth": 0}


def _shade(layer: int, layers: Sequence[int]) -> Any:
    return matplotlib.colormaps[SEQUENTIAL](0.88 * layers.index(layer) / max(len(layers) - 1, 1))


def _field(axis: Axes, result: xr.Dataset, name: str, layers: Sequence[int], drawn: Sequence[int]) -> None:
    """Draw the field after some of the layers."""
    grid = "row_offset" in result[name].dims
    shown = by_distance(result, name, pair_counts(result)) if grid else cut(result)
    x = shown["distance" if grid else "offset"].values
    if (null := draws(shown, name, "permuted")) is not None:
        band, over = null.sel(layer=drawn), ("draw", "layer")
        axis.fill_between(x, band.min(over), band.max(over), color=PERMUTED, alpha=0.45, linewidth=0)
    for layer in drawn:
        axis.plot(x, shown[name].sel(layer=layer), color=_shade(layer, layers))
    if not grid:
        bounds = (shown[f"{name}_interval"].sel(layer=layers[-1], bound=bound) for bound in ("lower", "upper"))
        axis.fill_between(x, *bounds, color=_shade(layers[-1], layers), alpha=0.3, linewidth=0)
    note_undefined(axis, [shown[name]])
    values = shown[name].sel(layer=drawn).values
    if (values > 0).any():
        axis.set_yscale("log")
        axis.set_ylim(max(values[values > 0].min(), 1e-3 * np.median(values[values > 0])) / 2, 1.4)
    axis.margins(x=0)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    unit = f"distance ({distance_unit(result)})"
    axis.set(xlabel=unit if grid else label("offset"), ylabel="share of the field")


def _collapse(axis: Axes, result: xr.Dataset, names: Sequence[str], space: float) -> None:
    """Draw the numbers of each layer, which are ``space`` inches apart."""
    layers = result["layer"].values.tolist()
    rows = np.arange(len(layers))
    wide = rows if len(rows) > 1 else np.array([-0.04, 0.04])  # a band at a single place has no area
    for number, name in enumerate(names):
        values, style, null = result[name], _style(number), draws(result, name, "initial")
        bounds = result[f"{name}_interval"].transpose("bound", ...)
        if "head" in values.dims:
            axis.plot(rows, values.transpose("layer", "head"), ".", color=style["color"], alpha=0.5, markersize=2)
            values, bounds, null = (None if one is None else one.mean("head") for one in (values, bounds, null))
            assert values is not None and bounds is not None
        if null is not None:
            band = (np.broadcast_to(bound, wide.shape) for bound in (null.min("draw"), null.max("draw")))
            axis.fill_between(wide, *band, color=style["color"], **BAND)
        axis.vlines(rows, *bounds.values, color=style["color"], linewidth=0.8)
        x, y = rows, values.values
        if f"input_{name}" in result:
            x, y = np.append(-1, x), np.append(result[f"input_{name}"].values, y)
        axis.plot(x, y, **style)
    axis.axhline(1, color="black", linewidth=0.5, zorder=0)
    note_undefined(axis, [result[name] for name in names])
    low, high = axis.get_ylim()
    axis.set(xlabel="after layer", ylabel="cosine, or ratio", ylim=(min(low, 0), max(high, 1.05)))
    index_ticks(axis.xaxis, layers, space)
    if any(f"input_{name}" in result for name in names):
        first = 0 if space > 0.3 else 1  # "input" and the label of the first layer would overlap
        texts = [text.get_text() for text in axis.get_xticklabels()]
        axis.set_xticks([-1, *axis.get_xticks()[first:]], ["input", *texts[first:]])


def _caption(result: xr.Dataset, names: Sequence[str], field: str) -> str:
    text = means_text(result)
    if field in result:
        text += "Field: squared gradient of a token's residual stream with respect to the input stream of every token, "
        text += "normalised to 1. " + null_text(result, "Grey: positions permuted (range over layers and {draws}). ")
    text += null_text(result, "Bands: networks at initialisation (range of {draws}). ") + "Small dots: heads. "
    in_line = field in result and "offset" in result[field].dims
    names = [name for name in (*names, field) if name in result]
    return text + (CUT if in_line else "") + undefined_text(result, names)


@dataclass(frozen=True)
class _Layers(Choice):
    """Layers, as heads of a result whose layers have one head each."""

    kind = "layers"

    def name(self, head: Head) -> str:
        """Return the name of a layer for legends."""
        return f"layer {head[0]}"


def flow_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and the numbers of at most six layers over the checkpoints of a run.

    The numbers are those of the right panel of `flow`. Entropies are means over heads, and so are their intervals,
    which are upper bounds.

    Args:
        result: Results of `attnprobe.flow`, joined along ``step``.
        heads: None; the figure shows layers.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    if heads:
        raise UsageError(f"heads={heads!r}: the figure of flow shows layers, and no heads in detail; must be None")
    variables = {name: f"step {axes}" for name, axes in _variables(result).items() if not name.startswith("input")}
    result = required_of_run(result, variables)
    names = [name for name in _numbers(result) if name in variables]
    evenly = np.unique(np.linspace(0, result.sizes["layer"] - 1, DRAWN).round().astype(int))
    by_layer = result.isel(layer=evenly).mean("head", keep_attrs=True).assign_coords(head=0)
    panels = {name: NUMBERS[name.removeprefix("grid_")].replace(" ", "\n", 1) for name in names}
    return over_steps(
        by_layer.assign(objective=result["objective"]),
        panels,
        width=width,
        titles=titles,
        caption=caption,
        choose=lambda last, *_: _Layers(tuple(all_heads(last)), "", False),
    )
