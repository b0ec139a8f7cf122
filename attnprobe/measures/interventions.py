"""Interventions: is it causal? What happens to the predictions when a part of the scores is removed, or imposed?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from attnprobe.errors import UsageError
from attnprobe.measures import common
from attnprobe.randomness import numpy_generator

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.config import Objective
    from attnprobe.measures.edits import Edit
    from attnprobe.measures.terms import Means
    from attnprobe.objectives import Batch
    from attnprobe.statistics import Moments
    from attnprobe.statistics.geometry import Geometry
    from attnprobe.transformer import Transformer

Scope = tuple[str, int, int]
"""head, layer or all; the layer and the head, or 0."""

TABLE = "accuracy_change loss_change"
"""What the command prints of a head."""

DESCRIBED = {
    "accuracy": ("accuracy under the intervention", "1"),
    "loss": ("loss under the intervention", "nats"),
    "accuracy_change": ("change of the accuracy", "1"),
    "loss_change": ("change of the loss", "nats"),
}


def interventions(
    checkpoint: "Checkpoint",
    *,
    sequences: int = 256,
    reach: float = 2.0,
    donor: Path | None = None,
    seed: int = 0,
) -> "xr.Dataset":
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
    permuted (every draw on its share of the sequences): what an edit of this size does where it does not belong.

    Where the objective is masked reconstruction the tokens of the edited passes are hidden as in training; the mean
    functions of the offset are those of whole sequences.

    Args:
        checkpoint: The checkpoint to intervene in.
        sequences: Number of test sequences: the first ones; as many training sequences give the means.
        reach: Distance over which an imposed bias falls by 1.
        donor: Checkpoint of a network of the same shape, whose scores and maps are put in.
        seed: Seed of masks and permutations.
    """
    from tqdm import tqdm

    from attnprobe.results import dataset

    common.check(checkpoint, sequences, seed)
    if not reach > 0:
        raise UsageError(f"reach={reach}: must be above 0")
    sequences = min(sequences, len(checkpoint.task.test))
    asked = _Asked(checkpoint, reach, seed, None if donor is None else _donor(checkpoint, donor))
    draws, rows = min(common.DRAWS, sequences), np.arange(sequences)
    scopes = _scopes(checkpoint)
    nulled = [name for name in asked.names if name in NULLED]
    total = sequences * len(scopes) * (len(asked.names) + len(nulled))
    with tqdm(total=total, desc="interventions", unit="edit", delay=5, leave=False, dynamic_ncols=True) as bar:
        means = _means(asked, np.unique(rows % len(checkpoint.task.train)))
        found = _over_sequences(asked, means, rows, asked.names, None, bar.update)
        nulls = [_over_sequences(asked, means, rows[d::draws], nulled, d, bar.update) for d in range(draws)]
    coordinates = common.coordinates(checkpoint, draws) | {"intervention": asked.names, "null": ["permuted"]}
    facts = {
        "reach": reach,
        "donor": "" if donor is None else str(donor),
        "of_objective": checkpoint.objective,
        "table": TABLE,
    }
    variables = _variables(asked, found, nulls) | common.accuracies(checkpoint)
    return dataset(variables, coordinates, common.facts(checkpoint, "interventions", sequences, seed, **facts))


NULLED = ("keep toeplitz", "remove toeplitz", "keep position", "remove position", "impose proximity")


@dataclass(frozen=True)
class _Asked:
    """What is asked of the checkpoint."""

    checkpoint: "Checkpoint"
    reach: float
    seed: int
    donor: "Checkpoint | None"

    @property
    def names(self) -> list[str]:
        """The interventions that this network can have."""
        model = self.checkpoint.model
        names = ["flatten", "keep toeplitz", "remove toeplitz"]
        if model.cfg.position != "none" or model.score_bias is not None or model.cfg.causal:
            names += ["keep position", "remove position"]
            if not (model.cfg.causal and model.bias(model.data.n) is not None):
                names += ["shift positions", "permute positions"]
        names.append("impose proximity")
        return [*names, "donor scores", "donor maps"] if self.donor is not None else names


