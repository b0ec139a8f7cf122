"""Every size that a task's settings admit can be built, or is refused by name, at once."""

import dataclasses
import shutil
import time

import numpy as np
import pytest

from attnprobe.config import LARGEST
from attnprobe.errors import UsageError
from attnprobe.tasks import TASKS, folder, source

OPTIONS = [
    (task, field.name)
    for task in TASKS
    for field in dataclasses.fields(TASKS[task])
    if isinstance(field.default, int | float)
]
TINY = {"train_size": 3, "test_size": 2}
FEW = {**TINY, "validation_size": 2}


@pytest.mark.parametrize("value", [LARGEST, 10**40, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(("task", "option"), OPTIONS)
def test_an_extreme_is_refused_by_name(task, option, value):
    begun = time.process_time()
    with pytest.raises(UsageError, match=f"{option}=|sequences of (up to )?[0-9]+ tokens"):
        _ = source(task, {option: value}).data
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("listops", {"max_depth": 10**6, "max_args": 10}, "trees with max_depth=1000000 and max_args=10 have more"),
        ("listops", {"max_depth": 2, "max_args": 10**5}, "nodes on average: must be at|must have at most 1024"),
        ("listops", {"n": 10**6, "max_length": 10**6}, "n=1000000: input should be less than or equal to 131072"),
        ("pairs", {"n": 2**21}, "sequences of 2097152 tokens: must have at most 1048576"),
        ("pairs", {"train_size": 10**7}, "train_size=10000000, test_size=2000 of 32 tokens each: 320,064,000 tokens"),
        ("pathfinder", {"contour_length": 1000}, "contour_length=1000: must be at most 64 at side=32"),
        ("pathfinder", {"distractors": 1000}, "distractors=1000: must be at most 64 at side=32"),
        ("pathfinder", {"side": 16, "contour_length": 16, **FEW}, "contour_length=16 fit no image of side=16"),
    ],
)
def test_sizes_that_fit_no_memory_are_named(task, options, message, tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match=message):
        source(task, options).build(0)
    assert not list(tmp_path.glob("made/*/*"))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("pairs", {"n": 4096, "alphabet": 4096, "classes": 4095, **TINY}),
        ("planted", {"n": 4096, "alphabet": 4096, "classes": 2, "distance": 2048, **TINY}),
        ("bigrams", {"n": 2**14, "alphabet": 256, "classes": 255, **TINY}),
        ("listops", {"n": 64, "min_length": 3, "max_length": 60, "max_depth": 10**6, "max_args": 2, **FEW}),
        ("listops", {"n": 2000, "min_length": 3, "max_length": 2000, "max_depth": 2, "max_args": 1000, **FEW}),
    ],
)
def test_the_largest_sizes_are_built(task, options, tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    largest = source(task, options)
    data = largest.build(0)
    assert len(data.train) == 3 and data.data.n == options["n"]
    assert largest.best_accuracy in (None, 1.0)


def test_a_full_disk_is_named_before_arrays_are_written(tmp_path, monkeypatch):
    """Writing to a map of a file for which the disk has no space kills the process."""
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    claimed = shutil.disk_usage(tmp_path).free + 2**34

    @dataclasses.dataclass(frozen=True)
    class Huge:
        count: int = claimed

    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\); --data DIR"):
        folder.made_once(Huge(), lambda create: create("x", (claimed,), np.uint8)[:1])
    assert not list(tmp_path.glob("made/*/*"))
