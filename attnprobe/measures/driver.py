"""Shared driver of the measures: sequences, nulls, moments over sequences, and labelled variables.

A simple measure is a function from the heads of one layer and batch to values, decorated with `measure`. Measures that
need gradients, edits or a fit use `over_sequences` and `labelled` directly.

**Nulls.** *permuted*: the same scores with positions permuted. *initial*: networks of the same configuration at
initialisation. Every draw uses the same sequences as the measured value. Without structure, the measured value and its
N draws are therefore exchangeable, and it exceeds all of them with probability 1 / (N + 1).
"""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe import progress
from attnprobe.axes import LABELS
from attnprobe.errors import NonFiniteError, UsageError, listed
from attnprobe.geometry import Geometry, geometry
from attnprobe.networks import probe
from attnprobe.networks.base import LeavesOut, Network, Probe, device_of, read
from attnprobe.networks.finite import first_invalid, invalid_sequences, invalid_weight, module_of
from attnprobe.randomness import numpy_generator
from attnprobe.results import Reason, dataset, variable, with_reasons
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import Moments
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split
from attnprobe.training.objectives import Batch, Predictions

NULLS = ("permuted", "initial")
ELEMENTS = 2**23
"""Maximum number of query and key elements per chunk of sequences."""
MOST_NULLS = 2**16
"""Limit (exclusive) of the number of draws."""

Key = tuple[str, ...]
"""Identifier of a statistic within a measure, independent of layer and head; the last item is its name."""
Add = Callable[[Key, int, Any], None]
"""Function that adds the values of a chunk, [sequence, ...], given key, layer and values."""


@dataclass(frozen=True)
class Number:
    """Description of a statistic that a measure reports."""

    name: str
    meaning: str
    units: str = "1"
    axes: tuple[str, ...] = ()
    """Axes in addition to layer and head; "view" stands for the offset axes of a view."""
    method: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)
    unstructured: str = ""
    """Value for a score without structure."""
    undefined: str = ""
    """Reason why it can be undefined (NaN), unless the measure gives a more specific one."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of its variable in addition to meaning, units and method."""
        limits = {"valid_min": self.range[0], "valid_max": self.range[1]}
        attributes: dict[str, Any] = {name: limit for name, limit in limits.items() if math.isfinite(limit)}
        return attributes | ({"without_structure": self.unstructured} if self.unstructured else {})


# --- views of the tokens


@dataclass(frozen=True)
class View:
    """Arrangement of the tokens: in a line (1-D) or on a grid (2-D)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    unit: str
    causal: bool

    @property
    def offsets(self) -> dict[str, int]:
        """Names and sizes of the offset axes."""
        return {axis: 2 * side - 1 for axis, side in zip(self.axes, self.shape, strict=True)}


def views(network: Network) -> dict[str, View]:
    """Map each variable-name prefix to a view (1-D, and 2-D for images)."""
    shape = network.shape
    by_prefix = {"": View((shape.n,), ("offset",), "tokens", shape.causal)}
    if shape.grid is not None:
        by_prefix["grid_"] = View(shape.grid, ("row_offset", "column_offset"), shape.grid_unit, shape.causal)
    return by_prefix


def geometry_of(view: View, length: int, window: int | None = None, absent: tuple[int, ...] = ()) -> Geometry:
    """Return the geometry of a sequence in a view, for layers with a sliding window; images have the full length."""
    return geometry(view.shape if len(view.shape) == 2 else (length,), view.causal, window, absent)


def farthest(network: Network) -> float:
    """Return the largest distance between two tokens, in the view in which it is smallest."""
    return min(math.dist(view.shape, [1] * len(view.shape)) for view in views(network).values())


def check_window(network: Network, window: int | float, name: str = "window") -> None:
    """Raise `UsageError` if no key is near or no key is far, unless sequences are too short for any window."""
    largest = farthest(network)
    if largest <= 1 <= window:
        return
    if not 1 <= window < largest:
        raise UsageError(f"{name}={window}: must be at least 1 and below {largest:.3g}, the largest distance")


def undefined(network: Network, numbers: str, up_to: int = 1, near: int | float = 0) -> dict[str, str]:
    """Return the ``left_out`` entry of statistics that need keys at distances above ``up_to``, if there are none.

    Layers with sliding-window attention need keys at distances above ``near``.
    """
    if farthest(network) <= up_to:
        return {numbers: f"undefined (NaN): no key is farther than {up_to} in sequences of n={network.shape.n}"}
    layers = [layer for layer, limit in enumerate(network.shape.windows) if limit is not None and limit <= near]
    return {numbers: f"undefined (NaN) in layers {layers}: no visible key is farther than {near}"} if layers else {}


def widened(values: np.ndarray, short: int) -> np.ndarray:
    """Pad profiles of sequences that are ``short`` tokens shorter than n with NaN at the missing offsets."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(short, short)], constant_values=np.nan) if short else values


