"""Labelled arrays computed from runs: accuracies, effects, and fractions of a gap."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
import xarray as xr
from settings import source_of

from attnprobe.results import variable
from attnprobe.statistics.seeds import mean_interval, ratio_interval
from attnprobe.tasks import chance
from attnprobe.training.run import Run

BOUNDS = ["lower", "upper"]


def accuracies(runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]]) -> dict[str, xr.Variable]:
    """Return the accuracies at the end of each run; the key of a run holds its coordinates along the axes."""
    return {
        f"{split}_accuracy": variable(
            tuple(axes), _filled(runs, axes, split), f"{split} accuracy", "1", "label prediction, after the last step"
        )
        for split in ("train", "test")
    }


def _filled(runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]], split: str) -> np.ndarray:
    accuracies = np.empty([len(values) for values in axes.values()])
    for index in np.ndindex(accuracies.shape):
        key = tuple(values[i] for values, i in zip(axes.values(), index, strict=True))
        accuracies[index] = runs[key].metrics[-1][f"{split}_accuracy"]
    return accuracies


def outcome(run: Run) -> tuple[float, float]:
    """Return the ranking key of a search run: final validation accuracy, then negative validation loss."""
    last = run.metrics[-1]
    return last["validation_accuracy"], -last["validation_loss"]


def chances(tasks: Sequence[str]) -> dict[str, xr.Variable]:
    """Return, for each task, the accuracy of always guessing the most common label."""
    return {"chance": variable(("task",), [chance(source_of(task)) for task in tasks], "accuracy of guessing", "1")}


def gained(accuracy: xr.DataArray) -> xr.DataArray:
    """Return the gain of SPT over supervised training."""
    return accuracy.sel(recipe="spt", drop=True) - accuracy.sel(recipe="supervised", drop=True)


def logit(accuracy: xr.DataArray, sequences: int) -> xr.DataArray:
    """Return the logit of accuracies, kept half a sequence away from 0 and 1."""
    half = 0.5 / sequences
    return xr.apply_ufunc(scipy.special.logit, accuracy.clip(half, 1 - half))


def detectable(differences: xr.DataArray, power: float = 0.8, level: float = 0.05) -> float:
    """Return the mean difference that a two-sided t-test of as many seeds finds with this probability.

    The differences are assumed normal, with the standard deviation of these: t^2 then has a noncentral F-distribution
    (Cohen 1988).
    """
    count = differences.sizes["seed"]
    bound = scipy.stats.f.ppf(1 - level, 1, count - 1)

    def excess(shift: float) -> float:
        return power - scipy.stats.ncf.sf(bound, 1, count - 1, shift**2)

    shift = scipy.optimize.brentq(excess, 0.1, 50.0)
    return float(shift * differences.std("seed", ddof=1) / np.sqrt(count))


def effect(name: str, values: xr.DataArray, long_name: str, units: str = "1") -> dict[str, xr.Variable]:
    """Return the mean over seeds of a paired difference and its t-interval, as NAME and NAME_interval."""
    rest = [str(axis) for axis in values.dims if axis != "seed"]
    by_seed = values.transpose(*rest, "seed").values
    shape = by_seed.shape[:-1]
    intervals = np.array([mean_interval(row) for row in by_seed.reshape(-1, by_seed.shape[-1])]).reshape(*shape, 3)
    method = "mean over paired seeds"
    return {
        name: variable(rest, intervals[..., 0], long_name, units, method),
        f"{name}_interval": variable(
            (*rest, "bound"), intervals[..., 1:], f"95 % interval: {long_name}", units, "t-interval"
        ),
    }


def at(result: xr.Dataset, name: str, **place: Any) -> tuple[float, float, float]:
    """Return a mean of a result, and the lower and upper end of its interval."""
    low, high = result[f"{name}_interval"].sel(place).values
    return float(result[name].sel(place)), float(low), float(high)


def shares(accuracy: xr.DataArray, low: str, high: str) -> dict[str, xr.Variable]:
    """Return each arm's fraction of the gap between two arms, (arm - low) / (high - low), with Fieller's interval.

    The gap itself is included, with its t-interval, since a fraction is meaningless without it.
    """
    tasks, arms = list(accuracy["task"].values), list(accuracy["arm"].values)
    ratios = np.empty((len(tasks), len(arms), 3))
    for i, task in enumerate(tasks):
        base = accuracy.sel(task=task, arm=low)
        for j, arm in enumerate(arms):
            gain, gap = accuracy.sel(task=task, arm=arm) - base, accuracy.sel(task=task, arm=high) - base
            ratios[i, j] = ratio_interval(gain, gap)
    long_name = f"fraction of the gap between {low} and {high}"
    gap = accuracy.sel(arm=high, drop=True) - accuracy.sel(arm=low, drop=True)
    return effect("gap", gap, f"test accuracy of {high} minus {low}") | {
        "share": variable(("task", "arm"), ratios[..., 0], long_name, "1", "ratio of means over paired seeds"),
        "share_interval": variable(
            ("task", "arm", "bound"), ratios[..., 1:], f"95 % interval: {long_name}", "1", "Fieller"
        ),
    }
