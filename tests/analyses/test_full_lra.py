"""Long Range Arena script: published settings, equal compute, interrupted runs, and the rule."""

import itertools
import math
import shutil
from dataclasses import replace

import full_lra
import lab as shared
import numpy as np
import pytest
import torch
import xarray as xr
from full_lra import ARMS, NAMES, QUICK, Plan, advance, caption, conclude, draw, gather, go_on, main
from lab import Lab

from attnprobe.errors import UsageError
from attnprobe.results import open_result
from attnprobe.sweeps.plan import run_folder
from attnprobe.tasks import configure
from attnprobe.training.checkpoint import load
from attnprobe.training.loop import train
from attnprobe.training.run import Run

TINY = {"task_options": {**QUICK["listops"]["task_options"], "train_size": 64, "validation_size": 16, "test_size": 16}}
PLAN = Plan(("listops",), (11,), share=1e-5, sizes={"listops": {**QUICK["listops"], **TINY}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with the finished runs of two seeds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared, "RUNS", tmp_path_factory.mktemp("trained"))
        assert all(advance(Lab(), PLAN, "listops", seed) for seed in (11, 12))
        yield shared.RUNS


@pytest.fixture(scope="module")
def result(trained):
    """Result of one complete comparison."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared, "RUNS", trained)
        return gather(PLAN)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Redirect runs and result to a temporary folder."""
    monkeypatch.setattr(shared, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(full_lra, "RESULT", tmp_path / "results" / "full_lra.nc")
    return tmp_path / "runs"


@pytest.fixture
def command(runs, trained, monkeypatch):
    """Replace training by copying tiny runs; record, per seed, the seeds in the result file before its comparison."""
    monkeypatch.setattr(full_lra, "Plan", lambda tasks, seeds, *rest: replace(PLAN, seeds=seeds))
    seen = {}

    def copied(lab, plan, task, seed, until):
        seen[seed] = full_lra.RESULT.exists() and open_result(full_lra.RESULT)["seed"].values.tolist()
        if seed not in (11, 12):
            raise UsageError(f"training stopped: seed {seed}")
        for recipe in full_lra.RECIPES:
            name = plan.run(task, recipe, seed).folder.name
            shutil.copytree(trained / name, runs / name)
        return True

    monkeypatch.setattr(full_lra, "advance", copied)
    return seen


def make_result(gains, share=1.0, seeds=3):
    """Return a result with the given mean gain of SPT on each task and seeds 0.01 apart."""
    test = np.full((len(gains), len(ARMS), seeds), 0.5)
    for place, gain in enumerate(gains.values()):
        test[place, 0] += gain + 0.01 * (np.arange(seeds) - (seeds - 1) / 2)
    return xr.Dataset(
        {"test_accuracy": (("task", "arm", "seed"), test), "steps_share": ("task", np.full(len(gains), share))},
        {"task": list(gains), "arm": list(ARMS), "seed": range(seeds)},
    )


@pytest.mark.parametrize("task, steps, second, n, layers", [
    ("image", 225_000, 180_000, 1024, 3),
    ("pathfinder", 1_250_000, 1_000_000, 1024, 4),
    ("listops", 600_000, 300_000, 2048, 6),
])  # fmt: skip
def test_all_steps_give_the_preset_and_both_recipes_have_equal_steps(task, steps, second, n, layers):
    spt, supervised = (Plan(tuple(NAMES), (11,)).config(task, recipe, 11) for recipe in ("spt", "supervised"))
    assert spt == configure(preset=f"amos-{task}", recipe="spt", seed=11)
    assert supervised == replace(spt, recipe="supervised")
    assert supervised.stages == (("labels", steps),)
    assert spt.stages == (("masked", steps - second), ("labels", second))
    assert (spt.model.n_layers, full_lra.tasks.source(task, {}).data.n) == (layers, n)


@pytest.mark.parametrize("share", [1.0, 0.37, 0.05, 1e-5])
@pytest.mark.parametrize("task", NAMES)
def test_a_steps_share_keeps_the_split_and_evaluates_at_the_end_of_the_short_arm(task, share):
    whole, part = (Plan((task,), (11,), one).config(task, "spt", 11) for one in (1.0, share))
    assert part.pretrain_steps * whole.steps == whole.pretrain_steps * part.steps
    assert part.steps == pytest.approx(share * whole.steps, abs=20)
    assert part.warmup_steps == pytest.approx(share * whole.warmup_steps, abs=1)
    assert (part.steps - part.pretrain_steps) % (part.steps // part.evaluations) == 0


def test_a_steps_share_above_1_is_an_error():
    with pytest.raises(UsageError, match="steps_share=1.5: must be above 0 and at most 1"):
        Plan(("image",), (11,), 1.5)


def test_the_short_arm_equals_a_supervised_run_of_that_length(result, tmp_path):
    config = PLAN.config("listops", "supervised", 11)
    alone = train(replace(config, steps=config.steps - config.pretrain_steps), tmp_path / "short", progress=False)
    found, last = result.sel(task="listops", arm="supervised short", seed=11), alone.metrics[-1]
    assert found["steps"] == last["step"] == 10
    for split in full_lra.SPLITS:
        assert found[f"{split}_accuracy"] == last[f"{split}_accuracy"]


@pytest.mark.parametrize("recipe", full_lra.RECIPES)
def test_several_pieces_equal_one_piece_bit_by_bit(recipe, trained, runs, monkeypatch):
    config, pieces = PLAN.config("listops", recipe, 11), 1
    monkeypatch.setattr(
        full_lra.time, "monotonic", map(float, itertools.count()).__next__
    )  # every call advances the clock by a second
    while not go_on(Lab(), config, full_lra.time.monotonic() + 20):
        pieces += 1
    assert 2 < pieces < config.steps
    run, whole = (Run(run_folder(folder, config)) for folder in (runs, trained))
    assert run.metrics == whole.metrics
    weights, expected = (one.last.weights for one in (run, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    taken = full_lra.noted(run.folder)
    assert taken["steps"] == config.steps - pieces, "the first step of a piece only starts the clock"
    assert 0 < taken["stepping"] < taken["seconds"]


def test_a_run_is_not_started_after_the_time_limit(runs):
    assert not go_on(Lab(), PLAN.config("listops", "spt", 11), full_lra.time.monotonic())
    assert not runs.exists()


def test_the_result_records_the_training(result, tmp_path):
    full_lra.keep(result, tmp_path / "one.nc")
    found = open_result(tmp_path / "one.nc").sel(task="listops", seed=11)
    assert found["published_accuracy"].sel(arm="supervised short") == pytest.approx(0.3637)
    assert math.isnan(found["published_accuracy"].sel(arm="spt"))
    assert found["steps_share"] == 1e-5 and found["precision"] == "float32"
    assert found["steps"].values.tolist() == [20, 20, 10]
    assert len(found["fingerprint"].item()) == 16 and found["hardware"].sel(arm="spt").item()
    assert 0.1 <= found["constant_accuracy"] <= 1
    assert (found["steps_per_second"] > 0).all() and (found["seconds"] > 0).all()


def test_the_result_is_complete_after_each_comparison(command, capsys):
    main(["--seeds", "11", "12"])
    assert command == {11: False, 12: [11]}
    assert open_result(full_lra.RESULT)["test_accuracy"].notnull().all()
    assert [path.name for path in full_lra.RESULT.parent.iterdir()] == ["full_lra.nc"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and all(line.split()[3:5] == ["20", "20"] for line in printed[1:])


def test_a_result_that_a_killed_piece_did_not_write_is_written_by_the_next(command, runs, trained):
    shutil.copytree(trained, runs)
    main(["--seeds", "12"])
    assert command == {} and open_result(full_lra.RESULT)["seed"].values.tolist() == [12]


def test_a_run_that_fails_does_not_stop_the_other_comparisons(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--seeds", "7", "12"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "full_lra: training stopped: seed 7\n"
    assert open_result(full_lra.RESULT)["seed"].values.tolist() == [12]


def test_status_trains_nothing_and_writes_nothing(command, capsys):
    main(["--status"])
    assert command == {} and not full_lra.RESULT.exists()
    assert "not measured" in capsys.readouterr().out


def test_a_file_keeps_tasks_missing_from_the_new_result(result, tmp_path):
    path = tmp_path / "one.nc"
    full_lra.keep(result.assign_coords(task=["image"], seed=[12]), path)
    full_lra.keep(result.assign(steps_share=2 * result["steps_share"]), path)
    full_lra.keep(result, path)
    found = open_result(path)
    assert sorted(found["task"].values) == ["image", "listops"]
    assert found["fingerprint"].sel(task="image", seed=11) == ""
    assert found["test_accuracy"].sel(task="image", seed=11).isnull().all()
    assert found["steps_share"].sel(task="listops") == 1e-5
    xr.testing.assert_equal(
        found["test_accuracy"].sel(task="image", seed=12, drop=True),
        result["test_accuracy"].isel(task=0, seed=0, drop=True),
    )
    draw(found)


ALL = dict.fromkeys(NAMES, 0.1)


@pytest.mark.parametrize("gains, share, seeds, verdict", [
    (ALL, 1.0, 3, "holds"),
    (ALL, 0.5, 3, "holds in part"),
    (ALL, 1.0, 1, "undecided"),
    ({"image": 0.1, "listops": 0.1}, 1.0, 3, "holds in part"),
    ({**ALL, "image": -0.1}, 1.0, 3, "holds in part"),
    ({**ALL, "image": 0.01}, 1.0, 3, "holds in part"),  # t(2) = 4.3: the interval is 0.01 +- 0.025
    (dict.fromkeys(NAMES, 0.01), 1.0, 3, "does not hold here"),
    (dict.fromkeys(NAMES, -0.1), 1.0, 3, "does not hold here"),
])  # fmt: skip
def test_the_rule(gains, share, seeds, verdict):
    conclusion = conclude(make_result(gains, share, seeds))
    assert (conclusion.verdict, conclusion.seeds) == (verdict, seeds)
    assert ("one seed: no interval" in conclusion.effect) == (seeds == 1)
    assert ("of the published steps" in conclusion.effect) == (share < 1)
    assert ("Pathfinder left out" in conclusion.effect) == ("pathfinder" not in gains)


def test_the_effect_is_in_percentage_points_with_its_interval():
    # s = 0.01, n = 3: 4.303 * 0.01 / sqrt(3) = 0.0248
    assert "Image +10.0 [7.5, 12.5]" in conclude(make_result(ALL)).effect


def test_the_figure_has_a_panel_per_task_and_the_caption_names_missing_tasks(result):
    figure = draw(result)
    (axis,) = figure.axes
    assert axis.get_title() == "ListOps, n = 64"
    assert figure.get_size_inches()[0] <= full_lra.WIDTH
    heights = [line.get_ydata()[0] for line in axis.lines]
    assert 0.3637 in heights and float(result["constant_accuracy"].item()) in heights
    assert caption(result).endswith("Left out: Image, Pathfinder.")
    assert "20 and 10 steps (0.001 % of the published steps), 1 seed, float32" in caption(result)


def test_progress_of_an_unfinished_run(runs):
    go_on(Lab(), PLAN.config("listops", "spt", 11), full_lra.time.monotonic() + 0.01)
    run = PLAN.run("listops", "spt", 11)
    spt, supervised = full_lra.progress(PLAN).to_dict("records")
    assert run.finished is None and spt["step"] == load(run.latest_path).step >= 1
    assert (spt["of"], supervised["step"], supervised["of"]) == (20, 0, 20)
