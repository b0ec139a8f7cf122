"""Sweeps: plans, and exactly-once training of every cell despite failures and interruptions."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from support import TINY, in_three_ways

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.errors import UsageError
from attnprobe.sweeps import cells, read_sweep, run_sweep, summary, sweep_table, train_all, workers
from attnprobe.sweeps.cells import took
from attnprobe.sweeps.plan import run_folder
from attnprobe.tasks import configure
from attnprobe.training.run import Run

BASE = {"pretrain_steps": 8, "d_model": 16, **TINY}
LONG = {**BASE, "steps": 160, "pretrain_steps": 80, "evaluations": 8, "checkpoints": 1}
"""Long enough to be interrupted."""
ROOT = Path(__file__).parent.parent


def written(path, base=BASE, **grid):
    """Write a sweep as YAML (of which JSON is a subset) and return its path."""
    path.write_text(json.dumps({"out": str(path.parent / "out"), "base": base, "grid": grid}))
    return path


def planned(path, base=BASE, **grid):
    return read_sweep(written(path, base, **grid))


def metrics(cell):
    return Run(cell.folder).metrics


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".pt", ".jsonl", ".json")}


def wait_for(condition, alive=lambda: True):
    """Wait for a condition while the processes that can fulfil it are alive."""
    for _ in range(600 * 20):
        if condition() or not alive():
            return
        time.sleep(0.05)
    raise AssertionError("timed out")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def started(*arguments):
    """Start a command in its own process group, which is killed on exit."""
    code = "from attnprobe.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def same_as_alone(cell, folder):
    """Return whether a cell has the weights and metrics of an uninterrupted run."""
    expected, run = ap.train(cell.config, folder, progress=False), Run(cell.folder)
    pairs = zip(expected.last.weights.items(), run.last.weights.items(), strict=True)
    return expected.metrics == run.metrics and all(
        name == other and torch.equal(first, second) for (name, first), (other, second) in pairs
    )


# Plans


def test_the_cells_are_the_product_of_the_grid(tmp_path):
    grid = {"recipe": ["supervised", "spt"], "learning_rate": [1e-3, 1e-2], "seed": [0, 1, 2]}
    cells = planned(tmp_path / "s.yaml", **grid).cells
    configs = [(cell.config.recipe, cell.config.learning_rate, cell.config.seed) for cell in cells]
    assert configs == list(itertools.product(*grid.values()))
    assert all(cell.config.steps == TINY["steps"] for cell in cells)
    assert len({cell.folder for cell in cells}) == len(cells)


def test_a_toml_file_can_have_tables_of_joint_settings_and_task_parameters(tmp_path):
    (tmp_path / "both.toml").write_text(
        "[base]\nseed = 3\ntask_options.test_size = 50\n[grid]\ntask_options.train_size = [8, 16]\n"
        '[[grid.task]]\ntask = "pairs"\ntask_options = { n = 64 }\n'
        '[[grid.task]]\ntask = "digits"\nn_layers = 2\n'
    )
    with pytest.raises(ap.UsageError, match=r"cell task_options.train_size=8, task=digits, n_layers=2: task digits"):
        read_sweep(tmp_path / "both.toml")
    text = (tmp_path / "both.toml").read_text().replace('task = "digits"', 'task = "bigrams"')
    (tmp_path / "both.toml").write_text(text)
    sweep = read_sweep(tmp_path / "both.toml")
    assert sweep.out == Path("runs/both")
    shared = {"test_size": 50, "train_size": 8}
    one, two = (cell.config for cell in sweep.cells[:2])
    assert (one.task, one.task_options, one.model.n_layers) == ("pairs", {**shared, "n": 64}, 1)
    assert two == configure(
        "bigrams", seed=3, n_layers=2, task_options=shared
    )  # with the recommended settings of the task
    assert two.steps != one.steps
    assert set(sweep.cells[0].settings) >= {"task", "task_options.n", "task_options.train_size", "steps", "n_layers"}
    assert "learning_rate" not in sweep.cells[0].settings  # the same in all cells


def test_a_folder_name_depends_on_the_settings_only(tmp_path):
    (cell,) = planned(tmp_path / "a.yaml").cells
    assert re.fullmatch(r"pairs-spt-0-[0-9a-f]{12}", cell.folder.name)
    reordered = {**dict(reversed(BASE.items())), "task_options": dict(reversed(TINY["task_options"].items()))}
    reordered["task_options"]["train_size"] = 64.0
    assert planned(tmp_path / "b.yaml", reordered).cells[0].folder.name == cell.folder.name
    del reordered["steps"]
    again = planned(tmp_path / "c.yaml", reordered, steps=[TINY["steps"], 13]).cells
    assert [other.folder.name == cell.folder.name for other in again] == [True, False]
    others = {
        "recipe": "supervised",
        "seed": 1,
        "learning_rate": 0.1,
        "n_layers": 2,
        "freeze": ["qk"],
        "validation_size": 9,
        "init_from": "x.pt",
        "device": "cuda",
        "task_options": {"train_size": 65, "test_size": 40},
    }
    names = {planned(tmp_path / "d.yaml", {**BASE, name: value}).cells[0].folder.name for name, value in others.items()}
    assert len(names | {cell.folder.name}) == len(others) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grd: {}", "unknown key 'grd'; did you mean 'grid'? valid: out, base, grid"),
        ("out: 3", "out=3: must be a string"),
        ("base: [1]", "base=[1]: must be a section"),
        ("grid: {learning_rate: 0.1}", "grid.learning_rate=0.1: must be a non-empty list of values or of tables"),
        ("grid: {learning_rate: []}", "grid.learning_rate=[]: must be a non-empty list"),
        ("grid: {learning_rate: [0.1, {learning_rate: 1}]}", "grid.learning_rate mixes values and tables"),
        (
            "grid: {learning_rate: [0.1], x: [{learning_rate: 1}]}",
            "learning_rate is in both grid.learning_rate and grid.x",
        ),
        ("grid: {task: [{1: 2}]}", "1 is not the name of a setting"),
        ("grid: {task_options: [3]}", "task_options=3: must be a table of names and values"),
        ("base: {rat: 1}", "cell base: unknown setting 'rat'; valid:"),
        (
            "grid: {validation_size: [1, 500]}",
            "cell validation_size=500: validation_size=500: must be below the 500 training sequences",
        ),
        ("grid: {task: [listops], validation_size: [9]}", "task listops already has a validation split"),
        ("grid: {patience: [0, 2]}", "cell patience=2: patience=2: needs a validation split"),
        (
            "grid: {learning_rate: [0.1, -1.0], seed: [0]}",
            "cell learning_rate=-1.0, seed=0: learning_rate=-1.0: input should be greater than 0",
        ),
        ("grid: {task: [pears]}", "cell task=pears: task='pears' is unknown"),
        ("grid: {seed: [0, 1, 0]}", "cells 0 and 2 are the same run (seed=0)"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line_that_names_the_cell(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "s.yaml"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("attnprobe: s.yaml: ") and message in error and error.count("\n") == 1
    assert os.listdir() == ["s.yaml"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "2/2"], "shard='2/2': must be i/k with 0 <= i < k"),
        (["--shard", "1"], "shard='1': must be"),
        (["--shard", "-1/2"], "must be i/k"),
        (["--shard", "0/0"], "shard='0/0': must be"),
        (["--workers", "0"], "workers=0: must be at least 1"),
        (["--workers", "2", "--ray", "auto"], "workers=2: on a Ray cluster"),
    ],
)
def test_bad_flags_are_refused_and_leave_nothing(flags, message, tmp_path, capsys):
    path = written(tmp_path / "s.yaml")
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_ray_is_reported_in_one_line(tmp_path, monkeypatch):
    sweep = planned(tmp_path / "s.yaml")
    monkeypatch.setitem(sys.modules, "ray", None)  # makes the import fail
    from attnprobe.sweeps import run_sweep

    with pytest.raises(ap.UsageError, match=r"ray='auto': Ray is not installed; pip install 'attnprobe\[ray\]'"):
        run_sweep(sweep, sweep.cells, ray="auto")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_cover_the_sweep(count, tmp_path):
    sweep = planned(tmp_path / "s.yaml", seed=list(range(5)))
    shards = [cell.folder for index in range(count) for cell in sweep.shard(f"{index}/{count}")]
    assert len(shards) == 5
    assert set(shards) == {cell.folder for cell in sweep.cells}
    assert sweep.shard(None) == sweep.cells


def test_folders_keep_the_names_of_earlier_versions():
    config = configure("digits", freeze=["qk"], seed=4)
    assert run_folder(Path(), config).name == "digits-spt-4-5ebda6dc0dac"  # named before these settings existed
    for name, value in {"eval_size": 5, "class_weights": "balanced", "more_steps": (3,)}.items():
        assert run_folder(Path(), dataclasses.replace(config, **{name: value})) != run_folder(Path(), config)


# Training


def test_a_cell_made_longer_is_not_trained_again_and_says_how_long_it_is(tmp_path):
    sweep = planned(tmp_path / "s.yaml", seed=[0, 1])
    for cell in sweep.cells:
        assert cells.attempt(cell.folder, cell.config) == "done"
    longer, other = sweep.cells
    ap.resume(longer.folder, more_steps=4, progress=False)
    before = times(longer.folder / "checkpoints")
    assert cells.attempt(longer.folder, longer.config) == "done"
    assert times(longer.folder / "checkpoints") == before
    table = sweep_table(sweep.cells)
    assert table["steps"].tolist() == table["step"].tolist() == [16, 12]
    assert "test_balanced_accuracy" in table and "test_accuracy_by_class" not in table
    with pytest.raises(UsageError, match="holds another run"):
        cells.complete(longer.folder, dataclasses.replace(longer.config, learning_rate=1.0))
    planned_longer = dataclasses.replace(other.config, more_steps=(4,))
    with pytest.raises(UsageError, match="holds another run"):
        cells.complete(other.folder, planned_longer)


def test_a_sweep_over_added_steps(tmp_path):
    sweep = planned(tmp_path / "s.yaml", more_steps=[[], [2, 3]])
    assert [cell.config.total_steps for cell in sweep.cells] == [12, 17]
    table = sweep_table(sweep.cells)
    assert table["more_steps"].tolist() == ["", "2,3"] and table["steps"].tolist() == [12, 17]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with diverging cells: its file, its plan, and the output and exit status of the command."""
    path = tmp_path_factory.mktemp("sweep") / "s.yaml"
    base = {**BASE, "validation_size": 8, "warmup_steps": 0, "grad_clip": 0.0, "recipe": "supervised"}
    sweep = planned(path, base, learning_rate=[1e-3, 1e30], seed=[0, 1])
    with started("sweep", path) as process:
        output = process.stdout.read()
        return path, sweep, output, process.wait()


