"""Figures of the proximity measure, for one checkpoint and for a run. They need a result but no model."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from attnprobe.axes import label
from attnprobe.figures.panels import (
    CUT,
    caption,
    colour_bar,
    draw_grid_pattern,
    head_name,
    interval_text,
    lines_height,
    null_text,
    over_steps,
    profile,
    shown_offsets,
    tails,
    title,
    undefined_text,
    window_text,
)
from attnprobe.figures.requirements import RUN, required
from attnprobe.figures.style import DIVERGING, WIDTH, Page, paper
from attnprobe.results import own_prefix

ROW = 1.5
"""Height of one row of panels, in inches."""
PROFILES = {
    "score_by_offset": "layer head offset, interval, null",
    "pattern_by_offset": "layer head offset, interval, null",
    "uniform_pattern_by_offset": "offset",
}
VARIABLES = PROFILES | {"proximity_contrast": "layer head, null"}
GRID_VARIABLES = PROFILES | {
    "grid_proximity_contrast": "layer head, null",
    "grid_pattern_by_offset": "layer head row_offset column_offset",
    "grid_uniform_pattern_by_offset": "row_offset column_offset",
}
ATTRIBUTES = {"n": "a whole number", "sequences": "a whole number", "window": "a whole number"}
"""What the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""


def proximity(result: xr.Dataset) -> Figure:
    """Draw scores and attention by offset and the proximity contrast of every head, at one checkpoint.

    The first two columns have one row per layer. Left: the offset profile that best fits the centred score
    (``score_by_offset``); 0 at every offset means no dependence on the offset. Middle: the mean attention weight by
    offset, divided by that of uniform attention; the black line at 1 is uniform attention. Right: the proximity
    contrast as a layer x head map: red heads score near keys higher than far keys, blue heads lower. For images, a
    second part shows attention over uniform attention by row and column offset, and the contrast uses distances
    between pixels.

    Lines are means over test sequences; ribbons are t-intervals of the mean. The grey band (permuted positions) and the
    dashed lines (networks at initialisation) are the ranges of the two nulls over heads and draws: a profile that stays
    inside them shows no more structure than these controls. A cell of the map is framed if the contrast is outside all
    draws of both nulls of that head. With N draws, an unstructured head lies outside the range of one null with
    probability 2 / (N + 1). Leaving the band at a single offset is no evidence: a profile has many offsets.

    Offsets are shown up to half the sequence length, since larger ones have few pairs. Long sequences have a
    logarithmic axis.

    Args:
        result: Result of `attnprobe.proximity` at one checkpoint.
    """
    grid = bool(own_prefix(result))
    result = required(result, GRID_VARIABLES if grid else VARIABLES, ATTRIBUTES)
    layers, heads = result.sizes["layer"], result.sizes["head"]
    caption_height = 0.45 + lines_height(_undefined(result))
    heights = [0.75 + ROW * layers, *([0.35 + (WIDTH - 1) / max(heads, 4) * layers] if grid else []), caption_height]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        _profiles(parts[0], result)
        if grid:
            _grid_patterns(parts[1], result)
        _caption(parts[-1], result)
    return figure


def proximity_over_steps(result: xr.Dataset) -> Figure:
    """Draw accuracy and the proximity statistics of every head over the checkpoints of a run.

    The statistics are the proximity contrast, the Toeplitz share, the attention at distance 1 and the mean attention
    distance, the last two relative to uniform attention. Distances are in tokens, or in pixels for images. Ribbons are
    t-intervals over sequences; the grey band is the range of the permuted null over heads and draws. Vertical lines
    separate the stages of training; accuracies are those of the stage's objective.

    Args:
        result: Results of `attnprobe.proximity`, joined along ``step``.
    """
    prefix = own_prefix(result)
    panels = {
        f"{prefix}proximity_contrast": "contrast\n(std of score)",
        f"{prefix}toeplitz_share": "Toeplitz\nshare",
        f"{prefix}near_mass": "attention at\ndistance 1\n/ uniform",
        f"{prefix}mean_distance_ratio": "mean distance\n/ uniform",
    }
    variables = dict.fromkeys(panels, "step layer head, interval, null")
    variables[f"{prefix}near_mass"] = "step layer head window, interval, null"
    return over_steps(required(result, RUN | variables, {}).isel(window=0), panels)


def _profiles(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    spec = part.add_gridspec(layers, 3, width_ratios=[1, 1, 0.16 + 0.13 * layers])
    shown = result.sel(offset=shown_offsets(int(result.attrs["n"]) // 2))
    ratio = shown.copy()
    for tail in tails(result, "pattern_by_offset"):
        name = f"pattern_by_offset{tail}"
        ratio[name] = shown[name] / shown["uniform_pattern_by_offset"]
    for layer in range(layers):
        left, right = part.add_subplot(spec[layer, 0]), part.add_subplot(spec[layer, 1])
        profile(left, shown, layer, "score_by_offset")
        profile(right, ratio, layer, "pattern_by_offset")
        left.set_ylabel("score, centred" if layers == 1 else f"layer {layer}\nscore, centred")
        right.set_ylabel("attention / uniform")
        right.axhline(1, color="black", linewidth=0.5)
        if layer == layers - 1:
            left.set_xlabel(label("offset"))
            right.set_xlabel(label("offset"))
        if layer == 0:
            lines, names = left.get_legend_handles_labels()
            part.legend(lines, names, loc="outside lower center", ncols=6, handlelength=2.2)
    _contrast_map(part.add_subplot(spec[:, 2]), result)


def _contrast_map(axis: Axes, result: xr.Dataset) -> None:
    name = f"{own_prefix(result)}proximity_contrast"
    values = result[name].transpose("head", "layer").values
    outside = np.zeros(values.shape, dtype=bool)
    if f"{name}_null" in result:
        null = result[f"{name}_null"].transpose("head", "layer", "null", "draw").values.reshape(*values.shape, -1)
        outside = (values < null.min(-1)) | (values > null.max(-1))
    largest = float(np.nanmax(np.abs(values), initial=0.1))
    axis.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto")
    for (head, layer), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * largest else "black"
        axis.text(
            layer, head, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour
        )
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
        axis.set_title(head_name(result, layer, head), pad=2)
        if layer == layers - 1:
            axis.set_xlabel("column offset")
        if head == 0:
            axis.set_ylabel("row offset")
    assert image is not None
    colour_bar(part, image, axes.ravel().tolist())


def _undefined(result: xr.Dataset) -> str:
    return undefined_text(result, [f"{own_prefix(result)}proximity_contrast"])


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    caption(
        part,
        f"Means over {result.attrs['sequences']} test sequences with {interval_text(result)}. "
        + null_text(
            result,
            "Grey band: positions permuted; dashed: networks at initialisation (envelopes over heads and {draws} "
            "draws).",
        )
        + f"Contrast: score of keys within {window_text(result)} minus score of keys beyond, in "
        "std of the score"
        + (null_text(result, "; framed if outside every draw of both nulls.") or ". ")
        + CUT
        + _undefined(result),
    )
