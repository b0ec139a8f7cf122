"""`retrieval`: do two papers cite each other, byte by byte, from your own copy of Long Range Arena's files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError, listed
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import archives
from attnprobe.tasks.folder import Create, advice, data_folder, made_once
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import Source
from attnprobe.tasks.task import Task

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
SEPARATOR = 256
LONGEST = 2**26
"""Bytes of a line at most."""


@settings
class Retrieval(Source):
    """Do two papers cite each other (ACL Anthology Network): both texts in one sequence.

    A token is a byte; each text is cut at ``document`` bytes, the separator 256 stands between them, and 0 pads. Long
    Range Arena encodes the two texts apart and joins two vectors, here every token of one may attend to the other: the
    numbers cannot be compared one to one. The split is that of the files; ``train_size``, ``validation_size`` and
    ``test_size`` take their first lines, which are shuffled once, the same way for every seed.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-retrieval")
    licence: ClassVar[str] = "not redistributable"
    origin: ClassVar[str] = (
        f"ACL Anthology Network (Radev et al. 2013), pairs of Long Range Arena: your own {listed(FILES.values())}"
    )

    document: Count = 4000
    """Bytes of each of the two texts; longer ones are cut."""
    train_size: Count = 147086
    """Training pairs."""
    validation_size: Count = 18090
    """Validation pairs."""
    test_size: Count = 17437
    """Test pairs."""

    @property
    def data(self) -> DataSpec:
        """Bytes and a separator."""
        return DataSpec(n=2 * self.document + 1, inputs="tokens", classes=2, vocabulary=SEPARATOR + 1)

    def build(self, seed: int) -> Task:
        """Read the pairs."""
        arrays = {
            name: array
            for split, size in self.sizes.items()
            for name, array in _read(Documents(split, self.document, size)).items()
        }
        splits = {split: archives.made_split(arrays, split, size) for split, size in self.sizes.items()}
        return Task("retrieval", self.data, **splits)


@dataclass(frozen=True)
class Documents:
    """What the arrays of one split on disk depend on, beside the file."""

    split: str
    document: int
    size: int


def _read(pairs: Documents) -> dict[str, np.ndarray]:
    path = data_folder() / FILES[pairs.split]
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; it cannot be downloaded: put your own copy of Long Range Arena's there, "
            f"or {advice()}"
        )

    def make(create: Create) -> None:
        inputs = create(f"{pairs.split}_inputs", (pairs.size, 2 * pairs.document + 1), np.uint16)
        labels = create(f"{pairs.split}_labels", (pairs.size,), np.uint8)
        lengths = create(f"{pairs.split}_lengths", (pairs.size,), np.int32)
        rows = numpy_generator(0, f"retrieval {pairs.split}").permutation(pairs.size)
        count = 0
        for count, (label, *texts) in enumerate(_lines(path, pairs.size), 1):
            first, second = (np.frombuffer(text[: pairs.document], np.uint8) for text in texts)
            row = rows[count - 1]
            labels[row], lengths[row] = label, len(first) + 1 + len(second)
            inputs[row, : lengths[row]] = np.concatenate([first, [SEPARATOR], second])
        if count < pairs.size:
            raise UsageError(f"{path}: holds {count} pairs, fewer than {pairs.split}_size={pairs.size}")

    # The files can hold gigabytes: their size and age stand for their checksum.
    found = path.stat()
    return made_once(pairs, make, file=str(path.resolve()), bytes=found.st_size, changed=found.st_mtime_ns)


def _lines(path: Path, size: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield label and texts of the first lines; raise `UsageError`, with the number of the line, for a wrong one."""
    with path.open("rb") as file:
        for number in range(1, size + 1):
            line = file.readline(LONGEST + 1)
            if not line:
                return
            if len(line) > LONGEST:
                raise UsageError(f"{path}: line {number} is longer than {LONGEST} bytes")
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) != len(COLUMNS):
                raise UsageError(
                    f"{path}: line {number} has {len(fields)} columns: must have {len(COLUMNS)} ({listed(COLUMNS)})"
                )
            if fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
                raise UsageError(f"{path}: line {number} has label {fields[0][:20]!r}: must be 0 or 1")
            yield int(fields[0][:1]), fields[3], fields[4]
