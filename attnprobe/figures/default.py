"""Default figures, for measures without their own: layer x head maps and profiles by offset."""

from collections.abc import Sequence

import xarray as xr
from matplotlib.figure import Figure, SubFigure

from attnprobe.axes import label
from attnprobe.errors import UsageError, listed
from attnprobe.figures.evolution import over_steps
from attnprobe.figures.layout import Block, Sheet, head_entries, legend_block, null_entries
from attnprobe.figures.panels import (
    CUT,
    choice_text,
    cut,
    draws,
    head_map,
    map_columns,
    map_height,
    means_text,
    null_kinds,
    null_text,
    profile,
    rows_of_heads,
    undefined_text,
)
from attnprobe.figures.requirements import required
from attnprobe.figures.selection import (
    HEAD,
    Choice,
    Head,
    at_one_step,
    chosen,
    most_heads,
    over_repeats,
    title,
    with_all_axes,
)
from attnprobe.figures.style import WIDTH, width_in_inches


def figure(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw every variable of a result that has an interval, at one checkpoint.

    Variables with one value per head are drawn as layer x head maps; a map with negative values is centred at 0 (red
    positive, blue negative). A dot marks a value that is not outside all draws of both nulls. Variables by offset are
    drawn as profiles, for all heads of a small network, else the four whose value of the first map is farthest outside
    the nulls: lines are means over test sequences, ribbons their t-intervals, the grey band and the dashed lines the
    ranges of the two nulls (permuted positions, networks at initialisation) over the heads in the panel and draws.

    Args:
        result: Result of any measure at one checkpoint, or joined along ``seed`` or ``run``.
        heads: Heads to draw in detail, as (layer, head).
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels; `attnprobe.figures.caption` returns it as text.
    """
    return sheet(result, heads, width).figure(titles, caption)


def sheet(result: xr.Dataset, heads: Sequence[Head] | None = None, width: float | str = WIDTH) -> Sheet:
    """Return the page that `figure` draws."""
    inches = width_in_inches(width)
    result = at_one_step(result)
    profiles, maps = _names(result, ("offset",)), _names(result, ())
    if not profiles and not maps:
        raise UsageError(f"no variable with an interval has axes layer, head; the result has: {listed(result)}")
    criterion = maps[0] if maps else profiles[0]

    def key(array: xr.DataArray | None) -> xr.DataArray | None:
        return array if array is None or maps else abs(array).max("offset")

    values = key(result[criterion])
    assert values is not None
    result = over_repeats(result, values, key(draws(result, criterion)))
    variables = dict.fromkeys(profiles, "layer head offset, interval, null")
    variables |= dict.fromkeys(maps, "layer head, interval, null")
    attributes = {"sequences": "a whole number", **({"n": "a whole number"} if profiles else {})}
    result = required(with_all_axes(result, variables), variables, attributes)
    values = key(result[criterion])
    assert values is not None
    text = criterion.replace("_", " ")
    choice = chosen(result, text, values, key(draws(result, criterion)), heads, most_heads("default", width))
    blocks = []
    if maps:
        columns = min(map_columns(result, inches, 3), len(maps))
        rows = -(-len(maps) // columns)
        blocks.append(Block(rows * map_height(result), lambda part: _maps(part, result, maps, choice, columns)))
    if profiles:
        entries = [*head_entries(choice), *null_entries(null_kinds(result))]
        panels = len(profiles) * len(rows_of_heads(choice))
        blocks += [
            legend_block(entries, inches, choice.text),
            Block(0.35 + 1.25 * panels, lambda part: _profiles(part, result, profiles, choice)),
        ]
    nulls = "Dots: not outside every draw of both nulls. "
    ranges = "Grey: positions permuted; dashed: networks at initialisation (ranges of {draws})."
    text = means_text(result) + (null_text(result, nulls) if maps else "")
    if profiles:
        text += choice_text(choice) + null_text(result, ranges) + CUT
    return Sheet(inches, title(result), blocks, text + undefined_text(result, [*profiles, *maps]), choice.heads)


def figure_over_steps(
    result: xr.Dataset,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw accuracy and every variable with one value per head over the checkpoints of a run.

    Args:
        result: Results of any measure, joined along ``step``.
        heads: Heads to draw in colour, as (layer, head); see `attnprobe.figures.evolution.over_steps`.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        titles: Draw the title.
        caption: Draw the caption below the panels.
    """
    return over_steps(
        result,
        {name: name.replace("_", " ") for name in _names(result, ("step",))},
        heads,
        width=width,
        titles=titles,
        caption=caption,
    )


def _names(result: xr.Dataset, axes: tuple[str, ...]) -> list[str]:
    """Return the variables over layer, head and ``axes`` that have an interval."""
    selected = {axis for axis in HEAD if axis in result.coords and axis not in result.dims}
    dims = {*HEAD, *axes} - selected
    return [
        str(name)
        for name, values in result.items()
        if set(values.dims) - {"seed", "run"} == dims and f"{name}_interval" in result
    ]


def _maps(part: SubFigure, result: xr.Dataset, names: Sequence[str], choice: Choice, columns: int) -> None:
    axes = part.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        units = result[name].attrs.get("units", "1")
        text = name.replace("_", " ") + (f" ({units})" if units not in ("1", "") else "")
        head_map(axis, result[name], draws(result, name), choice, name=text)
    for axis in axes[len(names) :]:
        axis.set_axis_off()


def _profiles(part: SubFigure, result: xr.Dataset, names: Sequence[str], choice: Choice) -> None:
    rows, shown = rows_of_heads(choice), cut(result)
    axes = part.subplots(len(names) * len(rows), 1, squeeze=False, sharex=True)[:, 0]
    for number, axis in enumerate(axes):
        name = names[number // len(rows)]
        profile(axis, shown, name, choice, rows[number % len(rows)])
        axis.set_ylabel(name.replace("_", " "))
    axes[-1].set_xlabel(label("offset"))
