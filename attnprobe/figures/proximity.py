"""Figures of the proximity measure: one page a checkpoint, one a run. They see a result and never a model."""

import textwrap

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.style import COLOURS, DIVERGING, INITIAL, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import own_prefix

ROW = 1.5
"""Inches: height of one row of panels."""


def proximity(result: xr.Dataset) -> Figure:
    """Draw one checkpoint: profiles of score and pattern by offset against both nulls, and the map of the contrast.

    Each layer is a row. Ribbons are 95 % t intervals over sequences. The shaded band and the dashed lines are the
    envelopes, over heads and draws, of the two nulls. Offsets up to half the sequence are shown: farther ones have few
    pairs; long sequences have a logarithmic axis. A cell of the map is framed where the contrast lies outside the range
    of all draws of both nulls of its head. On images the pattern over two-dimensional offsets follows.
    """
    layers, heads = result.sizes["layer"], result.sizes["head"]
    grid = bool(own_prefix(result))
    heights = [0.75 + ROW * layers, *([0.35 + (WIDTH - 1) / max(heads, 4) * layers] if grid else []), 0.45]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(_title(result.attrs["title"]), fontsize=8)
        _profiles(parts[0], result)
        if grid:
            _grid_patterns(parts[1], result)
        _caption(parts[-1], result)
    return figure


