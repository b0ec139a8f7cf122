"""Tasks in memory: a data specification with checked training, test and optional validation splits."""

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
    """A data specification with a training split, a test split and an optional validation split.

    The arrays are checked on construction. Training sequences must be in random order.
    """

    name: str
    data: DataSpec
    train: Split
    test: Split
    validation: Split | None = None

    def __post_init__(self) -> None:
        """Check the arrays against the specification; errors name the array."""
        for name, split in self.splits.items():
            self._check(split, f"{self.name} {name}")

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits by name."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test}

    def held_out(self, count: int) -> "Task":
        """Return the task with its last ``count`` training sequences held out for validation; itself if ``count`` is 0.

        Raises `UsageError` if the task already has a validation split or no training sequence would remain.
        """
        if count == 0:
            return self
        check_held_out(self.name, count, {name: len(split) for name, split in self.splits.items()})
        return replace(self, train=self.train[:-count], validation=self.train[-count:])

    def shuffled(self, seed: int) -> "Task":
        """Return the task with the tokens of each sequence independently permuted; padding stays in place."""
        splits = {}
        for name, split in self.splits.items():
            key = numpy_generator(seed, f"shuffled {name}").random(split.inputs.shape[:2])
            if split.lengths is not None:
                key[np.arange(self.data.n) >= split.lengths[:, None]] = np.inf
            order = key.argsort(axis=1, kind="stable")
            order = order if split.inputs.ndim == 2 else order[..., None]  # all channels of a token move together
            inputs = np.take_along_axis(split.inputs, order, axis=1)
            splits[name] = replace(split, inputs=inputs)
        return replace(self, **splits)

    @classmethod
    def from_arrays(cls, name: str = "own", **arrays: Any) -> "Task":
        """Build a task from arrays: ``labels`` [sequence], and ``tokens`` or ``values`` [sequence, token].

        The arrays are those of an .npz file (see `attnprobe.tasks.arrays.ARRAYS`). Optional: ``lengths``, ``split``
        ("train", "validation" or "test" for each sequence), ``grid``, ``vocabulary`` and ``classes``. Without
        ``split``, a share ``test_share`` (0.2) of the sequences is drawn for testing.

        >>> Task.from_arrays(tokens=[[0, 1], [1, 0], [2, 0]], labels=[0, 1, 1]).data.vocabulary
        3
        """
        return arrays_.from_arrays(cls, name, **arrays)

    @classmethod
    def from_table(cls, table: Any, inputs: str = "text", labels: str = "label", **named: Any) -> "Task":
        """Build a task from a pandas ``DataFrame``, a Hugging Face ``Dataset`` or ``DatasetDict``, or {split: table}.

        Args:
            table: The data.
            inputs: Column of text (its UTF-8 bytes are the ids, 256 in all), lists of ids or lists of real values.
                Rows of different lengths are padded, and their lengths are kept.
            labels: Column of labels of any sortable type. Classes are numbered in sorted order.
            **named: ``n`` truncates the sequences; ``split`` names a column of "train", "validation" and "test";
                without it a fixed random share ``test_share`` (0.2) of the rows is for testing; ``name`` names the
                task.

        >>> import pandas as pd
        >>> Task.from_table(pd.DataFrame({"text": ["ab", "c", "def"], "label": ["x", "y", "x"]})).data.n
        3
        """
        return arrays_.from_table(cls, table, inputs, labels, **named)

    def save(self, path: str | Path) -> None:
        """Write the task to an .npz file, which can be used as a task: ``attnprobe train --task FILE.npz``."""
        arrays_.save(self, Path(path))

    def _check(self, split: Split, where: str) -> None:
        inputs, labels, data = split.inputs, split.labels, self.data
        if len(split) == 0:
            raise UsageError(f"{where}: holds no sequences")
        channel_axis = () if data.channels == 1 else (data.channels,)
        if inputs.ndim < 2 or inputs.shape[1:] != (data.n, *channel_axis):
            axes = f"[sequence, token={data.n}{f', channel={data.channels}' if channel_axis else ''}]"
            raise UsageError(f"{where} inputs of shape {inputs.shape}: must be {axes}")
        if data.levels and split.levels != data.levels:
            raise UsageError(
                f"{where} inputs with levels={split.levels}: must be {data.levels}, as in the specification"
            )
        if split.levels and data.inputs == "tokens":
            raise UsageError(f"{where} inputs with levels={split.levels}: must be 0 for tokens")
        kind = np.integer if data.inputs == "tokens" or split.levels else np.floating
        if not np.issubdtype(inputs.dtype, kind):
            raise UsageError(f"{where} inputs of type {inputs.dtype}: must be {kind.__name__} for {data.inputs}")
        count, noun = (split.levels, "levels") if split.levels else (data.vocabulary, "ids")
        if count and not (0 <= inputs.min() and inputs.max() < count):
            raise UsageError(f"{where} inputs hold {noun} {inputs.min()} ... {inputs.max()}: must be 0 ... {count - 1}")
        if not count and not (np.isfinite(inputs).all() and np.abs(inputs).max() <= np.finfo(np.float32).max):
            raise UsageError(f"{where} inputs: hold NaN or infinite values")
        if labels.shape != (len(inputs),):
            raise UsageError(f"{where} labels of shape {labels.shape}: must be [{len(inputs)}], one per sequence")
        if not (0 <= labels.min() and labels.max() < data.classes):
            raise UsageError(f"{where} labels {labels.min()} ... {labels.max()}: must be 0 ... {data.classes - 1}")
        if split.lengths is not None and data.grid is not None:
            raise UsageError(f"{where} lengths: not allowed for images on a grid")
        if split.lengths is not None and not (
            split.lengths.shape == labels.shape and 1 <= split.lengths.min() and split.lengths.max() <= data.n
        ):
            raise UsageError(f"{where} lengths: must be [{len(inputs)}] numbers from 1 to {data.n}")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all arrays: 16 hexadecimal digits."""
        arrays = [array for split in self.splits.values() for array in (split.inputs, split.labels)]
        lengths = [split.lengths for split in self.splits.values() if split.lengths is not None]
        levels = [split.levels for split in self.splits.values()]
        return fingerprint([*arrays, *lengths, *([np.array(levels)] if any(levels) else [])])


def check_held_out(name: str, count: int, sizes: Mapping[str, int]) -> None:
    """Raise `UsageError` if ``count`` training sequences cannot be held out for validation."""
    if count and "validation" in sizes:
        raise UsageError(
            f"validation_size={count}: task {name} already has a validation split; use it with validation_size=0"
        )
    if count >= sizes["train"]:
        raise UsageError(f"validation_size={count}: must be below the {sizes['train']} training sequences")
