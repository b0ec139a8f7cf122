"""Proximity: do scores and attention favour near keys, how much, and over what range?"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.geometry import Geometry, geometry
from attnprobe.measures.driver import (
    Add,
    Compute,
    Condition,
    Number,
    Request,
    Sample,
    Tallies,
    View,
    check_window,
    checked_request,
    geometry_of,
    labelled,
    lengths_of,
    mean_over_shared,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.networks.base import read
from attnprobe.results import variable
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import Moments, pattern_statistics, score_statistics
from attnprobe.statistics.decay import Decay, fit_decay
from attnprobe.statistics.moments import jackknife_error

GROUPS = 20
"""Groups of sequences, at most, over which the decay's error is taken."""

# The view fills in "view" and "unit".
NUMBERS = [
    Number("score_by_offset", "score by offset", "1", ("view",), "least squares with a free constant for each query"),
    Number("pattern_by_offset", "attention weight of a pair by offset", "1", ("view",), "mean over pairs", (0.0, 1.0)),
    Number(
        "toeplitz_share",
        "share of the score's variance that the offset explains",
        method="row-centred",
        range=(0.0, 1.0),
        unstructured="number of offsets less one, over n (n - 1)",
    ),
    Number(
        "proximity_contrast",
        "score of near minus far keys",
        "std of the score",
        method="row-centred, offset 0 left out",
        unstructured="0",
    ),
    Number("mean_distance", "mean attention distance", "unit", method="attention-weighted, mean over queries"),
    Number(
        "mean_distance_ratio",
        "mean attention distance over uniform",
        method="1 for uniform attention",
        unstructured="1",
    ),
    Number(
        "near_mass",
        "attention to near keys over uniform",
        axes=("window",),
        method="offset 0 left out",
        unstructured="1",
    ),
    Number("entropy", "entropy of the pattern", "nats", method="mean over queries"),
]


