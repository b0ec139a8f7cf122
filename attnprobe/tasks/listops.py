"""`listops`: nested operations on digits, as long as a page: ListOps of the Long Range Arena."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks import chunks
from attnprobe.tasks.chunks import Chunk, in_order, pour
from attnprobe.tasks.folder import Create, made_once
from attnprobe.tasks.presets import recommended
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

WORDS = ("<pad>", "<unk>", "<eos>", "[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789")
"""The word of each id. The second and third are never used: the reference's vocabulary has them."""
OPERATOR, CLOSE, DIGIT = WORDS.index("[MIN"), WORDS.index("]"), WORDS.index("0")
OPERATOR_SHARE = 0.25
"""Probability with which a node above the deepest level is an operator and not a digit."""
DRAWS = 8192
"""Trees drawn at once; most are too short or too long."""
SHARES = (0.1692, 0.0912, 0.0773, 0.0828, 0.0898, 0.0861, 0.0765, 0.0715, 0.0876, 0.1679)
"""Share of each value among 1,000,282 sequences of the reference's parameters."""


@settings
class ListOps(Source):
    """Nested minima, maxima, medians and sums of digits; the label is the value of the whole.

    A node of the tree is an operator with probability 1/4, or else a digit, and always a digit at the greatest depth.
    An operator is the minimum, the maximum, the median (rounded down) or the sum modulo 10 of 2 ... ``max_args``
    arguments. Trees of other lengths than asked for, and sequences that were drawn before, are drawn again. An operator
    opens with one token and closes with one.
    """

    settings: ClassVar[dict[str, Any]] = recommended("amos-listops")
    origin: ClassVar[str] = "attnprobe, after Nangia & Bowman 2018 and the Long Range Arena (Tay et al. 2021)"

    min_length: Count = 500
    """Sequences have more tokens than this."""
    max_length: Annotated[int, Field(ge=2)] = 2000
    """Sequences have fewer tokens than this."""
    max_depth: Count = 10
    """Levels of the tree; on the last there are only digits."""
    max_args: Annotated[int, Field(ge=2)] = 10
    """Most arguments of an operator; the fewest are 2."""
    n: Count = 2048
    """Tokens in a padded sequence."""
    train_size: Count = 96000
    """Training sequences."""
    validation_size: Count = 2000
    """Validation sequences."""
    test_size: Count = 2000
    """Test sequences."""

    def __post_init__(self) -> None:
        """Check that such sequences exist and fit."""
        if self.max_length > self.n + 1:
            raise UsageError(f"listops: sequences of up to {self.max_length - 1} tokens do not fit n={self.n}")
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = 2 + self.max_args * longest
        if not self.min_length + 1 < self.max_length or longest <= self.min_length:
            raise UsageError(
                f"listops: no sequence is longer than min_length={self.min_length} and shorter than "
                f"max_length={self.max_length}; max_depth={self.max_depth} and max_args={self.max_args} allow {longest}"
            )

    @property
    def data(self) -> DataSpec:
        """Token ids, in sequences of different lengths."""
        return DataSpec(n=self.n, inputs="tokens", classes=10, vocabulary=len(WORDS))

    @property
    def balance(self) -> tuple[float, ...]:
        """Share of each value.

        Where the sequences are the reference's, those of a million, with standard errors below 0.0004; where they are
        not, those among 65,536 trees that are drawn for it.
        """
        if (self.min_length, self.max_length, self.max_depth, self.max_args) == (500, 2000, 10, 10):
            return SHARES
        labels = np.concatenate([self.chunk(0, number)["labels"] for number in range(8)])
        return tuple((np.bincount(labels, minlength=10) / len(labels)).tolist())

    @property
    def best_accuracy(self) -> float:
        """The sequence decides its label."""
        return 1.0

    def build(self, seed: int) -> Task:
        """Read the sequences that belong to the seed, or draw them."""
        arrays = made_once(self, lambda create: self._make(seed, create), helpers=[chunks], seed=seed)
        train, validation, test = (
            Split(arrays[f"{split}_inputs"], arrays[f"{split}_labels"], arrays[f"{split}_lengths"])
            for split in self.sizes
        )
        return Task("listops", self.data, train, test, validation)

    def chunk(self, seed: int, number: int) -> Chunk:
        """Return the sequences of the lengths asked for among so many drawn trees: inputs, labels, lengths."""
        rng = numpy_generator(seed, "listops", number)
        levels, lengths = self._trees(rng)
        inputs, labels = written(levels, len(lengths), self.n, rng)
        return {"inputs": inputs, "labels": labels, "lengths": lengths}

    def _make(self, seed: int, create: Create) -> None:
        columns = {"inputs": ((self.n,), np.uint8), "labels": ((), np.int64), "lengths": ((), np.int64)}
        drawn = in_order(lambda number: self.chunk(seed, number), 1 if sum(self.sizes.values()) < 5000 else None)
        pour(create, self.sizes, columns, self._new(drawn))

    def _new(self, drawn: Iterator[Chunk]) -> Iterator[Chunk]:
        """Leave out sequences that were there before."""
        seen: set[bytes] = set()
        with closing(drawn):  # pyright: ignore[reportArgumentType]
            for chunk in drawn:
                before, new = len(seen), []
                for row, inputs in enumerate(chunk["inputs"]):
                    digest = hashlib.blake2b(inputs, digest_size=16).digest()
                    if digest not in seen:
                        seen.add(digest)
                        new.append(row)
                if len(seen) == before:
                    raise UsageError(
                        f"listops: there are hardly more than {before} sequences of {self.min_length + 1} ... "
                        f"{self.max_length - 1} tokens, or they are too rare: {sum(self.sizes.values())} are too many"
                    )
                yield {name: array[new] for name, array in chunk.items()}

    def _trees(self, rng: np.random.Generator) -> tuple[list["Level"], np.ndarray]:
        """Return the levels of the accepted ones among `DRAWS` trees, and their lengths.

        The trees grow together, level by level. The children of a node follow each other in the next level, in the
        order of their parents.
        """
        tree, lengths = np.arange(DRAWS), np.zeros(DRAWS, dtype=np.int64)
        grown = []
        for depth in range(1, self.max_depth + 1):
            operators = (rng.random(len(tree)) < OPERATOR_SHARE) & (depth < self.max_depth)
            parents = tree[operators]
            arguments = rng.integers(2, self.max_args + 1, size=len(parents))
            lengths += np.bincount(tree, minlength=DRAWS) + np.bincount(parents, minlength=DRAWS)
            grown.append((tree, operators, parents, arguments))
            tree = np.repeat(parents, arguments)
        accepted = (self.min_length < lengths) & (lengths < self.max_length)
        levels = [
            Level(operators[accepted[tree]], arguments[accepted[parents]])
            for tree, operators, parents, arguments in grown
        ]
        return levels, lengths[accepted]


