"""Panels shared by the figures of several measures."""

import json
import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.errors import UsageError, printable
from attnprobe.figures.style import COLOURS, DIVERGING, INITIAL, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import distance_unit, reasons_of


def title(result: xr.Dataset) -> str:
    """Return the title of a result (of a checkpoint or a run) on two lines."""
    text = printable(result.attrs.get("run_title", result.attrs.get("title", result.attrs.get("measure", ""))))
    return text.replace("$", r"\$").replace("; ", "\n", 1)  # Matplotlib reads text between $ as mathematics


def head_name(result: xr.Dataset, layer: int, head: int) -> str:
    """Return the label of a head; the layer is named only if there are several."""
    return f"head {head}" if result.sizes["layer"] == 1 else f"layer {layer}, head {head}"


def draws(result: xr.Dataset, name: str, kind: str) -> xr.DataArray | None:
    """Return the draws of one null of a variable, or None if the result has none."""
    null = f"{name}_null"
    if null not in result or kind not in result["null"].values:
        return None
    return result[null].sel(null=kind)


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


def interval_text(result: xr.Dataset) -> str:
    """Return the name of the intervals for captions."""
    return f"{100 * result.attrs.get('ci_prob', 0.95):g} % t-intervals"


def null_text(result: xr.Dataset, text: str) -> str:
    """Return the caption text about nulls, or an empty string if the result has none."""
    return f"{text.format(draws=result.sizes['draw'])} " if "draw" in result.sizes else ""


def caption(part: SubFigure, text: str) -> None:
    """Write a caption into the figure, so that the figure is self-contained."""
    part.text(0.012, 0.5, textwrap.fill(text, CHARACTERS), fontsize=5.8, va="center", linespacing=1.3)


def undefined_text(result: xr.Dataset, names: Sequence[str]) -> str:
    """Return the caption text about undefined values of the drawn variables, or an empty string if there are none."""
    by_reason: dict[str, list[str]] = {}
    for name in names:
        for reason in dict.fromkeys(reasons_of(result[name]).values.ravel().tolist()):
            if reason:
                by_reason.setdefault(reason, []).append(name.removeprefix("grid_").replace("_", " "))
    listed = "; ".join(f"{', '.join(dict.fromkeys(texts))}: {reason}" for reason, texts in by_reason.items())
    return f" Undefined values are left out ({listed})." if listed else ""


def lines_height(text: str) -> float:
    """Return the height in inches that a text adds to a caption."""
    return 0.11 * -(-len(text) // CHARACTERS)


def note_undefined(axis: Axes, array: xr.DataArray) -> None:
    """Write the reasons into a panel none of whose values is defined."""
    if array.isnull().all():
        texts = "; ".join(dict.fromkeys(reasons_of(array).values.ravel().tolist()))
        style = {"ha": "center", "va": "center", "fontsize": 5.8, "color": "0.4"}
        axis.text(0.5, 0.7, textwrap.fill(f"undefined: {texts}", 60), transform=axis.transAxes, **style)


CHARACTERS = 120
"""Characters per line of a caption."""
CUT = "Offsets up to n / 2; larger ones have few pairs (the result has all)."
"""Caption text about `shown_offsets`."""


def shown_offsets(farthest: int) -> np.ndarray:
    """Return the offsets to draw: all for short sequences; log-spaced beyond `DENSE` for long ones."""
    distance = np.arange(min(farthest, DENSE if farthest > LINEAR else LINEAR) + 1)
    if farthest > LINEAR:
        distance = np.unique(np.concatenate([distance, np.geomspace(DENSE, farthest, 100).round().astype(int)]))
    return np.concatenate([-distance[:0:-1], distance])


LINEAR, DENSE = 256, 16
"""Largest offset with a linear axis; largest offset up to which a logarithmic axis shows every offset."""


def profile(axis: Axes, result: xr.Dataset, layer: int, name: str, colour: str | None = None) -> None:
    """Draw a variable by offset for each head, with intervals, against the ranges of both nulls over heads.

    Each head has its own dash pattern, and its own colour unless ``colour`` is set.
    """
    offset, of_layer = result["offset"], result.isel(layer=layer)
    envelopes(axis, offset, of_layer, name, ("draw", "head"))
    for head in range(result.sizes["head"]):
        style, interval = line(head), of_layer[f"{name}_interval"].isel(head=head)
        if colour is not None:
            style["color"] = colour
        axis.plot(offset, of_layer[name].isel(head=head), label=f"head {head}", **style)
        bounds = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(offset, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    axis.margins(x=0)
    farthest = int(offset.max())
    if farthest > LINEAR:
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        outer_tick = 100 if farthest < 1000 else 1000
        axis.set_xticks([-outer_tick, -10, 0, 10, outer_tick])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))


