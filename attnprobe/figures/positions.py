"""Figures of the positions measure: one page a checkpoint, one a run."""

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
    null_text,
    over_steps,
    profile,
    shown_offsets,
    tails,
    title,
)
from attnprobe.figures.style import DIVERGING, INITIAL, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import own_prefix

ROW = 1.45
"""Inches: height of one row of panels."""
POSITION = "position-position"


def positions(result: xr.Dataset) -> Figure:
    """Draw one checkpoint: what each term contributes, and what the position-position term is like.

    Each layer is a row of each part: shares of variance and contrasts by term; the position-position term by offset and
    its spectrum; and the term itself over query and key positions (on images over two-dimensional offsets), row-centred
    and with a colour scale for each head, which is given in its title.
    """
    layers, heads = result.sizes["layer"], result.sizes["head"]
    side = (WIDTH - 0.6) / max(heads, 3)
    heights = [0.45 + ROW * layers, 0.3 + ROW * layers, 0.35 + (side + 0.1) * layers, 0.55]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        _by_term(parts[0], result)
        _by_offset(parts[1], result)
        _kernels(parts[2], result)
        _caption(parts[3], result)
    return figure


def positions_over_steps(result: xr.Dataset) -> Figure:
    """Draw a run: accuracy, and of the position-position term share, Toeplitz share and contrast, beside content's."""
    prefix = own_prefix(result)
    names = {
        "variance_share": (POSITION, "position-position\nshare of variance"),
        f"{prefix}toeplitz_share": (POSITION, "its Toeplitz\nshare"),
        f"{prefix}proximity_contrast": (POSITION, "its contrast\n(std of score)"),
    }
    panels = {name: text for name, (_, text) in names.items()}
    content = f"{prefix}proximity_contrast"
    shown = result.sel(term=POSITION)
    of_content = [f"{content}{tail}" for tail in tails(result, content)]
    shown = shown.assign(
        {f"content_{name}": result[name].sel(term="content-content", drop=True) for name in of_content}
    )
    return over_steps(shown, panels | {f"content_{content}": "contrast of\ncontent-content"})


def _by_term(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False, sharex=True)
    for layer in range(layers):
        one = result.isel(layer=layer)
        _terms(axes[layer, 0], one, "variance_share")
        _terms(axes[layer, 1], one, f"{own_prefix(result)}proximity_contrast")
        axes[layer, 0].set_ylabel("share of variance" if layers == 1 else f"layer {layer}\nshare of variance")
        axes[layer, 1].set_ylabel("contrast (std)")
    for axis in axes[-1]:
        axis.set_xticks(range(4), [str(term).replace("-", "-\n") for term in result["term"].values])
    lines, names = axes[0, 0].get_legend_handles_labels()
    part.legend(lines, names, loc="outside lower center", ncols=4, handlelength=2.2)


def _terms(axis: Axes, result: xr.Dataset, name: str) -> None:
    """Draw a number of each term and head as a dot with its interval, on the ranges of both nulls."""
    heads = result.sizes["head"]
    step = min(0.18, 0.8 / heads)
    for head in range(heads):
        one = result.isel(head=head)
        places = np.arange(4) + step * (head - (heads - 1) / 2)
        for kind, colour in (("permuted", PERMUTED), ("initial", "none")):
            null = draws(one, name, kind)
            if null is None:
                continue
            low, high = null.min("draw").values, null.max("draw").values
            edge = "none" if kind == "permuted" else INITIAL
            axis.bar(places, high - low, 0.8 * step, low, color=colour, alpha=0.6, edgecolor=edge, linewidth=0.6)
        interval = one[f"{name}_interval"]
        spread = np.abs(np.stack([interval.sel(bound=bound) - one[name] for bound in ("lower", "upper")]))
        axis.errorbar(
            places, one[name], spread, fmt="o", markersize=2.6, color=line(head)["color"], label=f"head {head}"
        )
    axis.axhline(0, color="black", linewidth=0.5)
    axis.yaxis.set_major_locator(MaxNLocator(5))


