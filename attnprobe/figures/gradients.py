"""Figures of the gradients measure: one page a checkpoint, one a run."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.panels import (
    CUT,
    caption,
    draws,
    interval_text,
    null_text,
    over_steps,
    profile,
    shown_offsets,
    tails,
    title,
)
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, Page, paper

MARKERS = "osD^v<>P"


def gradients(result: xr.Dataset) -> Figure:
    """Draw one checkpoint: signal along each direction, energy in each subspace, and descent by offset.

    Each layer is a row of each part. Signals are means over standard deviations of a sequence, with the 95 % interval
    of the mean; energies are on a logarithmic axis. On images directions and subspaces are those of two-dimensional
    offsets.
    """
    layers = result.sizes["layer"]
    heights = [0.6 + 2.15 * layers, 0.25 + 1.3 * layers, 0.72]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        _signals_and_energies(parts[0], result)
        _by_offset(parts[1], result)
        _caption(parts[2], result)
    return figure


def gradients_over_steps(result: xr.Dataset) -> Figure:
    """Draw a run: accuracy, and for each loss the descent along proximity and the circulant share of its energy."""
    direction, subspace = result["direction"].values[1], "circulant"
    if not np.isfinite(result["energy_share"].sel(subspace=subspace)).any():
        subspace = "toeplitz"  # attention is causal: nothing is circulant
    shown, panels = {}, {}
    for name, kind, chosen, about in (
        ("descent", "direction", direction, "descent\nalong " + direction.replace(" ", "\n")),
        ("energy_share", "subspace", subspace, f"energy\nin {subspace}"),
    ):
        for loss in result["loss"].values.tolist():
            for tail in tails(result, _own(result, name)):
                one = result[_own(result, name) + tail].sel({kind: chosen, "loss": loss}, drop=True)
                shown[f"{name} {loss}{tail}"] = one
            panels[f"{name} {loss}"] = f"{loss}: {about}"
    kept = result[["objective", "train_accuracy", "test_accuracy"]]
    return over_steps(kept.assign(shown).assign_attrs(result.attrs), panels)


def _own(result: xr.Dataset, name: str) -> str:
    """Return a variable's name in the data's own geometry."""
    return f"grid_{name}" if f"grid_{name}" in result else name


def _signals_and_energies(part: SubFigure, result: xr.Dataset) -> None:
    layers = result.sizes["layer"]
    axes = part.subplots(layers, 2, squeeze=False, sharex="col", width_ratios=[1.25, 1])
    for layer in range(layers):
        one = result.isel(layer=layer)
        _signals(axes[layer, 0], one)
        _energies(axes[layer, 1], one)
        if layers > 1:
            axes[layer, 0].set_title(f"layer {layer}", loc="left")
    axes[-1, 0].set_xlabel("descent: mean / std of a sequence")
    axes[-1, 1].set_xlabel("share of the gradient's energy")
    lines, names = axes[0, 0].get_legend_handles_labels()
    part.legend(lines, names, loc="outside lower center", ncols=4, handlelength=1.5)


def _places(result: xr.Dataset, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the height of each kind's rows, the first on top, and the shift of each loss and head."""
    losses, heads = result.sizes["loss"], result.sizes["head"]
    shift = np.linspace(0.36, -0.36, losses * heads) if losses * heads > 1 else np.zeros(1)
    return np.arange(kinds)[::-1], shift.reshape(losses, heads)


def _signals(axis: Axes, result: xr.Dataset) -> None:
    name = _own(result, "descent")
    rows, shift = _places(result, result.sizes["direction"])
    null = draws(result, _own(result, "snr"), "permuted")
    if null is not None:
        low, high = (getattr(null, end)(("draw", "loss", "head")).values for end in ("min", "max"))
        axis.barh(rows, high - low, 0.9, low, color=PERMUTED, alpha=0.35, linewidth=0)
    for (number, head), offset in np.ndenumerate(shift):
        one = result.isel(loss=number, head=head)
        interval = (one[f"{name}_interval"] / one[f"{name}_std"]).transpose("bound", "direction").values
        _dots(axis, one[_own(result, "snr")].values, interval, rows + offset, number, head)
        axis.containers[-1].set_label(f"{one['loss'].item()}, head {head}")
    axis.axvline(0, color="black", linewidth=0.5)
    ends = (result[f"{name}_interval"] / result[f"{name}_std"]).values
    most = 1.3 * float(np.nanmax(np.abs(ends[np.isfinite(ends)]), initial=1e-9))
    axis.set_xlim(-most, most)
    axis.set_yticks(rows, result["direction"].values.tolist())
    axis.set_ylim(-0.6, len(rows) - 0.4)


