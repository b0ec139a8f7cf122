"""Figures of results.

Each measure has one file with a figure of one checkpoint and a figure of a run. Measures without one use the default.
The figure of a checkpoint is one page of at most 9 inches: layer x head maps, then details of up to 8 heads.
"""

import xarray as xr
from matplotlib.figure import Figure

from attnprobe.figures import default
from attnprobe.figures.animation import animate
from attnprobe.figures.flow import flow, flow_over_steps
from attnprobe.figures.gradients import gradients, gradients_over_steps
from attnprobe.figures.interventions import interventions, interventions_over_steps
from attnprobe.figures.pages import caption, pages
from attnprobe.figures.positions import positions, positions_over_steps
from attnprobe.figures.proximity import proximity, proximity_over_steps
from attnprobe.figures.single import by_offset, head_map
from attnprobe.results import measure_of
from attnprobe.tables import FIGURES, FIGURES_OVER_STEPS

__all__ = [
    "animate",
    "by_offset",
    "caption",
    "draw",
    "draw_over_steps",
    "flow",
    "flow_over_steps",
    "gradients",
    "gradients_over_steps",
    "head_map",
    "interventions",
    "interventions_over_steps",
    "pages",
    "positions",
    "positions_over_steps",
    "proximity",
    "proximity_over_steps",
]


def draw(result: xr.Dataset) -> Figure:
    """Draw the result of a measure at one checkpoint.

    Args:
        result: Result of any measure, computed or opened from a file.

    Returns:
        The measure's own figure, or the default figure if the measure has none.

    Raises:
        UsageError: If the result lacks what the figure needs, or has it in another form.
    """
    measure = measure_of(result)
    return (FIGURES[measure] if measure in FIGURES else default.figure)(result)


def draw_over_steps(result: xr.Dataset) -> Figure:
    """Draw the results of a measure over the checkpoints of a run.

    Args:
        result: Results of any measure, joined along ``step``.

    Returns:
        The measure's own figure over steps, or the default one if the measure has none.

    Raises:
        UsageError: If the results lack what the figure needs, or have it in another form.
    """
    measure = measure_of(result)
    return (FIGURES_OVER_STEPS[measure] if measure in FIGURES_OVER_STEPS else default.figure_over_steps)(result)
