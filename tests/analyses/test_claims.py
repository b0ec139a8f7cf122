"""Analyses of the claims: configurations are valid, verdicts follow the rules, figures need only the results."""

import json
from dataclasses import replace

import canvas
import canvas_search
import claim1_spt_gain
import claim3_query_key
import claim4_proximity
import claim6_encodings
import claim7_objectives
import claim8_real_images
import claim9_how_it_arises
import claim10_mnist
import numpy as np
import pandas as pd
import pytest
import run
import scipy.stats
import tables
import xarray as xr
from conclusion import said, said_share, verdict
from lab import FOLDER, Lab
from settings import CHOSEN, SEARCHED, SEEDS, SMALL, TASKS, candidates, setting

from attnprobe.errors import UsageError
from attnprobe.results import open_result

RESULTS = sorted(run.CLAIMS.keys() & {path.stem for path in (FOLDER / "results").glob("*.nc")})


STRICTER = ("claim6_encodings", "claim8_real_images")
"""Claims whose verdict follows from more than the number of parts that hold."""


class Planned(Exception):
    """Raised with the requested configurations, instead of training."""


class Listening(Lab):
    def train(self, configs):
        raise Planned(configs)


@pytest.fixture(scope="module", params=RESULTS)
def committed(request):
    return request.param, open_result(FOLDER / f"results/{request.param}.nc")


@pytest.mark.parametrize("scale", SEEDS)
@pytest.mark.parametrize("name", run.CLAIMS)
def test_requested_configurations_are_valid_at_every_scale(name, scale):
    if name == "claim9_how_it_arises":
        try:
            canvas_search.chosen("spt", "3 layers")
        except UsageError as error:
            pytest.skip(str(error))
    with pytest.raises(Planned) as caught:
        run.ANALYSES[name].study(Listening(scale))
    configs = caught.value.args[0].values()
    assert {config.seed for config in configs} <= {SEARCHED, *SEEDS[scale]}


def test_both_recipes_have_the_same_search_and_reported_seeds_are_new():
    assert len(candidates("supervised")) == len(candidates("spt"))
    assert [choice[:2] for choice in candidates("supervised")] == [choice[:2] for choice in candidates("spt")]
    assert all(SEARCHED not in seeds for seeds in SEEDS.values())
    assert set(CHOSEN) == {(task, recipe) for task in claim1_spt_gain.ROWS for recipe in ("supervised", "spt")}
    for task in TASKS:
        supervised, spt = (
            [setting(task, recipe, 1, choice) for choice in candidates(recipe)] for recipe in ("supervised", "spt")
        )
        assert max(config.steps for config in supervised) == spt[0].steps
        assert {config.steps for config in spt} == {spt[0].steps}


def test_the_settings_of_all_claims_are_those_that_the_search_chose():
    result = open_result(FOLDER / "results/claim1_spt_gain.nc")
    for (task, recipe), choice in CHOSEN.items():
        row = result.sel(task=task, recipe=recipe)
        assert str(row["tried"][int(row["chosen"])].values) == str(choice)
        if task.endswith(SMALL):
            row = row.isel(candidate=["small" in tried for tried in row["tried"].values])
        (number,) = np.flatnonzero(row["tried"] == str(choice))
        assert float(row["validation_accuracy"][number]) == float(row["validation_accuracy"].max())


def test_keyword_arguments_override_settings_and_steps_are_counted_before_the_split():
    supervised = setting("pairs", "supervised", 3, (1e-3, "small", 0.5), steps=100, n_layers=2, task_options={"n": 64})
    assert (supervised.steps, supervised.model.n_layers, supervised.task_options["n"]) == (50, 2, 64)
    assert supervised.task_options["train_size"] == TASKS["pairs"]["task_options"]["train_size"]
    spt = setting("pairs", "spt", 3, (1e-3, "small", 0.75), steps=100)
    assert (spt.steps, spt.pretrain_steps) == (100, 75)


@pytest.mark.parametrize("held, expected", [
    ([True, True], "holds"),
    ([True, None], "holds"),
    ([True, False], "holds in part"),
    ([False, False], "does not hold here"),
    ([False, None], "does not hold here"),
    ([None, None], "undecided"),
])  # fmt: skip
def test_verdicts(held, expected):
    assert verdict(held) == expected


