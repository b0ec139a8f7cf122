"""Networks as measures see them, and the data they are measured on."""

from typing import Any

from attnprobe.errors import UsageError, listed
from attnprobe.networks.base import Network, Probe
from attnprobe.tables import NETWORKS

__all__ = ["Network", "Probe", "probe"]


def probe(of: Any) -> Probe:
    """Return what a measure is given as a `Probe`: a checkpoint with its test data, or a probe as it is."""
    if isinstance(of, Probe):
        return of
    for kind in type(of).__mro__:
        if kind.__name__ in NETWORKS:
            return NETWORKS[kind.__name__](of)
    raise UsageError(f"a {type(of).__name__} cannot be measured; valid: {listed(NETWORKS)}, Probe")
