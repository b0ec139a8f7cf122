"""Commands of the command line, run in this process."""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY as SPT_RUN

from attnprobe import progress, report
from attnprobe.cli import main
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.results import open_result
from attnprobe.tables import MEASURES
from attnprobe.tasks import configure
from attnprobe.tasks.folder import VARIABLE
from attnprobe.training.loop import train
from attnprobe.training.run import Run

FAST = ["--sequences", "8"]
TINY = ["--steps", "4", "--pretrain-steps", "2", "--evaluations", "1", "--checkpoints", "1", "--d-model", "8"]
FEW = ["--task-options", "train_size", "32", "test_size", "20"]


def refused(capsys, *arguments):
    """Return the one-line error of a command that exits with status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("attnprobe: ")
    assert output.err.count("\n") == 1, output.err
    return output.err


def test_a_run_is_resumed_with_its_own_settings(tmp_path, capsys):
    run = tmp_path / "x"
    main(["train", "--out", str(run), *TINY, *FEW])
    metrics = (run / "metrics.jsonl").read_text()
    # as if killed after the second to last checkpoint
    (run / "finished.json").unlink()
    (run / "checkpoints" / "step-000004.pt").unlink()
    main(["train", "--resume", str(run), "--log", "tensorboard"])
    assert "test accuracy" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_text() == metrics
    assert (run / "checkpoints" / "step-000004.pt").exists()
    assert (run / "tensorboard").exists()


def test_a_finished_run_is_made_longer(spt_run, tmp_path, capsys):
    run = shutil.copytree(spt_run.folder, tmp_path / "run")
    assert "--resume adds one number of steps" in refused(capsys, "train", "--resume", run, "--more-steps", "2", "3")
    main(["train", "--resume", str(run), "--more-steps", "3"])
    assert "test accuracy" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["steps"], config["more_steps"]) == (12, [3])
    main(["show", str(run)])
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines() if re.match(" *[0-9]", line)][-2:] == ["13", "15"]
    assert re.search(r" test\n.* balanced\n.* accuracy\n", output) and "by_class" not in output
    (run / "finished.json").unlink()
    assert "has not finished, so no steps can be added" in refused(
        capsys, "train", "--resume", run, "--more-steps", "3"
    )


def test_the_balanced_accuracy_is_printed_if_classes_are_not_balanced(tmp_path, capsys, data_flag):
    rng, labels = np.random.default_rng(0), np.arange(80) % 10 == 0
    for name, classes in (("uneven", labels.astype(int)), ("even", np.arange(80) % 2)):
        tokens = 2 * classes[:, None] + rng.integers(2, size=(80, 6)) if name == "even" else np.zeros((80, 6), int)
        np.savez(tmp_path / f"{name}.npz", tokens=tokens, labels=classes, split=np.repeat(["train", "test"], 40))
        settings = ["--recipe", "supervised", "--steps", "40", "--evaluations", "1", "--checkpoints", "1"]
        main(["train", "--task", f"{name}.npz", "--data", str(tmp_path), "--out", str(tmp_path / name), *settings])
    uneven, even = (line for line in capsys.readouterr().out.splitlines() if "labels" in line)
    # the same input in every sequence: every answer is the frequent class
    assert uneven.endswith("labels train accuracy 0.900, test accuracy 0.900, test balanced accuracy 0.500")
    assert even.endswith("labels train accuracy 1.000, test accuracy 1.000")


@pytest.mark.parametrize("flag", ["--steps", "--task", "--preset", "--out", "--config"])
def test_resume_refuses_other_settings(flag, tmp_path, capsys):
    message = refused(capsys, "train", "--resume", tmp_path, flag, "x")
    assert f"--resume uses the settings of the run: {flag} cannot be combined with it" in message


def test_flags_override_a_preset(tmp_path, capsys):
    flags = ["--preset", "small-listops", *TINY, "--task-options", "train_size", "32", "--out", str(tmp_path / "x")]
    main(["train", *flags])
    config = json.loads((tmp_path / "x" / "config.json").read_text())["config"]
    options = configure(preset="small-listops").task_options
    assert options and config["task_options"] == {**options, "train_size": 32}, "options without a flag are kept"
    assert config["steps"] == 4
    capsys.readouterr()
    assert "preset='small' is unknown" in refused(capsys, "train", "--preset", "small")
    (tmp_path / "file.toml").write_text('preset = "small-listops"\nd_model = 24\n')
    main(["train", "--config", str(tmp_path / "file.toml"), *TINY[:-2], *FEW, "--out", str(tmp_path / "y")])
    assert json.loads((tmp_path / "y" / "config.json").read_text())["config"]["model"]["d_model"] == 24


def test_train_then_show_then_proximity(tmp_path, capsys):
    run = tmp_path / "x"
    main(["train", "--task", "pairs", "--recipe", "spt", "--seed", "3", "--out", str(run), *TINY, *FEW])
    assert "test accuracy" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["seed"], config["steps"], config["model"]["d_model"]) == (3, 4, 8)
    main(["show", str(run / "checkpoints" / "step-000004.pt")])
    shown = capsys.readouterr().out
    assert "fingerprint" in shown
    assert "d_model              8" in shown
    main(["show", str(run), "--json"])
    assert [row["step"] for row in json.loads(capsys.readouterr().out)] == [0, 2, 4]

    main(["proximity", str(run / "checkpoints" / "step-000004.pt"), *FAST, "--all"])
    table = capsys.readouterr().out
    assert "toeplitz_share" in table and "_std" not in table
    folder = run / "figures" / "step-000004"
    assert sorted(path.name for path in folder.iterdir()) == ["proximity.nc", "proximity.pdf", "proximity.png"]
    assert open_result(folder / "proximity.nc").attrs["sequences"] == 8


def test_proximity_as_json_has_one_row_per_head(spt_run, tmp_path, capsys):
    main(["proximity", str(spt_run.checkpoints[-1].path), "--out", str(tmp_path / "o"), "--json", *FAST])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    rows = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert [(row["layer"], row["head"]) for row in rows] == [(0, 0), (0, 1)]
    assert any(row["decay_length"] is None for row in rows)
    assert all(len(row["entropy_null_permuted"]) == len(row["entropy_interval"]) == 2 for row in rows)
    assert {"toeplitz_share", "near_mass_1", "near_mass_2", "decay_reason"} <= set(rows[0])
    result = open_result(tmp_path / "o" / "proximity.nc")
    assert rows[1]["near_mass_2"] == pytest.approx(float(result["near_mass"].isel(layer=0, head=1, window=1)))


def test_figures_of_a_checkpoint_outside_a_run_are_next_to_it(spt_run, tmp_path, capsys):
    path = tmp_path / "mine.pt"
    path.write_bytes(spt_run.checkpoints[-1].path.read_bytes())
    main(["proximity", str(path), *FAST])
    assert (tmp_path / "figures" / "mine" / "proximity.png").exists()


def test_proximity_of_a_run_measures_every_checkpoint(spt_run, tmp_path, capsys):
    run = shutil.copytree(spt_run.folder, tmp_path / "run")
    for step in (1, 8, 9):
        (run / "checkpoints" / f"step-{step:06d}.pt").unlink()
    main(["proximity", str(run), "--json", *FAST])
    rows = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in rows] == [0, 0, 12, 12]
    files = sorted(path.relative_to(run / "figures").as_posix() for path in (run / "figures").rglob("*.*"))
    each = ["step-000000/proximity", "step-000012/proximity", "proximity_over_steps"]
    assert files == sorted(f"{stem}.{suffix}" for stem in each for suffix in ("nc", "pdf", "png"))
    assert open_result(run / "figures" / "proximity_over_steps.nc")["step"].size == 2


@pytest.mark.parametrize("name", ["positions", "gradients", "interventions", "flow"])
def test_every_measure_prints_its_table_and_writes_its_files(name, spt_run, tmp_path, capsys):
    main([name, str(spt_run.checkpoints[-1].path), "--out", str(tmp_path), *FAST, "--nulls", "2", "--all"])
    output = capsys.readouterr().out
    assert "layer 0, head 1" in output and "95 % interval" in output
    assert "_std" not in output and "nan" not in output
    expected = {
        "positions": "variance_share_position-position",
        "gradients": "energy_share_masked_circulant",
        "interventions": "all_accuracy_change_uniform_attention",
        "flow": "input_token_similarity",
    }
    assert expected[name] in output
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.{end}" for end in ("nc", "pdf", "png")]
    main([name, str(spt_run.checkpoints[-1].path), "--out", str(tmp_path), *FAST, "--nulls", "2"])
    assert re.search(r"^\w.* of each head, largest absolute value first", capsys.readouterr().out, re.MULTILINE)


def on_few_sequences(monkeypatch, sequences):
    for name, measure in list(MEASURES.items()):
        quick = wraps(measure)(partial(measure, sequences=sequences, nulls=1))
        monkeypatch.setitem(MEASURES, name, quick)


def test_a_report_has_a_section_for_every_measure_and_writes_results_and_figures(spt_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(spt_run.folder, run)
    for path in sorted((run / "checkpoints").glob("*.pt"))[:-1]:
        path.unlink()
    main(["report", str(run), "--sequences", "2", "--nulls", "1"])
    page = Path(capsys.readouterr().out.strip())
    text = page.read_text()
    for name in MEASURES:
        assert f'<h2 id="{name}">{name}</h2>' in text
        for stem in (name, f"{name}_over_steps"):
            assert all((page.parent / f"{stem}.{suffix}").exists() for suffix in ("nc", "png", "pdf"))
            assert f'download="{stem}.pdf"' in text


def test_an_animation_has_a_frame_for_every_checkpoint(spt_run, tmp_path, capsys):
    run = shutil.copytree(spt_run.folder, tmp_path / "run")
    main(["animate", str(run), "--sequences", "2", "--nulls", "1", "--quiet"])
    path = run / "figures" / "proximity.gif"
    assert capsys.readouterr().out.strip() == str(path)
    with Image.open(path) as animation:
        assert animation.n_frames == len(spt_run.checkpoint_paths)
    with pytest.raises(SystemExit):
        main(["animate", str(run), "--measure", "proximty"])
    assert "--measure proximty is unknown; did you mean 'proximity'?" in capsys.readouterr().err


def test_a_report_of_several_paths_has_a_folder_for_each(spt_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report.page, "MEASURES", {"proximity": MEASURES["proximity"]})
    first, last = (tmp_path / name / "ckpt.pt" for name in ("a", "b"))
    for path, source in ((first, spt_run.checkpoint_paths[0]), (last, spt_run.checkpoint_paths[-1])):
        path.parent.mkdir()
        shutil.copy(source, path)
    main(["report", str(first), str(last), "--out", str(tmp_path / "out"), "--sequences", "2", "--nulls", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    assert {path.name for path in (tmp_path / "out").rglob("*.nc")} == {"proximity.nc"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "report.html"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert all(f'download="{name} ckpt proximity.pdf"' in text for name in ("a", "b"))
    with pytest.raises(UsageError, match="the same path twice"):
        report.page.write_report([first, first])


def test_a_report_says_why_a_measure_is_missing(tmp_path):
    options = {"task_options": {"train_size": 8, "test_size": 8}, "steps": 1, "evaluations": 1, "checkpoints": 1}
    config = configure("pairs", recipe="supervised", pooling="cls", d_model=8, **options)
    run = train(config, tmp_path / "run", progress=False)
    page = report.page.write_report(run.checkpoint_paths[-1], tmp_path / "page", sequences=2, nulls=1).read_text()
    assert "Not measured: ckpt: pooling=&#39;cls&#39;" in page.replace(run.checkpoint_paths[-1].stem, "ckpt")


def test_settings_come_from_the_task_then_the_file_then_the_flags(tmp_path, capsys):
    (tmp_path / "c.toml").write_text('recipe = "supervised"\nlearning_rate = 0.5\n[model]\nn_layers = 2\nd_model = 8\n')
    run = tmp_path / "x"
    flags = ["--n-layers", "3", "--steps", "1", "--evaluations", "1", "--task-options", "test_size", "1700"]
    main(["train", "--task", "digits", "--config", str(tmp_path / "c.toml"), *flags, "--out", str(run)])
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["batch_size"] == 32 != TrainConfig().batch_size  # the task's
    assert (config["recipe"], config["learning_rate"], config["model"]["d_model"]) == ("supervised", 0.5, 8)  # file
    assert (config["model"]["n_layers"], config["steps"]) == (3, 1)  # the flags'


def test_a_no_flag_overrides_true_in_a_file(tmp_path):
    (tmp_path / "c.toml").write_text("causal = true\n")
    for flags, causal in ([], True), (["--no-causal"], False):
        out = tmp_path / f"{causal}"
        main(["train", "--config", str(tmp_path / "c.toml"), *TINY, *FEW, *flags, "--out", str(out)])
        assert Run.open(out).config.model.causal is causal


@pytest.mark.parametrize(("recipe", "expected"), [("spt", 3), ("supervised", TrainConfig().pretrain_steps)])
def test_steps_alone_keep_the_share_of_self_pretraining_as_in_python(recipe, expected, tmp_path, capsys):
    flags = ["--steps", "4", "--evaluations", "1", "--checkpoints", "1", "--task-options", "test_size", "10"]
    main(["train", "--recipe", recipe, *flags, "--out", str(tmp_path / "run")])
    config = Run.open(tmp_path / "run").config
    assert config.pretrain_steps == expected
    assert config == configure(
        "pairs", recipe=recipe, steps=4, evaluations=1, checkpoints=1, task_options={"test_size": 10}
    )


def test_tasks_are_listed_with_chance_and_origin(capsys):
    main(["tasks"])
    assert "scikit-learn" in capsys.readouterr().out
    main(["tasks", "--json"])
    rows = {row["task"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["digits"]["n"], rows["digits"]["chance"], rows["digits"]["train"]) == (64, 0.1, 1197)
    assert rows["listops"]["chance"] == pytest.approx(float(rows["listops"]["balance"].split(" ... ")[1]), abs=0.005)


@pytest.fixture
def data_flag(monkeypatch):
    """Restore the environment variable that --data sets."""
    monkeypatch.setenv(VARIABLE, os.environ[VARIABLE])


def test_one_task_is_built_and_counted(tmp_path, capsys, data_flag):
    main(["tasks", "pairs", "--task-options", "train_size", "30", "broken", "0.0", "--json"])
    facts = json.loads(capsys.readouterr().out)
    train, test = facts["splits"]
    assert (train["sequences"], test["sequences"]) == (30, 2000)
    assert sum(train[f"class_{label}"] for label in range(4)) == pytest.approx(1)
    assert facts["chance"] == 0.25
    assert facts["majority"] == max(test[f"class_{label}"] for label in range(4))
    assert "options of a task require its name" in refused(capsys, "tasks", "--task-options", "n", "3")
    assert "options of a task require its name" in refused(capsys, "tasks", "--patch", "3")

    np.savez(tmp_path / "mine.npz", tokens=[[1, 2, 0], [1, 0, 0], [3, 1, 2]], labels=[0, 1, 0], lengths=[2, 1, 3])
    main(["tasks", str(tmp_path / "mine.npz")])
    output = capsys.readouterr().out
    assert re.search(r"vocabulary +4\n", output)
    assert re.search(r"length +length +length.*\nsplit .* min +median +max", output)
    assert "none" not in output.lower()
    assert "no such file" in refused(capsys, "tasks", "mine.npz", "--data", tmp_path / "elsewhere")
    main(["tasks", "mine.npz", "--data", str(tmp_path)])
    assert capsys.readouterr().out == output


def test_a_file_of_your_own_is_trained_on(tmp_path, capsys, data_flag):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", tokens=rng.integers(5, size=(40, 6)), labels=np.arange(40) % 2)
    run = ["--out", str(tmp_path / "run"), "--data", str(tmp_path), *TINY]
    main(["train", "--task", "mine.npz", *run, "--task-options", "test_share", "0.5"])
    capsys.readouterr()
    main(["proximity", str(tmp_path / "run" / "checkpoints" / "step-000004.pt"), *FAST])
    assert "mine, spt, seed 0, step 4" in capsys.readouterr().out
    (tmp_path / "mine.npz").unlink()
    message = refused(capsys, "proximity", tmp_path / "run" / "checkpoints" / "step-000004.pt")
    assert f"mine.npz: no such file; tried mine.npz, {tmp_path / 'mine.npz'}" in message


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands(arguments, capsys):
    main(arguments)
    output = capsys.readouterr().out
    assert all(command in output for command in ("demo", "train", "tasks", "show", "proximity"))


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == importlib.metadata.version("attnprobe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "bogus"),
        (["trian"], "unknown command 'trian'; did you mean 'train'? valid: demo, train"),
        (["train", "--task", "pears"], "task='pears' is unknown; did you mean 'pairs'? valid: pairs, planted, bigrams"),
        (
            ["train", "--recipe", "spit"],
            "--recipe spit is unknown; did you mean 'spt'? valid: supervised, spt",
        ),
        (["train", "--n-layers", "two"], "--n-layers"),
        (["train", "--n-layers", "0"], "n_layers=0: input should be greater than 0"),
        (["train", "--d-model", "33"], "d_model=33: must be a multiple of n_heads=2"),
        (["train", "--task-options", "m", "3"], "no parameter 'm'; valid: n, alphabet"),
        (["train", "--tusk", "pairs"], "--tusk, pairs; did you mean '--task'?"),
        (["proximity", "x.pt", "--sequence", "3"], "did you mean '--sequences'?"),
        (["train", "--config", "none.toml"], "none.toml: No such file"),
        (["train", "--init-from", "none.pt"], "none.pt: no such file"),
        (["show", "none.pt"], "none.pt: no such file"),
        (["show"], "PATH"),
        (["proximity", "none.pt"], "none.pt: no such file"),
        (["proximity", "."], "holds no checkpoints"),
        (["demo", "--seeds", "0"], "seeds=0"),
    ],
)
def test_bad_input_prints_one_line_and_writes_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_bad_input_to_a_measure_writes_no_files(spt_run, tmp_path, capsys):
    path = spt_run.checkpoints[0].path
    assert "window=99" in refused(capsys, "proximity", path, "--window", "99", "--out", tmp_path / "o" / "p")
    assert "seed=-1" in refused(capsys, "proximity", path, "--seed", "-1", "--out", tmp_path / "o" / "p")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "proximity", path, "--out", tmp_path / "file" / "o")
    (tmp_path / "bad.pt").write_bytes(path.read_bytes()[:1000])
    assert "not an attnprobe checkpoint, or damaged" in refused(capsys, "proximity", tmp_path / "bad.pt")


def test_diverged_training_names_the_last_good_checkpoint(tmp_path, capsys):
    arguments = ["--recipe", "supervised", "--learning-rate", "1e30", "--grad-clip", "0", "--warmup-steps", "0"]
    arguments += ["--steps", "20"]
    run = tmp_path / "x"
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, *FEW, "--d-model", "8", "--out", str(run)])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "training stopped" in message
    assert "the last good checkpoint is" in message
    kept = torch.load(message.split("the last good checkpoint is ")[1], weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in kept["weights"].values())


@pytest.mark.slow
def test_demo_trains_measures_and_prints_a_summary(spt_run, tmp_path, capsys, monkeypatch):
    from attnprobe import demo
    from attnprobe.results import open_result

    small = {"checkpoints": 1, "evaluations": 1, "steps": 3, "pretrain_steps": 2, "d_model": 8, "n_heads": 2}
    done = {"pretrain_steps": 8, "d_model": 16, **SPT_RUN}
    monkeypatch.setattr(demo, "SETTINGS", {"pairs": done, "digits": {**small, "task_options": {"test_size": 1750}}})
    kept = shutil.copytree(spt_run.folder, tmp_path / "pairs-spt-0")
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.pt")}
    main(["demo", "--quick", "--out", str(tmp_path), "--workers", "1"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["pairs-spt-0", "pairs-supervised-0"]
    assert "(one seed: no interval)" in capsys.readouterr().out
    main(["demo", "--out", str(tmp_path), "--seeds", "1", "--workers", "1"])
    output = capsys.readouterr().out
    assert "pairs: SPT changes test accuracy by" in output
    assert output.count(" spt ") == 2
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == [f"{task}-{recipe}-0" for task in ("digits", "pairs") for recipe in ("spt", "supervised")]
    assert {"demo.png", "demo.pdf", "pairs.nc", "digits.nc"} <= set(os.listdir(tmp_path))
    assert (
        open_result(tmp_path / "pairs.nc")["test_accuracy"].sel(recipe="spt", seed=0)
        == spt_run.metrics[-1]["test_accuracy"]
    )
    # an existing run is not trained again
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.pt")} == before


def test_demo_refuses_a_folder_with_another_run_before_training(spt_run, tmp_path, capsys):
    shutil.copytree(spt_run.folder, tmp_path / "pairs-spt-0")
    assert "holds another run or an unfinished one" in refused(capsys, "demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs-spt-0"]


def test_the_gain_is_paired_and_has_its_t_interval():
    import xarray as xr

    from attnprobe.demo import _gain

    accuracy = xr.DataArray([[0.2, 0.4, 0.3], [0.5, 0.9, 0.7]], {"recipe": ["supervised", "spt"]}, ("recipe", "seed"))
    message = _gain("pairs", xr.Dataset({"test_accuracy": accuracy}))
    # gains 0.3, 0.5, 0.4: mean 0.4, standard error 0.1 / sqrt(3), t(0.975, 2) = 4.303
    assert message == (
        "pairs: SPT changes test accuracy by +0.400 relative to supervised training, "
        "95 % t-interval +0.152 to +0.648 over 3 paired seeds"
    )


def test_advice_about_own_data_is_in_flags_and_warnings_are_one_line(tmp_path, capsys, data_flag):
    path = tmp_path / "mine.csv"
    path.write_text("text,label,split\na,x,train\nb,,train\nc,y,train\nd,x,test\ne,x,test\n")
    message = refused(capsys, "tasks", str(path))
    assert "first in row 1: --unlabelled drop leaves them out, --unlabelled pretrain uses them" in message
    command = [sys.executable, "-m", "attnprobe", "tasks", str(path), "--unlabelled", "drop"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)  # pytest takes warnings itself
    assert completed.stderr == "attnprobe: mine: all test sequences have the label x\n"


def test_the_flags_of_own_data_show_their_values_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["tasks", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--unlabelled {refuse,drop,pretrain} Sequences without a label" in text
    assert "(default: refuse)" in text and "{None" not in text


def test_a_step_selects_one_checkpoint_of_a_run(spt_run, tmp_path, capsys):
    run = shutil.copytree(spt_run.folder, tmp_path / "run")
    for path in (run, run / "checkpoints"):
        main(["proximity", str(path), "--step", "8", "--json", *FAST, "--nulls", "1"])
        by_step = json.loads(capsys.readouterr().out)
        main(["proximity", str(run / "checkpoints" / "step-000008.pt"), "--json", *FAST, "--nulls", "1"])
        assert json.loads(capsys.readouterr().out) == by_step
        assert [path.name for path in (run / "figures").iterdir()] == ["step-000008"]
        main(["show", str(path), "--step", "8", "--json"])
        assert json.loads(capsys.readouterr().out)["checkpoint"]["step"] == 8
    for command in ("proximity", "show"):
        message = refused(capsys, command, run, "--step", "2000")
        assert message.endswith("has no checkpoint at step 2000; valid: 0, 1, 8, 9, 12\n")
        message = refused(capsys, command, run / "checkpoints" / "step-000008.pt", "--step", "8")
        assert "--step 8: is for run folders" in message
        message = refused(capsys, command, run / "step-000008.pt")
        assert message.endswith(f"no such file; did you mean {run}/checkpoints/step-000008.pt?\n")


def test_the_table_has_one_line_per_head_ranked_by_the_main_number(image_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["proximity", str(image_checkpoint.path), "--out", str(tmp_path), *FAST, "--nulls", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("grid_proximity_contrast of each head") for line in lines)
    heads = [line.split()[:3] for line in lines if re.match(r" *\d+ +\d+ ", line)]
    contrast = open_result(tmp_path / "proximity.nc")["grid_proximity_contrast"]
    expected = [
        [str(layer), str(head), f"{float(contrast.sel(layer=layer, head=head)):.3f}"]
        for layer, head in sorted(
            np.ndindex(*contrast.shape), key=lambda at: -abs(float(contrast.sel(layer=at[0], head=at[1])))
        )
    ]
    assert heads == expected and len(heads) == 4
    assert all(len(line) <= 80 for line in lines if "figures and results" not in line)


def test_the_table_says_for_how_many_heads_the_main_number_is_undefined(capsys):
    import xarray as xr

    from attnprobe.cli.heads import print_heads

    rule = json.dumps([{"reason": "no data", "layer": [0], "head": [1, 2]}])
    sink = xr.Variable(("layer", "head"), [[0.1, np.nan, np.nan, -0.7]], {"long_name": "largest share"})
    sink.attrs["undefined"] = rule
    coordinates = {"layer": [0], "head": range(4)}
    print_heads(xr.Dataset({"sink": sink}, coordinates, {"measure": "sinks", "ci_prob": 0.95}), complete=False)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "sink of each head, largest absolute value first: largest share"
    assert [line.split() for line in lines[2:]] == [
        ["0", "3", "-0.700"],
        ["0", "0", "0.100"],
        "undefined in 2 heads: no data".split(),
    ]


def test_a_run_is_shown_with_one_table_per_objective(spt_run, capsys):
    main(["show", str(spt_run.folder)])
    masked, labels = capsys.readouterr().out.split("\n\n")[:2]
    for table, objective, title in (
        (masked, "masked", "masked: masked-token accuracy"),
        (labels, "labels", "labels: label accuracy"),
    ):
        first, *lines = table.splitlines()
        assert first == title and max(map(len, lines)) <= 100
        metrics = [row.last_metrics for row in spt_run.checkpoints if row.last_metrics["objective"] == objective]
        heads, rows = lines[: -len(metrics)], lines[-len(metrics) :]
        # a name continues below itself, and ends where its column ends
        words = [(word.end(), word[0]) for line in heads for word in re.finditer(r"\S+", line)]
        ends = sorted({end for end, _ in words})
        column = ["_".join(word for at, word in words if at == end) for end in ends].index("test_accuracy")
        assert [row.split()[column] for row in rows] == [f"{row['test_accuracy']:.3f}" for row in metrics]
    main(["show", str(spt_run.folder), "--step", "12"])
    assert re.search(r"learning_rate +\d\.?\d{0,5}(e-\d+)?\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["", "train", "sweep", "tasks", "show", "report", *MEASURES])
def test_help_is_wrapped_to_the_terminal(command, capsys, monkeypatch):
    for columns in (80, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) if command else contextlib.nullcontext():
            main([command, "--help"] if command else ["--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= columns, text
        assert "None" not in text and "(default: )" not in text and "(default: False)" not in text


def test_the_list_of_tasks_fits_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["tasks"])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "http" not in line) <= 80


def test_quiet_commands_show_no_progress(spt_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    (tmp_path / "sweep.toml").write_text("[base]\nsteps = 1\nevaluations = 1\ncheckpoints = 1\nd_model = 8\n")
    for arguments in (
        ["train", "--out", str(tmp_path / "x"), *TINY, *FEW],
        ["sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "y")],
        ["proximity", str(spt_run.folder), "--step", "8", "--out", str(tmp_path / "z"), *FAST, "--nulls", "1"],
    ):
        main([*arguments, "--quiet"])
        assert capsys.readouterr().err == ""
    main(["train", "--out", str(tmp_path / "loud"), *TINY, *FEW])
    assert "evaluating test 1/1" in capsys.readouterr().err
