"""Interventions: is it causal? What happens to the predictions when a part of the scores is removed, or imposed?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.geometry import geometry
from attnprobe.measures.driver import (
    Add,
    Compute,
    Condition,
    Number,
    Request,
    Sample,
    Tallies,
    checked_request,
    chunks,
    labelled,
    over_sequences,
    permutation,
    result,
    views,
)
from attnprobe.measures.edits import Edit, Material, Traits, shuffled
from attnprobe.measures.gradients import mean_profiles
from attnprobe.measures.terms import Means, Parts, means, visit_parts
from attnprobe.networks import probe
from attnprobe.networks.base import Attend, Network, Resumes, Swaps, read
from attnprobe.randomness import numpy_generator
from attnprobe.scores import Heads, Scores
from attnprobe.tables import EDITS
from attnprobe.training.checkpoint import load
from attnprobe.training.objectives import Batch

Scope = tuple[str, int, int]
"""head, layer or all; the layer and the head, or 0."""

TABLE = "accuracy_change loss_change"
"""What the command prints of a head."""

NUMBERS = [
    Number("accuracy", "accuracy under the intervention", range=(0.0, 1.0)),
    Number("loss", "loss under the intervention", "nats"),
    Number("accuracy_change", "change of the accuracy", method="paired", range=(-1.0, 1.0), unstructured="0"),
    Number("loss_change", "change of the loss", "nats", method="paired", unstructured="0"),
]
BASE = [
    Number("accuracy", "accuracy without intervention", range=(0.0, 1.0)),
    Number("loss", "loss without intervention", "nats"),
]


def interventions(
    of: Any,
    *,
    sequences: int = 256,
    length_scale: float = 2.0,
    patch_from: Path | None = None,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure what edits of the scores do to the predictions, head by head, layer by layer and everywhere.

    Accuracy and loss are those of the checkpoint's own objective, of test sequences, before any edit
    (``base_accuracy``, ``base_loss``) and under each ``intervention``:

    - *uniform_attention*: uniform attention;
    - *keep_toeplitz*, *ablate_toeplitz*: the score is its mean function of the offset, which training sequences give
      (least squares, row constants free), or has it subtracted;
    - *keep_position*, *ablate_position*: the same with the position-position term (`positions`), biases included;
    - *shift_positions*, *permute_positions*: content stays, positions are moved around by half the sequence, or
      permuted (in vectors, rotations and biases; not with causal attention and a bias, whose mask stays);
    - *impose_proximity*: -distance / length_scale is added, in pixels on images;
    - *patch_scores*: scores, and so patterns, of another checkpoint on the same inputs, under the own values;
      *patch_qk*: its query and key maps in the place of the own.

    ``accuracy``, ``loss``, and paired with the sequence without an edit ``accuracy_change`` and ``loss_change``, are
    over ``layer`` and ``head``; under ``layer_...`` for all heads of a layer, and under ``all_...`` for all. Each has
    ``_interval``, Student's 95 % interval over sequences, ``_std``, and for kernels, position-position terms and the
    imposed bias ``_null``: an edit of the same length (row-centred) with its numbers elsewhere, offsets or positions
    permuted: what an edit of this size does where it does not belong.

    Where the objective is masked reconstruction the tokens of the edited passes are hidden as in training; the mean
    functions of the offset are those of whole sequences.

    Args:
        of: The checkpoint (or probe) to intervene in.
        sequences: Number of test sequences: the first ones; as many training sequences give the means.
        length_scale: Distance over which an imposed bias falls by 1.
        patch_from: Checkpoint of a network of the same shape, whose scores and maps are put in.
        nulls: Draws of the null; 0 for none.
        level: Level of the intervals.
        seed: Seed of masks and permutations.
    """
    request = checked_request("interventions", of, sequences, nulls, level, seed)
    if not length_scale > 0:
        raise UsageError(f"length_scale={length_scale}: must be above 0")
    setup = _setup(request, length_scale, None if patch_from is None else _other_network(request, patch_from))
    shape, names = request.network.shape, list(setup.edits)
    tallies, draws = over_sequences(
        request, partial(_prepare, setup), ["permuted"], passes=len(setup.scopes) * len(setup.edits)
    )
    axes = {
        "head": {"intervention": len(names), "layer": shape.layers, "head": shape.heads},
        "layer": {"intervention": len(names), "layer": shape.layers},
        "all": {"intervention": len(names)},
    }
    variables: dict[str, xr.Variable] = {}
    for kind, sizes in axes.items():
        start = "" if kind == "head" else f"{kind}_"
        for number in NUMBERS:
            name = start + number.name
            variables |= labelled(number, name, sizes, tallies, (kind, number.name), level, over=())
    for number in BASE:
        measured = Tallies(tallies.measured)
        variables |= labelled(number, f"base_{number.name}", {}, measured, ("base", number.name), level, over=())
    left_out = {
        name: "does not apply to this network" + ("" if patch_from else ", or needs a patch_from")
        for name in EDITS
        if name not in names
    }
    facts = {
        "length_scale": length_scale,
        "patch_from": "" if patch_from is None else str(patch_from),
        "of_objective": request.probe.objective,
        "table": TABLE,
    }
    return result(request, variables, {"intervention": names}, list(draws), left_out, **facts)


