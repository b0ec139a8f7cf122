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
    Asked,
    Look,
    Number,
    Sample,
    See,
    Tallies,
    asked,
    chunks,
    described,
    over_sequences,
    permutation,
    result,
    views,
)
from attnprobe.measures.edits import Edit, Material, Traits, shuffled
from attnprobe.measures.gradients import mean_profiles
from attnprobe.measures.terms import Means, Parts, means, see_parts
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
    reach: float = 2.0,
    donor: Path | None = None,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure what edits of the scores do to the predictions, head by head, layer by layer and everywhere.

    Accuracy and loss are those of the checkpoint's own objective, of test sequences, before any edit
    (``base_accuracy``, ``base_loss``) and under each ``intervention``:

    - *flatten*: uniform attention;
    - *keep toeplitz*, *remove toeplitz*: the score is its mean function of the offset, which training sequences give
      (least squares, row constants free), or has it subtracted;
    - *keep position*, *remove position*: the same with the position-position term (`positions`), biases included;
    - *shift positions*, *permute positions*: content stays, positions are moved around by half the sequence, or
      permuted (in vectors, rotations and biases; not with causal attention and a bias, whose mask stays);
    - *impose proximity*: -distance / reach is added, in pixels on images;
    - *donor scores*: scores, and so patterns, of another checkpoint on the same inputs, under the own values;
      *donor maps*: its query and key maps in the place of the own.

    ``accuracy``, ``loss``, and paired with the sequence without an edit ``accuracy_change`` and ``loss_change``, are
    over ``layer`` and ``head``; under ``layer_...`` for all heads of a layer, and under ``all_...`` for all. Each has
    ``_interval``, Student's 95 % interval over sequences, ``_sd``, and for kernels, position-position terms and the
    imposed bias ``_null``: an edit of the same length (row-centred) with its numbers elsewhere, offsets or positions
    permuted: what an edit of this size does where it does not belong.

    Where the objective is masked reconstruction the tokens of the edited passes are hidden as in training; the mean
    functions of the offset are those of whole sequences.

    Args:
        of: The checkpoint (or probe) to intervene in.
        sequences: Number of test sequences: the first ones; as many training sequences give the means.
        reach: Distance over which an imposed bias falls by 1.
        donor: Checkpoint of a network of the same shape, whose scores and maps are put in.
        nulls: Draws of the null; 0 for none.
        level: Level of the intervals.
        seed: Seed of masks and permutations.
    """
    what = asked("interventions", of, sequences, nulls, level, seed)
    if not reach > 0:
        raise UsageError(f"reach={reach}: must be above 0")
    given = _given(what, reach, None if donor is None else _donor(what, donor))
    shape, names = what.network.shape, list(given.edits)
    tallies, draws = over_sequences(
        what, partial(_prepare, given), ["permuted"], looks=len(given.scopes) * len(given.edits)
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
            variables |= described(number, name, sizes, tallies, (kind, number.name), level, over=())
    for number in BASE:
        measured = Tallies(tallies.measured)
        variables |= described(number, f"base_{number.name}", {}, measured, ("base", number.name), level, over=())
    left_out = {
        name: "does not apply to this network" + ("" if donor else ", or needs a donor")
        for name in EDITS
        if name not in names
    }
    facts = {
        "reach": reach,
        "donor": "" if donor is None else str(donor),
        "of_objective": what.probe.objective,
        "table": TABLE,
    }
    return result(what, variables, {"intervention": names}, list(draws), left_out, **facts)


@dataclass(frozen=True)
class _Given:
    """What is asked, and what training sequences say of the network."""

    what: Asked
    reach: float
    donor: Network | None
    edits: dict[str, Edit]
    means: Means
    profiles: list[Tensor]
    """[head, offset] of each layer, at the data's own offsets."""

    @property
    def scopes(self) -> list[Scope]:
        layers, heads = self.what.network.shape.layers, self.what.network.shape.heads
        each = [("head", layer, head) for layer, head in np.ndindex(layers, heads)]
        return [*each, *(("layer", layer, 0) for layer in range(layers)), ("all", 0, 0)]


def _given(what: Asked, reach: float, donor: Network | None) -> _Given:
    network, of, train = what.network, what.probe, what.probe.task.train
    rows = np.unique(what.rows % len(train))
    biased: list[bool] = []
    _, first = next(chunks(train, rows[:1], network))
    read(network, first, of.objectives[0], lambda heads: biased.append(heads.scores.biased))
    traits = Traits(network, any(biased), donor is not None)
    edits = {name: edit for name, edit in EDITS.items() if edit.applies(traits)}
    of_data = means(network, (batch for _, batch in chunks(train, rows, network)), of.objectives[0])
    return _Given(what, reach, donor, edits, of_data, mean_profiles(network, of, len(rows))[-1])


