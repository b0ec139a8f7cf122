"""Everything that decides a run, as frozen dataclasses of plain values that check themselves.

The fields of `ModelConfig` and `TrainConfig` are the flags of ``attnprobe train``, the keys of a ``--config`` file and
the keywords of `attnprobe.configure`; no name occurs twice.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import pydantic
import pydantic.dataclasses
from pydantic import Field
from typing_extensions import dataclass_transform

from attnprobe.errors import UsageError, listed
from attnprobe.tables import OBJECTIVES, POSITIONS

Made = TypeVar("Made")
Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(kind: type[Made]) -> type[Made]:
    """Make a frozen dataclass that refuses unknown names, wrong types and values in one line, as `UsageError`."""
    made = pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))(kind)
    checked = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            checked(self, *values, **named)
        except pydantic.ValidationError as error:
            raise UsageError("; ".join(map(_one_line, error.errors(include_url=False)))) from None

    made.__init__ = __init__
    return cast(type[Made], made)


def _one_line(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name = ".".join(str(part) for part in error["loc"])
    return f"{name}={error['input']!r}: {error['msg'].lower()}"


Recipe = Literal["labels", "spt"]


@settings
class DataSpec:
    """What a network has to know of its data."""

    n: Count
    """Tokens in a sequence (the longest, where lengths differ)."""
    inputs: Literal["tokens", "values"]
    """Token ids, or one real value a token."""
    classes: Annotated[int, Field(ge=2)]
    """Number of labels."""
    vocabulary: Index = 0
    """Number of token ids; 0 for values."""
    grid: tuple[Count, Count] | None = None
    """Rows and columns, where the sequence is an image read row by row."""
    levels: Index = 0
    """Equally spaced values from -1 to 1 that there are; a hidden one is then predicted by cross-entropy over them. 0:
    any real value, and absolute error."""

    def __post_init__(self) -> None:
        """Check that the numbers describe one kind of data."""
        if (self.inputs == "tokens") != (self.vocabulary > 0):
            raise UsageError(
                f"data with inputs={self.inputs!r} and vocabulary={self.vocabulary}: ids need a vocabulary"
            )
        if self.levels == 1 or (self.levels and self.inputs == "tokens"):
            raise UsageError(f"data with inputs={self.inputs!r} and levels={self.levels}: values have 0, or 2 and more")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.n:
            raise UsageError(f"data with grid {self.grid[0]} x {self.grid[1]} cannot have n={self.n}")


@settings
class ModelConfig:
    """The architecture; what depends on the data comes from `DataSpec`."""

    n_layers: Count = 1
    """Number of blocks."""
    d_model: Count = 32
    """Width of the residual stream."""
    n_heads: Count = 2
    """Heads a layer; d_head is d_model / n_heads."""
    mlp_ratio: Index = 2
    """Hidden units of the MLP over d_model; 0 leaves the MLP out."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """Nonlinearity of the MLP."""
    position: str = "learned"
    """Position encoding."""
    norm: Literal["layer", "rms", "none"] = "layer"
    """Normalisation."""
    norm_place: Literal["pre", "post"] = "pre"
    """Before each sublayer (and once at the end), or after each residual sum."""
    causal: bool = False
    """Whether a query sees only keys at or before its own position."""
    pooling: Literal["mean", "max", "cls", "last"] = "mean"
    """How the label head sees the sequence; cls puts a learned token in front."""
    init: Literal["normal", "xavier"] = "normal"
    """Initial weights: N(0, init_scale) or Xavier uniform; embeddings are always N(0, init_scale)."""
    init_scale: Amount = 0.02
    """Standard deviation of the initial embeddings and normal weights."""
    position_scale: Amount = 0.02
    """Standard deviation of initial learned positions and relative biases."""
    score_bias: Literal["none", "fixed", "learned"] = "none"
    """Proximity bias of every head's score, -distance / proximity_range: none, a constant, or where one free number for
    each head and offset starts."""
    proximity_range: Rate = 2.0
    """Range of the proximity bias, and of the exponential of init_qk proximity, in tokens or pixels."""
    init_qk: Literal["random", "proximity", "mimetic"] = "random"
    """Initial query and key maps: random; scoring near keys high, by the position vectors; or with the products of
    trained vision Transformers, noise plus identity (Trockman & Kolter 2023)."""

    def __post_init__(self) -> None:
        """Check that the sizes fit each other."""
        POSITIONS.check(self.position)
        if self.d_model % self.n_heads:
            raise UsageError(f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads")
        if self.position == "rotary" and self.d_head % 2:
            raise UsageError(f"rotary positions need an even d_head, not {self.d_head} (d_model / n_heads)")
        if self.pooling == "cls" and self.causal:
            raise UsageError("pooling='cls' and causal=True: the token in front would see nothing but itself; use last")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise UsageError(f"sinusoidal positions need an even d_model, not {self.d_model}")
        if self.init_qk == "proximity":
            self._check_position_vectors()

    def _check_position_vectors(self) -> None:
        if self.position not in ("learned", "sinusoidal"):
            raise UsageError(
                f"init_qk='proximity' needs position vectors in the residual stream: position learned or sinusoidal, "
                f"not {self.position}"
            )
        if self.position == "learned" and self.position_scale == 0:
            raise UsageError("init_qk='proximity' needs position vectors that differ: position_scale=0.0 has none")
        if not 0.5 <= self.proximity_range <= 1e6:
            raise UsageError(f"init_qk='proximity' needs a proximity_range of 0.5 ... 1e6, not {self.proximity_range}")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        """Hidden units of the MLP."""
        return self.d_model * self.mlp_ratio

    # Two names under which TransformerLens's ActivationCache asks for the same facts.
    @property
    def attn_only(self) -> bool:
        """Whether blocks have no MLP."""
        return self.mlp_ratio == 0

    @property
    def normalization_type(self) -> str | None:
        """Normalisation in TransformerLens's words: LN, RMS or None."""
        return {"layer": "LN", "rms": "RMS", "none": None}[self.norm]


