"""Checkpoints: one file of plain types and tensors that explains itself."""

import dataclasses
import html
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnprobe import tasks
from attnprobe.config import DataSpec, TrainConfig, from_plain
from attnprobe.errors import UsageError, listed
from attnprobe.files import whole
from attnprobe.former_names import current_settings
from attnprobe.provenance import provenance
from attnprobe.tables import OBJECTIVES

if TYPE_CHECKING:
    from attnprobe.model.transformer import Transformer

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one step: network, optimiser, and how it came about.

    There is no state of a random generator in it: every draw of a run is a function of the seed and the step (see
    `attnprobe.randomness`), so that seed and step are that state.
    """

    config: TrainConfig
    data: DataSpec
    weights: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    step: int
    objective: str
    """The objective of the stage that the step belongs to."""
    metrics: list[dict[str, Any]]
    """The run's metrics so far, as in ``metrics.jsonl``."""
    fingerprint: str
    """Fingerprint of the task's data."""
    provenance: dict[str, Any] = dataclasses.field(default_factory=provenance)
    path: Path | None = None
    """The file it was read from."""

    @cached_property
    def model(self) -> "Transformer":
        """The network with these weights, in evaluation mode."""
        from attnprobe.model.transformer import Transformer

        model = Transformer(self.config.model, self.data, self.config.seed)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UsageError(f"{self.path}: weights do not fit: {' '.join(str(error).split())}") from error
        return model.eval()

    @cached_property
    def task(self) -> tasks.Task:
        """The task's data, made anew and compared with what the run was trained on."""
        task = tasks.build(self.config)
        if task.fingerprint != self.fingerprint:
            made = f"now {task.fingerprint}, then {self.fingerprint}"
            raise UsageError(f"{self.path}: task {task.name} no longer gives the data of this run ({made})")
        return task

    def tokens(self, sequences: int) -> torch.Tensor:
        """Return the inputs [batch, token] of the first test sequences, as the network takes them."""
        return self.task.test.tensor(slice(sequences))

    @property
    def last_metrics(self) -> dict[str, Any]:
        """The metrics at this checkpoint's own step, or the last before it; empty before the first."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def title(self) -> str:
        """Task, recipe, seed, step and accuracies, for the head of a figure or table."""
        shown = [
            f"{tasks.short_name(self.config.task)}, {self.config.recipe}, seed {self.config.seed}, step {self.step}"
        ]
        last = self.last_metrics
        if last.get("test_accuracy") is not None:
            noun = OBJECTIVES[last["objective"]].noun
            shown.append(f"{noun} accuracy {last['train_accuracy']:.3f} train, {last['test_accuracy']:.3f} test")
        return "; ".join(shown)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return everything but the tensors, in sections."""
        config = dataclasses.asdict(self.config)
        network = config.pop("model")
        size = sum(weight.numel() for weight in self.weights.values())
        return {
            "checkpoint": {"file": str(self.path), "step": self.step, "objective": self.objective, "parameters": size},
            "metrics": self.last_metrics,
            "data": {**dataclasses.asdict(self.data), "fingerprint": self.fingerprint},
            "model": network,
            "training": config,
            "provenance": self.provenance,
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
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
        with whole(path) as part:
            torch.save(fields, part)

    def __repr__(self) -> str:
        """Return title and file: the weights would fill pages."""
        return f"Checkpoint({self.title!r}, path={str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the description as a table a section, for Jupyter."""
        rows = []
        for section, facts in self.describe().items():
            shown = "".join(
                f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
                for name, value in facts.items()
            )
            opened = " open" if section in {"checkpoint", "metrics"} else ""
            rows.append(f"<details{opened}><summary><b>{section}</b></summary><table>{shown}</table></details>")
        return f"<div><b>attnprobe.Checkpoint</b> {html.escape(self.title)}{''.join(rows)}</div>"


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
"""What a checkpoint file holds."""


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises `UsageError` where there is no such file, where it is no checkpoint (or a truncated or hostile one), where a
    newer attnprobe wrote it, and where it holds something unknown, by name.
    """
    path = Path(path)
    if not path.is_file():
        beside = listed(sorted(one.name for one in path.parent.glob("step-*.pt")))
        missing = f"no such file{beside and f'; there are {beside}'}"
        raise UsageError(f"{path}: {'is a folder, not a checkpoint' if path.is_dir() else missing}")
    if path.suffix == ".nc":
        raise UsageError(f"{path}: a result, not a checkpoint; attnprobe.open_result reads it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle before it refuses it
            fields = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything in torch's reader
        first = str(error).strip().split("\n")[0].split(". ")[0]
        raise UsageError(f"{path}: not a checkpoint of attnprobe, or a damaged one ({first})") from error
    if not isinstance(fields, dict) or "format" not in fields:
        raise UsageError(f"{path}: not a checkpoint of attnprobe (it holds no format version)")
    found = fields["format"]
    if found != FORMAT:
        newer = ": upgrade attnprobe" if isinstance(found, int) and found > FORMAT else ""
        raise UsageError(f"{path}: has checkpoint format {found}; this attnprobe reads format {FORMAT}{newer}")
    if set(fields) != set(KINDS):
        unknown, missing = (
            listed(sorted(one)) or "none" for one in (set(fields) - set(KINDS), set(KINDS) - set(fields))
        )
        raise UsageError(f"{path}: unknown entries: {unknown}; missing: {missing}")
    for name, kind in KINDS.items():
        if not isinstance(fields[name], kind):
            raise UsageError(f"{path}: {name} is of type {type(fields[name]).__name__}, not {kind.__name__}")
    if not all(isinstance(weight, torch.Tensor) for weight in fields["weights"].values()):
        raise UsageError(f"{path}: weights hold something that is no tensor")
    if not all(isinstance(row, dict) for row in fields["metrics"]):
        raise UsageError(f"{path}: metrics hold something that is no row of names and values")
    if fields["objective"] not in OBJECTIVES:
        raise UsageError(f"{path}: objective={fields['objective']!r} is unknown; valid: {listed(OBJECTIVES)}")
    fields.pop("format")
    fields["config"] = from_plain(TrainConfig, fields["config"], str(path))
    fields["metrics"] = [current_settings(row) for row in fields["metrics"]]
    fields["data"] = from_plain(DataSpec, fields["data"], str(path))
    return Checkpoint(**fields, path=path)
