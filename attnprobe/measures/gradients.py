"""Gradients: along which score directions can an objective learn here, and along which is it blind?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from attnprobe.config import Objective
from attnprobe.errors import UsageError, listed
from attnprobe.measures import common
from attnprobe.measures.common import View
from attnprobe.randomness import numpy_generator

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from attnprobe.checkpoint import Checkpoint
    from attnprobe.measures.backward import LayerGradient
    from attnprobe.statistics import Moments
    from attnprobe.transformer import Transformer

TABLE = "snr energy_share grid_snr mean_token_share rank_one_share cosine"
"""What the command prints of a head."""

# name: (axes besides layer and head, long name, units, method)
DESCRIBED = {
    "descent": (("direction",), "fall of the loss along the direction", "loss", "minus gradient times unit direction"),
    "favours": (("direction",), "share of sequences whose descent raises the direction", "1", "1/2 without a sign"),
    "squared_cosine": (("direction",), "share of the gradient's energy along the direction", "1", "squared cosine"),
    "energy_share": (("subspace",), "share of the gradient's energy in the subspace", "1", "squared projection"),
    "descent_by_offset": (("view",), "fall of the loss with a bias at the offset", "loss", "minus sum over pairs"),
    "gradient_norm": ((), "length of the score gradient", "loss", "Frobenius norm"),
    "mean_token_share": ((), "share of the map's gradient that reads the mean token", "1", "query side"),
    "rank_one_share": ((), "share of the map's gradient in its first singular component", "1", "squared"),
}


def gradients(
    checkpoint: "Checkpoint",
    *,
    sequences: int = 256,
    objectives: tuple[str, ...] = (),
    at: Literal["checkpoint", "uniform"] = "checkpoint",
    fit_steps: int = 0,
    reach: int = 2,
    curvature: int = 0,
    seed: int = 0,
) -> "xr.Dataset":
    r"""Measure what each objective's gradient asks of the scores: exact, for every sequence, layer and head.

    The loss is the mean loss of one test sequence; its gradient $\partial L / \partial S$ with respect to the scores
    (through everything that follows) is computed in blocks and projected on directions of unit length, row-centred
    since the softmax ignores row constants. Directions (`attnprobe.statistics.directions`):

    - *circulant* and *toeplitz* *band*, *exponential* and *linear*: proximity up to or of the length ``reach``, around
      the sequence or not, without the part along offset 0, which is *offset 0*;
    - *own profile*: the network's own mean score by offset, without offset 0;
    - *column*: a random function of the key, the positive control: labels can see it; *random*: a random product.

    Over ``loss``, ``layer``, ``head`` and, where named, more, as means over sequences:

    - ``descent`` (direction): minus the projection: positive where descent on this loss raises the direction;
      ``descent_se`` its standard error, ``snr`` mean over sd of a sequence, ``favours`` the share of sequences with a
      positive one, ``squared_cosine`` its share of the gradient's energy;
    - ``energy_share`` (subspace): of all functions of the offset modulo n, of the offset, of the key, and what neither
      offset nor key explains; ``energy_share_of_noise`` what pure noise would have;
    - ``descent_by_offset`` (offset): minus the derivative with respect to a bias at each offset;
    - ``gradient_norm``;
    - ``mean_token_share`` and ``rank_one_share`` of the gradient with respect to $W_Q W_K^\top$ (none with rotary
      positions): how much of it reads the sequence's mean token on the query side, and how nearly it has rank one;
    - ``cosine`` (other_loss): of the gradients of two objectives;
    - ``curvature`` (direction): second derivative of the loss along functions of the offset, by central differences of
      the exact gradient in float64, with ``curvature`` > 0: blind to first order only, or flat?

    Images have most of them over two-dimensional offsets too, as ``grid_...``. Each has ``_interval``, ``_sd`` and
    ``_null``: *permuted*, the entries of the gradient moved with their positions, and *initial*, networks at
    initialisation. A readout that no objective has trained yet points anywhere: its sign means nothing
    (``fit_steps``).

    Args:
        checkpoint: The checkpoint to measure.
        sequences: Number of test sequences: the first ones.
        objectives: Which losses: labels, masked, next-token; all that the network can have unless named.
        at: Where: the checkpoint's own scores, or all scores set to zero (exactly uniform attention).
        fit_steps: Steps for which the objective's readout is trained first; at uniform attention with value weights.
        reach: Length of the proximity directions, in tokens or pixels.
        curvature: Number of sequences on which second derivatives are taken; 0 leaves them out.
        seed: Seed of masks, random directions, permutations and initial networks.
    """
    from tqdm import tqdm

    from attnprobe.results import dataset
    from attnprobe.statistics.directions import SUBSPACES

    common.check(checkpoint, sequences, seed)
    common.check_window(checkpoint, reach, "reach")
    sequences = min(sequences, len(checkpoint.task.test))
    asked = _Asked(checkpoint, _losses(checkpoint, objectives), at, fit_steps, reach, seed)
    if at not in ("checkpoint", "uniform"):
        raise UsageError(f"at={at!r}: must be checkpoint or uniform")
    for name, value in (("fit_steps", fit_steps), ("curvature", curvature)):
        if value < 0:
            raise UsageError(f"{name}={value}: must not be negative")
    draws, rows = min(common.DRAWS, sequences), np.arange(sequences)
    total = 3 * sequences * len(asked.losses)
    with tqdm(total=total, desc="gradients", unit="gradient", delay=5, leave=False, dynamic_ncols=True) as bar:
        own = _prepare(asked, checkpoint.model, sequences)
        orders = [common.permutation("gradients", seed, d, checkpoint.data.n) for d in range(draws)]
        found = _over_sequences(asked, own, rows, None, bar.update)
        initial = [
            _prepare(asked, common.initial_network(checkpoint, seed, d), -(-sequences // draws)) for d in range(draws)
        ]
        nulls = [
            [_over_sequences(asked, own, rows[d::draws], orders[d], bar.update) for d in range(draws)],
            [_over_sequences(asked, initial[d], rows[d::draws], None, bar.update) for d in range(draws)],
        ]
    variables = _variables(asked, found, nulls) | common.accuracies(checkpoint)
    if curvature:
        bent = rows[:curvature]
        of_initial = [_curvatures(asked, one, bent[d::draws]) for d, one in enumerate(initial[: len(bent)])]
        variables |= _curvature_variables(asked, _curvatures(asked, own, bent), of_initial, draws)
    coordinates = common.coordinates(checkpoint, draws) | {
        "loss": list(asked.losses),
        "other_loss": list(asked.losses),
        "direction": asked.directions,
        "subspace": list(SUBSPACES),
    }
    facts = {"at": at, "fit_steps": fit_steps, "reach": reach, "curvature_sequences": curvature, "table": TABLE}
    return dataset(variables, coordinates, common.facts(checkpoint, "gradients", sequences, seed, **facts))


@dataclass(frozen=True)
class _Asked:
    """What is asked of the checkpoint's network and of those of the nulls."""

    checkpoint: "Checkpoint"
    losses: tuple[Objective, ...]
    at: str
    fit_steps: int
    reach: int
    seed: int

    @property
    def views(self) -> dict[str, View]:
        return common.views(self.checkpoint)

    @property
    def directions(self) -> list[str]:
        from attnprobe.statistics.directions import kernels
        from attnprobe.statistics.geometry import geometry

        first = kernels(geometry((self.checkpoint.data.n,), self.checkpoint.config.model.causal), self.reach)
        return [*first, "offset 0", "own profile", "column", "random"]


