"""Figures of the gradients measure, for one checkpoint and for a run."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.errors import UsageError, listed, shown
from attnprobe.figures.panels import (
    CUT,
    caption,
    draws,
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
)
from attnprobe.figures.requirements import RUN, required
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, Page, paper
from attnprobe.results import own_prefix

MARKERS = "osD^v<>P"
AT = {"checkpoint": "at the checkpoint's scores", "uniform": "at uniform attention (all scores 0)"}
ATTRIBUTES = {
    "n": "a whole number",
    "sequences": "a whole number",
    "fit_steps": "a whole number",
    "length_scale": "a number",
    "at": "text",
}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""


def gradients(result: xr.Dataset) -> Figure:
    """Draw the score gradients of every objective: signal, energy and descent by offset, at one checkpoint.

    Each part has one row per layer. Colours are objectives, markers and dashes are heads. For images, directions and
    subspaces are those of two-dimensional offsets.

    Left: signal-to-noise ratio of the descent along each unit direction, the mean divided by the std over sequences.
    Bars are t-intervals of the mean on the same scale; the grey bar is the range of the null (gradient entries at
    permuted positions) over heads and objectives. To the right of 0, gradient descent on the objective raises the score
    along the direction. *Circulant* and *toeplitz* directions are proximity profiles, with and without wrapping around
    the sequence. *Column*, a random function of the key, is the positive control: supervised training can detect it.

    Right: share of the gradient's energy (squared norm) in each subspace, on a logarithmic axis. The subspaces are
    functions of the offset modulo n (*circulant*), of the offset (*toeplitz*), of the key (*column*), and the rest.
    Dashes mark the share of pure noise: an objective is nearly blind to a subspace if its share is far below the
    dashes. Grey lines are the ranges of networks at initialisation.

    Below: gain from a bias at each offset, with t-intervals; descent raises the scores at offsets with positive values.
    The grey band is the permuted null, dashed lines are networks at initialisation, cropped if they exceed the axis.

    Compare several profiles, since the result depends on the shape. In a linear network with mean pooling, label
    gradients capture 1/9 of a linear profile (-distance) for every n, a fraction that falls as 1/n² for a band or
    exponential, and none of a circulant profile. With an MLP or LayerNorm this holds only approximately, so compare
    signal and noise. An untrained output head is random, so the sign of its gradient is meaningless: before
    training, measure with ``fit_steps``, and with ``at="uniform"`` for the setting of the theory. The result also
    describes the gradient with respect to the query/key maps: ``mean_token_share`` is the share of it that reads
    only the mean token.

    Args:
        result: Result of `attnprobe.gradients` at one checkpoint.
    """
    prefix = own_prefix(result)
    variables = {
        f"{prefix}descent": "loss layer head direction, interval, std",
        f"{prefix}snr": "loss layer head direction, null",
        f"{prefix}energy_share": "loss layer head subspace, interval, null",
        f"{prefix}energy_share_of_noise": "subspace",
        "descent_by_offset": "loss layer head offset, interval, null",
        "gradient_norm": "loss layer head",
    }
    result = required(result, variables, ATTRIBUTES)
    if result.attrs["at"] not in AT:
        raise UsageError(f"attribute at={shown(result.attrs['at'])}: must be one of {listed(AT)}")
    layers = result.sizes["layer"]
    heights = [0.6 + 2.15 * layers, 0.25 + 1.3 * layers, 0.72 + lines_height(_undefined(result))]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        _signals_and_energies(parts[0], result)
        _by_offset(parts[1], result)
        _caption(parts[2], result)
    return figure


def gradients_over_steps(result: xr.Dataset) -> Figure:
    """Draw accuracy and each objective's gradient in every head over the checkpoints of a run.

    For each objective: the descent along a proximity direction (circulant exponential), and the share of the gradient's
    energy in functions of the offset modulo n (of the offset, if attention is causal). Ribbons are t-intervals over
    sequences; the grey band is the range of the permuted null over heads and draws.

    Args:
        result: Results of `attnprobe.gradients`, joined along ``step``.
    """
    prefix = own_prefix(result)
    variables = {
        f"{prefix}descent": "step loss layer head direction, interval, null",
        f"{prefix}energy_share": "step loss layer head subspace, interval, null",
    }
    result = required(result, RUN | variables, {})
    direction, subspace = result["direction"].values[min(1, result.sizes["direction"] - 1)], "circulant"
    if not np.isfinite(result[f"{prefix}energy_share"].sel(subspace=subspace)).any():
        subspace = "toeplitz"  # circulant shares are undefined under causal attention
    shown, panels = {}, {}
    for name, axis, value, text in (
        ("descent", "direction", direction, "descent\nalong " + direction.replace(" ", "\n")),
        ("energy_share", "subspace", subspace, f"energy\nin {subspace}"),
    ):
        for loss in result["loss"].values.tolist():
            for tail in tails(result, f"{prefix}{name}"):
                selected = result[f"{prefix}{name}{tail}"].sel({axis: value, "loss": loss}, drop=True)
                shown[f"{name} {loss}{tail}"] = selected
            panels[f"{name} {loss}"] = f"{loss}: {text}"
    kept = result[["objective", "train_accuracy", "test_accuracy"]]
    return over_steps(kept.assign(shown).assign_attrs(result.attrs), panels)


def _signals_and_energies(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False, sharex="col", width_ratios=[1.25, 1])
    for layer in range(layers):
        of_layer = result.isel(layer=layer)
        _signals(axes[layer, 0], of_layer)
        _energies(axes[layer, 1], of_layer)
        if layers > 1:
            axes[layer, 0].set_title(f"layer {layer}", loc="left")
    axes[-1, 0].set_xlim(*_signal_range(result))  # shared by all layers
    axes[-1, 0].set_xlabel("descent: mean / std over sequences")
    axes[-1, 1].set_xlabel("share of gradient energy")
    lines, names = axes[0, 0].get_legend_handles_labels()
    part.legend(lines, names, loc="outside lower center", ncols=4, handlelength=1.5)


def _rows(result: xr.Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the y position of each row, the first on top, and the vertical shift [loss, head] within a row."""
    losses, heads = result.sizes["loss"], result.sizes["head"]
    shift = np.linspace(0.36, -0.36, losses * heads) if losses * heads > 1 else np.zeros(1)
    return np.arange(count)[::-1], shift.reshape(losses, heads)


