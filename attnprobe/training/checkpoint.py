"""Checkpoints: self-describing files of plain types and tensors."""

import dataclasses
import html
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnprobe import tasks
from attnprobe.config import DataSpec, TrainConfig, from_plain
from attnprobe.errors import UsageError, listed
from attnprobe.files import atomic_path
from attnprobe.former_names import current_settings
from attnprobe.provenance import provenance
from attnprobe.tables import OBJECTIVES

if TYPE_CHECKING:
    from attnprobe.model.transformer import Transformer

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one step: network, optimiser, settings, metrics and provenance.

    No random-generator state is stored: every draw of a run is a function of seed and step (see
    `attnprobe.randomness`).
    """

    config: TrainConfig
    data: DataSpec
    weights: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    step: int
    objective: str
    """Objective of the stage that contains the step."""
    metrics: list[dict[str, Any]]
    """Metrics up to this step, as in ``metrics.jsonl``."""
    fingerprint: str
    """Fingerprint of the task's data."""
    provenance: dict[str, Any] = dataclasses.field(default_factory=provenance)
    path: Path | None = None
    """File that the checkpoint was loaded from."""

    @cached_property
    def model(self) -> "Transformer":
        """The network with these weights, in evaluation mode."""
        from attnprobe.model.transformer import Transformer

        model = Transformer(self.config.model, self.data, self.config.seed)
        self._load_weights(model)
        return model.eval()

    def _load_weights(self, model: "Transformer") -> None:
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UsageError(f"{self.path}: weights do not fit: {' '.join(str(error).split())}") from error

    @cached_property
    def task(self) -> tasks.Task:
        """The task's data, rebuilt and checked against the fingerprint of the training data."""
        task = tasks.build(self.config, self.data)
        if task.fingerprint != self.fingerprint:
            fingerprints = f"fingerprint {task.fingerprint}, expected {self.fingerprint}"
            raise UsageError(f"{self.path}: task {task.name} no longer generates this run's data ({fingerprints})")
        return task

    def tokens(self, sequences: int) -> torch.Tensor:
        """Return the inputs of the first ``sequences`` test sequences, as a tensor for the network.

        The axes are [batch, token], or [batch, token, channel] for data with several channels.
        """
        return self.task.test.tensor(slice(sequences))

    @property
    def last_metrics(self) -> dict[str, Any]:
        """The metrics at this checkpoint's step, or else the latest before it; empty if there are none."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def title(self) -> str:
        """Task, recipe, seed, step and accuracies, as a title for figures and tables."""
        parts = [
            f"{tasks.short_name(self.config.task)}, {self.config.recipe}, seed {self.config.seed}, step {self.step}"
        ]
        last = self.last_metrics
        if last.get("test_accuracy") is not None:
            noun = OBJECTIVES[last["objective"]].noun
            accuracies = ((name, last.get(f"{name}_accuracy")) for name in ("train", "test"))
            shown = ", ".join(f"{value:.3f} {name}" for name, value in accuracies if value is not None)
            parts.append(f"{noun} accuracy {shown}")
        return "; ".join(parts)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return everything except the tensors, grouped into sections; long lists are shortened to their lengths."""
        config = dataclasses.asdict(self.config)
        network = config.pop("model")
        size = sum(weight.numel() for weight in self.weights.values())
        return {
            "checkpoint": {"file": str(self.path), "step": self.step, "objective": self.objective, "parameters": size},
            "metrics": {name: _shortened(value) for name, value in self.last_metrics.items()},
            "data": {
                **{name: _shortened(value, name) for name, value in dataclasses.asdict(self.data).items()},
                "fingerprint": self.fingerprint,
            },
            "model": network,
            "training": config,
            "provenance": self.provenance,
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        fields = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "data": dataclasses.asdict(self.data),
            "weights": self.weights,
            "optimiser": self.optimiser,
            "step": self.step,
            "objective": self.objective,
            "metrics": self.metrics,
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
        }
        with atomic_path(path) as part:
            torch.save(fields, part)

    def to_safetensors(self, path: str | Path) -> None:
        """Write the weights to a safetensors file atomically, with metadata that says what they are.

        Names of the weights are those of ``model.state_dict()``. Metadata are strings: ``config``, ``data`` and
        ``provenance`` are JSON; ``step``, ``objective`` and ``fingerprint`` are as in the checkpoint. Optimiser and
        metrics are omitted.

        Raises:
            UsageError: If the file cannot be written.
        """
        from safetensors.torch import save_file

        path = Path(path)
        facts = {"config": dataclasses.asdict(self.config), "data": dataclasses.asdict(self.data), **self._origin()}
        metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                weights = {name: weight.contiguous() for name, weight in self.weights.items()}
                save_file(weights, part, {"format": "pt", **metadata})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as a Hugging Face model, ``config.json`` and ``model.safetensors``, to a folder.

        ``attnprobe.AttnprobeModel.from_pretrained(folder)`` loads the model, and so does ``transformers.AutoModel``
        after ``import attnprobe.model.pretrained``. The configuration holds the training settings and the provenance,
        which includes the command line.

        Raises:
            UsageError: If the folder cannot be written.
        """
        from attnprobe.model.pretrained import AttnprobeModel, configuration, save

        training = dataclasses.asdict(self.config)
        del training["model"]  # the configuration has it already
        model = AttnprobeModel(configuration(self.config.model, self.data, {"training": training, **self._origin()}))
        self._load_weights(model.network)
        with _writing(folder):
            save(model, Path(folder))

    def _origin(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "objective": self.objective,
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        """Return title and path, without the weights."""
        return f"Checkpoint({self.title!r}, path={str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the description as HTML for Jupyter, one table per section."""
        tables = []
        for section, entries in self.describe().items():
            rows = "".join(
                f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
                for name, value in entries.items()
            )
            state = " open" if section in {"checkpoint", "metrics"} else ""
            tables.append(f"<details{state}><summary><b>{section}</b></summary><table>{rows}</table></details>")
        return f"<div><b>attnprobe.Checkpoint</b> {html.escape(self.title)}{''.join(tables)}</div>"


