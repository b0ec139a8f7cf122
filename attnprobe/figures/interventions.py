"""Figures of the interventions measure: one page a checkpoint, one a run."""

import re

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from attnprobe.figures.panels import caption, draws, interval_text, null_text, over_steps, tails, title
from attnprobe.figures.style import COLOURS, DIVERGING, PERMUTED, WIDTH, Page, paper


def interventions(result: xr.Dataset) -> Figure:
    """Draw one checkpoint: what each intervention does in all heads at once, and in each layer and head.

    Left the change of accuracy (of the loss, where answers are real values) with its interval, on the range of the
    null; right the same change head by head, and for all heads of a layer. A cell whose interval leaves out 0 has its
    number.
    """
    name = _shown(result)
    height = 0.21 * result.sizes["intervention"]
    with paper():
        figure = Page(figsize=(WIDTH, height + 1.65), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[height + 1.05, 0.6], squeeze=False)[:, 0]
        parts[0].suptitle(title(result), fontsize=8)
        axes = parts[0].subplots(1, 2, sharey=True, width_ratios=[1.0, 1.25])
        _everywhere(axes[0], result, name)
        _by_head(axes[1], result, name)
        _caption(parts[1], result, name)
    return figure


def interventions_over_steps(result: xr.Dataset) -> Figure:
    """Draw a run: accuracy, and what taking away or keeping the Toeplitz part of each head does at each checkpoint."""
    name = _shown(result)
    about = {
        "ablate_toeplitz": "without its\nToeplitz part",
        "keep_toeplitz": "its Toeplitz\npart alone",
        "uniform_attention": "uniform",
        "impose_proximity": "proximity\nimposed",
    }
    shown = {
        f"{kind}{tail}": result[f"{name}{tail}"].sel(intervention=kind, drop=True)
        for kind in about
        for tail in tails(result, name)
    }
    kept = result[["objective", "train_accuracy", "test_accuracy"]].assign(shown).assign_attrs(result.attrs)
    return over_steps(kept, {kind: f"{text}:\n{name.replace('_', ' ')}" for kind, text in about.items()})


def _shown(result: xr.Dataset) -> str:
    """Return the change that is drawn: of the accuracy, where there is one."""
    return "accuracy_change" if np.isfinite(result["all_accuracy"]).any() else "loss_change"


def _everywhere(axis: Axes, result: xr.Dataset, name: str) -> None:
    rows = np.arange(result.sizes["intervention"])
    change = result[f"all_{name}"].values
    interval = result[f"all_{name}_interval"].transpose("bound", "intervention").values
    null = draws(result, f"all_{name}", "permuted")
    if null is not None:
        ends = null.transpose("draw", "intervention").values
        known = np.isfinite(ends).all(0)
        low, high = ends[:, known].min(0), ends[:, known].max(0)
        axis.barh(rows[known], high - low, 0.7, low, color=PERMUTED, alpha=0.5, linewidth=0)
    drawn = {"fmt": "o", "markersize": 3, "color": COLOURS[0], "elinewidth": 0.9}
    axis.errorbar(change, rows, xerr=np.abs(interval - change), **drawn)
    axis.axvline(0, color="black", linewidth=0.6)
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.03 * (right - left), right + 0.03 * (right - left))
    axis.set_yticks(rows, [name.replace("_", " ") for name in result["intervention"].values.tolist()])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    kind, base = name.split("_")[0], float(result[f"base_{name.split('_')[0]}"])
    axis.set_xlabel(f"change of the {kind}, all heads\n({kind} without intervention: {base:.3f})")


def _by_head(axis: Axes, result: xr.Dataset, name: str) -> None:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    values = result[name].values.reshape(len(result["intervention"]), -1)
    ends = result[f"{name}_interval"].transpose("bound", "intervention", "layer", "head").values
    ends = ends.reshape(2, *values.shape)
    labels = [f"{layer}.{head}" for layer, head in np.ndindex(layers, heads)]
    if layers > 1:
        values = np.concatenate([values, result[f"layer_{name}"].values], axis=1)
        ends = np.concatenate([ends, result[f"layer_{name}_interval"].transpose("bound", ...).values], axis=2)
        labels += [f"{layer}" for layer in range(layers)]
        axis.axvline(layers * heads - 0.5, color="black", linewidth=0.8)
    most = float(np.nanmax(np.abs(values), initial=1e-9))
    image = axis.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
    axis.figure.colorbar(image, ax=axis, aspect=30, pad=0.02).outline.set_visible(False)  # pyright: ignore
    sure = (ends[0] > 0) | (ends[1] < 0)
    if _columns(result) <= WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if sure[row, column]:
                ink = "white" if abs(value) > 0.6 * most else "black"
                text = re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}")
                axis.text(column, row, text, ha="center", va="center", fontsize=5.5, color=ink)
    axis.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 10 else 0)
    axis.set_xlabel("layer.head" + (" | layer" if layers > 1 else ""))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


WRITTEN = 16
"""Columns, at most, whose cells have numbers."""


def _columns(result: xr.Dataset) -> int:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    return layers * heads + (layers if layers > 1 else 0)


def _caption(part: SubFigure, result: xr.Dataset, name: str) -> None:
    objective = result.attrs["of_objective"]
    written = "; a number where the interval leaves out 0 (not corrected for the number of cells)"
    written = written if _columns(result) <= WRITTEN else ""
    caption(
        part,
        f"Scores edited in {result.attrs['sequences']} test sequences; objective: {objective}. Means of paired changes "
        f"with {interval_text(result)}. "
        + null_text(result, "Grey: as large an edit with its numbers at other offsets or positions ({draws} draws).")
        + "Toeplitz: the head's mean function of the offset; position: its "
        f"position-position term; imposed: -distance / {result.attrs['length_scale']:g}. "
        f"Right: the change in one head or in all heads of a layer{written}.",
    )