def _dots(axis: Axes, mean: np.ndarray, interval: np.ndarray, rows: np.ndarray, loss: int, head: int) -> None:
    """Draw numbers with their intervals, in the colour of the loss and with the mark of the head."""
    drawn = {"fmt": MARKERS[head % len(MARKERS)], "markersize": 2.4, "elinewidth": 0.7, "color": COLOURS[loss]}
    axis.errorbar(mean, rows, xerr=np.abs(interval - mean), **drawn)


def _energies(axis: Axes, result: xr.Dataset) -> None:
    name = _own(result, "energy_share")
    rows, shift = _places(result, result.sizes["subspace"])
    noise = result[f"{name}_of_noise"].values
    for row, share in zip(rows, noise, strict=True):
        axis.plot([share, share], [row - 0.45, row + 0.45], color="black", linewidth=0.8, linestyle=(0, (2, 1)))
    for (number, head), offset in np.ndenumerate(shift):
        one = result.isel(loss=number, head=head)
        null = draws(one, name, "initial")
        if null is not None:
            axis.hlines(rows + offset, null.min("draw"), null.max("draw"), color=PERMUTED, linewidth=3, alpha=0.6)
        interval = one[f"{name}_interval"].transpose("bound", "subspace").values
        _dots(axis, one[name].values, interval, rows + offset, number, head)
    axis.set_xscale("log")
    axis.set_yticks(rows, result["subspace"].values.tolist())
    axis.set_ylim(-0.6, len(rows) - 0.4)


def _by_offset(part: SubFigure, result: xr.Dataset) -> None:
    layers, losses = result.sizes["layer"], result.sizes["loss"]
    axes = part.subplots(layers, losses, squeeze=False, sharex=True)
    shown = result.sel(offset=shown_offsets(int(result.attrs["n"]) // 2))
    for (layer, number), axis in np.ndenumerate(axes):
        profile(axis, shown.isel(loss=number), layer, "descent_by_offset", COLOURS[number])
        drawn = [shown["descent_by_offset_interval"], draws(shown, "descent_by_offset", "permuted")]
        ends = [float(np.nanmax(np.abs(one.isel(layer=layer, loss=number)))) for one in drawn if one is not None]
        axis.set_ylim(
            *(1.1 * max(*ends, 1e-30) * sign for sign in (-1, 1))
        )  # networks at initialisation may differ by far
        axis.axhline(0, color="black", linewidth=0.5)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        if layer == 0:
            axis.set_title(f"{result['loss'].values[number]}: descent by offset")
        if layer == layers - 1:
            axis.set_xlabel(label("offset"))
        if number == 0 and layers > 1:
            axis.set_ylabel(f"layer {layer}")


def _caption(part: SubFigure, result: xr.Dataset) -> None:
    at = {"checkpoint": "at the checkpoint's scores", "uniform": "at uniform attention (all scores 0)"}[
        result.attrs["at"]
    ]
    fitted = result.attrs["fit_steps"]
    fit = f", readouts fitted for {fitted} steps" if fitted else ""
    caption(
        part,
        f"Score gradients of each sequence's mean loss, {at}{fit}; {result.attrs['sequences']} test sequences. Left: "
        "positive where descent raises the unit direction; band and exponential have length "
        f"{result.attrs['length_scale']}, offset 0 is apart; bars: {interval_text(result)}. "
        + null_text(result, "Grey: entries moved by permuted positions ({draws} draws). ")
        + "Right: all functions of the offset modulo n, of the offset, of the key, and the rest; dashes: pure noise. "
        + null_text(result, "Grey: networks at initialisation.")
        + "Below: gain from a bias at each offset, head 0 solid. "
        + null_text(result, "Grey band: permuted; grey dashes: initialisation, where it fits in.")
        + CUT,
    )