def proximity_over_steps(result: xr.Dataset) -> Figure:
    """Draw a run: accuracy, contrast, Toeplitz share, near attention and mean distance at each checkpoint.

    On images distances are in pixels, elsewhere in tokens.

    Checkpoints are evenly spaced on the horizontal axis, since their steps are log-spaced within each stage. Ribbons
    are 95 % t intervals over sequences, the shaded band is the envelope of the permuted null over heads and draws.
    """
    prefix = own_prefix(result)
    panels = {
        f"{prefix}proximity_contrast": "contrast\n(sd of score)",
        f"{prefix}toeplitz_share": "Toeplitz\nshare",
        f"{prefix}near_mass": "attention at\ndistance 1\n/ uniform",
        f"{prefix}mean_distance_ratio": "mean distance\n/ uniform",
    }
    places = np.arange(result.sizes["step"])
    with paper():
        figure = Page(figsize=(WIDTH, 1.15 * (len(panels) + 1) + 0.7), layout="constrained")
        figure.suptitle(_title(result.attrs.get("run_title", result.attrs["measure"])), fontsize=8)
        axes = figure.subplots(len(panels) + 1, 1, sharex=True)
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
            _evolution(axis, places, result.isel(within=0), name)
            axis.set_ylabel(text)
        for axis in axes:
            for place in np.flatnonzero(objectives[1:] != objectives[:-1]):
                axis.axvline(place + 0.5, color="black", linewidth=0.6)
        axes[-1].set_xticks(places, [str(step) for step in result["step"].values])
        axes[-1].set_xlabel(f"{label('step')} (checkpoints, evenly spaced)")
        if result.sizes["layer"] * result.sizes["head"] <= 2 * len(COLOURS):
            figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _evolution(axis: Axes, places: np.ndarray, result: xr.Dataset, name: str) -> None:
    null = result[f"{name}_null"].sel(null="permuted")
    band = null.min(("draw", "layer", "head")), null.max(("draw", "layer", "head"))
    axis.fill_between(places, *band, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    for number, (layer, head) in enumerate(np.ndindex(result.sizes["layer"], result.sizes["head"])):
        one = result.isel(layer=layer, head=head)
        drawn = line(number)
        axis.plot(places, one[name], marker=".", label=_head(result, layer, head), **drawn)
        interval = one[f"{name}_interval"]
        ends = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(places, *ends, color=drawn["color"], alpha=0.2, linewidth=0)
    axis.yaxis.set_major_locator(MaxNLocator(4))


def _profiles(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    spec = part.add_gridspec(layers, 3, width_ratios=[1, 1, 0.16 + 0.13 * layers])
    shown = result.sel(offset=shown_offsets(result.attrs["n"] // 2))
    ratio = shown.copy()
    for name in ("pattern_by_offset", "pattern_by_offset_interval", "pattern_by_offset_null"):
        ratio[name] = shown[name] / shown["uniform_pattern_by_offset"]
    for layer in range(layers):
        left, right = part.add_subplot(spec[layer, 0]), part.add_subplot(spec[layer, 1])
        _profile(left, shown, layer, "score_by_offset")
        _profile(right, ratio, layer, "pattern_by_offset")
        left.set_ylabel("score, centred" if layers == 1 else f"layer {layer}\nscore, centred")
        right.set_ylabel("attention / uniform")
        right.axhline(1, color="black", linewidth=0.5)
        if layer == layers - 1:
            left.set_xlabel(label("offset"))
            right.set_xlabel(label("offset"))
        if layer == 0:
            lines, names = left.get_legend_handles_labels()
            part.legend(lines, names, loc="outside lower center", ncols=8, handlelength=2.2)
    _contrast_map(part.add_subplot(spec[:, 2]), result)


def shown_offsets(farthest: int) -> np.ndarray:
    """Return the offsets that are drawn: all of a short sequence, log-spaced ones beyond `DENSE` of a long one."""
    distance = np.arange(min(farthest, DENSE if farthest > LINEAR else LINEAR) + 1)
    if farthest > LINEAR:
        distance = np.unique(np.concatenate([distance, np.geomspace(DENSE, farthest, 100).round().astype(int)]))
    return np.concatenate([-distance[:0:-1], distance])


LINEAR, DENSE = 256, 16
"""Farthest offset up to which a profile has a linear axis, and up to which a logarithmic one shows every offset."""


def _profile(axis: Axes, result: xr.Dataset, layer: int, name: str) -> None:
    offset, one = result["offset"], result.isel(layer=layer)
    null = one[f"{name}_null"]
    low, high = null.min(("draw", "head")), null.max(("draw", "head"))
    axis.fill_between(
        offset, low.sel(null="permuted"), high.sel(null="permuted"), color=PERMUTED, alpha=0.35, linewidth=0
    )
    for end in (low, high):
        axis.plot(offset, end.sel(null="initial"), color=INITIAL, linewidth=0.7, linestyle=(0, (3, 2)))
    for head in range(result.sizes["head"]):
        drawn, interval = line(head), one[f"{name}_interval"].isel(head=head)
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


def _contrast_map(axis: Axes, result: xr.Dataset) -> None:
    name = f"{own_prefix(result)}proximity_contrast"
    values = result[name].transpose("head", "layer").values
    null = result[f"{name}_null"].transpose("head", "layer", "null", "draw").values
    null = null.reshape(*values.shape, -1)
    outside = (values < null.min(-1)) | (values > null.max(-1))
    most = float(np.nanmax(np.abs(values), initial=0.1))
    axis.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
    for (head, layer), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.6 * most else "black"
        axis.text(layer, head, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)
        if outside[head, layer]:
            corner = (layer - 0.46, head - 0.46)
            axis.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.9))
    axis.set_xticks(range(values.shape[1]), [str(layer) for layer in result["layer"].values])
    axis.set_yticks(range(values.shape[0]), [str(head) for head in result["head"].values])
    axis.set(xlabel=label("layer"), ylabel=label("head"), title="contrast")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _grid_patterns(part: SubFigure, result: xr.Dataset) -> None:
    ratio = result["grid_pattern_by_offset"] / result["grid_uniform_pattern_by_offset"]
    layers, heads = result.sizes["layer"], result.sizes["head"]
    axes = part.subplots(layers, heads, sharex=True, sharey=True, squeeze=False)
    image = None
    for (layer, head), axis in np.ndenumerate(axes):
        image = draw_grid_pattern(axis, ratio.isel(layer=layer, head=head))
        axis.set_title(_head(result, layer, head), pad=2)
        if layer == layers - 1:
            axis.set_xlabel("column offset")
        if head == 0:
            axis.set_ylabel("row offset")
    assert image is not None
    colour_bar(part, image, axes.ravel().tolist())


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


def _head(result: xr.Dataset, layer: int, head: int) -> str:
    return f"head {head}" if result.sizes["layer"] == 1 else f"layer {layer}, head {head}"


def _title(title: str) -> str:
    return title.replace("; ", "\n", 1)


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    """Say in the figure what its marks mean, so that it can be read alone."""
    window = result.attrs["window"]
    unit = "pixel" if own_prefix(result) else "token"
    text = (
        f"Means over {result.attrs['sequences']} test sequences with 95 % t intervals. Grey band: positions "
        f"permuted; dashed: networks at initialisation (envelopes over heads and {result.sizes['draw']} draws). "
        f"Contrast: score of keys within {window} {unit}{'' if window == 1 else 's'} minus score of keys beyond, in sd "
        "of the score; framed where it lies outside every draw of both nulls."
    )
    part.text(0.012, 0.5, textwrap.fill(text, 128), fontsize=5.8, va="center", linespacing=1.3)
