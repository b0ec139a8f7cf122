"""What every task is made of: arrays, and the facts a reader needs to judge a number."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.provenance import fingerprint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Split:
    """Sequences with their labels."""

    inputs: np.ndarray
    """[sequence, token]: integer ids or real values."""
    labels: np.ndarray
    """[sequence]: 0 ... classes - 1."""
    lengths: np.ndarray | None = None
    """[sequence]: tokens that are not padding, where they differ."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.inputs)

    def tensor(self, rows: Any = slice(None), length: int | None = None) -> "torch.Tensor":
        """Return the inputs [batch, token] of some sequences as a network takes them, up to a length."""
        import torch

        inputs = torch.from_numpy(self.inputs[rows, :length])
        return inputs.float() if inputs.is_floating_point() else inputs.long()


@dataclass(frozen=True)
class Task:
    """A training and a test split of one kind of data; checked when it is made."""

    name: str
    data: DataSpec
    train: Split
    test: Split

    def __post_init__(self) -> None:
        """Check that the arrays are what the specification says; the error names the array."""
        for split, name in ((self.train, "train"), (self.test, "test")):
            self._check(split, f"{self.name} {name}")

    def _check(self, split: Split, where: str) -> None:
        inputs, labels, data = split.inputs, split.labels, self.data
        if len(split) == 0:
            raise UsageError(f"{where}: holds no sequences")
        if inputs.ndim != 2 or inputs.shape[1] != data.n:
            raise UsageError(f"{where} inputs of shape {inputs.shape}: must be [sequence, token={data.n}]")
        kind = np.integer if data.inputs == "tokens" else np.floating
        if not np.issubdtype(inputs.dtype, kind):
            raise UsageError(f"{where} inputs of type {inputs.dtype}: must be {kind.__name__} for {data.inputs}")
        if data.inputs == "tokens" and not (0 <= inputs.min() and inputs.max() < data.vocabulary):
            found = f"{inputs.min()} ... {inputs.max()}"
            raise UsageError(f"{where} inputs hold ids {found}: must be 0 ... {data.vocabulary - 1}")
        if not np.isfinite(inputs).all():
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
        arrays = [self.train.inputs, self.train.labels, self.test.inputs, self.test.labels]
        lengths = [split.lengths for split in (self.train, self.test) if split.lengths is not None]
        return fingerprint(arrays + lengths)


@runtime_checkable
class Source(Protocol):
    """Where a task comes from: a settings dataclass whose fields are the task's parameters."""

    settings: ClassVar[dict[str, Any]]
    """Training settings that suit the task; flags and files win over them."""
    licence: ClassVar[str]
    origin: ClassVar[str]
    """Where the data come from."""

    @property
    def data(self) -> DataSpec:
        """What a network has to know, without making the data."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Sequences to train and to test on."""
        ...

    @property
    def best_accuracy(self) -> float | None:
        """Accuracy of the Bayes-optimal classifier, where it is known."""
        ...

    def build(self, seed: int) -> Task:
        """Make the instance of the task that belongs to the seed."""
        ...
