"""Where a task comes from: what a settings dataclass needs to be a task, and what most of them share."""

from typing import Any, ClassVar

from attnprobe.config import DataSpec
from attnprobe.tasks.task import Task


class Source:
    """The base of every task: a settings dataclass whose fields are the task's parameters.

    A subclass has ``data`` and ``build``, and overrides what differs from generated data with the fields
    ``train_size`` and ``test_size`` (perhaps ``validation_size``), classes drawn alike and an unknown best accuracy.
    """

    settings: ClassVar[dict[str, Any]] = {}
    """Training settings that suit the task; flags and files win over them."""
    licence: ClassVar[str] = "generated"
    origin: ClassVar[str] = "attnprobe"
    """Where the data come from."""

    @property
    def data(self) -> DataSpec:
        """What a network has to know, without making the data."""
        raise NotImplementedError

    def build(self, seed: int) -> Task:
        """Make the instance of the task that belongs to the seed."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int]:
        """Sequences of each split (train, perhaps validation, test), without making the data."""
        splits = ("train", "validation", "test")
        return {name: getattr(self, f"{name}_size") for name in splits if hasattr(self, f"{name}_size")}

    @property
    def balance(self) -> tuple[float, ...] | None:
        """Share of each class; None if they are drawn alike."""
        return None

    @property
    def best_accuracy(self) -> float | None:
        """Accuracy of the Bayes-optimal classifier if it is known."""
        return None


def chance(source: Source) -> float:
    """Return the accuracy of giving every sequence the commonest label."""
    return max(source.balance or (1 / source.data.classes,))