SHOWN = 20
"""Number of entries above which descriptions shorten a list."""


def _shortened(value: Any, noun: str = "values") -> Any:
    is_long = isinstance(value, list | tuple) and len(value) > SHOWN
    return f"{len(value):,} {noun.replace('_', ' ')}" if is_long else value


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Turn an error of the file system into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


KINDS: dict[str, type] = {
    "format": int,
    "config": dict,
    "data": dict,
    "weights": dict,
    "optimiser": dict,
    "step": int,
    "objective": str,
    "metrics": list,
    "fingerprint": str,
    "provenance": dict,
}
"""Entries of a checkpoint file, with their types."""


def load(path: str | Path) -> Checkpoint:
    """Load a checkpoint. No code in the file is executed.

    Args:
        path: A checkpoint file (``RUN/checkpoints/step-*.pt`` or ``RUN/latest.pt``).

    Raises:
        UsageError: If the file does not exist, is not a valid checkpoint (for example truncated or malicious), was
            written by a newer attnprobe, or has unknown or missing entries, which the message names.
    """
    path = Path(path)
    if not path.is_file():
        available = listed(sorted(file.name for file in path.parent.glob("step-*.pt")))
        missing = f"no such file{available and f'; available: {available}'}"
        raise UsageError(f"{path}: {'is a folder, not a checkpoint' if path.is_dir() else missing}")
    if path.suffix == ".nc":
        raise UsageError(f"{path}: a result, not a checkpoint; open it with attnprobe.open_result")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a foreign pickle before rejecting it
            fields = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception in torch.load
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UsageError(f"{path}: not an attnprobe checkpoint, or damaged ({reason})") from error
    if not isinstance(fields, dict) or "format" not in fields:
        raise UsageError(f"{path}: not an attnprobe checkpoint (no format version)")
    version = fields["format"]
    if version != FORMAT:
        advice = "; upgrade attnprobe" if isinstance(version, int) and version > FORMAT else ""
        raise UsageError(f"{path}: checkpoint format {version}; this attnprobe reads format {FORMAT}{advice}")
    if set(fields) != set(KINDS):
        unknown, missing = (
            listed(sorted(names)) or "none" for names in (set(fields) - set(KINDS), set(KINDS) - set(fields))
        )
        raise UsageError(f"{path}: unknown entries: {unknown}; missing: {missing}")
    for name, kind in KINDS.items():
        if not isinstance(fields[name], kind):
            raise UsageError(f"{path}: {name} has type {type(fields[name]).__name__}, not {kind.__name__}")
    if not all(isinstance(weight, torch.Tensor) for weight in fields["weights"].values()):
        raise UsageError(f"{path}: weights contain a value that is not a tensor")
    if not all(isinstance(row, dict) for row in fields["metrics"]):
        raise UsageError(f"{path}: metrics contain a row that is not a dict")
    if fields["objective"] not in OBJECTIVES:
        raise UsageError(f"{path}: objective={fields['objective']!r} is unknown; valid: {listed(OBJECTIVES)}")
    fields.pop("format")
    fields["config"] = from_plain(TrainConfig, fields["config"], str(path))
    fields["metrics"] = [current_settings(row) for row in fields["metrics"]]
    fields["data"] = from_plain(DataSpec, fields["data"], str(path))
    return Checkpoint(**fields, path=path)
