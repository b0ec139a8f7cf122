"""Flow measure: how information moves between tokens, and collapses, through the layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.errors import NonFiniteError
from attnprobe.measures.driver import (
    NULLS,
    Compute,
    Number,
    Request,
    Sample,
    Target,
    View,
    checked_request,
    default_reasons,
    labelled,
    lengths_of,
    over_sequences,
    result,
    views,
    widened,
)
from attnprobe.networks.base import LeavesOut, Network, Resumes, read
from attnprobe.randomness import numpy_generator
from attnprobe.results import Reason
from attnprobe.scores import Heads
from attnprobe.statistics import pattern_statistics

TABLE = "entropy_ratio field_own_share field_distance_ratio grid_field_distance_ratio token_similarity mean_residual"
"""Variables that the command prints for each head and layer."""

# "view" and "unit" are placeholders for the offset axes and the distance unit of each view.
FIELD = [
    Number(
        "field_by_offset",
        "share of the input at the offset in the receptive field",
        axes=("view",),
        method="squared gradient of a random projection",
        range=(0.0, 1.0),
        undefined="no measured query has a visible key at this offset",
    ),
    Number("field_own_share", "share of the token's own input in its receptive field", range=(0.0, 1.0)),
    Number("field_distance", "mean distance in the receptive field", "unit", range=(0.0, np.inf)),
    Number(
        "field_distance_ratio",
        "mean distance in the receptive field relative to a uniform field",
        method="uniform over visible tokens",
        range=(0.0, np.inf),
        unstructured="1",
        undefined="every query sees only its own token",
    ),
]
OF_ALL_VIEWS = {"field_own_share"}
"""Numbers that are the same in all views."""
COLLAPSE = [
    Number("token_similarity", "mean cosine between the residual streams of two tokens", range=(-1.0, 1.0)),
    Number(
        "mean_residual",
        "distance of the residual streams from their mean over tokens, relative to their norm",
        method="Frobenius norms",
        range=(0.0, 1.0),
        undefined="all residual streams are 0",
    ),
]
ENTROPY = Number(
    "entropy_ratio",
    "entropy of the attention pattern relative to uniform attention",
    method="mean over queries of both",
    range=(0.0, 1.0),
    unstructured="1",
    undefined="every query sees only its own token",
)


def flow(
    of: Any,
    inputs: Any = None,
    *,
    sequences: int = 256,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure how information moves between tokens, and how tokens become alike, through all layers.

    Let $x^0_j$ be the residual stream of token j before the first layer and $x^l_i$ that of token i after layer l,
    through attention, MLPs, norms and residual connections. The *effective receptive field* of token i (Luo et al.
    2016, arXiv:1701.04128) has the shares

    $$f^l_{ij} = \frac{\|J_{ij}^\top u\|^2}{\sum_k \|J_{ik}^\top u\|^2}, \qquad
      J_{ij} = \frac{\partial x^l_i}{\partial x^0_j}, \qquad u \sim N(0, 1),$$

    exact vector-Jacobian products, whose squares have the expectation $\|J_{ij}\|_F^2$. Each sequence has one query i
    and one u, the same in all layers; queries are random, stratified over the positions. Means over sequences are hence
    means over queries and projections, and estimates of $E\,f^l_{ij}$.

    Variables of the field, dims (layer) and those in parentheses; layer l is after layer l:

    - ``field_by_offset`` (offset): mean share of the token at each offset, over the queries that see one there.
      1 / n for a uniform bidirectional field;
    - ``field_own_share``: share of the token's own input; 1 if no information has moved;
    - ``field_distance`` (in tokens): mean distance $\sum_j f_{ij} |j - i|$; ``field_distance_ratio``: relative to a
      field that is uniform over the visible tokens. 0 is the token's own input, 1 is uniform.

    Variables of the collapse of the streams $X^l$ [token, d_model]:

    - ``token_similarity`` (layer): mean cosine between two different tokens, without centring. 1 if all have one
      direction: rank collapse (Noci et al. 2022, arXiv:2206.03126);
    - ``mean_residual`` (layer): $\|X - 1 \bar x^\top\|_F / \|X\|_F$ with the mean token $\bar x$; 0 if all tokens are
      equal (Dong et al. 2021, arXiv:2103.03404, who use another norm);
    - ``input_token_similarity`` and ``input_mean_residual`` (no dims): the same before the first layer;
    - ``entropy_ratio`` (layer, head): entropy of the attention pattern, mean over queries, divided by that of uniform
      attention, which is log n if attention is bidirectional. Values near 0 are entropy collapse (Zhai et al. 2023,
      arXiv:2303.06296).

    Each of these also has ``NAME_interval`` (bound), its t-interval over sequences, ``NAME_std``, the standard
    deviation over sequences, and ``NAME_null`` (null, draw): *permuted*, the same shares with positions permuted (in
    causal networks, those of the tokens before each query), so that as much has moved, at random distances;
    *initial*, networks of the same configuration at initialisation. The permuted null is NaN for all numbers that do
    not depend on positions.

    For images, the field is also computed over two-dimensional offsets (``row_offset``, ``column_offset``), with
    distances in pixels and names that start with ``grid_``. A prepended token ([CLS]) passes information on, but is no
    part of fields and collapse. Networks that do not give their residual streams (`attnprobe.networks.base.Resumes`),
    such as PyTorch models, have only ``entropy_ratio``. ``objective``, ``train_accuracy`` and ``test_accuracy`` (no
    dims) describe the checkpoint.

    Args:
        of: Checkpoint, PyTorch model (with ``inputs``) or `Probe` to measure.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network` for more control.
        sequences: Number of test sequences (the first ones).
        nulls: Number of draws of each null; 0 for none.
        level: Confidence level of the intervals.
        seed: Seed of queries, projections, permutations and initial networks.
    """
    request = checked_request("flow", of, inputs, sequences, nulls, level, seed)
    network, shape = request.network, request.network.shape
    has_streams = isinstance(network, Resumes) and not isinstance(network, LeavesOut)
    generator = numpy_generator(seed, "flow projections")
    strata = (generator.permutation(request.sequences) + generator.random(request.sequences)) / request.sequences
    projections = generator.standard_normal((request.sequences, shape.d_model))

    def prepare(network: Network) -> Compute:
        def compute(sample: Sample, targets: Sequence[Target]) -> None:
            first = targets[0] if targets[0].order is None else None
            if first is not None:
                read(network, sample.batch, request.probe.objectives[0], lambda heads: _add_entropy(heads, first))
            if has_streams and isinstance(network, Resumes):
                query = torch.from_numpy((strata[sample.rows] * sample.length).astype(int))
                projection = torch.from_numpy(projections[sample.rows])
                _add_streams(request, network, sample, query, projection, targets)
            for target in targets:
                target.advance()

        return compute

    tallies, draws = over_sequences(request, prepare, NULLS if has_streams else ["initial"])
    variables = labelled(ENTROPY, ENTROPY.name, {"head": shape.heads}, tallies, (ENTROPY.name,), level)
    if has_streams:
        for number in COLLAPSE:
            variables |= labelled(number, number.name, {}, tallies, (number.name,), level)
            key = ("input", number.name)
            variables |= labelled(number, f"input_{number.name}", {}, tallies, key, level, over=())
        for prefix, view in views(network).items():
            for number in FIELD:
                if prefix and number.name in OF_ALL_VIEWS:
                    continue
                axes = view.offsets if number.axes else {}
                units = view.unit if number.units == "unit" else number.units
                variables |= labelled(number, prefix + number.name, axes, tallies, (prefix, number.name), level, units)
    left_out = {} if has_streams else {"field_*, token_similarity, mean_residual": "this network gives no streams"}
    return result(request, variables, {}, list(draws), left_out, _reasons(request), table=TABLE)