def test_a_committed_result_has_its_provenance(committed):
    name, result = committed
    assert result.attrs["analysis"] == name and result.attrs["scale"] == "default"
    assert result.sizes["seed"] >= 5 and "created" in result.attrs["provenance"]
    assert (FOLDER / f"results/{name}.nc").stat().st_size < 500_000
    for values in result.data_vars.values():
        assert values.attrs["long_name"], f"{name}: {values.name}"


def test_a_committed_result_was_computed_with_the_current_choices(committed):
    _, result = committed
    current = json.loads(run.choices(setting(task, "supervised", 1) for task in TASKS))
    assert json.loads(result.attrs["choices"]).items() <= current.items()


def test_figure_caption_and_conclusion_come_from_the_result_alone(committed, monkeypatch, tmp_path):
    name, result = committed
    monkeypatch.setattr(run, "figure_path", lambda name, scale: tmp_path / name)
    conclusion = run.shown(name, result, "default")
    drawn = (tmp_path / f"{name}.pdf").read_bytes()
    assert len(drawn) > 5000 and b"/CreationDate" not in drawn, "drawing again must produce the same file"
    assert (tmp_path / f"{name}.txt").read_text() == (FOLDER / f"figures/{name}.txt").read_text()
    assert conclusion.seeds == result.sizes["seed"] and conclusion.effect
    if name not in STRICTER:
        assert conclusion.verdict == verdict([part.held for part in conclusion.parts if part.decides])


def test_the_pages_have_the_table_and_the_parts_of_the_committed_results():
    assert run.table() in (FOLDER / "README.md").read_text()
    assert run.details() == (FOLDER / "results/parts.md").read_text()


