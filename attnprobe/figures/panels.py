"""Panels that the figures of several measures share."""

import json
import textwrap

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.style import COLOURS, DIVERGING, INITIAL, PERMUTED, WIDTH, Page, line, paper


def title(result: xr.Dataset) -> str:
    """Return the title of a result, of a checkpoint or a run, on two lines."""
    return result.attrs.get("run_title", result.attrs.get("title", result.attrs["measure"])).replace("; ", "\n", 1)


def head_name(result: xr.Dataset, layer: int, head: int) -> str:
    """Return what to call a head."""
    return f"head {head}" if result.sizes["layer"] == 1 else f"layer {layer}, head {head}"


def draws(result: xr.Dataset, name: str, kind: str) -> xr.DataArray | None:
    """Return the draws of one null of a number; None if the result has none."""
    null = f"{name}_null"
    if null not in result or kind not in result["null"].values:
        return None
    return result[null].sel(null=kind)


def causal(result: xr.Dataset) -> bool:
    """Return whether attention is causal in the network of a result."""
    if "causal" in result.attrs:
        return bool(result.attrs["causal"])
    return json.loads(result.attrs["config"])["model"]["causal"]  # results from before 2026-11-25


def tails(result: xr.Dataset, name: str) -> list[str]:
    """Return how the names of a number's variables end: its value, its interval, and its null if there is one."""
    return [tail for tail in ("", "_interval", "_null") if f"{name}{tail}" in result]


def interval_text(result: xr.Dataset) -> str:
    """Return what the caption calls the intervals."""
    return f"{100 * result.attrs.get('ci_prob', 0.95):g} % t intervals"


def null_text(result: xr.Dataset, text: str) -> str:
    """Return the part of a caption about nulls; nothing if the result has none."""
    return f"{text.format(draws=result.sizes['draw'])} " if "draw" in result.sizes else ""


def caption(part: SubFigure, text: str) -> None:
    """Say in the figure what its marks mean, so that it can be read alone."""
    part.text(0.012, 0.5, textwrap.fill(text, 120), fontsize=5.8, va="center", linespacing=1.3)


CUT = "Offsets up to n / 2: farther ones have few pairs (the result has all)."
"""What the caption of a profile says of `shown_offsets`."""


def shown_offsets(farthest: int) -> np.ndarray:
    """Return the offsets that are drawn: all of a short sequence, log-spaced ones beyond `DENSE` of a long one."""
    distance = np.arange(min(farthest, DENSE if farthest > LINEAR else LINEAR) + 1)
    if farthest > LINEAR:
        distance = np.unique(np.concatenate([distance, np.geomspace(DENSE, farthest, 100).round().astype(int)]))
    return np.concatenate([-distance[:0:-1], distance])


LINEAR, DENSE = 256, 16
"""Farthest offset up to which a profile has a linear axis, and up to which a logarithmic one shows every offset."""


def profile(axis: Axes, result: xr.Dataset, layer: int, name: str, colour: str | None = None) -> None:
    """Draw a profile by offset for each head, with intervals, against the envelopes of both nulls over heads.

    Heads have dashes of their own, and colours too unless one is given for all.
    """
    offset, one = result["offset"], result.isel(layer=layer)
    envelopes(axis, offset, one, name, ("draw", "head"))
    for head in range(result.sizes["head"]):
        drawn, interval = line(head), one[f"{name}_interval"].isel(head=head)
        if colour is not None:
            drawn["color"] = colour
        axis.plot(offset, one[name].isel(head=head), label=f"head {head}", **drawn)
        ends = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(offset, *ends, color=drawn["color"], alpha=0.2, linewidth=0)
    axis.margins(x=0)
    farthest = int(offset.max())
    if farthest > LINEAR:
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        far = 100 if farthest < 1000 else 1000
        axis.set_xticks([-far, -10, 0, 10, far])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))


def envelopes(axis: Axes, x: xr.DataArray | np.ndarray, result: xr.Dataset, name: str, over: tuple[str, ...]) -> None:
    """Draw the ranges of both nulls: a band for permuted positions, dashed lines for networks at initialisation."""
    permuted, initial = (draws(result, name, kind) for kind in ("permuted", "initial"))
    if permuted is not None:
        axis.fill_between(x, permuted.min(over), permuted.max(over), color=PERMUTED, alpha=0.35, linewidth=0)
    for end in () if initial is None else (initial.min(over), initial.max(over)):
        axis.plot(x, end, color=INITIAL, linewidth=0.7, linestyle=(0, (3, 2)))


