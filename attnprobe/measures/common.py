"""What every measure does alike: its data, its nulls, and how moments over sequences become labelled variables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator

if TYPE_CHECKING:
    import xarray as xr

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.statistics import Moments
    from attnprobe.statistics.geometry import Geometry
    from attnprobe.transformer import Transformer

DRAWS = 8
"""Draws of each null: permutations, and networks at initialisation."""
NULLS = ("permuted", "initial")


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


def views(checkpoint: "Checkpoint") -> dict[str, View]:
    """Return the views of the data, by the prefix of their variables."""
    data, causal = checkpoint.data, checkpoint.config.model.causal
    found = {"": View((data.n,), ("offset",), "tokens", causal)}
    if data.grid is not None:
        found["grid_"] = View(data.grid, ("row_offset", "column_offset"), "pixels", causal)
    return found


def geometry_of(view: View, length: int) -> "Geometry":
    """Return the geometry of a sequence in a view; only in a line can it be shorter than the longest."""
    from attnprobe.statistics.geometry import geometry

    return geometry(view.shape if len(view.shape) == 2 else (length,), view.causal)


def check(checkpoint: "Checkpoint", sequences: int, seed: int) -> None:
    """Raise `UsageError` where there are too few sequences for an interval, or the seed is negative."""
    if min(sequences, len(checkpoint.task.test)) < 2:
        there = f" (the test split has {len(checkpoint.task.test)})"
        raise UsageError(f"sequences={sequences}: an interval needs at least 2{there if sequences > 1 else ''}")
    if seed < 0:
        raise UsageError(f"seed={seed}: must not be negative")


def check_window(checkpoint: "Checkpoint", window: int, name: str = "window") -> None:
    """Raise `UsageError` where nothing is near or nothing is far."""
    farthest = min(math.dist(view.shape, [1] * len(view.shape)) for view in views(checkpoint).values())
    if not 1 <= window < farthest:
        raise UsageError(
            f"{name}={window}: must be at least 1 and below {farthest:.3g}, the farthest distance there is"
        )


def permutation(measure: str, seed: int, draw: int, n: int) -> np.ndarray:
    """Return the permutation of n positions that belongs to a draw of a measure's null."""
    return numpy_generator(seed, f"{measure} permutation", draw).permutation(n)


def initial_network(checkpoint: "Checkpoint", seed: int, draw: int) -> "Transformer":
    """Return a network of the checkpoint's configuration before training, from a seed that belongs to no run."""
    from attnprobe.transformer import Transformer

    return Transformer(checkpoint.config.model, checkpoint.data, seed=2**32 + seed * DRAWS + draw).eval()


def masks(checkpoint: "Checkpoint", seed: int, sequences: int) -> np.ndarray:
    """Return which tokens of the first test sequences are hidden, for *masked*: at least one of each sequence."""
    drawn = numpy_generator(seed, "masks of measures").random((sequences, checkpoint.data.n))
    share = checkpoint.config.mask_share
    real = np.arange(checkpoint.data.n) < lengths(checkpoint)[:sequences, None]
    nothing = ~((drawn < share) & real).any(1)
    drawn[nothing, 0] = 0
    return drawn < share


def lengths(checkpoint: "Checkpoint") -> np.ndarray:
    """Return the number of tokens of each test sequence."""
    test = checkpoint.task.test
    return np.full(len(test), checkpoint.data.n) if test.lengths is None else test.lengths


def widened(values: np.ndarray, short: int) -> np.ndarray:
    """Return profiles over the offsets of sequences that are ``short`` tokens shorter than the longest, with NaN."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(short, short)], constant_values=np.nan) if short else values


def mean_over_shared(kernel: np.ndarray, length: int, shortest: int, causal: bool) -> np.ndarray:
    """Return the mean of kernels over the pairs that the shortest sequence has."""
    from attnprobe.statistics.geometry import geometry

    weight = geometry((shortest,), causal).count.numpy()
    shared = np.nan_to_num(kernel[..., length - shortest : length + shortest - 1])
    return (shared @ weight / weight.sum())[..., None]


def summary(
    name: str,
    axes: Mapping[str, int],
    by_layer: Sequence["Moments"],
    nulls: Sequence[Sequence[np.ndarray]] | None,
    words: Sequence[str],
) -> dict[str, "xr.Variable"]:
    """Return ``NAME``, ``NAME_interval``, ``NAME_sd`` and ``NAME_null`` of one statistic.

    Moments are a list over layers, of numbers over ``axes`` (flat or not); nulls hold, for each kind and draw, the
    means of the same numbers over layers first. Words are long name, units and method.
    """
    from attnprobe.results import variable

    def over(lead: tuple[str, ...], values: Any, tail: tuple[str, ...], *words: str) -> "xr.Variable":
        values = np.asarray(values)
        shape = (*values.shape[: len(lead)], *axes.values(), *values.shape[values.ndim - len(tail) :])
        return variable((*lead, *axes, *tail), values.reshape(shape), *words)

    long_name, units, *method = words
    about = f"95 % interval: {long_name}"
    made = {
        name: over(("layer",), [one.mean for one in by_layer], (), long_name, units, *method),
        f"{name}_interval": over(("layer",), [one.interval() for one in by_layer], ("bound",), about, units),
        f"{name}_sd": over(("layer",), [one.sd for one in by_layer], (), f"sd over sequences: {long_name}", units),
    }
    if nulls is not None:
        made[f"{name}_null"] = over(("null", "draw", "layer"), nulls, (), f"null: {long_name}", units)
    return made


def accuracies(checkpoint: "Checkpoint") -> dict[str, "xr.Variable"]:
    """Return the accuracies at the checkpoint and the objective they belong to."""
    from attnprobe.results import variable

    last = checkpoint.last_metrics
    return {
        "objective": variable((), checkpoint.objective, "objective of the stage", ""),
        **{
            name: variable((), np.nan if last.get(name) is None else last[name], name.replace("_", " "), "1")
            for name in ("train_accuracy", "test_accuracy")
        },
    }


def coordinates(checkpoint: "Checkpoint", draws: int) -> dict[str, Any]:
    """Return the coordinates that most results have; those of axes that a result lacks are left out by `dataset`."""
    n, model = checkpoint.data.n, checkpoint.config.model
    made = {
        "layer": np.arange(model.n_layers),
        "head": np.arange(model.n_heads),
        "offset": np.arange(-(n - 1), n),
        "bound": ["lower", "upper"],
        "null": list(NULLS),
        "draw": np.arange(draws),
    }
    if checkpoint.data.grid is not None:
        height, width = checkpoint.data.grid
        made |= {"row_offset": np.arange(1 - height, height), "column_offset": np.arange(1 - width, width)}
    return made


def facts(checkpoint: "Checkpoint", measure: str, sequences: int, seed: int, **more: Any) -> dict[str, Any]:
    """Return what a result says of itself besides its numbers."""
    return {
        "measure": measure,
        "title": checkpoint.title,
        "step": checkpoint.step,
        "sequences": sequences,
        "sequences_from": "test",
        **more,
        "seed": seed,
        "n": checkpoint.data.n,
        "classes": checkpoint.data.classes,
        "config": asdict(checkpoint.config),
        "data": asdict(checkpoint.data),
        "data_fingerprint": checkpoint.fingerprint,
        "checkpoint_provenance": checkpoint.provenance,
    }