def _donor(what: Asked, path: Path) -> Network:
    """Return another checkpoint's network; raise `UsageError` if it cannot stand in for this one."""
    other = load(path)
    if other.data != what.probe.task.data:
        raise UsageError(f"donor {path}: was trained on other data ({other.data}, not {what.probe.task.data})")
    network = probe(other).network
    words = {"layers": "n_layers", "heads": "n_heads", "d_model": "d_model", "causal": "causal"}
    for name, word in words.items():
        there, here = getattr(network.shape, name), getattr(what.network.shape, name)
        if there != here:
            raise UsageError(f"donor {path}: has {word}={there}, not {here}")
    if network.shape.prefix != what.network.shape.prefix:
        raise UsageError(f"donor {path}: only one of the two networks puts [CLS] in front")
    return network


def _prepare(given: _Given, look: Look) -> See:
    swapped: dict[Scope, Network] = {}
    names = [name for name, edit in given.edits.items() if look.draw is None or edit.nulled]
    return partial(_see, given, look.draw, names, swapped)


def _see(
    given: _Given, draw: int | None, names: Sequence[str], swapped: dict[Scope, Network], sample: Sample, add: Add
) -> None:
    """Take in loss and accuracy of every sequence in every scope, under every edit and without one."""
    what, network, batch = given.what, given.what.network, sample.batch
    layers, heads = network.shape.layers, network.shape.heads
    shapes = {"head": (layers, heads), "layer": (layers,), "all": ()}
    mask = sample.mask(what.probe.objective)
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
                base = _outcome(network, batch, what.probe.objective, mask, streams, 0)
            else:
                streams, base = None, _outcome(network, batch, what.probe.objective, mask, None, 0)
        materials = _materials(given, draw, sample, mask, seen)
        numbers = list(given.edits)
        values = {kind: np.full((len(base), len(numbers), *shape, 2), np.nan) for kind, shape in shapes.items()}
        for name, scope in product(names, given.scopes):
            kind, layer, head = scope
            some = slice(head, head + 1) if kind == "head" else slice(0, heads)
            touched = {one: some for one in (range(layers) if kind == "all" else [layer])}
            edit, first = given.edits[name].edit, min(touched)
            if edit is None:
                if scope not in swapped:
                    assert isinstance(network, Swaps)
                    swapped[scope] = network.with_maps_of(given.donor, list(touched.items()))
                outcome = _outcome(swapped[scope], batch, what.probe.objective, mask, streams, first)
            else:
                attend = _edited(edit, touched, materials, kept if kind == "head" else None)
                with network.attending(attend):
                    outcome = _outcome(network, batch, what.probe.objective, mask, streams, first)
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
    given: _Given, draw: int | None, sample: Sample, mask: Tensor | None, seen: dict[int, Scores]
) -> Callable[[int, slice], Material]:
    """Return what edits of some heads of a layer are made of, for a batch; with a draw, everything is permuted."""
    what, network, length = given.what, given.what.network, sample.length
    view = list(views(network).values())[-1]
    pairs = geometry(view.shape if len(view.shape) == 2 else (length,), view.causal)
    device = sample.batch.inputs.device
    parts: dict[int, Parts] = {}
    see_parts(network, sample.batch, given.means, parts.__setitem__, what.probe.objective, mask)
    short = (given.profiles[0].shape[1] - len(pairs.count)) // 2
    profiles = [one[:, short : one.shape[1] - short].to(device) for one in given.profiles]
    imposed = (-pairs.distance / given.reach).expand(network.shape.heads, -1).to(device)
    biases = [parts[layer].scores.bias for layer in range(network.shape.layers)]
    biases = [one if one is None or one.shape[1] == len(pairs.count) else one[:, pairs.in_line] for one in biases]
    own = list(biases)
    order = permutation("interventions", what.seed, draw or 0, network.shape.n)
    order = torch.from_numpy(order[order < length])
    if draw is not None:
        generator = numpy_generator(what.seed, "interventions offsets", draw)
        profiles = [shuffled(one, pairs, generator) for one in profiles]
        imposed = shuffled(imposed, pairs, generator)
        state = generator.bit_generator.state
        for layer, bias in enumerate(own):
            generator.bit_generator.state = state  # one encoding's bias moves alike in all layers
            biases[layer] = None if bias is None else shuffled(bias, pairs, generator)
    donor: dict[int, Scores] = {}
    if given.donor is not None and draw is None:

        def see_donor(heads: Heads) -> Tensor:
            donor[heads.layer] = heads.scores
            return heads.attend()

        with given.donor.attending(see_donor):
            given.donor.predictions(sample.batch, what.probe.objective, mask)

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
            donor[layer].of_heads(some) if layer in donor else None,
        )

    return of
