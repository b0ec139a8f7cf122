"""Figures of the positions measure, for one checkpoint and for a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries, wrap
from attnprobe.figures.panels import (
    CUT,
    by_distance,
    causal,
    choice_text,
    cut,
    draws,
    envelopes,
    extent,
    head_map,
    map_columns,
    map_height,
    means_text,
    note_undefined,
    null_kinds,
    null_text,
    number_text,
    offset_label,
    pair_counts,
    profile,
    rows_of_heads,
    shared_labels,
    tails,
    undefined_text,
)
from attnprobe.figures.requirements import required, required_of_run
from attnprobe.figures.selection import (
    Choice,
    Head,
    at,
    at_one_step,
    chosen,
    is_repeated,
    most_heads,
    near_keys,
    over_repeats,
    title,
    with_all_axes,
)
from attnprobe.figures.style import DIVERGING, INITIAL, PERMUTED, SMALL_SIZE, WIDE, WIDTH, line, width_in_inches
from attnprobe.results import distance_unit, own_prefix

ROW = 1.2
"""Height of one row of profiles, in inches."""
POSITION, CONTRAST = "position-position", "proximity_contrast"
ATTRIBUTES = {
    "n": "a whole number",
    "sequences": "a whole number",
    "window": "a whole number",
    "encoding": "text",
}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""


def positions(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw the position-position term of all heads, and all terms and the term itself of some, at one checkpoint.

    Top: share of variance (left) and proximity contrast (right) of the position-position term of each head, as layer x
    head maps. A dot marks a value that is not outside all draws of both nulls of that head. The parts below show all
    heads of a small network, else the four whose share of variance is farthest outside the nulls, framed in the maps.

    Terms: share of variance (left) and proximity contrast (right) of the four terms of the score. A term's name is the
    part of the query, then the part of the key. The shares add up to 1 and can be negative; the contrasts add up to the
    contrast of the whole score. A large position-position share means that the head learned *where* to attend, a large
    content-content share that it compares tokens. Dots are means over test sequences with t-intervals. Grey bars are
    the ranges over draws of the same network with the encoding's positions permuted, frames those of networks at
    initialisation.

    Profiles: the position-position term by offset (left; for images by distance) and its spectrum (right). Low
    frequencies are smooth functions of the offset, such as proximity; the highest distinguish odd from even offsets.
    The result has the offset that each frequency prefers (``wave_offset``). Sinusoidal and rotary encodings show the
    amplitudes of their own frequencies instead, if they are defined in every layer. The grey band is the permuted null,
    dashed lines are networks at initialisation, both over the heads in the panel and draws.

    Maps: the row-centred term over query and key positions, or over row and column offsets for images. Red is high.
    Each head has its own colour scale, given in its title.

    Args:
        result: Result of `attnprobe.positions` at one checkpoint, or joined along ``seed`` or ``run``.
        heads: Heads to draw in detail, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.

    Raises:
        UsageError: If the result lacks a variable or an axis, or a head is unknown.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `positions` draws."""
    inches = width_in_inches(width)
    result = _prepared(at_one_step(result))
    wide, share = inches >= WIDE, _of_position(result, "variance_share")
    null = draws(share, "variance_share")
    choice = chosen(result, f"{POSITION} share", share["variance_share"], null, heads, most_heads("positions", width))
    rows, kinds = len(rows_of_heads(choice)), null_kinds(result)
    map_rows = -(-2 // (columns := map_columns(result, inches, 2)))
    across = min(len(choice.heads), 4 if wide else 2)
    side = (inches - 1.0) / max(across, 3 if wide else 2)
    entries = [*head_entries(choice), *null_entries(kinds)]
    height = map_height(result, 0.15 if wide else 0.12)
    blocks = [
        Block(map_rows * height, lambda part: _overview(part, result, choice, columns)),
        legend_block(entries, inches, choice.text),
        Block(1.35 if wide else 2.3, lambda part: _by_term(part, result, choice, wide)),
        Block(0.3 + ROW * rows * (1 if wide else 2), lambda part: _by_offset(part, result, choice, wide)),
        Block(
            0.3 + (side + (0.15 if wide else 0.25)) * -(-len(choice.heads) // across),
            lambda part: _position_scores(part, result, choice, across, side),
        ),
    ]
    return Sheet(inches, title(result), blocks, _caption(result, choice), choice.heads)


def positions_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and the position-position term of every head over the checkpoints of a run.

    Panels: the term's share of variance, Toeplitz share and proximity contrast, and the contrast of the content-content
    term for comparison. Ribbons are t-intervals over sequences; the grey band is the range of the permuted null over
    heads and draws.

    Args:
        result: Results of `attnprobe.positions`, joined along ``step``.
        heads: Heads to draw in colour, as (layer, head); see `attnprobe.figures.evolution.over_steps`.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    prefix = own_prefix(result)
    names = {
        "variance_share": (POSITION, "position-position\nshare of variance"),
        f"{prefix}toeplitz_share": (POSITION, "its Toeplitz\nshare"),
        f"{prefix}proximity_contrast": (POSITION, "its contrast\n(std of score)"),
    }
    panels = {name: text for name, (_, text) in names.items()}
    contrast = f"{prefix}proximity_contrast"
    variables = {
        name: "step layer head term, interval, null"
        for name in ("variance_share", f"{prefix}toeplitz_share", f"{prefix}{CONTRAST}")
    }
    result = required_of_run(result, variables)
    shown = result.sel(term=POSITION)
    contrast_names = [f"{contrast}{tail}" for tail in tails(result, contrast)]
    shown = shown.assign(
        {f"content_{name}": result[name].sel(term="content-content", drop=True) for name in contrast_names}
    )
    return over_steps(
        shown,
        panels | {f"content_{contrast}": "contrast of\ncontent-content"},
        heads,
        width=width,
        titles=titles,
        caption=caption,
    )


def _prepared(result: xr.Dataset) -> xr.Dataset:
    prefix, pairs = own_prefix(result), {"pair_amplitude": "layer head pair, null", "pair_frequency": "pair"}
    variables = {
        "variance_share": "layer head term, interval, null",
        f"{prefix}{CONTRAST}": "layer head term, interval, null",
        "wave_amplitude": "layer head frequency, null",
        **(pairs if "pair_amplitude" in result else {}),
        **(
            {"grid_score_by_offset": "layer head term row_offset column_offset, interval, null"}
            if prefix
            else {
                "score_by_offset": "layer head term offset, interval, null",
                "position_score": "layer head query_bin key_bin",
            }
        ),
    }
    if is_repeated(result):
        share = _of_position(result, "variance_share")
        result = over_repeats(result, share["variance_share"], draws(share, "variance_share"))
    return required(with_all_axes(result, variables), variables, ATTRIBUTES)


def _of_position(result: xr.Dataset, name: str) -> xr.Dataset:
    """Return the variable of the position-position term, with interval and null."""
    return result[[f"{name}{tail}" for tail in tails(result, name)]].sel(term=POSITION, drop=True)


def _overview(part: SubFigure, result: xr.Dataset, choice: Choice, columns: int) -> None:
    left, right = part.subplots(-(-2 // columns), columns, squeeze=False).ravel()
    contrast = f"{own_prefix(result)}proximity_contrast"
    for axis, name, text, least in (
        (left, "variance_share", "position-position: share of variance", 0.05),
        (right, contrast, "position-position: contrast (std of score)", 0.1),
    ):
        of_term = _of_position(result, name)
        head_map(axis, of_term[name], draws(of_term, name), choice, name=text, centred=True, least=least)


def _by_term(part: SubFigure, result: xr.Dataset, choice: Choice, wide: bool) -> None:
    left, right = part.subplots(*((1, 2) if wide else (2, 1)), sharex=True)
    _terms(left, result, "variance_share", choice)
    _terms(right, result, f"{own_prefix(result)}proximity_contrast", choice)
    left.set_ylabel("share of\nvariance")
    right.set_ylabel("contrast\n(std)")


def _terms(axis: Axes, result: xr.Dataset, name: str, choice: Choice) -> None:
    """Draw a variable of each term and head as a dot with its interval, over the ranges of both nulls."""
    terms = result["term"].values.tolist()
    step = min(0.18, 0.8 / len(choice.heads))
    for number, head in enumerate(choice.heads):
        x = np.arange(len(terms)) + step * (number - (len(choice.heads) - 1) / 2)
        for kind, colour, edge in (("permuted", PERMUTED, "none"), ("initial", "none", INITIAL)):
            null = draws(result, name, kind)
            if null is None:
                continue
            low, high = at(null, head).min("draw").values, at(null, head).max("draw").values
            style = {"color": colour, "edgecolor": edge, "alpha": 0.6, "linewidth": 0.6}
            axis.bar(x, high - low, 0.8 * step, low, **style)
        value, interval = at(result[name], head), at(result[f"{name}_interval"], head)
        errors = np.abs(np.stack([interval.sel(bound=bound) - value for bound in ("lower", "upper")]))
        axis.errorbar(x, value, errors, fmt="o", markersize=2.6, color=line(number)["color"], label=choice.name(head))
    axis.axhline(0, color="black", linewidth=0.5)
    note_undefined(axis, [at(result[name], head) for head in choice.heads])
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.set_xticks(range(len(terms)), [str(term).replace("-", "-\n") for term in terms])


def _by_offset(part: SubFigure, result: xr.Dataset, choice: Choice, wide: bool) -> None:
    rows = rows_of_heads(choice)
    axes = part.subplots(
        *((len(rows), 2) if wide else (2 * len(rows), 1)), squeeze=False, sharex="col" if wide else False
    )
    name, x, x_label = "score_by_offset", "offset", label("offset")
    if own_prefix(result):
        name, x, x_label = "grid_score_by_offset", "distance", f"distance ({distance_unit(result)})"
        shown = by_distance(result.sel(term=POSITION), name, pair_counts(result))
    else:
        shown = cut(result.sel(term=POSITION))
    has_pairs = "pair_amplitude" in result and bool(np.isfinite(result["pair_amplitude"]).all())
    amplitude, axis_name = ("pair_amplitude", "pair_frequency") if has_pairs else ("wave_amplitude", "frequency")
    frequency = result[axis_name].values
    for row, heads in enumerate(rows):
        left, right = axes[row] if wide else axes[2 * row : 2 * row + 2, 0]
        profile(left, shown, name, choice, heads, x)
        envelopes(right, frequency, result, amplitude, heads)
        for head in heads:
            style = line(choice.heads.index(head))
            right.plot(frequency, at(result[amplitude], head), **style, marker=".", markersize=3)
        if has_pairs:
            right.set_xscale("log")
        right.set_ylim(bottom=0)
        right.yaxis.set_major_locator(MaxNLocator(4))
        left.set_ylabel("position-position\nscore")
        right.set_ylabel("amplitude")
        if row == len(rows) - 1:
            left.set_xlabel(x_label)
            prefix = {"rotary": "rotary pairs: ", "sinusoidal": "sinusoids: "}.get(result.attrs["encoding"], "")
            right.set_xlabel(f"{prefix}periods per token" if has_pairs else label("frequency"))


def _position_scores(part: SubFigure, result: xr.Dataset, choice: Choice, columns: int, side: float) -> None:
    rows = -(-len(choice.heads) // columns)
    axes = part.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    grid, image = bool(own_prefix(result)), None
    for axis, head in zip(axes.ravel(), choice.heads, strict=False):
        if grid:
            shown = at(result["grid_score_by_offset"].sel(term=POSITION), head)
            shown = shown.transpose("row_offset", "column_offset")
        else:
            shown = at(result["position_score"], head).transpose("query_bin", "key_bin")
        # a cell is one position or, in long sequences, one bin of positions
        largest = float(np.nanmax(np.abs(shown.values), initial=0))
        limits: dict[str, Any] = {"vmin": -largest or -1, "vmax": largest or 1}
        image = axis.imshow(shown, cmap=DIVERGING, extent=extent(shown), interpolation="nearest", **limits)
        text = wrap(f"{choice.name(head)}: ±{number_text(largest)}", max(side, 0.8), 6.0)
        axis.set_title(text, pad=2, fontsize=6, loc="left")
        axis.spines[:].set_visible(False)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(4, integer=True))
    for axis in axes.ravel()[len(choice.heads) :]:
        axis.set_axis_off()
    if grid:
        shared_labels(part, offset_label(result, "column_offset"), offset_label(result, "row_offset"))
    else:
        shared_labels(part, "key position (tokens)", "query position (tokens)")
    assert image is not None
    bar = part.colorbar(image, ax=axes.ravel().tolist(), shrink=0.9, aspect=20, fraction=0.05, pad=0.02)
    bar.set_ticks([image.norm.vmin or -1, 0, image.norm.vmax or 1], labels=["low", "0", "high"])
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2)
    bar.outline.set_visible(False)  # pyright: ignore


def _caption(result: xr.Dataset, choice: Choice) -> str:
    prefix = own_prefix(result)
    term = "the term by 2-D offset" if prefix else "the term itself, with masked pairs"
    term = term if causal(result) else term.split(",")[0]
    return (
        "The score is the sum of four terms, content and position of query (first word) and key; shares are "
        f"covariances with the score and add up to 1, contrasts (keys within {near_keys(result)} minus keys beyond, in "
        "std of the score) to the score's. "
        + means_text(result)
        + choice_text(choice)
        + null_text(
            result,
            "Grey: positions permuted; frames and dashes: networks at initialisation (ranges of {draws}); dots "
            "in maps: not outside every draw of both.",
        )
        + f"Below: the position-position term by {'distance' if prefix else 'offset'}, its spectrum, and {term} (scale "
        "in title). "
        + ("Intervals by distance are upper bounds." if prefix else CUT)
        + undefined_text(result, ["variance_share", f"{prefix}proximity_contrast"])
    )
