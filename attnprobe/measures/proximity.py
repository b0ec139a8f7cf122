"""Proximity: do scores and attention favour near keys, how much, and over what range?"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from attnprobe.measures import common
from attnprobe.measures.common import NULLS, View

if TYPE_CHECKING:
    import xarray as xr

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.statistics import Moments, Scores
    from attnprobe.statistics.decay import Decay
    from attnprobe.statistics.geometry import Geometry
    from attnprobe.transformer import Transformer

GROUPS = 20
"""Groups of sequences, at most, over which the decay's error is taken."""


def proximity(checkpoint: "Checkpoint", *, sequences: int = 256, window: int = 2, seed: int = 0) -> "xr.Dataset":
    r"""Measure how near the keys are that each head scores high and attends to.

    The network reads test sequences without any masking. For every layer, head and sequence the statistics of
    `attnprobe.statistics` are taken from the queries and keys of that forward pass, those of the scores in float64,
    those of the pattern in the network's own type; no n x n array is made, and sequences are added up as they come, so
    that memory grows with n alone. Reported are means over sequences.

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
    - ``decay_length`` (tokens) of the exponential that fits the score's profile, its standard error
      ``decay_length_se``, ``decay_r2``, and ``decay_reason``, which says why where the length is NaN.

    Image tasks have the same over two-dimensional offsets, under names that begin with ``grid_``. Each of the numbers
    but the fit has ``NAME_interval`` (bound), Student's 95 % interval of the mean over sequences, ``NAME_sd``, the
    standard deviation of a sequence, and ``NAME_null`` (null, draw): *permuted*, the same scores with the positions of
    queries and keys permuted alike (where attention is causal, those of the keys that a query sees), and *initial*,
    networks of the same configuration at initialisation; every draw is taken on its share of the sequences. The error
    of the decay is a jackknife over groups of sequences. Where the network puts a [CLS] in front, all is about the
    attention among the tokens of the sequence: pattern and entropy are those of a softmax without [CLS].

    Args:
        checkpoint: The checkpoint to measure.
        sequences: Number of test sequences: the first ones.
        window: Largest distance that counts as near, in tokens or pixels.
        seed: Seed of the permutations and the initial networks.
    """
    from tqdm import tqdm

    from attnprobe.results import dataset, variable

    common.check(checkpoint, sequences, seed)
    common.check_window(checkpoint, window)
    n = checkpoint.data.n
    sequences = min(sequences, len(checkpoint.task.test))
    within = tuple(sorted({1, window}))
    draws = min(common.DRAWS, sequences)
    views = common.views(checkpoint)
    rows = np.arange(sequences)
    groups = np.arange(sequences) % min(GROUPS, sequences)
    shortest = int(common.lengths(checkpoint)[rows].min())
    with tqdm(total=3 * sequences, desc="proximity", unit="sequence", delay=5, leave=False, dynamic_ncols=True) as bar:
        look = partial(_over_sequences, checkpoint, views, within, shortest, bar.update)
        measured, profiles = look(checkpoint.model, rows, groups=groups)
        nulls = {
            "permuted": [
                _means(look(checkpoint.model, rows[d::draws], common.permutation("proximity", seed, d, n))[0])
                for d in range(draws)
            ],
            "initial": [
                _means(look(common.initial_network(checkpoint, seed, d), rows[d::draws])[0]) for d in range(draws)
            ],
        }
    variables: dict[str, xr.Variable] = {}
    for prefix, view in views.items():
        of_view = {null: [draw[prefix] for draw in draws_of] for null, draws_of in nulls.items()}
        variables.update(_summary(prefix, view, measured[prefix], of_view))
        uniform = _uniform(checkpoint, view, rows).reshape([2 * side - 1 for side in view.shape])
        about_uniform = "uniform attention weight of a pair"
        variables[f"{prefix}uniform_pattern_by_offset"] = variable(view.axes, uniform, about_uniform, "1")
        variables.update(_decay_summary(prefix, view, measured[prefix]["score_by_offset"], profiles[prefix]))
    variables.update(common.accuracies(checkpoint))
    coordinates = common.coordinates(checkpoint, draws) | {"within": np.array(within)}
    return dataset(variables, coordinates, common.facts(checkpoint, "proximity", sequences, seed, window=window))


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


