"""A run that is cut off anywhere ends as if nothing had happened."""

import dataclasses
import json
import multiprocessing
import random
import shutil
import time

import pytest
import torch
from filelock import FileLock
from support import TINY, train_or_resume

import attnprobe.training.loop
from attnprobe.errors import UsageError
from attnprobe.tasks import configure
from attnprobe.training.checkpoint import load
from attnprobe.training.loop import resume, train
from attnprobe.training.run import Run

NAMED = {**TINY, "steps": 60, "pretrain_steps": 36, "evaluations": 30, "d_model": 16}


class CutOff(Exception):
    pass


def cut_off_after(step):
    def on_step(done):
        if done == step:
            raise CutOff

    return on_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(configure("pairs", **NAMED), tmp_path_factory.mktemp("whole") / "run", progress=False)


def assert_same(run, other):
    assert run.metrics == other.metrics
    assert run.finished == other.finished
    assert [path.name for path in run.checkpoint_paths] == [path.name for path in other.checkpoint_paths]
    for a, b in zip(run.checkpoints, other.checkpoints, strict=True):
        assert a.metrics == b.metrics
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())
        for one, another in zip(a.optimiser["state"].values(), b.optimiser["state"].values(), strict=True):
            assert all(torch.equal(one[name], another[name]) for name in one)
    assert not run.latest_path.exists()


# within the first stage, at its end, at the first step of the second, at a step that nothing is saved at
@pytest.mark.parametrize("step", [7, 36, 37, 59, 60])
def test_the_end_is_bit_identical(whole, tmp_path, step):
    with pytest.raises(CutOff):
        train(whole.config, tmp_path / "x", progress=False, on_step=cut_off_after(step))
    cut = Run(tmp_path / "x")
    assert cut.exists and not cut.finished
    newest = cut.latest.step
    assert step - 2 < newest <= step
    seen = []
    assert_same(resume(tmp_path / "x", progress=False, on_step=seen.append), whole)
    assert seen == list(range(newest + 1, 61)), "it goes on at the newest state"


