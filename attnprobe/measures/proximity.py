"""Proximity: do scores and attention favour near keys, how much, and over what range?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.statistics.decay import Decay
    from attnprobe.statistics.geometry import Geometry
    from attnprobe.transformer import Transformer

DRAWS = 8
"""Draws of each null: permutations, and networks at initialisation."""
NULLS = ("permuted", "initial")
REFITS = 200
"""Resamples for which the decay is fitted again."""


def proximity(
    checkpoint: "Checkpoint", *, sequences: int = 256, window: int = 2, resamples: int = 1000, seed: int = 0
) -> "xr.Dataset":
    r"""Measure how near the keys are that each head scores high and attends to.

    The network reads test sequences without any masking. For every layer, head and sequence the statistics of
    `attnprobe.statistics.proximity` are taken from the score that `attnprobe.attention.scores` gives for the queries
    and keys of that forward pass, in float64; reported are means over sequences.

    The variables, over ``layer`` and ``head`` and, where named, more:

    - ``score_by_offset`` (offset): the function of the offset that fits the score best, a constant for each query
      aside, which the softmax ignores; ``pattern_by_offset`` (offset): mean attention weight of a pair;
    - ``toeplitz_share``: share of the row-centred score's variance that the offset explains, 0 ... 1; for a score
      without structure the number of offsets, less one, over n (n - 1): 2 / n in a line;
    - ``proximity_contrast``: mean score of near keys (0 < distance <= window) minus that of far keys, in sd of the
      score; 0 where near and far are alike;
    - ``mean_distance`` (tokens) and ``mean_distance_ratio``, over that of uniform attention: 1 for uniform, below 1
      for near (Tay et al. 2021, section 2.3; Dosovitskiy et al. 2021);
    - ``near_mass`` (within): attention at distance 1, and within the window, over its uniform share;
    - ``entropy`` (nats);
    - ``decay_length`` (tokens) of the exponential that fits the score's profile, its bootstrap standard error
      ``decay_length_se``, ``decay_r2``, and ``decay_reason``, which says why where the length is NaN.

    Image tasks have the same over two-dimensional offsets, under names that begin with ``grid_``. Each of the numbers
    but the fit has ``NAME_interval`` (bound), a 95 % bootstrap interval over sequences, and ``NAME_null`` (null, draw):
    *permuted*, the same scores with the positions of queries and keys permuted alike (where attention is causal, those
    of the keys that a query sees), and *initial*, networks of the same configuration at initialisation; every draw is
    taken on its share of the sequences. Where the network puts a [CLS] in front, all is about the attention among the
    tokens of the sequence: pattern and entropy are those of a softmax without [CLS].

    Args:
        checkpoint: The checkpoint to measure.
        sequences: Number of test sequences: the first ones.
        window: Largest distance that counts as near, in tokens or pixels.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples, the permutations and the initial networks.
    """
    from attnprobe.results import dataset
    from attnprobe.statistics.intervals import resampling

    _check(checkpoint, sequences, window, resamples, seed)
    n, layers = checkpoint.data.n, checkpoint.config.model.n_layers
    sequences = min(sequences, len(checkpoint.task.test))
    within = tuple(sorted({1, window}))
    draws = min(DRAWS, sequences)
    weights = resampling(sequences, resamples, numpy_generator(seed, "proximity resamples"))
    views = _views(checkpoint)
    look = partial(_per_sequence, checkpoint, views, within)
    rows = np.arange(sequences)
    measured = look(checkpoint.model, rows)
    nulls = {
        "permuted": [look(checkpoint.model, rows[draw::draws], _order(seed, draw, n)) for draw in range(draws)],
        "initial": [look(_initial(checkpoint, seed, draw), rows[draw::draws]) for draw in range(draws)],
    }
    variables: dict[str, xr.Variable] = {}
    for prefix, view in views.items():
        of_view = {null: [draw[prefix] for draw in draws_of] for null, draws_of in nulls.items()}
        variables.update(_summary(prefix, view, measured[prefix], of_view, weights))
    variables.update(_metrics(checkpoint))
    coordinates = {
        "layer": np.arange(layers),
        "head": np.arange(checkpoint.config.model.n_heads),
        "offset": np.arange(-(n - 1), n),
        "within": np.array(within),
        "bound": ["lower", "upper"],
        "null": list(NULLS),
        "draw": np.arange(draws),
    }
    if checkpoint.data.grid is not None:
        height, width = checkpoint.data.grid
        coordinates |= {"row_offset": np.arange(1 - height, height), "column_offset": np.arange(1 - width, width)}
    return dataset(
        variables,
        coordinates,
        {
            "measure": "proximity",
            "title": checkpoint.title,
            "step": checkpoint.step,
            "sequences": sequences,
            "sequences_from": "test",
            "window": window,
            "resamples": resamples,
            "seed": seed,
            "n": n,
            "classes": checkpoint.data.classes,
            "config": asdict(checkpoint.config),
            "data": asdict(checkpoint.data),
            "data_fingerprint": checkpoint.fingerprint,
            "checkpoint_provenance": checkpoint.provenance,
        },
    )


@dataclass(frozen=True)
class _View:
    """One way to look at the same tokens: in a line, or on a grid."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    unit: str
    causal: bool