def _scopes(checkpoint: "Checkpoint") -> list[Scope]:
    layers, heads = checkpoint.config.model.n_layers, checkpoint.config.model.n_heads
    each = [("head", layer, head) for layer, head in np.ndindex(layers, heads)]
    return [*each, *(("layer", layer, 0) for layer in range(layers)), ("all", 0, 0)]


def _donor(checkpoint: "Checkpoint", path: Path) -> "Checkpoint":
    """Return the other checkpoint; raise `UsageError` where it cannot stand in for this one."""
    from attnprobe.checkpoint import load

    other = load(path)
    if other.data != checkpoint.data:
        raise UsageError(f"donor {path}: was trained on other data ({other.data}, not {checkpoint.data})")
    for name in ("n_layers", "n_heads", "d_model", "causal"):
        there, here = getattr(other.config.model, name), getattr(checkpoint.config.model, name)
        if there != here:
            raise UsageError(f"donor {path}: has {name}={there}, not {here}")
    if other.model.n_prefix != checkpoint.model.n_prefix:
        raise UsageError(f"donor {path}: only one of the two networks puts [CLS] in front")
    return other


@dataclass(frozen=True)
class _Means:
    """What training sequences say of the network."""

    parts: "Means"
    kernels: "list[Tensor]"
    """[head, offset] of each layer, at the data's own offsets."""


def _means(asked: _Asked, rows: np.ndarray) -> _Means:
    from attnprobe.measures.capture import chunks, mean_kernels
    from attnprobe.measures.terms import means

    model, train = asked.checkpoint.model, asked.checkpoint.task.train
    parts = means(model, (inputs for _, inputs in chunks(train, rows, model)))
    return _Means(parts, mean_kernels(model, train, len(rows))[-1])


def _over_sequences(
    asked: _Asked,
    means: _Means,
    rows: np.ndarray,
    names: Sequence[str],
    draw: int | None,
    done: Callable[[int], object],
) -> "dict[tuple[str, str], Moments]":
    """Return the moments of each quantity, and of the same without an edit, under the kind of scope and its name.

    Samples are over [intervention, layer, head], [intervention, layer], [intervention] or, without an edit, nothing.
    With a draw everything that edits are made of is permuted.
    """
    import torch

    from attnprobe.measures.capture import catching, chunks
    from attnprobe.measures.edits import edited
    from attnprobe.objectives import Batch
    from attnprobe.statistics import Moments

    checkpoint, model = asked.checkpoint, asked.checkpoint.model
    test, objective = checkpoint.task.test, cast("Objective", checkpoint.objective)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    shapes = {"head": (layers, heads), "layer": (layers,), "all": ()}
    hidden = common.masks(checkpoint, asked.seed, int(rows.max()) + 1)
    found: dict[tuple[str, str], Moments] = {}
    swapped: dict[Scope, Transformer] = {}
    for chosen, inputs in chunks(test, rows, model):
        labels = torch.from_numpy(test.labels[rows[chosen]]).long().to(inputs.device)
        batch = Batch(inputs, labels)
        mask = torch.from_numpy(hidden[rows[chosen], : inputs.shape[1]]).to(inputs.device)
        mask = mask if objective == "masked" else None

        outcome = partial(_outcome, batch=batch, objective=objective, mask=mask)
        before = [f"blocks.{layer}.hook_resid_pre" for layer in range(layers)]
        outputs = [f"blocks.{layer}.attn.hook_z" for layer in range(layers)]
        caught: dict[str, Tensor] = {}
        with torch.no_grad():
            with catching(model, [*before, *outputs], caught):
                model.residual(inputs, masked=mask)
            kept = [caught[name] for name in outputs]
            base = outcome(model, caught[before[0]], 0)
            edits = _edits(asked, means, batch, mask, names, draw)
            values = {kind: np.full((len(inputs), len(names), *shape, 2), np.nan) for kind, shape in shapes.items()}
            for (number, name), scope in product(enumerate(names), _scopes(checkpoint)):
                kind, layer, head = scope
                some = slice(head, head + 1) if kind == "head" else slice(0, heads)
                touched = [(one, some) for one in (range(layers) if kind == "all" else [layer])]
                first = touched[0][0]
                if name == "donor maps":
                    swapped[scope] = swapped.get(scope) or _with_maps(asked, touched)
                    made = outcome(swapped[scope], caught[before[first]], first)
                else:
                    with edited(model, touched, edits[name], kept if kind == "head" else None):
                        made = outcome(model, caught[before[first]], first)
                place = {"head": (layer, head), "layer": (layer,), "all": ()}[kind]
                values[kind][(slice(None), number, *place)] = made
                done(len(inputs))
        for kind, many in values.items():
            change = many - base.reshape(len(base), *[1] * (many.ndim - 2), 2)
            for number, name in enumerate(("loss", "accuracy")):
                found.setdefault((kind, name), Moments()).add(many[..., number])
                found.setdefault((kind, f"{name}_change"), Moments()).add(change[..., number])
        for number, name in enumerate(("loss", "accuracy")):
            found.setdefault(("base", name), Moments()).add(base[:, number])
    return found


