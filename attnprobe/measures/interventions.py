"""Interventions measure: effect of edits of the scores on the predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.errors import UsageError, listed, suggestion
from attnprobe.measures.driver import (
    Add,
    Compute,
    Number,
    Request,
    Sample,
    Tallies,
    Target,
    checked_request,
    chunks,
    geometry_of,
    labelled,
    located,
    over_sequences,
    permutation,
    result,
    views,
)
from attnprobe.measures.edits import Edit, Material, Traits, shuffled
from attnprobe.measures.gradients import mean_profiles
from attnprobe.measures.terms import Means, Parts, means, visit_parts
from attnprobe.networks import probe
from attnprobe.networks.base import Attend, KnowsPositions, LeavesOut, Network, Resumes, Swaps, read
from attnprobe.networks.finite import check_predictions
from attnprobe.randomness import numpy_generator
from attnprobe.results import Reason
from attnprobe.scores import Heads, Scores, order_among
from attnprobe.tables import EDITS
from attnprobe.training.checkpoint import load
from attnprobe.training.objectives import Batch, Predictions

Scope = tuple[str, int, int]
"""Edited heads: kind (head, layer or all), layer and head, the latter 0 if they do not apply."""

TABLE = "accuracy_change loss_change"
"""Variables that the command prints for each head."""

NUMBERS = [
    Number("accuracy", "accuracy under the intervention", range=(0.0, 1.0)),
    Number("loss", "loss under the intervention", "nats"),
    Number(
        "accuracy_change", "change in accuracy", method="paired over sequences", range=(-1.0, 1.0), unstructured="0"
    ),
    Number("loss_change", "change in loss", "nats", method="paired over sequences", unstructured="0"),
]
BASE = [
    Number("accuracy", "accuracy without intervention", range=(0.0, 1.0)),
    Number("loss", "loss without intervention", "nats"),
]
MEANINGS = {
    "accuracy": "agreement with the unedited network on the most likely class",
    "loss": "KL divergence from the unedited predictions",
}
"""Meanings of accuracy and loss for networks without labels or loss."""


def interventions(
    of: Any,
    inputs: Any = None,
    *,
    sequences: int = 256,
    length_scale: float = 2.0,
    patch_from: Path | None = None,
    edits: tuple[str, ...] = (),
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure how edits of the scores of a head, a layer or all heads change the predictions.

    Each ``intervention`` edits the scores in a forward pass over test sequences:

    - *uniform_attention*: set all scores to 0;
    - *keep_toeplitz*, *ablate_toeplitz*: replace the score by its mean offset profile over training sequences
      (least-squares fit with a constant per query), or subtract the profile from the score;
    - *keep_position*, *ablate_position*: the same with the position-position term (`positions`), including biases;
    - *ablate_content*, *ablate_content_position*, *ablate_position_content* (if named in ``edits``): subtract one of
      the other three terms; the four add up to the score;
    - *shift_positions*, *permute_positions*: shift the positions cyclically by half the sequence, or permute them, in
      vectors, rotations and biases, while the content stays. Queries and keys of the edited heads have the new
      positions; values, the residual stream and other heads keep the old ones. Exact for rotations and biases, and in
      layer 0 for encodings that add a vector $p_i$ to the embedding $e_i$: the new queries (and keys) are
      $W_Q\,\mathrm{norm}(e_i + p_{\pi(i)}) + b_Q$, normalised with the new vectors. In deeper layers, whose vectors mix
      content and position, the mean over data at position i is replaced by that at $\pi(i)$: an approximation, which
      keeps the norm's scale and whatever else the stream says about the old position. [CLS] keeps its position, and a
      causal mask stays. Not available for causal attention with a bias, whose mask cannot be moved;
    - *impose_proximity*: add -distance / ``length_scale`` (for images, distances in pixels);
    - *patch_scores*: patch the scores, and hence the patterns, from another checkpoint on the same inputs, with the
      network's own values; *patch_qk*: patch the query and key maps.

    Variables for one edited head, dims (intervention, layer, head), as means over sequences under the objective of the
    checkpoint:

    - ``accuracy`` (NaN for real-valued targets), ``loss`` (in nats): with the edit;
    - ``accuracy_change``, ``loss_change``: difference from the unedited network, paired over sequences.

    ``layer_accuracy``, ``layer_loss``, ``layer_accuracy_change`` and ``layer_loss_change`` (intervention, layer) are
    the same with all heads of a layer edited; ``all_accuracy``, ``all_loss``, ``all_accuracy_change`` and
    ``all_loss_change`` (intervention) with all heads edited. ``base_accuracy`` and ``base_loss`` (no dims) are those of
    the unedited network. For a PyTorch model without labels or loss, ``loss`` is the KL divergence of the predictions
    from those of the unedited network, and ``accuracy`` the agreement with its most likely class.

    Each of these also has ``NAME_interval`` (bound), its t-interval, ``NAME_std``, the standard deviation over
    sequences, and, except for ``base_...``, ``NAME_null`` (null, draw): the effect of an edit of the same norm
    (row-centred) with its values at permuted offsets or positions. The null exists for offset profiles,
    position-position terms and the imposed bias, and is NaN for other interventions. An effect outside the null depends
    on where the edited values are, not only on their size. If special tokens inside a sequence are left out
    (`attnprobe.network`), norms of functions of the offset are over all its positions.

    For masked reconstruction, tokens are masked as in training; offset profiles are computed from unmasked sequences.
    ``objective``, ``train_accuracy`` and ``test_accuracy`` (no dims) describe the checkpoint.

    Args:
        of: Checkpoint, PyTorch model (with ``inputs``) or `Probe` to intervene in.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network` for more control.
        sequences: Number of test sequences (the first ones), and of training sequences for the means.
        length_scale: Distance over which the imposed bias decreases by 1, in tokens or pixels.
        patch_from: Checkpoint of a network of the same shape to patch scores and maps from.
        edits: Interventions to make; by default all that apply to the network, except for those on request.
        nulls: Number of draws of the null; 0 for none.
        level: Confidence level of the intervals.
        seed: Seed of masks and permutations.
    """
    request = checked_request("interventions", of, inputs, sequences, nulls, level, seed)
    if not length_scale > 0:
        raise UsageError(f"length_scale={length_scale}: must be above 0")
    other = None if patch_from is None else _other_network(request, patch_from)
    with located(request, request.network):
        setup = _setup(request, length_scale, other, (edits,) if isinstance(edits, str) else tuple(edits))
    shape, names = request.network.shape, list(setup.edits)
    tallies, draws = over_sequences(
        request, partial(_prepare, setup), ["permuted"], passes=len(setup.scopes) * len(setup.edits)
    )
    meanings = {} if request.probe.has_loss else MEANINGS
    axes = {
        "head": {"intervention": len(names), "layer": shape.layers, "head": shape.heads},
        "layer": {"intervention": len(names), "layer": shape.layers},
        "all": {"intervention": len(names)},
    }
    variables: dict[str, xr.Variable] = {}
    for kind, sizes in axes.items():
        prefix = "" if kind == "head" else f"{kind}_"
        for number in NUMBERS:
            name = prefix + number.name
            described = replace(number, meaning=meanings.get(number.name, number.meaning))
            variables |= labelled(described, name, sizes, tallies, (kind, number.name), level, over=())
    for number in BASE:
        measured = Tallies(tallies.measured)
        variables |= labelled(number, f"base_{number.name}", {}, measured, ("base", number.name), level, over=())
    inapplicable = "does not apply to this network" + ("" if patch_from else ", or needs patch_from")
    left_out = {
        name: "not requested" if (edits or entry.on_request) and name not in edits else inapplicable
        for name, entry in EDITS.items()
        if name not in names
    }
    facts = {
        "length_scale": length_scale,
        "patch_from": "" if patch_from is None else str(patch_from),
        "of_objective": request.probe.objective if request.probe.has_loss else "unedited predictions",
        "table": TABLE,
    }
    without_null = [name for name in names if not setup.edits[name].nulled]
    by_number = {number.name: " ".join(f"{kind}{number.name}" for kind in ("", "layer_", "all_")) for number in NUMBERS}
    reasons = [
        Reason(
            f"base_accuracy {by_number['accuracy']} {by_number['accuracy_change']}",
            "real-valued targets have no accuracy",
            lambda measured, name: measured["base_accuracy"].isnull(),
        ),
        Reason(
            "*_null",
            "this intervention has no null",
            lambda measured, name: measured["intervention"].isin(without_null),
        ),
    ]
    return result(request, variables, {"intervention": names}, list(draws), left_out, reasons, **facts)


