"""Plotting helpers shared by the analyses: seeds as dots, means with intervals."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from attnprobe.figures.style import COLOURS
from attnprobe.statistics.seeds import mean_interval

RECIPES = {"supervised": "supervised only", "spt": "SPT, then supervised"}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def mark(number: int) -> dict[str, Any]:
    """Return colour and marker of the n-th arm; both differ, so that arms are distinguishable in greyscale."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}


def seeds(
    axis: Axes,
    place: float,
    values: xr.DataArray,
    number: int,
    *,
    upright: bool = True,
    filled: bool = True,
    label: str | None = None,
) -> None:
    """Draw one arm at a position on the axis: a small dot per seed, and the mean with its t-interval."""
    style, finite = mark(number), values.values[np.isfinite(values.values)]
    spread = place + 0.08 * np.linspace(-1, 1, len(finite)) if len(finite) > 1 else np.array([place])
    points = (spread, finite) if upright else (finite, spread)
    axis.scatter(*points, s=5, alpha=0.45, linewidths=0, color=style["color"])
    if len(finite):
        mean, low, high = mean_interval(finite)
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        centre = (place, mean) if upright else (mean, place)
        bars = {"yerr" if upright else "xerr": error} | ({} if filled else {"markerfacecolor": "white"})
        axis.errorbar(*centre, **bars, **style, markersize=3.6, linestyle="none", elinewidth=0.9, label=label)


def course(axis: Axes, places: np.ndarray, values: xr.DataArray, number: int, label: str, **line: Any) -> None:
    """Draw an arm as a line: means over seeds (second axis of the values) with a band of their t-intervals."""
    style = mark(number) | {"linestyle": ["-", (0, (4, 1)), (0, (1, 0.8)), (0, (4, 1, 1, 1))][number % 4]} | line
    means, low, high = np.array([mean_interval(row[np.isfinite(row)]) for row in values.values]).T
    axis.plot(places, means, markersize=3, linewidth=1, label=label, **style)
    axis.fill_between(places, low, high, color=style["color"], alpha=0.18, linewidth=0)
