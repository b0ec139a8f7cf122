"""Figures of the positions measure, for one checkpoint and for a run."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.panels import (
    CUT,
    caption,
    causal,
    draws,
    envelopes,
    head_name,
    interval_text,
    lines_height,
    note_undefined,
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
from attnprobe.figures.style import DIVERGING, INITIAL, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import own_prefix

ROW = 1.45
"""Height of one row of panels, in inches."""
POSITION, CONTRAST = "position-position", "proximity_contrast"
ATTRIBUTES = {
    "n": "a whole number",
    "sequences": "a whole number",
    "window": "a whole number",
    "encoding": "text",
}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""


def positions(result: xr.Dataset) -> Figure:
    """Draw the contribution of each term to the score, and the position-position term, at one checkpoint.

    Each part has one row per layer.

    Top: share of variance (left) and proximity contrast (right) of the four terms of the score. A term's name is the
    part of the query, then the part of the key. The shares add up to 1 and can be negative; the contrasts add up to the
    contrast of the whole score. A large position-position share means that the head learned *where* to attend, a large
    content-content share that it compares tokens. Dots are means over test sequences with t-intervals. Grey bars are
    the ranges over draws of the same network with the encoding's positions permuted, frames those of networks at
    initialisation.

    Middle: the position-position term by offset (left) and its spectrum (right). Low frequencies are smooth functions
    of the offset, such as proximity; the highest distinguish odd from even offsets. The result has the offset that each
    frequency prefers (``wave_offset``). Sinusoidal and rotary encodings show the amplitudes of their own frequencies
    instead, if they are defined in every layer. The grey band is the permuted null, dashed lines are networks at
    initialisation, both over heads and draws.

    Bottom: the row-centred term over query and key positions, or over row and column offsets for images. Red is high.
    Each head has its own colour scale, given in its title.

    Args:
        result: Result of `attnprobe.positions` at one checkpoint.
    """
    result = required(result, _variables(result), ATTRIBUTES)
    layers, heads = result.sizes["layer"], result.sizes["head"]
    side = (WIDTH - 0.6) / max(heads, 3)
    heights = [0.45 + ROW * layers, 0.3 + ROW * layers, 0.35 + (side + 0.1) * layers]
    heights.append(0.55 + lines_height(_undefined(result)))
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        _by_term(parts[0], result)
        _by_offset(parts[1], result)
        _position_scores(parts[2], result)
        _caption(parts[3], result)
    return figure


def positions_over_steps(result: xr.Dataset) -> Figure:
    """Draw accuracy and the position-position term of every head over the checkpoints of a run.

    Panels: the term's share of variance, Toeplitz share and proximity contrast, and the contrast of the content-content
    term for comparison. Ribbons are t-intervals over sequences; the grey band is the range of the permuted null over
    heads and draws.

    Args:
        result: Results of `attnprobe.positions`, joined along ``step``.
    """
    prefix = own_prefix(result)
    names = {
        "variance_share": (POSITION, "position-position\nshare of variance"),
        f"{prefix}toeplitz_share": (POSITION, "its Toeplitz\nshare"),
        f"{prefix}{CONTRAST}": (POSITION, "its contrast\n(std of score)"),
    }
    panels = {name: text for name, (_, text) in names.items()}
    contrast = f"{prefix}{CONTRAST}"
    variables = {f"{prefix}{name}": "step layer head term, interval, null" for name in ("toeplitz_share", CONTRAST)}
    result = required(result, RUN | {"variance_share": "step layer head term, interval, null"} | variables, {})
    shown = result.sel(term=POSITION)
    contrast_names = [f"{contrast}{tail}" for tail in tails(result, contrast)]
    shown = shown.assign(
        {f"content_{name}": result[name].sel(term="content-content", drop=True) for name in contrast_names}
    )
    return over_steps(shown, panels | {f"content_{contrast}": "contrast of\ncontent-content"})


def _variables(result: xr.Dataset) -> dict[str, str]:
    """Return what the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""
    prefix, pairs = own_prefix(result), {"pair_amplitude": "layer head pair, null", "pair_frequency": "pair"}
    return {
        "variance_share": "layer head term, interval, null",
        f"{prefix}{CONTRAST}": "layer head term, interval, null",
        "score_by_offset": "layer head term offset, interval, null",
        "wave_amplitude": "layer head frequency, null",
        **(pairs if "pair_amplitude" in result else {}),
        **(
            {"grid_score_by_offset": "layer head term row_offset column_offset"}
            if prefix
            else {"position_score": "layer head query_bin key_bin"}
        ),
    }


def _by_term(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False, sharex=True)
    for layer in range(layers):
        of_layer = result.isel(layer=layer)
        _terms(axes[layer, 0], of_layer, "variance_share")
        _terms(axes[layer, 1], of_layer, f"{own_prefix(result)}proximity_contrast")
        axes[layer, 0].set_ylabel("share of variance" if layers == 1 else f"layer {layer}\nshare of variance")
        axes[layer, 1].set_ylabel("contrast (std)")
    for axis in axes[-1]:
        axis.set_xticks(range(result.sizes["term"]), [str(term).replace("-", "-\n") for term in result["term"].values])
    lines, names = axes[0, 0].get_legend_handles_labels()
    part.legend(lines, names, loc="outside lower center", ncols=4, handlelength=2.2)


