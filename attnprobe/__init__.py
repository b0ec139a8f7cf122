"""attnprobe: mechanistic analysis of attention scores and patterns.

>>> import attnprobe as ap
>>> config = ap.configure("pairs", recipe="spt", seed=0)
>>> config.stages
(('masked', 1500), ('labels', 500))

``ap.train(config)`` returns a run, ``ap.load("ckpt.pt")`` a checkpoint, ``ap.proximity(checkpoint)`` a labelled result
and ``ap.figures.proximity(result)`` its figure. ``ap.view(run)`` shows one sequence in every head, and
``ap.compare(runs)`` a measure of several runs. ``ap.statistics`` accepts queries and keys of any network. Names are
imported lazily, on first use, so that ``import attnprobe`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnprobe import demo, figures, report, statistics, sweeps
    from attnprobe.config import DataSpec, ModelConfig, TrainConfig
    from attnprobe.errors import UsageError
    from attnprobe.explore.compare import compare
    from attnprobe.explore.view import view
    from attnprobe.measures.flow import flow
    from attnprobe.measures.gradients import gradients
    from attnprobe.measures.interventions import interventions
    from attnprobe.measures.positions import positions
    from attnprobe.measures.proximity import proximity
    from attnprobe.model.pretrained import AttnprobeModel
    from attnprobe.model.transformer import Transformer
    from attnprobe.networks.torch_model import network
    from attnprobe.results import open_result, over_seeds, over_steps
    from attnprobe.sweeps import open_sweep
    from attnprobe.tables import MEASURES, TASKS
    from attnprobe.tasks import PRESETS, Split, Task, configure
    from attnprobe.training.checkpoint import Checkpoint, load
    from attnprobe.training.loop import resume, train
    from attnprobe.training.run import Run

MODULES = ("demo", "figures", "report", "statistics", "sweeps")
_HOME = {
    "AttnprobeModel": "model.pretrained",
    "Checkpoint": "training.checkpoint",
    "load": "training.checkpoint",
    "DataSpec": "config",
    "ModelConfig": "config",
    "TrainConfig": "config",
    "UsageError": "errors",
    "MEASURES": "tables",
    "compare": "explore.compare",
    "view": "explore.view",
    "flow": "measures.flow",
    "gradients": "measures.gradients",
    "interventions": "measures.interventions",
    "positions": "measures.positions",
    "proximity": "measures.proximity",
    "network": "networks.torch_model",
    "open_result": "results",
    "over_seeds": "results",
    "over_steps": "results",
    "Run": "training.run",
    "open_sweep": "sweeps",
    "PRESETS": "tasks",
    "TASKS": "tables",
    "Split": "tasks",
    "Task": "tasks",
    "configure": "tasks",
    "resume": "training.loop",
    "train": "training.loop",
    "Transformer": "model.transformer",
}

__all__ = [
    "MEASURES",
    "PRESETS",
    "TASKS",
    "AttnprobeModel",
    "Checkpoint",
    "DataSpec",
    "ModelConfig",
    "Run",
    "Split",
    "Task",
    "TrainConfig",
    "Transformer",
    "UsageError",
    "compare",
    "configure",
    "demo",
    "figures",
    "flow",
    "gradients",
    "interventions",
    "load",
    "network",
    "open_result",
    "open_sweep",
    "over_seeds",
    "over_steps",
    "positions",
    "proximity",
    "report",
    "resume",
    "statistics",
    "sweeps",
    "train",
    "view",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in MODULES:
        return import_module(f"attnprobe.{name}")
    if name not in _HOME:
        from attnprobe.errors import choices  # only if needed, so that importing the package stays fast

        raise AttributeError(f"module 'attnprobe' has no attribute {name!r}; {choices(name, __all__)}")
    return getattr(import_module(f"attnprobe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
