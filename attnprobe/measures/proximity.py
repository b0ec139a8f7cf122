"""Proximity measure: how scores and attention depend on the distance between query and key."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.geometry import Geometry, geometry
from attnprobe.measures.driver import (
    Add,
    Compute,
    Number,
    Request,
    Sample,
    Tallies,
    Target,
    View,
    check_window,
    checked_request,
    contrast_reasons,
    default_reasons,
    geometries,
    geometry_of,
    labelled,
    mean_over_shared,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.networks.base import KnowsTokens, Network, read
from attnprobe.results import Reason, variable
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import Moments, pattern_statistics, score_statistics
from attnprobe.statistics.decay import Decay, fit_decay
from attnprobe.statistics.moments import jackknife_error
from attnprobe.statistics.pattern import PatternStatistics

GROUPS = 20
"""Maximum number of groups of sequences in the jackknife of the decay length."""

CONSTANT = "all scores of each query are equal"
"""Reason for undefined shares of the score variance."""

NOTE = (
    "A contrast above its nulls may only show that near tokens have similar content, as in every real image: the "
    "measure positions separates content from position."
)
"""What the reader of a result has to know."""

# "view" and "unit" are placeholders for the offset axes and the distance unit of each view.
NUMBERS = [
    Number("score_by_offset", "offset profile of the score", "1", ("view",), "least squares with a constant per query"),
    Number("pattern_by_offset", "mean attention weight by offset", "1", ("view",), "mean over pairs", (0.0, 1.0)),
    Number(
        "toeplitz_share",
        "fraction of the score variance explained by the offset profile",
        method="row-centred",
        range=(0.0, 1.0),
        unstructured="(number of offsets - 1) / (n (n - 1))",
        undefined=CONSTANT,
    ),
    Number(
        "proximity_contrast",
        "mean score of near minus far keys",
        "std of the score",
        method="row-centred, excluding offset 0",
        unstructured="0",
        undefined=CONSTANT,
    ),
    Number("mean_distance", "mean attention distance", "unit", method="weighted by attention, mean over queries"),
    Number(
        "mean_distance_ratio",
        "mean attention distance relative to uniform attention",
        method="1 for uniform attention",
        unstructured="1",
        undefined="every query sees only its own token",
    ),
    Number(
        "near_mass",
        "attention to near keys relative to uniform attention",
        axes=("window",),
        method="excluding offset 0",
        unstructured="1",
        undefined="no visible key is that near, except the token itself",
    ),
    Number("entropy", "entropy of the attention pattern", "nats", method="mean over queries"),
    Number("sink_mass", "attention to the sink", method="mean over queries", range=(0.0, 1.0)),
    Number(
        "query_key_nmi",
        "normalised mutual information of query and key",
        method="uniform queries",
        range=(0.0, 1.0),
        unstructured="0 (bidirectional)",
        undefined="all sequences have a single token",
    ),
    Number(
        "sink_rate",
        "share of sequences whose first token receives more than 0.3 of the attention",
        method="mean over queries",
        range=(0.0, 1.0),
        unstructured="0 (from 10 tokens)",
    ),
    Number(
        "any_sink_rate",
        "share of sequences in which any token receives more than 0.3 of the attention",
        method="mean over queries",
        range=(0.0, 1.0),
        unstructured="0 (from 10 tokens)",
    ),
    Number(
        "previous_token_score",
        "attention to the previous token",
        method="mean over queries that have one",
        range=(0.0, 1.0),
        unstructured="1 / n (bidirectional)",
        undefined="no token is next to another measured one",
    ),
    Number(
        "duplicate_token_score",
        "attention to earlier tokens that equal the query",
        method="total over keys, mean over queries that have such a key",
        range=(0.0, 1.0),
        unstructured="the mean share of such keys among the visible ones",
        undefined="no token has an earlier copy that it sees",
    ),
    Number(
        "induction_score",
        "attention to earlier tokens whose previous token equals the query",
        method="total over keys, mean over queries that have such a key",
        range=(0.0, 1.0),
        unstructured="the mean share of such keys among the visible ones",
        undefined="no token has an earlier copy whose next token it sees",
    ),
]
OF_ALL_VIEWS = {
    "entropy",
    "sink_mass",
    "query_key_nmi",
    "sink_rate",
    "any_sink_rate",
    "previous_token_score",
    "duplicate_token_score",
    "induction_score",
}
"""Numbers that are the same in all views."""
OF_IDS = ("duplicate_token_score", "induction_score")
"""Numbers that compare token ids, in the sequence of `attnprobe.statistics.pattern.MATCHES`."""
SINK = 0.3
"""Mean attention above which a token is a sink."""


def proximity(
    of: Any,
    inputs: Any = None,
    *,
    sequences: int = 256,
    window: int = 2,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure how the scores and attention of each head depend on the distance between query and key.

    The network runs on test sequences without masked tokens. Statistics are computed from the queries and keys of the
    forward pass: those of the scores in float64, those of the attention pattern in the dtype of the network. No n x n
    array is allocated and sequences are processed in chunks, so memory depends on n, not on the number of sequences.

    All variables have dims ``layer`` and ``head`` and the dims in parentheses. Each is a mean over sequences:

    - ``score_by_offset`` (offset): offset profile, the least-squares fit of the score by a function of the offset and a
      constant per query (which the softmax ignores);
    - ``pattern_by_offset`` (offset): mean attention weight at each offset; ``uniform_pattern_by_offset`` has its value
      for uniform attention and only the dim ``offset`` (with sliding windows, ``layer`` too);
    - ``toeplitz_share``: fraction of the row-centred score variance explained by the offset profile, 0 to 1. Without
      structure it is (number of offsets - 1) / (n (n - 1)): 2 / n in one dimension;
    - ``proximity_contrast``: mean score of near keys (0 < distance <= ``window``) minus mean score of far keys, in std
      of the score; 0 if the means are equal. Above its nulls it may only show that near tokens have similar content, as
      they always do in real images: `positions` separates content from position;
    - ``mean_distance`` (in tokens): mean attention distance; ``mean_distance_ratio``: relative to uniform attention.
      1 is uniform, values below 1 mean attention to near keys (Tay et al. 2021, section 2.3; Dosovitskiy et al. 2021);
    - ``near_mass`` (window): attention at distance 1, and up to distance ``window``, relative to uniform attention;
    - ``entropy`` (in nats): entropy of the attention pattern, mean over queries;
    - ``sink_mass``: attention to the sink, among the measured tokens and the sink, for models with a learned sink per
      head (gpt-oss). All others describe the pattern among tokens;
    - ``query_key_nmi``: normalised mutual information $I(Q; K) / \sqrt{H(Q) H(K)}$ of query and key, with uniform
      queries: 0 if all queries attend alike, 1 if each attends to a key of its own (Park et al. 2023,
      arXiv:2305.00729). Causal queries see different keys, so that uniform causal attention is above 0;
    - ``sink_rate``: share of sequences in which the first measured token receives a mean attention, over all queries,
      above 0.3 (Gu et al. 2025, arXiv:2410.10781); ``any_sink_rate``: the same for the token that receives most (the
      mean is over all queries here too, also those that do not see this token, since few see the last ones).
      Tokens that are left out, such as a first special token, are no sinks. In very short sequences (below 10 tokens
      if causal, else 4) uniform attention is above 0.3. If all sequences agree, the interval has no width;
    - ``previous_token_score``: mean attention at offset -1, over queries that have a previous token;
    - ``duplicate_token_score``: total attention to earlier tokens with the id of the query, mean over queries that have
      one; ``induction_score``: the same for earlier tokens that follow a token with the id of the query, the prefix
      matching of Olsson et al. (2022, arXiv:2209.11895). Only for token ids. In the permuted null, scores move and
      tokens stay, so that its values are those of scores that ignore both tokens and positions;
    - ``decay_length`` (in tokens): length of the exponential fitted to the offset profile, with its standard error
      ``decay_length_se`` (jackknife over groups of sequences) and the R² of the fit ``decay_r2``. ``decay_reason``
      states why the length is NaN, if it is.

    Every variable except the decay fit and the uniform pattern also has:

    - ``NAME_interval`` (bound): t-interval of the mean over sequences, 95 % by default;
    - ``NAME_std``: standard deviation over sequences;
    - ``NAME_null`` (null, draw): values under two nulls. *permuted*: the same scores with the positions of queries and
      keys permuted together (for causal attention, with the visible keys of each query permuted). *initial*: networks
      of the same configuration at initialisation. Every draw uses all sequences. Without a causal mask, *permuted* does
      not change ``entropy``, ``query_key_nmi`` and ``any_sink_rate``.

    For images, the variables that depend on the offset, and only they, are also computed over two-dimensional offsets
    (``row_offset``, ``column_offset``), with distances in pixels and names that start with ``grid_``. If the network
    prepends a token ([CLS]) or special tokens are left out (`attnprobe.network`), all statistics are restricted to the
    other tokens, with a softmax among them.
    ``objective``, ``train_accuracy`` and ``test_accuracy`` (no dims) describe the checkpoint.

    Args:
        of: Checkpoint, PyTorch model (with ``inputs``) or `Probe` to measure.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network` for more control.
        sequences: Number of test sequences (the first ones).
        window: Largest distance of a near key, in tokens or pixels.
        nulls: Number of draws of each null; 0 for none.
        level: Confidence level of the intervals.
        seed: Seed of the permutations and the initial networks.
    """
    request = checked_request("proximity", of, inputs, sequences, nulls, level, seed)
    network = request.network
    check_window(network, window)
    views_by_prefix, windows = views(request.network), tuple(sorted({1, window}))
    groups = np.arange(request.sequences) % min(GROUPS, request.sequences)

    def prepare(network: Network) -> Compute:
        def compute(sample: Sample, targets: Sequence[Target]) -> None:
            def add_heads(heads: Heads) -> None:
                for target in targets:
                    used_groups = groups if network is request.network and target.order is None else None
                    permuted = replace(heads, scores=replace(heads.scores, order=target.order))
                    _add_statistics(request, views_by_prefix, windows, used_groups, sample, permuted, ids, target.add)
                    target.advance()

            ids = network.token_ids(sample.batch) if isinstance(network, KnowsTokens) else None
            read(network, sample.batch, request.probe.objectives[0], add_heads)

        return compute

    tallies, draws = over_sequences(request, prepare, passes=network.shape.layers)
    variables: dict[str, xr.Variable] = {}
    for prefix, view in views_by_prefix.items():
        sizes = {"view": view.offsets, "window": {"window": len(windows)}}
        for number in NUMBERS:
            if (prefix and number.name in OF_ALL_VIEWS) or (prefix, number.name) not in tallies.measured:
                continue
            axes = {"head": request.network.shape.heads}
            axes |= {axis: size for kind in number.axes for axis, size in sizes[kind].items()}
            units = view.unit if number.units == "unit" else number.units
            variables |= labelled(number, prefix + number.name, axes, tallies, (prefix, number.name), level, units)
        layers = [_uniform(request, view, limit) for limit in network.shape.windows or (None,)]
        uniform = np.stack(layers).reshape(len(layers), *(2 * side - 1 for side in view.shape))
        axes, uniform = (("layer", *view.axes), uniform) if network.shape.windows else (view.axes, uniform[0])
        about_uniform = "attention weight by offset of uniform attention"
        variables[f"{prefix}uniform_pattern_by_offset"] = variable(axes, uniform, about_uniform, "1")
        variables |= _decay_summary(prefix, view, tallies, groups)
    left_out = undefined(request.network, "proximity_contrast", near=window)
    if ("", OF_IDS[0]) not in tallies.measured:
        left_out |= dict.fromkeys(OF_IDS, "the tokens are not ids that can be compared")
    reasons = [
        *contrast_reasons(request, window),
        *default_reasons(NUMBERS),
        *_decay_reasons(variables),
    ]
    coordinates = {"window": np.array(windows)}
    return result(request, variables, coordinates, list(draws), left_out, reasons, window=window, note=NOTE)


