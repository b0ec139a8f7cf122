import multiprocessing
import os
import signal
import stat
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.tasks import folder
from attnprobe.tasks.folder import data_folder, made_once


@dataclass(frozen=True)
class Squares:
    count: int = 5


def fill(count):
    def make(create):
        create("squares", (count,), np.int32)[:] = np.arange(count) ** 2

    return make


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    return tmp_path


def never(create):
    raise AssertionError("generated again")


def test_arrays_are_generated_once_and_are_read_only(here):
    assert made_once(Squares(), fill(5))["squares"].tolist() == [0, 1, 4, 9, 16]
    again = made_once(Squares(), never)["squares"]
    assert isinstance(again, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def killed_while_generating(create):
    create("squares", (5,), np.int32)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_a_killed_process_generated_is_deleted_by_the_next_that_generates_the_same(here):
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=made_once, args=(Squares(), killed_while_generating))
    killed.start()
    killed.join()
    assert len(list(here.rglob("*.part-*"))) == 1
    made_once(Squares(), fill(5))
    assert list(here.rglob("*.part-*")) == []


@pytest.mark.parametrize("change", ["parameters", "more", "code"])
def test_the_cache_key_covers_parameters_extra_values_and_code(here, change, monkeypatch):
    made_once(Squares(), fill(5), seed=0)
    source, seed = Squares(), 0
    if change == "parameters":
        source = replace(source, count=6)
    elif change == "more":
        seed = 1
    else:
        monkeypatch.setattr(folder.inspect, "getsource", lambda module: "other code")
    assert len(made_once(source, fill(7), seed=seed)["squares"]) == 7
    assert len(made_once(Squares(), fill(7), seed=0)["squares"]) == (7 if change == "code" else 5)


def test_the_cache_key_covers_the_code_of_helpers(here, monkeypatch):
    from attnprobe.tasks import chunks

    made_once(Squares(), fill(5), helpers=[chunks])
    assert len(made_once(Squares(), fill(6))["squares"]) == 6
    assert len(made_once(Squares(), never, helpers=[chunks])["squares"]) == 5


def test_an_interrupted_generation_leaves_no_files(here):
    def breaks(create):
        create("squares", (3,), np.int32)[:] = 1
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        made_once(Squares(), breaks)
    assert [path.name for path in (here / "made").iterdir() if path.suffix != ".lock"] == []
    assert made_once(Squares(), fill(5))["squares"][2] == 4


def _make_slowly(calls):
    def make(create):
        with calls.get_lock():
            calls.value += 1
        array = create("squares", (5,), np.int32)
        time.sleep(0.2)
        array[:] = np.arange(5) ** 2

    assert made_once(Squares(), make)["squares"].tolist() == [0, 1, 4, 9, 16]


def test_concurrent_runs_generate_once_and_all_read_complete_arrays(here):
    context = multiprocessing.get_context("fork")
    calls = context.Value("i", 0)
    runs = [context.Process(target=_make_slowly, args=(calls,)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0] * 4
    assert calls.value == 1


def test_an_unwritable_data_folder_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"file.made.*cannot be written.*--data DIR or ATTNPROBE_DATA"):
        made_once(Squares(), fill(5))


def test_generated_arrays_are_readable_by_other_users(here):
    made_once(Squares(), fill(5))
    (cached,) = (path for path in (here / "made").iterdir() if path.is_dir())
    assert stat.S_IMODE(cached.stat().st_mode) == 0o755


def test_the_default_data_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv(folder.VARIABLE)
    assert data_folder().name == "attnprobe"
