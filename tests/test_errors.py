"""Messages about unknown names, and errors in Jupyter."""

import os
import subprocess
import sys

import pytest

import attnprobe as ap
from attnprobe.errors import UsageError, choices
from attnprobe.sweeps import read_sweep
from attnprobe.tables import EDITS, MEASURES, OBJECTIVES, POSITIONS


def test_the_most_similar_name_comes_before_all_valid_ones():
    assert choices("pears", ["digits", "pairs"]) == "did you mean 'pairs'? valid: digits, pairs"
    assert choices("qqq", ["digits", "pairs"]) == "valid: digits, pairs"
    assert choices(3, ["digits"]) == "valid: digits"


def unknown_arguments(spt_run, folder):
    """Return calls with a misspelt name, and the name that was meant."""
    checkpoint = spt_run.checkpoints[0]
    (folder / "sweep.toml").write_text("[grids]\nseed = [0]\n")
    return {
        "task": (lambda: ap.configure("pears"), "pairs"),
        "task option": (lambda: ap.configure("pairs", task_options={"train_sise": 3}), "train_size"),
        "preset": (lambda: ap.configure(preset="small-listop"), "small-listops"),
        "recipe": (lambda: ap.configure("pairs", recipe="spit"), "spt"),
        "setting": (lambda: ap.configure("pairs", n_layer=3), "n_layers"),
        "objective": (lambda: ap.configure("pairs", pretrain_objective="maskd"), "masked"),
        "position": (lambda: ap.configure("pairs", position="lerned"), "learned"),
        "measure": (lambda: MEASURES["proximty"], "proximity"),
        "registry": (lambda: OBJECTIVES["label"], "labels"),
        "encoding": (lambda: POSITIONS["rotery"], "rotary"),
        "edit": (lambda: ap.interventions(checkpoint, edits=("ablate_topelitz",)), "ablate_toeplitz"),
        "edit that needs another network": (lambda: ap.interventions(checkpoint, edits=("patch_qks",)), "patch_qk"),
        "gradient": (lambda: ap.gradients(checkpoint, objectives=("mask",)), "masked"),
        "array": (lambda: ap.Task.from_arrays(tokens=[[0]] * 4, label=[0, 1] * 2), "labels"),
        "sweep": (lambda: read_sweep(folder / "sweep.toml"), "grid"),
        "tracker": (lambda: ap.train(ap.configure("pairs"), folder / "x", log=["wandbb"]), "wandb"),
        "attribute": (lambda: ap.proximty, "proximity"),
    }


def test_every_unknown_name_comes_with_the_most_similar_one(spt_run, tmp_path):
    for what, (call, meant) in unknown_arguments(spt_run, tmp_path).items():
        with pytest.raises((UsageError, AttributeError)) as refused:
            call()
        assert f"did you mean '{meant}'? " in str(refused.value), what
    assert "patch_qk" in EDITS


def test_a_jupyter_notebook_shows_one_line_instead_of_a_traceback(tmp_path):
    pytest.importorskip("IPython", reason="needs IPython")
    code = "import attnprobe as ap\nap.load('x.pt')"
    shell = [sys.executable, "-m", "IPython", "--colors=NoColor", "--HistoryManager.enabled=False", "-c", code]
    ended = subprocess.run(shell, capture_output=True, text=True, env={**os.environ, "IPYTHONDIR": str(tmp_path)})
    assert (ended.stdout + ended.stderr).strip() == "UsageError: x.pt: no such file"
