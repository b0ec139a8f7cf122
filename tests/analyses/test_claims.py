"""The claims: what they ask for can be trained, verdicts follow the rules, figures come from the results alone."""

import claim1_spt_gain
import numpy as np
import pytest
import run
from conclusion import verdict
from lab import FOLDER, Lab
from settings import CHOSEN, SEARCHED, SEEDS, SMALL, TASKS, candidates, setting

from attnprobe.results import open_result

RESULTS = sorted(run.CLAIMS.keys() & {path.stem for path in (FOLDER / "results").glob("*.nc")})


class Planned(Exception):
    """What was asked of a lab that only listens."""


class Listening(Lab):
    def train(self, configs):
        raise Planned(configs)


@pytest.fixture(scope="module", params=RESULTS)
def committed(request):
    return request.param, open_result(FOLDER / f"results/{request.param}.nc")


@pytest.mark.parametrize("scale", SEEDS)
@pytest.mark.parametrize("name", run.CLAIMS)
def test_what_is_asked_for_fits_together_at_every_scale(name, scale):
    with pytest.raises(Planned) as caught:
        run.ANALYSES[name].study(Listening(scale))
    configs = caught.value.args[0].values()
    assert {config.seed for config in configs} <= {SEARCHED, *SEEDS[scale]}


def test_both_recipes_are_searched_alike_and_seeds_are_fresh():
    assert len(candidates("labels")) == len(candidates("spt"))
    assert [choice[:2] for choice in candidates("labels")] == [choice[:2] for choice in candidates("spt")]
    assert all(SEARCHED not in seeds for seeds in SEEDS.values())
    assert set(CHOSEN) == {(task, recipe) for task in claim1_spt_gain.ROWS for recipe in ("labels", "spt")}
    for task in TASKS:
        labels, spt = ([setting(task, recipe, 1, one) for one in candidates(recipe)] for recipe in ("labels", "spt"))
        assert max(config.steps for config in labels) == spt[0].steps
        assert {config.steps for config in spt} == {spt[0].steps}


@pytest.mark.skipif("claim1_spt_gain" not in RESULTS, reason="claim 1 has not been run")
def test_the_settings_of_all_claims_are_those_that_the_search_chose():
    result = open_result(FOLDER / "results/claim1_spt_gain.nc")
    for (task, recipe), choice in CHOSEN.items():
        one = result.sel(task=task, recipe=recipe)
        assert str(one["tried"][int(one["chosen"])].values) == str(choice)
        if task.endswith(SMALL):
            one = one.isel(candidate=["small" in tried for tried in one["tried"].values])
        (number,) = np.flatnonzero(one["tried"] == str(choice))
        assert float(one["validation_accuracy"][number]) == float(one["validation_accuracy"].max())


def test_settings_of_their_own_win_and_steps_are_those_before_the_split():
    labels = setting("pairs", "labels", 3, (1e-3, "small", 0.5), steps=100, n_layers=2, task_options={"n": 64})
    assert (labels.steps, labels.model.n_layers, labels.task_options["n"]) == (50, 2, 64)
    assert labels.task_options["train_size"] == TASKS["pairs"]["task_options"]["train_size"]
    spt = setting("pairs", "spt", 3, (1e-3, "small", 0.75), steps=100)
    assert (spt.steps, spt.pretrain_steps) == (100, 75)


def test_verdicts():
    assert [verdict(held) for held in ([True] * 2, [True, False], [False] * 2)] == [
        "holds",
        "holds in part",
        "does not hold here",
    ]


def test_a_committed_result_says_where_it_comes_from(committed):
    name, result = committed
    assert result.attrs["analysis"] == name and result.attrs["scale"] == "default"
    assert result.sizes["seed"] >= 5 and "created" in result.attrs["provenance"]
    assert (FOLDER / f"results/{name}.nc").stat().st_size < 500_000
    for one in result.data_vars.values():
        assert one.attrs["long_name"], f"{name}: {one.name}"


def test_figure_caption_and_conclusion_come_from_the_result_alone(committed, monkeypatch, tmp_path):
    name, result = committed
    monkeypatch.setattr(run, "figure_path", lambda name, scale: tmp_path / name)
    told = run.shown(name, result, "default")
    assert (tmp_path / f"{name}.pdf").stat().st_size > 5000
    assert (tmp_path / f"{name}.txt").read_text() == (FOLDER / f"figures/{name}.txt").read_text()
    assert told.seeds == result.sizes["seed"] and told.effect
    assert told.verdict == verdict([part.held for part in told.parts])


def test_the_page_holds_the_table_and_the_parts_of_the_committed_results():
    page = (FOLDER / "README.md").read_text()
    assert run.table() in page and run.details() in page