def _over_sequences(
    checkpoint: "Checkpoint",
    views: Mapping[str, View],
    within: tuple[int, ...],
    shortest: int,
    done: Callable[[int], object],
    model: "Transformer",
    rows: np.ndarray,
    order: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[dict[str, dict[str, list["Moments"]]], dict[str, list[list["Moments"]]]]:
    """Return, for each view, the moments of each statistic over sequences, a list over layers.

    The second part holds the score's profile for each group of sequences, a list over groups and layers. Positions are
    permuted by an order. Offsets that a shorter sequence does not have are missing there. ``done`` is told how many
    sequences are done.
    """
    import torch

    from attnprobe.measures.capture import chunks, scores_by_layer
    from attnprobe.statistics import Moments

    layers, n = checkpoint.config.model.n_layers, checkpoint.data.n
    found = {prefix: {name: [Moments() for _ in range(layers)] for name in DESCRIBED} for prefix in views}
    groups = np.full(len(rows), -1) if groups is None else groups
    kinds = int(groups.max()) + 1
    profiles = {prefix: [[Moments() for _ in range(layers)] for _ in range(kinds)] for prefix in views}
    for chosen, inputs in chunks(checkpoint.task.test, rows, model):
        length = inputs.shape[1]
        for layer, scores in enumerate(scores_by_layer(model, inputs)):
            if order is not None:
                scores = replace(scores, order=torch.from_numpy(order[order < length]))
            for prefix, values in _statistics(scores, views, within).items():
                kernel = values["score_by_offset"]
                if length > shortest:
                    # A kernel has a free constant: on the offsets that all sequences have, all get mean 0.
                    kernel -= common.mean_over_shared(kernel, length, shortest, views[prefix].causal)
                for name, value in values.items():
                    found[prefix][name][layer].add(_widened(name, value, n - length))
                for group in range(kinds):
                    own = _widened("score_by_offset", kernel[groups[chosen] == group], n - length)
                    profiles[prefix][group][layer].add(own)
        done(len(chosen))
    return found, profiles


def _statistics(
    scores: "Scores", views: Mapping[str, View], within: tuple[int, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each view, each statistic of [sequence, head, ...] scores."""
    from attnprobe.statistics import pattern_statistics, score_statistics

    of_score, of_pattern = score_statistics(scores), pattern_statistics(scores)
    found = {}
    for prefix, view in views.items():
        score, pattern = of_score, of_pattern
        if len(view.shape) == 1:
            score, pattern = score.in_line(), pattern.in_line()
        values = {
            "score_by_offset": score.kernel,
            "pattern_by_offset": pattern.mass_by_offset * pattern.geometry.n / pattern.pairs[:, None],
            "toeplitz_share": score.toeplitz_share,
            "proximity_contrast": score.contrast(within[-1]),
            "mean_distance": pattern.mean_distance,
            "mean_distance_ratio": pattern.mean_distance_ratio,
            "near_mass": np.stack([pattern.within(distance) for distance in within], axis=-1),
            "entropy": pattern.entropy,
        }
        found[prefix] = {name: np.asarray(value) for name, value in values.items()}
    return found


def _widened(name: str, values: np.ndarray, short: int) -> np.ndarray:
    return common.widened(values, short) if name.endswith("by_offset") else values


def _uniform(checkpoint: "Checkpoint", view: View, rows: np.ndarray) -> np.ndarray:
    """Return the weight that uniform attention gives a pair at each offset, mean over sequences."""
    from attnprobe.statistics import Moments
    from attnprobe.statistics.geometry import geometry

    n, moments = checkpoint.data.n, Moments()
    lengths = common.lengths(checkpoint)[rows]
    for length in lengths.tolist():
        places = geometry(view.shape if length == n else (length,), view.causal)
        weight = (places.uniform / places.count).numpy()
        moments.add(common.widened(weight[None], n - length))
    return moments.mean


def _means(found: dict[str, dict[str, list["Moments"]]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the means of [layer, ...], for each view and statistic."""
    return {
        prefix: {name: np.stack([one.mean for one in by_layer]) for name, by_layer in statistics.items()}
        for prefix, statistics in found.items()
    }


def _summary(
    prefix: str,
    view: View,
    measured: dict[str, list["Moments"]],
    nulls: dict[str, list[dict[str, np.ndarray]]],
) -> dict[str, "xr.Variable"]:
    """Return the variables of one view: means, intervals, standard deviations and nulls."""
    heads = {"head": len(measured["entropy"][0].mean)}
    sizes = {"view": view.offsets, "within": {"within": measured["near_mass"][0].mean.shape[-1]}}
    made = {}
    for name, (axes, long_name, units, method) in DESCRIBED.items():
        if prefix and name == "entropy":
            continue  # the same in every view
        over = heads | {axis: size for kind in axes for axis, size in sizes[kind].items()}
        words = (long_name, view.unit if units == "unit" else units, method)
        draws = [[draw[name] for draw in nulls[null]] for null in NULLS]
        made |= common.summary(prefix + name, over, measured[name], draws, words)
    return made


def _decay_summary(
    prefix: str, view: View, whole: list["Moments"], groups: list[list["Moments"]]
) -> dict[str, "xr.Variable"]:
    """Return the fit of the mean profile, and its error from fits that leave out one group of sequences each."""
    from attnprobe.results import variable
    from attnprobe.statistics.geometry import geometry
    from attnprobe.statistics.moments import jackknife_error

    places = geometry(view.shape, view.causal)
    fitted = _decay(np.stack([one.mean for one in whole]), places)
    left_out = np.stack(
        [
            _decay(np.stack([a.mean_without(g) for a, g in zip(whole, group, strict=True)]), places).length
            for group in groups
        ]
    )
    error = np.where(np.isfinite(fitted.length), jackknife_error(left_out), np.nan)
    axes, formula = ("layer", "head"), "a exp(-distance / length) + c with a > 0"
    method = f"{formula}, least squares weighted by pairs, offset 0 left out"
    spread = f"jackknife over {len(groups)} groups of sequences; NaN where one of them decides whether anything decays"
    return {
        f"{prefix}decay_length": variable(axes, fitted.length, "decay length of the score", view.unit, method),
        f"{prefix}decay_length_se": variable(axes, error, "standard error of the decay length", view.unit, spread),
        f"{prefix}decay_r2": variable(axes, fitted.r2, "weighted R² of the decay fit", "1"),
        f"{prefix}decay_reason": variable(axes, fitted.reason, "why there is no decay length", ""),
    }


def _decay(profiles: np.ndarray, places: "Geometry") -> "Decay":
    """Fit the decay to profiles by offset, folded to profiles by distance."""
    from attnprobe.statistics.decay import fit_decay

    # Where every sequence is short, the farthest offsets have no score.
    known = np.isfinite(profiles).reshape(-1, profiles.shape[-1]).any(axis=0)
    count = places.count.numpy()
    used = (places.distance.numpy() > 0) & (count > 0) & known
    distance, which = np.unique(places.distance.numpy()[used], return_inverse=True)
    pairs = np.bincount(which, count[used])
    flat = (profiles[..., used] * count[used]).reshape(-1, len(which))
    folded = np.stack([np.bincount(which, one, len(distance)) for one in flat]) / pairs
    return fit_decay(folded.reshape(*profiles.shape[:-1], len(distance)), distance, pairs)