@settings
class NetworkConfig(ModelConfig):
    """The architecture and what the data fix of it, under the names that TransformerLens looks for."""

    n_ctx: Count = 1
    """Tokens in the longest sequence."""
    d_vocab: Index = 0
    """Number of token ids; 0 for values."""
    n_key_value_heads: None = None
    """Keys and values have as many heads as queries."""
    device: None = None
    """Where patching makes its results: on torch's default device."""


@settings
class TrainConfig:
    """One training run: task, recipe, network, optimisation."""

    task: str = "pairs"
    """Task; `attnprobe tasks` lists them."""
    task_options: dict[str, int | float | str] = field(default_factory=dict)
    """Parameters of the task that differ from its own, as NAME VALUE pairs (n 64 train_size 1000)."""
    hold_out: Index = 0
    """Training sequences kept for validation (the last ones), where the task has no validation split of its own."""
    recipe: Recipe = "spt"
    """labels: the labels alone for all steps. spt: self-pretraining, then the labels, in the same number of steps."""
    seed: Seed = 0
    """Seed of the task instance, the initial weights, the batches and the masks."""
    init_seed: Seed | None = None
    """Seed of the initial weights alone; None takes `seed`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    steps: Count = 2000
    """Steps in all, the same for both recipes."""
    pretrain_steps: Index = 1500
    """How many of the steps self-pretraining takes; recipe labels has none."""
    pretrain_objective: str = "masked"
    """Objective of self-pretraining."""
    pretrain_order: Literal["own", "shuffled"] = "own"
    """shuffled: self-pretraining sees the tokens of every sequence in one random order of its own, and never who stands
    beside whom: the control that knows the tokens but not their places."""
    mask_share: Share = 0.3
    """Probability with which a token is masked; the loss is taken on masked tokens only."""
    batch_size: Count = 64
    """Sequences a step, over all processes."""
    accumulate: Count = 1
    """Parts that a process takes its share of a batch in, one after the other: less memory, the same gradient."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: forward and backward pass under bfloat16 autocast; weights and optimiser stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    rate: Rate = 3e-3
    """Peak learning rate of AdamW."""
    pretrain_rate: Rate | None = None
    """Peak learning rate of self-pretraining; None takes `rate`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up, in each stage: a cosine down to 5 %, or constant."""
    warmup: Index = 50
    """Warm-up steps of each stage."""
    weight_decay: Amount = 0.01
    """Weight decay of AdamW."""
    clip: Amount = 1.0
    """Largest gradient norm; 0 does not clip."""
    evaluations: Count = 20
    """How many times a run is evaluated on training, validation and test data, evenly spaced; it is at each checkpoint
    too."""
    patience: Index = 0
    """Evenly spaced evaluations after the warm-up without a lower validation loss after which training on the labels
    ends; 0 never ends it."""
    checkpoints: Count = 6
    """Checkpoints of each stage, log-spaced up to its end; step 0 is always kept."""
    init_from: str | None = None
    """Checkpoint to take initial weights from."""
    transfer: str = "all"
    """Which parts init_from gives: all, PART+PART or all-but-PART+PART."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they start, by the same names: qk,positions."""
    device: str = "cpu"
    """torch device."""

    def __post_init__(self) -> None:
        """Check what can be checked without the task or another checkpoint."""
        if self.recipe == "spt" and not 0 < self.pretrain_steps <= self.steps:
            raise UsageError(f"pretrain_steps={self.pretrain_steps} must be at least 1 and at most steps={self.steps}")
        self._check_objective()
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate={self.accumulate}: a batch of batch_size={self.batch_size} has not so many parts"
            )
        if self.transfer != "all" and self.init_from is None:
            raise UsageError(f"transfer={self.transfer!r} needs init_from, the checkpoint to take it from")

    def _check_objective(self) -> None:
        name = self.pretrain_objective
        if name == "masked":
            return  # the default, which needs nothing: looking at an objective imports torch
        if name not in OBJECTIVES or name == "labels":
            valid = listed(one for one in OBJECTIVES if one != "labels")
            raise UsageError(f"pretrain_objective={name!r} is unknown; valid: {valid}")
        if self.recipe == "spt" and OBJECTIVES[name].needs_causal and not self.model.causal:
            raise UsageError(f"pretrain_objective={name!r} needs causal=True: elsewhere the answer can be seen")

    @property
    def stages(self) -> tuple[tuple[str, int], ...]:
        """The objectives in order, each with its number of steps."""
        if self.recipe == "labels":
            return (("labels", self.steps),)
        first = (self.pretrain_objective, self.pretrain_steps)
        rest = self.steps - self.pretrain_steps
        return (first, ("labels", rest)) if rest else (first,)