def test_a_cell_that_fails_is_recorded_and_does_not_stop_the_others(swept):
    path, sweep, output, status = swept
    assert status == 1
    assert f"{sweep.out}: 4 cells: 2 done, 2 failed" in output
    for cell in sweep.cells:
        state = cells.look(cell.folder)
        if cell.config.learning_rate < 1:
            assert state.status == "done" and Run(cell.folder).finished and not (cell.folder / "failed.json").exists()
            continue
        assert state.status == "failed"
        reason = json.loads((cell.folder / "failed.json").read_text())["reason"]
        assert reason.startswith("training stopped: the train loss is nan")
        assert f"failed: {cell.folder}: {reason}" in output


def test_a_finished_sweep_is_not_trained_again(swept, capsys):
    path, sweep, *_ = swept
    done = [cell.folder for cell in sweep.cells if cell.config.learning_rate < 1]
    before = [times(folder) for folder in done]
    main(["sweep", str(path), "--shard", "0/4"])
    assert "1 cell: 1 done" in capsys.readouterr().out
    assert [times(folder) for folder in done] == before


def test_a_failed_cell_is_retried(swept):
    _, sweep, *_ = swept
    cell = next(cell for cell in sweep.cells if cell.config.learning_rate > 1)
    before = (cell.folder / "failed.json").stat().st_mtime_ns
    assert cells.attempt(cell.folder, cell.config) == "failed"
    assert (cell.folder / "failed.json").stat().st_mtime_ns > before
    assert [row["step"] for row in metrics(cell)].count(0) == 1