@dataclass(frozen=True)
class _Prepared:
    """A network as it is looked at: one for each loss, where readouts are fitted, and its profile in each view."""

    networks: "Mapping[Objective, Transformer]"
    profiles: "Mapping[str, list[Tensor]]"
    """[head, offset] in each layer, of the longest sequences."""


def _losses(checkpoint: "Checkpoint", named: tuple[str, ...]) -> tuple[Objective, ...]:
    """Return the objectives that are asked for, or all that make sense; raise `UsageError` where one does not."""
    model = checkpoint.config.model
    if model.pooling == "cls":
        raise UsageError(
            "pooling='cls': labels reach the last layer's scores through the row of [CLS] alone, which has no offset "
            "to any token; measure a network with pooling mean, max or last"
        )
    every: tuple[Objective, ...] = get_args(Objective)
    valid: list[Objective] = [one for one in every if one != "next-token" or model.causal]
    for name in named:
        if name not in valid:
            why = " (attention is not causal: the next token can be seen)" if name == "next-token" else ""
            raise UsageError(f"objectives: {name!r} makes no sense here{why}; valid: {listed(valid)}")
    return tuple(one for one in valid if one in named or not named)


def _prepare(asked: _Asked, network: "Transformer", profiled: int) -> _Prepared:
    """Return the network at the scores that are asked for, with readouts fitted where that is asked for."""
    from attnprobe.measures.backward import at_uniform_attention, fit

    start = at_uniform_attention(network) if asked.at == "uniform" else network
    parts = ("heads", "vo") if asked.at == "uniform" else ("heads",)
    task, config, steps = asked.checkpoint.task, asked.checkpoint.config, asked.fit_steps
    networks: dict[Objective, Transformer] = {
        loss: fit(start, task, config, loss, parts, steps, asked.seed) if steps else start for loss in asked.losses
    }
    return _Prepared(networks, _profiles(asked, network, profiled))


