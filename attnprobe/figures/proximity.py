"""Figures of the proximity measure, for one checkpoint and for a run. They need a result but no model."""

from collections.abc import Sequence

import xarray as xr
from matplotlib.figure import Figure, SubFigure

from attnprobe.axes import label
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries
from attnprobe.figures.panels import (
    CUT,
    by_distance,
    by_layer,
    choice_text,
    colour_bar,
    cut,
    draw_grid_pattern,
    draws,
    head_map,
    map_height,
    means_text,
    null_kinds,
    null_text,
    offset_label,
    profile,
    rows_of_heads,
    shared_labels,
    undefined_text,
)
from attnprobe.figures.requirements import required, required_of_run
from attnprobe.figures.selection import (
    Choice,
    Head,
    at,
    at_one_step,
    chosen,
    most_heads,
    near_keys,
    over_repeats,
    title,
    with_all_axes,
)
from attnprobe.figures.style import WIDE, WIDTH, width_in_inches
from attnprobe.results import distance_unit, own_prefix

ATTRIBUTES = {"n": "a whole number", "sequences": "a whole number", "window": "a whole number"}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""
ROW = 1.35
"""Height of one row of profiles, in inches."""


def proximity(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw the proximity contrast and attention distance of all heads, and profiles of some, at one checkpoint.

    Top left: the proximity contrast as a layer x head map: red heads score near keys higher than far keys, blue heads
    lower. A dot marks a contrast that is not outside all draws of both nulls of that head; with N draws, an
    unstructured head lies outside the range of one null with probability 2 / (N + 1). Top right: mean attention
    distance of each head by layer, heads sorted within their layer (Dosovitskiy et al. 2021, figures 7 and 11); the
    black line is uniform attention, the grey bar the range of the permuted null.

    Below, for all heads of a small network, else the four whose contrast is farthest outside the nulls, framed in the
    map: the offset profile that best fits the centred score (``score_by_offset``; 0 at every offset means no dependence
    on the offset), and the mean attention weight by offset divided by that of uniform attention (black line at 1). For
    images, both are functions of the distance in pixels, and attention over uniform attention is also shown by row and
    column offset.

    Lines are means over test sequences; ribbons are t-intervals of the mean (for images upper bounds, see
    `attnprobe.figures.panels.by_distance`). The grey band (permuted positions) and the dashed lines (networks at
    initialisation) are the ranges of the two nulls over the heads in the panel and draws: a profile that stays inside
    them shows no more structure than these controls. Leaving the band at a single offset is no evidence: a profile has
    many offsets.

    Offsets are shown up to half the sequence length, since larger ones have few pairs. Long sequences have a
    logarithmic axis.

    Args:
        result: Result of `attnprobe.proximity` at one checkpoint, or joined along ``seed`` or ``run``.
        heads: Heads to draw in detail, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.

    Raises:
        UsageError: If the result lacks a variable or an axis, or a head is unknown.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `proximity` draws."""
    inches, prefix = width_in_inches(width), own_prefix(result)
    contrast = f"{prefix}proximity_contrast"
    result = at_one_step(result)
    if contrast in result:
        result = over_repeats(result, result[contrast], draws(result, contrast))
    variables = _variables(result, prefix)
    result = required(with_all_axes(result, variables), variables, ATTRIBUTES)
    wide = inches >= WIDE
    null, most = draws(result, contrast), most_heads("proximity", width)
    choice = chosen(result, "contrast", result[contrast], null, heads, most)
    rows = rows_of_heads(choice)
    legend = legend_block(
        [*head_entries(choice), *null_entries(null_kinds(result))],
        inches,
        choice.text,
    )
    stacked = not wide or result.sizes["head"] > 32
    heights = [map_height(result), max(map_height(result), 1.3)]
    panels_per_row = 1 if wide else 2
    blocks = [
        Block(
            sum(heights) if stacked else heights[1],
            lambda part: _overview(part, result, choice, heights if stacked else None),
        ),
        legend,
        Block(ROW * panels_per_row * len(rows) + 0.2, lambda part: _profiles(part, result, choice, wide)),
    ]
    if prefix:
        columns = min(len(choice.heads), 4 if wide else 2)
        side = (inches - 1.1) / max(columns, 3 if wide else 2)
        grid_rows = -(-len(choice.heads) // columns)
        blocks.append(
            Block(grid_rows * (side + 0.2) + 0.25, lambda part: _grid_patterns(part, result, choice, columns))
        )
    return Sheet(inches, title(result), blocks, _caption(result, choice), choice.heads)


def proximity_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and the proximity statistics of every head over the checkpoints of a run.

    The statistics are the proximity contrast, the Toeplitz share, the attention at distance 1 and the mean attention
    distance, the last two relative to uniform attention. Distances are in tokens, or in pixels for images. Ribbons are
    t-intervals over sequences; the grey band is the range of the permuted null over heads and draws. Vertical lines
    separate the stages of training; accuracies are those of the stage's objective.

    Args:
        result: Results of `attnprobe.proximity`, joined along ``step``.
        heads: Heads to draw in colour, as (layer, head); see `attnprobe.figures.evolution.over_steps`.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    prefix = own_prefix(result)
    panels = {
        f"{prefix}proximity_contrast": "contrast\n(std of score)",
        f"{prefix}toeplitz_share": "Toeplitz\nshare",
        f"{prefix}near_mass": "attention at\ndistance 1\n/ uniform",
        f"{prefix}mean_distance_ratio": "mean distance\n/ uniform",
    }
    variables = dict.fromkeys(panels, "step layer head, interval, null")
    if "window" in result.dims:
        variables[f"{prefix}near_mass"] = "step layer head window, interval, null"
    result = required_of_run(result, variables).isel(window=0, missing_dims="ignore")
    return over_steps(result, panels, heads, width=width, titles=titles, caption=caption)


def _variables(result: xr.Dataset, prefix: str) -> dict[str, str]:
    offsets, uniform = "row_offset column_offset" if prefix else "offset", f"{prefix}uniform_pattern_by_offset"
    # the uniform pattern of sliding windows differs between layers
    by_layer = "layer " if uniform in result and "layer" in result[uniform].dims else ""
    return {
        f"{prefix}proximity_contrast": "layer head, null",
        f"{prefix}mean_distance": "layer head, null",
        f"{prefix}mean_distance_ratio": "layer head",
        f"{prefix}score_by_offset": f"layer head {offsets}, interval, null",
        f"{prefix}pattern_by_offset": f"layer head {offsets}, interval, null",
        uniform: f"{by_layer}{offsets}",
    }


def _overview(part: SubFigure, result: xr.Dataset, choice: Choice, stacked: list[float] | None) -> None:
    prefix = own_prefix(result)
    if stacked is None:
        left, right = part.subplots(1, 2, width_ratios=[1.25, 1])
    else:
        left, right = part.subplots(2, 1, height_ratios=stacked)
    name = f"{prefix}proximity_contrast"
    text = "proximity contrast (std of the score)"
    head_map(left, result[name], draws(result, name), choice, name=text, centred=True, least=0.1)
    name = f"{prefix}mean_distance"
    distance = result[name]
    uniform = distance / result[f"{name}_ratio"]
    by_layer(right, distance, draws(result, name, "permuted"), choice, uniform)
    text = "mean attention distance, heads sorted\nblack: uniform attention"
    right.set_title(text, loc="left", fontsize=6.5, pad=3)
    right.set_ylabel(f"distance ({distance_unit(result)})")


def _profiles(part: SubFigure, result: xr.Dataset, choice: Choice, wide: bool) -> None:
    prefix, rows = own_prefix(result), rows_of_heads(choice)
    score, pattern = f"{prefix}score_by_offset", f"{prefix}pattern_by_offset"
    if prefix:
        x, unit = "distance", f"distance ({distance_unit(result)})"
        uniform = result["grid_uniform_pattern_by_offset"].fillna(0.0)
        scores, ratio = by_distance(result, score, uniform), by_distance(result, pattern, uniform, divided=True)
    else:
        x, unit = "offset", label("offset")
        scores = cut(result)
        uniform = scores["uniform_pattern_by_offset"]
        tails = [tail for tail in ("", "_interval", "_null") if f"{pattern}{tail}" in result]
        ratio = scores[["null"] if "null" in scores.coords else []].assign(
            {f"{pattern}{tail}": scores[f"{pattern}{tail}"] / uniform for tail in tails}
        )
    shape = (len(rows), 2) if wide else (2 * len(rows), 1)
    axes = part.subplots(*shape, squeeze=False, sharex=True, sharey="col" if wide else False)
    for row, heads in enumerate(rows):
        left, right = axes[row] if wide else axes[2 * row : 2 * row + 2, 0]
        profile(left, scores, score, choice, heads, x)
        profile(right, ratio, pattern, choice, heads, x)
        left.axhline(0, color="black", linewidth=0.5)
        right.axhline(1, color="black", linewidth=0.5)
        left.set_ylabel("score,\ncentred")
        right.set_ylabel("attention\n/ uniform")
    for axis in axes[-1]:
        axis.set_xlabel(unit)


def _grid_patterns(part: SubFigure, result: xr.Dataset, choice: Choice, columns: int) -> None:
    ratio = result["grid_pattern_by_offset"] / result["grid_uniform_pattern_by_offset"]
    rows = -(-len(choice.heads) // columns)
    axes = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    images = []
    for axis, head in zip(axes.ravel(), choice.heads, strict=False):
        images.append(draw_grid_pattern(axis, at(ratio, head)))
        axis.set_title(choice.name(head), pad=2)
    for axis in axes.ravel()[len(choice.heads) :]:
        axis.set_axis_off()
    shared_labels(part, offset_label(result, "column_offset"), offset_label(result, "row_offset"))
    colour_bar(part, images[0], axes.ravel().tolist())


def _caption(result: xr.Dataset, choice: Choice) -> str:
    prefix = own_prefix(result)
    return (
        means_text(result)
        + f"Contrast: score of keys within {near_keys(result)} minus score of keys beyond, in std of the score"
        + (null_text(result, "; dots: not outside every draw of both nulls of the head.") or ". ")
        + choice_text(choice)
        + null_text(
            result,
            "Grey: positions permuted; dashed: networks at initialisation (ranges over the heads in the panel and "
            "{draws}).",
        )
        + ("By distance, intervals are upper bounds. Maps: offsets up to half the image." if prefix else CUT)
        + undefined_text(result, [f"{prefix}proximity_contrast"])
    )
