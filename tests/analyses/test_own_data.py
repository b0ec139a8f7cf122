"""The series of the example, from the package aeon: skipped where it is not installed."""

from importlib.util import find_spec

import own_data
import pytest

from attnprobe.tasks import source


@pytest.mark.skipif(find_spec("aeon") is None, reason="needs the series of aeon: pip install --no-deps aeon")
def test_japanese_vowels_are_read_as_published():
    task = source(str(own_data.series())).build(0)
    assert (len(task.train), len(task.test)) == (270, 370)
    assert (task.data.n, task.data.channels, task.data.classes) == (29, 12, 9)
    assert (task.train.lengths.min(), task.train.lengths.max()) == (7, 26)
    assert task.train.inputs.flat[0, 0] == 1.860936, "first value of the file"
    assert task.test.lengths.max() == 29
