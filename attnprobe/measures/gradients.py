"""Gradients: along which score directions can an objective learn here, and along which is it blind?"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from attnprobe.errors import UsageError, listed
from attnprobe.geometry import geometry
from attnprobe.measures.driver import (
    Add,
    Compute,
    Condition,
    Number,
    Request,
    Sample,
    Tallies,
    Tally,
    View,
    check_window,
    checked_request,
    chunks,
    geometry_of,
    hidden_tokens,
    labelled,
    lengths_of,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.networks.base import Doubles, Fits, Network, Probe, differentiate, read
from attnprobe.randomness import numpy_generator
from attnprobe.results import variable
from attnprobe.scores import Heads
from attnprobe.statistics import Moments, gradient_product, gradient_statistics, score_statistics
from attnprobe.statistics.directions import (
    SUBSPACES,
    dimensions,
    energy_shares,
    own_pair,
    proximity_profiles,
    unit,
    without_own_pair,
)
from attnprobe.tables import OBJECTIVES
from attnprobe.training.objectives import Batch

TABLE = "snr energy_share grid_snr mean_token_share rank_one_share cosine"
"""What the command prints of a head."""

NUMBERS = [
    Number(
        "descent",
        "fall of the loss along the direction",
        "loss",
        ("direction",),
        "minus gradient times unit direction",
        unstructured="0",
    ),
    Number(
        "positive_share",
        "share of sequences whose descent raises the direction",
        axes=("direction",),
        method="1/2 without a sign",
        range=(0.0, 1.0),
        unstructured="1/2",
    ),
    Number(
        "squared_cosine",
        "share of the gradient's energy along the direction",
        axes=("direction",),
        method="squared cosine",
        range=(0.0, 1.0),
    ),
    Number(
        "energy_share",
        "share of the gradient's energy in the subspace",
        axes=("subspace",),
        method="squared projection",
        range=(0.0, 1.0),
        unstructured="energy_share_of_noise",
    ),
    Number(
        "descent_by_offset",
        "fall of the loss with a bias at the offset",
        "loss",
        ("view",),
        "minus sum over pairs",
        unstructured="0",
    ),
    Number("gradient_norm", "length of the score gradient", "loss", method="Frobenius norm"),
    Number(
        "mean_token_share",
        "share of the map's gradient that reads the mean token",
        method="query side",
        range=(0.0, 1.0),
    ),
    Number(
        "rank_one_share",
        "share of the map's gradient in its first singular component",
        method="squared",
        range=(0.0, 1.0),
    ),
]
COSINE = Number(
    "cosine",
    "cosine between the gradients of two losses",
    method="of whole score gradients, sequence by sequence",
    range=(-1.0, 1.0),
    unstructured="0",
)
CURVATURE = Number(
    "curvature",
    "second derivative of the loss along the direction",
    "loss",
    ("direction",),
    "central differences; functions of the offset",
)


def gradients(
    of: Any,
    *,
    sequences: int = 256,
    objectives: tuple[str, ...] = (),
    at: Literal["checkpoint", "uniform"] = "checkpoint",
    fit_steps: int = 0,
    length_scale: int = 2,
    curvature: int = 0,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Measure what each objective's gradient asks of the scores: exact, for every sequence, layer and head.

    The loss is the mean loss of one test sequence; its gradient $\partial L / \partial S$ with respect to the scores
    (through everything that follows) is computed in blocks and projected on directions of unit length, row-centred
    since the softmax ignores row constants. Directions (`attnprobe.statistics.directions`):

    - *circulant* and *toeplitz* *band*, *exponential* and *linear*: proximity of half-width or decay
      length ``length_scale``, around the sequence or not, without the part along offset 0, which is *offset 0*;
    - *measured profile*: the network's own mean score by offset, without offset 0;
    - *column*: a random function of the key, the positive control: labels can see it; *random*: a random product.

    Over ``loss``, ``layer``, ``head`` and, where named, more, as means over sequences:

    - ``descent`` (direction): minus the projection: positive where descent on this loss raises the direction;
      ``descent_se`` its standard error, ``snr`` mean over std of a sequence, ``positive_share`` the share of
      sequences with a positive one, ``squared_cosine`` its share of the gradient's energy;
    - ``energy_share`` (subspace): of all functions of the offset modulo n, of the offset, of the key, and what neither
      offset nor key explains; ``energy_share_of_noise`` what pure noise would have;
    - ``descent_by_offset`` (offset): minus the derivative with respect to a bias at each offset;
    - ``gradient_norm``;
    - ``mean_token_share`` and ``rank_one_share`` of the gradient with respect to $W_Q W_K^\top$ (none with rotary
      positions): how much of it reads the sequence's mean token on the query side, and how nearly it has rank one;
    - ``cosine`` (other_loss): of the gradients of two objectives;
    - ``curvature`` (direction): second derivative of the loss along functions of the offset, by central differences of
      the exact gradient in float64, with ``curvature`` > 0: blind to first order only, or flat?

    Images have most of them over two-dimensional offsets too, as ``grid_...``. Each has ``_interval``, ``_std`` and
    ``_null``: *permuted*, the entries of the gradient moved with their positions, and *initial*, networks at
    initialisation. A readout that no objective has trained yet points anywhere: its sign means nothing
    (``fit_steps``).

    Args:
        of: The checkpoint (or probe) to measure.
        sequences: Number of test sequences: the first ones.
        objectives: Which losses: labels, masked, next-token; all that the network can have unless named.
        at: Where: the checkpoint's own scores, or all scores set to zero (exactly uniform attention).
        fit_steps: Steps for which the objective's readout is trained first; at uniform attention with value weights.
        length_scale: Length of the proximity directions, in tokens or pixels.
        curvature: Number of sequences on which second derivatives are taken; 0 leaves them out.
        nulls: Draws of each null; 0 for none.
        level: Level of the intervals.
        seed: Seed of masks, random directions, permutations and initial networks.
    """
    request = checked_request("gradients", of, sequences, nulls, level, seed)
    check_window(request.network, length_scale, "length_scale")
    losses = _losses(request.probe, objectives)
    if at not in ("checkpoint", "uniform"):
        raise UsageError(f"at={at!r}: must be checkpoint or uniform")
    for name, value in (("fit_steps", fit_steps), ("curvature", curvature)):
        if value < 0:
            raise UsageError(f"{name}={value}: must not be negative")
    setup = _Setup(request, losses, at, fit_steps, length_scale)
    if fit_steps and not isinstance(request.network, Fits):
        raise UsageError(f"fit_steps={fit_steps}: this network's output head cannot be fitted; fit_steps=0")
    if curvature and not isinstance(request.network, Doubles):
        raise UsageError(f"curvature={curvature}: this network has no copy in float64; curvature=0")
    prepared = functools.lru_cache(maxsize=None)(functools.partial(_prepare, setup))

    def prepare(condition: Condition) -> Compute:
        return functools.partial(_see, setup, prepared(condition.network))

    tallies, draws = over_sequences(request, prepare, passes=len(losses))
    variables = _variables(setup, tallies)
    if curvature:
        variables |= _curvature_variables(setup, draws, prepared, curvature)
    coordinates = {
        "loss": list(losses),
        "other_loss": list(losses),
        "direction": setup.directions,
        "subspace": list(SUBSPACES),
    }
    left_out = undefined(request.network, "*", up_to=0)
    if (losses[0], "", "mean_token_share") not in tallies.measured:
        left_out["mean_token_share, rank_one_share"] = "no single query and key map makes the score"
    facts = {
        "at": at,
        "fit_steps": fit_steps,
        "length_scale": length_scale,
        "curvature_sequences": curvature,
        "table": TABLE,
    }
    return result(request, variables, coordinates, list(draws), left_out, **facts)