def _decay_reasons(variables: Mapping[str, xr.Variable]) -> list[Reason]:
    """Return the reasons for a missing decay length, and for a missing error of one."""
    texts = {
        str(text) for name, fits in variables.items() if name.endswith("decay_reason") for text in fits.values.flat
    }

    def fails_with(text: str) -> Callable[[xr.Dataset, str], xr.DataArray]:
        def where(measured: xr.Dataset, name: str) -> xr.DataArray:
            return measured[f"{name.removesuffix('_se').removesuffix('length')}reason"] == text

        return where

    return [
        *(Reason("decay_length", text, fails_with(text)) for text in sorted(texts - {""})),
        Reason("decay_length_se", "the fit fails without one of the groups of sequences"),
    ]


def _add_statistics(
    request: Request,
    views_by_prefix: Mapping[str, View],
    windows: tuple[int, ...],
    groups: np.ndarray | None,
    sample: Sample,
    heads: Heads,
    ids: Tensor | None,
    add: Add,
) -> None:
    """Add all statistics of one layer, and the offset profile of each group of sequences if ``groups`` is not None."""
    missing = request.network.shape.n - sample.length
    for prefix, values in _statistics(heads.scores, ids, views_by_prefix, windows).items():
        profile = values["score_by_offset"]
        if sample.length > sample.shortest or heads.scores.real is not None:
            # A profile is defined up to a constant: set its mean over the offsets shared by all sequences to 0.
            profile -= mean_over_shared(
                profile, geometry_of(views_by_prefix[prefix], sample.shortest, heads.scores.window)
            )
        for name, value in values.items():
            add((prefix, name), heads.layer, widened(value, missing) if name.endswith("by_offset") else value)
        if groups is not None:
            for group in np.unique(groups).tolist():
                group_profiles = profile[groups[sample.rows] == group]
                add((prefix, "group", str(group)), heads.layer, widened(group_profiles, missing))


