"""Registries of measures, figures, objectives, edits, position encodings and tasks, one line per entry.

An entry is an import path ``module:name``, imported at first use, so that listing names does not import torch. To
register an object from your own code, assign it: ``MEASURES["mine"] = mine``.
"""

import ast
import inspect
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnprobe.errors import UsageError, choices


class Table(MutableMapping[str, Any]):
    """Registry of objects by name; an unknown name raises a `UsageError` that lists the valid ones.

    >>> Table("shape", {"square": "math:isqrt"})["square"](9)
    3
    """

    def __init__(self, what: str, places: dict[str, Any]) -> None:
        """Create a registry.

        Args:
            what: Noun for an entry in messages.
            places: Import path ``module:name``, or the object itself, of each entry.
        """
        self._what, self._entries = what, dict(places)

    def __getitem__(self, name: str) -> Any:
        """Return the object registered under a name."""
        entry = self._entries[self.check(name)]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return entry

    def check(self, name: Any) -> str:
        """Return a name if it is registered; raise `UsageError` otherwise."""
        if name not in self:
            raise UsageError(f"{self._what}={name!r} is unknown; {choices(name, self)}")
        return name

    def get(self, name: str, default: Any = None) -> Any:
        """Return the object registered under a name, or a default."""
        return self[name] if name in self else default

    def summary(self, name: str) -> str:
        """Return the first line of an entry's docstring, or of its module's docstring if it is not imported yet."""
        entry = self._entries[name]
        if not isinstance(entry, str):
            return (inspect.getdoc(entry) or "").partition("\n")[0]
        spec = find_spec(entry.partition(":")[0])
        source = "" if spec is None or spec.origin is None else Path(spec.origin).read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

    def __contains__(self, name: object) -> bool:
        """Return whether a name is registered, without importing the object."""
        return isinstance(name, str) and name in self._entries

    def __setitem__(self, name: str, entry: Any) -> None:
        """Register an object, or its import path, under a name."""
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        """Remove an entry."""
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)


NETWORKS = Table(
    "network",
    {
        "Checkpoint": "attnprobe.networks.transformer:of_checkpoint",
        "Module": "attnprobe.networks.torch_model:of_module",
    },
)
"""Functions that convert an object to a `Probe`, by the name of its class or of a base class."""

MEASURES = Table(
    "measure",
    {
        "proximity": "attnprobe.measures.proximity:proximity",
        "positions": "attnprobe.measures.positions:positions",
        "gradients": "attnprobe.measures.gradients:gradients",
        "interventions": "attnprobe.measures.interventions:interventions",
        "flow": "attnprobe.measures.flow:flow",
    },
)
"""Measures: functions that map a checkpoint (or a probe) and keyword arguments to a result."""

FIGURES = Table(
    "figure",
    {
        "proximity": "attnprobe.figures.proximity:proximity",
        "positions": "attnprobe.figures.positions:positions",
        "gradients": "attnprobe.figures.gradients:gradients",
        "interventions": "attnprobe.figures.interventions:interventions",
        "flow": "attnprobe.figures.flow:flow",
    },
)
"""Functions that plot a measure's result at one checkpoint, by measure; other measures get a default figure."""

FIGURES_OVER_STEPS = Table(
    "figure over steps",
    {
        "proximity": "attnprobe.figures.proximity:proximity_over_steps",
        "positions": "attnprobe.figures.positions:positions_over_steps",
        "gradients": "attnprobe.figures.gradients:gradients_over_steps",
        "interventions": "attnprobe.figures.interventions:interventions_over_steps",
        "flow": "attnprobe.figures.flow:flow_over_steps",
    },
)
"""Functions that plot a measure's results over the checkpoints of a run, by measure; others get a default figure."""

OBJECTIVES = Table(
    "objective",
    {
        "labels": "attnprobe.training.objectives:labels",
        "masked": "attnprobe.training.objectives:masked",
        "next-token": "attnprobe.training.objectives:next_token",
        "autoencoding": "attnprobe.training.objectives:autoencoding",
    },
)
"""Training objectives: instances of `attnprobe.training.objectives.Objective`."""

EDITS = Table(
    "edit",
    {
        "uniform_attention": "attnprobe.measures.edits:uniform_attention",
        "keep_toeplitz": "attnprobe.measures.edits:keep_toeplitz",
        "ablate_toeplitz": "attnprobe.measures.edits:ablate_toeplitz",
        "keep_position": "attnprobe.measures.edits:keep_position",
        "ablate_position": "attnprobe.measures.edits:ablate_position",
        "ablate_content": "attnprobe.measures.edits:ablate_content",
        "ablate_content_position": "attnprobe.measures.edits:ablate_content_position",
        "ablate_position_content": "attnprobe.measures.edits:ablate_position_content",
        "shift_positions": "attnprobe.measures.edits:shift_positions",
        "permute_positions": "attnprobe.measures.edits:permute_positions",
        "impose_proximity": "attnprobe.measures.edits:impose_proximity",
        "patch_scores": "attnprobe.measures.edits:patch_scores",
        "patch_qk": "attnprobe.measures.edits:patch_qk",
    },
)
"""Edits of scores for `interventions`: instances of `attnprobe.measures.edits.Edit`."""

POSITIONS = Table(
    "position",
    {
        "none": "attnprobe.model.position:PositionEncoding",
        "learned": "attnprobe.model.position:Learned",
        "sinusoidal": "attnprobe.model.position:Sinusoidal",
        "rotary": "attnprobe.model.position:Rotary",
        "alibi": "attnprobe.model.position:Alibi",
        "relative": "attnprobe.model.position:Relative",
    },
)
"""Position encodings: subclasses of `attnprobe.model.position.PositionEncoding`."""

TASKS = Table(
    "task",
    {
        "pairs": "attnprobe.tasks.pairs:Pairs",
        "planted": "attnprobe.tasks.planted:Planted",
        "bigrams": "attnprobe.tasks.bigrams:Bigrams",
        "digits": "attnprobe.tasks.digits:Digits",
        "mnist-5k": "attnprobe.tasks.mnist:Mnist",
        "digits-canvas": "attnprobe.tasks.canvas:DigitsCanvas",
        "mnist-canvas": "attnprobe.tasks.canvas:MnistCanvas",
        "image": "attnprobe.tasks.image:Image",
        "image-16": "attnprobe.tasks.image:Image16",
        "image-rgb": "attnprobe.tasks.image:ImageRGB",
        "text": "attnprobe.tasks.text:Text",
        "retrieval": "attnprobe.tasks.retrieval:Retrieval",
        "listops": "attnprobe.tasks.listops:ListOps",
        "pathfinder": "attnprobe.tasks.pathfinder:Pathfinder",
    },
)
"""Tasks: settings dataclasses that implement `attnprobe.tasks.source.Source`."""
