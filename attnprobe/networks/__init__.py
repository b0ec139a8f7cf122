"""Network interface of the measures, and probes: a network with the data that it is measured on."""

from typing import Any

from attnprobe.errors import UsageError, listed
from attnprobe.networks.base import Network, Probe
from attnprobe.tables import NETWORKS

__all__ = ["Network", "Probe", "probe"]


def probe(of: Any) -> Probe:
    """Convert the argument of a measure to a `Probe`: a checkpoint with its test data; a probe is returned as is."""
    if isinstance(of, Probe):
        return of
    for kind in type(of).__mro__:
        if kind.__name__ in NETWORKS:
            return NETWORKS[kind.__name__](of)
    raise UsageError(f"a {type(of).__name__} cannot be measured; valid: {listed(NETWORKS)}, Probe")