@dataclass(frozen=True)
class _Setup:
    """What is asked of the network and of those of the nulls."""

    request: Request
    losses: tuple[str, ...]
    at: str
    fit_steps: int
    length_scale: int

    @property
    def views(self) -> dict[str, View]:
        return views(self.request.network)

    @property
    def directions(self) -> list[str]:
        shape = self.request.network.shape
        return [
            *proximity_profiles(geometry((shape.n,), shape.causal), self.length_scale),
            "offset 0",
            "measured profile",
            "column",
            "random",
        ]

    def change(self, heads: Heads) -> Heads:
        """Return what is differentiated: the network's own scores, or all scores set to zero."""
        return replace(heads, scores=heads.scores.flat()) if self.at == "uniform" else heads


@dataclass(frozen=True)
class _Prepared:
    """A network as it is looked at: one for each loss if readouts are fitted, and its profile in each view."""

    networks: Mapping[str, Network]
    profiles: Mapping[str, list[Tensor]]
    """[head, offset] in each layer, of the longest sequences."""


def _losses(of: Probe, named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the objectives that are asked for, or all that make sense; raise `UsageError` if one does not."""
    if of.network.shape.prefix:
        raise UsageError(
            "pooling='cls': labels reach the last layer's scores through the row of [CLS] alone, which has no offset "
            "to any token; measure a network with pooling mean, max or last"
        )
    for name in named:
        if name not in of.objectives:
            causal = name in OBJECTIVES and OBJECTIVES[name].needs_causal
            why = " (attention is not causal: the next token can be seen)" if causal else ""
            raise UsageError(f"objectives: {name!r} makes no sense here{why}; valid: {listed(of.objectives)}")
    return tuple(one for one in of.objectives if one in named or not named)


def _prepare(setup: _Setup, network: Network) -> _Prepared:
    """Return the network with readouts fitted, if that is asked for."""
    steps, seed = setup.fit_steps, setup.request.seed
    networks: dict[str, Network] = dict.fromkeys(setup.losses, network)
    if steps and isinstance(network, Fits):
        networks = {loss: network.fitted(loss, steps, seed, setup.at == "uniform") for loss in setup.losses}
    profiles = mean_profiles(network, setup.request.probe, setup.request.sequences)
    return _Prepared(networks, dict(zip(setup.views, profiles, strict=True)))


def mean_profiles(network: Network, of: Probe, most: int) -> list[list[Tensor]]:
    """Return the mean score by offset in the first ``most`` of the longest training sequences, layer by layer.

    The first list is in the line; a second one, if the tokens are pixels, on the grid. Least squares with a free
    constant for each query, at the offsets of the longest sequence that the network takes; 0 where there is no pair.
    """
    split = of.task.train
    lengths = lengths_of(split)
    rows = np.flatnonzero(lengths == lengths.max())[:most]
    sums: list[dict[int, Tensor]] = [{}, {}]

    def see(heads: Heads) -> None:
        finest = score_statistics(heads.scores)
        for view, found in zip(sums, (finest.in_line(), finest), strict=True):
            profile = found.offset_profile.nan_to_num().sum(0) / len(rows)
            view[heads.layer] = view.get(heads.layer, 0) + profile

    for _, batch in chunks(split, rows, network):
        read(network, batch, of.objectives[0], see)
    short, layers = network.shape.n - int(lengths.max()), range(network.shape.layers)
    line = [F.pad(sums[0][layer], (short, short)) for layer in layers]
    return [line, [sums[1][layer] for layer in layers]] if network.shape.grid is not None else [line]


def _see(setup: _Setup, prepared: _Prepared, sample: Sample, add: Add) -> None:
    """Take in the numbers under (loss, prefix, name), and those of two losses under (loss, other_loss)."""
    n, known = setup.request.network.shape.n, _directions(setup, sample.length)
    slopes: dict[str, list[tuple[Heads, Tensor]]] = {}
    sizes: dict[tuple[str, int], Tensor] = {}
    for loss, network in prepared.networks.items():
        slopes[loss] = differentiate(network, sample.batch, loss, sample.mask(loss), setup.change)
        for heads, dz in slopes[loss]:
            profiles = {prefix: of_layers[heads.layer] for prefix, of_layers in prepared.profiles.items()}
            numbers = _statistics(setup, heads, dz, known, profiles, sample.order)
            sizes[loss, heads.layer] = numbers["", "gradient_norm"]
            for (prefix, name), values in numbers.items():
                short = n - sample.length if name == "descent_by_offset" and not prefix else 0
                add((loss, prefix, name), heads.layer, widened(values.numpy(), short))
    for a, b in combinations(setup.losses, 2) if sample.order is None else ():
        for layer in range(len(slopes[a])):
            pair = [(heads.scores, heads.v, dz) for heads, dz in (slopes[a][layer], slopes[b][layer])]
            size = sizes[a, layer] * sizes[b, layer]
            add((a, b), layer, gradient_product(*pair) / size.where(size > 0, torch.nan))


@dataclass(frozen=True)
class _Directions:
    """The directions of sequences of one length."""

    by_view: Mapping[str, Tensor]
    """[direction, offset], unit, of all that are functions of the offset but the network's measured profile."""
    column: Tensor
    """[key], unit."""
    random: tuple[Tensor, Tensor]
    """[query, 1] and [key, 1], of a unit product."""


def _directions(setup: _Setup, length: int) -> _Directions:
    by_view = {}
    for prefix, view in setup.views.items():
        pairs = geometry_of(view, length)
        near = torch.stack(
            [without_own_pair(one, pairs) for one in proximity_profiles(pairs, setup.length_scale).values()]
        )
        by_view[prefix] = unit(torch.cat([near, own_pair(pairs)[None]]), pairs)
    shape = setup.request.network.shape
    pairs = geometry((length,), shape.causal)
    drawn = numpy_generator(setup.request.seed, "gradients directions").standard_normal((3, shape.n))
    column, left, right = torch.from_numpy(drawn[:, :length])

    def rows(u: Tensor) -> Tensor:
        """Return for each query the sum of squares of u over its keys, less its mean there."""
        return pairs.sum_over_keys(u.square()) - pairs.sum_over_keys(u).square() / pairs.keys

    def over(x: Tensor, square: Tensor) -> Tensor:
        """Return x over its length; nothing if a sequence of one token has no such direction."""
        return torch.where(square > 0, x / square.sqrt(), 0.0)

    column = over(column, rows(column).sum())
    left = over(left, (left.square() * rows(right)).sum())
    return _Directions(by_view, column, (left[:, None], right[:, None]))


def _statistics(
    setup: _Setup,
    heads: Heads,
    dz: Tensor,
    known: _Directions,
    profiles: Mapping[str, Tensor],
    order: Tensor | None,
) -> dict[tuple[str, str], Tensor]:
    """Return each number, [sequence, head, ...], under its view and name."""
    scores = replace(heads.scores.behind_prefix(), order=None if order is None else order.to(dz.device))
    left, right = (x.to(heads.v) for x in known.random)
    finest = gradient_statistics(scores, heads.v, dz, [(left, right)], heads.inputs)
    size = finest.square.sqrt()
    made: dict[tuple[str, str], Tensor] = {("", "gradient_norm"): size}
    for prefix in setup.views:
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
            (prefix, "positive_share"): (descent > 0).double().where(known_sign, torch.nan),
            (prefix, "squared_cosine"): (descent / size.where(size > 0, torch.nan)[..., None]).square(),
            (prefix, "energy_share"): energy_shares(found),
            (prefix, "descent_by_offset"): -found.by_offset,
        }
    if finest.bilinear is not None and heads.inputs is not None:
        made |= {("", name): values for name, values in _of_map(finest.bilinear, heads.inputs).items()}
    return made


