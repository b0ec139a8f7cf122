"""Positions: which part of a score comes from content, which from position, and is the proximity there?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.measures.driver import (
    Add,
    Compute,
    Condition,
    Number,
    Sample,
    View,
    check_window,
    checked_request,
    chunks,
    labelled,
    mean_over_shared,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.measures.terms import TERMS, Means, Parts, mean_position_parts, means, visit_parts
from attnprobe.networks.base import KnowsMaps, KnowsPositions, Network
from attnprobe.results import variable
from attnprobe.scores import Scores, bias_of_pairs
from attnprobe.statistics import covariance, score_statistics
from attnprobe.statistics.spectrum import circulant_part, effective_rank, pair_waves, product_svd, vector_waves, waves
from attnprobe.training.objectives import Batch

BINS = 128
"""Bins of query and of key positions, at most, in which the position-position kernel is kept."""
COMPONENTS = 4
"""Singular vectors that are kept."""

TABLE = "variance_share proximity_contrast toeplitz_share grid_proximity_contrast qk_effective_rank"
"""What the command prints of a head."""

NUMBERS = [
    Number(
        "variance_share",
        "share of the score's variance",
        axes=("term",),
        method="covariance with the score, row-centred",
    ),
    Number(
        "toeplitz_share",
        "share of the term's variance that the offset explains",
        axes=("term",),
        method="row-centred",
        range=(0.0, 1.0),
        unstructured="number of offsets less one, over n (n - 1)",
    ),
    Number(
        "proximity_contrast",
        "near minus far keys, by term",
        "std of the score",
        ("term",),
        "offset 0 left out",
        unstructured="0",
    ),
    Number(
        "score_by_offset",
        "term of the score by offset",
        axes=("term", "view"),
        method="least squares, row constants free",
    ),
]


def positions(
    of: Any, *, sequences: int = 256, window: int = 2, nulls: int = 8, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
    r"""Measure what content and position contribute to each head's score, and how the positions interact.

    The score of the forward pass is split into four terms that add up to it: content and position of the query times
    content and position of the key (`attnprobe.measures.terms` says how each encoding and layer is split; the means of
    deeper layers come from training sequences, the split ones are test sequences). Over ``layer``, ``head`` and
    ``term``, as means over sequences:

    - ``variance_share``: Cov(term, score) / Var(score), row-centred. The four add up to 1; a share can be negative;
    - ``proximity_contrast``: mean of the term at near keys (0 < distance <= window) minus far keys, in std of the whole
      score. The four add up to the contrast of the score (`proximity`);
    - ``toeplitz_share``: share of the term's own variance that the offset explains; NaN for a term that is constant;
    - ``score_by_offset`` (offset): the function of the offset that fits the term best. The four add up to the score's.

    Image tasks have the last three over two-dimensional offsets too, as ``grid_...``. Each has ``_interval``, ``_std``
    and ``_null``: *permuted*, the encoding's positions permuted in the network (where attention is causal, the keys
    that a query sees trade places), and *initial*, networks of the same configuration at initialisation.

    Of the mean position parts, without an interval, since they hardly differ between sequences, and over all pairs,
    those that a causal mask hides too:

    - ``position_score`` (query_bin, key_bin): the row-centred position-position term, mean over bins of positions;
    - ``wave_amplitude``, ``wave_offset`` (frequency): its circulant part in the Fourier basis of n positions: how much
      of each frequency the head reads, and the offset it prefers there, the phase shift in tokens;
    - ``position_singular_value`` (component), ``position_query_vector`` and ``position_key_vector`` (token): its
      singular values, and the first functions of the position that queries and keys have in it (a bias aside);
    - ``pair_amplitude``, ``pair_offset`` (pair): the same as for waves in the encoding's own frequencies,
      ``pair_frequency``: sinusoidal vectors in layer 0 (from the weights and the mean scale of the norm), and rotary
      pairs of the mean query and key; ``pair_use``: mean product of the lengths that queries and keys have in a pair;
    - ``qk_singular_value`` (component) and ``qk_effective_rank`` of the circuit $W_Q W_K^T / \sqrt{d_{head}}$, with
      ``qk_query_vector`` and ``qk_key_vector`` (d_model).

    Args:
        of: The checkpoint (or probe) to measure.
        sequences: Number of test sequences: the first ones; as many training sequences give the means.
        window: Largest distance that counts as near, in tokens or pixels.
        nulls: Draws of each null; 0 for none.
        level: Level of the intervals.
        seed: Seed of the permutations and the initial networks.
    """
    request = checked_request("positions", of, sequences, nulls, level, seed)
    check_window(request.network, window)
    seen, network = views(request.network), request.network
    train, objective = request.probe.task.train, request.probe.objectives[0]
    rows = np.unique(request.rows % len(train))
    known: list[tuple[Network, Means, np.ndarray | None]] = []

    def prepare(condition: Condition) -> Compute:
        # A causal network sees the tokens as they are, and its scores are rearranged.
        moved = condition.order is not None and not network.shape.causal

        def arranged(batch: Batch) -> Batch:
            if condition.order is None or not moved:
                return batch
            return replace(batch, inputs=batch.inputs[:, condition.order[condition.order < batch.inputs.shape[1]]])

        of_data = means(
            condition.network, (arranged(batch) for _, batch in chunks(train, rows, condition.network)), objective
        )
        known.append((condition.network, of_data, condition.order))

        def see(sample: Sample, add: Add) -> None:
            back = sample.order if sample.order is None or not moved else sample.order.argsort()

            def see_layer(layer: int, parts: Parts) -> None:
                for prefix, values in _statistics(parts, seen, window, back).items():
                    if sample.length > sample.shortest:
                        profile = values["score_by_offset"]
                        profile -= mean_over_shared(profile, sample.length, sample.shortest, seen[prefix].causal)
                    for name, value in values.items():
                        short = network.shape.n - sample.length if name == "score_by_offset" else 0
                        add((prefix, name), layer, widened(value, short))

            visit_parts(condition.network, arranged(sample.batch), of_data, see_layer, objective)

        return see

    tallies, draws = over_sequences(request, prepare)
    variables: dict[str, xr.Variable] = {}
    for prefix, view in seen.items():
        sizes = {"term": {"term": len(TERMS)}, "view": view.offsets}
        for number in NUMBERS:
            if prefix and number.name == "variance_share":
                continue  # the same in every view
            axes = {"head": network.shape.heads}
            axes |= {axis: size for kind in number.axes for axis, size in sizes[kind].items()}
            variables |= labelled(number, prefix + number.name, axes, tallies, (prefix, number.name), level)
    for many in (_kernel, _circuit, _pairs):
        variables |= _with_nulls([many(*one) for one in known], len(draws))
    n = network.shape.n
    ends = np.linspace(0, n, min(n, BINS) + 1).round()
    middle = (ends[1:] + ends[:-1] - 1) / 2
    coordinates = {
        "term": list(TERMS),
        "frequency": np.arange(1, n // 2 + 1) / n,
        "query_bin": middle,
        "key_bin": middle,
        "token": np.arange(n),
    }
    left_out = undefined(network, "proximity_contrast")
    if not isinstance(network, KnowsMaps):
        left_out["qk_*"] = "the network shows no query and key maps"
    encoding = network.encoding if isinstance(network, KnowsPositions) else "unknown"
    if encoding == "unknown":
        left_out["pair_*"] = "the network does not know its position encoding; layer 0 is split by means over data too"
    facts = {"window": window, "means_from": "train", "encoding": encoding, "table": TABLE}
    return result(request, variables, coordinates, list(draws), left_out, **facts)


def _statistics(
    parts: Parts, seen: Mapping[str, View], window: int, order: Tensor | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each view, each statistic of [sequence, head, term, ...]."""
    whole, terms = parts.scores, list(parts.terms.values())
    shared = torch.stack([covariance(term, whole) for term in terms], dim=-1)
    square = covariance(whole, whole)
    std = (square / whole.geometry.keys.sum()).sqrt()[..., None]
    finest = [score_statistics(replace(term, order=order)) for term in terms]
    found = {}
    for prefix in seen:
        each = finest if prefix else [one.in_line() for one in finest]
        values = {
            "variance_share": shared / square[..., None],
            "toeplitz_share": torch.stack([one.toeplitz_share for one in each], dim=-1),
            "proximity_contrast": torch.stack([one.near_minus_far(window) for one in each], dim=-1) / std,
            "score_by_offset": torch.stack([one.offset_profile for one in each], dim=2),
        }
        found[prefix] = {name: value.numpy() for name, value in values.items()}
    return found


