"""Network interface of the measures, and probes: a network with the data that it is measured on."""

from pathlib import Path
from typing import Any

from attnprobe.errors import UsageError, listed
from attnprobe.networks.base import Network, Probe
from attnprobe.tables import NETWORKS
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run

__all__ = ["Network", "Probe", "probe"]


def probe(of: Any, inputs: Any = None) -> Probe:
    """Convert the arguments of a measure to a `Probe`.

    Accepts a checkpoint or its path (measured on its test data), any PyTorch model with ``inputs``, or a probe, which
    is returned unchanged. A run is refused: its checkpoints are measured one by one.
    """
    if inputs is not None:
        from attnprobe.networks.torch_model import network  # checkpoints do not need it

        return network(of, inputs)
    if isinstance(of, Probe):
        return of
    if isinstance(of, str | Path):
        of = load(of)
    if isinstance(of, Run):
        steps = listed(of.steps)
        raise UsageError(f"{of.folder}: measure one checkpoint of the run, run.at(STEP); steps: {steps}")
    for kind in type(of).__mro__:
        if kind.__name__ in NETWORKS:
            return NETWORKS[kind.__name__](of)
    raise UsageError(
        f"a {type(of).__name__} cannot be measured; valid: {listed(NETWORKS)}, Probe, the path of a checkpoint"
    )
