"""Summary statistics of a built task: sizes, class shares, chance and best accuracy."""

import dataclasses
from typing import Any

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.tasks.labels import NONE
from attnprobe.tasks.source import Source, chance
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task


def facts(source: Source, task: Task) -> dict[str, Any]:
    """Return summary statistics of a built task, counted in its arrays.

    ``chance`` is the share of the most frequent class of the source. ``majority`` is that of the test split: the test
    accuracy of always predicting this class. ``best`` is the accuracy of the Bayes-optimal classifier, or None if
    unknown. ``splits`` has one row per split.
    """
    majority = np.bincount(task.test.labels).max() / len(task.test)
    data = {name: value for name, value in dataclasses.asdict(task.data).items() if value != ()}
    return {
        "task": task.name,
        **data,
        "chance": chance(source),
        "majority": float(majority),
        "best": source.best_accuracy,
        "licence": source.licence,
        "origin": source.origin,
        "fingerprint": task.fingerprint,
        "notes": list(task.notes),
        "splits": [
            {"split": name, "sequences": len(split), **_lengths(split), **_shares(split, task.data)}
            for name, split in task.all_splits.items()
        ],
    }


def _lengths(split: Split) -> dict[str, int | float]:
    """Return the minimum, median and maximum length if sequences are padded."""
    if split.lengths is None:
        return {}
    shortest, median, longest = np.quantile(split.lengths, [0, 0.5, 1])
    return {"length_min": int(shortest), "length_median": float(median), "length_max": int(longest)}


def _shares(split: Split, data: DataSpec) -> dict[str, float]:
    """Return the share of each class among the sequences of a split that have a label."""
    counts = np.bincount(split.labels[split.labels != NONE], minlength=data.classes)
    names = data.class_names or range(data.classes)
    return {f"class_{name}": float(count / max(counts.sum(), 1)) for name, count in zip(names, counts, strict=True)}
