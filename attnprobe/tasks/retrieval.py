"""`retrieval`: byte-level detection of citations between two papers, from user-provided Long Range Arena files."""

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
from attnprobe.tasks.source import BYTES, ON_DISK, Source, check_size
from attnprobe.tasks.task import Task

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
SEPARATOR = 256
LONGEST = 2**26
"""Largest number of bytes of a line."""


@settings
class Retrieval(Source):
    """Whether two papers cite each other (ACL Anthology Network); both texts are in one sequence.

    A token is a byte. Each text is truncated to ``document`` bytes; token 256 separates the texts, and 0 is padding.
    The Long Range Arena encodes the two texts separately and combines two vectors; here every token may attend to both
    texts, so results are not directly comparable. The split is that of the files. ``train_size``, ``validation_size``
    and ``test_size`` select their first lines, which are shuffled in a fixed order, the same for every seed.
    """

    symbols: ClassVar[tuple[str, ...]] = (*BYTES, "[separator]")
    settings: ClassVar[dict[str, Any]] = recommended("amos-retrieval")
    licence: ClassVar[str] = "not redistributable"
    origin: ClassVar[str] = (
        f"ACL Anthology Network (Radev et al. 2013), pairs of Long Range Arena: your own {listed(FILES.values())}"
    )

    document: Count = 4000
    """Bytes per text; longer texts are truncated."""
    train_size: Count = 147086
    """Number of training pairs."""
    validation_size: Count = 18090
    """Number of validation pairs."""
    test_size: Count = 17437
    """Number of test pairs."""

    def __post_init__(self) -> None:
        """Check that the pairs can be stored."""
        check_size("retrieval", 2 * self.document + 1, self.sizes, ON_DISK)

    @property
    def data(self) -> DataSpec:
        """Byte ids and a separator."""
        return DataSpec(n=2 * self.document + 1, inputs="tokens", classes=2, vocabulary=SEPARATOR + 1)

    def build(self, seed: int) -> Task:
        """Read the pairs."""
        arrays = {
            name: array
            for split, size in self.sizes.items()
            for name, array in _read(Documents(split, self.document, size)).items()
        }
        splits = {split: archives.made_split(arrays, split, size) for split, size in self.sizes.items()}
        return Task("retrieval", self.data, splits["train"], splits["test"], splits["validation"])


@dataclass(frozen=True)
class Documents:
    """Cache key of the arrays of one split on disk, in addition to the file."""

    split: str
    document: int
    size: int


def _read(pairs: Documents) -> dict[str, np.ndarray]:
    path = data_folder() / FILES[pairs.split]
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file, and it cannot be downloaded; put your own copy of the Long Range Arena file there, "
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

    # The files can be gigabytes: size and modification time replace a checksum.
    status = path.stat()
    return made_once(pairs, make, file=str(path.resolve()), bytes=status.st_size, changed=status.st_mtime_ns)


def _lines(path: Path, size: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield label and texts of the first lines; raise `UsageError` with the line number of an invalid line."""
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