def _outcome(
    network: "Transformer", x: "Tensor", first: int, *, batch: "Batch", objective: "Objective", mask: "Tensor | None"
) -> np.ndarray:
    """Return loss and accuracy of each sequence, [sequence, 2], from the residual stream before a layer."""
    import torch

    from attnprobe.objectives import predictions

    loss, accuracy = predictions(network, network.through(x, first=first), batch, objective, mask).by_sequence()
    accuracy = torch.full_like(loss, torch.nan) if accuracy is None else accuracy
    return torch.stack([loss, accuracy], dim=-1).double().cpu().numpy()


def _edits(
    asked: _Asked, means: _Means, batch: "Batch", mask: "Tensor | None", names: Sequence[str], draw: int | None
) -> "dict[str, Edit]":
    """Return the edits by name, made for a batch."""
    import torch

    from attnprobe.measures import edits
    from attnprobe.measures.capture import catching, query_and_key
    from attnprobe.measures.terms import parts

    model, length = asked.checkpoint.model, batch.inputs.shape[1]
    view = list(common.views(asked.checkpoint).values())[-1]
    places, bias = common.geometry_of(view, length), model.bias(length)
    positions = [(one.q_position, one.k_position) for one in parts(model, batch.inputs, means.parts, mask)]
    short = (means.kernels[0].shape[1] - len(places.count)) // 2
    kernels = [one[:, short : one.shape[1] - short].to(batch.inputs.device) for one in means.kernels]
    imposed = (-places.distance / asked.reach).expand(model.cfg.n_heads, -1).to(batch.inputs.device)
    if bias is not None and len(bias[0]) != len(places.count):
        bias = bias[:, places.in_line]
    own = bias
    order = common.permutation("interventions", asked.seed, draw or 0, asked.checkpoint.data.n)
    order = torch.from_numpy(order[order < length])
    if draw is not None:
        generator = numpy_generator(asked.seed, "interventions offsets", draw)
        kernels = [_shuffled(one, places, generator) for one in kernels]
        imposed = _shuffled(imposed, places, generator)
        bias = None if bias is None else _shuffled(bias, places, generator)
        positions = [(q[:, :, order], k[:, :, order]) for q, k in positions]
    dtype = model.classify.weight.dtype
    moved = None if bias is None or own is None else bias - own
    material = edits.Material(
        [one.to(dtype) for one in kernels],
        positions,
        None if bias is None else bias.to(dtype),
        None if moved is None or draw is None else moved.to(dtype),
        imposed.to(dtype),
        order,
    )
    shifted = replace(material, places=(torch.arange(length) + length // 2) % length)
    made: dict[str, Edit] = {
        "flatten": edits.flatten,
        "keep toeplitz": partial(edits.keep_toeplitz, material=material),
        "remove toeplitz": partial(edits.remove_toeplitz, material=material),
        "keep position": partial(edits.keep_position, material=material),
        "remove position": partial(edits.remove_position, material=material),
        "shift positions": partial(edits.move_positions, material=shifted),
        "permute positions": partial(edits.move_positions, material=material),
        "impose proximity": partial(edits.impose, material=material),
    }
    if asked.donor is not None and "donor scores" in names:
        caught: dict[str, Tensor] = {}
        donor = asked.donor.model
        hooks = [
            [f"blocks.{layer}.attn.{hook}" for layer in range(donor.cfg.n_layers)] for hook in query_and_key(donor)
        ]
        with catching(donor, sum(hooks, []), caught):
            donor.residual(batch.inputs, masked=mask)
        queries, keys = ([caught[name] for name in of_side] for of_side in hooks)
        additive = donor.additive(length)
        made["donor scores"] = partial(edits.from_donor, queries=queries, keys=keys, additive=additive)
    return made


def _shuffled(f: "Tensor", places: "Geometry", generator: np.random.Generator) -> "Tensor":
    """Return functions of the offset with their values at other offsets, and the same length."""
    import torch

    seen = places.seen.nonzero()[:, 0].numpy()
    moved = f.double().cpu().clone()
    moved[:, seen] = moved[:, generator.permutation(seen)]
    size, length = places.inner(moved, moved), places.inner(f.double().cpu(), f.double().cpu())
    return (moved * torch.where(size > 0, length / size, 0.0).clamp(min=0).sqrt()[:, None]).to(f.device)


def _with_maps(asked: _Asked, touched: Sequence[tuple[int, slice]]) -> "Transformer":
    """Return a copy of the network with the donor's query and key maps in some heads."""
    import copy

    import torch

    assert asked.donor is not None
    made, donor = copy.deepcopy(asked.checkpoint.model), asked.donor.model
    width = made.cfg.d_head
    with torch.no_grad():
        for layer, some in touched:
            rows = slice(some.start * width, some.stop * width)
            for side in ("q", "k"):
                own, other = (getattr(one.block(layer).attn, side) for one in (made, donor))
                own.weight[rows], own.bias[rows] = other.weight[rows], other.bias[rows]
    return made


def _variables(
    asked: _Asked, found: "Mapping[tuple[str, str], Moments]", nulls: "Sequence[Mapping[tuple[str, str], Moments]]"
) -> dict[str, "xr.Variable"]:
    """Return the variables of every scope."""
    from attnprobe.results import variable

    axes = {"head": ("intervention", "layer", "head"), "layer": ("intervention", "layer"), "all": ("intervention",)}
    nulled = [asked.names.index(name) for name in asked.names if name in NULLED]
    made = {}
    for kind, over in axes.items():
        start = "" if kind == "head" else f"{kind}_"
        for name, (long_name, units) in DESCRIBED.items():
            one = found[kind, name]
            draws = np.full((1, len(nulls), *one.mean.shape), np.nan)
            draws[0][:, nulled] = np.stack([draw[kind, name].mean for draw in nulls])
            about = f"95 % interval: {long_name}"
            made |= {
                start + name: variable(over, one.mean, long_name, units, "paired" if "change" in name else ""),
                f"{start}{name}_interval": variable((*over, "bound"), one.interval(), about, units),
                f"{start}{name}_sd": variable(over, one.sd, f"sd over sequences: {long_name}", units),
                f"{start}{name}_null": variable(("null", "draw", *over), draws, f"null: {long_name}", units),
            }
    for name in ("loss", "accuracy"):
        one, units = found["base", name], DESCRIBED[name][1]
        made[f"base_{name}"] = variable((), one.mean, f"{name} without intervention", units)
        made[f"base_{name}_interval"] = variable(("bound",), one.interval(), f"95 % interval: {name}", units)
    return made