@dataclass(frozen=True)
class _Setup:
    """Settings, and means over training sequences."""

    request: Request
    length_scale: float
    patch_from: Network | None
    edits: dict[str, Edit]
    means: Means | None
    """None if the network does not show queries and keys."""
    profiles: list[Tensor]
    """[head, offset] in each layer: mean offset profiles, over 2-D offsets for images."""

    @property
    def scopes(self) -> list[Scope]:
        layers, heads = self.request.network.shape.layers, self.request.network.shape.heads
        single_heads = [("head", layer, head) for layer, head in np.ndindex(layers, heads)]
        return [*single_heads, *(("layer", layer, 0) for layer in range(layers)), ("all", 0, 0)]


def _setup(request: Request, length_scale: float, patch_from: Network | None, requested: tuple[str, ...]) -> _Setup:
    network, subject, train = request.network, request.probe, request.probe.task.train
    rows = np.unique(request.rows % len(train))
    biased: list[bool] = []
    _, first = next(chunks(train, rows[:1], network))
    read(network, first, subject.objectives[0], lambda heads: biased.append(heads.scores.biased))
    traits = Traits(network, any(biased), patch_from is not None)
    edits = {name: edit for name, edit in EDITS.items() if edit.applies(traits)}
    if unknown := sorted(set(requested) - set(edits)):
        name = unknown[0]
        why = "does not apply to this network; " if name in EDITS else f"is unknown; {suggestion(name, EDITS)}"
        raise UsageError(f"edits={name!r}: {why}valid: {listed(edits)}")
    edits = {name: edit for name, edit in edits.items() if name in requested or not (requested or edit.on_request)}
    data_means = None
    if network.shape.knows_queries:
        data_means = means(network, (batch for _, batch in chunks(train, rows, network)), subject.objectives[0])
    return _Setup(request, length_scale, patch_from, edits, data_means, mean_profiles(network, subject, len(rows))[-1])


