"""Settings of a run: frozen dataclasses of plain values, validated at construction.

The fields of `ModelConfig` and `TrainConfig` are the flags of ``attnprobe train``, the keys of a ``--config`` file and
the keywords of `attnprobe.configure`. Their names are disjoint.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import pydantic
import pydantic.dataclasses
from pydantic import Field
from typing_extensions import dataclass_transform

from attnprobe.errors import UsageError, abridged, choices, listed, shown
from attnprobe.former_names import current_settings, refuse_former_settings
from attnprobe.tables import OBJECTIVES, POSITIONS

Settings = TypeVar("Settings")
LARGEST = 2**31 - 1
"""Largest number in settings: numbers of tokens, sequences and steps that nobody reaches, and that arrays can index."""
Count = Annotated[int, Field(gt=0, le=LARGEST)]
Index = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Layers = Annotated[int, Field(gt=0, le=1000)]
"""Every layer is a Python object with its own modules; the deepest published Transformers have 1000."""
Points = Annotated[int, Field(gt=0, le=10**5)]
"""Evaluations and checkpoints of a run; each is a row or a file."""
MOST_WEIGHTS = 10**11
"""Largest number of weights in the blocks: 400 GB, more than the memory of one device."""
MOST_CHARACTERS = 2**17
"""Largest number of characters of a settings file, to read any in a second; a sweep of 1000 tables has as many."""
MOST_VALUES = 10**5
"""Largest number of values in a settings file, after YAML's aliases are replaced by what they stand for."""
MOST_DOTS = 1000
"""Largest number of dots in a line of a settings file: Python takes quadratic time to read the key a.a.a ..."""
DEEPEST = 10
"""Largest number of levels in a settings file; a sweep has 5."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(kind: type[Settings]) -> type[Settings]:
    """Return a frozen dataclass whose constructor raises a one-line `UsageError` for unknown names and bad values."""
    validated = pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))(kind)
    validate = validated.__init__

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise UsageError("; ".join(map(_one_line, error.errors(include_url=False)))) from None

    validated.__init__ = __init__
    return cast(type[Settings], validated)


def _one_line(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        valid = re.findall("'([^']*)'", error["ctx"]["expected"])
        return f"{abridged(name)}={shown(error['input'])} is unknown; {choices(error['input'], valid)}"
    return f"{abridged(name)}={shown(error['input'])}: {error['msg'].lower()}"


Recipe = Literal["supervised", "spt"]


@settings
class DataSpec:
    """Data format that a network is built for."""

    n: Count
    """Number of tokens in a sequence (in the longest one if lengths differ)."""
    inputs: Literal["tokens", "values"]
    """Token ids, or real values."""
    classes: Annotated[int, Field(ge=2)]
    """Number of classes."""
    vocabulary: Index = 0
    """Number of token ids; 0 for real values."""
    grid: tuple[Count, Count] | None = None
    """Rows and columns if the sequence is an image in row-major order."""
    levels: Index = 0
    """Number of equally spaced values from -1 to 1 that a token can take, predicted with cross-entropy if masked.
    0: any real value, predicted with absolute error."""
    channels: Count = 1
    """Number of real values per token: variables of a time series, or pixels of a patch times colours."""
    patch: Count = 1
    """Side of the square of pixels that makes a token, if the sequence is an image."""
    mean: tuple[float, ...] = ()
    """Mean of each channel over the training split, subtracted from the values; empty if values are used as given."""
    std: tuple[Rate, ...] = ()
    """Standard deviation of each channel over the training split, by which the centred values are divided."""
    class_names: tuple[str, ...] = ()
    """Label of each class in the user's data; empty if labels are class numbers."""
    symbols: tuple[str, ...] = ()
    """What each token id stands for in the user's data (a word, an original id); empty if ids are used as given."""

    def __post_init__(self) -> None:
        """Check that the fields are consistent."""
        if (self.inputs == "tokens") != (self.vocabulary > 0):
            raise UsageError(
                f"data with inputs={self.inputs!r} and vocabulary={self.vocabulary}: vocabulary must be positive for "
                "tokens and 0 for values"
            )
        if self.levels == 1 or (self.levels and self.inputs == "tokens"):
            raise UsageError(
                f"data with inputs={self.inputs!r} and levels={self.levels}: levels must be 0, or at least 2 for values"
            )
        if self.channels > 1 and (self.inputs == "tokens" or self.levels):
            raise UsageError(f"data with channels={self.channels}: must be 1 for tokens and for predicted levels")
        for name, given, count in (
            ("mean", self.mean, self.channels),
            ("std", self.std, self.channels),
            ("class_names", self.class_names, self.classes),
            ("symbols", self.symbols, self.vocabulary),
        ):
            if given and len(given) != count:
                raise UsageError(f"data with {len(given)} {name}: must be {count}")
        if bool(self.mean) != bool(self.std):
            raise UsageError("data: mean and std must be given together")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.n:
            raise UsageError(
                f"data with n={self.n}: grid {self.grid[0]} x {self.grid[1]} has {self.grid[0] * self.grid[1]} tokens"
            )