def _statistics(
    scores: Scores, ids: Tensor | None, views_by_prefix: Mapping[str, View], windows: tuple[int, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the statistics of the scores, [sequence, head, ...], by view prefix and name."""
    grid_score, grid_pattern = score_statistics(scores), pattern_statistics(scores, tokens=ids)
    statistics = {}
    for prefix, view in views_by_prefix.items():
        score, pattern = grid_score, grid_pattern
        if len(view.shape) == 1:
            score, pattern = score.in_line(), pattern.in_line()
        values = {
            "score_by_offset": score.offset_profile,
            "pattern_by_offset": pattern.mass_by_offset * (pattern.queries[:, None] / pattern.pairs)[:, None],
            "toeplitz_share": score.toeplitz_share,
            "proximity_contrast": score.contrast(windows[-1]),
            "mean_distance": pattern.mean_distance,
            "mean_distance_ratio": pattern.mean_distance_ratio,
            "near_mass": np.stack([pattern.near_mass(distance) for distance in windows], axis=-1),
        }
        if not prefix:
            values |= _in_all_views(scores, pattern)
        statistics[prefix] = {name: np.asarray(value) for name, value in values.items()}
    return statistics


def _in_all_views(scores: Scores, pattern: PatternStatistics) -> dict[str, Tensor]:
    """Return the statistics, [sequence, head], that do not depend on the view."""
    received = pattern.mass_by_key / pattern.queries[:, None, None]
    real = torch.ones(received[:, 0].shape) if scores.real is None else scores.real.cpu()
    first = received[torch.arange(len(received)), :, real.int().argmax(1)]
    values = {
        "entropy": pattern.entropy,
        "query_key_nmi": pattern.nmi,
        "sink_rate": (first > SINK).double(),
        "any_sink_rate": (received.amax(-1) > SINK).double(),
        "previous_token_score": pattern.previous_token_mass,
    }
    if pattern.sink_mass is not None:
        values["sink_mass"] = pattern.sink_mass
    if pattern.matched_mass is not None:
        values |= dict(zip(OF_IDS, pattern.matched_mass.unbind(-1), strict=True))
    return values


def _uniform(request: Request, view: View, window: int | None) -> np.ndarray:
    """Return the attention weight at each offset of uniform attention in a layer, mean over sequences."""
    moments = Moments()
    for pairs in geometries(request, view, window):
        moments.add(widened((pairs.uniform / pairs.count).numpy()[None], math.prod(view.shape) - pairs.n))
    return moments.mean


def _decay_summary(prefix: str, view: View, tallies: Tallies, groups: np.ndarray) -> dict[str, xr.Variable]:
    """Return the decay fit of the mean profile and its jackknife error over groups of sequences."""
    measured, pairs = tallies.measured, geometry(view.shape, view.causal)
    fit = _decay(measured.stack((prefix, "score_by_offset"), lambda moments: moments.mean), pairs)
    totals, left_out = measured.layers((prefix, "score_by_offset")), []
    for group in np.unique(groups).tolist():
        parts = measured.layers((prefix, "group", str(group)))
        remaining = np.stack([total.mean_without(part) for total, part in zip(totals, parts, strict=True)])
        left_out.append(_decay(remaining, pairs).length)
    error = np.where(np.isfinite(fit.length), jackknife_error(np.stack(left_out)), np.nan)
    axes, formula = ("layer", "head"), "a exp(-distance / length) + c with a > 0"
    method = f"{formula}, least squares weighted by pairs, excluding offset 0"
    spread = f"jackknife over {len(left_out)} groups of sequences; NaN if the fit fails without one of them"
    return {
        f"{prefix}decay_length": variable(axes, fit.length, "decay length of the score", view.unit, method),
        f"{prefix}decay_length_se": variable(axes, error, "standard error of the decay length", view.unit, spread),
        f"{prefix}decay_r2": variable(axes, fit.r2, "weighted R² of the decay fit", "1"),
        f"{prefix}decay_reason": variable(axes, fit.reason, "reason for a missing decay length", ""),
    }


def _decay(profiles: np.ndarray, pairs: Geometry) -> Decay:
    """Fit the decay to profiles by distance: means of the offset profiles over the offsets at each distance."""
    # The largest offsets have no scores if all sequences are shorter than n, or beyond a sliding window.
    observed = np.isfinite(profiles)
    if not (observed == observed[:1]).all():  # layers differ
        fits = [_decay(layer[None], pairs) for layer in profiles]
        return Decay(*(np.concatenate([getattr(fit, name) for fit in fits]) for name in ("length", "r2", "reason")))
    count = pairs.count.numpy()
    used = (pairs.distance.numpy() > 0) & (count > 0) & observed.reshape(-1, observed.shape[-1]).any(axis=0)
    distance, index = np.unique(pairs.distance.numpy()[used], return_inverse=True)
    weight = np.bincount(index, count[used])
    sums = (profiles[..., used] * count[used]).reshape(math.prod(profiles.shape[:-1]), len(index))
    folded = np.stack([np.bincount(index, profile_sums, len(distance)) for profile_sums in sums]) / weight
    return fit_decay(folded.reshape(*profiles.shape[:-1], len(distance)), distance, weight)