@dataclass(frozen=True)
class _Setup:
    """What is asked, and what training sequences say of the network."""

    request: Request
    length_scale: float
    patch_from: Network | None
    edits: dict[str, Edit]
    means: Means
    profiles: list[Tensor]
    """[head, offset] of each layer, at the data's own offsets."""

    @property
    def scopes(self) -> list[Scope]:
        layers, heads = self.request.network.shape.layers, self.request.network.shape.heads
        each = [("head", layer, head) for layer, head in np.ndindex(layers, heads)]
        return [*each, *(("layer", layer, 0) for layer in range(layers)), ("all", 0, 0)]


def _setup(request: Request, length_scale: float, patch_from: Network | None) -> _Setup:
    network, of, train = request.network, request.probe, request.probe.task.train
    rows = np.unique(request.rows % len(train))
    biased: list[bool] = []
    _, first = next(chunks(train, rows[:1], network))
    read(network, first, of.objectives[0], lambda heads: biased.append(heads.scores.biased))
    traits = Traits(network, any(biased), patch_from is not None)
    edits = {name: edit for name, edit in EDITS.items() if edit.applies(traits)}
    of_data = means(network, (batch for _, batch in chunks(train, rows, network)), of.objectives[0])
    return _Setup(request, length_scale, patch_from, edits, of_data, mean_profiles(network, of, len(rows))[-1])


def _other_network(request: Request, path: Path) -> Network:
    """Return another checkpoint's network; raise `UsageError` if it cannot stand in for this one."""
    other = load(path)
    if other.data != request.probe.task.data:
        raise UsageError(f"patch_from={path}: was trained on other data ({other.data}, not {request.probe.task.data})")
    network = probe(other).network
    words = {"layers": "n_layers", "heads": "n_heads", "d_model": "d_model", "causal": "causal"}
    for name, word in words.items():
        there, here = getattr(network.shape, name), getattr(request.network.shape, name)
        if there != here:
            raise UsageError(f"patch_from={path}: has {word}={there}, not {here}")
    if network.shape.prefix != request.network.shape.prefix:
        raise UsageError(f"patch_from={path}: only one of the two networks puts [CLS] in front")
    return network


def _prepare(setup: _Setup, condition: Condition) -> Compute:
    swapped: dict[Scope, Network] = {}
    names = [name for name, edit in setup.edits.items() if condition.draw is None or edit.nulled]
    return partial(_see, setup, condition.draw, names, swapped)


def _see(
    setup: _Setup, draw: int | None, names: Sequence[str], swapped: dict[Scope, Network], sample: Sample, add: Add
) -> None:
    """Take in loss and accuracy of every sequence in every scope, under every edit and without one."""
    request, network, batch = setup.request, setup.request.network, sample.batch
    layers, heads = network.shape.layers, network.shape.heads
    shapes = {"head": (layers, heads), "layer": (layers,), "all": ()}
    mask = sample.mask(request.probe.objective)
    kept: dict[int, Tensor] = {}
    seen: dict[int, Scores] = {}

    def remember(heads: Heads) -> Tensor:
        seen[heads.layer] = heads.scores
        kept[heads.layer] = heads.attend()
        return kept[heads.layer]

    with torch.no_grad():
        with network.attending(remember):
            if isinstance(network, Resumes):
                streams = network.streams(batch, mask)
                base = _outcome(network, batch, request.probe.objective, mask, streams, 0)
            else:
                streams, base = None, _outcome(network, batch, request.probe.objective, mask, None, 0)
        materials = _materials(setup, draw, sample, mask, seen)
        numbers = list(setup.edits)
        values = {kind: np.full((len(base), len(numbers), *shape, 2), np.nan) for kind, shape in shapes.items()}
        for name, scope in product(names, setup.scopes):
            kind, layer, head = scope
            some = slice(head, head + 1) if kind == "head" else slice(0, heads)
            touched = {one: some for one in (range(layers) if kind == "all" else [layer])}
            edit, first = setup.edits[name].edit, min(touched)
            if edit is None:
                if scope not in swapped:
                    assert isinstance(network, Swaps)
                    swapped[scope] = network.with_maps_of(setup.patch_from, list(touched.items()))
                outcome = _outcome(swapped[scope], batch, request.probe.objective, mask, streams, first)
            else:
                attend = _edited(edit, touched, materials, kept if kind == "head" else None)
                with network.attending(attend):
                    outcome = _outcome(network, batch, request.probe.objective, mask, streams, first)
            place = {"head": (layer, head), "layer": (layer,), "all": ()}[kind]
            values[kind][(slice(None), numbers.index(name), *place)] = outcome
    for kind, many in values.items():
        change = many - base.reshape(len(base), *[1] * (many.ndim - 2), 2)
        for number, name in enumerate(("loss", "accuracy")):
            add((kind, name), 0, many[..., number])
            add((kind, f"{name}_change"), 0, change[..., number])
    for number, name in enumerate(("loss", "accuracy")):
        add(("base", name), 0, base[:, number])