@settings
class ModelConfig:
    """Architecture of the network; sizes that depend on the data are in `DataSpec`."""

    n_layers: Layers = 1
    """Number of blocks."""
    d_model: Count = 32
    """Width of the residual stream."""
    n_heads: Count = 2
    """Attention heads per layer; d_head is d_model / n_heads."""
    mlp_ratio: Index = 2
    """Hidden units of the MLP as a multiple of d_model; 0 for an attention-only network."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """Nonlinearity of the MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that an element of the embedded input or of a sublayer's output is dropped in training."""
    position: str = "learned"
    """Position encoding."""
    norm: Literal["layer", "rms", "none"] = "layer"
    """Normalisation."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: normalise before each sublayer and after the last block; post: after each residual sum."""
    causal: bool = False
    """Causal attention: a query attends only to keys at or before its own position."""
    pooling: Literal["mean", "max", "cls", "last"] = "mean"
    """How the classification head pools the sequence; cls prepends a learned [CLS] token."""
    init: Literal["normal", "xavier"] = "normal"
    """Initial weights: N(0, init_std^2) or Xavier uniform; embeddings are always N(0, init_std^2)."""
    init_std: Amount = 0.02
    """Standard deviation of the initial embeddings, and of the other initial weights under init normal."""
    position_std: Amount = 0.02
    """Standard deviation of the initial position embeddings and relative position biases."""
    score_bias: Literal["none", "fixed", "learned"] = "none"
    """Proximity bias -distance / length_scale added to every head's scores: none, fixed, or learned (initial value of
    one parameter per head and offset)."""
    length_scale: Rate = 2.0
    """Length scale of score_bias and of init_qk proximity, in tokens or pixels."""
    init_qk: Literal["random", "proximity", "mimetic"] = "random"
    """Initial query and key maps: random; proximity: position vectors score nearby keys highest; mimetic: their product
    is noise plus identity, as in trained vision Transformers (Trockman & Kolter 2023)."""

    def __post_init__(self) -> None:
        """Check that the settings are consistent."""
        POSITIONS.check(self.position)
        if self.d_model % self.n_heads:
            raise UsageError(f"d_model={self.d_model}: must be a multiple of n_heads={self.n_heads}")
        weights = self.n_layers * self.d_model**2 * (4 + 2 * self.mlp_ratio)
        if weights > MOST_WEIGHTS:
            raise UsageError(
                f"n_layers={self.n_layers}, d_model={self.d_model}, mlp_ratio={self.mlp_ratio}: {weights:.1e} weights; "
                f"must be at most {MOST_WEIGHTS:.0e}"
            )
        if self.position == "rotary" and self.d_head % 2:
            raise UsageError(f"position='rotary' needs an even d_head; d_model / n_heads is {self.d_head}")
        if self.pooling == "cls" and self.causal:
            raise UsageError(
                "pooling='cls' with causal=True: [CLS] comes first and would attend only to itself; use pooling='last'"
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise UsageError(f"position='sinusoidal' needs an even d_model, not {self.d_model}")
        if self.init_qk == "proximity":
            self._check_position_vectors()

    def _check_position_vectors(self) -> None:
        if self.position not in ("learned", "sinusoidal"):
            raise UsageError(
                f"init_qk='proximity' needs position vectors in the residual stream: position learned or sinusoidal, "
                f"not {self.position}"
            )
        if self.position == "learned" and self.position_std == 0:
            raise UsageError("init_qk='proximity' needs distinct position vectors: position_std=0.0 makes them all 0")
        if not 0.5 <= self.length_scale <= 1e6:
            raise UsageError(f"init_qk='proximity' needs a length_scale of 0.5 ... 1e6, not {self.length_scale}")

    def __repr__(self) -> str:
        """Return the settings that differ from the defaults, in one line."""
        return _shortest(self)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        """Hidden units of the MLP."""
        return self.d_model * self.mlp_ratio

    # TransformerLens's ActivationCache reads these two names.
    @property
    def attn_only(self) -> bool:
        """Whether blocks have no MLP."""
        return self.mlp_ratio == 0

    @property
    def normalization_type(self) -> str | None:
        """Normalisation under TransformerLens's names: LN, RMS or None."""
        return {"layer": "LN", "rms": "RMS", "none": None}[self.norm]


@settings
class NetworkConfig(ModelConfig):
    """Architecture with the sizes that depend on the data, under TransformerLens's names."""

    n_ctx: Count = 1
    """Maximum sequence length."""
    d_vocab: Index = 0
    """Number of token ids; 0 for values."""
    n_key_value_heads: None = None
    """None: one key and value head per query head."""
    device: None = None
    """None: `transformer_lens.patching` allocates its results on torch's default device."""


@settings
class TrainConfig:
    """Settings of one training run: task, recipe, network and optimiser."""

    task: str = "pairs"
    """Name of a task (`attnprobe tasks` lists them) or path of your own file or folder."""
    task_options: dict[str, int | float | str] = field(default_factory=dict)
    """Task parameters that override the defaults, as NAME VALUE pairs (n 64 train_size 1000)."""
    validation_size: Index = 0
    """Number of training sequences held out for validation (the last ones), for tasks without a validation split."""
    recipe: Recipe = "spt"
    """supervised: train on the labels for all steps; spt: self-pretrain, then train on the labels, with the same total
    number of steps."""
    seed: Seed = 0
    """Seed of the generated data, the initial weights, the batches and the masks."""
    init_seed: Seed | None = None
    """Seed of the initial weights only; defaults to `seed`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture of the network."""
    steps: Count = 2000
    """Total number of training steps, self-pretraining included, without `more_steps`."""
    pretrain_steps: Index = 1500
    """How many of the `steps` are self-pretraining; setting `steps` alone scales it. The supervised recipe has none."""
    pretrain_objective: str = "masked"
    """Objective of self-pretraining."""
    pretrain_order: Literal["original", "shuffled"] = "original"
    """shuffled: permute the tokens within each sequence during self-pretraining (order-free control)."""
    mask_probability: Share = 0.3
    """Probability that a token is masked; the masked loss is computed on masked tokens only."""
    batch_size: Count = 64
    """Number of sequences per step, summed over all processes."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches per process and step, to save memory; the gradient and the total batch_size stay the same."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: run forward and backward passes under bfloat16 autocast; weights and optimiser state stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the training loss of a label by N / (K N_c), for N training sequences of K classes, N_c of them
    of the label's class. Evaluations and measures use the unweighted loss, so that runs can be compared."""
    learning_rate: Rate = 3e-3
    """Peak learning rate of AdamW."""
    pretrain_learning_rate: Rate | None = None
    """Peak learning rate of self-pretraining; defaults to `learning_rate`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up of each stage: cosine decay to 5 % of the peak, or constant."""
    warmup_steps: Index = 50
    """Number of linear warm-up steps in each stage."""
    weight_decay: Amount = 0.01
    """Weight decay of AdamW."""
    grad_clip: Amount = 1.0
    """Maximum gradient norm; 0 disables clipping."""
    evaluations: Points = 20
    """Number of evenly spaced evaluations on training, validation and test data; checkpoints are evaluated as well."""
    eval_size: Index = 0
    """Maximum number of sequences of the test split, and of the validation split, in an evaluation: a fixed random
    subset; 0 for all. The last evaluation is on all of them, except for validation with patience."""
    patience: Index = 0
    """Early stopping: end training on the labels after this number of evenly spaced evaluations without a lower
    validation loss; 0 disables it."""
    checkpoints: Points = 6
    """Number of checkpoints per stage, log-spaced up to its last step; step 0 is always saved."""
    more_steps: tuple[Count, ...] = ()
    """Steps added after `steps`: every number is a new stage with its own warm-up and schedule, which continues the
    last objective with further batches. With --resume RUN, a finished run is made longer by one such stage."""
    init_from: str | None = None
    """Checkpoint to load initial weights from."""
    transfer: str = "all"
    """Parts of the network to load from init_from: all, PART+PART or all-but-PART+PART."""
    freeze: tuple[str, ...] = ()
    """Parts of the network to keep fixed, named as in `transfer`: qk,positions."""
    device: str = "cpu"
    """torch device."""

    def __post_init__(self) -> None:
        """Check the constraints that need neither the task nor another checkpoint."""
        if self.recipe == "spt" and not 0 < self.pretrain_steps <= self.steps:
            raise UsageError(f"pretrain_steps={self.pretrain_steps} must be at least 1 and at most steps={self.steps}")
        self._check_objective()
        if self.gradient_accumulation_steps > self.batch_size:
            setting = f"gradient_accumulation_steps={self.gradient_accumulation_steps}"
            raise UsageError(f"{setting}: must be at most batch_size={self.batch_size}")
        if self.transfer != "all" and self.init_from is None:
            raise UsageError(f"transfer={self.transfer!r} needs init_from, the checkpoint to load from")

    def _check_objective(self) -> None:
        name = self.pretrain_objective
        if name == "masked":
            return  # avoids importing torch for the default
        if name not in OBJECTIVES or name == "labels":
            valid = [objective for objective in OBJECTIVES if objective != "labels"]
            raise UsageError(f"pretrain_objective={name!r} is unknown; {choices(name, valid)}")
        if self.recipe == "spt" and OBJECTIVES[name].needs_causal and not self.model.causal:
            raise UsageError(f"pretrain_objective={name!r} needs causal=True: otherwise the next token is visible")

    def __repr__(self) -> str:
        """Return the settings that differ from the defaults, in one line."""
        return _shortest(self)

    @property
    def stages(self) -> tuple[tuple[str, int], ...]:
        """Objective and number of steps of each stage, in training order; the stages of `more_steps` come last."""
        pretraining = (self.pretrain_objective, self.pretrain_steps if self.recipe == "spt" else 0)
        planned = (pretraining, ("labels", self.steps - pretraining[1]))
        recipe = tuple((objective, length) for objective, length in planned if length)
        return (*recipe, *((recipe[-1][0], length) for length in self.more_steps))

    @property
    def total_steps(self) -> int:
        """Number of steps of all stages."""
        return self.steps + sum(self.more_steps)


def changed(config: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that differ from its defaults, by name."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    default = type(config)()
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _shortest(config: Any) -> str:
    """Return the shortest expression that rebuilds settings."""
    arguments = listed(f"{name}={value!r}" for name, value in changed(config).items())
    return f"{type(config).__name__}({arguments})"


def from_flat(named: Mapping[str, Any]) -> TrainConfig:
    """Build a `TrainConfig` from a flat mapping of `TrainConfig` and `ModelConfig` fields.

    Raises `UsageError` for an unknown or former name.

    >>> from_flat({"recipe": "supervised", "n_layers": 3}).model.n_layers
    3
    """
    refuse_former_settings(named)
    named = dict(named)
    valid = {*_field_names(TrainConfig), *_field_names(ModelConfig)} - {"model"}
    for name in named:
        if name not in valid:
            raise UsageError(f"unknown setting {shown(name)}; {choices(name, sorted(valid))}")
    model = {name: named.pop(name) for name in _field_names(ModelConfig) if name in named}
    return TrainConfig(model=ModelConfig(**model), **named)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML or YAML file, in which they may be grouped into sections with any name."""
    content = read_file(path)
    flat: dict[str, Any] = {}
    for name, value in content.items():
        section = value if isinstance(value, dict) and name != "task_options" else {name: value}
        for key, setting in section.items():
            if not isinstance(key, str):
                raise UsageError(f"{path}: {shown(key)} is not the name of a setting")
            if key in flat:
                raise UsageError(f"{path}: {abridged(key)} is set twice")
            flat[key] = setting
    return flat


def read_file(path: str | Path) -> dict[Any, Any]:
    """Return the content of a TOML or YAML file; nothing in it is executed.

    Raises `UsageError` if it cannot be read, or if its size, depth, number of values or a number in it is far beyond
    what settings need.
    """
    path = Path(path)
    try:
        parse = _PARSERS[path.suffix]
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        _check_text(text)
        content = parse(text)
        _check_values(content)
    except KeyError:
        raise UsageError(f"{path}: the name of a settings file must end in {listed(_PARSERS)}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply; must have at most {DEEPEST} levels") from None
    except ValueError as error:
        raise UsageError(f"{path}: {abridged(' '.join(str(error).split()), 250)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: contains no settings (NAME = VALUE)")
    return content


def _check_text(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"is too long for settings: must have at most {MOST_CHARACTERS:,} characters")
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > MOST_DOTS:
            raise UsageError(f"line {number} has {dots:,} dots: must have at most {MOST_DOTS:,}; use several lines")


def _check_values(content: Any) -> None:
    """Raise `UsageError` if values are nested too deeply, or if a whole number is too large for any setting."""
    level = [content]
    for _ in range(DEEPEST + 1):
        for value in level:
            if isinstance(value, int) and value.bit_length() > 63:
                raise UsageError(f"holds a whole number of {value.bit_length()} bits: must have at most 63")
        level = [part for value in level for part in _parts(value)]
    if level:
        raise UsageError(f"is nested too deeply; must have at most {DEEPEST} levels")


def _parts(value: Any) -> list[Any]:
    """Return the keys and values of a dict, or the entries of a list."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def from_plain(kind: type[Settings], fields: Any, where: str) -> Settings:
    """Rebuild a settings dataclass from the result of ``dataclasses.asdict``.

    Former names of settings are translated. A field with a default may be missing, as in a file from before the field
    existed: the default of a new field reproduces the earlier behaviour. Raises `UsageError` for unknown, missing or
    invalid fields; its message starts with ``where``, the source of the fields.
    """
    if not isinstance(fields, Mapping):
        raise UsageError(f"{where}: {type(fields).__name__} instead of a mapping of {kind.__name__} fields")
    fields = current_settings(fields)
    unknown, missing = sorted(set(fields) - _field_names(kind)), sorted(_required_names(kind) - set(fields))
    if unknown or missing:
        problems = [f"unknown {listed(unknown)}"] * bool(unknown) + [f"missing {listed(missing)}"] * bool(missing)
        raise UsageError(f"{where}: {kind.__name__} has {'; '.join(problems)}")
    values = dict(fields)
    if kind is TrainConfig and "model" in values:
        values["model"] = from_plain(ModelConfig, values["model"], where)
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _field_names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _required_names(kind: Any) -> set[str]:
    """Return the names of the fields without a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return {field.name for field in fields if field.default is missing and field.default_factory is missing}


def _toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if _expanded(root, {}) > MOST_VALUES:
            raise UsageError(f"holds more than {MOST_VALUES:,} values, with its aliases replaced")
        return loader.construct_document(root) if root is not None else None
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _expanded(node: Any, counts: dict[int, int]) -> int:
    """Return the number of values of a YAML node with each alias replaced by what it stands for.

    ``counts`` has the results so far; an alias within what it stands for is refused.
    """
    if id(node) not in counts:
        counts[id(node)] = 0
        children = node.value if node is not None and not isinstance(node.value, str) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        counts[id(node)] = 1 + sum(_expanded(part, counts) for part in parts)
    elif counts[id(node)] == 0:
        raise UsageError("holds an alias within what it stands for")
    return counts[id(node)]


_PARSERS = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