@dataclass(frozen=True)
class Level:
    """The nodes of many trees at one depth."""

    operators: np.ndarray
    """[node]: whether it is an operator."""
    arguments: np.ndarray
    """[operator]: how many of the next level's nodes are its own."""

    @property
    def first(self) -> np.ndarray:
        """[operator]: its first argument, counted in the next level."""
        return np.cumsum(self.arguments) - self.arguments


def written(levels: list[Level], trees: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return trees with random digits and operators as rows of ids, padded to n, and their values."""
    sizes, values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    words, spans = [], []
    for level in reversed(levels):
        below, arguments = (sizes, values), level.arguments
        values = rng.integers(10, size=len(level.operators))
        sizes = np.ones_like(values)
        word = DIGIT + values
        if len(arguments):
            kinds = rng.integers(4, size=len(arguments))
            sizes[level.operators] = 2 + np.add.reduceat(below[0], level.first)
            values[level.operators] = evaluated(kinds, level, below[1])
            word[level.operators] = OPERATOR + kinds
        words.append(word)
        spans.append(sizes)
    tokens = np.zeros(trees * n, dtype=np.uint8)
    starts = n * np.arange(trees)
    for level, word, size, below in zip(levels, words[::-1], spans[::-1], [*spans[-2::-1], sizes[:0]], strict=True):
        tokens[starts] = word
        opens = starts[level.operators]
        tokens[opens + size[level.operators] - 1] = CLOSE
        before = np.cumsum(below) - below
        starts = np.repeat(opens + 1 - before[level.first], level.arguments) + before
    return tokens.reshape(trees, n), values


def evaluated(kinds: np.ndarray, level: Level, values: np.ndarray) -> np.ndarray:
    """Return the value of each operator, of a kind 0 ... 3 in the order of `WORDS`, from those of the next level."""
    owners = np.repeat(np.arange(len(kinds)), level.arguments)
    ranked = np.sort(16 * owners + values) % 16  # within each operator's arguments
    first, last = level.first, level.first + level.arguments - 1
    middle = (ranked[(first + last) // 2] + ranked[(first + last + 1) // 2]) // 2
    return np.choose(kinds, [ranked[first], ranked[last], middle, np.add.reduceat(values, first) % 10])