def from_flat(named: Mapping[str, Any]) -> TrainConfig:
    """Return the `TrainConfig` with the named fields, of the network and of training alike, from one flat mapping.

    Raises `UsageError` for an unknown name and lists the valid ones.

    >>> from_flat({"recipe": "labels", "n_layers": 3}).model.n_layers
    3
    """
    named = dict(named)
    valid = {*_names(TrainConfig), *_names(ModelConfig)} - {"model"}
    for name in named:
        if name not in valid:
            raise UsageError(f"unknown setting {name!r}; valid: {listed(sorted(valid))}")
    model = {name: named.pop(name) for name in _names(ModelConfig) if name in named}
    return TrainConfig(model=ModelConfig(**model), **named)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML or YAML file; a section may hold them or not, its name does not matter."""
    found = read_file(path)
    named: dict[str, Any] = {}
    for name, value in found.items():
        inner = value if isinstance(value, dict) and name != "task_options" else {name: value}
        for key, entry in inner.items():
            if not isinstance(key, str):
                raise UsageError(f"{path}: {key!r} is no name of a setting")
            if key in named:
                raise UsageError(f"{path}: {key} is set twice")
            named[key] = entry
    return named


def read_file(path: str | Path) -> dict[Any, Any]:
    """Return what a TOML or YAML file holds, sections as dictionaries; raise `UsageError` where it cannot be read."""
    path = Path(path)
    try:
        found = _PARSERS[path.suffix](path.read_text())
    except KeyError:
        raise UsageError(f"{path}: a configuration ends in {listed(_PARSERS)}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds no settings (NAME = VALUE)")
    return found


def from_plain(kind: type[Made], fields: Any, where: str) -> Made:
    """Rebuild a settings dataclass from the dictionary that ``dataclasses.asdict`` made of it.

    A field with a default may be missing, as in files from before it existed: the default of a new field is what was
    done before. Raises `UsageError` naming fields that are unknown or missing; ``where`` says what they were read from.
    """
    if not isinstance(fields, Mapping):
        raise UsageError(f"{where}: holds {type(fields).__name__} where {kind.__name__} should be")
    unknown, missing = sorted(set(fields) - _names(kind)), sorted(_needed(kind) - set(fields))
    if unknown or missing:
        wrong = [f"unknown {listed(unknown)}"] * bool(unknown) + [f"missing {listed(missing)}"] * bool(missing)
        raise UsageError(f"{where}: {kind.__name__} has {'; '.join(wrong)}")
    values = dict(fields)
    if kind is TrainConfig and "model" in values:
        values["model"] = from_plain(ModelConfig, values["model"], where)
    return kind(**values)


def _names(kind: Any) -> set[str]:
    return {one.name for one in dataclasses.fields(kind)}


def _needed(kind: Any) -> set[str]:
    """Return the names of the fields without a default."""
    absent = dataclasses.MISSING
    return {one.name for one in dataclasses.fields(kind) if one.default is absent and one.default_factory is absent}


def _toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


_PARSERS = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
