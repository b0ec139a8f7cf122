"""Resuming an interrupted run gives the same result as an uninterrupted run."""

import dataclasses
import json
import multiprocessing
import random
import shutil
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from support import TINY, train_or_resume

import attnprobe.training.loop
from attnprobe.errors import UsageError
from attnprobe.tasks import configure
from attnprobe.training.batches import draw
from attnprobe.training.checkpoint import load
from attnprobe.training.loop import resume, train
from attnprobe.training.run import Run

SETTINGS = {**TINY, "steps": 60, "pretrain_steps": 36, "evaluations": 30, "d_model": 16, "dropout": 0.1}


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def on_step(reached):
        if reached == step:
            raise Interrupted

    return on_step


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(configure("pairs", **SETTINGS), tmp_path_factory.mktemp("uninterrupted") / "run", progress=False)


def assert_same(run, other):
    assert run.metrics == other.metrics
    assert run.finished == other.finished
    assert [path.name for path in run.checkpoint_paths] == [path.name for path in other.checkpoint_paths]
    for a, b in zip(run.checkpoints, other.checkpoints, strict=True):
        assert a.metrics == b.metrics
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())
        for left, right in zip(a.optimiser["state"].values(), b.optimiser["state"].values(), strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left)
    assert not run.latest_path.exists()


# within the first stage, at its end, at the first step of the second, at a step without a save, at the end
@pytest.mark.parametrize("step", [7, 36, 37, 59, 60])
def test_a_resumed_run_is_bit_identical(uninterrupted, tmp_path, step):
    with pytest.raises(Interrupted):
        train(uninterrupted.config, tmp_path / "x", progress=False, on_step=interrupt_at(step))
    run = Run(tmp_path / "x")
    assert run.exists and not run.finished
    latest = run.latest.step
    assert step - 2 < latest <= step
    steps = []
    assert_same(resume(tmp_path / "x", progress=False, on_step=steps.append), uninterrupted)
    assert steps == list(range(latest + 1, 61)), "training resumes at the latest state"


@pytest.mark.slow
def test_a_run_killed_at_random_points_is_bit_identical(uninterrupted, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attnprobe.training.loop"])
    rng, killed, patience = random.Random(0), 0, 0.3
    folder = tmp_path / "x"
    for _ in range(60):
        child = context.Process(target=train_or_resume, args=(folder, dataclasses.asdict(uninterrupted.config)))
        child.start()
        if not killed:
            while not Run(folder).exists:  # the first start waits for the fork server to import torch
                time.sleep(0.01)
        child.join(rng.uniform(0.01, patience))
        patience *= 1.1  # so that the run also ends on a slow machine
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
        if Run(folder).finished:
            break
        assert child.exitcode in (0, -9)
    assert killed >= 2
    assert_same(Run(folder), uninterrupted)


def test_the_state_is_saved_periodically_between_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(attnprobe.training.loop, "SAVED_EVERY", 0.0)
    config = configure("pairs", **{**SETTINGS, "evaluations": 1, "checkpoints": 1})
    with pytest.raises(Interrupted):
        train(config, tmp_path / "x", progress=False, on_step=interrupt_at(17))
    assert Run(tmp_path / "x").latest.step == 17
    monkeypatch.setattr(attnprobe.training.loop, "SAVED_EVERY", 1e9)
    assert_same(resume(tmp_path / "x", progress=False), train(config, tmp_path / "y", progress=False))


def test_a_run_without_a_saved_state_starts_over(uninterrupted, tmp_path):
    run = Run.create(tmp_path / "x", uninterrupted.config)
    assert run.latest is None
    assert_same(resume(run.folder, progress=False), uninterrupted)


def test_a_run_split_by_time_limits_is_bit_identical(uninterrupted, tmp_path):
    pieces, run = 1, train(uninterrupted.config, tmp_path / "x", progress=False, minutes=0.0)
    while not run.finished:
        assert run.latest.step == pieces, "every call trains at least one step"
        pieces, run = pieces + 1, resume(tmp_path / "x", progress=False, minutes=0.0)
    assert pieces == uninterrupted.config.steps
    assert_same(run, uninterrupted)


def test_a_finished_run_is_not_modified(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.folder.rglob("*")}
    assert resume(uninterrupted.folder).last.step == 60
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.folder.rglob("*")} == before


def test_early_stopping_is_the_same_after_resuming(tmp_path):
    config = configure(
        "pairs", **{**SETTINGS, "recipe": "supervised", "learning_rate": 0.05, "validation_size": 20, "patience": 4}
    )
    expected = train(config, tmp_path / "expected", progress=False)
    assert expected.finished["why"] == "patience"
    with pytest.raises(Interrupted):
        train(config, tmp_path / "x", progress=False, on_step=interrupt_at(expected.finished["step"] - 3))
    assert_same(resume(tmp_path / "x", progress=False), expected)


# More steps for a finished run

