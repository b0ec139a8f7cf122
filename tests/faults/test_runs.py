"""Damaged files, edited settings and full disks: named in one line, or restored from a checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import TINY

from attnprobe.cli import main
from attnprobe.errors import UsageError
from attnprobe.sweeps.cells import look
from attnprobe.tasks import configure
from attnprobe.training.loop import resume, train
from attnprobe.training.metrics import DamageWarning
from attnprobe.training.run import Run

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {**TINY, "pretrain_steps": 8, "d_model": 16}


class Stopped(Exception):
    pass


def stop_at(step):
    def on_step(reached):
        if reached == step:
            raise Stopped

    return on_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(configure("pairs", **SETTINGS), tmp_path_factory.mktemp("whole") / "run", progress=False)


@pytest.fixture
def finished(whole, tmp_path):
    return Run(shutil.copytree(whole.folder, tmp_path / "x"))


@pytest.fixture
def half(whole, tmp_path):
    """Run that stopped at step 9, with its latest state at step 8."""
    with pytest.raises(Stopped):
        train(whole.config, tmp_path / "half", progress=False, on_step=stop_at(9))
    return Run(tmp_path / "half")


def assert_same(run, other):
    assert run.metrics == other.metrics and run.finished == other.finished and run.config == other.config
    for a, b in zip(run.checkpoints, other.checkpoints, strict=True):
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, empty, spoil])
def test_a_damaged_finished_json_is_named_and_repaired(damage, finished, whole, tmp_path, capsys):
    damage(finished.finished_path)
    with pytest.raises(UsageError, match=r"x/finished\.json: damaged \(.*\); repair it with --resume .*x"):
        _ = finished.finished
    with pytest.raises(SystemExit):
        main(["train", "--out", str(finished.folder)])
    assert "finished.json: damaged" in capsys.readouterr().err
    assert look(finished.folder).status == "unfinished"
    with pytest.warns(DamageWarning, match=r"finished\.json: damaged"):
        resume(finished.folder, progress=False)
    assert_same(finished, whole)


@pytest.mark.parametrize("damage", [cut, empty, spoil])
def test_the_metrics_of_a_finished_run_are_read_and_restored_from_its_checkpoint(damage, finished, whole):
    damage(finished.metrics_path)
    with pytest.warns(DamageWarning, match=r"metrics\.jsonl: .*damaged .*; the metrics in .*step-000012\.pt are used"):
        assert finished.metrics == whole.metrics
    assert look(finished.folder).status == "unfinished"
    with pytest.warns(DamageWarning, match=r"metrics\.jsonl: .*damaged .*; restored from .*step-000012\.pt"):
        resume(finished.folder, progress=False)
    assert finished.metrics_path.read_bytes() == whole.metrics_path.read_bytes()


def altered(path, before, after):
    """Replace one value in a text file, which stays valid JSON."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_altered_values_in_the_metrics_of_a_finished_run_are_noticed(finished, whole):
    altered(finished.metrics_path, '"test_accuracy": 0.', '"test_accuracy": 1.')
    with pytest.warns(DamageWarning, match=r"metrics\.jsonl: damaged or edited .*; the metrics in .*\.pt are used"):
        assert finished.metrics == whole.metrics
    assert look(finished.folder).status == "unfinished"
    with pytest.warns(DamageWarning, match=r"restored from .*step-000012\.pt"):
        resume(finished.folder, progress=False)
    assert_same(finished, whole)
    assert finished.finished_path.read_bytes() == whole.finished_path.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"), [('"batch_size": 16', '"batch_size": 17'), ('"created": "2', '"created": "3')]
)
def test_an_altered_config_of_a_finished_run_is_named_and_restored(before, after, finished, whole):
    altered(finished.settings_path, before, after)
    with pytest.raises(UsageError, match=r"config\.json: damaged or edited \(its content differs from the digest"):
        _ = finished.config
    assert look(finished.folder).status == "unfinished"
    with pytest.warns(DamageWarning, match=r"config\.json: damaged or edited .*"):
        resume(finished.folder, progress=False)
    assert_same(finished, whole)
    assert look(finished.folder).status == "done"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("all steps", "all stepr"),
        ('"best_step": null', '"best_step": 12'),
        ('"sha256"', '"sha257"'),
        ('"rows"', '"rowr"'),
    ],
)
def test_an_altered_finished_json_is_named_and_repaired(before, after, finished, whole):
    altered(finished.finished_path, before, after)
    with pytest.raises(UsageError, match=r"finished\.json: damaged .*; repair it with --resume"):
        _ = finished.finished
    with pytest.warns(DamageWarning, match=r"finished\.json: damaged"):
        resume(finished.folder, progress=False)
    assert_same(finished, whole)


def test_a_finished_run_of_an_earlier_version_has_no_digests(finished, whole):
    content = json.loads(finished.finished_path.read_text())
    for names in (("sha256",), ("rows",)):
        content = {name: value for name, value in content.items() if name not in names}
        finished.finished_path.write_text(json.dumps(content))
        assert (finished.config, finished.metrics) == (whole.config, whole.metrics)
        assert resume(finished.folder, progress=False).finished == content
        assert look(finished.folder).status == "done"