def _profiles(asked: _Asked, network: "Transformer", most: int) -> "dict[str, list[Tensor]]":
    """Return the network's mean score by offset in training sequences, in each view and layer."""
    from attnprobe.measures.capture import mean_kernels

    return dict(zip(asked.views, mean_kernels(network, asked.checkpoint.task.train, most), strict=True))


def _over_sequences(
    asked: _Asked,
    prepared: _Prepared,
    rows: np.ndarray,
    order: np.ndarray | None,
    done: Callable[[int], object],
) -> "dict[tuple[str, ...], list[Moments]]":
    """Return the moments over sequences of each number, a list over layers.

    They are under (loss, prefix, name), and those of two losses under (loss, other_loss).
    """
    import torch

    from attnprobe.measures.backward import score_gradients
    from attnprobe.measures.capture import chunks
    from attnprobe.objectives import Batch
    from attnprobe.statistics import Moments, gradient_product

    checkpoint, n = asked.checkpoint, asked.checkpoint.data.n
    model, test = next(iter(prepared.networks.values())), checkpoint.task.test
    layers = range(model.cfg.n_layers)
    found: dict[tuple[str, ...], list[Moments]] = {}

    def add(key: tuple[str, ...], layer: int, values: "Tensor") -> None:
        short = n - length if key[-1] == "descent_by_offset" and not key[1] else 0
        found.setdefault(key, [Moments() for _ in layers])[layer].add(common.widened(values.numpy(), short))

    hidden = common.masks(asked.checkpoint, asked.seed, int(rows.max()) + 1)
    for chosen, inputs in chunks(test, rows, model):
        length = inputs.shape[1]
        batch = Batch(inputs, torch.from_numpy(test.labels[rows[chosen]]).long().to(inputs.device))
        mask = torch.from_numpy(hidden[rows[chosen], :length]).to(inputs.device)
        own = None if order is None else torch.from_numpy(order[order < length])
        known = _directions(asked, length)
        slopes, sizes = {}, {}
        for loss, network in prepared.networks.items():
            slopes[loss] = score_gradients(network, batch, loss, mask if loss == "masked" else None)
            for layer, slope in enumerate(slopes[loss]):
                profiles = {prefix: of_layers[layer] for prefix, of_layers in prepared.profiles.items()}
                numbers = _statistics(asked, slope, known, profiles, own)
                sizes[loss, layer] = numbers["", "gradient_norm"]
                for key, values in numbers.items():
                    add((loss, *key), layer, values)
            done(len(chosen))
        for a, b in combinations(asked.losses, 2) if order is None else ():
            for layer in layers:
                pair = [(one.scores, one.v, one.dz) for one in (slopes[a][layer], slopes[b][layer])]
                size = sizes[a, layer] * sizes[b, layer]
                add((a, b), layer, gradient_product(*pair) / size.where(size > 0, torch.nan))
    return found


@dataclass(frozen=True)
class _Directions:
    """The directions of sequences of one length."""

    by_view: "Mapping[str, Tensor]"
    """[direction, offset], unit, of all that are functions of the offset but the network's own profile."""
    column: "Tensor"
    """[key], unit."""
    random: "tuple[Tensor, Tensor]"
    """[query, 1] and [key, 1], of a unit product."""


