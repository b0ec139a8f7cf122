"""Figures of the gradients measure, for one checkpoint and for a run."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.errors import UsageError, listed, shown
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries
from attnprobe.figures.panels import (
    CUT,
    by_distance,
    choice_text,
    cut,
    dots,
    draws,
    head_map,
    interval_text,
    map_height,
    means_text,
    note,
    note_undefined,
    null_kinds,
    null_text,
    pair_counts,
    profile,
    shared_labels,
    tails,
    undefined_text,
)
from attnprobe.figures.requirements import required, required_of_run
from attnprobe.figures.selection import (
    HEAD,
    Choice,
    Head,
    at,
    at_one_step,
    beyond,
    chosen,
    is_repeated,
    most_heads,
    over_repeats,
    title,
    with_all_axes,
)
from attnprobe.figures.style import PERMUTED, WIDE, WIDTH, line, width_in_inches
from attnprobe.results import distance_unit, own_prefix

AT = {"checkpoint": "at the checkpoint's scores", "uniform": "at uniform attention (all scores 0)"}
ATTRIBUTES = {
    "n": "a whole number",
    "sequences": "a whole number",
    "fit_steps": "a whole number",
    "length_scale": "a number",
    "at": "text",
}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""


def gradients(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw the score gradients of every objective: signal, energy and descent by offset, at one checkpoint.

    Each part has one column per objective. For images, directions and subspaces are those of two-dimensional offsets.

    Maps: signal-to-noise ratio of the descent along a proximity direction (circulant exponential), and the share of the
    gradient's energy in functions of the offset modulo n (of the offset, if attention is causal), of every head. A dot
    marks a value that is not outside all draws of the nulls of that head. The parts below show all heads of a small
    network, else the four whose ratio is farthest outside the null for one of the objectives, framed in the maps.

    Signal: signal-to-noise ratio of the descent along each unit direction, the mean divided by the std over sequences.
    Bars are t-intervals of the mean on the same scale; the grey bar is the range of the null (gradient entries at
    permuted positions) over all heads. To the right of 0, gradient descent on the objective raises the score
    along the direction. *Circulant* and *toeplitz* directions are proximity profiles, with and without wrapping around
    the sequence. *Column*, a random function of the key, is the positive control: supervised training can detect it.

    Energy: share of the gradient's energy (squared norm) in each subspace, on a logarithmic axis. The subspaces are
    functions of the offset modulo n (*circulant*), of the offset (*toeplitz*), of the key (*column*), and the rest.
    Dashes mark the share of pure noise: an objective is nearly blind to a subspace if its share is far below the
    dashes. Grey lines are the ranges of networks at initialisation.

    Bottom: gain from a bias at each offset (for images, means over the offsets at a distance), with t-intervals;
    descent raises the scores at offsets with positive values. The grey band is the permuted null, dashed lines are
    networks at initialisation, cropped if they exceed the axis.

    Compare several profiles, since the result depends on the shape. In a linear network with mean pooling, label
    gradients capture 1/9 of a linear profile (-distance) for every n, a fraction that falls as 1/n² for a band or
    exponential, and none of a circulant profile. With an MLP or LayerNorm this holds only approximately, so compare
    signal and noise. An untrained output head is random, so the sign of its gradient is meaningless: before
    training, measure with ``fit_steps``, and with ``at="uniform"`` for the setting of the theory. The result also
    describes the gradient with respect to the query/key maps: ``mean_token_share`` is the share of it that reads
    only the mean token.

    Args:
        result: Result of `attnprobe.gradients` at one checkpoint, or joined along ``seed`` or ``run``.
        heads: Heads to draw in detail, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.

    Raises:
        UsageError: If the result lacks a variable or an axis, or a head is unknown.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `gradients` draws."""
    inches = width_in_inches(width)
    result = _prepared(at_one_step(result))
    direction, _ = _main(result)
    snr = result[f"{own_prefix(result)}snr"].sel(direction=direction)
    null = draws(result, f"{own_prefix(result)}snr")
    null = None if null is None else null.sel(direction=direction)
    outside = beyond(snr, null).max("loss")
    choice = chosen(result, "descent / std", outside, None, heads, most_heads("gradients", width))
    if choice.text and heads is None:
        what = " beyond the null" if null is not None else ""
        choice = Choice(choice.heads, f"{choice.text} along {direction}{what}", choice.one_layer)
    kinds, count = null_kinds(result), len(choice.heads)
    directions, subspaces = result.sizes["direction"], result.sizes["subspace"]
    band = max(0.14, 0.03 * count + 0.04)
    maps = 2 * map_height(result, 0.11) - (0.15 if inches >= WIDE else 0)
    blocks = [
        Block(maps, lambda part: _overview(part, result, choice)),
        legend_block([*head_entries(choice, "o"), *null_entries(kinds)], inches, choice.text),
        Block(0.5 + band * directions, lambda part: _signals(part, result, choice)),
        Block(0.4 + max(band, 0.17) * subspaces, lambda part: _energies(part, result, choice)),
        Block(1.3, lambda part: _by_offset(part, result, choice)),
    ]
    return Sheet(inches, title(result), blocks, _caption(result, choice), choice.heads)


