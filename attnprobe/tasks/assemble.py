"""From inputs and labels of user data to a task: rows that are left out, splits, scale, and what to tell the user."""

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from attnprobe.config import DataSpec
from attnprobe.errors import DataWarning, UsageError, abridged, listed, printable
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.inputs import UNKNOWN, Inputs
from attnprobe.tasks.labels import NONE, Labels
from attnprobe.tasks.reading import Reading
from attnprobe.tasks.sequences import Sequences, extremes
from attnprobe.tasks.split import SPLIT_NAMES, SPLITS, UNLABELLED, Split

TAIL, LONG = 16, 4096
"""A sequence of more than LONG tokens that is TAIL times longer than 99 % of the sequences must be allowed by ``n``."""
Made = TypeVar("Made")
Make = Callable[..., Made]
"""Constructs a task from its name, specification, splits and notes."""


def task_of(
    make: Make[Made],
    name: str,
    inputs: Inputs,
    labels: Labels,
    split: np.ndarray | None,
    reading: Reading,
    *,
    predicted_levels: int = 0,
    shuffle: bool = True,
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    symbols: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Made:
    """Return the task of inputs and labels.

    Args:
        make: Constructs the task.
        name: Name of the task.
        inputs: All sequences.
        labels: Their classes.
        split: Split of each sequence, or None to draw one.
        reading: Options.
        predicted_levels: Number of levels that masked values are predicted over, or 0.
        shuffle: Whether training sequences are shuffled, in a fixed order.
        scale: Mean and standard deviation of each channel, if they are known.
        symbols: What each id stands for, if ids are already renumbered.
        notes: What was done to the data before.

    Raises:
        UsageError: If no task can be made of the data.
    """
    notes = [*notes, *inputs.notes]
    if split is not None and (labelled := (split == UNLABELLED) & (labels.numbers != NONE)).any():
        notes.append(f"{_count(labelled.sum(), 'label')} of the split {UNLABELLED} are not used")
        labels = replace(labels, numbers=np.where(split == UNLABELLED, NONE, labels.numbers))
    rows, before = _kept(inputs, labels, split, reading, notes), inputs.sequences
    inputs = replace(inputs, sequences=_cut(inputs, rows, reading.n))
    if reading.n is not None and (count := int((before.lengths[rows] > reading.n).sum())):
        notes.append(f"{_count(count, 'sequence')} cut to {reading.n} tokens")
    parts = _parts(labels.numbers, rows, split, reading, notes)
    if shuffle:
        parts["train"] = numpy_generator(0, "own order").permutation(parts["train"])
    train = np.concatenate([parts["train"], parts.get(UNLABELLED, parts["train"][:0])])
    inputs, symbols = _numbered(inputs, rows, train, symbols, notes)
    if scale is None or reading.standardise == "none":
        scale = _scale(inputs, rows, parts["train"], reading.standardise, notes)
    mean, std = scale
    sequences = inputs.sequences
    if inputs.kind == "values" and not inputs.levels and not mean and sequences.dtype.kind != "f":
        sequences = replace(sequences, flat=sequences.flat.astype(np.float32))
    lengths = sequences.lengths if (sequences.lengths[rows] < sequences.n).any() else None
    whole = Split(sequences, labels.numbers, lengths, inputs.levels, mean, std)
    data = DataSpec(
        n=sequences.n,
        inputs=inputs.kind,
        classes=labels.classes,
        vocabulary=inputs.vocabulary or 0,
        grid=inputs.grid,
        levels=predicted_levels,
        channels=int(np.prod(sequences.shape[2:])),
        patch=inputs.patch,
        mean=mean,
        std=std,
        class_names=labels.names,
        symbols=tuple(symbols),
    )
    if shuffle:  # stored tasks, which are not shuffled again, were warned of when they were made
        _warn_of_classes(labels, parts, name)
    return make(name, data, **{part: whole[rows] for part, rows in parts.items()}, notes=tuple(notes))


# --- rows


def _kept(inputs: Inputs, labels: Labels, split: np.ndarray | None, reading: Reading, notes: list[str]) -> np.ndarray:
    """Return the rows that are used: neither empty nor without a label, unless only self-pretraining sees them."""
    empty = inputs.sequences.lengths == 0
    if empty.any():
        found = f"{_count(empty.sum(), 'sequence')} without tokens, first in row {empty.argmax()}"
        if reading.empty == "refuse":
            raise UsageError(f"{found}: empty='drop' leaves them out")
        notes.append(f"left out {found}")
    keep, missing = ~empty, (labels.numbers == NONE) & ~empty
    none = f" (no label is: {labels.missing})" if labels.missing else ""
    if split is not None:
        missing &= split != UNLABELLED
    if missing.any():
        found = f"{_count(missing.sum(), 'sequence')} without a label, first in row {missing.argmax()}"
        if reading.unlabelled == "refuse":
            raise UsageError(
                f"{found}: unlabelled='drop' leaves them out, unlabelled='pretrain' uses them in self-pretraining "
                f"only{none}"
            )
        if reading.unlabelled == "pretrain":
            held_out = missing & (np.isin(split, ("validation", "test")) if split is not None else False)
            if (count := int((missing & ~held_out).sum())) > 0:
                notes.append(f"{_count(count, 'sequence')} without a label: for self-pretraining only")
            missing = held_out
        if missing.any():
            notes.append(f"left out {_count(missing.sum(), 'sequence')} without a label")
        keep &= ~missing
    if not keep.any():
        raise UsageError("no sequences are left")
    return np.flatnonzero(keep)


def _cut(inputs: Inputs, rows: np.ndarray, n: int | None) -> Sequences:
    """Return the sequences cut to n tokens, or to the longest that is used."""
    lengths = inputs.sequences.lengths[rows]
    longest = int(lengths.max())
    if inputs.grid is not None:
        if n is not None:
            raise UsageError(f"n={n}: cuts sequences, not images")
        return inputs.sequences
    if n is None:
        usual = int(np.quantile(lengths, 0.99, method="lower"))
        if longest > max(LONG, TAIL * usual):
            raise UsageError(
                f"row {rows[lengths.argmax()]} has {longest:,} tokens, but 99 % of the sequences have at most "
                f"{usual:,}: n={usual} cuts longer ones, n={longest} keeps all"
            )
    return inputs.sequences if n is None and inputs.padded else inputs.sequences.cut(longest if n is None else n)


def _parts(
    labels: np.ndarray, rows: np.ndarray, split: np.ndarray | None, reading: Reading, notes: list[str]
) -> dict[str, np.ndarray]:
    """Return the rows of each split."""
    has_label = labels[rows] != NONE
    unlabelled = {UNLABELLED: rows[~has_label]} if not has_label.all() else {}
    if split is None:
        parts = _drawn(labels, rows[has_label], reading.test_share)
        notes.append(
            f"split drawn by class: {len(parts['train'])} train, {len(parts['test'])} test (test_share "
            f"{reading.test_share:g})"
        )
        return {**parts, **unlabelled}
    if reading.test_share != Reading().test_share:
        raise UsageError(f"test_share={reading.test_share}: the sequences already have a split")
    present = sorted(set(split.tolist()))
    for needed in ("train", "test"):
        if needed not in present:
            raise UsageError(f"split has no {needed} sequences; it has {listed(present)}")
    labelled = rows[has_label]
    parts = {name: labelled[split[labelled] == name] for name in SPLITS if name in present}
    for name, part in parts.items():
        if len(part) == 0:
            raise UsageError(f"split has no {name} sequences with tokens and a label")
    return {**parts, **unlabelled}


def split_names(values: Any, count: int) -> np.ndarray:
    """Return the split of each sequence under its name; raise `UsageError` for other values."""
    array = np.asarray(values)
    try:
        array = array.astype(str) if array.dtype.kind in "USO" else array
    except UnicodeDecodeError:
        raise UsageError(f"split holds bytes that are not text; valid: {listed(SPLITS)}") from None
    if array.dtype.kind != "U" or array.shape != (count,):
        raise UsageError(f"split of type {array.dtype} and shape {array.shape}: must be strings of shape [{count}]")
    names, numbers = np.unique(array, return_inverse=True)
    names = np.array([SPLIT_NAMES.get(name.strip().lower(), name) for name in names.tolist()])
    if unknown := sorted(set(names.tolist()) - {*SPLITS, UNLABELLED}):
        raise UsageError(f"split holds {abridged(listed(unknown[:5]))}; valid: {listed((*SPLITS, UNLABELLED))}")
    return names[numbers]


def _drawn(labels: np.ndarray, rows: np.ndarray, test_share: float) -> dict[str, np.ndarray]:
    """Return a fixed random split in which classes have the same shares, as nearly as whole numbers allow."""
    if len(rows) < 2:
        raise UsageError(f"{_count(len(rows), 'sequence')} cannot be split into train and test")
    shuffled = numpy_generator(0, "own split").permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # A class with a single sequence needs it for training.
    several = by_class[np.bincount(labels[by_class])[labels[by_class]] > 1]
    several = several if len(several) > 1 else by_class
    size = min(max(1, round(test_share * len(rows))), len(several) - 1)
    # At even distances in the order of classes, every class has its share, rounded up or down.
    test = several[np.floor((np.arange(size) + 0.5) * len(several) / size).astype(int)]
    return {"train": np.setdiff1d(rows, test), "test": np.sort(test)}


def _warn_of_classes(labels: Labels, parts: dict[str, np.ndarray], name: str) -> None:
    counts = {
        part: np.bincount(labels.numbers[rows], minlength=labels.classes)
        for part, rows in parts.items()
        if part != UNLABELLED
    }
    names = [abridged(printable(name)) for name in labels.names or range(labels.classes)]
    alike: dict[str, list[str]] = {}
    for label, shown in zip(labels.names, names, strict=False):
        alike.setdefault(unicodedata.normalize("NFKC", label).casefold(), []).append(f"'{shown}'")
    for same in alike.values():
        if len(same) > 1:
            warnings.warn(
                f"{name}: the labels {listed(same)} differ in case or Unicode form only: {len(same)} classes",
                DataWarning,
                stacklevel=4,
            )
    absent = [names[number] for number in np.flatnonzero(counts["train"] == 0)]
    if absent:
        more = " ..." if len(absent) > 5 else ""
        warnings.warn(
            f"{name}: no training sequence has the label {listed(absent[:5])}{more}", DataWarning, stacklevel=4
        )
    for part, count in counts.items():
        if (count > 0).sum() == 1 and count.sum() > 1:
            warnings.warn(
                f"{name}: all {part} sequences have the label {names[int(count.argmax())]}", DataWarning, stacklevel=4
            )


# --- ids and values


def _numbered(
    inputs: Inputs, rows: np.ndarray, train: np.ndarray, symbols: Sequence[str], notes: list[str]
) -> tuple[Inputs, Sequence[str]]:
    """Return inputs with the size of their vocabulary, and what each id stands for if ids are renumbered.

    Words that no training sequence has become `UNKNOWN`. Ids of which most never occur are renumbered in their order.
    """
    if inputs.kind == "values":
        return inputs, ()
    sequences = inputs.sequences
    if inputs.words:
        known = np.zeros(len(inputs.words), bool)
        known[[0, *(number for number in range(len(inputs.words)) if inputs.words[number].startswith("<sep"))]] = True
        known[_ids(sequences.select(train))] = True
        table = np.where(known, known.cumsum() - 1, 0).astype(np.int32)
        notes.append(f"{known.sum():,} words; {(~known).sum():,} that only other splits have are {UNKNOWN}")
        kept = tuple(word for word, is_known in zip(inputs.words, known, strict=True) if is_known)
        return replace(inputs, sequences=sequences.mapped(table), vocabulary=len(kept)), kept
    if inputs.vocabulary is not None:
        return inputs, symbols
    smallest, largest = map(int, extremes(sequences.select(rows)))
    if smallest < 0:
        raise UsageError(
            f"tokens hold {smallest}: must be 0 or more (real numbers are values; padding is said by lengths)"
        )
    ids = _ids(sequences.select(rows))
    if largest + 1 > max(256, 2 * len(ids)):
        notes.append(f"{len(ids):,} ids of 0 ... {largest:,} occur and are renumbered")
        flat = np.searchsorted(ids, sequences.flat).clip(max=len(ids) - 1).astype(np.int32)
        return replace(inputs, sequences=replace(sequences, flat=flat), vocabulary=len(ids)), tuple(
            map(str, ids.tolist())
        )
    return replace(inputs, vocabulary=largest + 1), symbols


def _ids(sequences: Sequences) -> np.ndarray:
    """Return the distinct ids of sequences, sorted."""
    ids = np.zeros(0, np.int64)
    for chunk in sequences.chunks():
        ids = np.union1d(ids, chunk.astype(np.int64))
    return ids


def _scale(
    inputs: Inputs, rows: np.ndarray, train: np.ndarray, standardise: str, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the training tokens; nothing to use values as given."""
    if inputs.kind == "tokens" or inputs.levels:
        return (), ()
    sequences = inputs.sequences
    _check_finite(sequences, rows)
    if standardise == "none":
        return (), ()
    training = sequences.select(train)
    channels, count = int(np.prod(sequences.shape[2:])), int(training.lengths.sum())

    def mean_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = [function(chunk.reshape(-1, channels).astype(np.float64)).sum(0) for chunk in training.chunks()]
        return np.sum(sums, axis=0) / count

    with np.errstate(over="ignore"):
        mean = mean_of(lambda x: x)
        std = np.sqrt(mean_of(lambda x: np.square(x - mean)))
    if not np.isfinite(std).all():
        raise UsageError("values: are too large, their variance overflows; divide them by a constant first")
    constant = std <= 1e-12 * np.abs(mean)
    if constant.any():
        notes.append(f"constant in the training split: channel {listed(map(str, np.flatnonzero(constant)[:5]))}")
    shown = ", ".join(f"{m:.3g} ± {s:.3g}" for m, s in zip(mean[:3], std[:3], strict=True))
    notes.append(f"values standardised by the training split (mean ± std {shown}{' ...' if channels > 3 else ''})")
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist())


def _check_finite(sequences: Sequences, rows: np.ndarray) -> None:
    """Raise `UsageError` if a value before the padding of these rows is NaN or infinite."""
    used = sequences.select(rows)
    for block in used.block_rows():
        values = used[block]
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            row, token = (int(index) for index in np.argwhere(~finite)[0][:2])
            raise UsageError(
                f"values hold {np.ravel(values[row, token])[~np.ravel(finite[row, token])][0]} in row "
                f"{rows[block][row]}, token {token}: NaN is allowed only as padding at the end of a sequence"
            )


def _count(number: Any, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
