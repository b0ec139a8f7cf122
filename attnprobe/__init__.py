"""attnprobe: what did the query-key scores learn?

>>> import attnprobe as ap
>>> config = ap.configure("pairs", recipe="spt", seed=0)
>>> config.stages
(('masked', 1500), ('labels', 500))

``ap.train(config)`` returns a run, ``ap.load("ckpt.pt")`` a checkpoint, ``ap.proximity(checkpoint)`` a labelled result
and ``ap.figures.proximity(result)`` its figure; ``ap.statistics`` takes queries and keys of any network.
Names are imported when they are first used, so that ``import attnprobe`` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnprobe import figures, statistics
    from attnprobe.checkpoint import Checkpoint, load
    from attnprobe.config import DataSpec, ModelConfig, TrainConfig
    from attnprobe.errors import UsageError
    from attnprobe.measures import MEASURES
    from attnprobe.measures.gradients import gradients
    from attnprobe.measures.interventions import interventions
    from attnprobe.measures.positions import positions
    from attnprobe.measures.proximity import proximity
    from attnprobe.results import open_result, over_steps
    from attnprobe.run import Run
    from attnprobe.sweeps import open_sweep
    from attnprobe.tasks import PRESETS, TASKS, Split, Task, configure
    from attnprobe.training import resume, train
    from attnprobe.transformer import Transformer

_HOME = {
    "Checkpoint": "checkpoint",
    "load": "checkpoint",
    "DataSpec": "config",
    "ModelConfig": "config",
    "TrainConfig": "config",
    "UsageError": "errors",
    "MEASURES": "measures",
    "gradients": "measures.gradients",
    "interventions": "measures.interventions",
    "positions": "measures.positions",
    "proximity": "measures.proximity",
    "open_result": "results",
    "over_steps": "results",
    "Run": "run",
    "open_sweep": "sweeps",
    "PRESETS": "tasks",
    "TASKS": "tasks",
    "Split": "tasks",
    "Task": "tasks",
    "configure": "tasks",
    "resume": "training",
    "train": "training",
    "Transformer": "transformer",
}

__all__ = [
    "MEASURES",
    "PRESETS",
    "TASKS",
    "Checkpoint",
    "DataSpec",
    "ModelConfig",
    "Run",
    "Split",
    "Task",
    "TrainConfig",
    "Transformer",
    "UsageError",
    "configure",
    "figures",
    "gradients",
    "interventions",
    "load",
    "open_result",
    "open_sweep",
    "over_steps",
    "positions",
    "proximity",
    "resume",
    "statistics",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in ("figures", "statistics"):
        return import_module(f"attnprobe.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'attnprobe' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"attnprobe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