def _views(checkpoint: "Checkpoint") -> dict[str, _View]:
    data, causal = checkpoint.data, checkpoint.config.model.causal
    views = {"": _View((data.n,), ("offset",), "tokens", causal)}
    if data.grid is not None:
        views["grid_"] = _View(data.grid, ("row_offset", "column_offset"), "pixels", causal)
    return views


# name: (axes besides layer and head, long name, units, method); "view" and "unit" are filled in by the view.
DESCRIBED = {
    "score_by_offset": (("view",), "score by offset", "1", "least squares with a free constant for each query"),
    "pattern_by_offset": (("view",), "attention weight of a pair by offset", "1", "mean over pairs"),
    "toeplitz_share": ((), "share of the score's variance that the offset explains", "1", "row-centred"),
    "proximity_contrast": ((), "score of near minus far keys", "sd of the score", "row-centred, offset 0 left out"),
    "mean_distance": ((), "mean attention distance", "unit", "attention-weighted, mean over queries"),
    "mean_distance_ratio": ((), "mean attention distance over uniform", "1", "1 for uniform attention"),
    "near_mass": (("within",), "attention to near keys over uniform", "1", "offset 0 left out"),
    "entropy": ((), "entropy of the pattern", "nats", "mean over queries"),
}


def _check(checkpoint: "Checkpoint", sequences: int, window: int, resamples: int, seed: int) -> None:
    if min(sequences, len(checkpoint.task.test)) < 2:
        there = f" (the test split has {len(checkpoint.task.test)})"
        raise UsageError(f"sequences={sequences}: an interval needs at least 2{there if sequences > 1 else ''}")
    if seed < 0:
        raise UsageError(f"seed={seed}: must not be negative")
    farthest = min(math.dist(view.shape, [1] * len(view.shape)) for view in _views(checkpoint).values())
    if not 1 <= window < farthest:
        raise UsageError(
            f"window={window}: must be at least 1 and below {farthest:.3g}, the farthest distance there is"
        )
    if resamples < 1:
        raise UsageError(f"resamples={resamples}: must be at least 1")


def _order(seed: int, draw: int, n: int) -> np.ndarray:
    return numpy_generator(seed, "proximity permutation", draw).permutation(n)


def _initial(checkpoint: "Checkpoint", seed: int, draw: int) -> "Transformer":
    """Return a network of the checkpoint's configuration before training, from a seed that belongs to no run."""
    from attnprobe.transformer import Transformer

    return Transformer(checkpoint.config.model, checkpoint.data, seed=2**32 + seed * DRAWS + draw).eval()


