"""Figures of the interventions measure, for one checkpoint and for a run."""

import re

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.figures.panels import caption, draws, interval_text, null_text, over_steps, tails, title
from attnprobe.figures.requirements import RUN, required
from attnprobe.figures.style import COLOURS, DIVERGING, PERMUTED, WIDTH, Page, paper

ATTRIBUTES = {"sequences": "a whole number", "length_scale": "a number", "of_objective": "text"}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""
LABELS = {
    "ablate_toeplitz": "Toeplitz part\nablated",
    "keep_toeplitz": "Toeplitz part\nalone",
    "uniform_attention": "uniform\nattention",
    "impose_proximity": "proximity\nimposed",
}
"""Interventions that the figure of a run shows."""


def interventions(result: xr.Dataset) -> Figure:
    """Draw the effect of each intervention in all heads, in each layer and in each head, at one checkpoint.

    Left: change in accuracy (in loss, if the targets are real values) when all heads are edited at once. Dots are means
    of the paired changes over test sequences, with t-intervals. Grey bars are the range of the null: edits of the same
    size with their values at other offsets or positions. A change outside the grey bar depends on where the edited
    values are, not only on their size.

    Right: the same change when one head is edited (``layer.head``) and, for several layers, when all heads of a layer
    are edited (columns after the vertical line). Blue is a decrease. Cells are annotated if their interval excludes 0,
    without correction for the number of cells; figures with many columns have no annotations.

    A head relies on its offset profile if *ablate toeplitz* lowers the accuracy; the profile suffices if *keep
    toeplitz* does not lower it. A head that tolerates *uniform attention* is not needed for the task.

    Args:
        result: Result of `attnprobe.interventions` at one checkpoint.
    """
    name = _shown(result, "intervention")
    variables = {
        f"all_{name}": "intervention, interval, null",
        name: "intervention layer head, interval",
        f"base_{name.split('_')[0]}": "",
        **({f"layer_{name}": "intervention layer, interval"} if result.sizes.get("layer", 0) > 1 else {}),
    }
    result = required(result, variables, ATTRIBUTES)
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
    """Draw accuracy and the effects of interventions in each head over the checkpoints of a run.

    Interventions: the Toeplitz part ablated, the Toeplitz part kept alone, uniform attention, proximity imposed; if the
    result has none of these, all that it has. Ribbons are t-intervals of the paired changes over sequences; the grey
    band is the range of the null over heads and draws.

    Args:
        result: Results of `attnprobe.interventions`, joined along ``step``.
    """
    name = _shown(result, "step intervention")
    result = required(result, RUN | {name: "step intervention layer head, interval, null"}, {})
    kinds = result["intervention"].values.tolist()
    labels = {kind: text for kind, text in LABELS.items() if kind in kinds}
    labels = labels or {kind: kind.replace("_", "\n") for kind in kinds}
    shown = {
        f"{kind}{tail}": result[f"{name}{tail}"].sel(intervention=kind, drop=True)
        for kind in labels
        for tail in tails(result, name)
    }
    kept = result[["objective", "train_accuracy", "test_accuracy"]].assign(shown).assign_attrs(result.attrs)
    return over_steps(kept, {kind: f"{text}:\n{name.replace('_', ' ')}" for kind, text in labels.items()})


def _shown(result: xr.Dataset, axes: str) -> str:
    """Return the variable to draw: the change in accuracy against targets if it is defined, else the change in loss."""
    # Results joined over steps have no ``of_objective`` if it differs between them, as in runs with self-pretraining.
    attributes = {"of_objective": "text"} if "of_objective" in result.attrs else {}
    accuracy = required(result, {"all_accuracy": axes}, attributes)["all_accuracy"]
    compared = result.attrs.get("of_objective") == "unedited predictions"
    return "accuracy_change" if np.isfinite(accuracy).any() and not compared else "loss_change"


