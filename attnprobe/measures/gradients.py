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
    Asked,
    Look,
    Number,
    Sample,
    See,
    Tallies,
    Tally,
    View,
    asked,
    check_window,
    chunks,
    described,
    geometry_of,
    hidden_tokens,
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
    kernels,
    own_pair,
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
        "favours",
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
    reach: int = 2,
    curvature: int = 0,
    nulls: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
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
        of: The checkpoint (or probe) to measure.
        sequences: Number of test sequences: the first ones.
        objectives: Which losses: labels, masked, next-token; all that the network can have unless named.
        at: Where: the checkpoint's own scores, or all scores set to zero (exactly uniform attention).
        fit_steps: Steps for which the objective's readout is trained first; at uniform attention with value weights.
        reach: Length of the proximity directions, in tokens or pixels.
        curvature: Number of sequences on which second derivatives are taken; 0 leaves them out.
        nulls: Draws of each null; 0 for none.
        level: Level of the intervals.
        seed: Seed of masks, random directions, permutations and initial networks.
    """
    what = asked("gradients", of, sequences, nulls, level, seed)
    check_window(what.network, reach, "reach")
    losses = _losses(what.probe, objectives)
    if at not in ("checkpoint", "uniform"):
        raise UsageError(f"at={at!r}: must be checkpoint or uniform")
    for name, value in (("fit_steps", fit_steps), ("curvature", curvature)):
        if value < 0:
            raise UsageError(f"{name}={value}: must not be negative")
    given = _Given(what, losses, at, fit_steps, reach)
    if fit_steps and not isinstance(what.network, Fits):
        raise UsageError(f"fit_steps={fit_steps}: this network's output head cannot be fitted; fit_steps=0")
    if curvature and not isinstance(what.network, Doubles):
        raise UsageError(f"curvature={curvature}: this network has no copy in float64; curvature=0")
    prepared = functools.lru_cache(maxsize=None)(functools.partial(_prepare, given))

    def prepare(look: Look) -> See:
        return functools.partial(_see, given, prepared(look.network))

    tallies, draws = over_sequences(what, prepare, looks=len(losses))
    variables = _variables(given, tallies)
    if curvature:
        variables |= _curvature_variables(given, draws, prepared, curvature)
    coordinates = {
        "loss": list(losses),
        "other_loss": list(losses),
        "direction": given.directions,
        "subspace": list(SUBSPACES),
    }
    left_out = undefined(what.network, "*", up_to=0)
    if (losses[0], "", "mean_token_share") not in tallies.measured:
        left_out["mean_token_share, rank_one_share"] = "no single query and key map makes the score"
    facts = {"at": at, "fit_steps": fit_steps, "reach": reach, "curvature_sequences": curvature, "table": TABLE}
    return result(what, variables, coordinates, list(draws), left_out, **facts)


@dataclass(frozen=True)
class _Given:
    """What is asked of the network and of those of the nulls."""

    what: Asked
    losses: tuple[str, ...]
    at: str
    fit_steps: int
    reach: int

    @property
    def views(self) -> dict[str, View]:
        return views(self.what.network)

    @property
    def directions(self) -> list[str]:
        shape = self.what.network.shape
        return [*kernels(geometry((shape.n,), shape.causal), self.reach), "offset 0", "own profile", "column", "random"]

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


def _prepare(given: _Given, network: Network) -> _Prepared:
    """Return the network with readouts fitted, if that is asked for."""
    steps, seed = given.fit_steps, given.what.seed
    networks: dict[str, Network] = dict.fromkeys(given.losses, network)
    if steps and isinstance(network, Fits):
        networks = {loss: network.fitted(loss, steps, seed, given.at == "uniform") for loss in given.losses}
    profiles = mean_profiles(network, given.what.probe, given.what.sequences)
    return _Prepared(networks, dict(zip(given.views, profiles, strict=True)))


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
            profile = found.kernel.nan_to_num().sum(0) / len(rows)
            view[heads.layer] = view.get(heads.layer, 0) + profile

    for _, batch in chunks(split, rows, network):
        read(network, batch, of.objectives[0], see)
    short, layers = network.shape.n - int(lengths.max()), range(network.shape.layers)
    line = [F.pad(sums[0][layer], (short, short)) for layer in layers]
    return [line, [sums[1][layer] for layer in layers]] if network.shape.grid is not None else [line]


def _see(given: _Given, prepared: _Prepared, sample: Sample, add: Add) -> None:
    """Take in the numbers under (loss, prefix, name), and those of two losses under (loss, other_loss)."""
    n, known = given.what.network.shape.n, _directions(given, sample.length)
    slopes: dict[str, list[tuple[Heads, Tensor]]] = {}
    sizes: dict[tuple[str, int], Tensor] = {}
    for loss, network in prepared.networks.items():
        slopes[loss] = differentiate(network, sample.batch, loss, sample.mask(loss), given.change)
        for heads, dz in slopes[loss]:
            profiles = {prefix: of_layers[heads.layer] for prefix, of_layers in prepared.profiles.items()}
            numbers = _statistics(given, heads, dz, known, profiles, sample.order)
            sizes[loss, heads.layer] = numbers["", "gradient_norm"]
            for (prefix, name), values in numbers.items():
                short = n - sample.length if name == "descent_by_offset" and not prefix else 0
                add((loss, prefix, name), heads.layer, widened(values.numpy(), short))
    for a, b in combinations(given.losses, 2) if sample.order is None else ():
        for layer in range(len(slopes[a])):
            pair = [(heads.scores, heads.v, dz) for heads, dz in (slopes[a][layer], slopes[b][layer])]
            size = sizes[a, layer] * sizes[b, layer]
            add((a, b), layer, gradient_product(*pair) / size.where(size > 0, torch.nan))


@dataclass(frozen=True)
class _Directions:
    """The directions of sequences of one length."""

    by_view: Mapping[str, Tensor]
    """[direction, offset], unit, of all that are functions of the offset but the network's own profile."""
    column: Tensor
    """[key], unit."""
    random: tuple[Tensor, Tensor]
    """[query, 1] and [key, 1], of a unit product."""