def mean_over_shared(profile: np.ndarray, shortest: Geometry) -> np.ndarray:
    """Return the mean of profiles over the pairs of the shortest sequence, at the offsets that a profile has."""
    weight = shortest.count.numpy()
    excess = (profile.shape[-1] - len(weight)) // 2
    shared = profile[..., excess : excess + len(weight)]
    return (np.nan_to_num(shared) @ weight / (np.isfinite(shared) @ weight))[..., None]


# --- sequences


@dataclass(frozen=True)
class Sample:
    """A chunk of sequences of one length, without padding; the same for all conditions."""

    rows: np.ndarray
    """Indices among the measured sequences."""
    batch: Batch
    hidden: Tensor
    """[batch, token]: masked tokens, for objectives that mask tokens."""
    shortest: int
    """Length of the shortest measured sequence."""

    @property
    def length(self) -> int:
        """Number of tokens per sequence."""
        return self.batch.inputs.shape[1]

    def mask(self, objective: str) -> Tensor | None:
        """Return the mask of masked tokens, or None if the objective does not mask tokens."""
        return self.hidden if OBJECTIVES[objective].masks_tokens else None


def lengths_of(split: Split) -> np.ndarray:
    """Return the length of each sequence of a split."""
    return np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths


def measured_tokens(network: Network, split: Split, rows: np.ndarray) -> np.ndarray:
    """Return which tokens, [sequence, token], are measured: neither padding nor left out inside a sequence."""
    measured = np.arange(split.inputs.shape[1]) < lengths_of(split)[rows, None]
    if not isinstance(network, LeavesOut):
        return measured
    labels = torch.from_numpy(split.labels[rows]).long()
    left_out = network.left_out(Batch(split.tensor(rows), labels))
    return measured if left_out is None else measured & ~left_out.numpy()


def geometries(request: "Request", view: View, window: int | None) -> list[Geometry]:
    """Return the geometry of each measured sequence in a view, in layers with a sliding window."""
    split = request.probe.task.test
    measured = measured_tokens(request.network, split, request.rows)
    return [
        geometry_of(view, length, window, tuple(np.flatnonzero(~tokens[:length]).tolist()))
        for length, tokens in zip(lengths_of(split)[request.rows].tolist(), measured, strict=True)
    ]


def chunks(split: Split, rows: np.ndarray, network: Network) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield indices into ``rows`` and the batch of these rows, in chunks of one length without padding."""
    lengths, shape, device = lengths_of(split)[rows], network.shape, device_of(network)
    for length in np.unique(lengths).tolist():
        indices = np.flatnonzero(lengths == length)
        size = max(1, ELEMENTS // (2 * length * shape.d_model * shape.layers))
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            labels = torch.from_numpy(split.labels[rows[chunk]]).long()
            yield chunk, Batch(split.tensor(rows[chunk], length).to(device), labels.to(device))


def masked_tokens(of: Probe, seed: int, sequences: int) -> np.ndarray:
    """Return the mask of masked tokens of the first test sequences.

    At least one token per sequence is masked, and exactly one, at a random position, if the probability is 0.
    """
    n = of.task.data.n
    draws = numpy_generator(seed, "masks of measures").random((sequences, n))
    measured = measured_tokens(of.network, of.task.test, np.arange(sequences))
    masked = (draws < of.mask_probability) & measured
    without = np.flatnonzero(~masked.any(1))
    masked[without, np.where(measured, draws, 1)[without].argmin(1)] = True
    return masked


def permutation(measure: str, seed: int, draw: int, n: int) -> np.ndarray:
    """Return the permutation of n positions for a draw of the permuted null."""
    return numpy_generator(seed, f"{measure} permutation", draw).permutation(n)


def untrained(network: Network, seed: int, draw: int) -> Network | None:
    """Return the network for a draw of the initial null, with a seed that no run uses."""
    return network.untrained(2**32 + seed * MOST_NULLS + draw)


# --- conditions: the measured network and its nulls


@dataclass(frozen=True)
class Condition:
    """Condition under which a measure runs over its sequences: the measured network, or a draw of a null."""

    network: Network
    draw: int | None = None
    """Index of the draw in the permuted null, else None."""
    order: np.ndarray | None = None
    """Permutation of that draw."""


@dataclass(frozen=True)
class Target:
    """Destination of the statistics of a chunk under one condition."""

    condition: Condition
    order: Tensor | None
    """Permutation of the tokens of the chunk in the permuted null, else None."""
    add: Add
    advance: Callable[[], Any]
    """Function to call after each of the passes of `over_sequences`, for the progress bar."""


Compute = Callable[[Sample, Sequence[Target]], None]
"""Function that computes the statistics of a chunk of sequences, and adds them to each target.