def _of_map(gradient: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """Return what the gradient [batch, head, d_model, d_model] with respect to the map of queries and keys is like."""
    square = gradient.square().sum((-2, -1))
    square = square.where(square > 0, torch.nan)
    token = F.normalize(inputs.double().mean(1).cpu(), dim=-1)
    read = torch.einsum("bhde,bd->bhe", gradient, token)
    # In units of its size: the largest eigenvalue of tiny numbers would be rounding.
    scaled = (gradient / square.sqrt()[..., None, None]).nan_to_num()
    first = torch.linalg.eigvalsh(scaled @ scaled.mT)[..., -1]
    return {
        "mean_token_share": read.square().sum(-1) / square,
        "rank_one_share": first.where(square.isfinite(), torch.nan),
    }


def _variables(setup: _Setup, tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the variables, over losses first."""
    level, head = setup.request.level, {"head": setup.request.network.shape.heads}
    sizes = {"direction": {"direction": len(setup.directions)}, "subspace": {"subspace": len(SUBSPACES)}}
    made: dict[str, xr.Variable] = {}
    for prefix, view in setup.views.items():
        for number in NUMBERS:
            if (setup.losses[0], prefix, number.name) not in tallies.measured:
                continue
            axes = head | {
                axis: size for kind in number.axes for axis, size in (sizes | {"view": view.offsets})[kind].items()
            }
            each = []
            for loss in setup.losses:
                key = (loss, prefix, number.name)
                of_loss = labelled(number, prefix + number.name, axes, tallies, key, level)
                each.append(of_loss | (_signal(prefix, axes, tallies, key) if number.name == "descent" else {}))
            made |= {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
        noise = dimensions(geometry(view.shape, view.causal))
        values = [noise[name] for name in SUBSPACES]
        made[f"{prefix}energy_share_of_noise"] = variable(("subspace",), values, "energy share of pure noise", "1")
    return made | (_cosines(setup, head, tallies) if len(setup.losses) > 1 else {})


def _signal(prefix: str, axes: Mapping[str, int], tallies: Tallies, key: tuple[str, ...]) -> dict[str, xr.Variable]:
    """Return standard error and signal-to-noise ratio of the descent."""
    over, measured = ("layer", *axes), tallies.measured
    error = measured.stack(key, lambda one: one.std / np.sqrt(np.maximum(one.count, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = measured.stack(key, lambda one: one.mean / one.std)
        of_nulls = [
            [draw.stack(key, lambda one: one.mean / one.std) for draw in draws] for draws in tallies.nulls.values()
        ]
    made = {
        f"{prefix}descent_se": variable(over, error, "standard error of the mean fall", "loss"),
        f"{prefix}snr": variable(over, ratio, "signal-to-noise ratio of the fall", "1", "mean over std of a sequence"),
    }
    if of_nulls:
        made[f"{prefix}snr_null"] = variable(("null", "draw", *over), of_nulls, "null: signal-to-noise ratio", "1")
    return made


def _cosines(setup: _Setup, head: Mapping[str, int], tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the cosines between the gradients of different losses; NaN of one with itself."""
    pairs = {
        frozenset(pair): labelled(COSINE, "cosine", head, tallies, pair, setup.request.level)
        for pair in combinations(setup.losses, 2)
    }
    some = next(iter(pairs.values()))
    itself = {name: one.copy(data=np.full(one.shape, np.nan)) for name, one in some.items()}
    return {
        name: xr.Variable.concat(
            [
                xr.Variable.concat([pairs.get(frozenset((a, b)), itself)[name] for b in setup.losses], "other_loss")
                for a in setup.losses
            ],
            "loss",
        )
        for name in some
    }


def _curvatures(setup: _Setup, prepared: _Prepared, rows: np.ndarray) -> dict[str, list[Moments]]:
    """Return the moments of the second derivatives along functions of the offset, in the data's own view.

    Each is a central difference of the exact gradient in float64, with a step that moves no score by more than `STEP`.
    """
    of, prefix = setup.request.probe, list(setup.views)[-1]
    hidden = hidden_tokens(of, setup.request.seed, int(rows.max()) + 1)
    found = {}
    for loss, network in prepared.networks.items():
        assert isinstance(network, Doubles)
        double = network.in_double()
        found[loss] = [Moments() for _ in range(double.shape.layers)]
        for chosen, batch in chunks(of.task.test, rows, double):
            inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
            mask = None
            if OBJECTIVES[loss].hides_tokens:
                mask = torch.from_numpy(hidden[rows[chosen], : inputs.shape[1]]).to(inputs.device)
            batch = replace(batch, inputs=inputs)
            for layer, moments in enumerate(found[loss]):
                moments.add(_second_derivatives(setup, double, batch, loss, mask, layer, prepared, prefix))
    return found


def _second_derivatives(
    setup: _Setup,
    network: Network,
    batch: Batch,
    loss: str,
    mask: Tensor | None,
    layer: int,
    prepared: _Prepared,
    prefix: str,
) -> np.ndarray:
    """Return the second derivatives [sequence, head, direction] at the scores of one layer."""
    length, heads = batch.inputs.shape[1], network.shape.heads
    fixed = _directions(setup, length).by_view[prefix]
    pairs = geometry_of(setup.views[prefix], length)
    profile = prepared.profiles[prefix][layer]
    short = (profile.shape[-1] - fixed.shape[-1]) // 2
    own = unit(without_own_pair(profile[:, short : profile.shape[-1] - short], pairs), pairs)
    second = torch.full((len(batch.inputs), heads, len(setup.directions)), torch.nan, dtype=torch.float64)
    for head in range(heads):
        for number, f in enumerate(torch.cat([fixed, own[head, None]])):
            if not f.isfinite().all():
                continue
            step = STEP / float(f.abs().max())
            slopes = []
            for sign in (1, -1):
                bias = torch.zeros(heads, len(f), dtype=torch.float64)
                bias[head] = sign * step * f
                bias = bias.to(batch.inputs.device)

                def change(one: Heads, bias: Tensor = bias) -> Heads:
                    one = setup.change(one)
                    return replace(one, scores=one.scores.with_bias(bias)) if one.layer == layer else one

                here, dz = differentiate(network, batch, loss, mask, change)[layer]
                slopes.append(gradient_statistics(here.scores, here.v, dz).by_offset[:, head] @ f)
            second[:, head, number] = (slopes[0] - slopes[1]) / (2 * step)
    return second.numpy()


STEP = 1e-3
"""Largest change of a score, in nats, in a second derivative."""


def _curvature_variables(
    setup: _Setup, draws: Mapping[str, Sequence[Condition]], prepared: Any, sequences: int
) -> dict[str, xr.Variable]:
    """Return the curvatures, over losses first; the permuted null has none."""
    rows = setup.request.rows[:sequences]
    measured = _curvatures(setup, prepared(setup.request.network), rows)
    nulls = {
        kind: [_curvatures(setup, prepared(one.network), rows) for one in passes if one.order is None]
        for kind, passes in draws.items()
    }
    axes = {"head": setup.request.network.shape.heads, "direction": len(setup.directions)}
    each = []
    for loss in setup.losses:
        empty = [Tally() for _ in range(setup.request.nulls)]
        tallies = Tallies(
            Tally.of(("curvature",), measured[loss]),
            {kind: [Tally.of(("curvature",), one[loss]) for one in found] or empty for kind, found in nulls.items()},
        )
        each.append(labelled(CURVATURE, "curvature", axes, tallies, ("curvature",), setup.request.level))
    return {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