def gradients_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and each objective's gradient in every head over the checkpoints of a run.

    For each objective: the descent along a proximity direction (circulant exponential), and the share of the gradient's
    energy in functions of the offset modulo n (of the offset, if attention is causal). Ribbons are t-intervals over
    sequences; the grey band is the range of the permuted null over heads and draws.

    Args:
        result: Results of `attnprobe.gradients`, joined along ``step``.
        heads: Heads to draw in colour, as (layer, head); see `attnprobe.figures.evolution.over_steps`.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    prefix = own_prefix(result)
    variables = {
        f"{prefix}descent": "step loss layer head direction, interval, null",
        f"{prefix}energy_share": "step loss layer head subspace, interval, null",
    }
    result = required_of_run(result, variables)
    direction, subspace = _main(result)
    shown, panels = {}, {}
    for name, axis, value, text in (
        ("descent", "direction", direction, "descent\nalong " + direction.replace(" ", "\n")),
        ("energy_share", "subspace", subspace, f"energy\nin {subspace}"),
    ):
        for loss in result["loss"].values.tolist():
            for tail in tails(result, f"{own_prefix(result)}{name}"):
                selected = result[f"{own_prefix(result)}{name}" + tail].sel({axis: value, "loss": loss}, drop=True)
                shown[f"{name} {loss}{tail}"] = selected
            panels[f"{name} {loss}"] = f"{loss}: {text}"
    kept = result[["objective", "train_accuracy", "test_accuracy"]]
    return over_steps(
        kept.assign(shown).assign_attrs(result.attrs), panels, heads, width=width, titles=titles, caption=caption
    )


def _prepared(result: xr.Dataset) -> xr.Dataset:
    """Return a checked result with ``snr_interval``: the interval of the mean descent, on the scale of the ratio."""
    prefix = own_prefix(result)
    snr, descent = f"{prefix}snr", f"{prefix}descent"
    offsets = "row_offset column_offset" if prefix else "offset"
    variables = {
        descent: "loss layer head direction, interval, std",
        snr: "loss layer head direction, null",
        f"{prefix}energy_share": "loss layer head subspace, interval, null",
        f"{prefix}energy_share_of_noise": "subspace",
        f"{prefix}descent_by_offset": f"loss layer head {offsets}, interval, null",
        "gradient_norm": "loss layer head",
    }
    if is_repeated(result):
        selection, null = {"direction": _main(result)[0]}, draws(result, snr)
        result = result.assign({f"{snr}_interval": result[f"{descent}_interval"] / result[f"{descent}_std"]})
        largest = None if null is None else null.sel(selection).max("loss")
        result = over_repeats(result, result[snr].sel(selection).max("loss"), largest)
        variables[snr] = f"{variables[snr]}, interval"
        del variables[descent]  # its std over sequences has no mean over seeds
    result = required(with_all_axes(result, variables), variables, ATTRIBUTES)
    if result.attrs["at"] not in AT:
        raise UsageError(f"attribute at={shown(result.attrs['at'])}: must be one of {listed(AT)}")
    if descent not in variables:
        return result
    return result.assign({f"{snr}_interval": result[f"{descent}_interval"] / result[f"{descent}_std"]})