def test_settings_altered_during_training_are_noticed_afterwards(whole, tmp_path):
    def alter(step):
        if step == 3:
            altered(tmp_path / "x" / "config.json", '"batch_size": 16', '"batch_size": 17')

    train(whole.config, tmp_path / "x", progress=False, on_step=alter)
    with pytest.raises(UsageError, match=r"config\.json: damaged or edited"):
        _ = Run(tmp_path / "x").config


def test_missing_lines_of_a_finished_run_are_noticed(finished, whole):
    lines = whole.metrics_path.read_text().splitlines(keepends=True)
    for kept in (lines[:-1], lines[1:], []):
        finished.metrics_path.write_text("".join(kept))
        with pytest.warns(DamageWarning, match="damaged"):
            assert finished.metrics == whole.metrics


def test_a_bad_byte_in_the_metrics_of_an_unfinished_run(half, whole):
    spoil(half.metrics_path)
    with pytest.warns(DamageWarning, match=r"metrics\.jsonl: line \d: damaged"):
        assert half.metrics == half.latest.metrics
    assert_same(resume(half.folder, progress=False), whole)


@pytest.mark.parametrize("damage", [cut, empty, spoil])
def test_a_damaged_config_is_named_and_restored(damage, half, whole):
    damage(half.folder / "config.json")
    with pytest.raises(UsageError, match=r"config\.json: damaged"):
        _ = half.config
    with pytest.warns(DamageWarning, match=r"config\.json: damaged .*; restored from .*"):
        resume(half.folder, progress=False)
    assert_same(half, whole)


@pytest.mark.parametrize("damage", [cut, empty])
def test_the_newest_intact_state_is_used(damage, half, whole):
    newest = half.latest
    damage(newest.path)
    with pytest.warns(
        DamageWarning, match=rf"{newest.path.name}: not an attnprobe checkpoint, or damaged .* the state of"
    ):
        assert half.latest.step < newest.step or half.latest.path != newest.path
    with pytest.warns(DamageWarning):
        resume(half.folder, progress=False)
    assert_same(half, whole)


def test_a_damaged_last_checkpoint_of_a_finished_run_is_trained_again(finished, whole):
    cut(finished.checkpoint_paths[-1])
    with pytest.warns(DamageWarning, match=r"step-000012\.pt: not an attnprobe checkpoint, or damaged"):
        resume(finished.folder, progress=False)
    assert_same(finished, whole)


def test_a_run_whose_states_are_all_damaged_is_refused(half):
    for path in half.folder.rglob("*.pt"):
        cut(path)
    with pytest.raises(UsageError, match="not an attnprobe checkpoint, or damaged"):
        resume(half.folder, progress=False)


def edit(run, **settings):
    path = run.folder / "config.json"
    content = json.loads(path.read_text())
    for name, value in settings.items():
        where = content["config"]["model"] if name in content["config"]["model"] else content["config"]
        where[name] = value
    path.write_text(json.dumps(content))


EDITS = {"learning_rate": 0.1, "batch_size": 8, "seed": 5, "d_model": 32, "steps": 99, "task_options": {"n": 16}}


@pytest.mark.parametrize("name", EDITS)
def test_edited_settings_are_refused_by_name(name, half, whole, capsys):
    before = half.config.model.d_model if name == "d_model" else getattr(half.config, name)
    edit(half, **{name: EDITS[name]})
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(half.folder)])
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in message
    assert f"{name}={EDITS[name]!r} instead of {before!r}" in message and "--init-from" in message
    edit(half, **{name: before})
    assert_same(resume(half.folder, progress=False), whole)


@pytest.mark.parametrize(("name", "value"), [("norm", "lcyer"), ("device", "cp}"), ("schedule", "cosinm")])
def test_invalid_settings_are_refused_in_one_line_that_names_the_run(name, value, half):
    edit(half, **{name: value})
    with pytest.raises(UsageError, match=rf"^{half.folder}.*: {name}='{value}'") as caught:
        resume(half.folder, progress=False)
    assert "\n" not in str(caught.value)


def test_the_device_may_be_edited(half):
    edit(half, device="cpu:0")
    assert resume(half.folder, progress=False).finished["step"] == 12


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES)); "
TRAIN = "from attnprobe.cli import main; main(['train', '--resume', 'half'])"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "file"), [(60000, "latest.pt|step-"), (700, "metrics.jsonl")])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(size, file, half, whole):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMIT.replace("BYTES", str(size)) + TRAIN]
    done = subprocess.run(command, cwd=half.folder.parent, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("attnprobe: training stopped: half/") and any(name in line for name in file.split("|"))
    assert "cannot be written (File too large); the last good checkpoint is half/" in line
    assert line.endswith("continue with attnprobe train --resume half")
    assert not list(half.folder.rglob("*.part"))
    assert_same(resume(half.folder, progress=False), whole)


def test_a_folder_that_vanishes_is_one_line(tmp_path):
    def remove(step):
        if step == 3:
            shutil.rmtree(tmp_path / "x")

    with pytest.raises(UsageError) as caught:
        train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False, on_step=remove)
    assert "No such file or directory); the run folder is gone; train again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_vanish_are_one_line(tmp_path):
    def remove(step):
        if step == 3:
            shutil.rmtree(tmp_path / "x" / "checkpoints")

    with pytest.raises(UsageError, match=r"No such file or directory\); .*continue with attnprobe train --resume"):
        train(configure("pairs", **{**SETTINGS, "evaluations": 1}), tmp_path / "x", progress=False, on_step=remove)