def _other_network(request: Request, path: Path) -> Network:
    """Return the network to patch from; raise `UsageError` if its data or shape differ."""
    other = load(path)
    if other.data != request.probe.task.data:
        raise UsageError(f"patch_from={path}: trained on data {other.data}; must be {request.probe.task.data}")
    network = probe(other).network
    settings = {"layers": "n_layers", "heads": "n_heads", "d_model": "d_model", "causal": "causal"}
    for name, setting in settings.items():
        theirs, ours = getattr(network.shape, name), getattr(request.network.shape, name)
        if theirs != ours:
            raise UsageError(f"patch_from={path}: has {setting}={theirs}; must be {ours}")
    if network.shape.prefix != request.network.shape.prefix:
        raise UsageError(f"patch_from={path}: both networks or neither must have a prepended [CLS]")
    return network


def _prepare(setup: _Setup, network: Network) -> Compute:
    return partial(_add_effects, setup, {})


def _add_effects(
    setup: _Setup, patched_networks: dict[Scope, Network], sample: Sample, targets: Sequence[Target]
) -> None:
    """Add loss and accuracy of each sequence without edits, and under each edit in each scope."""
    request, network, batch = setup.request, setup.request.network, sample.batch
    layers, heads = network.shape.layers, network.shape.heads
    shapes = {"head": (layers, heads), "layer": (layers,), "all": ()}
    mask = sample.mask(request.probe.objective)
    unedited: dict[int, Tensor] = {}
    scores: dict[int, Scores] = {}

    def remember(heads: Heads) -> Tensor:
        scores[heads.layer] = heads.scores
        unedited[heads.layer] = heads.attend()
        return unedited[heads.layer]

    with torch.no_grad():
        with network.attending(remember):
            if isinstance(network, Resumes):
                streams = network.streams(batch, mask)
                unedited_predictions = _predictions(network, batch, request.probe.objective, mask, streams, 0)
            else:
                streams = None
                unedited_predictions = _predictions(network, batch, request.probe.objective, mask, None, 0)
        check_predictions(unedited_predictions)

        def evaluate(predictions: Predictions) -> np.ndarray:
            return _outcome(predictions if request.probe.has_loss else predictions.compared_with(unedited_predictions))

        def predict(name: str, scope: Scope, materials: Callable[[int, slice], Material]) -> Predictions:
            """Return the predictions under an edit of some heads."""
            kind, layer, head = scope
            edited_heads = slice(head, head + 1) if kind == "head" else slice(0, heads)
            edited_layers = {number: edited_heads for number in (range(layers) if kind == "all" else [layer])}
            edit, first = setup.edits[name].edit, min(edited_layers)
            if edit is None:
                if scope not in patched_networks:
                    assert isinstance(network, Swaps)
                    patched_networks[scope] = network.with_maps_of(setup.patch_from, list(edited_layers.items()))
                swapped = patched_networks[scope]
                predictions = _predictions(swapped, batch, request.probe.objective, mask, streams, first)
            else:
                attend = _edited(edit, edited_layers, materials, unedited if kind == "head" else None)
                with network.attending(attend):
                    predictions = _predictions(network, batch, request.probe.objective, mask, streams, first)
            place = {"head": f" in layer {layer}, head {head}", "layer": f" in layer {layer}", "all": ""}[kind]
            return check_predictions(predictions, f"predictions under {name}{place} (choose others with edits=)")

        base, parts = evaluate(unedited_predictions), _parts(setup, sample, mask, scores)
        dtypes = {layer: layer_scores.type for layer, layer_scores in scores.items()}
        for target in targets:
            draw, all_names = target.condition.draw, list(setup.edits)
            materials = _materials(setup, draw, sample, mask, parts, dtypes)
            values = {kind: np.full((len(base), len(all_names), *shape, 2), np.nan) for kind, shape in shapes.items()}
            for name, scope in product(all_names, setup.scopes):
                target.advance()
                if draw is not None and not setup.edits[name].nulled:
                    continue
                kind, layer, head = scope
                index = {"head": (layer, head), "layer": (layer,), "all": ()}[kind]
                values[kind][(slice(None), all_names.index(name), *index)] = evaluate(predict(name, scope, materials))
            _add_values(base, values, target.add)