def over_steps(result: xr.Dataset, panels: dict[str, str]) -> Figure:
    """Draw a run: accuracies, and below them one panel for each named number of a head, with its label.

    Checkpoints are evenly spaced on the horizontal axis, since their steps are log-spaced within each stage.
    """
    places = np.arange(result.sizes["step"])
    with paper():
        figure = Page(figsize=(WIDTH, 1.15 * (len(panels) + 1) + 0.7), layout="constrained")
        figure.suptitle(title(result), fontsize=8)
        axes = figure.subplots(len(panels) + 1, 1, sharex=True, squeeze=False)[:, 0]
        objectives = result["objective"].values
        for objective in dict.fromkeys(objectives.tolist()):
            of_stage = objectives == objective  # an accuracy is of its objective: no line goes on into the next stage
            for name, dash in (("train_accuracy", ":"), ("test_accuracy", "-")):
                drawn = {"color": "black", "linestyle": dash, "marker": "."}
                axes[0].plot(places[of_stage], result[name][of_stage], label=name.split("_")[0], **drawn)
            middle = float(places[of_stage].mean())
            axes[0].text(middle, 1.1, f"objective: {objective}", ha="center", va="bottom", fontsize=6.5)
        axes[0].set(ylabel="accuracy", ylim=(-0.03, 1.05))
        axes[0].legend(*(one[:2] for one in axes[0].get_legend_handles_labels()), loc="upper left", ncols=2)
        for axis, (name, text) in zip(axes[1:], panels.items(), strict=True):
            evolution(axis, places, result, name)
            axis.set_ylabel(text)
        for axis in axes:
            for place in np.flatnonzero(objectives[1:] != objectives[:-1]):
                axis.axvline(place + 0.5, color="black", linewidth=0.6)
        axes[-1].set_xticks(places, [str(step) for step in result["step"].values])
        axes[-1].set_xlabel(f"{label('step')} (checkpoints, evenly spaced)")
        if panels and result.sizes["layer"] * result.sizes["head"] <= 2 * len(COLOURS):
            figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def evolution(axis: Axes, places: np.ndarray, result: xr.Dataset, name: str) -> None:
    """Draw a number of each head over checkpoints, with intervals, against the envelope of the permuted null."""
    null = draws(result, name, "permuted")
    if null is not None:
        band = null.min(("draw", "layer", "head")), null.max(("draw", "layer", "head"))
        axis.fill_between(places, *band, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    for number, (layer, head) in enumerate(np.ndindex(result.sizes["layer"], result.sizes["head"])):
        one = result.isel(layer=layer, head=head)
        drawn = line(number)
        axis.plot(places, one[name], marker=".", label=head_name(result, layer, head), **drawn)
        interval = one[f"{name}_interval"]
        ends = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(places, *ends, color=drawn["color"], alpha=0.2, linewidth=0)
    axis.yaxis.set_major_locator(MaxNLocator(4))


def draw_grid_pattern(axis: Axes, ratio: xr.DataArray) -> AxesImage:
    """Draw attention over uniform by row and column offset, in doublings from 1/8 to 8, up to half the image away."""
    row, column = ((ratio.sizes[axis] + 1) // 4 for axis in ("row_offset", "column_offset"))
    shown = ratio.sel(row_offset=slice(-row, row), column_offset=slice(-column, column))
    doublings = np.log2(shown.clip(min=2.0**-3))
    extent = (-column - 0.5, column + 0.5, row + 0.5, -row - 0.5)
    image = axis.imshow(doublings, cmap=DIVERGING, vmin=-3, vmax=3, extent=extent)
    axis.spines[:].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return image


def colour_bar(part: SubFigure, image: AxesImage, axes: list[Axes]) -> None:
    """Draw the scale of `draw_grid_pattern` beside the axes."""
    bar = part.colorbar(image, ax=axes, shrink=0.9, aspect=12, ticks=range(-3, 4))
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    bar.set_label("attention / uniform")