def _directions(given: _Given, length: int) -> _Directions:
    by_view = {}
    for prefix, view in given.views.items():
        pairs = geometry_of(view, length)
        near = torch.stack([without_own_pair(one, pairs) for one in kernels(pairs, given.reach).values()])
        by_view[prefix] = unit(torch.cat([near, own_pair(pairs)[None]]), pairs)
    shape = given.what.network.shape
    pairs = geometry((length,), shape.causal)
    drawn = numpy_generator(given.what.seed, "gradients directions").standard_normal((3, shape.n))
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
    given: _Given,
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
    for prefix in given.views:
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


def _variables(given: _Given, tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the variables, over losses first."""
    level, head = given.what.level, {"head": given.what.network.shape.heads}
    sizes = {"direction": {"direction": len(given.directions)}, "subspace": {"subspace": len(SUBSPACES)}}
    made: dict[str, xr.Variable] = {}
    for prefix, view in given.views.items():
        for number in NUMBERS:
            if (given.losses[0], prefix, number.name) not in tallies.measured:
                continue
            axes = head | {
                axis: size for kind in number.axes for axis, size in (sizes | {"view": view.offsets})[kind].items()
            }
            each = []
            for loss in given.losses:
                key = (loss, prefix, number.name)
                of_loss = described(number, prefix + number.name, axes, tallies, key, level)
                each.append(of_loss | (_signal(prefix, axes, tallies, key) if number.name == "descent" else {}))
            made |= {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
        noise = dimensions(geometry(view.shape, view.causal))
        values = [noise[name] for name in SUBSPACES]
        made[f"{prefix}energy_share_of_noise"] = variable(("subspace",), values, "energy share of pure noise", "1")
    return made | (_cosines(given, head, tallies) if len(given.losses) > 1 else {})


def _signal(prefix: str, axes: Mapping[str, int], tallies: Tallies, key: tuple[str, ...]) -> dict[str, xr.Variable]:
    """Return standard error and signal-to-noise ratio of the descent."""
    over, measured = ("layer", *axes), tallies.measured
    error = measured.stack(key, lambda one: one.sd / np.sqrt(np.maximum(one.count, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = measured.stack(key, lambda one: one.mean / one.sd)
        of_nulls = [
            [draw.stack(key, lambda one: one.mean / one.sd) for draw in draws] for draws in tallies.nulls.values()
        ]
    made = {
        f"{prefix}descent_se": variable(over, error, "standard error of the mean fall", "loss"),
        f"{prefix}snr": variable(over, ratio, "signal-to-noise ratio of the fall", "1", "mean over sd of a sequence"),
    }
    if of_nulls:
        made[f"{prefix}snr_null"] = variable(("null", "draw", *over), of_nulls, "null: signal-to-noise ratio", "1")
    return made


def _cosines(given: _Given, head: Mapping[str, int], tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the cosines between the gradients of different losses; NaN of one with itself."""
    pairs = {
        frozenset(pair): described(COSINE, "cosine", head, tallies, pair, given.what.level)
        for pair in combinations(given.losses, 2)
    }
    some = next(iter(pairs.values()))
    itself = {name: one.copy(data=np.full(one.shape, np.nan)) for name, one in some.items()}
    return {
        name: xr.Variable.concat(
            [
                xr.Variable.concat([pairs.get(frozenset((a, b)), itself)[name] for b in given.losses], "other_loss")
                for a in given.losses
            ],
            "loss",
        )
        for name in some
    }


def _curvatures(given: _Given, prepared: _Prepared, rows: np.ndarray) -> dict[str, list[Moments]]:
    """Return the moments of the second derivatives along functions of the offset, in the data's own view.

    Each is a central difference of the exact gradient in float64, with a step that moves no score by more than `STEP`.
    """
    of, prefix = given.what.probe, list(given.views)[-1]
    hidden = hidden_tokens(of, given.what.seed, int(rows.max()) + 1)
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
                moments.add(_second_derivatives(given, double, batch, loss, mask, layer, prepared, prefix))
    return found


def _second_derivatives(
    given: _Given,
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
    fixed = _directions(given, length).by_view[prefix]
    pairs = geometry_of(given.views[prefix], length)
    profile = prepared.profiles[prefix][layer]
    short = (profile.shape[-1] - fixed.shape[-1]) // 2
    own = unit(without_own_pair(profile[:, short : profile.shape[-1] - short], pairs), pairs)
    second = torch.full((len(batch.inputs), heads, len(given.directions)), torch.nan, dtype=torch.float64)
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
                    one = given.change(one)
                    return replace(one, scores=one.scores.with_bias(bias)) if one.layer == layer else one

                here, dz = differentiate(network, batch, loss, mask, change)[layer]
                slopes.append(gradient_statistics(here.scores, here.v, dz).by_offset[:, head] @ f)
            second[:, head, number] = (slopes[0] - slopes[1]) / (2 * step)
    return second.numpy()


STEP = 1e-3
"""Largest change of a score, in nats, in a second derivative."""


def _curvature_variables(
    given: _Given, draws: Mapping[str, Sequence[Look]], prepared: Any, sequences: int
) -> dict[str, xr.Variable]:
    """Return the curvatures, over losses first; the permuted null has none."""
    rows = given.what.rows[:sequences]
    measured = _curvatures(given, prepared(given.what.network), rows)
    nulls = {
        kind: [_curvatures(given, prepared(one.network), rows) for one in looks if one.order is None]
        for kind, looks in draws.items()
    }
    axes = {"head": given.what.network.shape.heads, "direction": len(given.directions)}
    each = []
    for loss in given.losses:
        empty = [Tally() for _ in range(given.what.nulls)]
        tallies = Tallies(
            Tally.of(("curvature",), measured[loss]),
            {kind: [Tally.of(("curvature",), one[loss]) for one in found] or empty for kind, found in nulls.items()},
        )
        each.append(described(CURVATURE, "curvature", axes, tallies, ("curvature",), given.what.level))
    return {name: xr.Variable.concat([one[name] for one in each], "loss") for name in each[0]}
