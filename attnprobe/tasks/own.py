"""Files and folders of the user as tasks, and storage of `Task` objects in the data folder.

A `Task`, a table, a folder or an .npz file in a configuration is written to the data folder as an .npz file, under its
name and a hash of its content. The configuration stores only that path, so that a checkpoint can reload its data from
any working directory, also after the user's file was moved or changed. An .npz file that is in the data folder already,
or that is larger than `MOST_COPIED`, stays where it is.
"""

import re
from dataclasses import field, fields, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np

from attnprobe.config import DataSpec, settings
from attnprobe.errors import UsageError, listed
from attnprobe.provenance import fingerprint
from attnprobe.tables import TASKS
from attnprobe.tasks.arrays import SUFFIX, load, of_task
from attnprobe.tasks.folder import advice, data_folder
from attnprobe.tasks.readers import SUFFIXES, read
from attnprobe.tasks.reading import Reading
from attnprobe.tasks.source import Source
from attnprobe.tasks.table import of_frame
from attnprobe.tasks.task import Task

MOST_COPIED = 2**28
"""Largest .npz file, in bytes, that is copied to the data folder."""


@settings
class Own(Reading, Source):
    """A user-provided .npz file of arrays, table (csv, tsv, jsonl, parquet), or folder of images, texts or tables."""

    licence: ClassVar[str] = "your own"
    origin: ClassVar[str] = "your own file"

    file: str = field(kw_only=True)
    """Path of the file or folder, relative to the working directory or else to the data folder."""

    def __post_init__(self) -> None:
        """Read the file, so that an invalid one fails early."""
        self.build(0)

    @property
    def data(self) -> DataSpec:
        """Specification of the data."""
        return self._task.data

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences in each split."""
        return {name: len(split) for name, split in self._task.splits.items()}

    @property
    def balance(self) -> tuple[float, ...]:
        """Proportion of each class in the training split."""
        labels = self._task.train.labels
        return tuple(np.bincount(labels, minlength=self.data.classes) / len(labels))

    def build(self, seed: int) -> Task:
        """Return the task of the file; it is the same for every seed."""
        return self._task

    @cached_property
    def _task(self) -> Task:
        candidates = dict.fromkeys((Path(self.file).expanduser(), data_folder() / self.file))
        for path in candidates:
            if path.exists():
                reading = Reading(**{name.name: getattr(self, name.name) for name in fields(Reading)})
                return load(Task, path, reading) if path.suffix.lower() == SUFFIX else _from_table(path, reading)
        raise UsageError(f"{self.file}: no such file; tried {listed(candidates)}; {advice()}")


def _from_table(path: Path, reading: Reading) -> Task:
    table = read(path, reading.inputs, reading.labels, reading.split)
    named = replace(
        reading,
        inputs=table.inputs,
        labels=table.labels,
        tokens="words" if table.words else reading.tokens,
    )
    try:
        return of_frame(Task, table.frame, path.stem, named, table.class_names)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def kept(task: Task) -> str:
    """Save a task in the data folder if it is missing, and return its path relative to that folder."""
    arrays = of_task(task)
    names = sorted(arrays)
    content = fingerprint([np.array(names), *(arrays[name] for name in names)])
    file = f"own/{re.sub(r'[^A-Za-z0-9_.-]+', '-', task.name) or 'task'}-{content}{SUFFIX}"
    path = data_folder() / file
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path.parent}: cannot be created ({error.strerror}); {advice()}") from error
        task.save(path)
    return file


def is_path(name: Any) -> bool:
    """Return whether the name of a task is a path rather than a name in `TASKS`."""
    if not isinstance(name, str) or name in TASKS:
        return False
    path = PurePath(name)
    places = Path(name).expanduser(), data_folder() / name
    return len(path.parts) > 1 or path.suffix.lower() in (SUFFIX, *SUFFIXES) or any(place.is_dir() for place in places)


def is_copied(name: Any) -> bool:
    """Return whether the name of a task is the path of data that `kept` copies to the data folder."""
    if not is_path(name) or PurePath(name).suffix.lower() != SUFFIX:
        return is_path(name)
    path, folder = Path(name).expanduser(), data_folder().resolve()
    return path.is_file() and folder not in path.resolve().parents and path.stat().st_size <= MOST_COPIED
