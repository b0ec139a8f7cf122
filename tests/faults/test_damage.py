"""A file with a flipped bit, or cut off, is refused in one line that names it, or has the same content."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.results import open_result, save
from attnprobe.tasks import folder
from attnprobe.tasks.folder import made_once

KINDS = ("checkpoint", "former checkpoint", "result", "made array", "made checksums")
ENTRIES = ("config", "data", "weights", "optimiser", "step", "objective", "metrics", "fingerprint", "provenance")


@dataclass(frozen=True)
class Subject:
    """An intact file and how it is read."""

    path: Path
    read: Callable[[], Any]
    same: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Squares:
    count: int = 300


def squares(create):
    create("squares", (300,), np.int32)[:] = np.arange(300) ** 2


@pytest.fixture(params=KINDS)
def subject(request, former, spt_run, tmp_path, monkeypatch):
    kind, path = request.param, tmp_path / "x"
    if kind == "checkpoint":
        path.write_bytes(spt_run.checkpoints[-1].path.read_bytes())
    elif kind == "former checkpoint":
        path.write_bytes(next((former / "sweep").glob("pairs-spt*/checkpoints/*.pt")).read_bytes())
    elif kind == "result":
        save(ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1), path)
        return Subject(path, functools.partial(open_result, path), xr.Dataset.identical)
    else:
        monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
        made_once(Squares(), squares)
        (path,) = tmp_path.glob(f"made/*/{'squares.npy' if kind == 'made array' else folder.CHECKSUMS}")

        def read():
            folder._checksum.cache_clear()  # two writes may have the same time
            return made_once(Squares(), squares)

        return Subject(path, read, equal)
    return Subject(path, functools.partial(ap.load, path), equal_checkpoints)


def equal(left, right):
    if isinstance(left, torch.Tensor | np.ndarray):
        left, right = np.asarray(left), np.asarray(right)
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and left == right


def equal_checkpoints(left, right):
    return all(equal(getattr(left, name), getattr(right, name)) for name in ENTRIES)


def outcomes(subject, damaged):
    """Count what becomes of damaged contents: named in one line, harmless, or silent."""
    intact, counts = subject.read(), Counter()
    for content in damaged:
        subject.path.write_bytes(content)
        try:
            counts["harmless" if subject.same(subject.read(), intact) else "silent"] += 1
        except UsageError as error:
            assert "\n" not in str(error) and str(subject.path.parent) in str(error)
            counts["named"] += 1
    return counts


def flipped(content, count):
    """Yield copies of a file, each with another random bit flipped."""
    for place in np.random.default_rng(0).choice(8 * len(content), count, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_read_silently(subject, count):
    counts = outcomes(subject, flipped(subject.path.read_bytes(), count))
    assert counts["silent"] == 0 and counts["named"] + counts["harmless"] == count
    assert counts["named"] > count / 2


def test_no_truncated_file_is_read_silently(subject):
    content = subject.path.read_bytes()
    counts = outcomes(subject, (content[: len(content) * percent // 100] for percent in range(100)))
    # Without its last character, a line break, the file of checksums has the same content.
    assert counts["silent"] == 0 and counts["named"] >= 99


def test_a_last_block_of_zeros_is_named(subject):
    """As after a power failure on some file systems: the size is right and the end is not."""
    content = subject.path.read_bytes()
    size = min(4096, len(content) // 2)
    assert outcomes(subject, [content[:-size] + bytes(size)]) == {"named": 1}


def test_the_message_says_what_to_do(spt_run, tmp_path, monkeypatch):
    run, name = tmp_path / "run", "step-000012.pt"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / name).write_bytes(spt_run.path_of(12).read_bytes()[:-1000])
    with pytest.raises(
        UsageError, match=f"{name}: not an attnprobe checkpoint, or damaged .*; use another checkpoint$"
    ):
        ap.load(run / "checkpoints" / name)
    (run / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"delete this one and continue the run .* with --resume {run}$"):
        ap.load(run / "checkpoints" / name)
    (run / "finished.json").write_text("{}")
    with pytest.raises(UsageError, match="; use another checkpoint$"):
        ap.load(run / "checkpoints" / name)
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    made_once(Squares(), squares)
    (path,) = tmp_path.glob("made/*/*.npy")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        UsageError, match=rf"{path.parent}: damaged \(squares.npy: wrong checksum\); delete this folder"
    ):
        made_once(Squares(), squares)


def test_a_changed_entry_differs_from_the_digest(spt_run, tmp_path):
    """The checksums of the archive are right here, as in a file that another program wrote."""
    path = tmp_path / "x.pt"
    fields = torch.load(spt_run.checkpoints[-1].path, weights_only=True)
    fields["weights"]["classify.bias"][0] += 1
    torch.save(fields, path)
    with pytest.raises(UsageError, match=r"damaged \(its content differs from its digest\)"):
        ap.load(path)
    fields["weights"]["classify.bias"] = spt_run.checkpoints[-1].weights["classify.bias"]
    torch.save(fields, path)
    assert equal_checkpoints(ap.load(path), spt_run.checkpoints[-1])


def test_former_results_and_edited_ones_are_read_without_a_checksum(former, spt_run, tmp_path):
    """Programs that edit a result know no checksum; the file that they write is not damaged."""
    result = ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1)
    save(result, tmp_path / "x.nc")
    with xr.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as opened:
        opened.isel(layer=0).to_netcdf(tmp_path / "edited.nc", engine="h5netcdf")
    assert open_result(tmp_path / "edited.nc").identical(result.isel(layer=0))
    former_result = open_result(former / "proximity.nc")
    save(former_result, tmp_path / "again.nc")
    assert open_result(tmp_path / "again.nc").identical(former_result)


def test_a_damaged_former_result_raises_nothing_but_usage_errors(former, tmp_path):
    """It has no checksum, so that damage of its values is read; HDF5's and xarray's errors are one line."""
    path = tmp_path / "x.nc"
    path.write_bytes((former / "proximity.nc").read_bytes())
    counts = outcomes(Subject(path, lambda: open_result(path), xr.Dataset.identical), flipped(path.read_bytes(), 20))
    assert counts["named"] > 10


def test_two_results_of_one_checkpoint_differ_in_their_provenance_only(spt_run, tmp_path):
    for name in ("one.nc", "two.nc"):
        save(ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1), tmp_path / name)
    one, two = (open_result(tmp_path / name) for name in ("one.nc", "two.nc"))
    for result in (one, two):
        result.attrs.pop("provenance")
    assert one.identical(two)
    for result, name in ((one, "one.nc"), (two, "two.nc")):
        save(result, tmp_path / name)
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()


def test_made_arrays_are_hashed_once_per_process(tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    folder._checksum.cache_clear()
    for _ in range(3):
        made_once(Squares(), squares)
    assert folder._checksum.cache_info().misses == 2  # when it was made, and when it was first used


def test_arrays_that_an_earlier_version_made_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    made_once(Squares(), squares)
    (path,) = tmp_path.glob(f"made/*/{folder.CHECKSUMS}")
    path.unlink()
    assert made_once(Squares(), squares)["squares"][2] == 4