def _main(result: xr.Dataset) -> tuple[str, str]:
    """Return the direction and the subspace of the maps; circulant shares are undefined under causal attention."""
    directions = np.atleast_1d(result["direction"].values).tolist()
    share = result[f"{own_prefix(result)}energy_share"]
    has_circulant = bool(np.isfinite(share.sel(subspace="circulant")).any())
    return directions[min(1, len(directions) - 1)], "circulant" if has_circulant else "toeplitz"


def _losses(result: xr.Dataset) -> list[str]:
    return np.atleast_1d(result["loss"].values).tolist()


def _overview(part: SubFigure, result: xr.Dataset, choice: Choice) -> None:
    losses, (direction, subspace) = _losses(result), _main(result)
    axes = part.subplots(2, len(losses), squeeze=False)
    for row, (name, selection, text) in enumerate(
        (
            ("snr", {"direction": direction}, "descent / std"),
            ("energy_share", {"subspace": subspace}, f"energy in {subspace}"),
        )
    ):
        values, null = (
            result[f"{own_prefix(result)}{name}"].sel(selection),
            draws(result, f"{own_prefix(result)}{name}"),
        )
        limit = float(np.nanmax(np.abs(values.values), initial=0)) or None
        for axis, loss in zip(axes[row], losses, strict=True):
            of_loss = None if null is None else null.sel(selection).sel(loss=loss)
            options = {"name": f"{loss}: {text}", "limit": limit, "centred": name == "snr"}
            head_map(axis, values.sel(loss=loss), of_loss, choice, **options)
            note_undefined(axis, [values.sel(loss=loss)])
    for axis in axes[0]:
        axis.set_xlabel("")
    for axis in axes[:, 1:].ravel():
        axis.set_ylabel("")


def _signals(part: SubFigure, result: xr.Dataset, choice: Choice) -> None:
    losses, snr = _losses(result), f"{own_prefix(result)}snr"
    axes = part.subplots(1, len(losses), squeeze=False, sharex=True, sharey=True)[0]
    rows, shift = _rows(result.sizes["direction"], len(choice.heads))
    null = draws(result, snr, "permuted")
    for axis, loss in zip(axes, losses, strict=True):
        of_loss = result.sel(loss=loss)
        if null is not None:
            low, high = (getattr(null.sel(loss=loss), end)(("draw", *HEAD)).values for end in ("min", "max"))
            axis.barh(rows, high - low, 0.9, low, color=PERMUTED, alpha=0.35, linewidth=0)
        for number, head in enumerate(choice.heads):
            interval = at(of_loss[f"{snr}_interval"], head)
            dots(axis, at(of_loss[snr], head), interval, rows + shift[number], line(number)["color"])
        axis.axvline(0, color="black", linewidth=0.5)
        if not (of_loss["gradient_norm"] > 0).any():
            note(axis, "gradient is 0")
        axis.set_title(f"{loss}: descent", loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(4))
    shared_labels(part, "mean / std over sequences")
    axes[0].set_yticks(rows, result["direction"].values.tolist(), fontsize=6)
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    axes[0].set_xlim(*_signal_range(result))  # shared by all objectives


def _signal_range(result: xr.Dataset) -> tuple[float, float]:
    snr = f"{own_prefix(result)}snr"
    bounds = np.concatenate([result[snr].values.ravel(), result[f"{snr}_interval"].values.ravel()])
    limit = 1.3 * float(np.nanmax(np.abs(bounds[np.isfinite(bounds)]), initial=1e-9))
    return -limit, limit


