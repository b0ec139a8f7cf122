"""Measures: functions from a checkpoint to a labelled result. One file each, and one line in `MEASURES`.

A measure takes the checkpoint and keywords with defaults, which become the flags of its command. Importing this module
must stay cheap, since the command line reads signatures from it; measures import torch and xarray where they run.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnprobe.measures.gradients import gradients
from attnprobe.measures.interventions import interventions
from attnprobe.measures.positions import positions
from attnprobe.measures.proximity import proximity

if TYPE_CHECKING:
    import xarray as xr

MEASURES: "dict[str, Callable[..., xr.Dataset]]" = {
    "proximity": proximity,
    "positions": positions,
    "gradients": gradients,
    "interventions": interventions,
}
