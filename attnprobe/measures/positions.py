"""Positions: which part of a score comes from content, which from position, and is the proximity there?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.measures import common
from attnprobe.measures.common import NULLS, View

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.measures.terms import Means, Parts
    from attnprobe.statistics import Moments
    from attnprobe.transformer import Transformer

BINS = 128
"""Bins of query and of key positions, at most, in which the position-position kernel is kept."""
COMPONENTS = 4
"""Singular vectors that are kept."""

TABLE = "variance_share proximity_contrast toeplitz_share grid_proximity_contrast qk_effective_rank"
"""What the command prints of a head."""

# name: (axes besides layer and head, long name, units, method)
DESCRIBED = {
    "variance_share": (("term",), "share of the score's variance", "1", "covariance with the score, row-centred"),
    "toeplitz_share": (("term",), "share of the term's variance that the offset explains", "1", "row-centred"),
    "proximity_contrast": (("term",), "near minus far keys, by term", "sd of the score", "offset 0 left out"),
    "score_by_offset": (("term", "view"), "term of the score by offset", "1", "least squares, row constants free"),
}


def positions(checkpoint: "Checkpoint", *, sequences: int = 256, window: int = 2, seed: int = 0) -> "xr.Dataset":
    r"""Measure what content and position contribute to each head's score, and how the positions interact.

    The score of the forward pass is split into four terms that add up to it: content and position of the query times
    content and position of the key (`attnprobe.measures.terms` says how each encoding and layer is split; the means of
    deeper layers come from training sequences, the split ones are test sequences). Over ``layer``, ``head`` and
    ``term``, as means over sequences:

    - ``variance_share``: Cov(term, score) / Var(score), row-centred. The four add up to 1; a share can be negative;
    - ``proximity_contrast``: mean of the term at near keys (0 < distance <= window) minus far keys, in sd of the whole
      score. The four add up to the contrast of the score (`proximity`);
    - ``toeplitz_share``: share of the term's own variance that the offset explains; NaN for a term that is constant;
    - ``score_by_offset`` (offset): the function of the offset that fits the term best. The four add up to the score's.

    Image tasks have the last three over two-dimensional offsets too, as ``grid_...``. Each has ``_interval``, ``_sd``
    and ``_null``: *permuted*, the encoding's positions permuted in the network (where attention is causal, the keys
    that a query sees trade places), and *initial*, networks of the same configuration at initialisation.

    Of the mean position parts, without an interval, since they hardly differ between sequences, and over all pairs,
    those that a causal mask hides too:

    - ``position_kernel`` (query_bin, key_bin): the row-centred position-position term, mean over bins of positions;
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
        checkpoint: The checkpoint to measure.
        sequences: Number of test sequences: the first ones; as many training sequences give the means.
        window: Largest distance that counts as near, in tokens or pixels.
        seed: Seed of the permutations and the initial networks.
    """
    from tqdm import tqdm

    from attnprobe.measures.terms import TERMS
    from attnprobe.results import dataset

    common.check(checkpoint, sequences, seed)
    common.check_window(checkpoint, window)
    sequences = min(sequences, len(checkpoint.task.test))
    draws, rows = min(common.DRAWS, sequences), np.arange(sequences)
    views = common.views(checkpoint)
    n, model = checkpoint.data.n, checkpoint.model
    with tqdm(total=3 * sequences, desc="positions", unit="sequence", delay=5, leave=False, dynamic_ncols=True) as bar:

        def look(network: "Transformer", some: np.ndarray, order: np.ndarray | None = None) -> Any:
            return _over_sequences(checkpoint, views, window, bar.update, network, some, rows, order)

        found, means = look(model, rows)
        networks = [common.initial_network(checkpoint, seed, d) for d in range(draws)]
        orders = [common.permutation("positions", seed, d, n) for d in range(draws)]
        nulls = {
            "permuted": [look(model, rows[d::draws], orders[d]) for d in range(draws)],
            "initial": [look(networks[d], rows[d::draws]) for d in range(draws)],
        }
    variables: dict[str, xr.Variable] = {}
    head = {"head": model.cfg.n_heads}
    for prefix, view in views.items():
        for name, (axes, *words) in DESCRIBED.items():
            if prefix and name == "variance_share":
                continue  # the same in every view
            sizes = {"term": {"term": len(TERMS)}, "view": view.offsets}
            over = head | {axis: size for kind in axes for axis, size in sizes[kind].items()}
            of_nulls = [
                [np.stack([one.mean for one in draw[prefix][name]]) for draw, _ in nulls[null]] for null in NULLS
            ]
            variables |= common.summary(prefix + name, over, found[prefix][name], of_nulls, words)
    seen: list[tuple[Transformer, Means, np.ndarray | None]] = [(model, means, None)]
    seen += [(model, of, orders[d]) for d, (_, of) in enumerate(nulls["permuted"])]
    seen += [(networks[d], of, None) for d, (_, of) in enumerate(nulls["initial"])]
    for many in (_kernel, _circuit, _pairs):
        variables |= _with_nulls([many(*one) for one in seen], draws)
    variables |= common.accuracies(checkpoint)
    ends = np.linspace(0, n, min(n, BINS) + 1).round()
    middle = (ends[1:] + ends[:-1] - 1) / 2
    coordinates = common.coordinates(checkpoint, draws) | {
        "term": list(TERMS),
        "frequency": np.arange(1, n // 2 + 1) / n,
        "query_bin": middle,
        "key_bin": middle,
        "token": np.arange(n),
    }
    facts = common.facts(checkpoint, "positions", sequences, seed, window=window, means_from="train")
    return dataset(variables, coordinates, facts | {"encoding": checkpoint.config.model.position, "table": TABLE})


def _over_sequences(
    checkpoint: "Checkpoint",
    views: Mapping[str, View],
    window: int,
    done: Callable[[int], object],
    model: "Transformer",
    rows: np.ndarray,
    every: np.ndarray,
    order: np.ndarray | None,
) -> "tuple[dict[str, dict[str, list[Moments]]], Means]":
    """Return, for each view, the moments of each statistic over sequences, a list over layers, and the means.

    With an order the network sees the tokens in that order, which gives each the position of another, and what it
    computes is put back into the order of the sequence. A causal network sees them as they are, and its scores are
    rearranged. A null has some rows of every one that is measured, and means from as many training sequences as the
    checkpoint: means of fewer would have more noise in them, which counts as position.
    """
    import torch

    from attnprobe.measures.capture import chunks
    from attnprobe.measures.terms import means, parts
    from attnprobe.statistics import Moments

    moved = order is not None and not checkpoint.config.model.causal
    train, n = checkpoint.task.train, checkpoint.data.n
    shortest = int(common.lengths(checkpoint)[every].min())

    def arranged(inputs: "Tensor") -> "Tensor":
        return inputs[:, order[order < inputs.shape[1]]] if order is not None and moved else inputs

    of = means(model, (arranged(inputs) for _, inputs in chunks(train, np.unique(every % len(train)), model)))
    layers = range(model.cfg.n_layers)
    found = {prefix: {name: [Moments() for _ in layers] for name in DESCRIBED} for prefix in views}
    for chosen, inputs in chunks(checkpoint.task.test, rows, model):
        length = inputs.shape[1]
        back = None
        if order is not None:
            own = order[order < length]
            back = torch.from_numpy(np.argsort(own) if moved else own)
        for layer, split in enumerate(parts(model, arranged(inputs), of)):
            for prefix, values in _statistics(split, views, window, back).items():
                if length > shortest:
                    kernel = values["score_by_offset"]
                    kernel -= common.mean_over_shared(kernel, length, shortest, views[prefix].causal)
                for name, value in values.items():
                    short = n - length if name == "score_by_offset" else 0
                    found[prefix][name][layer].add(common.widened(value, short))
        done(len(chosen))
    return found, of


def _statistics(
    split: "Parts", views: Mapping[str, View], window: int, order: "Tensor | None"
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each view, each statistic of [sequence, head, term, ...]."""
    import torch

    from attnprobe.statistics import covariance, score_statistics

    whole, terms = split.whole, list(split.terms.values())
    shared = torch.stack([covariance(term, whole) for term in terms], dim=-1)
    square = covariance(whole, whole)
    sd = (square / whole.geometry.keys.sum()).sqrt()[..., None]
    finest = [score_statistics(replace(term, order=order)) for term in terms]
    found = {}
    for prefix in views:
        each = finest if prefix else [one.in_line() for one in finest]
        values = {
            "variance_share": shared / square[..., None],
            "toeplitz_share": torch.stack([one.toeplitz_share for one in each], dim=-1),
            "proximity_contrast": torch.stack([one.near_minus_far(window) for one in each], dim=-1) / sd,
            "score_by_offset": torch.stack([one.kernel for one in each], dim=2),
        }
        found[prefix] = {name: value.numpy() for name, value in values.items()}
    return found