Targets are conditions of one network, which needs to run only once for all of them.
"""
Prepare = Callable[[Network], Compute]
"""Function that prepares a network (means, fits) and returns its `Compute`."""


class Tally:
    """Moments over sequences of each statistic, by key and layer."""

    def __init__(self) -> None:
        """Initialise without statistics."""
        self._moments: dict[Key, dict[int, Moments]] = {}

    def add(self, key: Key, layer: int, values: Any) -> None:
        """Add the values of a chunk, [sequence, ...]."""
        self._moments.setdefault(key, {}).setdefault(layer, Moments()).add(np.asarray(values))

    @classmethod
    def of(cls, key: Key, by_layer: Sequence[Moments]) -> "Tally":
        """Return a tally of a single statistic."""
        tally = cls()
        tally._moments[key] = dict(enumerate(by_layer))
        return tally

    def __contains__(self, key: Key) -> bool:
        """Return whether the tally has a statistic."""
        return key in self._moments

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys."""
        return iter(self._moments)

    def layers(self, key: Key) -> list[Moments]:
        """Return the moments of a statistic in each layer."""
        return [self._moments[key][layer] for layer in sorted(self._moments[key])]

    def stack(self, key: Key, of: Callable[[Moments], np.ndarray]) -> np.ndarray:
        """Return a function of the moments, stacked over layers."""
        return np.stack([of(moments) for moments in self.layers(key)])


