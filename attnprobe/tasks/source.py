"""Base class of task sources: the interface of a task's settings dataclass, with defaults for generated data."""

from collections.abc import Mapping
from typing import Any, ClassVar

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError, listed
from attnprobe.tasks.task import Task

LONGEST = 2**20
"""Largest number of tokens of a sequence: attention over more is surely a mistake."""
IN_MEMORY, ON_DISK = 2**27, 2**36
"""Largest number of tokens of generated data: several gigabytes while they are drawn; 68 GB or more in files."""


class Source:
    """Base class of every task: a settings dataclass whose fields are the task's parameters.

    A subclass implements ``data`` and ``build``. The defaults suit generated data with the fields ``train_size``,
    ``test_size`` and optionally ``validation_size``, classes of equal probability and an unknown best accuracy;
    override the ones that differ.
    """

    settings: ClassVar[dict[str, Any]] = {}
    """Recommended training settings; flags and configuration files override them."""
    licence: ClassVar[str] = "generated"
    origin: ClassVar[str] = "attnprobe"
    """Provenance of the data."""
    symbols: ClassVar[tuple[str, ...]] = ()
    """What each token id stands for; empty if ids stand for nothing else."""

    @property
    def data(self) -> DataSpec:
        """Specification of the data that a network needs, without building the data."""
        raise NotImplementedError

    def build(self, seed: int) -> Task:
        """Build the task for a seed."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences in each split (train, optionally validation, test), without building the data."""
        splits = ("train", "validation", "test")
        return {name: getattr(self, f"{name}_size") for name in splits if hasattr(self, f"{name}_size")}

    @property
    def balance(self) -> tuple[float, ...] | None:
        """Proportion of each class; None if all are equally likely."""
        return None

    @property
    def best_accuracy(self) -> float | None:
        """Accuracy of the Bayes-optimal classifier; None if unknown."""
        return None


BYTES = tuple(chr(byte) if chr(byte).isprintable() and byte < 128 else f"0x{byte:02x}" for byte in range(256))
"""What a byte stands for."""


def check_size(task: str, n: int, sizes: Mapping[str, int], most: int) -> None:
    """Raise `UsageError` if sequences are too long, or more than ``most`` tokens in all splits together."""
    if n > LONGEST:
        raise UsageError(f"{task}: sequences of {n} tokens: must have at most {LONGEST}")
    if (tokens := n * sum(sizes.values())) > most:
        given = listed(f"{name}_size={size}" for name, size in sizes.items())
        raise UsageError(f"{task}: {given} of {n} tokens each: {tokens:,} tokens; must be at most {most:,}")


def chance(source: Source) -> float:
    """Return the accuracy of always predicting the most frequent class."""
    return max(source.balance or (1 / source.data.classes,))
