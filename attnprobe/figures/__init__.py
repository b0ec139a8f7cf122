"""Figures: functions from a result to a figure. One file a measure, and one line in each table."""

from collections.abc import Callable

import xarray as xr
from matplotlib.figure import Figure

from attnprobe.figures.proximity import proximity, proximity_over_steps

__all__ = ["FIGURES", "OVER_STEPS", "proximity", "proximity_over_steps"]

FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "proximity": proximity,
}
"""Drawn for each checkpoint."""

OVER_STEPS: dict[str, Callable[[xr.Dataset], Figure]] = {
    "proximity": proximity_over_steps,
}
"""Drawn for each run, from results joined along ``step``."""