def _reasons(request: Request) -> list[Reason]:
    lengths = lengths_of(request.probe.task.test)[request.rows]
    invariant = "entropy_ratio_null field_own_share_null token_similarity_null mean_residual_null input_*_null"

    def no_field(measured: xr.Dataset, name: str) -> xr.DataArray:
        return measured[f"field_distance{'_null' if name.endswith('_null') else ''}"].isnull()

    return [
        Reason(invariant, "does not depend on positions", lambda measured, _: measured["null"] == "permuted"),
        Reason("*token_similarity", "one token has no pairs", lambda measured, _: lengths.max() == 1),
        Reason("*token_similarity", "in every sequence, the residual stream of a token is 0"),
        Reason("field_*", "the residual streams do not depend on the input", no_field),
        *default_reasons([*FIELD, *COLLAPSE, ENTROPY]),
        Reason("input_mean_residual", COLLAPSE[1].undefined),
    ]


def _add_entropy(heads: Heads, target: Target) -> None:
    entropy = pattern_statistics(heads.scores).entropy.cpu()
    uniform = torch.zeros(len(entropy), 1, dtype=torch.float64)
    for part in heads.scores.parts():
        uniform[part.rows] = part.geometry.keys[part.geometry.present].round().log().mean()
    ratio = (entropy / uniform.where(uniform > 0, torch.nan)).clamp(max=1)
    target.add((ENTROPY.name,), heads.layer, ratio.numpy())