def _per_sequence(
    checkpoint: "Checkpoint",
    views: Mapping[str, _View],
    within: tuple[int, ...],
    model: "Transformer",
    rows: np.ndarray,
    order: np.ndarray | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each view, each statistic of [sequence, layer, head, ...]; positions are permuted by an order.

    Offsets that a shorter sequence does not have are NaN.
    """
    from attnprobe.measures.capture import chunks, scores_by_layer
    from attnprobe.statistics.geometry import geometry
    from attnprobe.statistics.proximity import proximity_statistics

    n, shortest = checkpoint.data.n, int(_lengths(checkpoint).min())
    places: list[np.ndarray] = []
    found: dict[str, list[dict[str, np.ndarray]]] = {prefix: [] for prefix in views}
    for chosen, inputs in chunks(checkpoint.task.test, rows, model.cfg.n_heads):
        length = inputs.shape[1]
        layers = list(scores_by_layer(model, inputs))
        if order is not None:
            layers = [_permuted(scores, order[order < length], model.cfg.causal) for scores in layers]
        for prefix, view in views.items():
            shown = geometry(view.shape if length == n else (length,), view.causal)
            by_layer = [proximity_statistics(scores, shown, within) for scores in layers]
            values = {name: np.stack([getattr(one, name).numpy() for one in by_layer], axis=1) for name in DESCRIBED}
            if length > shortest:
                # A kernel has a free constant: on the offsets that all sequences have, all get mean 0.
                shared = slice(length - shortest, length + shortest - 1)
                weight = geometry((shortest,), view.causal).count.numpy()
                kernel = values["score_by_offset"]
                mean = np.nan_to_num(kernel[..., shared]) @ weight / weight.sum()
                values["score_by_offset"] = kernel - mean[..., None]
            uniform = np.broadcast_to((shown.uniform / shown.count).numpy(), (len(chosen), len(shown.count)))
            values["uniform_pattern_by_offset"] = uniform
            found[prefix].append({name: _widened(name, value, n - length) for name, value in values.items()})
        places.append(chosen)
    back = np.argsort(np.concatenate(places))
    return {
        prefix: {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
        for prefix, parts in found.items()
    }


def _lengths(checkpoint: "Checkpoint") -> np.ndarray:
    test = checkpoint.task.test
    return np.full(len(test), checkpoint.data.n) if test.lengths is None else test.lengths


def _permuted(scores: "torch.Tensor", order: np.ndarray, causal: bool) -> "torch.Tensor":
    """Return the scores with positions permuted: queries and keys alike.

    A causal query has only the keys up to its own place; there the order is that of those keys alone, so that every
    query keeps the scores that it uses.
    """
    import torch

    if not causal:
        kept = torch.from_numpy(order)
        return scores[..., kept, :][..., kept]
    rows = [np.concatenate([order[order <= query], np.arange(query + 1, len(order))]) for query in range(len(order))]
    return scores.gather(-1, torch.from_numpy(np.stack(rows)).expand_as(scores))


def _widened(name: str, values: np.ndarray, short: int) -> np.ndarray:
    if not name.endswith("by_offset") or not short:
        return values
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(short, short)], constant_values=np.nan)


def _summary(
    prefix: str,
    view: _View,
    measured: dict[str, np.ndarray],
    nulls: dict[str, list[dict[str, np.ndarray]]],
    weights: np.ndarray,
) -> dict[str, "xr.Variable"]:
    """Return the variables of one view: means, intervals and nulls, the uniform pattern, and the decay."""
    from attnprobe.results import variable
    from attnprobe.statistics.intervals import bootstrap_interval

    _, layers, heads, near = measured["near_mass"].shape
    sizes = {
        "layer": layers,
        "head": heads,
        "within": near,
        "bound": 2,
        "null": len(NULLS),
        "draw": len(nulls[NULLS[0]]),
    }
    sizes |= {axis: 2 * side - 1 for axis, side in zip(view.axes, view.shape, strict=True)}

    def over(axes: tuple[str, ...], values: np.ndarray, *words: str) -> "xr.Variable":
        """Return a variable; offsets in reading order take the axes of the view."""
        return variable(axes, values.reshape([sizes[axis] for axis in axes]), *words)

    made = {}
    for name, (axes, long_name, units, method) in DESCRIBED.items():
        if prefix and name == "entropy":
            continue  # the same in every view
        units = view.unit if units == "unit" else units
        axes = ("layer", "head", *(view.axes if "view" in axes else axes))
        draws = np.array([[_mean(draw[name]) for draw in nulls[null]] for null in NULLS])
        interval = bootstrap_interval(measured[name], weights)
        made |= {
            name: over(axes, _mean(measured[name]), long_name, units, method),
            f"{name}_interval": over((*axes, "bound"), interval, f"95 % interval: {long_name}", units),
            f"{name}_null": over(("null", "draw", *axes), draws, f"null: {long_name}", units),
        }
    uniform = _mean(measured["uniform_pattern_by_offset"])
    made["uniform_pattern_by_offset"] = over(view.axes, uniform, "uniform attention weight of a pair", "1")
    made |= _decay_summary(view, measured["score_by_offset"], weights[:REFITS])
    return {prefix + name: one for name, one in made.items()}


def _decay_summary(view: _View, profiles: np.ndarray, weights: np.ndarray) -> dict[str, "xr.Variable"]:
    """Return the fit of the mean profile, and its standard error over resamples."""
    from attnprobe.results import variable
    from attnprobe.statistics.geometry import geometry
    from attnprobe.statistics.intervals import weighted_means

    places = geometry(view.shape, view.causal)
    fitted = _decay(_mean(profiles), places)
    resampled = _decay(weighted_means(profiles, weights), places).length
    enough = np.isfinite(resampled).mean(axis=0) > 0.5
    error = np.where(np.isfinite(fitted.length) & enough, np.nanstd(np.where(enough, resampled, 0.0), axis=0), np.nan)
    axes, formula = ("layer", "head"), "a exp(-distance / length) + c with a > 0"
    method = f"{formula}, least squares weighted by pairs, offset 0 left out"
    spread = "sd over resamples that decay; NaN where half do not"
    return {
        "decay_length": variable(axes, fitted.length, "decay length of the score", view.unit, method),
        "decay_length_se": variable(axes, error, "standard error of the decay length", view.unit, spread),
        "decay_r2": variable(axes, fitted.r2, "weighted R² of the decay fit", "1"),
        "decay_reason": variable(axes, fitted.reason, "why there is no decay length", ""),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    from attnprobe.statistics.intervals import weighted_means

    return weighted_means(values, np.full((1, len(values)), 1 / len(values)))[0]


def _decay(profiles: np.ndarray, places: "Geometry") -> "Decay":
    """Fit the decay to profiles by offset, folded to profiles by distance."""
    from attnprobe.statistics.decay import fit_decay

    # Where every sequence is short, the farthest offsets have no score.
    known = np.isfinite(profiles).reshape(-1, profiles.shape[-1]).any(axis=0)
    count = places.count.numpy()
    used = (places.distance.numpy() > 0) & (count > 0) & known
    distance, which = np.unique(places.distance.numpy()[used], return_inverse=True)
    pairs = np.bincount(which, count[used])
    member = np.eye(len(distance))[which] * (count[used] / pairs[which])[:, None]
    return fit_decay(profiles[..., used] @ member, distance, pairs)


def _metrics(checkpoint: "Checkpoint") -> dict[str, "xr.Variable"]:
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
