"""What every task is made of: arrays, and the facts a reader needs to judge a number."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.provenance import fingerprint
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import arrays as arrays_
from attnprobe.tasks.split import Split


@dataclass(frozen=True)
class Task:
    """A training and a test split of one kind of data, and a validation split if there is one.

    It is checked when it is made. Training sequences stand in random order.
    """

    name: str
    data: DataSpec
    train: Split
    test: Split
    validation: Split | None = None

    def __post_init__(self) -> None:
        """Check that the arrays are what the specification says; the error names the array."""
        for name, split in self.splits.items():
            self._check(split, f"{self.name} {name}")

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test}

    def held_out(self, count: int) -> "Task":
        """Return the task with its last ``count`` training sequences as validation split; with 0, the task itself.

        Raises `UsageError` where there is a validation split already, or no sequence would be left to train on.
        """
        if count == 0:
            return self
        check_held_out(self.name, count, {name: len(split) for name, split in self.splits.items()})
        return replace(self, train=self.train[:-count], validation=self.train[-count:])

    def shuffled(self, seed: int) -> "Task":
        """Return the task with the tokens of each sequence (not the padding) in one random order, each in its own."""
        splits = {}
        for name, split in self.splits.items():
            key = numpy_generator(seed, f"shuffled {name}").random(split.inputs.shape)
            if split.lengths is not None:
                key[np.arange(self.data.n) >= split.lengths[:, None]] = np.inf
            inputs = np.take_along_axis(split.inputs, key.argsort(axis=1, kind="stable"), axis=1)
            splits[name] = replace(split, inputs=inputs)
        return replace(self, **splits)

    @classmethod
    def from_arrays(cls, name: str = "own", **arrays: Any) -> "Task":
        """Return the task of arrays: ``labels`` [sequence], and ``tokens`` or ``values`` [sequence, token].

        ``lengths`` and ``split`` ("train", "validation" or "test" for each sequence), ``grid``, ``vocabulary`` and
        ``classes`` are optional, and ``test_share`` (0.2) is for sequences without a split: what an .npz file may hold,
        and means the same.

        >>> Task.from_arrays(tokens=[[0, 1], [1, 0], [2, 0]], labels=[0, 1, 1]).data.vocabulary
        3
        """
        return arrays_.from_arrays(cls, name, **arrays)

    @classmethod
    def from_table(cls, table: Any, inputs: str = "text", labels: str = "label", **named: Any) -> "Task":
        """Return the task of a pandas ``DataFrame``, a Hugging Face ``Dataset`` or ``DatasetDict``, or {split: table}.

        The column ``inputs`` holds text (its UTF-8 bytes are the ids, 256 of them), lists of ids, or lists of real
        values; rows of several lengths are padded, with their lengths kept, and ``n=`` cuts. The column ``labels`` may
        hold anything that can be sorted: the classes are numbered in that order. ``split=`` names a column with
        "train", "validation" and "test"; without it ``test_share=`` (0.2) of the rows are drawn for testing, always the
        same ones. ``name=`` names the task.

        >>> import pandas as pd
        >>> Task.from_table(pd.DataFrame({"text": ["ab", "c", "def"], "label": ["x", "y", "x"]})).data.n
        3
        """
        return arrays_.from_table(cls, table, inputs, labels, **named)

    def save(self, path: str | Path) -> None:
        """Write the task to an .npz file, which is a task of that name: ``attnprobe train --task FILE.npz``."""
        arrays_.save(self, Path(path))

    def _check(self, split: Split, where: str) -> None:
        inputs, labels, data = split.inputs, split.labels, self.data
        if len(split) == 0:
            raise UsageError(f"{where}: holds no sequences")
        if inputs.ndim != 2 or inputs.shape[1] != data.n:
            raise UsageError(f"{where} inputs of shape {inputs.shape}: must be [sequence, token={data.n}]")
        if data.levels and split.levels != data.levels:
            raise UsageError(f"{where} inputs with levels={split.levels}: must be {data.levels}, as the data say")
        if split.levels and data.inputs == "tokens":
            raise UsageError(f"{where} inputs with levels={split.levels}: tokens have none")
        kind = np.integer if data.inputs == "tokens" or split.levels else np.floating
        if not np.issubdtype(inputs.dtype, kind):
            raise UsageError(f"{where} inputs of type {inputs.dtype}: must be {kind.__name__} for {data.inputs}")
        ids, what = (split.levels, "levels") if split.levels else (data.vocabulary, "ids")
        if ids and not (0 <= inputs.min() and inputs.max() < ids):
            raise UsageError(f"{where} inputs hold {what} {inputs.min()} ... {inputs.max()}: must be 0 ... {ids - 1}")
        if not ids and not (np.isfinite(inputs).all() and np.abs(inputs).max() <= np.finfo(np.float32).max):
            raise UsageError(f"{where} inputs: hold NaN or infinite values")
        if labels.shape != (len(inputs),):
            raise UsageError(f"{where} labels of shape {labels.shape}: must be [{len(inputs)}], one a sequence")
        if not (0 <= labels.min() and labels.max() < data.classes):
            raise UsageError(f"{where} labels {labels.min()} ... {labels.max()}: must be 0 ... {data.classes - 1}")
        if split.lengths is not None and data.grid is not None:
            raise UsageError(f"{where} lengths: images on a grid have one size")
        if split.lengths is not None and not (
            split.lengths.shape == labels.shape and 1 <= split.lengths.min() and split.lengths.max() <= data.n
        ):
            raise UsageError(f"{where} lengths: must be [{len(inputs)}] numbers from 1 to {data.n}")

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen digits that change with any value of the data."""
        arrays = [array for split in self.splits.values() for array in (split.inputs, split.labels)]
        lengths = [split.lengths for split in self.splits.values() if split.lengths is not None]
        levels = [split.levels for split in self.splits.values()]
        return fingerprint([*arrays, *lengths, *([np.array(levels)] if any(levels) else [])])


def check_held_out(name: str, count: int, sizes: Mapping[str, int]) -> None:
    """Raise `UsageError` where so many training sequences cannot be kept for validation."""
    if count and "validation" in sizes:
        raise UsageError(
            f"validation_size={count}: task {name} has a validation split of its own; validation_size 0 takes it"
        )
    if count >= sizes["train"]:
        raise UsageError(f"validation_size={count}: must be below the {sizes['train']} training sequences")