def _by_offset(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False)
    shown = result.sel(term=POSITION, offset=shown_offsets(int(result.attrs["n"]) // 2))
    own = "pair_amplitude" in result and bool(np.isfinite(result["pair_amplitude"]).all())
    name, axis_name = ("pair_amplitude", "pair_frequency") if own else ("wave_amplitude", "frequency")
    for layer in range(layers):
        left, right = axes[layer]
        profile(left, shown, layer, "score_by_offset")
        one = result.isel(layer=layer)
        frequency = result[axis_name].values
        envelopes(right, frequency, one, name, ("draw", "head"))
        for head in range(result.sizes["head"]):
            right.plot(frequency, one[name].isel(head=head), **line(head), marker=".", markersize=3)
        if own:
            right.set_xscale("log")
        right.set_ylim(bottom=0)
        left.set_ylabel("position-position" if layers == 1 else f"layer {layer}\nposition-position")
        right.set_ylabel("amplitude")
        if layer == layers - 1:
            left.set_xlabel(label("offset"))
            waves = {"rotary": "rotary pairs: ", "sinusoidal": "sinusoids: "}.get(result.attrs["encoding"], "")
            right.set_xlabel(f"{waves}periods per token" if own else label("frequency"))


def _kernels(part: SubFigure, result: xr.Dataset) -> None:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    axes = part.subplots(layers, max(heads, 3), squeeze=False, sharex=True, sharey=True)
    grid = bool(own_prefix(result))
    for (layer, head), axis in np.ndenumerate(axes):
        if head >= heads:
            axis.set_axis_off()
            continue
        one = result.isel(layer=layer, head=head)
        if grid:
            shown = one["grid_score_by_offset"].sel(term=POSITION)
            ends = [shown[name].values for name in ("column_offset", "row_offset")]
        else:
            shown = one["position_score"]
            ends = [shown[name].values for name in ("key_bin", "query_bin")]
        # A cell spans one position or, in long sequences, the positions of a bin.
        half = [(end[1] - end[0]) / 2 if len(end) > 1 else 0.5 for end in ends]
        extent = (ends[0][0] - half[0], ends[0][-1] + half[0], ends[1][-1] + half[1], ends[1][0] - half[1])
        most = float(np.nanmax(np.abs(shown.values), initial=0))
        axis.imshow(shown, cmap=DIVERGING, vmin=-most or -1, vmax=most or 1, extent=extent, interpolation="nearest")
        name = head_name(result, layer, head) if heads <= 4 else f"{layer}.{head}"
        axis.set_title(f"{name}: ±{most:.2g}", pad=2, fontsize=6.5 if heads <= 4 else 5.5)
        axis.spines[:].set_visible(False)
        for one_axis in (axis.xaxis, axis.yaxis):
            one_axis.set_major_locator(MaxNLocator(4, integer=True))
        if layer == layers - 1:
            axis.set_xlabel("column offset" if grid else "key position")
        if head == 0:
            axis.set_ylabel("row offset" if grid else "query position")


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    window = result.attrs["window"]
    unit = "pixel" if own_prefix(result) else "token"
    itself = "by two-dimensional offsets" if own_prefix(result) else "the term itself, also where a mask hides it"
    itself = itself if causal(result) else itself.split(",")[0]
    caption(
        part,
        "Top: the score of the forward pass as the sum of four terms, content and position of the query (first word) "
        "and of the key; shares are covariances with the score and add up to 1, contrasts (keys within "
        f"{window} {unit}{'' if window == 1 else 's'} minus keys beyond, in std of the score) to that of the score. "
        f"Dots: means over {result.attrs['sequences']} test sequences, {interval_text(result)}. "
        + null_text(
            result,
            "Grey: the encoding's positions permuted; frames and dashes: networks at initialisation (ranges of {draws} "
            "draws).",
        )
        + f"Below: the position-position term by offset, its spectrum, and {itself} (red: high; the scale is in each "
        f"title). {CUT}",
    )