def _add_values(base: np.ndarray, values: Mapping[str, np.ndarray], add: Add) -> None:
    """Add loss and accuracy, [sequence, 2] and [sequence, edit, ..., 2], and their changes."""
    for kind, values_of_kind in values.items():
        change = values_of_kind - base.reshape(len(base), *[1] * (values_of_kind.ndim - 2), 2)
        for column, name in enumerate(("loss", "accuracy")):
            add((kind, name), 0, values_of_kind[..., column])
            add((kind, f"{name}_change"), 0, change[..., column])
    for column, name in enumerate(("loss", "accuracy")):
        add(("base", name), 0, base[:, column])


def _predictions(
    network: Network, batch: Batch, objective: str, mask: Tensor | None, streams: list[Tensor] | None, first: int
) -> Predictions:
    """Return the predictions; start at the first edited layer if the network can resume."""
    if streams is not None and isinstance(network, Resumes):
        return network.resumed(streams[first], first, batch, objective, mask)
    return network.predictions(batch, objective, mask)


def _outcome(predictions: Predictions) -> np.ndarray:
    """Return loss and accuracy, [sequence, 2]."""
    loss, accuracy = predictions.by_sequence()
    accuracy = torch.full_like(loss, torch.nan) if accuracy is None else accuracy
    return torch.stack([loss, accuracy], dim=-1).double().cpu().numpy()


def _edited(
    edit: Any,
    edited_layers: dict[int, slice],
    materials: Callable[[int, slice], Material],
    unedited: dict[int, Tensor] | None,
) -> Attend:
    """Return a replacement of attention that edits some heads of some layers.

    ``unedited`` has the outputs z of each layer without edits, if the inputs of the edited layer are unchanged; the
    heads that are not edited are then not recomputed.
    """

    def attend(heads: Heads) -> Tensor:
        edited_heads = edited_layers.get(heads.layer)
        if edited_heads is None:
            return heads.attend()
        z = edit(heads.of_heads(edited_heads), materials(heads.layer, edited_heads))
        if z.shape[1] == heads.scores.shape[1]:
            return z
        output = (heads.attend() if unedited is None else unedited[heads.layer]).clone()
        output[:, edited_heads] = z
        return output

    return attend


