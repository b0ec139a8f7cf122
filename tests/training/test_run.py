"""Run folders: checkpoints by step, and what a run shows of itself."""

import re
import shutil
import subprocess
import sys

import pytest

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.training.run import Run


def test_a_checkpoint_is_found_by_its_step(spt_run):
    assert spt_run.steps == [checkpoint.step for checkpoint in spt_run.checkpoints]
    assert spt_run.at(8).step == 8 and spt_run.at(8).path == spt_run.path_of(8)
    with pytest.raises(UsageError, match=r"has no checkpoint at step 2000; valid: 0, 1, 8, 9, 12$"):
        spt_run.at(2000)


def test_the_folder_of_checkpoints_stands_for_the_run(spt_run, tmp_path):
    assert Run.open(spt_run.folder / "checkpoints") == spt_run
    run = shutil.copytree(spt_run.folder, tmp_path / "checkpoints")  # a run of that name
    assert Run.open(run).folder == run
    with pytest.raises(UsageError, match="no such folder"):
        Run.open(tmp_path / "elsewhere" / "checkpoints")


def test_paths_that_are_no_checkpoint_say_what_to_pass(spt_run, tmp_path):
    folder = spt_run.folder
    for path, message in {
        folder / "step-000008.pt": f"no such file; did you mean {folder}/checkpoints/step-000008.pt?",
        folder / "checkpoints" / "step-8.pt": f"no such file; did you mean {folder}/checkpoints/step-000008.pt?",
        folder / "8": f"no such file; did you mean {folder}/checkpoints/step-000008.pt?",
        folder / "checkpoints" / "step-7.pt": "no such file; available: step-000000.pt, step-000001.pt, ",
        folder: f"is a folder, not a checkpoint; take one of its checkpoints with attnprobe.Run.open('{folder}').at(",
        folder / "checkpoints": f"attnprobe.Run.open('{folder}').at(STEP); steps: 0, 1, 8, 9, 12",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            ap.load(path)
    with pytest.raises(UsageError, match="is a folder, not a checkpoint$"):
        ap.load(tmp_path)
    # in another process, without the type checks of the tests
    ended = subprocess.run([sys.executable, "-c", "import attnprobe as ap; ap.load(8)"], capture_output=True, text=True)
    advice = "of a run, take the checkpoint at a step with attnprobe.Run.open(FOLDER).at(STEP)"
    assert f"UsageError: 8: must be the path of a checkpoint; {advice}\n" in ended.stderr


def test_measures_take_the_path_of_a_checkpoint_and_refuse_a_run(spt_run):
    path = spt_run.path_of(8)
    few = {"sequences": 4, "nulls": 1}
    expected = ap.proximity(ap.load(path), **few)
    for given in (path, str(path)):
        assert ap.proximity(given, **few).drop_attrs().identical(expected.drop_attrs())
    with pytest.raises(UsageError, match=r"measure one checkpoint of the run, run.at\(STEP\); steps: 0, 1, 8, 9, 12$"):
        ap.proximity(spt_run)
    with pytest.raises(UsageError, match="x.pt: no such file"):
        ap.proximity("x.pt")


def test_the_table_has_the_metrics_of_every_evaluation(spt_run):
    table = spt_run.table
    assert table["step"].tolist() == [row["step"] for row in spt_run.metrics]
    assert table.iloc[-1]["test_loss"] == spt_run.metrics[-1]["test_loss"]
    assert not any(name.endswith("by_class") for name in table)


def test_jupyter_shows_status_settings_metrics_and_the_next_call(spt_run, tmp_path):
    shown = spt_run._repr_html_()
    assert "finished at step 12 (all steps)" in shown and "0, 1, 8, 9, 12" in shown
    assert "steps=12, pretrain_steps=8" in shown and "attnprobe.proximity(run.at(12))" in shown
    for objective in ("masked", "labels"):
        last = [row for row in spt_run.metrics if row["objective"] == objective][-1]
        (row,) = re.findall(f"<tr><td>{objective}</td>(.*?)</tr>", shown)
        cells = re.findall("<td>(.*?)</td>", row)
        assert cells[0] == str(last["step"])
        assert f"{last['test_accuracy']:.4g}" in cells

    folder = shutil.copytree(spt_run.folder, tmp_path / "<run>")
    (folder / "finished.json").unlink()
    shown = Run(folder)._repr_html_()
    assert "unfinished, evaluated up to step 12 of 12" in shown and "attnprobe.resume(" in shown
    assert "<run>" not in shown and "&lt;run&gt;" in shown
    (folder / "config.json").write_text("{")
    assert "damaged" in Run(folder)._repr_html_()