def test_the_table_agrees_with_the_metrics(swept):
    _, sweep, *_ = swept
    table = ap.open_sweep(sweep.out)
    assert list(table["folder"]) == [str(cell.folder) for cell in sweep.cells]
    for (_, row), cell in zip(table.iterrows(), sweep.cells, strict=True):
        rows = metrics(cell)
        assert (row["learning_rate"], row["seed"], row["task"]) == (
            cell.config.learning_rate,
            cell.config.seed,
            "pairs",
        )
        assert (row["step"], row["steps"], row["objective"]) == (rows[-1]["step"], 12, "labels")
        for name in ("train", "validation", "test"):
            assert row[f"{name}_loss"] == rows[-1][f"{name}_loss"]
            assert row[f"{name}_accuracy"] == rows[-1][f"{name}_accuracy"]
        if row["status"] == "done":
            trained = [entry for entry in rows if entry["objective"] == "labels" and entry["step"] > 0]
            best = min(trained, key=lambda entry: entry["validation_loss"])
            assert row["best_step"] == best["step"] == Run(cell.folder).finished["best_step"]
            assert row["best_test_accuracy"] == best["test_accuracy"]
        else:  # failed before the first evaluation after step 0, which does not count as the best
            assert rows[-1]["step"] == 0 and pd.isna(row["best_step"])
    assert table["reason"].notna().tolist() == [False, False, True, True]
    assert "n_layers" not in table
    written = pd.read_csv(sweep.out / "sweep.csv")
    assert list(written.columns) == list(table.columns)
    assert written["test_loss"].tolist() == pytest.approx(table["test_loss"].tolist())


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ap.UsageError, match="holds no sweep"):
        ap.open_sweep(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"), [('"seed": 0', '"seed": 1'), ('"steps": 12', '"stepr": 12'), ("sha256", "sha257")]
)
def test_an_altered_plan_is_named(before, after, tmp_path):
    sweep = planned(tmp_path / "x.yaml", seed=[0])
    run_sweep(sweep, ())
    path = sweep.out / "sweep.json"
    assert list(ap.open_sweep(sweep.out)["seed"]) == [0]
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UsageError, match=r"sweep\.json: (damaged .*; repeat the command of the sweep|'steps')"):
        ap.open_sweep(sweep.out)
    content = json.loads(text)
    path.write_text(json.dumps({"cells": content["cells"]}))  # as an earlier version wrote it
    assert list(ap.open_sweep(sweep.out)["seed"]) == [0]