def _directions(asked: _Asked, length: int) -> _Directions:
    import torch

    from attnprobe.statistics.directions import kernels, own_pair, unit, without_own_pair
    from attnprobe.statistics.geometry import geometry

    by_view = {}
    for prefix, view in asked.views.items():
        places = common.geometry_of(view, length)
        near = torch.stack([without_own_pair(one, places) for one in kernels(places, asked.reach).values()])
        by_view[prefix] = unit(torch.cat([near, own_pair(places)[None]]), places)
    places = geometry((length,), asked.checkpoint.config.model.causal)
    drawn = numpy_generator(asked.seed, "gradients directions").standard_normal((3, asked.checkpoint.data.n))
    column, left, right = torch.from_numpy(drawn[:, :length])

    def rows(u: "Tensor") -> "Tensor":
        """Return for each query the sum of squares of u over its keys, less its mean there."""
        return places.sum_over_keys(u.square()) - places.sum_over_keys(u).square() / places.keys

    def over(x: "Tensor", square: "Tensor") -> "Tensor":
        """Return x over its length; nothing where a sequence of one token has no such direction."""
        return torch.where(square > 0, x / square.sqrt(), 0.0)

    column = over(column, rows(column).sum())
    left = over(left, (left.square() * rows(right)).sum())
    return _Directions(by_view, column, (left[:, None], right[:, None]))


def _statistics(
    asked: _Asked, slope: "LayerGradient", known: _Directions, profiles: "Mapping[str, Tensor]", order: "Tensor | None"
) -> "dict[tuple[str, str], Tensor]":
    """Return each number, [sequence, head, ...], under its view and name."""
    import torch

    from attnprobe.statistics import gradient_statistics
    from attnprobe.statistics.directions import energy_shares, unit, without_own_pair

    scores = replace(slope.scores, order=None if order is None else order.to(slope.scores.q.device))
    left, right = (x.to(slope.v) for x in known.random)
    rotates = asked.checkpoint.config.model.position == "rotary"
    inputs = None if rotates else slope.inputs
    finest = gradient_statistics(scores, slope.v, slope.dz, [(left, right)], inputs)
    size = finest.square.sqrt()
    made: dict[tuple[str, str], Tensor] = {("", "gradient_norm"): size}
    for prefix in asked.views:
        found = finest if prefix else finest.in_line()
        profile = profiles[prefix]
        short = (profile.shape[-1] - found.by_offset.shape[-1]) // 2
        profile = profile[:, short : profile.shape[-1] - short]
        profile = unit(without_own_pair(profile, found.geometry), found.geometry)
        functions = known.by_view[prefix]
        # In a short sequence a band may reach everything: then there is no such direction.
        fixed = found.along_offsets(functions.nan_to_num()).where(functions.isfinite().all(-1), torch.nan)
        own = (found.by_offset * profile).sum(-1)  # NaN for a head without a profile
        column = found.by_key @ known.column
        column = column.where(known.column.any(), torch.nan)
        random = finest.along[..., 0].where(known.random[0].any(), torch.nan)
        descent = -torch.cat([fixed, torch.stack([own, column, random], dim=-1)], dim=-1)
        known_sign = descent.isfinite() & (size > 0)[..., None]
        made |= {
            (prefix, "descent"): descent,
            (prefix, "favours"): (descent > 0).double().where(known_sign, torch.nan),
            (prefix, "squared_cosine"): (descent / size.where(size > 0, torch.nan)[..., None]).square(),
            (prefix, "energy_share"): energy_shares(found),
            (prefix, "descent_by_offset"): -found.by_offset,
        }
    if finest.bilinear is not None:
        made |= {("", name): values for name, values in _of_map(finest.bilinear, slope.inputs).items()}
    return made


