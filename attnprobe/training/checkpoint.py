"""Checkpoints: self-describing files of plain types and tensors."""

import dataclasses
import hashlib
import html
import io
import json
import textwrap
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from attnprobe import tasks
from attnprobe.config import DataSpec, TrainConfig, from_plain
from attnprobe.errors import UsageError, listed, shown
from attnprobe.files import atomic_path, opened_zip, writing
from attnprobe.former_names import current_settings
from attnprobe.model.shapes import BUILT_IN, shapes
from attnprobe.provenance import provenance
from attnprobe.tables import OBJECTIVES

if TYPE_CHECKING:
    from attnprobe.model.transformer import Transformer

FORMAT = 2
"""Format of the files that are written. Format 1, which is read as well, has no digest."""
FORMATS = (1, FORMAT)
MOST_TOKENS = 2**20
"""Largest number of tokens of a network in a file: attention over more is surely a mistake, or a hostile file."""


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
        """Write the checkpoint, with a digest of its content, atomically; raise ``OSError`` if that fails."""
        fields: dict[str, Any] = {
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
        fields["digest"] = _digest(fields)
        # In memory first: torch turns the error of a full disk into a RuntimeError without the reason.
        content = io.BytesIO()
        torch.save(fields, content)
        with atomic_path(path) as part:
            part.write_bytes(content.getbuffer())

    def to_safetensors(self, path: str | Path) -> None:
        """Write the weights to a safetensors file atomically, with metadata that says what they are.

        Names of the weights are those of ``model.state_dict()``. Metadata are strings: ``config``, ``data`` and
        ``provenance`` are JSON; ``step``, ``objective`` and ``fingerprint`` are as in the checkpoint. Optimiser and
        metrics are omitted.

        Raises:
            UsageError: If the file cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        facts = {"config": dataclasses.asdict(self.config), "data": dataclasses.asdict(self.data), **self._origin()}
        metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        weights = {name: weight.contiguous() for name, weight in self.weights.items()}
        content = save(weights, {"format": "pt", **metadata})
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                part.write_bytes(content)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as a Hugging Face model, ``config.json`` and ``model.safetensors``, to a folder.

        ``attnprobe.AttnprobeModel.from_pretrained(folder)`` loads the model, and so does ``transformers.AutoModel``
        after ``import attnprobe.model.pretrained``. The configuration holds the training settings and the provenance,
        which includes the command line.

        Raises:
            UsageError: If the folder cannot be written.
        """
        from safetensors import SafetensorError

        from attnprobe.model.pretrained import AttnprobeModel, configuration, save

        training = dataclasses.asdict(self.config)
        del training["model"]  # the configuration has it already
        model = AttnprobeModel(configuration(self.config.model, self.data, {"training": training, **self._origin()}))
        self._load_weights(model.network)
        try:
            with writing(folder):
                save(model, Path(folder))
        except SafetensorError as error:  # also for a full disk
            raise UsageError(f"{folder}: cannot be written ({error})") from error

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
                f"<tr><td>{html.escape(name)}</td><td>{html.escape(_rounded(value))}</td></tr>"
                for name, value in entries.items()
            )
            state = " open" if section in {"checkpoint", "metrics"} else ""
            tables.append(f"<details{state}><summary><b>{section}</b></summary><table>{rows}</table></details>")
        return f"<div><b>attnprobe.Checkpoint</b> {html.escape(self.title)}{''.join(tables)}</div>"


SHOWN = 20
"""Number of entries above which descriptions shorten a list."""


