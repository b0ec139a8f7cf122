"""Figures of a run: variables of every head over its checkpoints."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries, text_width
from attnprobe.figures.panels import draws, head_map, interval_text, map_columns, map_height, note_undefined, null_text
from attnprobe.figures.requirements import RUN, required
from attnprobe.figures.selection import (
    HEAD,
    Choice,
    Head,
    all_heads,
    at,
    chosen,
    is_repeated,
    over_repeats,
    title,
    with_all_axes,
)
from attnprobe.figures.style import PERMUTED, WIDTH, line, width_in_inches

OTHERS = "0.75"
"""Colour of the heads that were not chosen."""


def over_steps(
    result: xr.Dataset,
    panels: Mapping[str, str],
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
    choose: Callable[..., Choice] = chosen,
) -> Figure:
    """Draw the accuracies of a run and, below them, one panel per variable.

    Checkpoints are evenly spaced on the horizontal axis, since their steps are log-spaced within each stage. In
    networks of more than 8 heads, the four whose first variable is farthest outside the permuted null at the last
    checkpoint are drawn in colour, the others as thin grey lines, after layer x head maps of the first two variables at
    the last checkpoint.

    Args:
        result: Results joined along ``step``, and possibly along ``seed`` or ``run``.
        panels: Maps each variable's name to the label of its panel.
        heads: Heads to draw in colour, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
        choose: Function that chooses the heads to draw in colour.

    Raises:
        UsageError: If the result lacks a variable or an axis, a step occurs twice, or a head is unknown.
    """
    inches, result = width_in_inches(width), _prepared(result, list(panels))
    blocks, last, choice = [], result.isel(step=-1), None
    if panels:
        first = next(iter(panels))
        name = " ".join(panels[first].partition("(")[0].split())
        choice = choose(last, name, last[first], draws(last, first, "permuted"), heads)
        if choice.text:
            mapped = dict(list(panels.items())[:2])
            columns = map_columns(result, inches, len(mapped))
            rows = -(-len(mapped) // columns)
            height = rows * map_height(result, 0.11)
            blocks.append(Block(height, lambda part: _maps(part, last, mapped, choice, rows, columns)))
        entries = head_entries(choice)
        if len(choice.heads) < len(all_heads(result)):
            entries.append((Line2D([], [], color=OTHERS, linewidth=0.6), "other heads"))
        if draws(result, first, "permuted") is not None:
            entries += null_entries(["permuted"])
        blocks.append(
            legend_block(entries, inches, f"{choice.text} at the last checkpoint (maps)" if choice.text else "")
        )
    blocks.append(Block(1.15 * (len(panels) + 1) + 0.5, lambda part: _panels(part, result, panels, choice)))
    kind = "heads" if choice is None else choice.kind
    accuracies = "Accuracy: solid: test, dotted: train. "
    intervals = f"Ribbons: {interval_text(result)}. " if panels else ""
    nulls = f"Grey band: positions permuted (range over all {kind} and {{draws}})." if panels else ""
    return Sheet(inches, title(result), blocks, accuracies + intervals + null_text(result, nulls)).figure(
        titles, caption
    )


def _prepared(result: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    variables = RUN | dict.fromkeys(names, "step layer head, interval, null")
    if names and is_repeated(result):
        last = result.isel(step=-1)
        result = over_repeats(result, last[names[0]], draws(last, names[0]))
    return required(with_all_axes(result, variables), variables, {})


def _maps(
    part: SubFigure, last: xr.Dataset, panels: Mapping[str, str], choice: Choice, rows: int, columns: int
) -> None:
    axes = part.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, text) in zip(axes, panels.items(), strict=True):
        head_map(axis, last[name], draws(last, name, "permuted"), choice, name=" ".join(text.split()))


def _panels(part: SubFigure, result: xr.Dataset, panels: Mapping[str, str], choice: Choice | None) -> None:
    x = np.arange(result.sizes["step"])
    axes = part.subplots(len(panels) + 1, 1, sharex=True, squeeze=False)[:, 0]
    objectives = result["objective"].values
    for objective in dict.fromkeys(objectives.tolist()):
        stage = objectives == objective  # stages have different objectives, so their accuracies are not connected
        for name, dash in (("train_accuracy", ":"), ("test_accuracy", "-")):
            axes[0].plot(x[stage], result[name][stage], color="black", linestyle=dash, marker=".")
        middle = float(x[stage].mean())
        axes[0].text(middle, 1.1, f"objective: {objective}", ha="center", va="bottom", fontsize=6.5)
    axes[0].set(ylabel="accuracy", ylim=(-0.03, 1.05))
    for axis, (name, text) in zip(axes[1:], panels.items(), strict=True):
        assert choice is not None
        evolution(axis, x, result, name, choice)
        axis.set_ylabel(text)
    for axis in axes:
        for last in np.flatnonzero(objectives[1:] != objectives[:-1]):
            axis.axvline(last + 0.5, color="black", linewidth=0.6)
    labels = [str(step) for step in result["step"].values]
    # every n-th label, with the last, so that labels do not overlap
    space = (part.bbox.width / part.dpi_scale_trans.transform((1, 0))[0] - 0.8) / max(len(x), 1)
    every = max(1, int(np.ceil((max(text_width(text, 6.5) for text in labels) + 0.08) / space)))
    kept = x[::-1][::every][::-1]
    axes[-1].set_xticks(kept, [labels[number] for number in kept])
    axes[-1].set_xlabel(f"{label('step')} (checkpoints, evenly spaced)")


def evolution(axis: Axes, x: np.ndarray, result: xr.Dataset, name: str, choice: Choice) -> None:
    """Draw a variable over checkpoints: chosen heads with intervals, others thin, over the permuted null's range."""
    note_undefined(axis, [result[name]])
    null = draws(result, name, "permuted")
    if null is not None:
        band = null.min(("draw", *HEAD)), null.max(("draw", *HEAD))
        axis.fill_between(x, *band, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    for head in all_heads(result):
        if head not in choice.heads:
            axis.plot(x, at(result[name], head), color=OTHERS, linewidth=0.4, zorder=1)
    for number, head in enumerate(choice.heads):
        style = line(number)
        axis.plot(x, at(result[name], head), marker=".", label=choice.name(head), **style)
        interval = at(result[f"{name}_interval"], head)
        bounds = interval.sel(bound="lower"), interval.sel(bound="upper")
        axis.fill_between(x, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    axis.yaxis.set_major_locator(MaxNLocator(4))