def test_the_command_line_lists_and_refuses_in_one_line(capsys):
    run.main(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(run.ANALYSES)
    for arguments, said in (
        (["claim9"], "no analysis 'claim9'"),
        ([], "name an analysis"),
        (["all", "--quick", "--full"], "choose one"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def shifted(result, name, axis_values, bounds):
    """Return the result with an interval and its middle put where a test wants them."""
    made = result.copy(deep=True)
    made[name].loc[axis_values] = np.mean(bounds)
    made[f"{name}_interval"].loc[axis_values] = np.array(bounds)
    return made


@pytest.mark.skipif("claim3_query_key" not in RESULTS, reason="claim 3 has not been run")
def test_claim_3_holds_only_where_the_maps_recover_and_the_rest_does_not():
    module, result = run.ANALYSES["claim3_query_key"], open_result(FOLDER / "results/claim3_query_key.nc")
    for arm, bounds in (("QK + positions", (0.6, 0.9)), ("all but QK", (0.0, 0.2))):
        result = shifted(result, "share", {"arm": arm}, bounds)
    result = shifted(result, "share", {"arm": "SPT, QK frozen at random"}, (0.1, 0.3))
    assert module.conclude(result).verdict == "holds"
    one = shifted(result, "share", {"arm": "all but QK", "task": "pairs"}, (0.0, 0.6))
    assert module.conclude(one).verdict == "holds in part"
    assert module.conclude(shifted(result, "share", {"arm": "all but QK"}, (0.0, 0.6))).verdict == "does not hold here"


@pytest.mark.skipif("claim1_spt_gain" not in RESULTS, reason="claim 1 has not been run")
def test_claim_1_counts_the_tasks_by_adjusted_p_values():
    result = open_result(FOLDER / "results/claim1_spt_gain.nc")
    gains = result["test_accuracy"].sel(recipe="spt") - result["test_accuracy"].sel(recipe="labels")
    noise = gains * 0 + np.array([-1.0, 1.0, -1.0, 1.0, 0.0]) * 0.01
    assert (claim1_spt_gain.p_values(noise) == 1).all()
    assert (claim1_spt_gain.p_values(noise + 0.2) < 0.001).all()
    one = noise.copy()
    one[0] += 0.0135  # p about 0.04 alone, and no more than chance among eight
    assert claim1_spt_gain.p_values(one[:1])[0] < 0.05 < claim1_spt_gain.p_values(one)[0]
    result["gain"], result["p"] = -abs(result["gain"]), result["p"] * 0
    assert claim1_spt_gain.conclude(result).verdict == "does not hold here", "a loss is no gain"


@pytest.mark.skipif("claim2_not_depth_not_generalisation" not in RESULTS, reason="claim 2 has not been run")
def test_claim_2_asks_for_every_depth_and_for_training_accuracy_on_the_most_sequences():
    module = run.ANALYSES["claim2_not_depth_not_generalisation"]
    result = open_result(FOLDER / "results/claim2_not_depth_not_generalisation.nc")
    result = shifted(result, "depth_test_gain", {}, (0.1, 0.2))
    result = shifted(result, "size_train_gain", {}, (-0.1, 0.1))
    most = {"size": result["size"].values[-1]}
    assert module.conclude(shifted(result, "size_train_gain", most, (0.1, 0.2))).verdict == "holds"
    assert module.conclude(result).verdict == "holds in part"
    one = shifted(result, "depth_test_gain", {"depth": result["depth"].values[-1]}, (-0.1, 0.2))
    assert module.conclude(one).verdict == "does not hold here"


@pytest.mark.skipif("claim4_proximity" not in RESULTS, reason="claim 4 has not been run")
def test_claim_4_has_four_parts_on_each_task():
    module, result = run.ANALYSES["claim4_proximity"], open_result(FOLDER / "results/claim4_proximity.nc")
    for name in ("contrast_gain", "contrast_excess", "given"):
        result = shifted(result, name, {}, (0.1, 0.2))
    for name in ("edit", "edit_excess"):
        result = shifted(result, name, {}, (-0.2, -0.1))
    assert module.conclude(result).verdict == "holds"
    for name, place, bounds in (
        ("contrast_gain", {}, (-0.1, 0.2)),
        ("contrast_excess", {}, (-0.1, 0.2)),
        ("edit", {"intervention": "remove toeplitz"}, (-0.2, 0.1)),
        ("edit_excess", {"intervention": "remove toeplitz"}, (-0.2, 0.1)),
        ("given", {"arm": "labels, fixed bias"}, (-0.1, 0.2)),
    ):
        one = shifted(result, name, place, bounds)
        assert module.conclude(one).verdict == "holds in part", name
        parts = module.conclude(one).parts
        assert sum(part.held for part in parts) == len(parts) - result.sizes["task"]


@pytest.mark.skipif("claim6_encodings" not in RESULTS, reason="claim 6 has not been run")
def test_claim_6_compares_learned_positions_with_each_relative_encoding():
    module, result = run.ANALYSES["claim6_encodings"], open_result(FOLDER / "results/claim6_encodings.nc")
    accuracy = result["test_accuracy"]
    gain = accuracy.sel(recipe="spt") - accuracy.sel(recipe="labels")
    less = (gain.sel(encoding="learned") - gain.sel(encoding="rotary")).mean("seed")
    np.testing.assert_allclose(result["less"].sel(encoding="rotary"), less)
    for encoding in ("none", "learned", "sinusoidal"):  # these decide nothing
        result = shifted(result, "less", {"encoding": encoding}, (-0.1, 0.1))
    for encoding in ("rotary", "alibi", "relative"):
        result = shifted(result, "less", {"encoding": encoding}, (0.1, 0.2))
    assert module.conclude(result).verdict == "holds"
    assert module.conclude(shifted(result, "less", {"encoding": "alibi"}, (-0.1, 0.2))).verdict == "holds in part"


@pytest.mark.skipif("claim7_objectives" not in RESULTS, reason="claim 7 has not been run")
def test_claim_7_needs_every_mask_share_a_quarter_of_the_steps_and_next_tokens():
    module, result = run.ANALYSES["claim7_objectives"], open_result(FOLDER / "results/claim7_objectives.nc")
    result = shifted(shifted(result, "share", {}, (0.6, 0.9)), "causal_gain", {}, (0.1, 0.2))
    assert module.conclude(result).verdict == "holds"
    for name, place, bounds in (
        ("share", {"arm": "mask 0.75"}, (0.4, 0.9)),
        ("share", {"arm": "budget 0.25"}, (0.4, 0.9)),
        ("causal_gain", {"objective": "next-token"}, (-0.1, 0.2)),
    ):
        parts = module.conclude(shifted(result, name, place, bounds)).parts
        assert sum(part.held for part in parts) == len(parts) - result.sizes["task"], name
