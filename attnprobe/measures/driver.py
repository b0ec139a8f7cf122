"""What every measure does alike: sequences, nulls, moments, and labelled variables.

A measure says what it computes from the heads of one batch, and describes its numbers; `measure` makes the rest of it.
Those that need more (gradients, edits, a fit) use `over_sequences` and `labelled` directly.

**Nulls.** *permuted*: the same scores with positions permuted. *initial*: networks of the same configuration at
initialisation. Every draw sees the same sequences as the measured number, so that without structure the measured number
and its N draws are exchangeable: it lies above all of them with probability 1 / (N + 1).
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from attnprobe.errors import UsageError, listed
from attnprobe.geometry import Geometry, geometry
from attnprobe.networks import probe
from attnprobe.networks.base import Network, Probe, device_of, read
from attnprobe.randomness import numpy_generator
from attnprobe.results import dataset, variable
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import Moments
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split
from attnprobe.training.objectives import Batch

NULLS = ("permuted", "initial")
ELEMENTS = 2**23
"""Queries and keys of one chunk of sequences, in numbers."""
MOST_NULLS = 2**16

Key = tuple[str, ...]
"""What tells the numbers of a measure apart besides layer and head; the last word is the name."""
Add = Callable[[Key, int, Any], None]
"""Take in key, layer and values [sequence, ...] of a chunk."""


@dataclass(frozen=True)
class Number:
    """A number that a measure reports, and how a reader is told of it."""

    name: str
    meaning: str
    units: str = "1"
    axes: tuple[str, ...] = ()
    """Axes besides layer and head; "view" stands for the offsets of a view."""
    method: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)
    unstructured: str = ""
    """The value for a score without structure."""

    @property
    def attributes(self) -> dict[str, Any]:
        """What its variable says of itself besides meaning and units."""
        ends = {"valid_min": self.range[0], "valid_max": self.range[1]}
        found: dict[str, Any] = {name: end for name, end in ends.items() if math.isfinite(end)}
        return found | ({"without_structure": self.unstructured} if self.unstructured else {})


# --- views of the tokens


@dataclass(frozen=True)
class View:
    """One way to look at the same tokens: in a line, or on a grid."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    unit: str
    causal: bool

    @property
    def offsets(self) -> dict[str, int]:
        """The axes of offsets with their sizes."""
        return {axis: 2 * side - 1 for axis, side in zip(self.axes, self.shape, strict=True)}


def views(network: Network) -> dict[str, View]:
    """Return the views of a network's tokens, by the prefix of their variables."""
    shape = network.shape
    found = {"": View((shape.n,), ("offset",), "tokens", shape.causal)}
    if shape.grid is not None:
        found["grid_"] = View(shape.grid, ("row_offset", "column_offset"), "pixels", shape.causal)
    return found


def geometry_of(view: View, length: int) -> Geometry:
    """Return the geometry of a sequence in a view; only in a line can it be shorter than the longest."""
    return geometry(view.shape if len(view.shape) == 2 else (length,), view.causal)


def farthest(network: Network) -> float:
    """Return the largest distance of two tokens, in the view in which it is least."""
    return min(math.dist(view.shape, [1] * len(view.shape)) for view in views(network).values())


def check_window(network: Network, window: int | float, name: str = "window") -> None:
    """Raise `UsageError` if no key is near or none is far, unless the sequences are too short for any window."""
    largest = farthest(network)
    if largest <= 1 <= window:
        return
    if not 1 <= window < largest:
        raise UsageError(f"{name}={window}: must be at least 1 and below {largest:.3g}, the farthest distance there is")


def undefined(network: Network, numbers: str, up_to: int = 1) -> dict[str, str]:
    """Return, as ``left_out`` of a result, numbers that sequences have none of if no key is farther than ``up_to``."""
    if farthest(network) > up_to:
        return {}
    return {numbers: f"undefined (NaN): no key is farther than {up_to} in sequences of n={network.shape.n}"}


