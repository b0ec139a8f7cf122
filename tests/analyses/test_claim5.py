"""Claim 5: the table is computed from the cases, and the verdict follows the rule."""

import blind_cases
import claim5_blindness as claim
import numpy as np
import pytest
import torch
from autocovariance import autocovariance, correlation

from attnprobe.figures.style import WIDTH
from attnprobe.geometry import geometry
from attnprobe.results import dataset, variable
from attnprobe.statistics import Scores, gradient_statistics
from attnprobe.statistics.directions import SUBSPACES, energy_shares
from attnprobe.tasks import Split

SEEDS, TASKS, STEPS = (11, 12, 13), ("pairs", "digits"), (0, 5, 100)


def test_the_autocovariance_is_that_of_the_definition_and_finds_the_distance_of_copies():
    tokens = np.random.default_rng(0).integers(0, 3, (400, 10))
    tokens[:, 3:] = np.where(np.random.default_rng(1).random((400, 7)) < 0.5, tokens[:, :-3], tokens[:, 3:])
    size, null = autocovariance(Split(tokens, np.zeros(400, int)), 4)
    one_hot = (tokens[..., None] == np.arange(3)).astype(float)
    covariance = [
        sum(np.cov(one_hot[:, i].T, one_hot[:, i + d].T, ddof=0)[:3, 3:] for i in range(10 - d)) / (10 - d)
        for d in range(1, 5)
    ]
    np.testing.assert_allclose(size, [np.sqrt(np.square(of_distance).sum()) for of_distance in covariance])
    assert size.argmax() == 2 and size[2] > 5 * null.max() and (np.delete(size, 2) < 3 * null.max()).all()
    kernels = np.stack([size, -size, size**0 + [0, 0, 0, 1e-9]])
    np.testing.assert_allclose(correlation(kernels, size), [1, -1, np.corrcoef([0, 0, 0, 1], size)[0, 1]], rtol=1e-5)


@pytest.mark.parametrize("profile", blind_cases.PROFILES.values(), ids=blind_cases.PROFILES)
def test_the_visible_share_is_the_energy_of_the_projection_on_column_directions(profile):
    n = 12
    values, place = profile(geometry((n,)).distance), torch.arange(n)
    dense = values[place - place[:, None] + n - 1]
    columns = torch.stack([row.expand(n, n).flatten() for row in torch.eye(n).double() - 1 / n], dim=1)
    centred = (dense - dense.mean(1, keepdim=True)).flatten()
    seen = columns @ torch.linalg.pinv(columns) @ centred
    assert blind_cases.visible_share(values) == pytest.approx(float(seen @ seen / (centred @ centred)), rel=1e-10)


def test_the_visible_share_of_short_profiles_falls_with_the_squared_length_but_not_of_a_linear_one():
    found = blind_cases.of_profiles()
    powers = dict(zip(blind_cases.PROFILES, found["visible_power"].values, strict=True))
    assert powers["exponential"] == pytest.approx(-2, abs=0.05)
    assert powers["band"] == pytest.approx(-2, abs=0.05)
    linear = found["visible_share"].values[list(blind_cases.PROFILES).index("linear")]
    assert linear == pytest.approx(np.full(len(blind_cases.LENGTHS), 1 / 9), rel=0.01)


