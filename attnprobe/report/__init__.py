"""From a checkpoint or a run to files and pages; the parts are imported when they are first used."""

from importlib import import_module
from types import ModuleType

PARTS = ("page", "rows", "write")


def __getattr__(name: str) -> ModuleType:
    """Return a part."""
    if name in PARTS:
        return import_module(f"attnprobe.report.{name}")
    raise AttributeError(f"module 'attnprobe.report' has no attribute {name!r}; it has {', '.join(PARTS)}")