def _rows(count: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the y position of each row, the first on top, and the shift of each head within a row."""
    return np.arange(count)[::-1], np.linspace(0.34, -0.34, heads) if heads > 1 else np.zeros(1)


def _energies(part: SubFigure, result: xr.Dataset, choice: Choice) -> None:
    losses, name = _losses(result), f"{own_prefix(result)}energy_share"
    axes = part.subplots(1, len(losses), squeeze=False, sharex=True, sharey=True)[0]
    rows, shift = _rows(result.sizes["subspace"], len(choice.heads))
    noise, null = result[f"{name}_of_noise"].values, draws(result, name, "initial")
    for axis, loss in zip(axes, losses, strict=True):
        of_loss = result.sel(loss=loss)
        for row, share in zip(rows, noise, strict=True):
            axis.plot([share, share], [row - 0.45, row + 0.45], color="black", linewidth=0.8, linestyle=(0, (2, 1)))
        for number, head in enumerate(choice.heads):
            y = rows + shift[number]
            if null is not None:
                initial = at(null.sel(loss=loss), head)
                axis.hlines(y, initial.min("draw"), initial.max("draw"), color=PERMUTED, linewidth=3, alpha=0.6)
            dots(axis, at(of_loss[name], head), at(of_loss[f"{name}_interval"], head), y, line(number)["color"])
        note_undefined(axis, [of_loss[name]])
        axis.set_xscale("log")
    shared_labels(part, "share of gradient energy")
    axes[0].set_yticks(rows, result["subspace"].values.tolist())
    axes[0].set_ylim(-0.6, len(rows) - 0.4)


def _by_offset(part: SubFigure, result: xr.Dataset, choice: Choice) -> None:
    losses, name = _losses(result), f"{own_prefix(result)}descent_by_offset"
    x, x_label = "offset", label("offset")
    if name == "descent_by_offset":
        shown = cut(result)
    else:
        shown = by_distance(result, name, xr.ones_like(pair_counts(result)))
        x, x_label = "distance", f"distance ({distance_unit(result)})"
    axes = part.subplots(1, len(losses), squeeze=False, sharex=True)[0]
    for axis, loss in zip(axes, losses, strict=True):
        of_loss = shown.sel(loss=loss)
        profile(axis, of_loss, name, choice, choice.heads, x)
        # the scale leaves out networks at initialisation, whose gradients may be much larger
        ranges = [of_loss[f"{name}_interval"], draws(of_loss, name, "permuted")]
        limit = max(
            float(np.nanmax(np.abs(at(band, head).values), initial=0))
            for band in ranges
            if band is not None
            for head in choice.heads
        )
        if limit > 0:
            axis.set_ylim(-1.1 * limit, 1.1 * limit)
        else:
            axis.set_ylim(-1, 1)
            note(axis, "gradient is 0")
        axis.axhline(0, color="black", linewidth=0.5)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
        axis.yaxis.set_major_locator(MaxNLocator(4))
    shared_labels(part, x_label)
    axes[0].set_ylabel(f"descent by {x}")


def _caption(result: xr.Dataset, choice: Choice) -> str:
    at_text = AT[result.attrs["at"]]
    grid = f"{own_prefix(result)}descent_by_offset" != "descent_by_offset"
    fit_steps = result.attrs["fit_steps"]
    fit = f", readouts fitted for {fit_steps} steps" if fit_steps else ""
    return (
        f"Score gradients of each sequence's mean loss, {at_text}{fit}; {result.attrs['sequences']} test sequences. "
        + (means_text(result) if "repeats" in result.attrs else "")
        + null_text(result, "Dots in maps: not outside every draw of both nulls.")
        + choice_text(choice)
        + "Descent: positive if it raises the unit direction; band and exponential have length "
        f"{result.attrs['length_scale']}, without offset 0; bars: {interval_text(result)}. "
        + null_text(result, "Grey: gradient at permuted positions ({draws}).")
        + "Energy: functions of the offset modulo n, of the offset, of the key, and the rest; dashes: pure noise. "
        + null_text(result, "Grey: networks at initialisation.")
        + f"Bottom: gain from a bias at each offset{', mean over the offsets at a distance' if grid else ''}. "
        + null_text(result, "Grey band: permuted; dashed: initialisation, cropped.")
        + ("By distance, intervals are upper bounds." if grid else CUT)
        + undefined_text(result, [f"{own_prefix(result)}snr", f"{own_prefix(result)}energy_share"])
    )