def _of_map(gradient: "Tensor", inputs: "Tensor") -> "dict[str, Tensor]":
    """Return what the gradient [batch, head, d_model, d_model] with respect to the map of queries and keys is like."""
    import torch

    square = gradient.square().sum((-2, -1))
    square = square.where(square > 0, torch.nan)
    token = torch.nn.functional.normalize(inputs.double().mean(1).cpu(), dim=-1)
    read = torch.einsum("bhde,bd->bhe", gradient, token)
    # In units of its size: the largest eigenvalue of tiny numbers would be rounding.
    scaled = (gradient / square.sqrt()[..., None, None]).nan_to_num()
    first = torch.linalg.eigvalsh(scaled @ scaled.mT)[..., -1]
    return {
        "mean_token_share": read.square().sum(-1) / square,
        "rank_one_share": first.where(square.isfinite(), torch.nan),
    }


def _variables(
    asked: _Asked,
    found: "Mapping[tuple[str, ...], list[Moments]]",
    nulls: "Sequence[Sequence[Mapping[tuple[str, ...], list[Moments]]]]",
) -> dict[str, "xr.Variable"]:
    """Return the variables, over losses first."""
    import xarray as xr

    from attnprobe.results import variable
    from attnprobe.statistics.directions import SUBSPACES, dimensions
    from attnprobe.statistics.geometry import geometry

    head = {"head": asked.checkpoint.config.model.n_heads}
    sizes = {"direction": {"direction": len(asked.directions)}, "subspace": {"subspace": len(SUBSPACES)}}
    made: dict[str, xr.Variable] = {}

    def means(key: tuple[str, ...], of: str) -> list[list[np.ndarray]]:
        """Return a number of the nulls' draws, over layers first; NaN where a null has none."""
        nothing = np.full_like(np.stack([one.mean for one in found[key]]), np.nan)
        return [
            [np.stack([getattr(one, of) for one in draw[key]]) if key in draw else nothing for draw in draws]
            for draws in nulls
        ]

    for prefix, view in asked.views.items():
        for name, (axes, *words) in DESCRIBED.items():
            if (asked.losses[0], prefix, name) not in found:
                continue
            over = head | {axis: size for kind in axes for axis, size in (sizes | {"view": view.offsets})[kind].items()}
            each = []
            for loss in asked.losses:
                key = (loss, prefix, name)
                of_loss = common.summary(prefix + name, over, found[key], means(key, "mean"), words)
                if name == "descent":
                    of_loss |= _signal(prefix, over, found[key], means(key, "mean"), means(key, "sd"))
                each.append(of_loss)
            made |= {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
        noise = dimensions(geometry(view.shape, view.causal))
        values = [noise[name] for name in SUBSPACES]
        made[f"{prefix}energy_share_of_noise"] = variable(("subspace",), values, "energy share of pure noise", "1")
    if len(asked.losses) > 1:
        made |= _cosines(asked, head, found, means)
    return made


def _signal(
    prefix: str,
    axes: Mapping[str, int],
    by_layer: "Sequence[Moments]",
    means: Sequence[Sequence[np.ndarray]],
    sds: Sequence[Sequence[np.ndarray]],
) -> dict[str, "xr.Variable"]:
    """Return standard error and signal-to-noise ratio of the descent."""
    from attnprobe.results import variable

    over = ("layer", *axes)
    mean, sd, count = (np.stack([getattr(one, name) for one in by_layer]) for name in ("mean", "sd", "count"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, of_nulls = mean / sd, np.array(means) / np.array(sds)
        error = sd / np.sqrt(count)
    return {
        f"{prefix}descent_se": variable(over, error, "standard error of the mean fall", "loss"),
        f"{prefix}snr": variable(over, ratio, "signal-to-noise ratio of the fall", "1", "mean over sd of a sequence"),
        f"{prefix}snr_null": variable(("null", "draw", *over), of_nulls, "null: signal-to-noise ratio", "1"),
    }


def _cosines(
    asked: _Asked,
    head: Mapping[str, int],
    found: "Mapping[tuple[str, ...], list[Moments]]",
    means: Callable[[tuple[str, ...], str], list[list[np.ndarray]]],
) -> dict[str, "xr.Variable"]:
    """Return the cosines between the gradients of different losses; NaN of one with itself."""
    import xarray as xr

    words = ("cosine between the gradients of two losses", "1", "of whole score gradients, sequence by sequence")
    pairs = {
        frozenset(pair): common.summary("cosine", head, found[pair], means(pair, "mean"), words)
        for pair in combinations(asked.losses, 2)
    }
    some = next(iter(pairs.values()))
    itself = {name: one.copy(data=np.full(one.shape, np.nan)) for name, one in some.items()}
    return {
        name: xr.Variable.concat(
            [
                xr.Variable.concat([pairs.get(frozenset((a, b)), itself)[name] for b in asked.losses], "other_loss")
                for a in asked.losses
            ],
            "loss",
        )
        for name in some
    }


def _curvatures(asked: _Asked, prepared: _Prepared, rows: np.ndarray) -> "dict[Objective, list[Moments]]":
    """Return the moments of the second derivatives along functions of the offset, in the data's own view.

    Each is a central difference of the exact gradient in float64, with a step that moves no score by more than `STEP`.
    """
    import copy

    import torch

    from attnprobe.measures.backward import score_gradients
    from attnprobe.measures.capture import chunks
    from attnprobe.measures.edits import added_bias
    from attnprobe.objectives import Batch
    from attnprobe.statistics import Moments, gradient_statistics
    from attnprobe.statistics.directions import unit, without_own_pair

    test = asked.checkpoint.task.test
    prefix = list(asked.views)[-1]
    hidden = common.masks(asked.checkpoint, asked.seed, int(rows.max()) + 1)
    found = {}
    for loss, network in prepared.networks.items():
        model = copy.deepcopy(network).double()
        layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
        found[loss] = [Moments() for _ in layers]
        for chosen, inputs in chunks(test, rows, model):
            length = inputs.shape[1]
            inputs = inputs.double() if inputs.is_floating_point() else inputs
            batch = Batch(inputs, torch.from_numpy(test.labels[rows[chosen]]).long().to(inputs.device))
            mask = torch.from_numpy(hidden[rows[chosen], :length]).to(inputs.device) if loss == "masked" else None
            fixed = _directions(asked, length).by_view[prefix]
            places = common.geometry_of(asked.views[prefix], length)
            for layer in layers:
                profile = prepared.profiles[prefix][layer]
                short = (profile.shape[-1] - fixed.shape[-1]) // 2
                own = unit(without_own_pair(profile[:, short : profile.shape[-1] - short], places), places)
                second = torch.full((len(inputs), len(heads), len(asked.directions)), torch.nan, dtype=torch.float64)
                for head in heads:
                    for number, f in enumerate(torch.cat([fixed, own[head, None]])):
                        if not f.isfinite().all():
                            continue
                        step = STEP / float(f.abs().max())
                        slopes = []
                        for sign in (1, -1):
                            bias = torch.zeros(len(heads), len(f), dtype=torch.float64)
                            bias[head] = sign * step * f
                            bias = bias.to(inputs.device)
                            with added_bias(model, layer, bias):
                                slope = score_gradients(model, batch, loss, mask)[layer]
                            scores = slope.scores
                            before = scores.bias_by_offset
                            scores = replace(scores, bias=bias if before is None else before + bias)
                            slopes.append(gradient_statistics(scores, slope.v, slope.dz).by_offset[:, head] @ f)
                        second[:, head, number] = (slopes[0] - slopes[1]) / (2 * step)
                found[loss][layer].add(second.numpy())
    return found


STEP = 1e-3
"""Largest change of a score, in nats, in a second derivative."""


def _curvature_variables(
    asked: _Asked,
    found: "Mapping[Objective, list[Moments]]",
    initial: "Sequence[Mapping[Objective, list[Moments]]]",
    draws: int,
) -> dict[str, "xr.Variable"]:
    """Return the curvatures, over losses first; networks that have no draw, and the permuted null, are NaN."""
    import xarray as xr

    axes = {"head": asked.checkpoint.config.model.n_heads, "direction": len(asked.directions)}
    words = (
        "second derivative of the loss along the direction",
        "loss",
        "central differences; functions of the offset",
    )
    each = []
    for loss in asked.losses:
        nothing = np.full_like(np.stack([one.mean for one in found[loss]]), np.nan)
        drawn = [np.stack([one.mean for one in draw[loss]]) for draw in initial]
        nulls = [[nothing] * draws, drawn + [nothing] * (draws - len(drawn))]
        each.append(common.summary("curvature", axes, found[loss], nulls, words))
    return {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