@pytest.mark.slow
def test_killed_at_random_points_it_still_ends_the_same(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attnprobe.training.loop"])
    drawn, killed, patience = random.Random(0), 0, 0.3
    folder = tmp_path / "x"
    for _ in range(60):
        child = context.Process(target=train_or_resume, args=(folder, dataclasses.asdict(whole.config)))
        child.start()
        if not killed:
            while not Run(folder).exists:  # the fork server imports torch once
                time.sleep(0.01)
        child.join(drawn.uniform(0.01, patience))
        patience *= 1.1  # so that a slow machine gets there as well
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
        if Run(folder).finished:
            break
        assert child.exitcode in (0, -9)
    assert killed >= 2
    assert_same(Run(folder), whole)


def test_between_evaluations_the_state_is_saved_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(attnprobe.training.loop, "SAVED_EVERY", 0.0)
    config = configure("pairs", **{**NAMED, "evaluations": 1, "checkpoints": 1})
    with pytest.raises(CutOff):
        train(config, tmp_path / "x", progress=False, on_step=cut_off_after(17))
    assert Run(tmp_path / "x").latest.step == 17
    monkeypatch.setattr(attnprobe.training.loop, "SAVED_EVERY", 1e9)
    assert_same(resume(tmp_path / "x", progress=False), train(config, tmp_path / "y", progress=False))


def test_a_run_without_any_state_begins_anew(whole, tmp_path):
    cut = Run.create(tmp_path / "x", whole.config)
    assert cut.latest is None
    assert_same(resume(cut.folder, progress=False), whole)


def test_a_run_in_pieces_of_a_few_minutes_ends_the_same(whole, tmp_path):
    pieces, run = 1, train(whole.config, tmp_path / "x", progress=False, minutes=0.0)
    while not run.finished:
        assert run.latest.step == pieces, "every piece takes at least one step"
        pieces, run = pieces + 1, resume(tmp_path / "x", progress=False, minutes=0.0)
    assert pieces == whole.config.steps
    assert_same(run, whole)


def test_a_finished_run_is_left_alone(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    assert resume(whole.folder).last.step == 60
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before


def test_a_run_that_ran_out_of_patience_does_so_after_resuming(tmp_path):
    config = configure(
        "pairs", **{**NAMED, "recipe": "supervised", "learning_rate": 0.05, "validation_size": 20, "patience": 4}
    )
    whole = train(config, tmp_path / "whole", progress=False)
    assert whole.finished["why"] == "patience"
    with pytest.raises(CutOff):
        train(config, tmp_path / "x", progress=False, on_step=cut_off_after(whole.finished["step"] - 3))
    assert_same(resume(tmp_path / "x", progress=False), whole)


def test_two_processes_never_train_in_one_folder(whole, tmp_path):
    with pytest.raises(CutOff):
        train(whole.config, tmp_path / "x", progress=False, on_step=cut_off_after(8))
    run = Run(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with FileLock(run.folder / "run.lock"):  # what another process holds while it trains
        with pytest.raises(UsageError, match="x: another process is training there"):
            resume(run.folder, progress=False)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
    assert_same(resume(run.folder, progress=False), whole)

    def meanwhile(step):
        with pytest.raises(UsageError, match="another process is training there"):
            resume(tmp_path / "y", progress=False)

    train(
        configure("pairs", **{**NAMED, "steps": 2, "pretrain_steps": 1}),
        tmp_path / "y",
        progress=False,
        on_step=meanwhile,
    )


def test_the_folder_goes_back_to_the_state(whole, tmp_path):
    # killed after a checkpoint was saved that nobody keeps, and while another was written
    with pytest.raises(CutOff):
        train(whole.config, tmp_path / "x", progress=False, on_step=cut_off_after(20))
    run = Run(tmp_path / "x")
    shutil.copy(run.path_of(0), run.path_of(5))
    (run.folder / "latest.pt.0.part").write_text("half")
    (run.folder / "checkpoints" / "step-000020.pt.0.part").write_text("half")
    assert_same(resume(run.folder, progress=False), whole)
    assert not list(run.folder.rglob("*.part"))


def test_the_state_holds_the_weights_that_a_run_began_with(whole, tmp_path):
    shutil.copy(whole.checkpoint_paths[-1], tmp_path / "given.pt")
    config = configure("pairs", **NAMED, init_from=str(tmp_path / "given.pt"))
    alone = train(config, tmp_path / "alone", progress=False)
    with pytest.raises(CutOff):
        train(config, tmp_path / "x", progress=False, on_step=cut_off_after(8))
    (tmp_path / "given.pt").unlink()
    assert_same(resume(tmp_path / "x", progress=False), alone)


def test_half_a_line_of_metrics_is_none(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "x")
    with (tmp_path / "x" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "obj')
    assert Run(tmp_path / "x").metrics == whole.metrics


def test_what_cannot_be_resumed_is_refused(whole, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        resume(tmp_path)
    shutil.copytree(whole.folder, tmp_path / "x")
    (tmp_path / "x" / "finished.json").unlink()
    fields = torch.load(whole.checkpoint_paths[-1], weights_only=True)
    torch.save({**fields, "fingerprint": "0" * 16}, tmp_path / "x" / "latest.pt")
    (tmp_path / "x" / "checkpoints" / whole.checkpoint_paths[-1].name).unlink()
    with pytest.raises(UsageError, match="no longer gives the data of this run"):
        resume(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text(json.dumps({"config": {"tusk": "pairs"}}))
    with pytest.raises(UsageError, match="unknown tusk"):
        resume(tmp_path / "x")
    with pytest.raises(UsageError, match=r"already holds a run \(unfinished; --resume"):
        train(whole.config, tmp_path / "x")
    with pytest.raises(UsageError, match="has not finished"):
        _ = Run(tmp_path / "x").last


def test_the_newest_state_is_a_checkpoint_like_any_other(whole, tmp_path):
    with pytest.raises(CutOff):
        train(whole.config, tmp_path / "x", progress=False, on_step=cut_off_after(8))
    assert load(tmp_path / "x" / "latest.pt").describe()["checkpoint"]["step"] == 8