def proximity(
    of: Any, *, sequences: int = 256, window: int = 2, nulls: int = 8, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
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
    - ``proximity_contrast``: mean score of near keys (0 < distance <= window) minus that of far keys, in std of the
      score; 0 where near and far are alike;
    - ``mean_distance`` (tokens) and ``mean_distance_ratio``, over that of uniform attention: 1 for uniform, below 1
      for near (Tay et al. 2021, section 2.3; Dosovitskiy et al. 2021);
    - ``near_mass`` (window): attention at distance 1, and within the window, over its uniform share;
    - ``entropy`` (nats);
    - ``decay_length`` (tokens) of the exponential that fits the score's profile, its standard error
      ``decay_length_se``, ``decay_r2``, and ``decay_reason``, which says why where the length is NaN.

    Image tasks have the same over two-dimensional offsets, under names that begin with ``grid_``. Each of the numbers
    but the fit has ``NAME_interval`` (bound), Student's 95 % interval of the mean over sequences, ``NAME_std``, the
    standard deviation of a sequence, and ``NAME_null`` (null, draw): *permuted*, the same scores with the positions of
    queries and keys permuted alike (where attention is causal, those of the keys that a query sees), and *initial*,
    networks of the same configuration at initialisation; every draw sees all the sequences. The error of the decay is a
    jackknife over groups of sequences. If the network puts a [CLS] in front, all is about the attention among the
    tokens of the sequence: pattern and entropy are those of a softmax without [CLS].

    Args:
        of: The checkpoint (or probe) to measure.
        sequences: Number of test sequences: the first ones.
        window: Largest distance that counts as near, in tokens or pixels.
        nulls: Draws of each null; 0 for none.
        level: Level of the intervals.
        seed: Seed of the permutations and the initial networks.
    """
    request = checked_request("proximity", of, sequences, nulls, level, seed)
    check_window(request.network, window)
    seen, windows = views(request.network), tuple(sorted({1, window}))
    groups = np.arange(request.sequences) % min(GROUPS, request.sequences)

    def prepare(condition: Condition) -> Compute:
        of_groups = groups if condition.network is request.network and condition.order is None else None

        def see(sample: Sample, add: Add) -> None:
            def see_heads(heads: Heads) -> None:
                _add_statistics(request, seen, windows, of_groups, sample, heads, add)

            read(condition.network, sample.batch, request.probe.objectives[0], see_heads)

        return see

    tallies, draws = over_sequences(request, prepare)
    variables: dict[str, xr.Variable] = {}
    for prefix, view in seen.items():
        sizes = {"view": view.offsets, "window": {"window": len(windows)}}
        for number in NUMBERS:
            if prefix and number.name == "entropy":
                continue  # the same in every view
            axes = {"head": request.network.shape.heads}
            axes |= {axis: size for kind in number.axes for axis, size in sizes[kind].items()}
            units = view.unit if number.units == "unit" else number.units
            variables |= labelled(number, prefix + number.name, axes, tallies, (prefix, number.name), level, units)
        uniform = _uniform(request, view).reshape([2 * side - 1 for side in view.shape])
        about_uniform = "uniform attention weight of a pair"
        variables[f"{prefix}uniform_pattern_by_offset"] = variable(view.axes, uniform, about_uniform, "1")
        variables |= _decay_summary(prefix, view, tallies, groups)
    left_out = undefined(request.network, "proximity_contrast")
    return result(request, variables, {"window": np.array(windows)}, list(draws), left_out, window=window)


def _add_statistics(
    request: Request,
    seen: Mapping[str, View],
    windows: tuple[int, ...],
    groups: np.ndarray | None,
    sample: Sample,
    heads: Heads,
    add: Add,
) -> None:
    """Take in every statistic of one layer; with groups, also the score's profile for each group of sequences."""
    short = request.network.shape.n - sample.length
    for prefix, values in _statistics(replace(heads.scores, order=sample.order), seen, windows).items():
        profile = values["score_by_offset"]
        if sample.length > sample.shortest:
            # A profile has a free constant: on the offsets that all sequences have, all get mean 0.
            profile -= mean_over_shared(profile, sample.length, sample.shortest, seen[prefix].causal)
        for name, value in values.items():
            add((prefix, name), heads.layer, widened(value, short) if name.endswith("by_offset") else value)
        if groups is not None:
            for group in np.unique(groups).tolist():
                own = profile[groups[sample.rows] == group]
                add((prefix, "group", str(group)), heads.layer, widened(own, short))


def _statistics(scores: Scores, seen: Mapping[str, View], windows: tuple[int, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each view, each statistic of [sequence, head, ...] scores."""
    of_score, of_pattern = score_statistics(scores), pattern_statistics(scores)
    found = {}
    for prefix, view in seen.items():
        score, pattern = of_score, of_pattern
        if len(view.shape) == 1:
            score, pattern = score.in_line(), pattern.in_line()
        values = {
            "score_by_offset": score.offset_profile,
            "pattern_by_offset": pattern.mass_by_offset * pattern.geometry.n / pattern.pairs[:, None],
            "toeplitz_share": score.toeplitz_share,
            "proximity_contrast": score.contrast(windows[-1]),
            "mean_distance": pattern.mean_distance,
            "mean_distance_ratio": pattern.mean_distance_ratio,
            "near_mass": np.stack([pattern.near_mass(distance) for distance in windows], axis=-1),
            "entropy": pattern.entropy,
        }
        found[prefix] = {name: np.asarray(value) for name, value in values.items()}
    return found


def _uniform(request: Request, view: View) -> np.ndarray:
    """Return the weight that uniform attention gives a pair at each offset, mean over sequences."""
    moments = Moments()
    for length in lengths_of(request.probe.task.test)[request.rows].tolist():
        pairs = geometry_of(view, length)
        moments.add(widened((pairs.uniform / pairs.count).numpy()[None], request.network.shape.n - length))
    return moments.mean


def _decay_summary(prefix: str, view: View, tallies: Tallies, groups: np.ndarray) -> dict[str, xr.Variable]:
    """Return the fit of the mean profile, and its error from fits that leave out one group of sequences each."""
    measured, pairs = tallies.measured, geometry(view.shape, view.causal)
    fitted = _decay(measured.stack((prefix, "score_by_offset"), lambda one: one.mean), pairs)
    whole, left_out = measured.layers((prefix, "score_by_offset")), []
    for group in np.unique(groups).tolist():
        parts = measured.layers((prefix, "group", str(group)))
        without = np.stack([one.mean_without(part) for one, part in zip(whole, parts, strict=True)])
        left_out.append(_decay(without, pairs).length)
    error = np.where(np.isfinite(fitted.length), jackknife_error(np.stack(left_out)), np.nan)
    axes, formula = ("layer", "head"), "a exp(-distance / length) + c with a > 0"
    method = f"{formula}, least squares weighted by pairs, offset 0 left out"
    spread = (
        f"jackknife over {len(left_out)} groups of sequences; NaN where one of them decides whether anything decays"
    )
    return {
        f"{prefix}decay_length": variable(axes, fitted.length, "decay length of the score", view.unit, method),
        f"{prefix}decay_length_se": variable(axes, error, "standard error of the decay length", view.unit, spread),
        f"{prefix}decay_r2": variable(axes, fitted.r2, "weighted R² of the decay fit", "1"),
        f"{prefix}decay_reason": variable(axes, fitted.reason, "why there is no decay length", ""),
    }


def _decay(profiles: np.ndarray, pairs: Geometry) -> Decay:
    """Fit the decay to profiles by offset, folded to profiles by distance."""
    # Where every sequence is short, the farthest offsets have no score.
    known = np.isfinite(profiles).reshape(-1, profiles.shape[-1]).any(axis=0)
    count = pairs.count.numpy()
    used = (pairs.distance.numpy() > 0) & (count > 0) & known
    distance, which = np.unique(pairs.distance.numpy()[used], return_inverse=True)
    weight = np.bincount(which, count[used])
    flat = (profiles[..., used] * count[used]).reshape(math.prod(profiles.shape[:-1]), len(which))
    folded = np.stack([np.bincount(which, one, len(distance)) for one in flat]) / weight
    return fit_decay(folded.reshape(*profiles.shape[:-1], len(distance)), distance, weight)