def _parts(setup: _Setup, sample: Sample, mask: Tensor | None, scores: Mapping[int, Scores]) -> dict[int, Parts]:
    """Return the position parts of each layer; zeros if the network does not show queries and keys."""
    if setup.means is None:  # no edit uses them
        inner = {layer: layer_scores.inner() for layer, layer_scores in scores.items()}
        return {layer: Parts(one, torch.zeros_like(one.q), torch.zeros_like(one.k)) for layer, one in inner.items()}
    request, parts = setup.request, {}
    visit_parts(request.network, sample.batch, setup.means, parts.__setitem__, request.probe.objective, mask)
    return parts


def _permuted(x: Tensor, orders: Tensor) -> Tensor:
    """Return x, [batch, head, token, width], with permuted tokens; orders: [batch, token], or [1, token] for all."""
    return x[:, :, orders[0]] if len(orders) == 1 else x.take_along_dim(orders[:, None, :, None], 2)


def _materials(
    setup: _Setup,
    draw: int | None,
    sample: Sample,
    mask: Tensor | None,
    parts: Mapping[int, Parts],
    dtypes: Mapping[int, torch.dtype],
) -> Callable[[int, slice], Material]:
    """Return a function from layer and heads to the `Material` of a batch; with a draw, values are permuted."""
    request, network, length = setup.request, setup.request.network, sample.length
    view = list(views(network).values())[-1]
    by_layer = [geometry_of(view, length, network.shape.window(layer)) for layer in range(network.shape.layers)]
    pairs, device = geometry_of(view, length), sample.batch.inputs.device
    excess = (setup.profiles[0].shape[1] - len(pairs.count)) // 2
    profiles = [profile[:, excess : profile.shape[1] - excess].to(device) for profile in setup.profiles]
    imposed = [(-pairs.distance / setup.length_scale).expand(network.shape.heads, -1).to(device)] * len(by_layer)
    biases = [parts[layer].scores.bias for layer in range(network.shape.layers)]
    biases = [bias if bias is None or bias.shape[1] == len(pairs.count) else bias[:, pairs.in_line] for bias in biases]
    network_biases = list(biases)
    order = permutation("interventions", request.seed, draw or 0, network.shape.n)
    order = torch.from_numpy(order[order < length])
    left_out = network.left_out(sample.batch) if isinstance(network, LeavesOut) else None
    orders = order[None] if left_out is None else torch.stack([order_among(order, ~row) for row in left_out])
    orders = orders.to(device)
    if draw is not None:
        generator = numpy_generator(request.seed, "interventions offsets", draw)
        profiles = [shuffled(profile, own, generator) for profile, own in zip(profiles, by_layer, strict=True)]
        # Layers may share a bias: the imposed bias, and those of the network, are permuted the same way in all layers.
        states = [generator.bit_generator.state]
        shuffled(imposed[0], by_layer[0], generator)
        states.append(generator.bit_generator.state)
        for layer, own in enumerate(by_layer):
            generator.bit_generator.state = states[0]
            imposed[layer] = shuffled(imposed[layer], own, generator)
            generator.bit_generator.state = states[1]
            bias = network_biases[layer]
            biases[layer] = None if bias is None else shuffled(bias, own, generator)
    patched_scores: dict[int, Scores] = {}
    if setup.patch_from is not None and draw is None:

        def keep_scores(heads: Heads) -> Tensor:
            patched_scores[heads.layer] = heads.scores
            return heads.attend()

        with setup.patch_from.attending(keep_scores):
            setup.patch_from.predictions(sample.batch, request.probe.objective, mask)

    def with_positions(head_slice: slice, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        assert isinstance(network, KnowsPositions)
        moved = network.with_positions(sample.batch, positions, mask)
        return None if moved is None else (moved[0][:, head_slice], moved[1][:, head_slice])

    def material(layer: int, head_slice: slice) -> Material:
        def cast(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[head_slice].to(dtypes[layer])

        q, k = parts[layer].q_position[:, head_slice], parts[layer].k_position[:, head_slice]
        bias, network_bias = biases[layer], network_biases[layer]
        bias_change = None if bias is None or network_bias is None or draw is None else bias - network_bias
        profile, proximity = cast(profiles[layer]), cast(imposed[layer])
        assert profile is not None and proximity is not None
        return Material(
            network,
            profile,
            q if draw is None else _permuted(q, orders),
            k if draw is None else _permuted(k, orders),
            cast(bias),
            cast(bias_change),
            proximity,
            order,
            patched_scores[layer].of_heads(head_slice) if layer in patched_scores else None,
            partial(with_positions, head_slice) if layer == 0 else None,
        )

    return material