def _with_nulls(found: Sequence[dict[str, "xr.Variable"]], draws: int) -> dict[str, "xr.Variable"]:
    """Return the variables of the checkpoint, the first of what was found, and beside some those of the nulls."""
    from attnprobe.results import variable

    first, *others = found
    made = dict(first)
    for name in NULLED & set(first):
        values = np.stack([other[name].values for other in others]).reshape(len(NULLS), draws, *first[name].shape)
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


def _kernel(model: "Transformer", of: "Means", order: np.ndarray | None) -> dict[str, "xr.Variable"]:
    """Return what the mean position-position term is like, over all pairs whether a mask hides them or not."""
    import torch

    from attnprobe.measures.terms import mean_position_parts
    from attnprobe.results import variable
    from attnprobe.statistics import Scores, score_statistics
    from attnprobe.statistics.spectrum import circulant_part, product_svd, waves

    q, k = mean_position_parts(model, of)
    bias = model.bias(model.data.n)
    bias = None if bias is None else bias.detach().double().cpu()
    back = None if order is None else torch.from_numpy(np.argsort(order))
    score = score_statistics(Scores(q, k, bias=bias, order=back, grid=model.data.grid)).in_line()
    amplitude, shift = waves(circulant_part(score.mean_by_offset * score.pairs[:, None]))
    k = (k - k.mean(2, keepdim=True)) / k.shape[-1] ** 0.5
    left, values, right = (_padded(x, k.shape[-1]) for x in product_svd(q, k))
    head, method = ("layer", "head"), "of the mean position parts"
    return {
        "position_kernel": variable(
            (*head, "query_bin", "key_bin"),
            _binned(q, k, bias, model.data.grid),
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


def _binned(q: "Tensor", k: "Tensor", bias: "Tensor | None", grid: tuple[int, int] | None) -> np.ndarray:
    """Return the means of the row-centred product, and of a bias, over bins of queries and keys."""
    import torch

    from attnprobe.attention import Additive

    n = q.shape[2]
    ends = np.linspace(0, n, min(n, BINS) + 1).round().astype(int)
    members = torch.zeros(len(ends) - 1, n, dtype=torch.float64)
    for number, (start, stop) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        members[number, start:stop] = 1 / (stop - start)
    kernel = (members @ q) @ (members @ k).mT
    if bias is not None:
        added = Additive(n, bias.device, proximity=bias, grid=grid if bias.shape[1] != 2 * n - 1 else None)
        for number, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            rows = added.rows(start, stop)
            assert rows is not None
            mean = rows[0].mean(1)
            kernel[:, :, number] += (mean - mean.mean(-1, keepdim=True)) @ members.T
    return kernel.numpy()


def _padded(x: "Tensor", components: int) -> "Tensor":
    """Return [layer, head, component, ...] with zeros for components that a short sequence cannot have."""
    import torch

    short = x.new_zeros(*x.shape[:2], components - x.shape[2], *x.shape[3:])
    return torch.cat([x, short], dim=2)


def _first(vectors: "Tensor") -> np.ndarray:
    """Return the first singular vectors, and NaN for the others."""
    found = vectors.numpy().copy()
    found[:, :, COMPONENTS:] = np.nan
    return found


def _circuit(model: "Transformer", of: "Means", order: np.ndarray | None) -> dict[str, "xr.Variable"]:
    """Return what the product of query and key map is like, in each layer and head."""
    import torch

    from attnprobe.results import variable
    from attnprobe.statistics.spectrum import effective_rank, product_svd

    attention = [model.block(layer).attn for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        w_q = torch.stack([one.W_Q for one in attention]).double().cpu()
        w_k = torch.stack([one.W_K for one in attention]).double().cpu()
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


def _pairs(model: "Transformer", of: "Means", order: np.ndarray | None) -> dict[str, "xr.Variable"]:
    """Return the waves in the encoding's own frequencies, where it has some."""
    import torch

    from attnprobe.results import variable
    from attnprobe.statistics.spectrum import pair_waves, vector_waves

    frequency = model.position.frequency
    if frequency is None:
        return {}
    head, found = ("layer", "head"), {}
    if model.position.rotates:
        query, key = (torch.stack([one[side] for one in of.unrotated]) for side in range(2))
        amplitude, shift = pair_waves(query / query.shape[-1] ** 0.5, key, frequency)
        use = torch.stack([query * key for query, key in of.lengths]) / query.shape[-1] ** 0.5
        long_name = "mean product of the lengths of query and key"
        found["pair_use"] = variable((*head, "pair"), use, long_name, "1", "mean of queries times mean of keys")
        method = "of the mean query and key"
    else:
        shape = (model.cfg.n_layers, model.cfg.n_heads, len(frequency))
        amplitude, shift = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        w_q, w_k = _maps_of_vectors(model, of)
        amplitude[0], shift[0] = vector_waves(w_q, w_k, frequency)
        method = "of the weights and the mean scale of the norm, in layer 0"
    return found | {
        "pair_frequency": variable(("pair",), frequency, "frequency of a pair of coordinates", "periods per token"),
        "pair_amplitude": variable((*head, "pair"), amplitude, "amplitude of a pair's wave", "1", method),
        "pair_offset": variable((*head, "pair"), shift, "preferred offset of a pair's wave", "tokens", method),
    }


def _maps_of_vectors(model: "Transformer", of: "Means") -> list["Tensor"]:
    """Return the maps [head, d_model, d_head] from position vectors to queries over sqrt(d_head), and to keys."""
    import torch

    block = model.block(0)
    unit = torch.eye(model.cfg.d_model)
    with torch.no_grad():
        if model.cfg.norm != "none" and model.cfg.norm_place == "pre":
            scale = 1 / of.inverse_scale.mean().to(unit).expand(len(unit), 1)
            unit = block.ln1.share(unit.to(block.attn.W_Q), scale.to(block.attn.W_Q))
        q, k = ((unit.to(w) @ w).double().cpu() for w in (block.attn.W_Q, block.attn.W_K))
    return [q / model.cfg.d_head**0.5, k]
