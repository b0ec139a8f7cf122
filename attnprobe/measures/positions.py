"""Positions measure: decomposition of scores into content and position terms."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.measures import block_swap
from attnprobe.measures.block_swap import Pool, covariances, draw_swap
from attnprobe.measures.driver import (
    Compute,
    Condition,
    Number,
    Sample,
    Target,
    View,
    check_window,
    checked_request,
    chunks,
    contrast_reasons,
    default_reasons,
    geometry_of,
    labelled,
    mean_over_shared,
    measured_tokens,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.measures.proximity import CONSTANT
from attnprobe.measures.terms import TERMS, Means, Parts, mean_position_parts, means, visit_parts
from attnprobe.networks.base import AddsPositions, KnowsMaps, KnowsPositions, Network, read
from attnprobe.randomness import numpy_generator
from attnprobe.results import Reason, variable
from attnprobe.scores import Scores, bias_of_pairs
from attnprobe.statistics import covariance, score_statistics
from attnprobe.statistics.spectrum import (
    circulant_part,
    directionality,
    effective_rank,
    eigenvalue_positivity,
    pair_waves,
    product_svd,
    symmetry,
    vector_waves,
    waves,
)
from attnprobe.training.objectives import Batch

BINS = 128
"""Maximum number of bins of query and of key positions in ``position_score``."""
COMPONENTS = 4
"""Number of singular vectors in the result."""

TABLE = (
    "variance_share proximity_contrast toeplitz_share grid_proximity_contrast qk_effective_rank qk_symmetry "
    "qk_directionality qk_eigenvalue_positivity positional_score symbolic_score"
)
"""Variables that the command prints for each head."""

NUMBERS = [
    Number(
        "variance_share",
        "share of the score variance",
        axes=("term",),
        method="covariance with the score over its variance, row-centred",
        undefined=CONSTANT,
    ),
    Number(
        "toeplitz_share",
        "fraction of the term variance explained by the offset profile",
        axes=("term",),
        method="row-centred",
        range=(0.0, 1.0),
        unstructured="(number of offsets - 1) / (n (n - 1))",
        undefined="the term is the same for all keys of each query",
    ),
    Number(
        "proximity_contrast",
        "mean term of near minus far keys",
        "std of the score",
        ("term",),
        "row-centred, excluding offset 0",
        unstructured="0",
        undefined=CONSTANT,
    ),
    Number(
        "score_by_offset",
        "offset profile of the term",
        axes=("term", "view"),
        method="least squares with a constant per query",
    ),
]

OF_MAPS: list[tuple[Number, Callable[[Tensor, Tensor], Tensor]]] = [
    (
        Number(
            "qk_symmetry",
            "symmetry of the query-key circuit",
            range=(-1.0, 1.0),
            unstructured="1 / d_model",
            undefined="the query-key map is 0",
        ),
        symmetry,
    ),
    (
        Number(
            "qk_directionality",
            "outlying rows minus outlying columns of the query-key circuit, relative to their sum",
            range=(-1.0, 1.0),
            unstructured="0",
            undefined="the query-key map is 0",
        ),
        directionality,
    ),
    (
        Number(
            "qk_eigenvalue_positivity",
            "sum over absolute sum of the eigenvalues of the query-key circuit",
            range=(-1.0, 1.0),
            unstructured="0",
            undefined="all eigenvalues of the query-key map are 0",
        ),
        eigenvalue_positivity,
    ),
]
"""Numbers of a query map and a key map, and their functions."""


def positions(
    of: Any,
    inputs: Any = None,
    *,
    sequences: int = 256,
    window: int = 2,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure the contributions of content and position to the scores of each head.

    The score of the forward pass is the sum of four terms: content or position part of the query times content or
    position part of the key. `attnprobe.measures.terms` defines the parts for each encoding and layer. Test sequences
    are decomposed with means over training sequences.

    All variables have dims ``layer`` and ``head`` and the dims in parentheses. Means over sequences:

    - ``variance_share`` (term): covariance of term and score over the variance of the score, row-centred. The four
      shares add up to 1 and can be negative;
    - ``proximity_contrast`` (term): mean term at near keys (0 < distance <= ``window``) minus mean term at far keys, in
      std of the score. The four contrasts add up to the contrast of the score (`proximity`);
    - ``toeplitz_share`` (term): fraction of the variance of the term itself explained by its offset profile; NaN for a
      constant term;
    - ``score_by_offset`` (term, offset): offset profile of the term. The four profiles add up to that of the score.

    Each of these also has ``NAME_interval`` (bound), its t-interval, ``NAME_std``, the standard deviation over
    sequences, and ``NAME_null`` (null, draw), its values under two nulls. *permuted*: positions of the encoding
    permuted in the network (for causal attention and PyTorch models, the scores permuted, which has no effect on
    ``variance_share``; its null is then NaN). *initial*: networks of the
    same configuration at initialisation. For images, the last three are also computed over two-dimensional offsets
    (``row_offset``, ``column_offset``), with names that start with ``grid_``.

    Properties of the mean position parts, over all pairs including causally masked ones. They vary little between
    sequences and have no intervals; amplitudes, singular values and ``pair_use`` have nulls:

    - ``position_score`` (query_bin, key_bin): row-centred position-position term, averaged over bins of positions;
    - ``wave_amplitude``, ``wave_offset`` (frequency): amplitude of each Fourier component of the circulant part of this
      term, and the offset that it prefers (its phase shift in tokens);
    - ``position_singular_value`` (component): singular values of this term without bias; ``position_query_vector`` and
      ``position_key_vector`` (component, token): its first singular vectors, as functions of the query and of the key
      position;
    - ``pair_amplitude``, ``pair_offset`` (pair): amplitude and preferred offset at the frequencies of a sinusoidal
      encoding (layer 0, from the weights and the mean scale of the norm) or a rotary encoding (from the mean query and
      key). ``pair_frequency`` (pair only) has these frequencies in periods per token;
    - ``pair_use`` (pair; rotary only): mean norm of the queries in a pair of coordinates times mean norm of the
      keys, over $\sqrt{d_{head}}$.

    Properties of the weights, the query-key circuit $W_Q W_K^T / \sqrt{d_{head}}$, also without intervals:

    - ``qk_singular_value`` (component) and ``qk_effective_rank``, both with null;
    - ``qk_query_vector``, ``qk_key_vector`` (component, d_model): first singular vectors;
    - ``qk_symmetry``: $\mathrm{tr}(M M) / \lVert M \rVert_F^2$ of the circuit M, 1 for a symmetric and -1 for a
      skew-symmetric M, 1 / d_model on average for random maps (Saponati et al. 2025, arXiv:2502.10927);
    - ``qk_directionality``: $(\bar r - \bar c) / (\bar r + \bar c)$ with the sums of the outlying row and column norms
      of M (more than two std above their mean), from -1 (only columns, the key side) to 1 (only rows, the query side);
      0 if neither dominates or none is outlying (same paper). With few dimensions a single outlier decides;
    - ``qk_eigenvalue_positivity``: sum of the real parts over the sum of the absolute values of the eigenvalues of M,
      -1 to 1, 0 on average for random maps (for M what the copying score of Elhage et al. 2021 is for values).

    Permuted positions do not change weights, so *initial* is the only null of the numbers of the weights. M has neither
    the gain of the norm before attention nor the biases of the maps. With a rotary encoding M is the map at offset 0;
    at offset o it is $W_Q R_o W_K^T$, of which these numbers say nothing.

    Dependence of the scores on the position or on the token of the key, from a second forward pass in which two blocks
    of m consecutive tokens, drawn for each sequence, change places (m = n / 8, but at least 2; 1 if n < 5):

    - ``positional_score``: correlation of the scores $s'_{ij}$ of this pass with $s_{ij}$,
      $\sum \hat s_{ij} \hat s'_{ij} / \sqrt{\sum \hat s_{ij}^2 \sum \hat s'^2_{ij}}$, 1 if scores stay at their
      positions;
    - ``symbolic_score``: the same with $s'_{i \pi(j)}$ in place of $s'_{ij}$, where $\pi(j)$ is the new position of the
      token of key j: 1 if scores move with the tokens.

    The sums are over the 2 m keys of the blocks, queries outside of the blocks that see all of them, and sequences;
    $\hat s$ is centred over the 2 m keys. The definitions are those of Urrutia et al. (2025, arXiv:2511.11579): a head
    is positional (symbolic) if its scores are invariant (equivariant) under permutations of the keys' contents, and
    both only if the scores of all keys are equal. This estimate is ours.

    If a share p of the score variance depends only on the position and the rest only on the token, and neither has
    further structure, the values are p - (1 - p) / (2 m - 1) and 1 - p - p / (2 m - 1), so that each is -1 / (2 m - 1)
    if the scores depend only on the other. The symbolic score of a positional head is lower if its scores differ mainly
    between the blocks, as with proximity. Both are 0 if the scores after the swap are unrelated to those before. In
    deeper layers keys and queries have seen the swapped context, so that neither number has to reach 1.

    The intervals are t-intervals with the jackknife error over sequences. *initial* is the only null: permuted
    positions leave a positional head positional. With sliding windows, n is the number of tokens that all see each
    other in the layer with the smallest one.

    ``objective``, ``train_accuracy`` and ``test_accuracy`` (no dims) describe the checkpoint.

    Args:
        of: Checkpoint, PyTorch model (with ``inputs``) or `Probe` to measure.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network` for more control.
        sequences: Number of test sequences (the first ones), and of training sequences for the means.
        window: Largest distance of a near key, in tokens or pixels.
        nulls: Number of draws of each null; 0 for none.
        level: Confidence level of the intervals.
        seed: Seed of the permutations and the initial networks.
    """
    request = checked_request("positions", of, inputs, sequences, nulls, level, seed)
    check_window(request.network, window)
    views_by_prefix, network = views(request.network), request.network
    train, objective = request.probe.task.train, request.probe.objectives[0]
    rows = np.unique(request.rows % len(train))
    measured_conditions: list[tuple[Network, Means, np.ndarray | None]] = []
    pools: list[Pool] = []
    uniform = torch.from_numpy(numpy_generator(seed, "positions block_swap").random((request.sequences, 3)))
    smallest = min((limit for limit in network.shape.windows if limit is not None), default=None)
    # For causal attention, and inputs that are not tokens, the scores are permuted instead of the inputs.
    permutes_inputs = _reorderable(network)

    def permuted_inputs(batch: Batch, order: np.ndarray | None) -> Batch:
        if order is None or not permutes_inputs:
            return batch
        return replace(batch, inputs=batch.inputs[:, order[order < batch.inputs.shape[1]]])

    def prepare(network: Network) -> Compute:
        means_by_draw: dict[int | None, Means] = {}
        pool = Pool()

        def means_under(condition: Condition) -> Means:
            if condition.draw not in means_by_draw:
                batches = (permuted_inputs(batch, condition.order) for _, batch in chunks(train, rows, network))
                means_by_draw[condition.draw] = means(network, batches, objective)
                measured_conditions.append((network, means_by_draw[condition.draw], condition.order))
                pools.append(pool if condition.order is None else Pool())
            return means_by_draw[condition.draw]

        def compute(sample: Sample, targets: Sequence[Target]) -> None:
            for target in targets:
                scores: dict[int, Scores] = {}
                add_layer = functools.partial(add_statistics, sample, target, scores)
                inputs = permuted_inputs(sample.batch, target.condition.order)
                visit_parts(network, inputs, means_under(target.condition), add_layer, objective)
                if target.condition.order is None:
                    add_covariances(pool, network, sample, scores)

        return compute

    def add_covariances(pool: Pool, network: Network, sample: Sample, scores: Mapping[int, Scores]) -> None:
        measured = measured_tokens(network, request.probe.task.test, request.rows[sample.rows])[:, : sample.length]
        swap = draw_swap(torch.from_numpy(measured), uniform[sample.rows], network.shape.causal, smallest)
        swapped = block_swap.swapped(network, sample.batch, swap)
        if swapped is not None:
            read(
                *swapped,
                objective,
                lambda heads: pool.add(heads.layer, covariances(swap, scores[heads.layer], heads.scores)),
            )

    def add_statistics(sample: Sample, target: Target, scores: dict[int, Scores], layer: int, parts: Parts) -> None:
        scores[layer] = parts.scores
        order = target.order if target.order is None or not permutes_inputs else target.order.argsort()
        for prefix, values in _statistics(parts, views_by_prefix, window, order).items():
            if sample.length > sample.shortest or parts.scores.real is not None:
                profile = values["score_by_offset"]
                shortest = geometry_of(views_by_prefix[prefix], sample.shortest, parts.scores.window)
                profile -= mean_over_shared(profile, shortest)
            for name, value in values.items():
                if name == "variance_share" and target.order is not None and not permutes_inputs:
                    continue  # permuting scores does not change it
                missing = request.network.shape.n - sample.length if name == "score_by_offset" else 0
                target.add((prefix, name), layer, widened(value, missing))
        target.advance()

    tallies, draws = over_sequences(request, prepare, passes=network.shape.layers)
    variables: dict[str, xr.Variable] = {}
    for prefix, view in views_by_prefix.items():
        sizes = {"term": {"term": len(TERMS)}, "view": view.offsets}
        for number in NUMBERS:
            if prefix and number.name == "variance_share":
                continue  # the variance share is the same in all views
            axes = {"head": network.shape.heads}
            axes |= {axis: size for kind in number.axes for axis, size in sizes[kind].items()}
            variables |= labelled(number, prefix + number.name, axes, tallies, (prefix, number.name), level)
    for compute_properties in (_position_term, _circuit, _pairs):
        variables |= _with_nulls([compute_properties(*condition) for condition in measured_conditions], len(draws))
    if pools[0].by_layer:
        variables |= _with_nulls(_swap_scores(pools, level), len(draws))
    n = network.shape.n
    edges = np.linspace(0, n, min(n, BINS) + 1).round()
    centres = (edges[1:] + edges[:-1] - 1) / 2
    coordinates = {
        "term": list(TERMS),
        "frequency": np.arange(1, n // 2 + 1) / n,
        "query_bin": centres,
        "key_bin": centres,
        "token": np.arange(n),
    }
    left_out = undefined(network, "proximity_contrast", near=window)
    if not isinstance(network, KnowsMaps):
        left_out["qk_*"] = "the network does not expose query and key maps"
    first_is_exact = bool(measured_conditions[0][1].first)
    if not pools[0].by_layer:
        left_out["positional_score symbolic_score"] = "the inputs of the network are not those of the measured tokens"
    encoding = network.encoding if isinstance(network, KnowsPositions) else "unknown"
    if encoding == "unknown":
        layers = "deeper layers" if first_is_exact else "all layers"
        left_out["pair_*"] = f"the position encoding of the network is unknown; {layers} are split by means over data"
    facts = {"window": window, "means_from": "train", "encoding": encoding, "table": TABLE}
    reasons = [
        Reason(
            "variance_share_null",
            "permuting the scores does not change it",
            lambda measured, name: (measured["null"] == "permuted") & (not _reorderable(network)),
        ),
        Reason(
            "qk_*_null",
            "permuting positions does not change the weights",
            lambda measured, name: measured["null"] == "permuted",
        ),
        Reason(
            "positional_score_null symbolic_score_null",
            "permuted positions leave a positional head positional and a symbolic head symbolic",
            lambda measured, name: measured["null"] == "permuted",
        ),
        Reason(
            "positional_score symbolic_score",
            "no query sees two blocks of keys, or the sequences are too short",
            lambda measured, name: xr.DataArray(pools[0].without_queries, dims="layer"),
        ),
        *contrast_reasons(request, window),
        *default_reasons([*NUMBERS, *block_swap.NUMBERS, *(number for number, _ in OF_MAPS)]),
        Reason("*_query_vector *_key_vector", f"only the first {COMPONENTS} components are kept"),
        Reason("qk_effective_rank", "the query-key map is 0"),
        Reason("pair_amplitude pair_offset", "the frequencies are those of position vectors, which enter layer 0"),
    ]
    return result(request, variables, coordinates, list(draws), left_out, reasons, **facts)


def _reorderable(network: Network) -> bool:
    """Return whether the permuted null permutes the inputs; if not, it permutes the scores."""
    return network.shape.inputs_are_tokens and not network.shape.causal


def _statistics(
    parts: Parts, views_by_prefix: Mapping[str, View], window: int, order: Tensor | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return the statistics of the terms, [sequence, head, term, ...], by view prefix and name."""
    scores, terms = parts.scores, list(parts.terms.values())
    covariances = torch.stack([covariance(term, scores) for term in terms], dim=-1)
    variance = covariance(scores, scores)
    variance = variance.where(variance > 0, torch.nan)
    grid_statistics = [score_statistics(replace(term, order=order)) for term in terms]
    std = (variance / grid_statistics[0].pairs.sum(-1, keepdim=True)).sqrt()[..., None]
    statistics = {}
    for prefix in views_by_prefix:
        term_statistics = grid_statistics if prefix else [of_term.in_line() for of_term in grid_statistics]
        values = {
            "variance_share": covariances / variance[..., None],
            "toeplitz_share": torch.stack([of_term.toeplitz_share for of_term in term_statistics], dim=-1),
            "proximity_contrast": torch.stack([of_term.near_minus_far(window) for of_term in term_statistics], dim=-1)
            / std,
            "score_by_offset": torch.stack([of_term.offset_profile for of_term in term_statistics], dim=2),
        }
        statistics[prefix] = {name: value.numpy() for name, value in values.items()}
    return statistics


def _with_nulls(conditions: Sequence[dict[str, xr.Variable]], null_kinds: int) -> dict[str, xr.Variable]:
    """Return the variables of the first (measured) condition, with the nulls from the other conditions."""
    first, *others = conditions
    variables = dict(first)
    for name in NULLED & set(first) if others else ():
        shape = (null_kinds, len(others) // null_kinds, *first[name].shape)
        values = np.stack([other[name].values for other in others]).reshape(shape)
        about = f"null: {first[name].attrs['long_name']}"
        variables[f"{name}_null"] = variable(
            ["null", "draw", *map(str, first[name].dims)], values, about, first[name].attrs["units"]
        )
    return variables


def _swap_scores(pools: Sequence[Pool], level: float) -> list[dict[str, xr.Variable]]:
    """Return positional and symbolic scores under each condition; NaN for nulls without any sums."""
    measured = pools[0].variables(level)
    missing = {name: array.copy(data=np.full(array.shape, np.nan)) for name, array in measured.items()}
    return [measured, *(pool.variables(level) if pool.by_layer else missing for pool in pools[1:])]


NULLED = {
    "wave_amplitude",
    "position_singular_value",
    "pair_amplitude",
    "pair_use",
    "qk_singular_value",
    "qk_effective_rank",
    *(number.name for number, _ in OF_MAPS),
    *(number.name for number in block_swap.NUMBERS),
}
"""Variables that have nulls, other than means over sequences."""


def _position_term(network: Network, data_means: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return properties of the mean position-position term, over all pairs including masked ones."""
    q, k = mean_position_parts(network, data_means)
    q = q * (torch.tensor(data_means.factors, dtype=torch.float64) * q.shape[-1] ** 0.5)[:, None, None, None]
    grid = network.shape.grid
    biases = _biases(network)
    inverse = None if order is None else torch.from_numpy(np.argsort(order))
    scores = [Scores(q[[layer]], k[[layer]], bias=bias, order=inverse, grid=grid) for layer, bias in enumerate(biases)]
    by_layer = [score_statistics(one).in_line() for one in scores]
    sums = torch.cat([one.mean_by_offset * one.pairs[:, None] for one in by_layer])
    amplitude, offset = waves(circulant_part(sums))
    k = (k - k.mean(2, keepdim=True)) / k.shape[-1] ** 0.5
    query_vectors, values, key_vectors = (_padded(x, k.shape[-1]) for x in product_svd(q, k))
    head, method = ("layer", "head"), "of the mean position parts"
    return {
        "position_score": variable(
            (*head, "query_bin", "key_bin"),
            np.concatenate([_binned(q[[layer]], k[[layer]], bias, grid) for layer, bias in enumerate(biases)]),
            "position-position term",
            "1",
            "row-centred, mean over bins",
        ),
        "wave_amplitude": variable((*head, "frequency"), amplitude, "amplitude of the circulant part", "1", method),
        "wave_offset": variable(
            (*head, "frequency"), offset, "offset preferred by the circulant part", "tokens", method
        ),
        "position_singular_value": variable(
            (*head, "component"),
            values,
            "singular value of the position-position term",
            "1",
            "row-centred, without bias",
        ),
        **{
            f"position_{side}_vector": variable(
                (*head, "component", "token"), _first(vectors), f"singular vector over {side} positions", "1"
            )
            for side, vectors in (("query", query_vectors), ("key", key_vectors))
        },
    }


def _biases(network: Network) -> list[Tensor | None]:
    """Return the bias of each layer between n tokens, in float64 on the CPU."""
    layers = range(network.shape.layers)
    if isinstance(network, KnowsPositions):
        biases = [network.bias(network.shape.n)] * len(layers)
    else:
        biases = [network.layer_bias(layer) if isinstance(network, AddsPositions) else None for layer in layers]
    return [None if bias is None else bias.double().cpu() for bias in biases]


def _binned(q: Tensor, k: Tensor, bias: Tensor | None, grid: tuple[int, int] | None) -> np.ndarray:
    """Return the row-centred product, plus a bias, averaged over bins of queries and keys."""
    n = q.shape[2]
    edges = np.linspace(0, n, min(n, BINS) + 1).round().astype(int)
    averages = torch.zeros(len(edges) - 1, n, dtype=torch.float64)
    for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        averages[index, start:stop] = 1 / (stop - start)
    binned = (averages @ q) @ (averages @ k).mT
    if bias is not None:
        sides, keys = (n,) if bias.shape[1] == 2 * n - 1 else grid or (n,), torch.arange(n)
        for index, (start, stop) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            mean = bias_of_pairs(bias, sides, torch.arange(start, stop), keys).mean(1)
            binned[:, :, index] += (mean - mean.mean(-1, keepdim=True)) @ averages.T
    return binned.numpy()


def _padded(x: Tensor, components: int) -> Tensor:
    """Pad [layer, head, component, ...] with zeros to ``components``; sequences shorter than d_head have fewer."""
    zeros = x.new_zeros(*x.shape[:2], components - x.shape[2], *x.shape[3:])
    return torch.cat([x, zeros], dim=2)


def _first(vectors: Tensor) -> np.ndarray:
    """Return singular vectors with all but the first `COMPONENTS` set to NaN."""
    first = vectors.numpy().copy()
    first[:, :, COMPONENTS:] = np.nan
    return first


def _circuit(network: Network, data_means: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return singular values and vectors of the query-key circuit of each head."""
    if not isinstance(network, KnowsMaps):
        return {}
    w_q, w_k = (maps.double().cpu() for maps in network.query_key_maps())
    query_vectors, values, key_vectors = product_svd(w_q / w_q.shape[-1] ** 0.5, w_k)
    head, method = ("layer", "head"), "of the weights; rotary: at offset 0"
    variables = {
        "qk_singular_value": variable(
            (*head, "component"), values, "singular value of the query-key circuit", "1", method
        ),
        "qk_effective_rank": variable(
            head, effective_rank(values), "effective rank of the query-key circuit", "1", "entropy"
        ),
        **{
            number.name: variable(head, function(w_q, w_k), number.meaning, number.units, method)
            for number, function in OF_MAPS
        },
        **{
            f"qk_{side}_vector": variable(
                (*head, "component", "d_model"),
                _first(vectors),
                f"singular vector of the query-key circuit, {side} side",
                "1",
            )
            for side, vectors in (("query", query_vectors), ("key", key_vectors))
        },
    }
    for number, _ in OF_MAPS:
        variables[number.name].attrs |= number.attributes
    if order is not None:  # positions do not enter the weights
        return {name: array.copy(data=np.full(array.shape, np.nan)) for name, array in variables.items()}
    return variables


def _pairs(network: Network, data_means: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return amplitudes and preferred offsets at the frequencies of the encoding, if it has any."""
    frequency = network.frequency if isinstance(network, KnowsPositions) else None
    if frequency is None or not isinstance(network, KnowsPositions):
        return {}
    head, variables = ("layer", "head"), {}
    if network.rotates:
        query, key = (torch.stack([parts[side] for parts in data_means.unrotated]) for side in range(2))
        amplitude, offset = pair_waves(query / query.shape[-1] ** 0.5, key, frequency)
        use = torch.stack([query * key for query, key in data_means.lengths]) / query.shape[-1] ** 0.5
        long_name = "mean query norm times mean key norm in a pair"
        variables["pair_use"] = variable((*head, "pair"), use, long_name, "1", "over sqrt(d_head)")
        method = "of the mean query and key"
    else:
        shape = (network.shape.layers, network.shape.heads, len(frequency))
        amplitude, offset = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        w_q, w_k = network.vector_maps(data_means.scale)
        amplitude[0], offset[0] = vector_waves(w_q / w_q.shape[-1] ** 0.5, w_k, frequency)
        method = "of the weights and the mean scale of the norm, in layer 0"
    return variables | {
        "pair_frequency": variable(("pair",), frequency, "frequency of a pair of coordinates", "periods per token"),
        "pair_amplitude": variable((*head, "pair"), amplitude, "amplitude of a pair of coordinates", "1", method),
        "pair_offset": variable((*head, "pair"), offset, "offset preferred by a pair of coordinates", "tokens", method),
    }