def test_every_status_is_reported_and_counted(tmp_path, capsys):
    path = written(tmp_path / "s.yaml", seed=list(range(5)), freeze=[["qk", "positions"]])
    sweep = read_sweep(path)
    done, unfinished, running, failed, _ = sweep.cells
    cells.attempt(done.folder, done.config)
    with pytest.raises(KeyboardInterrupt):
        cells.attempt(unfinished.folder, unfinished.config, interrupt_at(7))
    failed.folder.mkdir()
    cells.record_failure(failed.folder, "it was too hard")
    running.folder.mkdir()
    with FileLock(running.folder / "cell.lock"):
        assert list(sweep_table(sweep.cells)["status"]) == ["done", "unfinished", "running", "failed", "missing"]
        main(["sweep", str(path), "--status"])
    output = capsys.readouterr().out
    assert "5 cells: 1 done, 1 running, 1 unfinished, 1 failed, 1 missing" in output
    assert f"failed: {failed.folder}: it was too hard" in output
    assert re.search(rf"{unfinished.folder} unfinished +6 +12\n", output)
    assert list(sweep_table(sweep.cells)["freeze"]) == ["qk,positions"] * 5
    assert summary(sweep_table([done])) == "1 cell: 1 done"
    assert not (sweep.out / "sweep.json").exists()  # --status writes nothing