def test_the_circulant_share_agrees_with_the_engine_and_is_1_for_a_circulant():
    q, k, v, dz = torch.randn(4, 2, 3, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = (q @ k.mT / 2).requires_grad_()
    gradient = torch.autograd.grad(((scores.softmax(-1) @ v) * dz).sum(), scores)[0]
    engine = energy_shares(gradient_statistics(Scores(q, k), v, dz))[..., SUBSPACES.index("circulant")]
    share, noise = blind_cases.invisible_share("circulant", gradient, torch.zeros(2, 10, 1))
    assert share == pytest.approx(float(engine.mean()), rel=1e-10) and noise == 1 / 10
    planted = blind_cases.circulant(torch.arange(10).double().cos()).expand(2, 3, 10, 10)
    assert blind_cases.invisible_share("circulant", planted, torch.zeros(2, 10, 1))[0] == pytest.approx(1)


@pytest.mark.parametrize("name", blind_cases.CASES)
def test_a_case_is_blind_exactly_where_the_theory_says_so(name):
    case = blind_cases.CASES[name]
    share, noise, change = blind_cases.seen(case, seed=3)
    assert 0 < noise < 1
    if case.blind:
        assert share < 1e-28 and not change > 1e-14
    else:
        assert share > 1e-5 and not change < 1e-5


def test_content_scores_have_the_requested_std_and_a_proportional_effect():
    def share(size):
        case = blind_cases.Case(False, content=size)
        scores = blind_cases.losses(blind_cases.network(case, seed=3), case, seed=3)[1]
        assert float(scores.detach().std()) == pytest.approx(size)
        return blind_cases.seen(case, seed=3)[0]

    assert share(2e-3) / share(1e-3) == pytest.approx(4, rel=0.02)  # an energy


def test_the_signal_and_its_null_count_both_signs():
    rest = ("loss", "layer", "head", "direction")
    shape = (1, 1, 2, len(claim.DIRECTIONS))
    snr = np.broadcast_to(np.array([3.0, -4.0])[:, None], shape)
    draws = np.broadcast_to(np.array([1.0, -1.0, 1.0, -1.0])[:, None, None, None, None], (4, *shape))
    nulls = np.stack([draws, np.full_like(draws, np.nan)])
    variables = {
        "snr": variable(rest, snr, "", "1"),
        "snr_null": variable(("null", "draw", *rest), nulls, "", "1"),
    }
    result = dataset(variables, {"direction": list(claim.DIRECTIONS), "null": ["permuted", "initial"]}, {})
    assert claim.signal(result).values == pytest.approx(np.sqrt(12.5))
    assert (claim.raised(result) == 0.5).all()
    assert claim.permuted_signal(result).values == pytest.approx(1)


def make_result(lead=0.5, labels_see=1e-30, exceptions=1e-3, also=(), raised=1.0):
    """Return a result in which the SNR of one masked token along proximity leads by 0.5, on the last task by `lead`.

    It leads as much along the directions `also`, and raises proximity in a fraction `raised` of the heads.
    """
    rng = np.random.default_rng(0)
    losses = len(claim.LOSSES)
    snr = np.repeat(0.2 + 0.05 * rng.random((len(TASKS), len(SEEDS), losses, 1)), len(claim.DIRECTIONS), axis=3)
    along = [claim.DIRECTIONS.index(name) for name in (claim.PROXIMITY, *also)]
    snr[0, :, 1, along] += 0.5
    snr[1, :, 1, along] += lead
    blind = np.array([case.blind for case in blind_cases.CASES.values()])
    share = np.where(blind, labels_see, exceptions)[:, None].repeat(len(SEEDS), 1)
    ones = np.ones((len(TASKS), len(SEEDS), len(claim.DIRECTIONS)))
    circulant = [case.invisible == "circulant" for case in blind_cases.CASES.values()]
    change = np.where(np.array(circulant)[:, None], np.sqrt(share), np.nan)
    shape = (len(TASKS), len(claim.STAGES), len(STEPS))
    reached = np.broadcast_to(np.array(STEPS, dtype=float), shape).copy()
    reached[0, 2, 2] = np.nan
    variables = {
        **blind_cases.of_profiles(),
        "blind": variable(("case",), blind, "", ""),
        "invisible_share": variable(("case", "seed"), share, "", "1"),
        "invisible_share_of_noise": variable(("case",), np.full(len(blind), 1 / 32), "", "1"),
        "loss_change": variable(("case", "seed"), change, "", "1"),
        "snr": variable(("task", "seed", "loss", "direction"), snr, "", "1"),
        "snr_permuted": variable(("task", "seed", "loss", "direction"), 0.3 * snr, "", "1"),
        "snr_of_noise": variable(("task",), [0.1] * len(TASKS), "", "1"),
        "raised": variable(
            ("task", "seed", "loss", "direction"), np.stack([0.25 * ones, raised * ones, 0 * ones], 2), "", "1"
        ),
        "positive_share": variable(("task", "seed", "loss", "direction"), np.full(snr.shape, 0.625), "", "1"),
        "energy_share": variable(
            ("task", "seed", "loss", "subspace"), rng.random((len(TASKS), len(SEEDS), losses, len(SUBSPACES))), "", "1"
        ),
        "energy_share_of_noise": variable(("task", "subspace"), np.full((len(TASKS), len(SUBSPACES)), 0.1), "", "1"),
        "training_step": variable(("task", "stage", "checkpoint"), reached, "", ""),
        "training_snr": variable(
            ("task", "stage", "checkpoint", "seed"),
            np.where(np.isnan(reached)[..., None], np.nan, 0.1 + rng.random((*shape, len(SEEDS)))),
            "",
            "1",
        ),
    }
    by_distance = np.arange(len(claim.DISTANCES), 0, -1.0) + rng.random((len(SEEDS), len(claim.DISTANCES)))
    over, stages = ("task", "seed", "distance"), len(claim.STAGES)
    variables |= {
        "autocovariance": variable(over, np.stack([by_distance] * len(TASKS)), "", "1"),
        "kernel": variable(
            ("task", "stage", *over[1:]),
            np.broadcast_to(by_distance, (len(TASKS), stages, *by_distance.shape)),
            "",
            "1",
        ),
        "agreement": variable(("task", "stage", "seed"), np.ones((len(TASKS), stages, len(SEEDS))), "", "1"),
        "agreement_before": variable(("task", "seed"), np.zeros((len(TASKS), len(SEEDS))), "", "1"),
    }
    coordinates = {
        "distance": list(claim.DISTANCES),
        "case": list(blind_cases.CASES),
        "profile": list(blind_cases.PROFILES),
        "length": list(blind_cases.LENGTHS),
        "task": list(TASKS),
        "seed": list(SEEDS),
        "loss": list(claim.LOSSES),
        "direction": list(claim.DIRECTIONS),
        "subspace": list(SUBSPACES),
        "stage": list(claim.STAGES),
    }
    return dataset(variables, coordinates, {"fit_steps": 7, "proximity": claim.PROXIMITY, "length_scale": claim.LENGTH})


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "holds"),
        ({"lead": -0.15}, "holds in part"),  # labels have more signal on one task
        ({"lead": 0.0}, "holds in part"),  # the interval contains 0
        ({"also": ("column",)}, "does not hold here"),  # the same along a function of the key
        ({"also": ("random",)}, "does not hold here"),  # the same along a random direction
        ({"raised": 0.5}, "does not hold here"),  # no sign
        ({"raised": 0.25}, "does not hold here"),  # against proximity
        ({"labels_see": 1e-9}, "does not hold here"),
        ({"exceptions": 1e-11}, "does not hold here"),
    ],
)
def test_the_verdict_follows_the_rule(options, expected):
    conclusion = claim.conclude(make_result(**options))
    assert conclusion.verdict == expected and conclusion.seeds == len(SEEDS)
    assert all(
        "autocovariance of the data after self-pretraining +1.00 (+1.00 to +1.00)" in part.found
        for part in conclusion.parts[1:]
    )
    assert all(f"{task} +0." in conclusion.effect or f"{task} -0." in conclusion.effect for task in TASKS)


def test_the_figure_shows_every_seed_and_the_caption_gives_their_number():
    result = make_result()
    figure = claim.draw(result)
    assert figure.get_size_inches()[0] <= WIDTH
    figure.draw_without_rendering()
    titles = {axis.get_title() for part in figure.subfigs for axis in part.axes}
    assert set(TASKS) <= titles
    training = {axis.get_title(): axis for axis in figure.subfigs[3].axes}
    for task in TASKS:
        shown = training[task].lines[0].get_ydata()
        assert shown == pytest.approx(result["training_snr"].sel(task=task).isel(stage=0).mean("seed").values)
    cases = figure.subfigs[0].axes[0]
    drawn = sorted(x for dots in cases.collections[: len(blind_cases.CASES)] for x in dots.get_offsets()[:, 0])
    assert drawn == pytest.approx(sorted(result["invisible_share"].values.flatten()))
    assert f"{len(SEEDS)} seeds" in claim.caption(result) and "7 steps" in claim.caption(result)
