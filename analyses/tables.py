"""From runs to labelled arrays: what the analyses do alike between training and drawing."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from settings import source_of

from attnprobe.results import variable
from attnprobe.statistics.seeds import mean_interval, ratio_interval
from attnprobe.tasks import chance
from attnprobe.training.run import Run

BOUNDS = ["lower", "upper"]


def accuracies(runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]]) -> dict[str, xr.Variable]:
    """Return the accuracies at the end of runs, whose keys are their places along the axes."""
    return {
        f"{split}_accuracy": variable(
            tuple(axes), _filled(runs, axes, split), f"{split} accuracy", "1", "of the labels, after the last step"
        )
        for split in ("train", "test")
    }


def _filled(runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]], split: str) -> np.ndarray:
    found = np.empty([len(values) for values in axes.values()])
    for place in np.ndindex(found.shape):
        key = tuple(values[i] for values, i in zip(axes.values(), place, strict=True))
        found[place] = runs[key].metrics[-1][f"{split}_accuracy"]
    return found


def outcome(run: Run) -> tuple[float, float]:
    """Return by what a run of a search is ranked: validation accuracy at the end, then minus validation loss."""
    last = run.metrics[-1]
    return last["validation_accuracy"], -last["validation_loss"]


def chances(tasks: Sequence[str]) -> dict[str, xr.Variable]:
    """Return the accuracy of guessing the commonest label on each task."""
    return {"chance": variable(("task",), [chance(source_of(task)) for task in tasks], "accuracy of guessing", "1")}


def gained(accuracy: xr.DataArray) -> xr.DataArray:
    """Return what SPT gains over labels alone."""
    return accuracy.sel(recipe="spt", drop=True) - accuracy.sel(recipe="supervised", drop=True)


def effect(name: str, values: xr.DataArray, long_name: str, units: str = "1") -> dict[str, xr.Variable]:
    """Return the mean over seeds of a paired difference, and its Student interval, as NAME and NAME_interval."""
    rest = [str(axis) for axis in values.dims if axis != "seed"]
    flat = values.transpose(*rest, "seed").values
    shape = flat.shape[:-1]
    found = np.array([mean_interval(one) for one in flat.reshape(-1, flat.shape[-1])]).reshape(*shape, 3)
    method = "mean over paired seeds"
    return {
        name: variable(rest, found[..., 0], long_name, units, method),
        f"{name}_interval": variable((*rest, "bound"), found[..., 1:], f"95 % interval: {long_name}", units, "Student"),
    }


def at(result: xr.Dataset, name: str, **place: Any) -> tuple[float, float, float]:
    """Return a mean of a result and the ends of its interval."""
    low, high = result[f"{name}_interval"].sel(place).values
    return float(result[name].sel(place)), float(low), float(high)


def shares(accuracy: xr.DataArray, low: str, high: str) -> dict[str, xr.Variable]:
    """Return each arm's share of the gap between two arms, (arm - low) / (high - low), with Fieller's interval.

    And the gap itself, without which a share means nothing, with Student's.
    """
    tasks, arms = list(accuracy["task"].values), list(accuracy["arm"].values)
    found = np.empty((len(tasks), len(arms), 3))
    for i, task in enumerate(tasks):
        base = accuracy.sel(task=task, arm=low)
        for j, arm in enumerate(arms):
            gained, gap = accuracy.sel(task=task, arm=arm) - base, accuracy.sel(task=task, arm=high) - base
            found[i, j] = ratio_interval(gained, gap)
    long_name = f"share of the gap between {low} and {high}"
    gap = accuracy.sel(arm=high, drop=True) - accuracy.sel(arm=low, drop=True)
    return effect("gap", gap, f"test accuracy of {high} minus {low}") | {
        "share": variable(("task", "arm"), found[..., 0], long_name, "1", "ratio of means over paired seeds"),
        "share_interval": variable(
            ("task", "arm", "bound"), found[..., 1:], f"95 % interval: {long_name}", "1", "Fieller"
        ),
    }