def envelopes(axis: Axes, x: xr.DataArray | np.ndarray, result: xr.Dataset, name: str, over: tuple[str, ...]) -> None:
    """Draw the ranges of both nulls: a band for permuted positions, dashed lines for networks at initialisation."""
    permuted, initial = (draws(result, name, kind) for kind in ("permuted", "initial"))
    if permuted is not None:
        axis.fill_between(x, permuted.min(over), permuted.max(over), color=PERMUTED, alpha=0.35, linewidth=0)
    for limit in () if initial is None else (initial.min(over), initial.max(over)):
        axis.plot(x, limit, color=INITIAL, linewidth=0.7, linestyle=(0, (3, 2)))


def over_steps(result: xr.Dataset, panels: dict[str, str]) -> Figure:
    """Draw the accuracies of a run and, below them, one panel per variable.

    Checkpoints are evenly spaced on the horizontal axis, since their steps are log-spaced within each stage.

    Args:
        result: Results joined along ``step``.
        panels: Maps each variable's name to the label of its panel.
    """
    x = np.arange(result.sizes["step"])
    with paper():
        figure = Page(figsize=(WIDTH, 1.15 * (len(panels) + 1) + 0.7), layout="constrained")
        figure.suptitle(title(result), fontsize=8)
        axes = figure.subplots(len(panels) + 1, 1, sharex=True, squeeze=False)[:, 0]
        objectives = result["objective"].values
        for objective in dict.fromkeys(objectives.tolist()):
            stage = objectives == objective  # stages have different objectives, so their accuracies are not connected
            for name, dash in (("train_accuracy", ":"), ("test_accuracy", "-")):
                style = {"color": "black", "linestyle": dash, "marker": "."}
                axes[0].plot(x[stage], result[name][stage], label=name.split("_")[0], **style)
            middle = float(x[stage].mean())
            axes[0].text(middle, 1.1, f"objective: {objective}", ha="center", va="bottom", fontsize=6.5)
        axes[0].set(ylabel="accuracy", ylim=(-0.03, 1.05))
        axes[0].legend(*(entries[:2] for entries in axes[0].get_legend_handles_labels()), loc="upper left", ncols=2)
        for axis, (name, text) in zip(axes[1:], panels.items(), strict=True):
            evolution(axis, x, result, name)
            axis.set_ylabel(text)
        for axis in axes:
            for last in np.flatnonzero(objectives[1:] != objectives[:-1]):
                axis.axvline(last + 0.5, color="black", linewidth=0.6)
        axes[-1].set_xticks(x, [str(step) for step in result["step"].values])
        axes[-1].set_xlabel(f"{label('step')} (checkpoints, evenly spaced)")
        if panels and result.sizes["layer"] * result.sizes["head"] <= 2 * len(COLOURS):
            figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def evolution(axis: Axes, x: np.ndarray, result: xr.Dataset, name: str) -> None:
    """Draw a variable of each head over checkpoints, with intervals, against the range of the permuted null."""
    note_undefined(axis, result[name])
    null = draws(result, name, "permuted")
    if null is not None:
        band = null.min(("draw", "layer", "head")), null.max(("draw", "layer", "head"))
        axis.fill_between(x, *band, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    for number, (layer, head) in enumerate(np.ndindex(result.sizes["layer"], result.sizes["head"])):
        of_head = result.isel(layer=layer, head=head)
        style = line(number)
        axis.plot(x, of_head[name], marker=".", label=head_name(result, layer, head), **style)
        interval = of_head[f"{name}_interval"]
        bounds = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(x, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    axis.yaxis.set_major_locator(MaxNLocator(4))


def window_text(result: xr.Dataset) -> str:
    """Return the largest distance of a near key with its unit: 1 token, 2 pixels."""
    window, unit = result.attrs["window"], distance_unit(result)
    return f"{window} {unit.removesuffix('es' if unit == 'patches' else 's') if window == 1 else unit}"


def draw_grid_pattern(axis: Axes, ratio: xr.DataArray) -> AxesImage:
    """Draw attention over uniform by row and column offset, up to half the image, on a log2 scale from 1/8 to 8."""
    row, column = ((ratio.sizes[name] + 1) // 4 for name in ("row_offset", "column_offset"))
    shown = ratio.sel(row_offset=slice(-row, row), column_offset=slice(-column, column))
    log_ratio = np.log2(shown.clip(min=2.0**-3))
    extent = (-column - 0.5, column + 0.5, row + 0.5, -row - 0.5)
    image = axis.imshow(log_ratio, cmap=DIVERGING, vmin=-3, vmax=3, extent=extent)
    axis.spines[:].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return image


def colour_bar(part: SubFigure, image: AxesImage, axes: list[Axes]) -> None:
    """Add the colour bar of `draw_grid_pattern` next to the axes."""
    bar = part.colorbar(image, ax=axes, shrink=0.9, aspect=12, ticks=range(-3, 4))
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    bar.set_label("attention / uniform")