def _add_streams(
    request: Request,
    network: Resumes,
    sample: Sample,
    query: Tensor,
    projection: Tensor,
    targets: Sequence[Target],
) -> None:
    """Add the collapse of the streams to targets without permutation, and the field to all."""
    shape = request.network.shape
    tokens = slice(shape.prefix, shape.prefix + sample.length)
    with torch.enable_grad():
        streams = network.streams(sample.batch)
        if not all(bool(stream.isfinite().all()) for stream in streams):
            raise NonFiniteError("residual streams are NaN or infinite")
        fields = list(_fields(streams, query, projection, tokens))
    for layer, stream in enumerate(streams, start=-1):
        for name, values in _collapse(stream.detach()[:, tokens]).items():
            key = (name,) if layer >= 0 else ("input", name)
            for target in targets:
                if target.order is None:
                    target.add(key, max(layer, 0), values)
    for layer, field in enumerate(fields):
        for target in targets:
            shares, place = _permuted(field, query, target.order, shape.causal)
            if target.order is None:
                target.add(("", "field_own_share"), layer, shares[torch.arange(len(place)), place].numpy())
            for prefix, view in views(request.network).items():
                for name, values in _field_statistics(shares.numpy(), place.numpy(), view).items():
                    missing = shape.n - sample.length if name == "field_by_offset" and not prefix else 0
                    target.add((prefix, name), layer, widened(values, missing))


def _fields(streams: list[Tensor], query: Tensor, projection: Tensor, tokens: slice) -> Iterator[Tensor]:
    """Yield the receptive field of each sequence's query after each layer, [batch, token]; NaN without gradient."""
    start, rows = streams[0], torch.arange(len(query))
    for stream in streams[1:]:
        row = stream[rows, tokens.start + query]
        (gradient,) = torch.autograd.grad(row, start, projection.to(row), retain_graph=True)
        if not gradient.isfinite().all():
            raise NonFiniteError("gradients of the residual streams are NaN or infinite")
        square = gradient[:, tokens].double().square().sum(-1).cpu()
        total = square.sum(-1, keepdim=True)
        yield square / total.where(total > 0, torch.nan)


def _permuted(shares: Tensor, query: Tensor, order: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Return shares and queries with permuted positions: of all tokens, or of those before a causal query."""
    if order is None:
        return shares, query
    if not causal:
        return shares[:, order], order.argsort()[query]
    permuted = shares.clone()
    for row, last in enumerate(query.tolist()):
        permuted[row, :last] = shares[row, order[order < last]]
    return permuted, query


def _field_statistics(shares: np.ndarray, query: np.ndarray, view: View) -> dict[str, np.ndarray]:
    """Return field by offset, [batch, *offset], and distances, [batch], of fields [batch, token] in a view."""
    n = shares.shape[1]
    sides = view.shape if len(view.shape) == 2 else (n,)
    place = np.stack(np.unravel_index(np.arange(n), sides), axis=-1)
    offset = place - place[query][:, None]
    visible = np.arange(n) <= query[:, None] if view.causal else np.ones(shares.shape, dtype=bool)
    distance = np.linalg.norm(offset, axis=-1)
    by_offset = np.full((len(shares), *(2 * side - 1 for side in sides)), np.nan)
    rows, keys = np.nonzero(visible)
    by_offset[(rows, *(offset[rows, keys] + np.array(sides) - 1).T)] = shares[rows, keys]
    mean, uniform = (shares * distance).sum(-1), (visible * distance).sum(-1) / visible.sum(-1)
    ratio = mean / np.where(uniform > 0, uniform, np.nan)
    return {"field_by_offset": by_offset, "field_distance": mean, "field_distance_ratio": ratio}


def _collapse(stream: Tensor) -> dict[str, np.ndarray]:
    """Return similarity and residual of each sequence of a stream, [batch, token, d_model]."""
    x = stream.double()
    n, norm = x.shape[1], x.norm(dim=-1, keepdim=True)
    direction = x / norm.where(norm > 0, torch.nan)
    similarity = (direction.sum(1).square().sum(-1) - n) / (n * (n - 1) if n > 1 else torch.nan)
    size = x.norm(dim=(1, 2))
    residual = (x - x.mean(1, keepdim=True)).norm(dim=(1, 2)) / size.where(size > 0, torch.nan)
    return {"token_similarity": similarity.clamp(max=1).cpu().numpy(), "mean_residual": residual.cpu().numpy()}
