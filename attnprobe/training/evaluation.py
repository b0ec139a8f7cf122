"""Evaluation of a network on a split: which sequences, and the numbers that follow from their predictions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.config import DataSpec, TrainConfig
from attnprobe.randomness import numpy_generator
from attnprobe.tables import OBJECTIVES
from attnprobe.training.objectives import Predictions

EVALUATED = 2000
"""Maximum number of training sequences to evaluate (the first ones, which are in random order)."""


def evaluated_rows(config: TrainConfig, name: str, size: int, whole: bool) -> np.ndarray:
    """Return the rows of a split of ``size`` sequences to evaluate, in ascending order.

    With ``eval_size``, and unless the ``whole`` split is evaluated, they are a random subset, the same in all
    evaluations and runs: users' sequences may be sorted, for example by class.
    """
    if name == "train":
        return np.arange(min(EVALUATED, size))
    if whole or not 0 < config.eval_size < size:
        return np.arange(size)
    return np.sort(numpy_generator(0, f"evaluated {name}").permutation(size)[: config.eval_size])


class Evaluation:
    """Sums over the predictions of an evaluation, which may be added up over batches and processes."""

    def __init__(self, data: DataSpec, objective: str) -> None:
        """Start with sums of 0."""
        labels = OBJECTIVES[objective].output == "labels"
        self.has_accuracy = bool(labels or data.inputs == "tokens" or data.levels)
        self.classes = data.classes if objective == "labels" else 0
        self.channels = data.channels if data.channels > 1 and not labels else 0
        self.sums = np.zeros(3 + 2 * self.classes + self.channels)
        """Loss, correct predictions and predictions; both counts for each class; absolute error of each channel."""

    def add(self, found: Predictions, labels: Tensor) -> None:
        """Add the predictions on a batch with these labels."""
        correct = torch.zeros_like(found.loss) if found.correct is None else found.correct
        self.sums[:3] += found.loss.sum().item(), correct.sum().item(), len(found.loss)
        if self.classes:
            label = labels[found.sequence].cpu()
            of_class = [torch.bincount(label, weights, self.classes) for weights in (correct.cpu(), None)]
            self.sums[3:] += torch.cat(of_class).numpy()
        elif self.channels and found.errors is not None:
            self.sums[3:] += found.errors.double().sum(0).cpu().numpy()

    def entries(self, name: str) -> dict[str, Any]:
        """Return the entries of a row of metrics for the split ``name``; None stands for a mean over nothing."""
        loss, correct, count = self.sums[:3].tolist()
        accuracy = _mean(correct, count) if self.has_accuracy else None
        entries: dict[str, Any] = {f"{name}_loss": _mean(loss, count), f"{name}_accuracy": accuracy}
        if self.classes:
            by_class = [_mean(*sums) for sums in self.sums[3:].reshape(2, -1).T.tolist()]
            occurring = [accuracy for accuracy in by_class if accuracy is not None]
            entries[f"{name}_balanced_accuracy"] = float(np.mean(occurring)) if occurring else None
            entries[f"{name}_accuracy_by_class"] = by_class
        elif self.channels:
            entries[f"{name}_error_by_channel"] = [_mean(error, count) for error in self.sums[3:].tolist()]
        return entries


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