def _signals(axis: Axes, result: xr.Dataset) -> None:
    name = f"{own_prefix(result)}descent"
    rows, shift = _rows(result, result.sizes["direction"])
    null = draws(result, f"{own_prefix(result)}snr", "permuted")
    if null is not None:
        low, high = (getattr(null, end)(("draw", "loss", "head")).values for end in ("min", "max"))
        axis.barh(rows, high - low, 0.9, low, color=PERMUTED, alpha=0.35, linewidth=0)
    for (loss, head), y_shift in np.ndenumerate(shift):
        selected = result.isel(loss=loss, head=head)
        interval = (selected[f"{name}_interval"] / selected[f"{name}_std"]).transpose("bound", "direction").values
        _dots(axis, selected[f"{own_prefix(result)}snr"].values, interval, rows + y_shift, loss, head)
        axis.containers[-1].set_label(f"{selected['loss'].item()}, head {head}")
    axis.axvline(0, color="black", linewidth=0.5)
    if not (result["gradient_norm"] > 0).any():
        _note_zero(axis)
    axis.set_yticks(rows, result["direction"].values.tolist())
    axis.set_ylim(-0.6, len(rows) - 0.4)


def _signal_range(result: xr.Dataset) -> tuple[float, float]:
    name = f"{own_prefix(result)}descent"
    bounds = (result[f"{name}_interval"] / result[f"{name}_std"]).values
    limit = 1.3 * float(np.nanmax(np.abs(bounds[np.isfinite(bounds)]), initial=1e-9))
    return -limit, limit


def _note_zero(axis: Axes) -> None:
    """Say that the gradient is 0, as that of labels read from [CLS] is in the last layer."""
    axis.text(0.5, 0.7, "gradient is 0", transform=axis.transAxes, ha="center", va="center", color="0.4")