def _outcome(
    network: Network, batch: Batch, objective: str, mask: Tensor | None, streams: list[Tensor] | None, first: int
) -> np.ndarray:
    """Return loss and accuracy of each sequence, [sequence, 2]: from the first edited layer on, if that is possible."""
    if streams is not None and isinstance(network, Resumes):
        predictions = network.resumed(streams[first], first, batch, objective, mask)
    else:
        predictions = network.predictions(batch, objective, mask)
    loss, accuracy = predictions.by_sequence()
    accuracy = torch.full_like(loss, torch.nan) if accuracy is None else accuracy
    return torch.stack([loss, accuracy], dim=-1).double().cpu().numpy()


def _edited(
    edit: Any, touched: dict[int, slice], materials: Callable[[int, slice], Material], kept: dict[int, Tensor] | None
) -> Attend:
    """Return what takes the place of attention: an edit of some heads of some layers.

    ``kept`` is what heads that are not edited put out, if nothing before them has changed; they are not computed then.
    """

    def attend(heads: Heads) -> Tensor:
        some = touched.get(heads.layer)
        if some is None:
            return heads.attend()
        z = edit(heads.of_heads(some), materials(heads.layer, some))
        if z.shape[1] == heads.scores.shape[1]:
            return z
        whole = (heads.attend() if kept is None else kept[heads.layer]).clone()
        whole[:, some] = z
        return whole

    return attend


def _materials(
    setup: _Setup, draw: int | None, sample: Sample, mask: Tensor | None, seen: dict[int, Scores]
) -> Callable[[int, slice], Material]:
    """Return what edits of some heads of a layer are made of, for a batch; with a draw, everything is permuted."""
    request, network, length = setup.request, setup.request.network, sample.length
    view = list(views(network).values())[-1]
    pairs = geometry(view.shape if len(view.shape) == 2 else (length,), view.causal)
    device = sample.batch.inputs.device
    parts: dict[int, Parts] = {}
    visit_parts(network, sample.batch, setup.means, parts.__setitem__, request.probe.objective, mask)
    short = (setup.profiles[0].shape[1] - len(pairs.count)) // 2
    profiles = [one[:, short : one.shape[1] - short].to(device) for one in setup.profiles]
    imposed = (-pairs.distance / setup.length_scale).expand(network.shape.heads, -1).to(device)
    biases = [parts[layer].scores.bias for layer in range(network.shape.layers)]
    biases = [one if one is None or one.shape[1] == len(pairs.count) else one[:, pairs.in_line] for one in biases]
    own = list(biases)
    order = permutation("interventions", request.seed, draw or 0, network.shape.n)
    order = torch.from_numpy(order[order < length])
    if draw is not None:
        generator = numpy_generator(request.seed, "interventions offsets", draw)
        profiles = [shuffled(one, pairs, generator) for one in profiles]
        imposed = shuffled(imposed, pairs, generator)
        state = generator.bit_generator.state
        for layer, bias in enumerate(own):
            generator.bit_generator.state = state  # one encoding's bias moves alike in all layers
            biases[layer] = None if bias is None else shuffled(bias, pairs, generator)
    patch_from: dict[int, Scores] = {}
    if setup.patch_from is not None and draw is None:

        def see_patch(heads: Heads) -> Tensor:
            patch_from[heads.layer] = heads.scores
            return heads.attend()

        with setup.patch_from.attending(see_patch):
            setup.patch_from.predictions(sample.batch, request.probe.objective, mask)

    def of(layer: int, some: slice) -> Material:
        def cast(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[some].to(seen[layer].type)

        q, k = parts[layer].q_position[:, some], parts[layer].k_position[:, some]
        bias, before = biases[layer], own[layer]
        moved = None if bias is None or before is None or draw is None else bias - before
        profile, proximity = cast(profiles[layer]), cast(imposed)
        assert profile is not None and proximity is not None
        return Material(
            network,
            profile,
            q if draw is None else q[:, :, order],
            k if draw is None else k[:, :, order],
            cast(bias),
            cast(moved),
            proximity,
            order,
            patch_from[layer].of_heads(some) if layer in patch_from else None,
        )

    return of