@dataclass(frozen=True)
class Tallies:
    """Tallies of the measured network and of each draw of each null."""

    measured: Tally
    nulls: Mapping[str, Sequence[Tally]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """Arguments shared by all measures."""

    measure: str
    probe: Probe
    sequences: int
    nulls: int
    level: float
    seed: int

    @property
    def rows(self) -> np.ndarray:
        """Indices of the test sequences."""
        return np.arange(self.sequences)

    @property
    def network(self) -> Network:
        """Measured network."""
        return self.probe.network

    @property
    def shortest(self) -> int:
        """Length of the shortest measured sequence."""
        return int(lengths_of(self.probe.task.test)[self.rows].min())


def checked_request(measure: str, of: Any, inputs: Any, sequences: int, nulls: int, level: float, seed: int) -> Request:
    """Check the arguments shared by all measures; raise `UsageError` if one is invalid."""
    subject = probe(of, inputs)
    available = len(subject.task.test)
    if min(sequences, available) < 2:
        hint = f" (the test split has {available})" if sequences > 1 else ""
        raise UsageError(f"sequences={sequences}: must be at least 2 for an interval{hint}")
    if seed < 0:
        raise UsageError(f"seed={seed}: must not be negative")
    if not 0 <= nulls < MOST_NULLS:
        raise UsageError(f"nulls={nulls}: must be from 0 (none) to {MOST_NULLS - 1}")
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must be between 0 and 1")
    if measure == "gradients" and not subject.has_loss:
        raise UsageError(
            "gradients needs a loss: labels= or loss= of ap.network, or tokenizer= for a masked language model (on the "
            "command line: labels in --tokens)"
        )
    if measure == "positions" and not subject.network.shape.knows_queries:
        raise UsageError(
            "positions needs queries and keys, but this model shows only scores: use attn_implementation='sdpa' if it "
            "has it"
        )
    if measure == "interventions" and not (subject.has_loss or subject.has_logits):
        raise UsageError("interventions needs logits or a loss: ap.network(model, inputs, loss=...)")
    return Request(measure, subject, min(sequences, available), nulls, level, seed)


def over_sequences(
    request: Request, prepare: Prepare, kinds: Sequence[str] = NULLS, passes: int = 1
) -> tuple[Tallies, dict[str, list[Condition]]]:
    """Run a measure over all sequences for the measured network and each draw of each null.

    Args:
        request: Arguments of the measure.
        prepare: Prepares each network.
        kinds: Names of the nulls.
        passes: How often the measure calls `Target.advance` for each chunk and condition.

    Returns:
        Moments of all statistics, and the conditions of each null.
    """
    n, network = request.network.shape.n, request.network
    draws: dict[str, list[Condition]] = {}
    for kind in kinds if request.nulls else ():
        if kind == "permuted":
            orders = [permutation(request.measure, request.seed, draw, n) for draw in range(request.nulls)]
            draws[kind] = [Condition(network, draw, order) for draw, order in enumerate(orders)]
        else:
            networks = [untrained(network, request.seed, draw) for draw in range(request.nulls)]
            if conditions := [Condition(initial) for initial in networks if initial is not None]:
                draws[kind] = conditions
    total = (1 + sum(map(len, draws.values()))) * request.sequences * passes
    masked = masked_tokens(request.probe, request.seed, request.sequences)
    with progress.bar(total, request.measure, "sequence", delay=5, leave=False) as bar:

        def run(conditions: Sequence[Condition]) -> list[Tally]:
            tallies, network = [Tally() for _ in conditions], conditions[0].network
            with located(request, network):
                compute = prepare(network)
                for rows, batch in chunks(request.probe.task.test, request.rows, network):
                    length = batch.inputs.shape[1]
                    orders = [c.order if c.order is None else c.order[c.order < length] for c in conditions]
                    advance = functools.partial(bar.update, len(rows))
                    targets = [
                        Target(condition, None if order is None else torch.from_numpy(order), tally.add, advance)
                        for condition, order, tally in zip(conditions, orders, tallies, strict=True)
                    ]
                    mask = torch.from_numpy(masked[rows, :length]).to(batch.inputs.device)
                    compute(Sample(rows, batch, mask, request.shortest), targets)
            return tallies

        measured, *of_permuted = run([Condition(network), *draws.get("permuted", [])])
        nulls = {
            kind: of_permuted if kind == "permuted" else [run([condition])[0] for condition in conditions]
            for kind, conditions in draws.items()
        }
    return Tallies(measured, nulls), draws


# --- NaN and infinite values in the network


@contextmanager
def located(request: Request, network: Network) -> Iterator[None]:
    """Add to a `NonFiniteError` the weight, the module and the sequence in which such values come up first."""
    try:
        yield
    except NonFiniteError as error:
        whose = "" if network is request.network else "network at initialisation: "
        where = _origin(request, network)
        raise NonFiniteError(f"{request.measure}: {whose}{error}{where and '; '}{where}") from error


def _origin(request: Request, network: Network) -> str:
    """Return where NaN or infinite values come up first in the network, or an empty string if this is unknown."""
    model = module_of(network)
    if model is None:
        return ""
    reasons = [reason] if (reason := invalid_weight(model)) else []
    subject, splits = request.probe, {"test": request.probe.task.test, "training": request.probe.task.train}
    for objective, (kind, split) in itertools.product(subject.objectives, splits.items()):
        for rows, batch in chunks(split, np.arange(min(request.sequences, len(split))), network):
            mask = torch.ones_like(batch.real()) if OBJECTIVES[objective].masks_tokens else None
            predictions: list[Predictions] = []

            place = first_invalid(
                model,
                lambda args=(batch, objective, mask), found=predictions: found.append(network.predictions(*args)),
                len(rows),
            )
            if place is not None:
                module, row = place
                sequence = "" if row is None else f", {kind} sequence {rows[row]}"
                return "; ".join([f"first in the output of {module}{sequence}", *reasons])
            compared = subject.has_loss or predictions[0].logits is not None
            if compared and len(invalid := invalid_sequences(predictions[0])):
                return f"first in {kind} sequence {rows[int(invalid[0])]}"
    return "; ".join(reasons)


# --- labelled variables


def labelled(
    number: Number,
    name: str,
    axes: Mapping[str, int],
    tallies: Tallies,
    key: Key,
    level: float,
    units: str | None = None,
    over: tuple[str, ...] = ("layer",),
) -> dict[str, xr.Variable]:
    """Return the variables ``NAME``, ``NAME_interval``, ``NAME_std`` and, with nulls, ``NAME_null`` of a statistic.

    Args:
        number: Description of the statistic.
        name: Name of the variable.
        axes: Names and sizes of the axes of the values of one layer.
        tallies: Moments over sequences.
        key: Key of the statistic in the tallies.
        level: Confidence level of the interval.
        units: Units, if they differ from those of ``number``.
        over: Leading axes: ("layer",), or () for statistics of the whole network.
    """
    units = number.units if units is None else units

    def labelled_variable(
        leading: tuple[str, ...], values: Any, trailing: tuple[str, ...], long_name: str, **attributes: Any
    ) -> xr.Variable:
        values = np.asarray(values)
        shape = (*values.shape[: len(leading)], *axes.values(), *values.shape[values.ndim - len(trailing) :])
        array = variable((*leading, *axes, *trailing), values.reshape(shape), long_name, units)
        array.attrs.update(attributes)
        return array

    def evaluate(tally: Tally, function: Callable[[Moments], np.ndarray]) -> np.ndarray:
        if key not in tally:  # this null does not have the statistic
            return np.full_like(evaluate(tallies.measured, lambda moments: moments.mean), np.nan)
        values = tally.stack(key, function)
        return values if over else np.asarray(values[0])

    long_name, measured = number.meaning, tallies.measured
    method = {"method": number.method} if number.method else {}
    interval = {"ci_kind": "t", "ci_prob": level}
    variables = {
        name: labelled_variable(
            over, evaluate(measured, lambda moments: moments.mean), (), long_name, **method, **number.attributes
        ),
        f"{name}_interval": labelled_variable(
            over,
            evaluate(measured, lambda moments: moments.interval(level)),
            ("bound",),
            f"{100 * level:g} % interval: {long_name}",
            **interval,
        ),
        f"{name}_std": labelled_variable(
            over, evaluate(measured, lambda moments: moments.std), (), f"std over sequences: {long_name}"
        ),
    }
    if tallies.nulls:
        draws = [[evaluate(draw, lambda moments: moments.mean) for draw in draws] for draws in tallies.nulls.values()]
        variables[f"{name}_null"] = labelled_variable(("null", "draw", *over), draws, (), f"null: {long_name}")
    return variables


COMMON_REASONS = [
    Reason("*_by_offset", "no sequence has a visible pair of tokens at this offset"),
    Reason("train_accuracy test_accuracy", "not recorded with the network"),
]


def without_keys(request: Request, view: View, chosen: Callable[[Tensor], Tensor]) -> xr.DataArray:
    """Return for each layer whether no measured sequence has a visible key at the distances that ``chosen`` selects."""
    windows = [request.network.shape.window(layer) for layer in range(request.network.shape.layers)]
    lacking = {
        window: not any(bool((chosen(pairs.distance) & (pairs.count > 0)).any()) for pairs in by_sequence)
        for window, by_sequence in ((window, geometries(request, view, window)) for window in set(windows))
    }
    return xr.DataArray([lacking[window] for window in windows], {"layer": np.arange(len(windows))}, ["layer"])


def contrast_reasons(request: Request, window: int | float) -> list[Reason]:
    """Return the reasons for an undefined contrast of near and far keys, other than constant scores."""

    def lacking(near: bool) -> Callable[[xr.Dataset, str], xr.DataArray]:
        def where(measured: xr.Dataset, name: str) -> xr.DataArray:
            view = views(request.network)["grid_" if name.startswith("grid_") else ""]
            return without_keys(request, view, lambda d: (d > 0) & (d <= window) if near else d > window)

        return where

    return [
        Reason("proximity_contrast", f"no visible key is farther than {window}", lacking(near=False)),
        Reason("proximity_contrast", f"no visible key is at a distance from 1 to {window}", lacking(near=True)),
    ]


def default_reasons(numbers: Sequence[Number]) -> list[Reason]:
    """Return the reason that each number gives for being undefined."""
    return [Reason(number.name, number.undefined) for number in numbers if number.undefined]


def result(
    request: Request,
    variables: Mapping[str, xr.Variable],
    coordinates: Mapping[str, Any],
    kinds: Sequence[str],
    left_out: Mapping[str, str] | None = None,
    reasons: Sequence[Reason] = (),
    **facts: Any,
) -> xr.Dataset:
    """Return the result of a measure, with the coordinates and attributes shared by all measures.

    Args:
        request: Arguments of the measure.
        variables: Variables of the measure.
        coordinates: Coordinates of the measure.
        kinds: Names of the nulls in the result.
        left_out: Statistics that are missing or undefined for this network, and the reasons.
        reasons: Reasons for NaN in the variables; of those that apply to a value, the first counts.
        facts: Attributes of the measure.
    """
    shape, subject = request.network.shape, request.probe
    shared: dict[str, Any] = {
        "layer": np.arange(shape.layers),
        "head": np.arange(shape.heads),
        "offset": np.arange(-(shape.n - 1), shape.n),
        "bound": ["lower", "upper"],
        "null": list(kinds),
        "draw": np.arange(request.nulls),
    }
    if shape.grid is not None:
        height, width = shape.grid
        shared |= {"row_offset": np.arange(1 - height, height), "column_offset": np.arange(1 - width, width)}
    sites = subject.facts.get("sites")
    site = {} if sites is None else {"site": variable(("layer",), np.array(sites), "module that attends", "")}
    accuracies = {
        name: variable(
            (), np.nan if subject.metrics.get(name) is None else subject.metrics[name], name.replace("_", " "), "1"
        )
        for name in ("train_accuracy", "test_accuracy")
    }
    objective = {"objective": variable((), subject.objective, "training objective of the stage", "")}
    data = {name: value for name, value in dataclasses.asdict(subject.task.data).items() if name != "symbols"}
    measured = dataset(
        {**variables, **objective, **accuracies, **site},
        {**shared, **coordinates},
        {
            "measure": request.measure,
            "title": subject.title,
            "sequences": request.sequences,
            "sequences_from": "test",
            **facts,
            "seed": request.seed,
            "nulls": request.nulls,
            "smallest_p": 1 / (request.nulls + 1),
            "ci_kind": "t",
            "ci_prob": request.level,
            "left_out": dict(left_out or {}),
            "n": shape.n,
            "causal": int(shape.causal),
            "classes": subject.task.data.classes,
            "data": data,  # without the symbols, of which there may be many
            **({} if shape.grid is None else {"grid_unit": shape.grid_unit}),
            **subject.facts,
        },
    )
    for axis in {"row_offset", "column_offset"} & set(measured.coords):
        measured[axis].attrs["long_name"] = LABELS[str(axis)].replace("pixels", shape.grid_unit)
    return with_reasons(measured, [*reasons, *COMMON_REASONS])


# --- measures from a single function


RESERVED = {
    *("out", "path", "json", "data", "step", "quiet", "all"),
    *("n", "measure", "title", "config", "causal", "classes", "table", "note"),
}
"""Names that keywords of a measure must not have: flags of all commands and attributes of all results."""


def _keywords(compute: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the keyword parameters of a measure's function; raise `UsageError` if one cannot become a flag."""
    _, *keywords = inspect.signature(compute).parameters.values()
    for keyword in keywords:
        problem = (
            "must be keyword-only (after *)"
            if keyword.kind is not keyword.KEYWORD_ONLY
            else "needs a default and a type"
            if keyword.default is keyword.empty or keyword.annotation is keyword.empty
            else "is reserved"
            if keyword.name in RESERVED | {*_shared.parameters, *inspect.signature(result).parameters}
            else ""
        )
        if problem:
            raise UsageError(f"{compute.__name__}: keyword {keyword.name} {problem}")
    return keywords


def _check_values(name: str, values: Any, scores: Scores, axes: tuple[str, ...]) -> None:
    """Raise `UsageError` if values do not have the axes [batch, head, *axes]."""
    batch, heads, n = scores.shape
    expected = (batch, heads, *(2 * n - 1 for _ in axes))
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        actual = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        hint = "; for images, convert the statistics with in_line()" if axes and scores.grid is not None else ""
        raise UsageError(f"{name} of {actual}: must be a tensor over {['batch', 'head', *axes]} = {expected}{hint}")


def _arguments(
    of: Any, inputs: Any = None, *, sequences: int = 256, nulls: int = 8, level: float = 0.95, seed: int = 0
) -> None:
    """Define the arguments shared by all measures."""


_shared = inspect.signature(_arguments)
SHARED_ARGUMENTS = """
        sequences: Number of test sequences (the first ones).
        nulls: Number of draws of each null; 0 for none. The smallest possible p-value is 1 / (nulls + 1).
        level: Confidence level of the t-intervals over sequences.
        seed: Seed of the permutations and the initial networks."""


def measure(*numbers: Number) -> Callable[[Callable[..., Mapping[str, Tensor]]], Callable[..., xr.Dataset]]:
    """Decorate a function of one layer's `Heads` to make it a measure.

    The function returns the values of each number by name: [batch, head], or [batch, head, offset] for a number with
    axes ``("offset",)``. The measure accepts the keywords of the function and ``sequences``, ``nulls``, ``level`` and
    ``seed``. Its result has each number with interval, std and both nulls.

    Args:
        numbers: Descriptions of the values.
    """
    if not numbers or not all(isinstance(number, Number) for number in numbers):
        raise UsageError(
            "measure(...): needs a description of each value that the function returns: @measure(Number(...), ...)"
        )
    if unknown := sorted({axis for number in numbers for axis in number.axes} - {"offset"}):
        raise UsageError(f"measure(...): axes {listed(unknown)}; valid in addition to layer and head: offset")

    def decorate(compute: Callable[..., Mapping[str, Tensor]]) -> Callable[..., xr.Dataset]:
        name = compute.__name__
        by_name = {number.name: number for number in numbers}
        keywords = _keywords(compute)
        of, inputs, *shared = _shared.parameters.values()
        signature = inspect.Signature([of, inputs, *keywords, *shared])

        @functools.wraps(compute)
        def measured(of: Any, inputs: Any = None, **arguments: Any) -> xr.Dataset:
            bound = signature.bind(of, inputs, **arguments)
            bound.apply_defaults()
            options = dict(bound.arguments)
            request = checked_request(name, *(options.pop(parameter) for parameter in _shared.parameters))

            def add_values(heads: Heads, sample: Sample, add: Add) -> None:
                values = compute(heads, **options)
                if set(values) != set(by_name):
                    raise UsageError(f"{name}: returned {listed(values)}; must be {listed(by_name)}")
                for key, value in values.items():
                    _check_values(f"{name}: {key}", value, heads.scores, by_name[key].axes)
                    missing = request.network.shape.n - sample.length if "offset" in by_name[key].axes else 0
                    add((key,), heads.layer, widened(np.asarray(value.cpu()), missing))

            def prepare(network: Network) -> Compute:
                def compute_chunk(sample: Sample, targets: Sequence[Target]) -> None:
                    def add_heads(heads: Heads) -> None:
                        for target in targets:
                            scores = replace(heads.scores, order=target.order)
                            add_values(replace(heads, scores=scores), sample, target.add)
                            target.advance()

                    read(network, sample.batch, request.probe.objectives[0], add_heads)

                return compute_chunk

            tallies, draws = over_sequences(request, prepare, passes=request.network.shape.layers)
            variables: dict[str, xr.Variable] = {}
            sizes = {"head": request.network.shape.heads, "offset": 2 * request.network.shape.n - 1}
            for number in numbers:
                axes = {axis: sizes[axis] for axis in ("head", *number.axes)}
                variables |= labelled(number, number.name, axes, tallies, (number.name,), request.level)
            reasons = [
                *default_reasons(numbers),
                *(Reason(number.name, f"{name} returned NaN for every sequence") for number in numbers),
            ]
            return result(request, variables, {}, list(draws), reasons=reasons, **options)

        measured.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        docstring = inspect.cleandoc(compute.__doc__ or f"Measure the {numbers[0].meaning}.")
        measured.__doc__ = (
            docstring + ("" if "\nArgs:" in docstring else "\n\nArgs:") + SHARED_ARGUMENTS.replace("\n    ", "\n")
        )
        return measured

    return decorate