def _with_nulls(found: Sequence[dict[str, xr.Variable]], kinds: int) -> dict[str, xr.Variable]:
    """Return the variables of the measured condition, which comes first, with the nulls of some of them."""
    first, *others = found
    made = dict(first)
    for name in NULLED & set(first) if others else ():
        shape = (kinds, len(others) // kinds, *first[name].shape)
        values = np.stack([other[name].values for other in others]).reshape(shape)
        about = f"null: {first[name].attrs['long_name']}"
        made[f"{name}_null"] = variable(
            ["null", "draw", *map(str, first[name].dims)], values, about, first[name].attrs["units"]
        )
    return made


NULLED = {
    "wave_amplitude",
    "position_singular_value",
    "pair_amplitude",
    "pair_use",
    "qk_singular_value",
    "qk_effective_rank",
}
"""Those of the mean position parts and of the weights that have nulls."""


def _kernel(network: Network, of: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return what the mean position-position term is like, over all pairs whether a mask hides them or not."""
    q, k = mean_position_parts(network, of)
    n, grid = network.shape.n, network.shape.grid
    bias = network.bias(n) if isinstance(network, KnowsPositions) else None
    bias = None if bias is None else bias.double().cpu()
    back = None if order is None else torch.from_numpy(np.argsort(order))
    score = score_statistics(Scores(q, k, bias=bias, order=back, grid=grid)).in_line()
    amplitude, shift = waves(circulant_part(score.mean_by_offset * score.pairs[:, None]))
    k = (k - k.mean(2, keepdim=True)) / k.shape[-1] ** 0.5
    left, values, right = (_padded(x, k.shape[-1]) for x in product_svd(q, k))
    head, method = ("layer", "head"), "of the mean position parts"
    return {
        "position_score": variable(
            (*head, "query_bin", "key_bin"),
            _binned(q, k, bias, grid),
            "position-position term",
            "1",
            "row-centred, by bins",
        ),
        "wave_amplitude": variable((*head, "frequency"), amplitude, "amplitude of the circulant part", "1", method),
        "wave_offset": variable((*head, "frequency"), shift, "preferred offset", "tokens", method),
        "position_singular_value": variable(
            (*head, "component"), values, "singular value of the position-position term", "1", "row-centred, no bias"
        ),
        **{
            f"position_{side}_vector": variable(
                (*head, "component", "token"), _first(vectors), f"singular function of the {side} position", "1"
            )
            for side, vectors in (("query", left), ("key", right))
        },
    }


def _binned(q: Tensor, k: Tensor, bias: Tensor | None, grid: tuple[int, int] | None) -> np.ndarray:
    """Return the means of the row-centred product, and of a bias, over bins of queries and keys."""
    n = q.shape[2]
    ends = np.linspace(0, n, min(n, BINS) + 1).round().astype(int)
    members = torch.zeros(len(ends) - 1, n, dtype=torch.float64)
    for number, (start, stop) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        members[number, start:stop] = 1 / (stop - start)
    kernel = (members @ q) @ (members @ k).mT
    if bias is not None:
        sides, keys = (n,) if bias.shape[1] == 2 * n - 1 else grid or (n,), torch.arange(n)
        for number, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            mean = bias_of_pairs(bias, sides, torch.arange(start, stop), keys).mean(1)
            kernel[:, :, number] += (mean - mean.mean(-1, keepdim=True)) @ members.T
    return kernel.numpy()


def _padded(x: Tensor, components: int) -> Tensor:
    """Return [layer, head, component, ...] with zeros for components that a short sequence cannot have."""
    short = x.new_zeros(*x.shape[:2], components - x.shape[2], *x.shape[3:])
    return torch.cat([x, short], dim=2)


def _first(vectors: Tensor) -> np.ndarray:
    """Return the first singular vectors, and NaN for the others."""
    found = vectors.numpy().copy()
    found[:, :, COMPONENTS:] = np.nan
    return found


def _circuit(network: Network, of: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return what the product of query and key map is like, in each layer and head."""
    if not isinstance(network, KnowsMaps):
        return {}
    w_q, w_k = (maps.double().cpu() for maps in network.query_key_maps())
    left, values, right = product_svd(w_q / w_q.shape[-1] ** 0.5, w_k)
    head, method = ("layer", "head"), "of the weights; rotary: at offset 0"
    return {
        "qk_singular_value": variable(
            (*head, "component"), values, "singular value of the query-key circuit", "1", method
        ),
        "qk_effective_rank": variable(head, effective_rank(values), "effective rank of the circuit", "1", "entropy"),
        **{
            f"qk_{side}_vector": variable(
                (*head, "component", "d_model"), _first(vectors), f"singular vector of the circuit, {side} side", "1"
            )
            for side, vectors in (("query", left), ("key", right))
        },
    }


def _pairs(network: Network, of: Means, order: np.ndarray | None) -> dict[str, xr.Variable]:
    """Return the waves in the encoding's own frequencies, where it has some."""
    frequency = network.frequency if isinstance(network, KnowsPositions) else None
    if frequency is None or not isinstance(network, KnowsPositions):
        return {}
    head, found = ("layer", "head"), {}
    if network.rotates:
        query, key = (torch.stack([one[side] for one in of.unrotated]) for side in range(2))
        amplitude, shift = pair_waves(query / query.shape[-1] ** 0.5, key, frequency)
        use = torch.stack([query * key for query, key in of.lengths]) / query.shape[-1] ** 0.5
        long_name = "mean product of the lengths of query and key"
        found["pair_use"] = variable((*head, "pair"), use, long_name, "1", "mean of queries times mean of keys")
        method = "of the mean query and key"
    else:
        shape = (network.shape.layers, network.shape.heads, len(frequency))
        amplitude, shift = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        w_q, w_k = network.vector_maps(of.scale)
        amplitude[0], shift[0] = vector_waves(w_q / w_q.shape[-1] ** 0.5, w_k, frequency)
        method = "of the weights and the mean scale of the norm, in layer 0"
    return found | {
        "pair_frequency": variable(("pair",), frequency, "frequency of a pair of coordinates", "periods per token"),
        "pair_amplitude": variable((*head, "pair"), amplitude, "amplitude of a pair's wave", "1", method),
        "pair_offset": variable((*head, "pair"), shift, "preferred offset of a pair's wave", "tokens", method),
    }
