"""`text`: sentiment of film reviews at the byte level, from the official archive."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import archives
from attnprobe.tasks.folder import Create, made_once
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import Source
from attnprobe.tasks.task import Task

ARCHIVE = archives.Archive(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "7c2ac02c03563afcf9b574c7e56c153a",
)
MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt")
REVIEWS = 12500
"""Number of reviews of one class in one split."""
LONGEST = 2**20
"""Largest number of bytes of a review."""


@settings
class Text(Source):
    """Byte-level sentiment of film reviews (IMDB): the Text task of the Long Range Arena.

    A token is a raw byte of the file (256 ids). Reviews are truncated to n bytes or padded with 0. The split is the
    official one. The archive is sorted by class, so each split is shuffled in a fixed order, the same for every seed;
    ``train_size`` and ``test_size`` select the first reviews in that order.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-text")
    licence: ClassVar[str] = "none stated"
    origin: ClassVar[str] = f"Large Movie Review Dataset (Maas et al. 2011), {ARCHIVE.address}"

    n: Count = 4096
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
    path = ARCHIVE.find()

    def make(create: Create) -> None:
        splits: dict[str, list[tuple[str, int, bytes]]] = {"train": [], "test": []}
        for name, content in archives.members(path, _sizes):
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

    return made_once(Reviews(n), make, helpers=[archives], archive=archives.sha256(path))


def _sizes(name: str) -> range | None:
    return range(1, LONGEST + 1) if MEMBER.fullmatch(name) else None