def _dots(axis: Axes, mean: np.ndarray, interval: np.ndarray, rows: np.ndarray, loss: int, head: int) -> None:
    """Draw values with their intervals, with the colour of the loss and the marker of the head."""
    style = {
        "fmt": MARKERS[head % len(MARKERS)],
        "markersize": 2.4,
        "elinewidth": 0.7,
        "color": COLOURS[loss % len(COLOURS)],
    }
    axis.errorbar(mean, rows, xerr=np.abs(interval - mean), **style)


def _energies(axis: Axes, result: xr.Dataset) -> None:
    name = f"{own_prefix(result)}energy_share"
    rows, shift = _rows(result, result.sizes["subspace"])
    noise = result[f"{name}_of_noise"].values
    for row, share in zip(rows, noise, strict=True):
        axis.plot([share, share], [row - 0.45, row + 0.45], color="black", linewidth=0.8, linestyle=(0, (2, 1)))
    for (loss, head), y_shift in np.ndenumerate(shift):
        selected = result.isel(loss=loss, head=head)
        null = draws(selected, name, "initial")
        if null is not None:
            axis.hlines(rows + y_shift, null.min("draw"), null.max("draw"), color=PERMUTED, linewidth=3, alpha=0.6)
        interval = selected[f"{name}_interval"].transpose("bound", "subspace").values
        _dots(axis, selected[name].values, interval, rows + y_shift, loss, head)
    note_undefined(axis, result[name])
    axis.set_xscale("log")
    axis.set_yticks(rows, result["subspace"].values.tolist())
    axis.set_ylim(-0.6, len(rows) - 0.4)


def _by_offset(part: SubFigure, result: xr.Dataset) -> None:
    layers, losses = result.sizes["layer"], result.sizes["loss"]
    axes = part.subplots(layers, losses, squeeze=False, sharex=True)
    shown = result.sel(offset=shown_offsets(int(result.attrs["n"]) // 2))
    for (layer, loss), axis in np.ndenumerate(axes):
        profile(axis, shown.isel(loss=loss), layer, "descent_by_offset", COLOURS[loss % len(COLOURS)])
        # the scale leaves out networks at initialisation, whose gradients may be much larger
        ranges = [shown["descent_by_offset_interval"], draws(shown, "descent_by_offset", "permuted")]
        limits = [float(np.nanmax(np.abs(band.isel(layer=layer, loss=loss)))) for band in ranges if band is not None]
        if max(limits) > 0:
            axis.set_ylim(*(1.1 * max(limits) * sign for sign in (-1, 1)))
        else:
            axis.set_ylim(-1, 1)
            _note_zero(axis)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        if layer == 0:
            axis.set_title(f"{result['loss'].values[loss]}: descent by offset")
        if layer == layers - 1:
            axis.set_xlabel(label("offset"))
        if loss == 0 and layers > 1:
            axis.set_ylabel(f"layer {layer}")


def _undefined(result: xr.Dataset) -> str:
    return undefined_text(result, [f"{own_prefix(result)}snr", f"{own_prefix(result)}energy_share"])


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    at, fit_steps = AT[result.attrs["at"]], result.attrs["fit_steps"]
    fit = f", readouts fitted for {fit_steps} steps" if fit_steps else ""
    caption(
        part,
        f"Score gradients of each sequence's mean loss, {at}{fit}; {result.attrs['sequences']} test sequences. Left: "
        "positive if descent raises the unit direction; band and exponential have length "
        f"{result.attrs['length_scale']}, without offset 0; bars: {interval_text(result)}. "
        + null_text(result, "Grey: gradient at permuted positions ({draws} draws).")
        + "Right: functions of the offset modulo n, of the offset, of the key, and the rest; dashes: pure noise. "
        + null_text(result, "Grey: networks at initialisation.")
        + "Below: gain from a bias at each offset, head 0 solid. "
        + null_text(result, "Grey band: permuted; grey dashes: initialisation, cropped.")
        + CUT
        + _undefined(result),
    )
