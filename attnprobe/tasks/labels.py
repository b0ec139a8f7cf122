"""Class numbers from the labels of user data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnprobe.errors import UsageError, abridged, listed

NONE = -1
"""Class number of sequences without a label."""
MOST = 10**6
"""Largest number of classes."""
WORDS_FOR_NONE = frozenset(
    ["", "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "-NaN", "-nan", "n/a", "nan", "null"]
)
"""Texts that mean a missing value in files, as in pandas."""
DISTINCT = 10
"""Number of sequences from which labels that are all different are surely not classes."""


@dataclass(frozen=True)
class Labels:
    """Classes of sequences."""

    numbers: np.ndarray
    """[sequence]: 0 ... classes - 1, or `NONE`."""
    classes: int
    names: tuple[str, ...] = ()
    """Label of each class in the user's data; empty if labels are class numbers."""
    missing: str = ""
    """What stands where there is no label."""


def class_labels(values: Any, where: str, classes: int | None = None, names: Sequence[str] = ()) -> Labels:
    """Number labels 0 ... classes - 1 in sorted order; labels that are these numbers already keep them.

    Missing values, negative numbers and the texts of `WORDS_FOR_NONE` mean that there is no label. White space around
    texts is ignored.

    Args:
        values: Labels [sequence]: integers, whole numbers, texts, or other sortable values.
        where: Name of the labels in error messages.
        classes: Number of classes, if labels are class numbers.
        names: Names of the classes in their order; labels are these names or class numbers.

    Raises:
        UsageError: If labels are real numbers, are all different, cannot be sorted, or are not below ``classes``.
    """
    array = _array(values, where)
    missing, present = _present(array, where, names)
    standing_for_none = listed([repr(label) for label in dict.fromkeys(array[missing].tolist())][:3])
    if names and present.dtype.kind in "OU":
        present = _places(present, names, where)
    classes = len(names) or classes
    if present.dtype.kind == "f":
        if (np.abs(present) >= 2**53).any():
            raise UsageError(f"{where} hold {np.abs(present).max():g}: must be classes")
        if (fractions := present[present != np.round(present)]).size:
            raise UsageError(
                f"{where} hold real numbers ({fractions[0]:g}): must be classes; divide their range into classes first"
            )
        present = present.astype(np.int64)
    if len(present) == 0:
        raise UsageError(f"{where}: no sequence has a label")
    distinct, numbers = _numbered(present, where)
    if present.dtype.kind in "iu" and (classes is not None or np.array_equal(distinct, np.arange(len(distinct)))):
        if classes is not None and int(distinct[-1]) >= classes:
            raise UsageError(f"{where} hold {distinct[-1]}: must be 0 ... classes - 1 = {classes - 1}")
        distinct, numbers, classes = (), present, classes or len(distinct)
    elif len(distinct) == len(present) >= DISTINCT:
        examples = listed(abridged(str(label)) for label in distinct[:2])
        raise UsageError(f"{where} are all different ({examples}, ...): must be classes")
    classes = classes or len(distinct)
    if not 2 <= classes <= MOST:
        counted = "1 class" if classes == 1 else f"{classes} classes"
        none = f" ({standing_for_none} means no label)" if standing_for_none else ""
        raise UsageError(f"{where} hold {counted}{none}: must be 2 ... {MOST}")
    result = np.full(len(array), NONE, np.int64)
    result[~missing] = numbers
    return Labels(result, classes, tuple(names) or tuple(str(label) for label in distinct), standing_for_none)


def _places(labels: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """Return the place of each label among the names of the classes."""
    number = {name: place for place, name in enumerate(names)}
    for label in labels:
        if str(label) not in number:
            raise UsageError(f"{where} hold {str(label)[:40]!r}: must be one of class_names, {listed(names)}")
    return np.array([number[str(label)] for label in labels], np.int64)


def _array(values: Any, where: str) -> np.ndarray:
    """Return labels as an array [sequence]; of objects if pandas or Python values are mixed."""
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    array = values if isinstance(values, np.ndarray) else _of_objects(list(values))
    if array.ndim != 1:
        raise UsageError(
            f"{where} of shape {array.shape}: must be [sequence], one label per sequence (of one-hot rows, the argmax)"
        )
    if array.dtype.kind == "S":
        try:
            return array.astype(str)
        except UnicodeDecodeError:
            raise UsageError(f"{where} hold bytes that are not text") from None
    if array.dtype.kind not in "iufbUOMm":
        raise UsageError(f"{where} of type {array.dtype}: must be numbers or texts")
    return array


def _of_objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _present(array: np.ndarray, where: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which labels are missing, and the others; names of classes are not missing, whatever they are."""
    if array.dtype.kind in "OUMm":
        import pandas as pd

        for row, label in enumerate(array):
            if not pd.api.types.is_scalar(label):
                raise UsageError(f"{where}, row {row} holds {type(label).__name__}: must be one label")
        array = _of_objects([label.strip() if isinstance(label, str) else label for label in array])
        missing = np.asarray(pd.isna(array)) | np.array(
            [isinstance(label, str) and label in WORDS_FOR_NONE and label not in names for label in array], dtype=bool
        )
        array = _plain(array[~missing], where)
        if array.dtype.kind in "if":
            negative = array < 0
            missing[~missing] = negative
            array = array[~negative]
        return missing, array
    missing = np.zeros(len(array), bool) if array.dtype.kind in "ub" else ~(array >= 0)
    return missing, array[~missing]


def _plain(labels: np.ndarray, where: str) -> np.ndarray:
    """Return objects as an array of numbers or texts if they all are."""
    kinds = {type(label) for label in labels}
    if all(issubclass(kind, bool | np.bool_) for kind in kinds):
        return labels.astype(bool)
    if all(issubclass(kind, int | np.integer) and not issubclass(kind, bool) for kind in kinds):
        return labels if max(map(int, labels), default=0) >= 2**63 else labels.astype(np.int64)
    if all(issubclass(kind, int | float | np.number) and not issubclass(kind, bool) for kind in kinds):
        return labels.astype(np.float64)
    if len(kinds) > 1 and not all(issubclass(kind, str) for kind in kinds):
        raise UsageError(f"{where} hold {listed(sorted(kind.__name__ for kind in kinds))}: must be of one type")
    return labels


def _numbered(labels: np.ndarray, where: str) -> tuple[Any, np.ndarray]:
    """Return the distinct labels in sorted order, and the number of each label."""
    try:
        distinct, numbers = np.unique(labels, return_inverse=True)
    except TypeError:
        kinds = listed(sorted({type(label).__name__ for label in labels}))
        raise UsageError(f"{where} hold {kinds}: labels must be sortable") from None
    return distinct, numbers
