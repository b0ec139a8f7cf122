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
from attnprobe.tasks import table as table_
from attnprobe.tasks.labels import NONE
from attnprobe.tasks.sequences import Sequences, extremes
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
    unlabelled: Split | None = None
    """Sequences without labels, which only self-pretraining sees in addition to the training split."""
    notes: tuple[str, ...] = ()
    """What was done to the user's data: rows left out, the split that was drawn, scale, renumbered ids."""

    def __post_init__(self) -> None:
        """Check the arrays against the specification; errors name the array."""
        for name, split in self.splits.items():
            self._check(split, f"{self.name} {name}", least=0)
        if self.unlabelled is not None:
            self._check(self.unlabelled, f"{self.name} unlabelled", least=NONE)

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits by name."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test}

    @property
    def all_splits(self) -> dict[str, Split]:
        """The existing splits by name, with the unlabelled sequences."""
        return self.splits | ({} if self.unlabelled is None else {"unlabelled": self.unlabelled})

    def held_out(self, count: int) -> "Task":
        """Return the task with its last ``count`` training sequences held out for validation; itself if ``count`` is 0.

        Raises `UsageError` if the task already has a validation split or no training sequence would remain.
        """
        if count == 0:
            return self
        check_held_out(self.name, count, {name: len(split) for name, split in self.splits.items()})
        train, validation = (self.train[rows] for rows in (slice(-count), slice(-count, None)))
        return replace(self, train=train, validation=validation)

    @cached_property
    def for_pretraining(self) -> "Task":
        """The task with its unlabelled sequences among the training sequences."""
        if self.unlabelled is None:
            return self
        anonymous = replace(self.unlabelled, labels=np.zeros(len(self.unlabelled), np.int64))  # never read
        return replace(self, train=self.train.joined(anonymous), unlabelled=None)

    def shuffled(self, seed: int) -> "Task":
        """Return the task with the tokens of each sequence independently permuted; padding stays in place."""
        splits = {}
        for name, split in self.splits.items():
            inputs = np.asarray(split.inputs)
            key = numpy_generator(seed, f"shuffled {name}").random(inputs.shape[:2])
            if split.lengths is not None:
                key[np.arange(self.data.n) >= split.lengths[:, None]] = np.inf
            order = key.argsort(axis=1, kind="stable")
            order = order if inputs.ndim == 2 else order[..., None]  # all channels of a token move together
            splits[name] = replace(split, inputs=np.take_along_axis(inputs, order, axis=1))
        return replace(self, **splits)

    @classmethod
    def from_arrays(cls, name: str = "own", **arrays: Any) -> "Task":
        """Build a task from arrays: ``labels`` [sequence], and ``tokens``, ``values`` or ``images``.

        The arrays are those of an .npz file (see `attnprobe.tasks.arrays.ARRAYS`); keywords may also be options of
        `attnprobe.tasks.reading.Reading`. Sequences of different lengths may be lists. Without ``split``, a share
        ``test_share`` (0.2) of the sequences of each class is drawn for testing. Real values are standardised by the
        training split (``standardise="none"``: used as given). ``task.notes`` says what was done.

        >>> Task.from_arrays(tokens=[[0, 1], [1, 0], [2, 0], [0, 2]], labels=[0, 1, 1, 0]).data.vocabulary
        3
        """
        return arrays_.from_arrays(cls, name, **arrays)

    @classmethod
    def from_table(cls, table: Any, inputs: str = "text", labels: str = "label", **named: Any) -> "Task":
        """Build a task from a pandas ``DataFrame``, a Hugging Face ``Dataset`` or ``DatasetDict``, or {split: table}.

        Args:
            table: The data.
            inputs: Column of texts (their UTF-8 bytes are the ids, 256 in all), lists of ids or real values, arrays
                [token, channel] or images. A pattern such as "x*" matches one column per token. Sequences may differ
                in length.
            labels: Column of labels: texts, or whole numbers. Classes are numbered in sorted order.
            **named: ``name`` of the task, and options of `attnprobe.tasks.reading.Reading`: ``n`` cuts sequences;
                ``tokens="words"``; ``pair`` names a column of second texts; ``split`` one of "train", "validation" and
                "test", by default the column of that name; ``patch`` makes patches of images the tokens;
                ``unlabelled`` and ``empty`` say what to do with rows without a label or without tokens.

        >>> import pandas as pd
        >>> Task.from_table(pd.DataFrame({"text": ["ab", "c", "def"], "label": ["x", "y", "x"]})).data.n
        3
        """
        return table_.from_table(cls, table, inputs=inputs, labels=labels, **named)

    def save(self, path: str | Path) -> None:
        """Write the task to an .npz file, which can be used as a task: ``attnprobe train --task FILE.npz``."""
        arrays_.save(self, Path(path))

    def __repr__(self) -> str:
        """Return name, format and sizes, without the data."""
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.all_splits.items())
        return f"Task({self.name!r}: n={self.data.n}, {self.data.inputs}, {self.data.classes} classes; {sizes})"

    def _check(self, split: Split, where: str, least: int) -> None:
        inputs, labels, data = split.inputs, split.labels, self.data
        if len(split) == 0:
            raise UsageError(f"{where}: holds no sequences")
        channels = (data.channels,) if data.channels > 1 else ()
        if inputs.shape[1:] != (data.n, *channels):
            axes = ", ".join(["sequence", f"token={data.n}", *(f"channel={channel}" for channel in channels)])
            raise UsageError(f"{where} inputs of shape {inputs.shape}: must be [{axes}]")
        if data.levels and split.levels != data.levels:
            raise UsageError(
                f"{where} inputs with levels={split.levels}: must be {data.levels}, as in the specification"
            )
        if split.levels and data.inputs == "tokens":
            raise UsageError(f"{where} inputs with levels={split.levels}: must be 0 for tokens")
        if (split.mean, split.std) != (data.mean, data.std):
            raise UsageError(f"{where} inputs with another mean or std: must be those of the specification")
        kind = np.integer if data.inputs == "tokens" or split.levels else np.number if split.mean else np.floating
        if not np.issubdtype(inputs.dtype, kind):
            raise UsageError(f"{where} inputs of type {inputs.dtype}: must be {kind.__name__} for {data.inputs}")
        smallest, largest = extremes(inputs)
        count, noun = (split.levels, "levels") if split.levels else (data.vocabulary, "ids")
        if count and not (smallest >= 0 and largest < count):
            raise UsageError(f"{where} inputs hold {noun} {smallest} ... {largest}: must be 0 ... {count - 1}")
        limit = np.inf if split.mean else np.finfo(np.float32).max
        if not count and not (np.isfinite([smallest, largest]).all() and max(-smallest, largest) <= limit):
            raise UsageError(f"{where} inputs: hold NaN or infinite values")
        if labels.shape != (len(inputs),):
            raise UsageError(f"{where} labels of shape {labels.shape}: must be [{len(inputs)}], one per sequence")
        if not (least <= labels.min() and labels.max() < data.classes):
            raise UsageError(f"{where} labels {labels.min()} ... {labels.max()}: must be 0 ... {data.classes - 1}")
        if split.lengths is not None and data.grid is not None:
            raise UsageError(f"{where} lengths: not allowed for images on a grid")
        if split.lengths is not None and not (
            split.lengths.shape == labels.shape and 1 <= split.lengths.min() and split.lengths.max() <= data.n
        ):
            raise UsageError(f"{where} lengths: must be [{len(inputs)}] numbers from 1 to {data.n}")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all arrays, with padding as 0: 16 hexadecimal digits."""
        splits = list(self.all_splits.values())
        arrays: list[Any] = [array for split in splits for array in (_unpadded(split), split.labels)]
        arrays += [split.lengths for split in splits if split.lengths is not None]
        if any(split.levels for split in splits):
            arrays.append(np.array([split.levels for split in splits]))
        if self.data.mean:
            arrays += [np.array(self.data.mean), np.array(self.data.std)]
        return fingerprint(arrays)


def _unpadded(split: Split) -> np.ndarray | Sequences:
    if split.lengths is None or isinstance(split.inputs, Sequences):
        return split.inputs
    return Sequences.of_array(split.inputs, split.lengths)


def check_held_out(name: str, count: int, sizes: Mapping[str, int]) -> None:
    """Raise `UsageError` if ``count`` training sequences cannot be held out for validation."""
    if count and "validation" in sizes:
        raise UsageError(
            f"validation_size={count}: task {name} already has a validation split; use it with validation_size=0"
        )
    if count >= sizes["train"]:
        raise UsageError(f"validation_size={count}: must be below the {sizes['train']} training sequences")