def _rounded(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shortened(value: Any, noun: str = "values") -> Any:
    is_long = isinstance(value, list | tuple) and len(value) > SHOWN
    return f"{len(value):,} {noun.replace('_', ' ')}" if is_long else value


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
        UsageError: If the file does not exist, is not a checkpoint or damaged (a checksum or the digest differs), was
            written by a newer attnprobe, or has unknown, missing or invalid entries, which the message names. Weights
            of other names or shapes than the settings imply are invalid. Nothing is built before these checks.
    """
    if not isinstance(path, str | Path):
        advice = "of a run, take the checkpoint at a step with attnprobe.Run.open(FOLDER).at(STEP)"
        raise UsageError(f"{shown(path)}: must be the path of a checkpoint; {advice}")
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {_missing(path)}")
    if path.suffix == ".nc":
        raise UsageError(f"{path}: a result, not a checkpoint; open it with attnprobe.open_result")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a foreign pickle before rejecting it
            _check_members(file)
            fields = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception in torch.load
        reason = textwrap.shorten(str(error).strip().split("\n")[0].split(". ")[0], LONGEST)
        raise UsageError(f"{path}: not an attnprobe checkpoint, or damaged ({reason}); {_advice(path)}") from error
    try:
        _check_entries(fields)
        _check_values(fields, path.stat().st_size)
        checkpoint = _built(fields, path)
        intact = fields["format"] == 1 or fields.pop("digest") == _digest(fields)
    except Exception as error:  # the entries of a file can be anything
        raise UsageError(f"{path}: {textwrap.shorten(str(error), LONGEST) or type(error).__name__}") from error
    if not intact:
        raise UsageError(f"{path}: damaged (its content differs from its digest); {_advice(path)}")
    return checkpoint


def _missing(path: Path) -> str:
    """Return why a path is no checkpoint file, and which files may have been meant."""
    if path.is_dir():
        folder = path.parent if path.name == "checkpoints" else path
        steps = sorted(file.stem[5:] for file in (folder / "checkpoints").glob("step-*.pt"))
        numbers = listed(int(step) for step in steps if step.isdigit())
        advice = f"; take one of its checkpoints with attnprobe.Run.open({str(folder)!r}).at(STEP); steps: {numbers}"
        return f"is a folder, not a checkpoint{advice if numbers else ''}"
    step = path.stem.removeprefix("step-")
    padded = f"step-{int(step):06d}.pt" if step.isdecimal() else path.name
    for meant in (path.parent / "checkpoints" / padded, path.parent / padded):
        if meant.is_file():
            return f"no such file; did you mean {meant}?"
    available = listed(sorted(file.name for file in path.parent.glob("step-*.pt")))
    return f"no such file{available and f'; available: {available}'}"


LONGEST = 500
"""Characters of a reason in a message."""


def _advice(path: Path) -> str:
    """Return what to do about a damaged file."""
    run = path.parent if path.parent.name != "checkpoints" else path.parent.parent
    if not (run / "config.json").exists() or (run / "finished.json").exists():
        return "use another checkpoint"
    return f"use another checkpoint, or delete this one and continue the run from its newest state with --resume {run}"


def _check_members(file: IO[bytes]) -> None:
    """Raise an exception if the checksum of a member of the zip archive is wrong, which torch does not check."""
    size = file.seek(0, io.SEEK_END)
    with opened_zip(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise UsageError("its members are compressed")  # torch never compresses
        if (claimed := sum(member.file_size for member in archive.infolist())) > size:
            raise UsageError(f"its members claim {claimed:,} bytes, more than its {size:,}")
        if (name := archive.testzip()) is not None:
            raise UsageError(f"wrong checksum of {name}")
    file.seek(0)


def _digest(value: Any) -> str:
    """Hash plain values and tensors, with their types, the names of fields and the shapes of tensors."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[Any]:
    """Yield the bytes that identify a value; raise `UsageError` for one that is not plain."""
    if isinstance(value, torch.Tensor):
        _check_storage("a tensor", value)
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, dict):
        yield f"dict {len(value)};".encode()
        for key, entry in value.items():
            yield from _parts(key)
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        yield f"{'list' if isinstance(value, list) else 'tuple'} {len(value)};".encode()
        for entry in value:
            yield from _parts(entry)
    elif isinstance(value, str):
        text = value.encode(errors="surrogatepass")
        yield f"str {len(text)};".encode() + text
    elif value is None or isinstance(value, bool | int | float):
        yield f"{type(value).__name__} {value!r};".encode()
    else:
        raise UsageError(f"a value of type {type(value).__name__}: must be a plain value or a tensor")


def _check_entries(fields: Any) -> None:
    """Raise `UsageError` if the format is unknown, or entries are unknown, missing or of the wrong type."""
    if not isinstance(fields, dict) or "format" not in fields:
        raise UsageError("not an attnprobe checkpoint (no format version)")
    version = fields["format"]
    if isinstance(version, bool) or version not in FORMATS:
        advice = "; upgrade attnprobe" if isinstance(version, int) and version > FORMAT else ""
        known = f"formats {listed(FORMATS)}"
        raise UsageError(f"checkpoint format {version}; this attnprobe reads {known}{advice}")
    kinds = KINDS if version == 1 else {**KINDS, "digest": str}
    if set(fields) != set(kinds):
        unknown, missing = (
            listed(sorted(map(str, names))) or "none" for names in (set(fields) - set(kinds), set(kinds) - set(fields))
        )
        raise UsageError(f"unknown entries: {unknown}; missing: {missing}")
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise UsageError(f"{name} has type {type(fields[name]).__name__}, not {kind.__name__}")
    if not all(isinstance(name, str) for name in fields["weights"]):
        raise UsageError("weights have a name that is not a text")
    if not all(isinstance(weight, torch.Tensor) for weight in fields["weights"].values()):
        raise UsageError("weights contain a value that is not a tensor")
    if not all(isinstance(row, dict) for row in fields["metrics"]):
        raise UsageError("metrics contain a row that is not a dict")