def _everywhere(axis: Axes, result: xr.Dataset, name: str) -> None:
    rows = np.arange(result.sizes["intervention"])
    change = result[f"all_{name}"].values
    interval = result[f"all_{name}_interval"].transpose("bound", "intervention").values
    null = draws(result, f"all_{name}", "permuted")
    if null is not None:
        changes = null.transpose("draw", "intervention").values
        defined = np.isfinite(changes).all(0)
        low, high = changes[:, defined].min(0), changes[:, defined].max(0)
        axis.barh(rows[defined], high - low, 0.7, low, color=PERMUTED, alpha=0.5, linewidth=0)
    style = {"fmt": "o", "markersize": 3, "color": COLOURS[0], "elinewidth": 0.9}
    axis.errorbar(change, rows, xerr=np.abs(interval - change), **style)
    axis.axvline(0, color="black", linewidth=0.6)
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.03 * (right - left), right + 0.03 * (right - left))
    axis.xaxis.set_major_locator(MaxNLocator(4))  # more labels of three decimals would overlap
    axis.set_yticks(rows, [edit.replace("_", " ") for edit in result["intervention"].values.tolist()])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    kind, base = name.split("_")[0], float(result[f"base_{name.split('_')[0]}"])
    if result.attrs["of_objective"] == "unedited predictions":
        axis.set_xlabel("KL divergence from the\nunedited predictions (nats), all heads")
    else:
        axis.set_xlabel(f"change in {kind}, all heads\n({kind} without intervention: {base:.3f})")


def _by_head(axis: Axes, result: xr.Dataset, name: str) -> None:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    values = result[name].values.reshape(len(result["intervention"]), -1)
    intervals = result[f"{name}_interval"].transpose("bound", "intervention", "layer", "head").values
    intervals = intervals.reshape(2, *values.shape)
    labels = [f"{layer}.{head}" for layer, head in np.ndindex(layers, heads)]
    if layers > 1:
        values = np.concatenate([values, result[f"layer_{name}"].values], axis=1)
        intervals = np.concatenate([intervals, result[f"layer_{name}_interval"].transpose("bound", ...).values], axis=2)
        labels += [f"{layer}" for layer in range(layers)]
        axis.axvline(layers * heads - 0.5, color="black", linewidth=0.8)
    largest = float(np.nanmax(np.abs(values), initial=1e-9))
    image = axis.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto")
    axis.figure.colorbar(image, ax=axis, aspect=30, pad=0.02).outline.set_visible(False)  # pyright: ignore
    excludes_zero = (intervals[0] > 0) | (intervals[1] < 0)
    if _columns(result) <= ANNOTATED_COLUMNS:
        for (row, column), value in np.ndenumerate(values):
            if excludes_zero[row, column] and abs(value) >= 0.005:
                colour = "white" if abs(value) > 0.6 * largest else "black"
                text = re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}")
                axis.text(column, row, text, ha="center", va="center", fontsize=5.5, color=colour)
    axis.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 10 else 0)
    axis.set_xlabel("layer.head" + (" | layer" if layers > 1 else ""))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


ANNOTATED_COLUMNS = 16
"""Largest number of columns whose cells are annotated."""


def _columns(result: xr.Dataset) -> int:
    layers, heads = result.sizes["layer"], result.sizes["head"]
    return layers * heads + (layers if layers > 1 else 0)


def _caption(part: SubFigure, result: xr.Dataset, name: str) -> None:
    objective = result.attrs["of_objective"]
    annotation = "; annotated if the interval excludes 0 (not corrected for the number of cells)"
    annotation = annotation if _columns(result) <= ANNOTATED_COLUMNS else ""
    caption(
        part,
        f"Scores edited in {result.attrs['sequences']} test sequences; objective: {objective}. Mean paired changes "
        f"with {interval_text(result)}. "
        + null_text(result, "Grey: edits of the same size with values at other offsets or positions ({draws} draws).")
        + "Toeplitz: the head's mean offset profile; position: its "
        f"position-position term; imposed: -distance / {result.attrs['length_scale']:g}. "
        f"Right: the change in one head or in all heads of a layer{annotation}.",
    )
