"""What cannot be written or allocated ends a command in one line with exit status 2."""

import functools
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.test_writing import largest_file
from support import TINY

from attnprobe.cli import main
from attnprobe.errors import UsageError
from attnprobe.files import Unwritable
from attnprobe.report import page
from attnprobe.sweeps import read_sweep, run_sweep
from attnprobe.sweeps.cells import attempt, record_failure
from attnprobe.tasks import configure
from attnprobe.training.trackers import trackers


def line_of(arguments, capsys):
    """Return the line with which a command ends with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("attnprobe: ") and line.isprintable()
    return line


def test_a_report_on_a_full_disk_is_not_a_measure_that_does_not_apply(spt_run, tmp_path, capsys):
    with largest_file(100):
        line = line_of(["report", spt_run.path_of(12), "--out", tmp_path / "out"], capsys)
    assert line.endswith("proximity.nc: cannot be written (File too large)")
    assert not list((tmp_path / "out").iterdir())


def test_a_page_that_cannot_be_written_is_named(spt_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MEASURES", {})
    (tmp_path / "report.html").mkdir()
    with pytest.raises(Unwritable, match=r"report.html: cannot be written \(Is a directory\)$"):
        page.write_report(spt_run.path_of(12), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("command", ["report", "proximity"])
def test_an_output_folder_below_a_file_is_named(command, spt_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = line_of([command, spt_run.path_of(12), "--out", tmp_path / "file" / "out"], capsys)
    assert "file/out: cannot be written (Not a directory)" in line


@pytest.mark.parametrize("command", ["show", "proximity", "report", "tasks", "sweep"])
def test_a_name_that_is_too_long_is_named(command, capsys):
    assert len(line_of([command, "x/" + "y" * 5000], capsys)) < 1100


def test_a_table_of_a_sweep_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.toml").write_text("[grid]\nseed = [0]\n")
    sweep = read_sweep(tmp_path / "a.toml", tmp_path / "out")
    (tmp_path / "out" / "sweep.csv").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"sweep.csv: cannot be written \(Is a directory\)$"):
        run_sweep(sweep, ())
    assert sorted(path.name for path in sweep.out.iterdir()) == ["sweep.csv", "sweep.json"]


def test_a_failure_that_cannot_be_recorded_is_named(tmp_path):
    """Workers and tasks on Ray may die because their folder has vanished."""
    with pytest.raises(UsageError, match=r"gone/failed.json: cannot be written \(No such file or directory\)$"):
        record_failure(tmp_path / "gone", "died")


def test_a_cell_on_a_full_disk_can_be_continued(tmp_path):
    """Cells of worker processes and of tasks on Ray."""
    config = configure("pairs", **TINY, d_model=16)
    with (
        largest_file(0),
        pytest.raises(UsageError, match=r"cell: .* written \(File too large\); repeat the command to continue$"),
    ):
        attempt(tmp_path / "cell", config)
    assert attempt(tmp_path / "cell", config) == "done"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written"), trackers(["tensorboard"], tmp_path, configure("pairs")):
        pass
    with (
        largest_file(10),
        pytest.raises(UsageError, match=r"cannot be written \(File too large\)"),
        trackers(["tensorboard"], tmp_path / "x", configure("pairs")),
    ):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
def test_another_exception_than_that_of_a_tracker_is_raised(tmp_path):
    with (
        pytest.raises(KeyError, match="first"),
        trackers(["tensorboard"], tmp_path / "x", configure("pairs")),
        largest_file(10),
    ):
        raise KeyError("first")


def trained_with_wandb(folder, limit=None, **variables):
    """Train in a process with Weights & Biases and return its exit status and error output."""
    pytest.importorskip("wandb", reason="needs wandb")
    few = "--steps 12 --evaluations 1 --checkpoints 1 --d-model 16 --task-options train_size 64".split()
    root = Path(__file__).parent.parent.parent
    ended = subprocess.run(
        [sys.executable, "-m", "attnprobe", "train", *few, "--log", "wandb", "--out", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "HOME": str(folder), "OMP_NUM_THREADS": "1", **variables},
        preexec_fn=None if limit is None else functools.partial(limit_files, limit),
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stderr


def limit_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_training_with_wandb_on_a_full_disk_ends_in_one_line(tmp_path):
    status, errors = trained_with_wandb(tmp_path, limit=2000, WANDB_MODE="offline")
    line = errors.strip().splitlines()[-1]
    assert status == 2 and line.startswith("attnprobe: training stopped: run/")
    assert line.endswith("continue with attnprobe train --resume run") and "(File too large)" in line
    assert "Traceback" not in errors and "Logging error" not in errors


@pytest.mark.slow
def test_a_missing_account_of_wandb_ends_in_one_line(tmp_path):
    status, errors = trained_with_wandb(tmp_path, WANDB_MODE="online", WANDB_API_KEY="", NETRC="none")
    line = errors.strip().splitlines()[-1]
    assert status == 2 and line.startswith("attnprobe: log='wandb': ") and "WANDB_MODE=offline" in line
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_into_memory_are_one_line(tmp_path, capsys):
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, before[1]))
    try:
        line = line_of(["train", "--d-model", 2**15, "--out", tmp_path / "run"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "attnprobe: not enough memory (" in line and not (tmp_path / "run").exists()
