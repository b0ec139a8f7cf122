"""Proximity contrast of the most proximal head (near minus far keys), measured in the runs of several claims."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from lab import Asked, Lab

from attnprobe.results import most_proximal, own_prefix, variable
from attnprobe.training.run import Run

SEQUENCES = 128
"""Number of test sequences of a measure."""
NULLS = 2
"""Draws of each null, each on all sequences; only their mean is used."""
WANTED = tuple(f"{view}proximity_contrast{null}" for view in ("", "grid_") for null in ("", "_null"))
UNITS = "std of the score"


def asked(run: Run, step: int, shuffled: bool = False) -> Asked:
    """Return the request for a checkpoint's proximity contrast (in pixels on images) and its nulls.

    On shuffled sequences, similar content of near tokens cannot cause a contrast.
    """
    return Asked(run, step, "proximity", WANTED, {"sequences": SEQUENCES, "nulls": NULLS}, shuffled)


def largest(result: xr.Dataset) -> tuple[float, float]:
    """Return the largest contrast over heads, and the largest contrast of the same scores with positions permuted.

    Taking the maximum of the null as well makes both include the selection of a head.
    """
    name = f"{own_prefix(result)}proximity_contrast"
    null = result[f"{name}_null"].sel(null="permuted")
    return float(result[name].isel(most_proximal(result))), float(null.max(("layer", "head")).mean())


def at_the_end(
    lab: Lab, runs: Mapping[Hashable, Run], axes: Mapping[str, Sequence[Any]], shuffled: bool = False
) -> dict[str, xr.Variable]:
    """Return the contrast after the last step of each run, and its null; NaN if a run is missing.

    The key of a run holds its coordinates along the axes.
    """
    measured = lab.measure({key: asked(run, run.config.steps, shuffled) for key, run in runs.items()})
    contrasts = np.full((2, *map(len, axes.values())), np.nan)
    for index in np.ndindex(contrasts.shape[1:]):
        key = tuple(values[i] for values, i in zip(axes.values(), index, strict=True))
        if key in measured:
            contrasts[(slice(None), *index)] = largest(measured[key])
    long_name = "proximity contrast of the most proximal head at the end"
    return {
        "contrast": variable(tuple(axes), contrasts[0], long_name, UNITS, f"{SEQUENCES} test sequences"),
        "contrast_null": variable(
            tuple(axes), contrasts[1], f"{long_name}, positions permuted", UNITS, "mean over draws"
        ),
    }