def _terms(axis: Axes, result: xr.Dataset, name: str) -> None:
    """Draw a variable of each term and head as a dot with its interval, over the ranges of both nulls."""
    heads = result.sizes["head"]
    step = min(0.18, 0.8 / heads)
    for head in range(heads):
        of_head = result.isel(head=head)
        x = np.arange(result.sizes["term"]) + step * (head - (heads - 1) / 2)
        for kind, colour in (("permuted", PERMUTED), ("initial", "none")):
            null = draws(of_head, name, kind)
            if null is None:
                continue
            low, high = null.min("draw").values, null.max("draw").values
            edge = "none" if kind == "permuted" else INITIAL
            axis.bar(x, high - low, 0.8 * step, low, color=colour, alpha=0.6, edgecolor=edge, linewidth=0.6)
        interval = of_head[f"{name}_interval"]
        errors = np.abs(np.stack([interval.sel(bound=bound) - of_head[name] for bound in ("lower", "upper")]))
        axis.errorbar(
            x, of_head[name], errors, fmt="o", markersize=2.6, color=line(head)["color"], label=f"head {head}"
        )
    axis.axhline(0, color="black", linewidth=0.5)
    note_undefined(axis, result[name])
    axis.yaxis.set_major_locator(MaxNLocator(5))


def _by_offset(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False)
    shown = result.sel(term=POSITION, offset=shown_offsets(int(result.attrs["n"]) // 2))
    has_pairs = "pair_amplitude" in result and bool(np.isfinite(result["pair_amplitude"]).all())
    name, axis_name = ("pair_amplitude", "pair_frequency") if has_pairs else ("wave_amplitude", "frequency")
    for layer in range(layers):
        left, right = axes[layer]
        profile(left, shown, layer, "score_by_offset")
        of_layer = result.isel(layer=layer)
        frequency = result[axis_name].values
        envelopes(right, frequency, of_layer, name, ("draw", "head"))
        for head in range(result.sizes["head"]):
            right.plot(frequency, of_layer[name].isel(head=head), **line(head), marker=".", markersize=3)
        if has_pairs:
            right.set_xscale("log")
        right.set_ylim(bottom=0)
        left.set_ylabel("position-position" if layers == 1 else f"layer {layer}\nposition-position")
        right.set_ylabel("amplitude")
        if layer == layers - 1:
            left.set_xlabel(label("offset"))
            prefix = {"rotary": "rotary pairs: ", "sinusoidal": "sinusoids: "}.get(result.attrs["encoding"], "")
            right.set_xlabel(f"{prefix}periods per token" if has_pairs else label("frequency"))


def _position_scores(part: SubFigure, result: xr.Dataset) -> None:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    axes = part.subplots(layers, max(heads, 3), squeeze=False, sharex=True, sharey=True)
    grid = bool(own_prefix(result))
    for (layer, head), axis in np.ndenumerate(axes):
        if head >= heads:
            axis.set_axis_off()
            continue
        of_head = result.isel(layer=layer, head=head)
        if grid:
            shown = of_head["grid_score_by_offset"].sel(term=POSITION)
            centres = [shown[name].values for name in ("column_offset", "row_offset")]
        else:
            shown = of_head["position_score"]
            centres = [shown[name].values for name in ("key_bin", "query_bin")]
        # a cell is one position or, in long sequences, one bin of positions
        half = [(values[1] - values[0]) / 2 if len(values) > 1 else 0.5 for values in centres]
        extent = (
            centres[0][0] - half[0],
            centres[0][-1] + half[0],
            centres[1][-1] + half[1],
            centres[1][0] - half[1],
        )
        largest = float(np.nanmax(np.abs(shown.values), initial=0))
        axis.imshow(
            shown, cmap=DIVERGING, vmin=-largest or -1, vmax=largest or 1, extent=extent, interpolation="nearest"
        )
        name = head_name(result, layer, head) if heads <= 4 else f"{layer}.{head}"
        axis.set_title(f"{name}: ±{largest:.2g}", pad=2, fontsize=6.5 if heads <= 4 else 5.5)
        axis.spines[:].set_visible(False)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(4, integer=True))
        if layer == layers - 1:
            axis.set_xlabel("column offset" if grid else "key position")
        if head == 0:
            axis.set_ylabel("row offset" if grid else "query position")


def _undefined(result: xr.Dataset) -> str:
    return undefined_text(result, ["variance_share", f"{own_prefix(result)}proximity_contrast"])


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    term = "the term by 2-D offset" if own_prefix(result) else "the term itself, with masked pairs"
    term = term if causal(result) else term.split(",")[0]
    caption(
        part,
        "Top: the score as the sum of four terms, content and position of query (first word) and key; "
        f"shares are covariances with the score and add up to 1, contrasts (keys within "
        f"{window_text(result)} minus keys beyond, in std of the score) to the score's. "
        f"Dots: means over {result.attrs['sequences']} test sequences, {interval_text(result)}. "
        + null_text(
            result,
            "Grey: positions permuted; frames and dashes: networks at initialisation (ranges of {draws} draws).",
        )
        + f"Below: the position-position term by offset, its spectrum, and {term} (red: high; scale in title). "
        + CUT
        + _undefined(result),
    )