def test_the_command_line_lists_analyses_and_reports_errors_in_one_line(capsys):
    run.main(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(run.ANALYSES)
    for arguments, words in (
        (["claim9"], "unknown analysis 'claim9'"),
        ([], "no analysis named"),
        (["all", "--quick", "--full"], "mutually exclusive"),
        (["full_lra", "--device", "cuda"], "in pieces"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_numbers_are_formatted_with_their_intervals():
    assert said(-0.5, -0.75, -0.25) == "-0.50 (-0.75 to -0.25)"
    assert said(-0.004, -0.006, 0.004) == "-0.004 (-0.006 to +0.004)"
    assert said(-0.005, -0.0098, -0.0002) == "-0.0050 (-0.0098 to -0.0002)"
    assert said(0.0, 0.0, 0.0) == "+0.00 (+0.00 to +0.00)"
    assert said(-1e-7, -0.5, 0.5) == "+0.0000 (-0.5000 to +0.5000)"
    assert said(0.5, np.nan, np.nan) == "+0.50 (one seed: no interval)"
    assert said_share(0.5, 0.25, 0.75) == "0.50 (0.25 to 0.75)"
    assert said_share(0.5, -np.inf, np.inf) == "undetermined (there may be no gap)"


def make_result(effects, **axes):
    """Return a result whose effects, each over its listed axes, all have the interval 0.6 to 0.9."""
    axes = {name: list(values) for name, values in axes.items()} | {"seed": [1, 2, 3], "bound": ["lower", "upper"]}
    sizes = {name: len(values) for name, values in axes.items()}
    variables = {}
    for name, over in effects.items():
        shape = [sizes[axis] for axis in over]
        variables[name] = (over, np.full(shape, 0.75))
        variables[f"{name}_interval"] = ((*over, "bound"), np.broadcast_to([0.6, 0.9], (*shape, 2)).copy())
    return xr.Dataset(variables, axes)


def shifted(result, name, place, bounds):
    """Return the result with an interval and its midpoint replaced at one place."""
    result = result.copy(deep=True)
    result[name].loc[place] = np.mean(bounds)
    result[f"{name}_interval"].loc[place] = np.array(bounds)
    return result


def held(name, result):
    """Return which of the parts that count hold."""
    return [part.held for part in run.CLAIMS[name].conclude(result).parts if part.decides]


BELOW, ACROSS, HALF = (-0.2, -0.1), (-0.1, 0.2), (0.4, 0.8)


def test_claim_1_counts_the_tasks_by_their_adjusted_p_values():
    result = make_result({"gain": ["task"]}, task=["pairs", "digits", "text", f"pairs{SMALL}"])
    result["p"] = ("task", [0.04, 0.001, 0.06, np.nan])
    result["chance"] = ("task", [0.25, 0.1, 0.5, 0.25])
    result = result.assign_coords(recipe=["supervised", "spt"])
    result["test_accuracy"] = (("task", "recipe", "seed"), np.full((4, 2, 3), 0.7))
    assert held("claim1_spt_gain", result) == [True, True, False]
    assert held("claim1_spt_gain", shifted(result, "gain", {"task": "digits"}, BELOW)) == [True, False, False]
    result["test_accuracy"].loc["text", "supervised"] = [0.49, 0.50, 0.51]
    assert held("claim1_spt_gain", result) == [True, True, False]
    result["test_accuracy"].loc["text", "spt"] = [0.49, 0.51, 0.53]
    assert held("claim1_spt_gain", result) == [True, True, None], "both recipes at chance: no gain, but no evidence"


def test_a_gain_of_the_detectable_size_is_found_in_four_of_five_experiments():
    draws = np.random.default_rng(0).standard_normal((20000, 5))
    size = tables.detectable(xr.DataArray([-1.0, 0.5, 0.0, -0.5, 1.0], dims="seed"))
    spread = np.std([-1.0, 0.5, 0.0, -0.5, 1.0], ddof=1)
    found = scipy.stats.ttest_1samp(size + spread * draws, 0, axis=1).pvalue < 0.05
    assert abs(found.mean() - 0.8) < 0.01
    np.testing.assert_allclose(tables.logit(xr.DataArray([0.5, 1.0, 0.0]), 50), np.array([0, 1, -1]) * np.log(99))


def test_p_values_are_corrected_over_the_tasks_that_count():
    noise = np.array([-1.0, 1.0, -1.0, 1.0, 0.0]) * 0.01
    gains = xr.DataArray(np.tile(noise, (9, 1)), {"task": [*"abcdefgh", f"a{SMALL}"], "seed": range(5)})
    assert (claim1_spt_gain.p_values(gains)[:-1] == 1).all()
    assert (claim1_spt_gain.p_values(gains + 0.2)[:-1] < 0.001).all()
    gains[0] += 0.0135  # p is about 0.04 alone, but not significant among eight
    assert claim1_spt_gain.p_values(gains[:1])[0] < 0.05 < claim1_spt_gain.p_values(gains)[0]
    before = claim1_spt_gain.p_values(gains)
    gains[-1] += 0.2
    np.testing.assert_array_equal(claim1_spt_gain.p_values(gains), before)
    assert np.isnan(before[-1])


def test_claim_2_needs_gains_by_depth_in_fitting_and_in_generalisation_each_at_some_budget():
    name = "claim2_not_depth_not_generalisation"
    axes = {"depth": [1, 6], "size": [500, 8000], "times": [0.25, 1.0]}
    effects = {"depth_test_gain": ["depth"], "surface_train_gain": ["size", "times"], "searched_gain": []}
    result = make_result(effects, **axes).assign(searched_choice="chosen")
    result = result.assign_coords(recipe=["supervised", "spt"])
    noise, over = [-0.001, 0.0, 0.001], ("recipe", "size", "times", "seed")
    for split in ("train", "test"):
        result[f"surface_{split}_accuracy"] = (over, np.ones((2, 2, 2, 3)))
        result[f"surface_other_{split}_accuracy"] = (over[1:], np.zeros((2, 2, 3)))
    result["surface_other_train_accuracy"].loc[500, 1] = 1.0
    result["surface_test_accuracy"].loc["supervised", 500, 1] = np.add(0.4, noise)  # memorised
    result["surface_train_accuracy"].loc["supervised", 8000, 0.25] = np.add(0.5, noise)  # not fitted
    result["surface_test_accuracy"].loc["supervised", 8000, 0.25] = np.add(0.5, noise)
    assert held(name, result) == [True, True, True]
    assert held(name, shifted(result, "depth_test_gain", {"depth": 6}, ACROSS)) == [False, True, True]
    other = result.copy(deep=True)
    other["surface_other_train_accuracy"].loc[8000, 0.25] = 1.0
    assert held(name, other) == [True, False, True], "fitted with the settings of SPT"
    other = result.copy(deep=True)
    other["surface_other_test_accuracy"].loc[500, 1] = 1.0
    assert held(name, other) == [True, True, False], "generalises with the settings of SPT"
    fitted = result.copy(deep=True)
    fitted["surface_train_accuracy"].loc["supervised", 8000, 0.25] = np.add(1, noise)
    fitted["surface_test_accuracy"].loc["supervised", 8000, 0.25] = 1.0
    assert held(name, fitted) == [True, False, True]
    general = result.copy(deep=True)
    general["surface_test_accuracy"].loc["supervised", 500, 1] = np.add(1, noise)
    assert held(name, general) == [True, True, False], "a gain where the labels are not fitted is not generalisation"
    unsure = result.copy(deep=True)
    unsure["surface_test_accuracy"].loc["supervised", 500, 1] = [0.92, 0.94, 0.96]
    assert held(name, unsure) == [True, True, False], "above 0 by its own interval, but not over all budgets"


def test_claim_3_holds_only_if_the_maps_recover_the_gap_and_the_rest_does_not():
    arms = claim3_query_key.ARMS
    result = make_result(
        {"share": ["task", "arm"], "gap": ["task"]}, task=["pairs", "digits", f"pairs{SMALL}"], arm=arms
    )
    result["contrast"] = (("task", "arm", "seed"), np.ones((3, len(arms), 3)))
    for arm in ("all but QK", "SPT, QK frozen at random"):
        result = shifted(result, "share", {"arm": arm}, (0.1, 0.4))
    assert held("claim3_query_key", result) == [True, True, True]
    assert held("claim3_query_key", shifted(result, "gap", {"task": "digits"}, ACROSS)) == [True, None, True]
    for arm in ("QK + positions", "all but QK", "SPT, QK frozen at random"):
        changed = shifted(result, "share", {"arm": arm, "task": "pairs"}, HALF)
        assert held("claim3_query_key", changed) == [None, True, True], arm
        other_way = (0.1, 0.4) if arm == "QK + positions" else (0.6, 0.9)
        changed = shifted(changed, "share", {"arm": arm, "task": "digits"}, other_way)
        assert held("claim3_query_key", changed) == [None, False, True], arm
    effect = claim3_query_key.conclude(changed).effect
    assert "large weights: does not hold here" in effect and "small weights: holds" in effect


def test_claim_4_has_four_parts_on_each_task():
    of_task = ("contrast_gain", "contrast_excess", "contrast_grown")
    effects = {**dict.fromkeys(of_task, ["task"]), "given": ["task", "arm"]}
    effects |= dict.fromkeys(("edit", "edit_excess"), ["task", "intervention"])
    axes = {"arm": claim4_proximity.GIVEN, "intervention": claim4_proximity.EDITS}
    result = make_result(effects, task=["pairs", "digits", f"pairs{SMALL}"], **axes)
    for name in ("edit", "edit_excess"):
        result = shifted(result, name, {}, BELOW)
    assert held("claim4_proximity", result) == [True] * 8
    places = {"edit": {"intervention": "ablate_toeplitz"}, "given": {"arm": "supervised, fixed bias"}}
    places["edit_excess"] = places["edit"]
    for name, part in (*zip(of_task, (0, 1, 1), strict=True), ("edit", 2), ("edit_excess", 2), ("given", 3)):
        found = held("claim4_proximity", shifted(result, name, {"task": "pairs", **places.get(name, {})}, ACROSS))
        assert found == [number != part for number in range(8)], name


def test_claim_6_compares_learned_positions_with_each_relative_encoding():
    encodings = ("none", "learned", "sinusoidal", "rotary", "alibi", "relative")
    result = make_result(dict.fromkeys(("gain", "less"), ["step", "encoding"]), step=[400, 2000], encoding=encodings)
    result = result.assign_coords(recipe=["supervised", "spt"])
    result["test_accuracy"] = (("step", "encoding", "recipe", "seed"), np.full((2, 6, 2, 3), 0.2))

    def told(result):
        return held("claim6_encodings", result), claim6_encodings.conclude(result).verdict

    for encoding in encodings[:3]:  # these do not count
        result = shifted(result, "less", {"encoding": encoding}, ACROSS)
    assert told(result) == ([True] * 6, "holds")
    changed = shifted(result, "less", {"step": 400, "encoding": "alibi"}, ACROSS)
    assert told(changed) == ([True, False, True, True, True, True], "holds in part")
    no_gain = shifted(result, "gain", {"step": 400, "encoding": "learned"}, ACROSS)
    assert told(no_gain) == ([None] * 3 + [True] * 3, "holds")
    assert told(shifted(no_gain, "gain", {"encoding": "learned"}, ACROSS)) == ([None] * 6, "undecided")
    result["test_accuracy"].loc[400, "rotary", "supervised"] = [0.3, 0.28, 0.26]  # a gain of 0.75 has no room
    assert told(result) == ([None] + [True] * 5, "holds")
    result["test_accuracy"].loc[2000, "rotary", "supervised"] = [0.3, 0.28, 0.26]
    assert told(result)[1] == "undecided", "rotary positions are never decided"


def test_claim_7_requires_every_mask_probability_a_quarter_of_the_steps_and_next_tokens():
    arms = [f"mask {p:g}" for p in claim7_objectives.MASKED] + ["budget 0.25"]
    effects = {"share": ["task", "arm"], "gap": ["task"], "causal_gain": ["task", "objective"]}
    result = make_result(effects, task=["pairs", "digits"], arm=arms, objective=["masked", "next-token"])
    assert held("claim7_objectives", result) == [True] * 6
    for part, name, place, bounds in (
        (0, "share", {"arm": "mask 0.75"}, HALF),
        (1, "share", {"arm": "budget 0.25"}, HALF),
        (2, "causal_gain", {"objective": "next-token"}, ACROSS),
    ):
        found = held("claim7_objectives", shifted(result, name, {"task": "pairs", **place}, bounds))
        assert found[part] is (None if bounds == HALF else False)
        assert found[:part] + found[part + 1 :] == [True] * 5
    for part, arm in ((0, "mask 0.05"), (1, "budget 0.25")):
        found = held("claim7_objectives", shifted(result, "share", {"task": "pairs", "arm": arm}, (0.1, 0.4)))
        assert found[part] is False
    found = held("claim7_objectives", shifted(result, "gap", {"task": "digits"}, BELOW))
    assert found == [True, True, True, None, None, True], "without a gap nothing can be recovered"


def both(*names):
    return [f"{name}{ending}" for name in names for ending in ("", "_stopped")]


ABLATED = {"intervention": "ablate_toeplitz", "layer": 0}
ABLATION_PLACES = {
    "edit": ABLATED | {"edited_arm": "SPT"},
    "edit_excess": ABLATED | {"edited_arm": "SPT"},
    "edit_more": ABLATED,
}
"""Where the rules of claims 8 and 10 look at the edits."""


def canvas_result(module, effects):
    """Return a result in which every effect of an analysis of the canvas is above 0."""
    axes = {
        axis: list(getattr(module, f"{axis.upper()}S"))
        for axis in ("carrier", "edited_arm", "arm")
        if hasattr(module, f"{axis.upper()}S")
    }
    result = make_result(effects, intervention=canvas.EDITS, layer=[0, 1], **axes)
    for name in effects:
        result[name].attrs["long_name"] = name
    result["test_accuracy"] = (("arm", "seed"), np.full((len(axes["arm"]), 3), 0.8))
    return result


def test_claim_8_needs_every_effect_and_undecides_ceilings():
    parts = [
        both("gain", "gain_logit", "over_settings"),
        both("less_fixed_bias", "less_fixed_bias_logit"),
        ["nearer", "nearer_before", "nearer_null"],
        ["edit", "edit_excess", "edit_more"],
        both("biased"),
        both("less_rotary", "less_rotary_logit"),
    ]
    effects = {name: [] for names in parts for name in names}
    effects |= dict.fromkeys(("edit", "edit_excess"), ["edited_arm", "intervention", "layer"])
    effects["edit_more"] = ["intervention", "layer"]
    result = canvas_result(claim8_real_images, effects)
    for name, place in ABLATION_PLACES.items():
        result = shifted(result, name, place, BELOW)
    assert held("claim8_real_images", result) == [True] * 6
    assert claim8_real_images.conclude(result).verdict == "holds"
    for part, names in enumerate(parts):
        for name in names:
            changed = shifted(result, name, ABLATION_PLACES.get(name, {}), ACROSS)
            assert held("claim8_real_images", changed) == [number != part for number in range(6)], name
            expected = "does not hold here" if part in (0, 1, 3) else "holds in part"
            assert claim8_real_images.conclude(changed).verdict == expected
    for arm, part in (("rotary", 5), ("fixed bias", 1)):
        high = result.copy(deep=True)
        high["test_accuracy"].loc[f"supervised, {arm}"] = 0.95
        assert held("claim8_real_images", high) == [None if number == part else True for number in range(6)]
    assert claim8_real_images.conclude(high).verdict == "undecided"


def test_claim_9_needs_every_effect_and_a_gap_to_be_carried():
    parts = {
        **{part: both(name) for part, name in enumerate(("gain_1_layer", "gain_3_layers", "over_autoencoding"))},
        3: both("over_shuffled"),
        5: both("over_fixed", "over_trained"),
        6: both("fixed"),
        7: both("trained"),
        8: both("from_0"),
        9: ["nearer"],
    }
    effects = {name: [] for names in parts.values() for name in names} | {"gap": [], "share": ["carrier"]}
    result = canvas_result(claim9_how_it_arises, effects)
    for carrier in ("all but QK + positions", "SPT, QK + positions frozen"):
        result = shifted(result, "share", {"carrier": carrier}, BELOW)

    def told(result):
        return [part.held for part in claim9_how_it_arises.conclude(result).parts]

    assert told(result) == [True] * 10
    for part, names in parts.items():
        for name in names:
            changed = shifted(result, name, {}, ACROSS)
            assert told(changed) == [number != part for number in range(10)], name
            expected = "holds" if part >= 5 else "holds in part"
            assert claim9_how_it_arises.conclude(changed).verdict == expected
    for carrier, bounds, expected in (
        ("QK + positions", BELOW, False),
        ("QK + positions", HALF, None),
        ("all but QK + positions", (0.6, 0.9), False),
        ("SPT, QK + positions frozen", HALF, None),
    ):
        assert told(shifted(result, "share", {"carrier": carrier}, bounds))[4] is expected
    assert told(shifted(result, "gap", {}, ACROSS))[4] is None


def test_claim_10_needs_every_effect():
    parts = [
        both("gain", "gain_logit", "over_settings"),
        ["nearer", "nearer_null"],
        ["edit", "edit_excess", "edit_more"],
        both("rotary"),
        both("from_0"),
    ]
    effects = {name: [] for names in parts for name in names}
    effects |= dict.fromkeys(("edit", "edit_excess"), ["edited_arm", "intervention", "layer"])
    effects["edit_more"] = ["intervention", "layer"]
    result = canvas_result(claim10_mnist, effects)
    for name in parts[2]:
        result = shifted(result, name, ABLATION_PLACES[name], BELOW)
    assert held("claim10_mnist", result) == [True] * 5
    for part, names in enumerate(parts):
        for name in names:
            changed = shifted(result, name, ABLATION_PLACES.get(name, {}), ACROSS)
            assert held("claim10_mnist", changed) == [number != part for number in range(5)], name


def test_claim_10_repeats_the_networks_and_trainings_of_claims_8_and_9():
    with pytest.raises(Planned) as caught:
        run.ANALYSES["claim10_mnist"].study(Listening("default"))
    asked = caught.value.args[0]
    assert len(asked) == 25 and {config.task for config in asked.values()} == {"mnist-canvas"}
    for (name, seed), config in asked.items():
        arm = {**claim8_real_images.ARMS, **claim9_how_it_arises.ARMS}[name]
        assert replace(config, task="digits-canvas") == canvas.trained(arm, seed, {})


def test_the_choice_of_the_search_on_the_canvas_is_its_best_row():
    table = pd.read_csv(canvas_search.RESULT, keep_default_na=False)
    for (recipe, size), rows in table.groupby(["recipe", "size"]):
        best = rows[rows["best validation accuracy"] == rows["best validation accuracy"].max()]
        best = best.loc[best["its validation loss"].idxmin()]
        names = ["recipe", "learning rate", "initial weights", "regularisation", "size"]
        assert canvas_search.chosen(recipe, size) == tuple(best[names])


def test_the_search_on_the_canvas_has_the_same_candidates_for_both_recipes():
    seen = []

    class Recording(Lab):
        def train(self, configs):
            seen.append(configs)
            raise Planned

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Planned):
        patched.setattr(canvas_search, "Lab", Recording)
        canvas_search.main()
    candidates = {recipe: {key[1:] for key in seen[0] if key[0] == recipe} for recipe in canvas_search.RECIPES}
    assert candidates["supervised"] == candidates["spt"] and len(seen[0]) == 24
    assert {(config.steps, config.seed) for config in seen[0].values()} == {(4000, SEARCHED)}
