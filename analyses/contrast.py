"""How much scores prefer near keys, in the runs of several claims: the proximity contrast of the most proximal head."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from lab import Asked, Lab

from attnprobe.results import most_proximal, own_prefix, variable
from attnprobe.training.run import Run

SEQUENCES = 128
"""Test sequences of a measure."""
NULLS = 2
"""Draws of each null, each on all sequences: what is used of them is their mean."""
WANTED = tuple(f"{view}proximity_contrast{null}" for view in ("", "grid_") for null in ("", "_null"))
UNITS = "std of the score"


def asked(run: Run, step: int) -> Asked:
    """Return what is asked of a checkpoint: near minus far keys, in pixels on images, beside its nulls."""
    return Asked(run, step, "proximity", WANTED, {"sequences": SEQUENCES, "nulls": NULLS})


def largest(result: xr.Dataset) -> tuple[float, float]:
    """Return the largest contrast over heads, and that of the same scores with positions permuted.

    The largest one of the null too, so that picking a head costs both as much.
    """
    name = f"{own_prefix(result)}proximity_contrast"
    null = result[f"{name}_null"].sel(null="permuted")
    return float(result[name].isel(most_proximal(result))), float(null.max(("layer", "head")).mean())


def at_the_end(lab: Lab, runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]]) -> dict[str, xr.Variable]:
    """Return the contrast after the last step of runs, whose keys are their places along the axes, and its null.

    NaN where there is no run.
    """
    measured = lab.measure({key: asked(run, run.config.steps) for key, run in runs.items()})
    found = np.full((2, *map(len, axes.values())), np.nan)
    for place in np.ndindex(found.shape[1:]):
        key = tuple(values[i] for values, i in zip(axes.values(), place, strict=True))
        if key in measured:
            found[(slice(None), *place)] = largest(measured[key])
    about = "proximity contrast of the most proximal head at the end"
    return {
        "contrast": variable(tuple(axes), found[0], about, UNITS, f"{SEQUENCES} test sequences"),
        "contrast_null": variable(tuple(axes), found[1], f"{about}, positions permuted", UNITS, "mean over draws"),
    }
