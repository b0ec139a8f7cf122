"""What several figures of the analyses draw: seeds as dots, and their means with intervals."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from attnprobe.figures.style import COLOURS
from attnprobe.statistics.seeds import mean_interval

RECIPES = {"supervised": "supervised only", "spt": "SPT, then supervised"}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def mark(number: int) -> dict[str, Any]:
    """Return colour and marker of the n-th arm: both change, so that arms stay apart in greyscale."""
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
    """Draw one arm at a place: a small dot for each seed, and the mean with its Student interval."""
    drawn, known = mark(number), values.values[np.isfinite(values.values)]
    spread = place + 0.08 * np.linspace(-1, 1, len(known)) if len(known) > 1 else np.array([place])
    points = (spread, known) if upright else (known, spread)
    axis.scatter(*points, s=5, alpha=0.45, linewidths=0, color=drawn["color"])
    if len(known):
        mean, low, high = mean_interval(known)
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        where = (place, mean) if upright else (mean, place)
        bars = {"yerr" if upright else "xerr": error} | ({} if filled else {"markerfacecolor": "white"})
        axis.errorbar(*where, **bars, **drawn, markersize=3.6, linestyle="none", elinewidth=0.9, label=label)


def course(axis: Axes, places: np.ndarray, values: xr.DataArray, number: int, label: str, **line: Any) -> None:
    """Draw an arm over places (the first axis of the values): means over the second with a band of their intervals."""
    drawn = mark(number) | {"linestyle": ["-", (0, (4, 1)), (0, (1, 0.8)), (0, (4, 1, 1, 1))][number % 4]} | line
    means, low, high = np.array([mean_interval(one[np.isfinite(one)]) for one in values.values]).T
    axis.plot(places, means, markersize=3, linewidth=1, label=label, **drawn)
    axis.fill_between(places, low, high, color=drawn["color"], alpha=0.18, linewidth=0)
