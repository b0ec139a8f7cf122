"""Several pages of one result, and captions as text."""

from collections.abc import Callable, Sequence

import xarray as xr
from matplotlib.figure import Figure

from attnprobe.figures import default
from attnprobe.figures.flow import sheet as flow_sheet
from attnprobe.figures.gradients import sheet as gradients_sheet
from attnprobe.figures.interventions import sheet as interventions_sheet
from attnprobe.figures.layout import Sheet
from attnprobe.figures.positions import sheet as positions_sheet
from attnprobe.figures.proximity import sheet as proximity_sheet
from attnprobe.figures.selection import ALL, Head, all_heads, most_heads, pages_of_heads
from attnprobe.figures.style import WIDTH
from attnprobe.results import measure_of
from attnprobe.tables import FIGURES

SHEETS: dict[str, Callable[..., Sheet]] = {
    "proximity": proximity_sheet,
    "positions": positions_sheet,
    "gradients": gradients_sheet,
    "interventions": interventions_sheet,
    "flow": flow_sheet,
}
"""Functions that compose the page of a measure with its own figure."""
MOST = 64
"""Largest number of heads of a network whose heads are all drawn on further pages, unless heads are named."""


def pages(
    result: xr.Dataset,
    heads: Sequence[Head] | str | None = None,
    *,
    width: float | str = WIDTH,
    titles: bool = True,
    caption: bool = True,
) -> list[Figure]:
    """Draw a result on as many pages as its heads need, each with the overview and details of up to 8 heads.

    Args:
        result: Result of any measure at one checkpoint.
        heads: Heads to draw in detail, as (layer, head), or "all". By default, the first page is the measure's figure;
            if it does not show all heads of a network of at most 64 heads, further pages do, layer by layer.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`. Columns show up to 4 heads.
        titles: Draw the titles.
        caption: Draw the captions below the panels.

    Returns:
        The pages; one for a measure with a figure of your own (`attnprobe.tables.FIGURES`).

    Raises:
        UsageError: If the result lacks a variable or an axis, or a head is unknown.
    """
    measure = measure_of(result)
    if measure in FIGURES and measure not in SHEETS:
        return [FIGURES[measure](result)]
    compose, most = SHEETS.get(measure, default.sheet), most_heads(measure, width)
    if compose is flow_sheet:  # it has no details of heads
        return [compose(result, heads, width).figure(titles, caption)]
    groups: list[Sequence[Head] | None] = []
    if heads is None:
        groups.append(None)
        heads = "all" if ALL < len(all_heads(result)) <= MOST else ()
    groups += pages_of_heads(result, heads, most)
    return [compose(result, group, width).figure(titles, caption) for group in groups]


def caption(result: xr.Dataset, heads: Sequence[Head] | None = None) -> str:
    """Return the caption of a figure as text, for ``caption=False``.

    Args:
        result: Result of any measure at one checkpoint.
        heads: Heads that the figure draws in detail, if it was told.
    """
    return SHEETS.get(measure_of(result), default.sheet)(result, heads).caption
