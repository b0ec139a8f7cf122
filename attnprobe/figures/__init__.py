"""Figures: functions from a result to a figure. One file a measure, and one line in each table."""

from collections.abc import Callable

import xarray as xr
from matplotlib.figure import Figure

from attnprobe.figures.gradients import gradients, gradients_over_steps
from attnprobe.figures.interventions import interventions, interventions_over_steps
from attnprobe.figures.positions import positions, positions_over_steps
from attnprobe.figures.proximity import proximity, proximity_over_steps

__all__ = [
    "FIGURES",
    "OVER_STEPS",
    "gradients",
    "gradients_over_steps",
    "positions",
    "positions_over_steps",
    "proximity",
    "proximity_over_steps",
]

FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "proximity": proximity,
    "positions": positions,
    "gradients": gradients,
    "interventions": interventions,
}
"""Drawn for each checkpoint."""

OVER_STEPS: dict[str, Callable[[xr.Dataset], Figure]] = {
    "proximity": proximity_over_steps,
    "positions": positions_over_steps,
    "gradients": gradients_over_steps,
    "interventions": interventions_over_steps,
}
"""Drawn for each run, from results joined along ``step``."""