def _check_values(fields: dict[str, Any], most: int) -> None:
    """Raise `UsageError` unless the entries are plain values with names, and the optimiser may have tensors.

    A value takes at least one byte of the file. A file with more values than ``most``, its size, repeats some of them:
    a few bytes stand for any number.
    """
    count = 0

    def visit(value: Any, level: int, named: bool) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise UsageError(f"has more than {most:,} values, its size in bytes")
        if level > DEEPEST:
            raise UsageError(f"is nested too deeply; must have at most {DEEPEST} levels")
        if isinstance(value, dict):
            if named and not all(isinstance(name, str) for name in value):
                raise UsageError("has a dict with a name that is not a text")
            for part in value.values():
                visit(part, level + 1, named)
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part, level + 1, named)
        elif named and not (value is None or isinstance(value, str | int | float)):
            raise UsageError(f"has a value of type {type(value).__name__}: must be a plain value")
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise UsageError(f"has a whole number of {value.bit_length()} bits: must have at most {MOST_BITS}")

    for name, value in fields.items():
        try:
            visit(value, 0, named=name not in ("weights", "optimiser"))
        except UsageError as error:
            raise UsageError(f"{name} {error}") from None


DEEPEST = 10
"""Largest number of levels in an entry of a file; the optimiser has 4."""
MOST_BITS = 2048
"""Largest size of a whole number in a file, which Python prints; messages about settings name larger ones than fit."""


def _built(fields: dict[str, Any], path: Path) -> Checkpoint:
    """Return the checkpoint with these entries; raise `UsageError`, naming the entry, if one is not valid."""
    if fields["objective"] not in OBJECTIVES:
        raise UsageError(f"objective={shown(fields['objective'])} is unknown; valid: {listed(OBJECTIVES)}")
    config = from_plain(TrainConfig, fields["config"], "config")
    data = from_plain(DataSpec, fields["data"], "data")
    metrics = [current_settings(row) for row in fields["metrics"]]
    if not 0 <= fields["step"] <= config.total_steps:
        raise UsageError(f"step={fields['step']}: must be 0 ... {config.total_steps}, the steps of the run")
    _check_metrics(metrics)
    _check_weights(config, data, fields["weights"])
    _check_optimiser(fields["optimiser"], fields["weights"])
    rest = {name: fields[name] for name in ("weights", "optimiser", "step", "objective", "fingerprint", "provenance")}
    return Checkpoint(config=config, data=data, metrics=metrics, **rest, path=path)


def _is_known(objective: Any) -> bool:
    return isinstance(objective, str) and objective in OBJECTIVES


def _check_metrics(metrics: list[dict[str, Any]]) -> None:
    for row in metrics:
        if not isinstance(row.get("step"), int) or not _is_known(row.get("objective")):
            raise UsageError("metrics contain a row without a step and a known objective")
        for name, value in row.items():
            if isinstance(value, int) and value.bit_length() > 64:
                raise UsageError(f"metrics contain {name} of {value.bit_length()} bits: must have at most 64")
            if name.endswith(("_loss", "_accuracy")) and not (value is None or isinstance(value, int | float)):
                raise UsageError(f"metrics contain {name} of type {type(value).__name__}, not a number")


def _check_weights(config: TrainConfig, data: DataSpec, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise `UsageError` unless the weights are those that the settings imply, before anything is built from them."""
    if data.n > MOST_TOKENS:
        raise UsageError(f"data n={data.n}: must be at most {MOST_TOKENS}")
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise UsageError(f"weights do not fit: {name} has type {weight.dtype}, not a real one")
        _check_storage(f"weights do not fit: {name}", weight)
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if config.model.n_layers != layers:
        raise UsageError(f"weights do not fit: they have {layers} layers, not n_layers={config.model.n_layers}")
    known = config.model.position in BUILT_IN
    found = {name: tuple(x.shape) for name, x in weights.items() if known or not name.startswith("position.")}
    expected = shapes(config.model, data)
    problems = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{problem}: {listed(names)}" for problem, names in problems.items() if names)
        raise UsageError(f"weights do not fit: {text}")


def _check_storage(what: str, tensor: torch.Tensor) -> None:
    """Raise `UsageError` for a tensor with more values than it stores, such as an expanded one."""
    stored = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not stored or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UsageError(f"{what} of shape {tuple(tensor.shape)} does not store all of its values")


def _check_optimiser(optimiser: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise `UsageError` unless the optimiser is empty, or torch's with states of the shapes of weights."""
    if not optimiser:
        return
    states, groups = optimiser.get("state"), optimiser.get("param_groups")
    if set(optimiser) != {"state", "param_groups"} or not isinstance(states, dict) or not isinstance(groups, list):
        raise UsageError("optimiser must have a dict state and a list param_groups")
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise UsageError("optimiser has a group without a list params")
    valid = {(), *(tuple(weight.shape) for weight in weights.values())}
    for state in states.values():
        tensors = state.values() if isinstance(state, dict) else [None]
        if not all(isinstance(tensor, torch.Tensor) and tuple(tensor.shape) in valid for tensor in tensors):
            raise UsageError("optimiser has a state that does not fit a weight")
