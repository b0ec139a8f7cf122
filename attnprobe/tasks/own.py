"""Your own file of arrays as a task, and tasks of your own that are kept in the data folder.

A `Task` that a configuration names is written to the data folder under its name and content, so that the configuration
stays plain and a checkpoint finds its data again.
"""

import re
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np

from attnprobe.config import DataSpec, Share, settings
from attnprobe.errors import UsageError, listed
from attnprobe.provenance import fingerprint
from attnprobe.tasks.arrays import SUFFIX, TEST_SHARE, load, of_task
from attnprobe.tasks.folder import advice, data_folder
from attnprobe.tasks.source import Source
from attnprobe.tasks.task import Task


@settings
class Own(Source):
    """Your own file of arrays."""

    licence: ClassVar[str] = "your own"
    origin: ClassVar[str] = "your own file"

    file: str
    """Where it is: seen from the working directory, or else from the data folder."""
    test_share: Share = TEST_SHARE
    """Share of the sequences that is for testing, where the file does not split them: one fixed random split."""

    def __post_init__(self) -> None:
        """Read the file, so that a wrong one is refused at once."""
        self.build(0)

    @property
    def data(self) -> DataSpec:
        """What the arrays are."""
        return self._task.data

    @property
    def sizes(self) -> dict[str, int]:
        """Sequences of each split."""
        return {name: len(split) for name, split in self._task.splits.items()}

    @property
    def balance(self) -> tuple[float, ...]:
        """Share of each class in the training split."""
        labels = self._task.train.labels
        return tuple(np.bincount(labels, minlength=self.data.classes) / len(labels))

    def build(self, seed: int) -> Task:
        """Return the arrays of the file; they are the same for every seed."""
        return self._task

    @cached_property
    def _task(self) -> Task:
        tried = dict.fromkeys((Path(self.file).expanduser(), data_folder() / self.file))
        for path in tried:
            if path.is_file():
                return load(Task, path, self.test_share)
        raise UsageError(f"{self.file}: no such file; looked for {listed(tried)}; {advice()}")


def kept(task: Task) -> str:
    """Return where a task is in the data folder, seen from there; it is written if it is not there yet."""
    arrays = of_task(task)
    names = sorted(arrays)
    content = fingerprint([np.array(names), *(arrays[name] for name in names)])
    file = f"own/{re.sub(r'[^A-Za-z0-9_.-]+', '-', task.name) or 'task'}-{content}{SUFFIX}"
    path = data_folder() / file
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path.parent}: cannot be made ({error.strerror}); {advice()}") from error
        task.save(path)
    return file


def is_file(name: Any) -> bool:
    """Return whether the name of a task is that of a file."""
    return isinstance(name, str) and PurePath(name).suffix == SUFFIX
