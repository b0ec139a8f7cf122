"""Signals during training: the state is saved, and the resumed run is the same as an uninterrupted one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support import TINY

from attnprobe.interrupts import Interrupted, Signals
from attnprobe.sweeps import read_sweep
from attnprobe.tasks import configure
from attnprobe.training.loop import resume, train
from attnprobe.training.run import Run

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {**TINY, "steps": 600, "pretrain_steps": 300, "evaluations": 1, "checkpoints": 1, "d_model": 16}
"""Without a save between evaluations, so that only the signal saves the state."""
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
TRAIN = ["-m", "attnprobe", "train", "--resume", "run"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(configure("pairs", **SETTINGS), tmp_path_factory.mktemp("uninterrupted") / "run", progress=False)


def started(folder, *arguments):
    """Start Python in a folder, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def wait_for(condition, process):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("timed out")


def assert_same(run, other):
    assert run.metrics == other.metrics and run.finished == other.finished
    for a, b in zip(run.checkpoints, other.checkpoints, strict=True):
        assert a.step == b.step
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())


def last_line(text):
    return text.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("delay", [0.0, 0.7])
def test_a_signal_saves_the_step_and_names_the_way_on(number, delay, uninterrupted, tmp_path):
    Run.create(tmp_path / "run", uninterrupted.config)
    process = started(tmp_path, *TRAIN)
    wait_for((tmp_path / "run" / "checkpoints" / "step-000000.pt").exists, process)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == SIGNALS[number], errors
    run = Run(tmp_path / "run")
    step = run.latest.step
    assert step > 0 and run.finished is None
    expected = (
        f"attnprobe: run: interrupted after step {step}, which is saved; continue with attnprobe train --resume run"
    )
    assert last_line(errors) == expected and "Traceback" not in errors
    assert not list(run.folder.rglob("*.part"))
    steps = []
    assert_same(resume(run.folder, progress=False, on_step=steps.append), uninterrupted)
    assert steps[0] == step + 1


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    Run.create(tmp_path / "run", configure("pairs", **SETTINGS))
    code = (
        "import time, attnprobe as ap\n"
        "def slow(step):\n    print(step, flush=True)\n    time.sleep(30)\n"
        "ap.resume('run', progress=False, on_step=slow)"
    )
    process = started(tmp_path, "-c", code)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None, "the first one waits for the end of the step"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert last_line(errors) == "KeyboardInterrupt"
    assert Run(tmp_path / "run").latest.step == 0


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path):
    config = configure("pairs", **{**SETTINGS, "steps": 60, "pretrain_steps": 30})
    runs = []
    for name in ("whole", "run"):
        Run.create(tmp_path / name, config)
        process = started(tmp_path, *TORCHRUN, *TRAIN[:-1], name)
        if name == "run":
            wait_for((tmp_path / name / "checkpoints" / "step-000000.pt").exists, process)
            process.send_signal(signal.SIGTERM)  # torchrun passes it on
            _, errors = process.communicate(timeout=60)
            assert "run: interrupted after step" in errors and Run(tmp_path / name).latest.step > 0
            process = started(tmp_path, *TORCHRUN, *TRAIN[:-1], name)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        runs.append(Run(tmp_path / name))
    assert_same(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_sweep_saves_the_runs_in_progress(number, tmp_path):
    base = {**SETTINGS, "steps": 400, "pretrain_steps": 200}
    plan = {"out": str(tmp_path / "out"), "base": base, "grid": {"seed": [0, 1]}}
    (tmp_path / "s.yaml").write_text(json.dumps(plan))
    cells = read_sweep(tmp_path / "s.yaml").cells
    command = ["-m", "attnprobe", "sweep", "s.yaml", "--workers", 2]
    process = started(tmp_path, *command)
    wait_for(lambda: sum(Run(cell.folder).path_of(0).exists() for cell in cells) == 2, process)
    time.sleep(0.5)
    os.killpg(process.pid, number)  # as a terminal or a batch system does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == SIGNALS[number], errors
    assert "interrupted: 0 of 2 runs have ended, those in progress are saved; repeat" in last_line(errors)
    assert "Traceback" not in errors
    saved = [Run(cell.folder).latest for cell in cells if Run(cell.folder).exists]
    assert len(saved) == 2 and all(state.step > 0 for state in saved)
    process = started(tmp_path, *command)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same(Run(cells[1].folder), train(cells[1].config, tmp_path / "alone", progress=False))


def send_at(step, number):
    def on_step(reached):
        if reached == step:
            signal.raise_signal(number)

    return on_step


def test_in_python_a_keyboard_interrupt_is_raised_after_the_save_and_handlers_are_restored(tmp_path):
    config = configure("pairs", **{**SETTINGS, "steps": 20, "pretrain_steps": 10})
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 7, which is saved") as caught:
        train(config, tmp_path / "x", progress=False, on_step=send_at(7, signal.SIGINT))
    assert isinstance(caught.value, Interrupted) and caught.value.status == 130
    assert Run(tmp_path / "x").latest.step == 7
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert_same(resume(tmp_path / "x", progress=False), train(config, tmp_path / "y", progress=False))


def test_a_signal_at_the_last_step_is_not_lost(tmp_path):
    config = configure("pairs", **{**SETTINGS, "steps": 4, "pretrain_steps": 2})
    with pytest.raises(KeyboardInterrupt, match="after its last step; the run is finished"):
        train(config, tmp_path / "x", progress=False, on_step=send_at(4, signal.SIGINT))
    assert Run(tmp_path / "x").finished["step"] == 4


def test_handlers_of_the_program_stay_in_effect(tmp_path):
    config, received = configure("pairs", **{**SETTINGS, "steps": 4, "pretrain_steps": 2}), []
    handler = lambda number, frame: received.append(number)  # noqa: E731
    former = signal.signal(signal.SIGTERM, handler)
    try:
        run = train(config, tmp_path / "x", progress=False, on_step=send_at(2, signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM] and run.finished["step"] == 4


def test_in_another_thread_no_handler_is_set():
    former, seen = signal.getsignal(signal.SIGINT), []

    def watch():
        with Signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [former]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_provenance_takes_no_lock_of_the_repository(tmp_path):
    """A kill would leave the lock, and every later commit would be refused."""
    package = shutil.copytree(ROOT / "attnprobe", tmp_path / "attnprobe")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    os.utime(package / "provenance.py", (0, 0))  # git status would refresh, and lock, the index
    index = (tmp_path / ".git" / "index").read_bytes()
    code = "from attnprobe.provenance import provenance; print(provenance()['uncommitted_changes'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert (tmp_path / ".git" / "index").read_bytes() == index