LONGER = {**SETTINGS, "steps": 24, "pretrain_steps": 14, "evaluations": 6, "warmup_steps": 4, "validation_size": 10}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(configure("pairs", **LONGER), tmp_path_factory.mktemp("finished") / "run", progress=False)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Run that has its additional steps from the beginning."""
    config = configure("pairs", **LONGER, more_steps=(12, 6))
    return train(config, tmp_path_factory.mktemp("once") / "run", progress=False)


def test_adding_steps_twice_is_the_same_as_having_them_from_the_beginning(finished, at_once, tmp_path):
    run = Run(shutil.copytree(finished.folder, tmp_path / "x"))
    before = {path.name: path.read_bytes() for path in run.checkpoint_paths}
    longer = resume(run.folder, more_steps=12, progress=False)
    assert (longer.config.steps, longer.config.more_steps, longer.finished["step"]) == (24, (12,), 36)
    longer = resume(run.folder, more_steps=6, progress=False)
    assert longer.config == at_once.config and longer.last.config == at_once.config
    assert_same(Run(run.folder), at_once)
    assert longer.metrics[: len(finished.metrics)] == finished.metrics
    for name, content in before.items():
        assert (run.folder / "checkpoints" / name).read_bytes() == content, "former checkpoints are kept"


# at the first step, within the first addition, at its end, at the first step of the second, at the end
@pytest.mark.parametrize("step", [25, 30, 36, 37, 42])
def test_an_interrupted_addition_resumes_bit_identically(step, finished, at_once, tmp_path):
    run = Run(shutil.copytree(finished.folder, tmp_path / "x"))
    for more_steps, last in ((12, 36), (6, 42)):
        if last - more_steps < step <= last:
            with pytest.raises(Interrupted):
                resume(run.folder, more_steps=more_steps, progress=False, on_step=interrupt_at(step))
            assert run.finished is None
            with pytest.raises(UsageError, match="x: has not finished, so no steps can be added; first continue it"):
                resume(run.folder, more_steps=more_steps)
            resume(run.folder, progress=False)
        else:
            resume(run.folder, more_steps=more_steps, progress=False)
    assert_same(Run(run.folder), at_once)


def test_added_steps_train_on_new_batches_with_a_new_schedule(finished, tmp_path, monkeypatch):
    drawn = []

    def recorded(config, split, objective, step):
        drawn.append((objective, step))
        return draw(config, split, objective, step)

    monkeypatch.setattr(attnprobe.training.loop, "draw", recorded)
    run = Run(shutil.copytree(finished.folder, tmp_path / "x"))
    optimiser_steps = finished.last.optimiser["state"][0]["step"]
    longer = resume(run.folder, more_steps=8, progress=False)
    assert drawn == [("labels", 10 + step) for step in range(1, 9)], "the batches after those of the first 10 steps"
    assert longer.last.optimiser["state"][0]["step"] == optimiser_steps + 8, "the optimiser goes on"
    rates = {row["step"]: row["learning_rate"] for row in longer.metrics}
    peak = run.config.learning_rate
    assert rates[24] == pytest.approx(0.05 * peak) and rates[28] == pytest.approx(peak)  # 4 steps of warm-up
    assert rates[32] == pytest.approx(0.05 * peak)
    assert [step for step in rates if step > 24 and step % 4 == 0] == [28, 32], "evaluations keep their spacing"


def test_added_steps_continue_the_last_objective(tmp_path):
    config = configure("pairs", **{**LONGER, "steps": 6, "pretrain_steps": 6})
    assert dataclasses.replace(config, more_steps=(3,)).stages == (("masked", 6), ("masked", 3))
    train(config, tmp_path / "x", progress=False)
    assert resume(tmp_path / "x", more_steps=3, progress=False).metrics[-1]["objective"] == "masked"
    supervised = dataclasses.replace(config, recipe="supervised", more_steps=(3, 2))
    assert supervised.stages == (("labels", 6), ("labels", 3), ("labels", 2)) and supervised.total_steps == 11


def test_the_whole_test_split_is_evaluated_at_the_end_of_every_addition(tmp_path):
    config = configure("pairs", **{**LONGER, "validation_size": 0}, eval_size=10)
    train(config, tmp_path / "x", progress=False)
    rows = resume(tmp_path / "x", more_steps=8, progress=False).metrics
    assert [row["step"] for row in rows if row["test_sequences"] == 40] == [24, 32]


def test_steps_are_not_added_to_other_runs(finished, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        resume(tmp_path, more_steps=5)
    run = Run(shutil.copytree(finished.folder, tmp_path / "x"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="more_steps.0=0: input should be greater than 0"):
        resume(run.folder, more_steps=0)
    replace(run.checkpoints[-1], fingerprint="0" * 16).save(run.checkpoint_paths[-1])
    with pytest.raises(UsageError, match="no longer generates this run's data"):
        resume(run.folder, more_steps=5)
    run.checkpoint_paths[-1].write_bytes(before[run.checkpoint_paths[-1]])
    after = {path: path.read_bytes() for path in before}
    assert after == before, "a refused addition changes nothing"
    patient = {**SETTINGS, "recipe": "supervised", "learning_rate": 0.05, "validation_size": 20, "patience": 4}
    ended = train(configure("pairs", **patient), tmp_path / "y", progress=False)
    assert ended.finished["why"] == "patience"
    with pytest.raises(UsageError, match=r"y: ended by patience=4 at step \d+ of 60, so no steps can be added; train"):
        resume(tmp_path / "y", more_steps=5)


def test_patience_counts_the_evaluations_of_added_steps_only(tmp_path):
    # The learning rate is nearly 0, so no evaluation improves, and every stage has fewer evaluations than patience.
    settings = {**LONGER, "recipe": "supervised", "learning_rate": 1e-9, "warmup_steps": 8}
    run = train(configure("pairs", **settings, patience=5), tmp_path / "x", progress=False)
    assert run.finished["why"] == "all steps"
    longer = resume(tmp_path / "x", more_steps=16, progress=False)  # 4 evaluations, 2 of them during warm-up
    assert longer.finished["why"] == "all steps"
    ended = resume(tmp_path / "x", more_steps=60, progress=False)
    assert ended.finished["why"] == "patience" and 24 + 16 + 8 + 5 * 4 <= ended.finished["step"] < 100


def test_a_run_from_before_steps_could_be_added_is_made_longer(finished, tmp_path):
    run = Run(shutil.copytree(finished.folder, tmp_path / "x"))
    content = json.loads((run.folder / "config.json").read_text())
    for name in ("more_steps", "eval_size", "class_weights"):
        del content["config"][name]
    (run.folder / "config.json").write_text(json.dumps(content))
    ended = json.loads(run.finished_path.read_text())
    del ended["sha256"]
    run.finished_path.write_text(json.dumps(ended))
    assert run.config == finished.config
    assert resume(run.folder, more_steps=2, progress=False).last.step == 26


def test_two_processes_never_train_in_one_folder(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        train(uninterrupted.config, tmp_path / "x", progress=False, on_step=interrupt_at(8))
    run = Run(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with FileLock(run.folder / "run.lock"):  # the lock of a process that trains
        with pytest.raises(UsageError, match="x: another process is training in this folder"):
            resume(run.folder, progress=False)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
    assert_same(resume(run.folder, progress=False), uninterrupted)

    def meanwhile(step):
        with pytest.raises(UsageError, match="another process is training in this folder"):
            resume(tmp_path / "y", progress=False)

    train(
        configure("pairs", **{**SETTINGS, "steps": 2, "pretrain_steps": 1}),
        tmp_path / "y",
        progress=False,
        on_step=meanwhile,
    )


def test_resuming_restores_the_folder_to_the_state(uninterrupted, tmp_path):
    # killed after an unscheduled checkpoint was saved, and while another one was being written
    with pytest.raises(Interrupted):
        train(uninterrupted.config, tmp_path / "x", progress=False, on_step=interrupt_at(20))
    run = Run(tmp_path / "x")
    shutil.copy(run.path_of(0), run.path_of(5))
    (run.folder / "latest.pt.0.part").write_text("half")
    (run.folder / "checkpoints" / "step-000020.pt.0.part").write_text("half")
    assert_same(resume(run.folder, progress=False), uninterrupted)
    assert not list(run.folder.rglob("*.part"))


def test_resuming_does_not_need_the_init_from_checkpoint(uninterrupted, tmp_path):
    shutil.copy(uninterrupted.checkpoint_paths[-1], tmp_path / "source.pt")
    config = configure("pairs", **SETTINGS, init_from=str(tmp_path / "source.pt"))
    expected = train(config, tmp_path / "alone", progress=False)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "x", progress=False, on_step=interrupt_at(8))
    (tmp_path / "source.pt").unlink()
    assert_same(resume(tmp_path / "x", progress=False), expected)


def test_a_truncated_line_of_metrics_is_ignored(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder, tmp_path / "x")
    with (tmp_path / "x" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "obj')
    assert Run(tmp_path / "x").metrics == uninterrupted.metrics


def test_invalid_runs_are_not_resumed(uninterrupted, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        resume(tmp_path)
    shutil.copytree(uninterrupted.folder, tmp_path / "x")
    (tmp_path / "x" / "finished.json").unlink()
    replace(uninterrupted.checkpoints[-1], fingerprint="0" * 16).save(tmp_path / "x" / "latest.pt")
    (tmp_path / "x" / "checkpoints" / uninterrupted.checkpoint_paths[-1].name).unlink()
    with pytest.raises(UsageError, match="no longer generates this run's data"):
        resume(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text(json.dumps({"config": {"tusk": "pairs"}}))
    with pytest.raises(UsageError, match="unknown tusk"):
        resume(tmp_path / "x")
    with pytest.raises(UsageError, match=r"already holds a run \(unfinished; continue it with --resume"):
        train(uninterrupted.config, tmp_path / "x")
    with pytest.raises(UsageError, match="has not finished"):
        _ = Run(tmp_path / "x").last


def test_the_latest_state_can_be_loaded_as_a_checkpoint(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        train(uninterrupted.config, tmp_path / "x", progress=False, on_step=interrupt_at(8))
    assert load(tmp_path / "x" / "latest.pt").describe()["checkpoint"]["step"] == 8