def widened(values: np.ndarray, short: int) -> np.ndarray:
    """Return profiles over the offsets of sequences that are ``short`` tokens shorter than the longest, with NaN."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(short, short)], constant_values=np.nan) if short else values


def mean_over_shared(profile: np.ndarray, length: int, shortest: int, causal: bool) -> np.ndarray:
    """Return the mean of profiles over the pairs that the shortest sequence has."""
    weight = geometry((shortest,), causal).count.numpy()
    shared = np.nan_to_num(profile[..., length - shortest : length + shortest - 1])
    return (shared @ weight / weight.sum())[..., None]


# --- sequences


@dataclass(frozen=True)
class Sample:
    """Some sequences of one length, without padding, as every condition sees them."""

    rows: np.ndarray
    """Their places among the measured sequences."""
    batch: Batch
    hidden: Tensor
    """[batch, token]: the tokens that are hidden under an objective that hides tokens."""
    shortest: int
    """Length of the shortest of all measured sequences."""
    order: Tensor | None
    """In the permuted null, a permutation of the tokens."""

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self.batch.inputs.shape[1]

    def mask(self, objective: str) -> Tensor | None:
        """Return what is hidden under an objective, or None."""
        return self.hidden if OBJECTIVES[objective].hides_tokens else None


def lengths_of(split: Split) -> np.ndarray:
    """Return the number of tokens of each sequence of a split."""
    return np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths


def chunks(split: Split, rows: np.ndarray, network: Network) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield places in ``rows`` and the batch of these rows, a few at a time, all of one length and without padding."""
    lengths, shape, device = lengths_of(split)[rows], network.shape, device_of(network)
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        size = max(1, ELEMENTS // (2 * length * shape.d_model * shape.layers))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            labels = torch.from_numpy(split.labels[rows[chosen]]).long()
            yield chosen, Batch(split.tensor(rows[chosen], length).to(device), labels.to(device))


def hidden_tokens(of: Probe, seed: int, sequences: int) -> np.ndarray:
    """Return which tokens of the first test sequences are hidden: at least one of each."""
    n = of.task.data.n
    drawn = numpy_generator(seed, "masks of measures").random((sequences, n))
    real = np.arange(n) < lengths_of(of.task.test)[:sequences, None]
    drawn[~((drawn < of.mask_probability) & real).any(1), 0] = 0
    return drawn < of.mask_probability


def permutation(measure: str, seed: int, draw: int, n: int) -> np.ndarray:
    """Return the permutation of n positions that belongs to a draw of a measure's null."""
    return numpy_generator(seed, f"{measure} permutation", draw).permutation(n)


def untrained(network: Network, seed: int, draw: int) -> Network | None:
    """Return the network of a draw of the initial null, from a seed that belongs to no run."""
    return network.untrained(2**32 + seed * MOST_NULLS + draw)


# --- passes: the measured one and its nulls


@dataclass(frozen=True)
class Condition:
    """One pass of a measure over its sequences: the measured one, or a draw of a null."""

    network: Network
    draw: int | None = None
    """The draw, in the permuted null."""
    order: np.ndarray | None = None
    """The permutation of that draw."""


Compute = Callable[[Sample, Add], None]
"""Compute the numbers of some sequences."""
Prepare = Callable[[Condition], Compute]
"""Get ready for a condition (means, fits), and return what computes its numbers."""


class Tally:
    """Moments over sequences of every number, by layer."""

    def __init__(self) -> None:
        """Start with no number."""
        self._moments: dict[Key, dict[int, Moments]] = {}

    def add(self, key: Key, layer: int, values: Any) -> None:
        """Take in the values [sequence, ...] of some sequences."""
        self._moments.setdefault(key, {}).setdefault(layer, Moments()).add(np.asarray(values))

    @classmethod
    def of(cls, key: Key, by_layer: Sequence[Moments]) -> "Tally":
        """Return a tally of one number."""
        made = cls()
        made._moments[key] = dict(enumerate(by_layer))
        return made

    def __contains__(self, key: Key) -> bool:
        """Return whether a number was taken in."""
        return key in self._moments

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys."""
        return iter(self._moments)

    def layers(self, key: Key) -> list[Moments]:
        """Return the moments of a number, layer by layer."""
        return [self._moments[key][layer] for layer in sorted(self._moments[key])]

    def stack(self, key: Key, of: Callable[[Moments], np.ndarray]) -> np.ndarray:
        """Return something of the moments, over layers first."""
        return np.stack([of(one) for one in self.layers(key)])


@dataclass(frozen=True)
class Tallies:
    """What a measure found, and what it found in each draw of each null."""

    measured: Tally
    nulls: Mapping[str, Sequence[Tally]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What every measure is asked."""

    measure: str
    probe: Probe
    sequences: int
    nulls: int
    level: float
    seed: int

    @property
    def rows(self) -> np.ndarray:
        """The test sequences."""
        return np.arange(self.sequences)

    @property
    def network(self) -> Network:
        """The network."""
        return self.probe.network

    @property
    def shortest(self) -> int:
        """Length of the shortest sequence."""
        return int(lengths_of(self.probe.task.test)[self.rows].min())


def checked_request(measure: str, of: Any, sequences: int, nulls: int, level: float, seed: int) -> Request:
    """Check what every measure is asked; raise `UsageError` for what cannot be."""
    made = probe(of)
    most = len(made.task.test)
    if min(sequences, most) < 2:
        there = f" (the test split has {most})" if sequences > 1 else ""
        raise UsageError(f"sequences={sequences}: an interval needs at least 2{there}")
    if seed < 0:
        raise UsageError(f"seed={seed}: must not be negative")
    if not 0 <= nulls < MOST_NULLS:
        raise UsageError(f"nulls={nulls}: must be 0 (none) ... {MOST_NULLS - 1}")
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must be between 0 and 1")
    return Request(measure, made, min(sequences, most), nulls, level, seed)


def over_sequences(
    request: Request, prepare: Prepare, kinds: Sequence[str] = NULLS, passes: int = 1
) -> tuple[Tallies, dict[str, list[Condition]]]:
    """Return the moments of every number over all sequences, measured and in each draw of each null.

    ``kinds`` names the nulls, ``passes`` the passes over the network of one condition, for the progress bar. The
    second part holds the conditions of each null.
    """
    n, network = request.network.shape.n, request.network
    draws: dict[str, list[Condition]] = {}
    for kind in kinds if request.nulls else ():
        if kind == "permuted":
            orders = [permutation(request.measure, request.seed, draw, n) for draw in range(request.nulls)]
            draws[kind] = [Condition(network, draw, order) for draw, order in enumerate(orders)]
        else:
            drawn = [untrained(network, request.seed, draw) for draw in range(request.nulls)]
            if conditions := [Condition(one) for one in drawn if one is not None]:
                draws[kind] = conditions
    every = 1 + sum(map(len, draws.values()))
    total = every * request.sequences * passes
    hidden = hidden_tokens(request.probe, request.seed, request.sequences)
    with tqdm(total=total, desc=request.measure, unit="sequence", delay=5, leave=False, dynamic_ncols=True) as bar:

        def tally(condition: Condition) -> Tally:
            found, see = Tally(), prepare(condition)
            for rows, batch in chunks(request.probe.task.test, request.rows, condition.network):
                length = batch.inputs.shape[1]
                order = None if condition.order is None else torch.from_numpy(condition.order[condition.order < length])
                mask = torch.from_numpy(hidden[rows, :length]).to(batch.inputs.device)
                see(Sample(rows, batch, mask, request.shortest, order), found.add)
                bar.update(len(rows) * passes)
            return found

        measured = tally(Condition(network))
        nulls = {kind: [tally(condition) for condition in of_kind] for kind, of_kind in draws.items()}
    return Tallies(measured, nulls), draws


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
    """Return ``NAME``, ``NAME_interval``, ``NAME_std`` and, with nulls, ``NAME_null`` of one number.

    ``axes`` are those of one layer's values, with their sizes; ``over`` is ("layer",), or () for numbers of the whole.
    """
    units = number.units if units is None else units

    def variable_of(lead: tuple[str, ...], values: Any, tail: tuple[str, ...], about: str, **more: Any) -> xr.Variable:
        values = np.asarray(values)
        shape = (*values.shape[: len(lead)], *axes.values(), *values.shape[values.ndim - len(tail) :])
        made = variable((*lead, *axes, *tail), values.reshape(shape), about, units)
        made.attrs.update(more)
        return made

    def of(tally: Tally, what: Callable[[Moments], np.ndarray]) -> np.ndarray:
        if key not in tally:  # this null has no such number
            return np.full_like(of(tallies.measured, lambda one: one.mean), np.nan)
        values = tally.stack(key, what)
        return values if over else np.asarray(values[0])

    about, measured = number.meaning, tallies.measured
    method = {"method": number.method} if number.method else {}
    interval = {"ci_kind": "t", "ci_prob": level}
    made = {
        name: variable_of(over, of(measured, lambda one: one.mean), (), about, **method, **number.attributes),
        f"{name}_interval": variable_of(
            over,
            of(measured, lambda one: one.interval(level)),
            ("bound",),
            f"{100 * level:g} % interval: {about}",
            **interval,
        ),
        f"{name}_std": variable_of(over, of(measured, lambda one: one.std), (), f"std over sequences: {about}"),
    }
    if tallies.nulls:
        draws = [[of(draw, lambda one: one.mean) for draw in draws] for draws in tallies.nulls.values()]
        made[f"{name}_null"] = variable_of(("null", "draw", *over), draws, (), f"null: {about}")
    return made


def result(
    request: Request,
    variables: Mapping[str, xr.Variable],
    coordinates: Mapping[str, Any],
    kinds: Sequence[str],
    left_out: Mapping[str, str] | None = None,
    **facts: Any,
) -> xr.Dataset:
    """Return the result of a measure: variables with the coordinates and facts that all measures share.

    ``kinds`` are the nulls that were taken; ``left_out`` says what this network cannot give, and why.
    """
    shape, of = request.network.shape, request.probe
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
    accuracies = {
        name: variable((), np.nan if of.metrics.get(name) is None else of.metrics[name], name.replace("_", " "), "1")
        for name in ("train_accuracy", "test_accuracy")
    }
    objective = {"objective": variable((), of.objective, "objective of the stage", "")}
    return dataset(
        {**variables, **objective, **accuracies},
        {**shared, **coordinates},
        {
            "measure": request.measure,
            "title": of.title,
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
            "classes": of.task.data.classes,
            "data": dataclasses.asdict(of.task.data),
            **of.facts,
        },
    )


# --- a whole measure from one function


RESERVED = {"out", "path", "json", "data", "n", "measure", "title", "step", "config", "causal", "classes", "table"}
"""Names that a measure's keywords cannot have: flags of every command, and facts of every result."""


def _keywords(compute: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the keywords of a measure's function; raise `UsageError` if one cannot be a flag."""
    _, *own = inspect.signature(compute).parameters.values()
    for one in own:
        wrong = (
            "must stand after *"
            if one.kind is not one.KEYWORD_ONLY
            else "needs a default and a type"
            if one.default is one.empty or one.annotation is one.empty
            else "is taken"
            if one.name in RESERVED | {*_shared.parameters, *inspect.signature(result).parameters}
            else ""
        )
        if wrong:
            raise UsageError(f"{compute.__name__}: keyword {one.name} {wrong}")
    return own


def _check_values(name: str, values: Any, scores: Scores, axes: tuple[str, ...]) -> None:
    """Raise `UsageError` if a measure's values are not over sequences, heads and the axes it describes."""
    batch, heads, n = scores.shape
    expected = (batch, heads, *(2 * n - 1 for _ in axes))
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        hint = "; on a grid, statistics have in_line()" if axes and scores.grid is not None else ""
        raise UsageError(f"{name} of {found}: must be a tensor over {['batch', 'head', *axes]} = {expected}{hint}")


def _arguments(of: Any, *, sequences: int = 256, nulls: int = 8, level: float = 0.95, seed: int = 0) -> None:
    """Have the arguments that every measure has."""


_shared = inspect.signature(_arguments)
SHARED_ARGUMENTS = """
        sequences: Number of test sequences: the first ones.
        nulls: Draws of each null; 0 for none. The smallest p-value they allow is 1 / (nulls + 1).
        level: Level of the intervals (Student's t, over sequences).
        seed: Seed of the permutations and the untrained networks."""


def measure(*numbers: Number) -> Callable[[Callable[..., Mapping[str, Tensor]]], Callable[..., xr.Dataset]]:
    """Make a measure of a function from one layer's `Heads` and keywords to the numbers labelled, by name.

    Values are [batch, head], or [batch, head, offset] for a number with axes ``("offset",)``. The measure has the
    function's own keywords, and ``sequences``, ``nulls``, ``level`` and ``seed``; its result has intervals and both
    nulls beside every number.
    """
    if not numbers or not all(isinstance(one, Number) for one in numbers):
        raise UsageError("measure(...) takes the numbers that the function returns: @measure(Number(...), ...)")
    if unknown := sorted({axis for one in numbers for axis in one.axes} - {"offset"}):
        raise UsageError(f"measure(...): axes {listed(unknown)}; valid besides layer and head: offset")

    def made(compute: Callable[..., Mapping[str, Tensor]]) -> Callable[..., xr.Dataset]:
        name = compute.__name__
        known = {one.name: one for one in numbers}
        own = _keywords(compute)
        first, *shared = _shared.parameters.values()
        signature = inspect.Signature([first, *own, *shared])

        @functools.wraps(compute)
        def whole(of: Any, **named: Any) -> xr.Dataset:
            bound = signature.bind(of, **named)
            bound.apply_defaults()
            options = dict(bound.arguments)
            request = checked_request(name, *(options.pop(one) for one in _shared.parameters))

            def prepare(condition: Condition) -> Compute:
                def see(sample: Sample, add: Add) -> None:
                    def see_heads(heads: Heads) -> None:
                        scores = replace(heads.scores, order=sample.order)
                        values = compute(replace(heads, scores=scores), **options)
                        if set(values) != set(known):
                            raise UsageError(f"{name} returned {listed(values)}; it describes {listed(known)}")
                        for key, value in values.items():
                            _check_values(f"{name}: {key}", value, scores, known[key].axes)
                            short = request.network.shape.n - sample.length if "offset" in known[key].axes else 0
                            add((key,), heads.layer, widened(np.asarray(value.cpu()), short))

                    read(condition.network, sample.batch, request.probe.objectives[0], see_heads)

                return see

            tallies, draws = over_sequences(request, prepare)
            variables: dict[str, xr.Variable] = {}
            sizes = {"head": request.network.shape.heads, "offset": 2 * request.network.shape.n - 1}
            for number in numbers:
                axes = {axis: sizes[axis] for axis in ("head", *number.axes)}
                variables |= labelled(number, number.name, axes, tallies, (number.name,), request.level)
            return result(request, variables, {}, list(draws), **options)

        whole.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        said = inspect.cleandoc(compute.__doc__ or f"Measure the {numbers[0].meaning}.")
        whole.__doc__ = said + ("" if "\nArgs:" in said else "\n\nArgs:") + SHARED_ARGUMENTS.replace("\n    ", "\n")
        return whole

    return made
