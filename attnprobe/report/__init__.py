"""Write results, figures and reports of a checkpoint or a run. Submodules are imported at first use."""

from importlib import import_module
from types import ModuleType

PARTS = ("page", "rows", "write")


def __getattr__(name: str) -> ModuleType:
    """Import and return a submodule."""
    if name in PARTS:
        return import_module(f"attnprobe.report.{name}")
    raise AttributeError(f"module 'attnprobe.report' has no attribute {name!r}; valid: {', '.join(PARTS)}")