def interrupt_at(step):
    def on_step(reached):
        if reached == step:
            raise KeyboardInterrupt

    return on_step


def test_status_needs_no_torch(swept):
    path, sweep, *_ = swept
    code = (
        f"import sys\nfrom attnprobe.cli import main\nmain(['sweep', {str(path)!r}, '--status'])\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 cells: 2 done, 2 failed" in done.stdout


def test_a_cell_that_another_process_trains_is_skipped(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path / "s.yaml").cells
    cell.folder.mkdir(parents=True)
    monkeypatch.setattr(cells, "HELD_AFTER", 0.1)
    with FileLock(cell.folder / "cell.lock"):
        assert cells.attempt(cell.folder, cell.config) == "held"
    assert os.listdir(cell.folder) == ["cell.lock"]
    assert cells.attempt(cell.folder, cell.config) == "done"


def test_an_error_of_any_kind_is_recorded_with_its_traceback(tmp_path, monkeypatch):
    from attnprobe import tasks

    (cell,) = planned(tmp_path / "s.yaml").cells
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "build", lambda *_: 1 / 0)
        assert cells.attempt(cell.folder, cell.config) == "failed"
    kept = json.loads((cell.folder / "failed.json").read_text())
    assert kept["reason"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in kept["traceback"]
    assert cells.attempt(cell.folder, cell.config) == "done"
    assert not (cell.folder / "failed.json").exists()


def test_another_run_in_a_cell_is_refused(tmp_path):
    first, second = planned(tmp_path / "s.yaml", seed=[0, 1]).cells
    cells.attempt(first.folder, first.config)
    assert cells.attempt(first.folder, second.config) == "failed"
    assert "holds another run" in (first.folder / "failed.json").read_text()
    assert Run(first.folder).config == first.config


def test_a_run_interrupted_before_its_first_state_logs_its_first_metrics_once(tmp_path):
    (cell,) = planned(tmp_path / "s.yaml").cells
    run = Run.create(cell.folder, cell.config)
    run.log({"step": 0, "objective": "masked"})
    assert cells.attempt(cell.folder, cell.config) == "done"
    assert same_as_alone(cell, tmp_path / "alone")


@pytest.mark.slow
def test_a_killed_sweep_is_completed_by_the_next(tmp_path, capfd):
    path = written(tmp_path / "s.yaml", LONG, seed=[0, 1])
    first, second = read_sweep(path).cells
    with started("sweep", path) as process:
        wait_for(lambda: cells.reached(first.folder) >= 20, lambda: process.poll() is None)
    # killed together with its worker, as if the machine had crashed
    assert cells.look(first.folder).status == "unfinished"
    assert cells.look(second.folder).status == "missing"
    begun = times(first.folder)[Run(first.folder).path_of(0)]
    main(["sweep", str(path)])
    assert "2 cells: 2 done" in capfd.readouterr().out
    assert times(first.folder)[Run(first.folder).path_of(0)] == begun  # resumed, not restarted
    assert same_as_alone(first, tmp_path / "alone")


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_is_completed(tmp_path, capfd):
    path = written(tmp_path / "s.yaml", LONG, seed=[0, 1])
    first, second = read_sweep(path).cells

    def kill():
        wait_for(lambda: cells.reached(first.folder) >= 20)
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    main(["sweep", str(path)])
    killer.join()
    assert "2 cells: 2 done" in capfd.readouterr().out
    assert same_as_alone(first, tmp_path / "alone")


@pytest.mark.slow
def test_dead_processes_are_given_up_and_an_exception_stops_the_remaining_runs(tmp_path, monkeypatch):
    names = ["lives", "dies", "refuses", "dies", "never"]
    plan = {tmp_path / f"{index}" / name: configure("pairs") for index, name in enumerate(names)}
    lost = []
    monkeypatch.setattr(workers, "TRIES", 1)
    for folder in plan:
        folder.parent.mkdir()
    with pytest.raises(ap.UsageError, match="invalid cell"):
        workers.run_all(in_three_ways, plan, 1, lambda folder, reason: lost.append((folder.name, reason)))
    assert lost == [("dies", "its process died in 1 of 1 attempts, last by SIGKILL")]
    assert [(folder.parent / "begun").exists() for folder in plan] == [True, True, True, False, False]
    assert not active_children()


@pytest.mark.slow
def test_two_concurrent_sweeps_train_every_cell_once(tmp_path):
    path = written(tmp_path / "s.yaml", LONG, seed=[0, 1, 2])
    sweep = read_sweep(path)
    with started("sweep", path) as first, started("sweep", path) as second:
        output = [process.stdout.read() for process in (first, second)]
        assert [process.wait() for process in (first, second)] == [0, 0], output
    assert list(ap.open_sweep(sweep.out)["status"]) == ["done"] * 3
    for cell in sweep.cells:
        # if two processes trained one cell, both would log its metrics
        assert [row["step"] for row in metrics(cell)] == list(range(0, 161, 20))
    assert same_as_alone(sweep.cells[0], tmp_path / "alone")


@pytest.mark.slow
def test_the_cells_of_a_dead_ray_node_are_completed(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers on the nodes
    path = written(tmp_path / "s.yaml", LONG, seed=[0, 1])
    sweep = read_sweep(path)
    cluster = Cluster()

    def node(**options):
        """Add a node, with retries: Ray gives up if a node takes more than half a minute to start."""
        for _ in range(20):
            with contextlib.suppress(Exception):
                return cluster.add_node(num_cpus=1, **options)
        raise AssertionError("no Ray node could be started")

    try:
        node(include_dashboard=False)
        second = node()
        with started("sweep", path, "--ray", cluster.address) as process:
            both = lambda: sum(cells.reached(cell.folder) > 0 for cell in sweep.cells) > 1  # noqa: E731
            wait_for(both, lambda: process.poll() is None)
            cluster.remove_node(second, allow_graceful=False)
            output = process.stdout.read()
            assert process.wait() == 0, output
    finally:
        cluster.shutdown()
    assert "2 cells: 2 done" in output
    assert all(same_as_alone(cell, tmp_path / cell.folder.name) for cell in sweep.cells)


@pytest.mark.slow
def test_train_all_trains_equal_configurations_once(tmp_path, capfd):
    configs = [configure("pairs", seed=seed, recipe="supervised", **BASE) for seed in (3, 4, 3)]
    runs = train_all(configs, tmp_path, 2)
    assert [run.config for run in runs] == configs
    assert runs[0].folder == runs[2].folder != runs[1].folder
    before = times(tmp_path)
    (again,) = train_all(configs[1:2], tmp_path)
    assert again.folder == runs[1].folder and times(tmp_path) == before, "files were modified"
    assert took(again.folder) > 0
    with pytest.raises(UsageError, match="unknown part 'nothing'"):
        train_all([dataclasses.replace(configs[0], freeze=("nothing",)), configs[1]], tmp_path)
