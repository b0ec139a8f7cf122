"""Writing: two writers at once, and a full disk."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import attnprobe as ap
from attnprobe import files
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic
from attnprobe.report.write import write_figure
from attnprobe.results import open_result, save

ROOT = Path(__file__).parent.parent.parent
SAVES = 20


@pytest.fixture
def result(spt_run):
    return ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1)


def save_often(result, path, begin):
    begin.wait()
    for _ in range(SAVES):
        save(result, path)


@pytest.mark.slow
def test_two_writers_of_a_result_leave_the_whole_file_of_one(result, tmp_path):
    context, path = multiprocessing.get_context("fork"), tmp_path / "x.nc"
    begin = context.Barrier(3)
    versions = [result.assign_attrs(writer=number) for number in range(2)]
    writers = [context.Process(target=save_often, args=(version, path, begin)) for version in versions]
    for writer in writers:
        writer.start()
    begin.wait()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert open_result(path).attrs["writer"] in (0, 1)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = open_result(path)
    assert found.identical(versions[found.attrs["writer"]])
    assert [file.name for file in tmp_path.iterdir()] == ["x.nc"]


@contextmanager
def largest_file(size):
    """Let every write beyond a size fail, as on a full disk: OSError instead of the signal."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1, 5000, 20_000])
def test_a_result_that_cannot_be_written_is_named_and_the_previous_one_is_kept(size, result, tmp_path):
    path = tmp_path / "x.nc"
    save(result, path)
    with largest_file(size), pytest.raises(UsageError, match=rf"^{path}: cannot be written \(File too large\)$"):
        save(result.assign_attrs(writer=1), path)
    assert open_result(path).identical(result)
    assert [file.name for file in tmp_path.iterdir()] == ["x.nc"]


@pytest.mark.parametrize("size", [0, 1, 5000, 20_000])
def test_a_checkpoint_that_cannot_be_written_raises_the_error_of_the_disk(size, spt_run, tmp_path):
    """Not torch's RuntimeError, which does not give the reason."""
    path = tmp_path / "x.pt"
    spt_run.checkpoints[0].save(path)
    before = path.read_bytes()
    with largest_file(size), pytest.raises(OSError, match="File too large"):
        spt_run.checkpoints[-1].save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("write", ["figure", "safetensors", "text"])
def test_other_files_that_cannot_be_written_leave_no_part(write, spt_run, tmp_path):
    figure, axes = plt.subplots()
    axes.imshow(np.random.default_rng(0).random((50, 50)))
    with largest_file(100), pytest.raises((UsageError, OSError)) as caught:
        if write == "figure":
            write_figure(figure, tmp_path / "x", "x")
        elif write == "safetensors":
            spt_run.checkpoints[-1].to_safetensors(tmp_path / "x.safetensors")
        else:
            write_atomic(tmp_path / "x.json", "x" * 1000)
    plt.close(figure)
    assert write == "text" or (isinstance(caught.value, UsageError) and "cannot be written" in str(caught.value))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def begin_to_write(path, is_folder, begun):
    with files.incomplete_folder(path.parent) if is_folder else files.atomic_path(path) as part:
        (part / "x" if is_folder else part).write_text("half")
        begun.wait()
        time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize("is_folder", [False, True])
def test_the_parts_of_killed_processes_are_deleted_by_the_next_write(is_folder, tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Barrier(3)
    arguments = tmp_path / "x.txt", is_folder, begun
    killed, live = [context.Process(target=begin_to_write, args=arguments, daemon=True) for _ in range(2)]
    killed.start()
    live.start()
    begun.wait()
    parts = list(tmp_path.iterdir())
    of_others = [tmp_path / "own.part", tmp_path / f"x.{'0' * 12}-{killed.pid}-1.part"]
    for path in of_others:
        path.write_text("of a program or machine that cannot be asked")
    killed.kill()
    killed.join()
    write_atomic(tmp_path / "y.txt", "y")
    (of_live,) = [part for part in parts if f"-{live.pid}-" in part.name]
    assert set(tmp_path.iterdir()) == {*of_others, of_live, tmp_path / "y.txt"}
    live.kill()
    live.join()


def test_a_full_device_is_named(result, tmp_path, monkeypatch):
    """Parts are links to /dev/full here, so that the message is that of a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    write_bytes = Path.write_bytes

    def write_to_full_device(path, content):
        path.symlink_to("/dev/full")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_to_full_device)
    with pytest.raises(UsageError, match=r"x\.nc: cannot be written \(No space left on device\)$"):
        save(result, tmp_path / "x.nc")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(handle):
        events.append(("flush", "folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file"))
        fsync(handle)

    def logged_replace(part, path):
        events.append(("name", path.name))
        replace(part, path)

    monkeypatch.setattr(files.os, "fsync", logged_fsync)
    monkeypatch.setattr(files.os, "replace", logged_replace)
    write_atomic(tmp_path / "x.txt", "x")
    assert events == [("flush", "file"), ("name", "x.txt"), ("flush", "folder")]


def test_a_file_system_that_cannot_flush_folders_is_written_to(tmp_path, monkeypatch):
    def flush(path):
        if path.is_dir():
            raise OSError("Invalid argument")

    monkeypatch.setattr(files, "flush", flush)
    write_atomic(tmp_path / "x.txt", "x")
    assert (tmp_path / "x.txt").read_text() == "x"


def test_text_is_utf_8_in_every_locale(tmp_path):
    code = "from pathlib import Path; from attnprobe.files import write_atomic; write_atomic(Path('x'), '\\u2026')"
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **locale}, check=True)
    assert (tmp_path / "x").read_text("utf-8") == "\u2026"
