"""Gradients measure: exact gradients of objectives with respect to the scores."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from attnprobe.errors import UsageError, choices
from attnprobe.geometry import geometry
from attnprobe.measures.driver import (
    Compute,
    Condition,
    Number,
    Request,
    Sample,
    Tallies,
    Tally,
    Target,
    View,
    check_window,
    checked_request,
    chunks,
    default_reasons,
    geometries,
    geometry_of,
    labelled,
    lengths_of,
    masked_tokens,
    mean_over_shared,
    over_sequences,
    result,
    undefined,
    views,
    widened,
)
from attnprobe.networks.base import Doubles, Fits, LeavesOut, Network, Probe, differentiate, read
from attnprobe.randomness import numpy_generator
from attnprobe.results import Reason, variable
from attnprobe.scores import Heads, alike, positions
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
"""Variables that the command prints for each head."""

ZERO = "the gradient is 0"
"""Reason for undefined shares of the gradient."""
ROUNDING = 1e-6
"""Absolute cosine of gradient and direction below which the projection is rounding, and counts as 0."""
BLIND = f"the gradient is orthogonal to the direction (|cosine| < {ROUNDING:g} in every sequence), so it has no sign"
"""Reason for undefined signs of the descent."""

NUMBERS = [
    Number(
        "descent",
        "decrease of the loss along the direction",
        "loss",
        ("direction",),
        "minus inner product of gradient and unit direction",
        unstructured="0",
    ),
    Number(
        "positive_share",
        "fraction of sequences with positive descent",
        axes=("direction",),
        method="1/2 for random signs",
        range=(0.0, 1.0),
        unstructured="1/2",
        undefined=ZERO,
    ),
    Number(
        "squared_cosine",
        "share of the gradient energy along the direction",
        axes=("direction",),
        method="squared cosine",
        range=(0.0, 1.0),
        undefined=ZERO,
    ),
    Number(
        "energy_share",
        "share of the gradient energy in the subspace",
        axes=("subspace",),
        method="squared projection",
        range=(0.0, 1.0),
        unstructured="energy_share_of_noise",
        undefined=ZERO,
    ),
    Number(
        "descent_by_offset",
        "decrease of the loss per unit of bias at the offset",
        "loss",
        ("view",),
        "minus sum of the gradient over pairs",
        unstructured="0",
    ),
    Number("gradient_norm", "norm of the score gradient", "loss", method="Frobenius norm"),
    Number(
        "mean_token_share",
        "share of the query-key map gradient that reads the mean token",
        method="query side",
        range=(0.0, 1.0),
        undefined=ZERO,
    ),
    Number(
        "rank_one_share",
        "share of the query-key map gradient in its first singular component",
        method="squared singular value",
        range=(0.0, 1.0),
        undefined=ZERO,
    ),
]
COSINE = Number(
    "cosine",
    "cosine between the gradients of two losses",
    method="per sequence, over all pairs",
    range=(-1.0, 1.0),
    unstructured="0",
    undefined="the gradient of one of the losses is 0",
)
CURVATURE = Number(
    "curvature",
    "second derivative of the loss along the direction",
    "loss",
    ("direction",),
    "central differences, functions of the offset only",
)


def gradients(
    of: Any,
    inputs: Any = None,
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
    r"""Measure the exact gradient of each objective with respect to the scores of every layer and head.

    The gradient $\partial L / \partial S$ of the mean loss of each test sequence, through all later layers, is computed
    in blocks and projected onto directions in score space. Directions are row-centred, since the softmax ignores row
    constants, and have length 1 (`attnprobe.statistics.directions`):

    - *circulant* and *toeplitz*, each *band*, *exponential* and *linear*: proximity profiles with half-width or decay
      length ``length_scale``, with and without wrapping around the sequence, orthogonal to *offset 0*; circulant ones
      only in layers without masked keys, if no tokens inside sequences are left out;
    - *offset 0*: the score of each token with itself;
    - *measured profile*: the network's own mean offset profile, orthogonal to *offset 0*;
    - *column*: a random function of the key, the positive control, to which labels are not blind;
    - *random*: a random matrix of rank one.

    All variables have dims ``loss``, ``layer`` and ``head`` and the dims in parentheses. Means over sequences:

    - ``descent`` (direction): minus the projection of the gradient. Positive if gradient descent on the loss raises the
      score along the direction; 0 in sequences in which the absolute cosine with the gradient is below 1e-6, since the
      projection is then rounding. ``descent_se``: standard error of the mean; ``snr``: mean over std, NaN if all are 0;
    - ``positive_share`` (direction): fraction of sequences with positive descent, of those in which it is not 0;
    - ``squared_cosine`` (direction): share of the gradient energy (squared norm) along the direction;
    - ``energy_share`` (subspace): share of the energy in all functions of the offset modulo n (*circulant*), of the
      offset (*toeplitz*), of the key (*column*), and the part explained by neither offset nor key (*rest*).
      ``energy_share_of_noise`` (subspace only, and layer with sliding windows): the same for white noise in the longest
      sequence, or the mean over sequences if tokens inside them are left out;
    - ``descent_by_offset`` (offset): minus the derivative of the loss with respect to a bias at each offset;
    - ``gradient_norm``: norm of the gradient;
    - ``mean_token_share``, ``rank_one_share``: shares of the energy of the gradient with respect to $W_Q W_K^\top$ that
      read the mean token of the sequence on the query side, and that are in the first singular component. Absent for
      rotary encodings, which have no single query-key map;
    - ``cosine`` (other_loss): cosine between the gradients of two objectives; absent for a single objective;
    - ``curvature`` (direction): second derivative of the loss along functions of the offset, by central differences of
      the exact gradient in float64. It distinguishes directions that are flat from those with zero slope only. Absent
      if the argument ``curvature`` is 0.

    Each of these also has ``NAME_interval`` (bound), its t-interval, ``NAME_std``, the standard deviation over
    sequences, and ``NAME_null`` (null, draw), its values under two nulls: *permuted*, the gradient entries at permuted
    positions, and *initial*, networks of the same configuration at initialisation. Exceptions: ``snr`` has only the
    nulls, ``descent_se`` and ``energy_share_of_noise`` have none of the three, and the *permuted* nulls of ``cosine``
    and ``curvature`` are NaN. For images, the variables over directions, subspaces and offsets are also computed over
    two-dimensional offsets (``row_offset``, ``column_offset``), with names that start with ``grid_``; ``curvature``
    uses these only.

    ``objective``, ``train_accuracy`` and ``test_accuracy`` (no dims) describe the checkpoint.

    An untrained output head is random, so the sign of its gradient is meaningless; use ``fit_steps`` for objectives
    that the network was not trained on.

    If special tokens are left out (`attnprobe.network`), the gradient is that of the whole softmax, between measured
    tokens and row-centred over them.

    Args:
        of: Checkpoint, PyTorch model (with ``inputs``) or `Probe` to measure.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network` for more control.
        sequences: Number of test sequences (the first ones).
        objectives: Losses to differentiate: labels, masked, next-token; by default all that apply to the network.
        at: Point of differentiation: the checkpoint's own scores, or all scores 0 (exactly uniform attention).
        fit_steps: Steps of training the output head (and, with at=uniform, the value maps) before measuring.
        length_scale: Half-width or decay length of the proximity directions, in tokens or pixels.
        curvature: Number of sequences for second derivatives; 0 for none.
        nulls: Number of draws of each null; 0 for none.
        level: Confidence level of the intervals.
        seed: Seed of masks, random directions, permutations and initial networks.
    """
    request = checked_request("gradients", of, inputs, sequences, nulls, level, seed)
    check_window(request.network, length_scale, "length_scale")
    losses = _losses(request.probe, objectives)
    if at not in ("checkpoint", "uniform"):
        raise UsageError(f"at={at!r}: must be checkpoint or uniform")
    for name, value in (("fit_steps", fit_steps), ("curvature", curvature)):
        if value < 0:
            raise UsageError(f"{name}={value}: must not be negative")
    setup = _Setup(request, losses, at, fit_steps, length_scale)
    if fit_steps and not isinstance(request.network, Fits):
        raise UsageError(f"fit_steps={fit_steps}: the output head of this network cannot be trained; must be 0")
    if curvature and not isinstance(request.network, Doubles):
        raise UsageError(f"curvature={curvature}: this network cannot compute in float64; must be 0")
    prepared = functools.lru_cache(maxsize=None)(functools.partial(_prepare, setup))

    def prepare(network: Network) -> Compute:
        return functools.partial(_add_statistics, setup, prepared(network))

    tallies, draws = over_sequences(request, prepare, passes=len(losses) * request.network.shape.layers)
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
    by_view = [geometries(request, view, None) for view in views(request.network).values()]
    shape, some_absent = request.network.shape, any(pairs.absent for pairs in by_view[0])
    masked_layers = [shape.causal or some_absent or shape.window(layer) is not None for layer in range(shape.layers)]
    if any(masked_layers):
        left_out["circulant"] = "undefined (NaN) or absent where keys are masked"
    if not all(pairs.shares_only_linear for of_view in by_view for pairs in of_view):
        left_out["energy_share_of_noise"] = (
            "rest: unknown (NaN) on a grid, or with gaps longer than every run of tokens"
        )
    if (losses[0], "", "mean_token_share") not in tallies.measured:
        left_out["mean_token_share, rank_one_share"] = "the scores do not come from a single query-key map"
    facts = {
        "at": at,
        "fit_steps": fit_steps,
        "length_scale": length_scale,
        "curvature_sequences": curvature,
        "table": TABLE,
    }
    return result(request, variables, coordinates, list(draws), left_out, _reasons(masked_layers), **facts)


def _reasons(masked_layers: Sequence[bool]) -> list[Reason]:
    """Return the reasons for undefined statistics of gradients; ``masked_layers``: layers in which keys are masked."""

    def undefined_descent(measured: xr.Dataset, name: str) -> xr.DataArray:
        prefix = "grid_" if name.startswith("grid_") else ""
        return measured[f"{prefix}descent{'_null' if name.endswith('_null') else ''}"].isnull()

    def along(*names: str) -> Callable[[xr.Dataset, str], xr.DataArray]:
        def where(measured: xr.Dataset, name: str) -> xr.DataArray:
            directions = measured["direction"]
            is_named = directions.copy(data=[str(direction).startswith(names) for direction in directions.values])
            return is_named if name.startswith("curvature") else is_named & undefined_descent(measured, name)

        return where

    def circulant(measured: xr.Dataset, name: str) -> xr.DataArray:
        return (measured["subspace"] == "circulant") & measured["layer"].copy(data=masked_layers)

    def without_directions(measured: xr.Dataset, name: str) -> xr.DataArray:
        return measured[name].isnull().all("subspace")

    def other_functions(measured: xr.Dataset, name: str) -> xr.DataArray:
        return measured["direction"].isin(["column", "random"])

    def permuted(measured: xr.Dataset, name: str) -> xr.DataArray:
        return measured["null"] == "permuted"

    def blind(measured: xr.Dataset, name: str) -> xr.DataArray:
        tail = "_null" if name.endswith("_null") else ""
        descent = measured[f"{'grid_' if name.startswith('grid_') else ''}descent{tail}"]
        return (descent == 0) & (measured[f"gradient_norm{tail}"] > 0)

    of_directions, of_subspaces = "descent positive_share squared_cosine snr curvature", "energy_share*"
    masked = "some keys are masked, so that shifts around the sequence do not exist"
    return [
        Reason("cosine_null curvature_null", "not computed for permuted gradients", permuted),
        Reason("cosine", "a loss and itself", lambda measured, name: measured["loss"] == measured["other_loss"]),
        Reason("curvature", "the direction is no function of the offset", other_functions),
        Reason(
            of_directions,
            masked,
            lambda measured, name: along("circulant")(measured, name) & measured["layer"].copy(data=masked_layers),
        ),
        Reason(of_directions, "the mean offset profile is constant", along("measured")),
        Reason(of_directions, "every query sees only its own token", along("column", "random", "offset 0")),
        Reason(of_directions, "the direction is the same for all keys of each query", along("toeplitz", "circulant")),
        Reason("energy_share_of_noise", "every query sees only its own token", without_directions),
        Reason(of_subspaces, masked, circulant),
        Reason(
            "energy_share_of_noise",
            "unknown on a grid, or with gaps longer than every run of tokens",
            lambda measured, name: measured["subspace"] == "rest",
        ),
        Reason("positive_share snr", BLIND, blind),
        *default_reasons([*NUMBERS, COSINE]),
        Reason("snr", "fewer than two sequences have a value", _few_sequences),
        Reason("snr", "the descent is the same in all sequences"),
    ]


def _few_sequences(measured: xr.Dataset, name: str) -> Any:
    """Return where the standard deviation of the descent is undefined too; it is unknown for nulls."""
    return False if name.endswith("_null") else measured[name.replace("snr", "descent_std")].isnull()


@dataclass(frozen=True)
class _Setup:
    """Settings for the measured network and the networks of the nulls."""

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
        """Return the heads with their own scores, or with all scores set to 0."""
        return replace(heads, scores=heads.scores.flat()) if self.at == "uniform" else heads


@dataclass(frozen=True)
class _Prepared:
    """Networks to differentiate, one per loss (with trained output heads if requested), and offset profiles."""

    networks: Mapping[str, Network]
    profiles: Mapping[str, list[Tensor]]
    """For each view prefix, [head, offset] in each layer: mean offset profile of the longest sequences."""


def _losses(probe: Probe, requested: tuple[str, ...]) -> tuple[str, ...]:
    """Return the requested objectives, by default all that apply; raise `UsageError` if one does not apply."""
    if probe.network.shape.prefix:
        raise UsageError(
            "pooling='cls': the gradient of the labels reaches the last layer's scores only through the row of [CLS], "
            "which has no offsets; must be mean, max or last"
        )
    for name in requested:
        if name not in probe.objectives:
            causal = name in OBJECTIVES and OBJECTIVES[name].needs_causal
            why = " (it requires causal attention)" if causal else ""
            problem = f"does not apply to this network{why}" if name in OBJECTIVES else "is unknown"
            raise UsageError(f"objectives={name!r}: {problem}; {choices(name, probe.objectives)}")
    return tuple(objective for objective in probe.objectives if objective in requested or not requested)


def _prepare(setup: _Setup, network: Network) -> _Prepared:
    """Return the network and its profiles, with output heads trained for ``fit_steps`` steps."""
    steps, seed = setup.fit_steps, setup.request.seed
    networks: dict[str, Network] = dict.fromkeys(setup.losses, network)
    if steps and isinstance(network, Fits):
        networks = {loss: network.fitted(loss, steps, seed, setup.at == "uniform") for loss in setup.losses}
    profiles = mean_profiles(network, setup.request.probe, setup.request.sequences)
    return _Prepared(networks, dict(zip(setup.views, profiles, strict=True)))


def mean_profiles(network: Network, of: Probe, most: int) -> list[list[Tensor]]:
    """Return the mean offset profile of each layer, [head, offset], over the ``most`` first longest training sequences.

    The first list is over 1-D offsets; for images, a second list is over 2-D offsets. Profiles are least-squares fits
    with a constant per query, at the offsets of the longest sequence that the network accepts; 0 at offsets without
    pairs.
    """
    split = of.task.train
    lengths = lengths_of(split)
    rows = np.flatnonzero(lengths == lengths.max())[:most]
    layers, found = range(network.shape.layers), list(views(network).values())
    moments = [[Moments() for _ in layers] for _ in found]

    def add_profiles(heads: Heads) -> None:
        statistics = score_statistics(heads.scores)
        for view, of_view in zip(found, moments, strict=True):
            profile = (statistics if len(view.shape) == 2 else statistics.in_line()).offset_profile.numpy()
            if heads.scores.real is not None:  # profiles are defined up to a constant
                profile = profile - mean_over_shared(profile, geometry_of(view, heads.scores.shape[2]))
            of_view[heads.layer].add(profile)

    for _, batch in chunks(split, rows, network):
        read(network, batch, of.objectives[0], add_profiles)
    profiles = [[torch.from_numpy(one.mean).nan_to_num() for one in of_view] for of_view in moments]
    missing = network.shape.n - int(lengths.max())
    return [[F.pad(profile, (missing, missing)) for profile in profiles[0]], *profiles[1:]]


def _add_statistics(setup: _Setup, prepared: _Prepared, sample: Sample, targets: Sequence[Target]) -> None:
    """Add the statistics of each loss under (loss, prefix, name), and the cosines under (loss, other_loss)."""
    directions = functools.cache(functools.partial(_directions, setup, sample.length))
    groups = _alike(setup.request.network, sample.batch)
    gradients_by_loss: dict[str, list[tuple[Heads, Tensor]]] = {}
    norms: dict[tuple[str, int], Tensor] = {}
    for loss, network in prepared.networks.items():
        gradients_by_loss[loss] = differentiate(network, sample.batch, loss, sample.mask(loss), setup.change)
        for heads, dz in gradients_by_loss[loss]:
            profiles = {prefix: layer_profiles[heads.layer] for prefix, layer_profiles in prepared.profiles.items()}
            window = setup.request.network.shape.window(heads.layer)
            for target in targets:
                parts = []
                for rows, absent in groups:
                    of_rows, of_dz = (heads, dz) if absent is None else (heads.of_rows(rows), dz[rows.to(dz.device)])
                    parts.append(_statistics(setup, of_rows, of_dz, directions(window, absent), profiles, target.order))
                sequence = torch.cat([rows for rows, _ in groups]).argsort()
                statistics = {name: torch.cat([part[name] for part in parts])[sequence] for name in parts[0]}
                if window is not None or groups[0][1] is not None:  # also in rows without masked keys
                    for prefix in setup.views:
                        statistics[prefix, "energy_share"][..., SUBSPACES.index("circulant")] = torch.nan
                if target.order is None:
                    norms[loss, heads.layer] = statistics["", "gradient_norm"]
                for (prefix, name), values in statistics.items():
                    of_line = name == "descent_by_offset" and not prefix
                    missing = setup.request.network.shape.n - sample.length if of_line else 0
                    target.add((loss, prefix, name), heads.layer, widened(values.numpy(), missing))
                target.advance()
    for target in targets:
        for a, b in combinations(prepared.networks, 2) if target.order is None else ():
            for pair in zip(gradients_by_loss[a], gradients_by_loss[b], strict=True):
                layer, (first, second) = pair[0][0].layer, [(heads.scores, heads.v, dz) for heads, dz in pair]
                norm_product = norms[a, layer] * norms[b, layer]
                cosine = gradient_product(first, second) / norm_product.where(norm_product > 0, torch.nan)
                target.add((a, b), layer, cosine)


def _alike(network: Network, batch: Batch) -> list[tuple[Tensor, tuple[int, ...] | None]]:
    """Return the rows that measure the same tokens, with the absent ones; None if no token of any batch is left out."""
    left_out = network.left_out(batch) if isinstance(network, LeavesOut) else None
    if left_out is None:
        return [(torch.arange(len(batch.inputs)), None)]
    return [(rows, positions(tokens)) for rows, tokens in alike(left_out)]


@dataclass(frozen=True)
class _Directions:
    """Directions for sequences of one length and the same measured tokens, and layers of one window."""

    by_view: Mapping[str, Tensor]
    """[direction, offset]: unit functions of the offset, except the measured profile."""
    column: Tensor
    """[key]: unit function of the key."""
    random: tuple[Tensor, Tensor]
    """[query, 1] and [key, 1]: factors of a unit matrix of rank one."""


def _directions(
    setup: _Setup, length: int, window: int | None = None, absent: tuple[int, ...] | None = None
) -> _Directions:
    by_view = {}
    for prefix, view in setup.views.items():
        pairs = geometry_of(view, length, window, absent or ())
        named = proximity_profiles(pairs, setup.length_scale)
        proximity = torch.stack([without_own_pair(profile, pairs) for profile in named.values()])
        if window is not None or absent is not None:
            proximity[torch.tensor([name.startswith("circulant") for name in named])] = torch.nan
        by_view[prefix] = unit(torch.cat([proximity, own_pair(pairs)[None]]), pairs)
    shape = setup.request.network.shape
    pairs = geometry((length,), shape.causal, window, absent or ())
    draws = numpy_generator(setup.request.seed, "gradients directions").standard_normal((3, shape.n))
    column, left, right = torch.from_numpy(draws[:, :length])

    def centred_squares(u: Tensor) -> Tensor:
        """Return the sum of squares of u over the visible keys of each query, centred over these keys."""
        return pairs.sum_over_keys(u.square()) - pairs.mean_over_keys(pairs.sum_over_keys(u).square())

    def normalised(x: Tensor, squared_norm: Tensor) -> Tensor:
        """Normalise x; 0 for a sequence of one token, which has no such direction."""
        return torch.where(squared_norm > 0, x / squared_norm.sqrt(), 0.0)

    column = normalised(column, centred_squares(column).sum())
    left = normalised(left, (left.square() * centred_squares(right)).sum())
    return _Directions(by_view, column, (left[:, None], right[:, None]))


def _statistics(
    setup: _Setup,
    heads: Heads,
    dz: Tensor,
    directions: _Directions,
    profiles: Mapping[str, Tensor],
    order: Tensor | None,
) -> dict[tuple[str, str], Tensor]:
    """Return the statistics, [sequence, head, ...], by view prefix and name."""
    scores = replace(heads.scores, order=None if order is None else order.to(dz.device))
    left, right = (x.to(heads.v) for x in directions.random)
    grid_statistics = gradient_statistics(scores, heads.v, dz, [(left, right)], heads.inputs)
    norm = grid_statistics.square.sqrt()
    values_by_name: dict[tuple[str, str], Tensor] = {("", "gradient_norm"): norm}
    for prefix in setup.views:
        statistics = grid_statistics if prefix else grid_statistics.in_line()
        profile = profiles[prefix]
        excess = (profile.shape[-1] - statistics.by_offset.shape[-1]) // 2
        profile = profile[:, excess : profile.shape[-1] - excess]
        profile = unit(without_own_pair(profile, statistics.geometry), statistics.geometry)
        fixed_directions = directions.by_view[prefix]
        # In a short sequence a band may cover all offsets and is then undefined (NaN).
        along_fixed = statistics.along_offsets(fixed_directions.nan_to_num()).where(
            fixed_directions.isfinite().all(-1), torch.nan
        )
        along_profile = (statistics.by_offset * profile).sum(-1)  # NaN if the profile is constant
        along_column = statistics.by_key @ directions.column
        along_column = along_column.where(directions.column.any(), torch.nan)
        along_random = grid_statistics.along[..., 0].where(directions.random[0].any(), torch.nan)
        descent = -torch.cat([along_fixed, torch.stack([along_profile, along_column, along_random], dim=-1)], dim=-1)
        squared_cosine = (descent / norm.where(norm > 0, torch.nan)[..., None]).square()
        descent = torch.where(squared_cosine < ROUNDING**2, 0.0, descent)
        has_sign = descent.isfinite() & (descent != 0)
        values_by_name |= {
            (prefix, "descent"): descent,
            (prefix, "positive_share"): (descent > 0).double().where(has_sign, torch.nan),
            (prefix, "squared_cosine"): squared_cosine,
            (prefix, "energy_share"): energy_shares(statistics),
            (prefix, "descent_by_offset"): -statistics.by_offset,
        }
    if grid_statistics.bilinear is not None and heads.inputs is not None:
        values_by_name |= {
            ("", name): values for name, values in _map_shares(grid_statistics.bilinear, heads.inputs).items()
        }
    return values_by_name


def _map_shares(gradient: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """Return the energy shares of the gradient with respect to the query-key map, [batch, head, d_model, d_model]."""
    norm = torch.linalg.matrix_norm(gradient)
    norm = norm.where(norm > 0, torch.nan)
    mean_token = F.normalize(inputs.double().mean(1).cpu(), dim=-1)
    reading_mean = (mean_token[:, None, None] @ gradient)[..., 0, :]
    # Normalised, since eigenvalues of tiny numbers would be rounding errors; the gradient is as precise as the inputs.
    normalised = (gradient / norm[..., None, None]).nan_to_num().to(inputs.dtype)
    first_energy = torch.linalg.eigvalsh(normalised @ normalised.mT)[..., -1].double()
    return {
        "mean_token_share": (reading_mean / norm[..., None]).square().sum(-1),
        "rank_one_share": first_energy.where(norm.isfinite(), torch.nan),
    }


def _variables(setup: _Setup, tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the variables, with ``loss`` as the first dim."""
    level, head = setup.request.level, {"head": setup.request.network.shape.heads}
    sizes = {"direction": {"direction": len(setup.directions)}, "subspace": {"subspace": len(SUBSPACES)}}
    variables: dict[str, xr.Variable] = {}
    for prefix, view in setup.views.items():
        for number in NUMBERS:
            if (setup.losses[0], prefix, number.name) not in tallies.measured:
                continue
            axes = head | {
                axis: size for kind in number.axes for axis, size in (sizes | {"view": view.offsets})[kind].items()
            }
            per_loss = []
            for loss in setup.losses:
                key = (loss, prefix, number.name)
                loss_variables = labelled(number, prefix + number.name, axes, tallies, key, level)
                per_loss.append(
                    loss_variables | (_signal(prefix, axes, tallies, key) if number.name == "descent" else {})
                )
            variables |= {
                name: xr.Variable.concat([loss_variables[name] for loss_variables in per_loss], "loss")
                for name in per_loss[0]
            }
        shape = setup.request.network.shape
        noise_shares = [_noise_shares(setup.request, view, window) for window in shape.windows or (None,)]
        values = np.array([[shares[name] for name in SUBSPACES] for shares in noise_shares])
        variables[f"{prefix}energy_share_of_noise"] = variable(
            ("layer", "subspace") if shape.windows else ("subspace",),
            values if shape.windows else values[0],
            "energy share of white noise",
            "1",
        )
    return variables | (_cosines(setup, head, tallies) if len(setup.losses) > 1 else {})


def _noise_shares(request: Request, view: View, window: int | None) -> dict[str, float]:
    """Return the energy shares of white noise in the longest sequence, or their mean if tokens inside are left out."""
    by_sequence = geometries(request, view, window)
    if not any(pairs.absent for pairs in by_sequence):
        return dimensions(geometry_of(view, request.network.shape.n, window))
    shares = [dimensions(pairs) for pairs in by_sequence]
    return {name: float(np.mean([one[name] for one in shares])) for name in SUBSPACES}


def _signal(prefix: str, axes: Mapping[str, int], tallies: Tallies, key: tuple[str, ...]) -> dict[str, xr.Variable]:
    """Return standard error and signal-to-noise ratio of the descent."""
    dims, measured = ("layer", *axes), tallies.measured
    error = measured.stack(key, lambda moments: moments.std / np.sqrt(np.maximum(moments.count, 1)))
    ratio = measured.stack(key, _ratio)
    null_ratios = [[draw.stack(key, _ratio) for draw in draws] for draws in tallies.nulls.values()]
    variables = {
        f"{prefix}descent_se": variable(dims, error, "standard error of the descent", "loss"),
        f"{prefix}snr": variable(
            dims, ratio, "signal-to-noise ratio of the descent", "1", "mean over std over sequences"
        ),
    }
    if null_ratios:
        variables[f"{prefix}snr_null"] = variable(
            ("null", "draw", *dims), null_ratios, "null: signal-to-noise ratio of the descent", "1"
        )
    return variables


def _ratio(moments: Moments) -> np.ndarray:
    """Return mean over std; NaN without variation."""
    return moments.mean / np.where(moments.std > 0, moments.std, np.nan)


def _cosines(setup: _Setup, head: Mapping[str, int], tallies: Tallies) -> dict[str, xr.Variable]:
    """Return the cosines between the gradients of different losses; NaN between a loss and itself."""
    variables_by_pair = {
        frozenset(pair): labelled(COSINE, "cosine", head, tallies, pair, setup.request.level)
        for pair in combinations(setup.losses, 2)
    }
    example = next(iter(variables_by_pair.values()))
    diagonal = {name: cosine.copy(data=np.full(cosine.shape, np.nan)) for name, cosine in example.items()}
    return {
        name: xr.Variable.concat(
            [
                xr.Variable.concat(
                    [variables_by_pair.get(frozenset((a, b)), diagonal)[name] for b in setup.losses], "other_loss"
                )
                for a in setup.losses
            ],
            "loss",
        )
        for name in example
    }


def _curvatures(setup: _Setup, prepared: _Prepared, rows: np.ndarray) -> dict[str, list[Moments]]:
    """Return the moments of the second derivatives along functions of the offset (2-D offsets for images).

    Each is a central difference of the exact gradient in float64, with a step that changes no score by more than
    `STEP`.
    """
    probe, prefix = setup.request.probe, list(setup.views)[-1]
    masked = masked_tokens(probe, setup.request.seed, int(rows.max()) + 1)
    moments_by_loss = {}
    for loss, network in prepared.networks.items():
        assert isinstance(network, Doubles)
        double = network.in_double()
        moments_by_loss[loss] = [Moments() for _ in range(double.shape.layers)]
        for indices, batch in chunks(probe.task.test, rows, double):
            inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
            mask = None
            if OBJECTIVES[loss].masks_tokens:
                mask = torch.from_numpy(masked[rows[indices], : inputs.shape[1]]).to(inputs.device)
            batch = replace(batch, inputs=inputs)
            for group, absent in _alike(double, batch):
                of_group = replace(batch, inputs=inputs[group], labels=batch.labels[group])
                of_mask = None if mask is None else mask[group]
                for layer, moments in enumerate(moments_by_loss[loss]):
                    moments.add(
                        _second_derivatives(setup, double, of_group, loss, of_mask, layer, prepared, prefix, absent)
                    )
    return moments_by_loss


def _second_derivatives(
    setup: _Setup,
    network: Network,
    batch: Batch,
    loss: str,
    mask: Tensor | None,
    layer: int,
    prepared: _Prepared,
    prefix: str,
    absent: tuple[int, ...] | None,
) -> np.ndarray:
    """Return the second derivatives with respect to the scores of one layer, [sequence, head, direction]."""
    length, heads = batch.inputs.shape[1], network.shape.heads
    window = network.shape.window(layer)
    fixed_directions = _directions(setup, length, window, absent).by_view[prefix]
    pairs = geometry_of(setup.views[prefix], length, window, absent or ())
    profile = prepared.profiles[prefix][layer]
    excess = (profile.shape[-1] - fixed_directions.shape[-1]) // 2
    profiles = unit(without_own_pair(profile[:, excess : profile.shape[-1] - excess], pairs), pairs)
    second = torch.full((len(batch.inputs), heads, len(setup.directions)), torch.nan, dtype=torch.float64)
    for head in range(heads):
        for index, direction in enumerate(torch.cat([fixed_directions, profiles[head, None]])):
            if not direction.isfinite().all():
                continue
            step = STEP / float(direction.abs().max())
            derivatives = []
            for sign in (1, -1):
                bias = torch.zeros(heads, len(direction), dtype=torch.float64)
                bias[head] = sign * step * direction
                bias = bias.to(batch.inputs.device)

                def change(current: Heads, bias: Tensor = bias) -> Heads:
                    current = setup.change(current)
                    return (
                        replace(current, scores=current.scores.with_bias(bias)) if current.layer == layer else current
                    )

                changed_heads, dz = differentiate(network, batch, loss, mask, change)[layer]
                derivatives.append(
                    gradient_statistics(changed_heads.scores, changed_heads.v, dz).by_offset[:, head] @ direction
                )
            second[:, head, index] = (derivatives[0] - derivatives[1]) / (2 * step)
    return second.numpy()


STEP = 1e-3
"""Largest change of a score in the finite differences of the second derivatives."""


def _curvature_variables(
    setup: _Setup, draws: Mapping[str, Sequence[Condition]], prepared: Any, sequences: int
) -> dict[str, xr.Variable]:
    """Return the curvature variables, with ``loss`` as the first dim; the permuted null is NaN."""
    rows = setup.request.rows[:sequences]
    measured = _curvatures(setup, prepared(setup.request.network), rows)
    nulls = {
        kind: [_curvatures(setup, prepared(condition.network), rows) for condition in passes if condition.order is None]
        for kind, passes in draws.items()
    }
    axes = {"head": setup.request.network.shape.heads, "direction": len(setup.directions)}
    per_loss = []
    for loss in setup.losses:
        empty = [Tally() for _ in range(setup.request.nulls)]
        tallies = Tallies(
            Tally.of(("curvature",), measured[loss]),
            {
                kind: [Tally.of(("curvature",), draw[loss]) for draw in draws_of_kind] or empty
                for kind, draws_of_kind in nulls.items()
            },
        )
        per_loss.append(labelled(CURVATURE, "curvature", axes, tallies, ("curvature",), setup.request.level))
    return {
        name: xr.Variable.concat([loss_variables[name] for loss_variables in per_loss], "loss") for name in per_loss[0]
    }
