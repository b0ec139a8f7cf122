"""`text`: sentiment of film reviews at the byte level, from the official archive or the folder extracted from it."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import archives
from attnprobe.tasks.folder import Create, data_folder, made_once
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import BYTES, Source
from attnprobe.tasks.task import Task

ARCHIVE = archives.Archive(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "7c2ac02c03563afcf9b574c7e56c153a",
)
FOLDER = "aclImdb"
"""Folder in the archive. It is read from the data folder if the archive is not there."""
MEMBER = re.compile(rf"{FOLDER}/(train|test)/(neg|pos)/\d+_\d+\.txt")
REVIEWS = 12500
"""Number of reviews of one class in one split."""
LONGEST = 2**20
"""Largest number of bytes of a review."""


@settings
class Text(Source):
    """Byte-level sentiment of film reviews (IMDB): the Text task of the Long Range Arena.

    A token is a raw byte of the file (256 ids). Reviews are truncated to n bytes or padded with 0. The split is the
    official one. The archive is sorted by class, so each split is shuffled in a fixed order, the same for every seed;
    ``train_size`` and ``test_size`` select the first reviews in that order. Without the archive, the folder ``aclImdb``
    extracted from it is read, if it is in the data folder.
    """

    symbols: ClassVar[tuple[str, ...]] = BYTES
    settings: ClassVar[dict[str, Any]] = recommended("amos-text")
    licence: ClassVar[str] = "none stated"
    origin: ClassVar[str] = f"Large Movie Review Dataset (Maas et al. 2011), {ARCHIVE.address}"

    n: Annotated[int, Field(gt=0, le=LONGEST)] = 4096
    """Tokens per padded sequence; longer reviews are truncated."""
    train_size: Annotated[int, Field(ge=1, le=25000)] = 25000
    """Number of training reviews."""
    test_size: Annotated[int, Field(ge=1, le=25000)] = 25000
    """Number of test reviews."""

    @property
    def data(self) -> DataSpec:
        """Byte ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=2, vocabulary=256)

    def build(self, seed: int) -> Task:
        """Read the reviews."""
        arrays = read(self.n)
        train, test = (archives.made_split(arrays, split, size) for split, size in self.sizes.items())
        return Task("text", self.data, train, test)


@dataclass(frozen=True)
class Reviews:
    """Cache key of the arrays on disk."""

    n: int


def read(n: int) -> dict[str, np.ndarray]:
    """Return the arrays NAME_inputs [review, byte], NAME_labels and NAME_lengths [review]; NAME is train or test."""
    folder = data_folder() / FOLDER
    if folder.is_dir() and not (data_folder() / ARCHIVE.file).is_file():
        path, members = folder, list(_extracted(folder))
        checksum = _checksum(members)
    else:
        path = ARCHIVE.find()
        members, checksum = archives.members(path, _sizes), archives.sha256(path)

    def make(create: Create) -> None:
        splits: dict[str, list[tuple[str, int, bytes]]] = {"train": [], "test": []}
        for name, content in members:
            _, split, label, _ = name.split("/")
            splits[split].append((name, int(label == "pos"), content[:n]))
        for split, reviews in splits.items():
            for label, folder in enumerate(("neg", "pos")):
                count = sum(review[1] == label for review in reviews)
                if count != REVIEWS:
                    raise UsageError(f"{path}: holds {count} reviews in aclImdb/{split}/{folder}: must hold {REVIEWS}")
            reviews.sort()  # by name, to be independent of the archive order
            inputs = create(f"{split}_inputs", (len(reviews), n), np.uint8)
            labels = create(f"{split}_labels", (len(reviews),), np.uint8)
            lengths = create(f"{split}_lengths", (len(reviews),), np.int32)
            for row, i in enumerate(numpy_generator(0, f"text {split}").permutation(len(reviews))):
                _, labels[row], content = reviews[i]
                inputs[row, : len(content)] = np.frombuffer(content, np.uint8)
                lengths[row] = len(content)

    return made_once(Reviews(n), make, helpers=[archives], archive=checksum)


def _sizes(name: str) -> range | None:
    return range(1, LONGEST + 1) if MEMBER.fullmatch(name) else None


def _extracted(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name in the archive and content of each review in the extracted folder, sorted by name.

    Raises `UsageError` if a file has an invalid size or cannot be read.
    """
    for path in sorted(folder.glob("*/*/*.txt")):
        name = path.relative_to(folder.parent).as_posix()
        sizes = _sizes(name)
        if sizes is None:
            continue
        try:
            with path.open("rb") as file:
                content = file.read(LONGEST + 1)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        if len(content) not in sizes:
            found = f"{len(content)}" if len(content) <= LONGEST else f"more than {LONGEST}"
            raise UsageError(f"{path}: has {found} bytes: must have {sizes[0]} ... {sizes[-1]}")
        yield name, content


def _checksum(members: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in members:
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()
