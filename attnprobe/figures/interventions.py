"""Figures of the interventions measure, for one checkpoint and for a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries
from attnprobe.figures.panels import (
    choice_text,
    dots,
    draws,
    head_map,
    index_ticks,
    interval_text,
    map_height,
    means_text,
    null_kinds,
    null_text,
    pad_x,
    plain_bar,
    tails,
)
from attnprobe.figures.requirements import required, required_of_run
from attnprobe.figures.selection import (
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
from attnprobe.figures.style import COLOURS, DIVERGING, PERMUTED, WIDE, WIDTH, line, width_in_inches
from attnprobe.results import as_result

ATTRIBUTES = {"sequences": "a whole number", "length_scale": "a number", "of_objective": "text"}
"""Attributes that the figure of one checkpoint requires (see `attnprobe.figures.requirements`)."""
LABELS = {
    "ablate_toeplitz": "Toeplitz part\nablated",
    "keep_toeplitz": "Toeplitz part\nalone",
    "uniform_attention": "uniform\nattention",
    "impose_proximity": "proximity\nimposed",
}
"""Interventions that the figure of a run shows."""


def interventions(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw the effect of each intervention in each head, in all heads and in some heads, at one checkpoint.

    Top: change in accuracy (in loss, if the targets are real values) when one head is edited, as one layer x head map
    for each intervention. Blue is a decrease. A dot marks a change whose interval includes 0, without correction for
    the number of cells.

    Bottom left: the change when all heads are edited at once; middle: when all heads of a layer are. Dots are means of
    the paired changes over test sequences, with t-intervals. Grey bars are the range of the null: edits of the same
    size with their values at other offsets or positions. A change outside the grey bar depends on where the edited
    values are, not only on their size. Bottom right: the change when one head is edited, for all heads of a small
    network, else the four with the largest change outside the null, framed in the maps.

    A head relies on its offset profile if *ablate toeplitz* lowers the accuracy; the profile suffices if *keep
    toeplitz* does not lower it. A head that tolerates *uniform attention* is not needed for the task.

    Args:
        result: Result of `attnprobe.interventions` at one checkpoint, or joined along ``seed`` or ``run``.
        heads: Heads to draw in detail, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.

    Raises:
        UsageError: If the result lacks a variable or an axis, or a head is unknown.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `interventions` draws."""
    inches = width_in_inches(width)
    result = _prepared(at_one_step(result))
    name, wide = _shown(result), inches >= WIDE
    change = result[name]
    outside = beyond(change, draws(result, name)).fillna(abs(change)).max("intervention")
    choice = chosen(result, name.replace("_", " "), outside, None, heads, most_heads("interventions", width))
    if choice.text and draws(result, name) is not None and heads is None:
        choice = Choice(choice.heads, f"{choice.text} beyond the null, over interventions", choice.one_layer)
    columns = 4 if wide and result.sizes["head"] <= 16 else 2
    height = map_height(result, 0.13 if wide else 0.09, 1.9 if wide else 0.9)
    map_rows = -(-result.sizes["intervention"] // columns)
    row = max(0.17, 0.045 * len(choice.heads) + 0.06)
    dots_height = 0.8 + row * result.sizes["intervention"]
    nulls = null_entries(null_kinds(result))
    nulls = [(artist, "edits of the same size elsewhere") for artist, _ in nulls]
    blocks = [
        Block(
            map_rows * height + 0.1,
            lambda part: _maps(part, result, name, choice, map_rows, columns, wide),
        ),
        legend_block([*head_entries(choice, "o"), *nulls], inches, choice.text),
        Block(dots_height * (1 if wide else 2), lambda part: _changes(part, result, name, choice, wide)),
    ]
    return Sheet(inches, title(result), blocks, _caption(result, name, choice), choice.heads)


def interventions_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and the effects of interventions in each head over the checkpoints of a run.

    Interventions: the Toeplitz part ablated, the Toeplitz part kept alone, uniform attention, proximity imposed; if the
    result has none of these, all that it has. Ribbons are t-intervals of the paired changes over sequences; the grey
    band is the range of the null over heads and draws.

    Args:
        result: Results of `attnprobe.interventions`, joined along ``step``.
        heads: Heads to draw in colour, as (layer, head); see `attnprobe.figures.evolution.over_steps`.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    name = _shown(result)
    result = required_of_run(result, {name: "step intervention layer head, interval, null"})
    kinds = result["intervention"].values.tolist()
    labels = {kind: text for kind, text in LABELS.items() if kind in kinds}
    labels = labels or {kind: kind.replace("_", "\n") for kind in kinds}
    shown = {
        f"{kind}{tail}": result[f"{name}{tail}"].sel(intervention=kind, drop=True)
        for kind in labels
        for tail in tails(result, name)
    }
    kept = result[["objective", "train_accuracy", "test_accuracy"]].assign(shown).assign_attrs(result.attrs)
    return over_steps(
        kept,
        {kind: f"{text}:\n{name.replace('_', ' ')}" for kind, text in labels.items()},
        heads,
        width=width,
        titles=titles,
        caption=caption,
    )


def _prepared(result: xr.Dataset) -> xr.Dataset:
    name = _shown(result)
    variables = {
        f"all_{name}": "intervention, interval, null",
        name: "intervention layer head, interval, null",
        f"base_{name.split('_')[0]}": "",
        **({f"layer_{name}": "intervention layer"} if result.sizes.get("layer", 0) > 1 else {}),
    }
    if is_repeated(result):
        null = draws(result, name)
        largest = None if null is None else abs(null).max("intervention")
        result = over_repeats(result, abs(result[name]).max("intervention"), largest)
    return required(with_all_axes(result, variables), variables, ATTRIBUTES)


def _shown(result: xr.Dataset) -> str:
    """Return the variable to draw: the change in accuracy against targets if it is defined, else the change in loss."""
    # Results joined over steps have no ``of_objective`` if it differs between them, as in runs with self-pretraining.
    attributes = {"of_objective": "text"} if "of_objective" in as_result(result).attrs else {}
    axes = " ".join(axis for axis in ("seed", "run", "step") if axis in result.dims)
    accuracy = required(result, {"all_accuracy": f"{axes} intervention"}, attributes)["all_accuracy"]
    compared = result.attrs.get("of_objective") == "unedited predictions"
    return "accuracy_change" if np.isfinite(accuracy).any() and not compared else "loss_change"


def _maps(part: SubFigure, result: xr.Dataset, name: str, choice: Choice, rows: int, columns: int, wide: bool) -> None:
    axes = part.subplots(rows, columns, squeeze=False)
    largest = float(np.nanmax(np.abs(result[name].values), initial=1e-9))
    interval = result[f"{name}_interval"]
    includes_zero = (interval.sel(bound="lower") <= 0) & (interval.sel(bound="upper") >= 0)
    images, null = [], draws(result, name)
    for axis, kind in zip(axes.ravel(), result["intervention"].values.tolist(), strict=False):
        one = {"intervention": kind}
        options: dict[str, Any] = {"limit": largest, "centred": True, "bar": False, "inside": includes_zero.sel(one)}
        of_edit = null.sel(one) if null is not None and wide else None
        images.append(head_map(axis, result[name].sel(one), of_edit, choice, name=_edit_name(kind), **options))
    shown = result.sizes["intervention"]
    for number, axis in enumerate(axes.ravel()):
        if number >= shown:
            axis.set_axis_off()
        if number % columns:
            axis.set_ylabel("")
        if number < shown - columns:
            axis.set_xlabel("")
    scale = part.colorbar(images[0], ax=axes.ravel().tolist(), aspect=25, fraction=0.04, pad=0.01)
    plain_bar(scale, 5)
    scale.set_label(_change_label(result, name))


def _changes(part: SubFigure, result: xr.Dataset, name: str, choice: Choice, wide: bool) -> None:
    by_layer = wide and result.sizes["layer"] > 1
    left, *middle, right = part.subplots(*((1, 2 + by_layer) if wide else (2, 1)), sharey=True)
    if middle:
        _layers(middle[0], result, name)
    rows = np.arange(result.sizes["intervention"])
    _null_bars(left, rows, draws(result, f"all_{name}"), 0.7)
    dots(left, result[f"all_{name}"], result[f"all_{name}_interval"], rows, COLOURS[-1])
    step = 0.8 / len(choice.heads)
    null = draws(result, name)
    for number, head in enumerate(choice.heads):
        shifted = rows + step * (number - (len(choice.heads) - 1) / 2)
        _null_bars(right, shifted, None if null is None else at(null, head), 0.8 * step)
        colour = line(number)["color"]
        dots(right, at(result[name], head), at(result[f"{name}_interval"], head), shifted, colour)
    for axis in (left, right):
        axis.axvline(0, color="black", linewidth=0.6)
        pad_x(axis)
        axis.xaxis.set_major_locator(MaxNLocator(4))  # more labels of three decimals would overlap
    left.set_yticks(rows, [_edit_name(kind) for kind in result["intervention"].values.tolist()])
    left.set_ylim(len(rows) - 0.5, -0.5)
    if not wide:
        right.tick_params(labelleft=True)
    base = float(result[f"base_{name.split('_')[0]}"])
    unedited = "" if _compared(result) else f"\n(unedited: {base:.3f})"
    left.set_xlabel(f"{_change_label(result, name)}{unedited}")
    right.set_xlabel(_change_label(result, name))
    left.set_title("all heads")
    right.set_title("one head")


def _layers(axis: Axes, result: xr.Dataset, name: str) -> None:
    """Draw the change when all heads of a layer are edited."""
    values = result[f"layer_{name}"].transpose("intervention", "layer").values
    largest = float(np.nanmax(np.abs(values), initial=1e-9))
    image = axis.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    bar = axis.figure.colorbar(image, ax=axis, aspect=25, fraction=0.06, pad=0.03)
    plain_bar(bar, 4)
    layers = result["layer"].values.tolist()
    index_ticks(axis.xaxis, layers, 1.0 / len(layers))
    axis.set(xlabel=label("layer"), title="all heads of a layer")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _null_bars(axis: Axes, rows: np.ndarray, null: xr.DataArray | None, height: float) -> None:
    """Draw the range of the null of each intervention that has one."""
    if null is None:
        return
    changes = null.transpose("null", "draw", "intervention").values.reshape(-1, len(rows))
    defined = np.isfinite(changes).all(0)
    low, high = changes[:, defined].min(0), changes[:, defined].max(0)
    axis.barh(rows[defined], high - low, height, low, color=PERMUTED, alpha=0.45, linewidth=0)


def _edit_name(kind: str) -> str:
    return kind.replace("_", " ")


def _compared(result: xr.Dataset) -> bool:
    return result.attrs.get("of_objective") == "unedited predictions"


def _change_label(result: xr.Dataset, name: str) -> str:
    if _compared(result):
        return "KL divergence (nats)"
    return "change in accuracy" if name == "accuracy_change" else f"change in loss ({result[name].attrs['units']})"


def _caption(result: xr.Dataset, name: str, choice: Choice) -> str:
    compared = " KL divergences from the unedited predictions." if _compared(result) else ""
    return (
        f"Scores edited in {result.attrs['sequences']} test sequences; objective: {result.attrs['of_objective']}."
        f"{compared} Maps: one head edited; dots: the interval includes 0 (not corrected for the number of cells). "
        + choice_text(choice)
        + (means_text(result) if "repeats" in result.attrs else f"Paired changes with {interval_text(result)}. ")
        + null_text(result, "Grey: edits of the same size with values at other offsets or positions ({draws}).")
        + "Toeplitz: the head's mean offset profile; position: its position-position term; imposed: -distance / "
        f"{result.attrs['length_scale']:g}."
    )
