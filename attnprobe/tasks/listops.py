"""`listops`: long nested operations on digits: ListOps of the Long Range Arena."""

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
from attnprobe.tasks.source import ON_DISK, Source, check_size
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

WORDS = ("<pad>", "<unk>", "<eos>", "[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789")
"""The word of each id. <unk> and <eos> are in the reference vocabulary but never used."""
OPERATOR, CLOSE, DIGIT = WORDS.index("[MIN"), WORDS.index("]"), WORDS.index("0")
OPERATOR_SHARE = 0.25
"""Probability that a node above the deepest level is an operator rather than a digit."""
DRAWS = 8192
"""Number of trees drawn at once; most are rejected as too short or too long."""
MOST_NODES = 1024
"""Largest mean number of nodes of a tree; the reference has 113. All trees drawn at once must fit into memory."""
MOST_TOKENS = 2**17
"""Largest number of tokens of a padded sequence."""
SHARES = (0.1692, 0.0912, 0.0773, 0.0828, 0.0898, 0.0861, 0.0765, 0.0715, 0.0876, 0.1679)
"""Share of each value among 1,000,282 sequences with the reference parameters."""


@settings
class ListOps(Source):
    """Nested minima, maxima, medians and sums of digits; the label is the value of the expression.

    A node of the tree is an operator with probability 1/4 and otherwise a digit; at the greatest depth all nodes are
    digits. An operator is the minimum, the maximum, the median (rounded down) or the sum modulo 10 of 2 ...
    ``max_args`` arguments, with one opening and one closing token. Trees of invalid length and repeated sequences are
    redrawn.
    """

    symbols: ClassVar[tuple[str, ...]] = WORDS
    settings: ClassVar[dict[str, Any]] = recommended("amos-listops")
    origin: ClassVar[str] = "attnprobe, after Nangia & Bowman 2018 and the Long Range Arena (Tay et al. 2021)"

    min_length: Count = 500
    """Exclusive lower bound on the length of a sequence."""
    max_length: Annotated[int, Field(ge=2)] = 2000
    """Exclusive upper bound on the length of a sequence."""
    max_depth: Count = 10
    """Number of levels of the tree; the last level has only digits."""
    max_args: Annotated[int, Field(ge=2)] = 10
    """Largest number of arguments of an operator; the smallest is 2."""
    n: Annotated[int, Field(gt=0, le=MOST_TOKENS)] = 2048
    """Tokens per padded sequence."""
    train_size: Count = 96000
    """Number of training sequences."""
    validation_size: Count = 2000
    """Number of validation sequences."""
    test_size: Count = 2000
    """Number of test sequences."""

    def __post_init__(self) -> None:
        """Check that the sequences exist, fit and can be drawn."""
        check_size("listops", self.n, self.sizes, ON_DISK)
        if self.max_length > self.n + 1:
            raise UsageError(f"listops: sequences of up to {self.max_length - 1} tokens do not fit n={self.n}")
        longest = nodes = 1
        arguments = OPERATOR_SHARE * (2 + self.max_args) / 2
        for level in range(1, self.max_depth):
            longest = 2 + self.max_args * longest if longest <= self.min_length else longest
            nodes += arguments**level
            if nodes > MOST_NODES:
                raise UsageError(
                    f"listops: trees with max_depth={self.max_depth} and max_args={self.max_args} have more than "
                    f"{MOST_NODES} nodes on average: must have at most {MOST_NODES}"
                )
            if longest > self.min_length and arguments**level < 1e-9:
                break  # deeper levels are empty
        if not self.min_length + 1 < self.max_length or longest <= self.min_length:
            raise UsageError(
                f"listops: no sequence is longer than min_length={self.min_length} and shorter than "
                f"max_length={self.max_length}; max_depth={self.max_depth} and max_args={self.max_args} allow {longest}"
            )

    @property
    def data(self) -> DataSpec:
        """Token ids in sequences of different lengths."""
        return DataSpec(n=self.n, inputs="tokens", classes=10, vocabulary=len(WORDS))

    @property
    def balance(self) -> tuple[float, ...]:
        """Proportion of each value.

        With the reference parameters, it is measured on a million sequences (standard errors below 0.0004); otherwise
        it is estimated from 65,536 drawn trees.
        """
        if (self.min_length, self.max_length, self.max_depth, self.max_args) == (500, 2000, 10, 10):
            return SHARES
        labels = np.concatenate([self.chunk(0, number)["labels"] for number in range(8)])
        return tuple((np.bincount(labels, minlength=10) / len(labels)).tolist())

    @property
    def best_accuracy(self) -> float:
        """1, because the sequence determines the label."""
        return 1.0

    def build(self, seed: int) -> Task:
        """Read the sequences of the seed from the cache, or draw them."""
        arrays = made_once(self, lambda create: self._make(seed, create), helpers=[chunks], seed=seed)
        train, validation, test = (
            Split(arrays[f"{split}_inputs"], arrays[f"{split}_labels"], arrays[f"{split}_lengths"])
            for split in self.sizes
        )
        return Task("listops", self.data, train, test, validation)

    def chunk(self, seed: int, number: int) -> Chunk:
        """Draw `DRAWS` trees and return inputs, labels and lengths of those with valid length."""
        rng = numpy_generator(seed, "listops", number)
        levels, lengths = self._trees(rng)
        inputs, labels = written(levels, len(lengths), self.n, rng)
        return {"inputs": inputs, "labels": labels, "lengths": lengths}

    def _make(self, seed: int, create: Create) -> None:
        columns = {"inputs": ((self.n,), np.uint8), "labels": ((), np.int64), "lengths": ((), np.int64)}
        drawn = in_order(lambda number: self.chunk(seed, number), 1 if sum(self.sizes.values()) < 5000 else None)
        pour(create, self.sizes, columns, self._new(drawn))

    def _new(self, drawn: Iterator[Chunk]) -> Iterator[Chunk]:
        """Remove sequences that occurred before."""
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
                        f"listops: cannot draw {sum(self.sizes.values())} different sequences of "
                        f"{self.min_length + 1} ... {self.max_length - 1} tokens: hardly more than {before} exist, "
                        "or the others are too rare"
                    )
                yield {name: array[new] for name, array in chunk.items()}

    def _trees(self, rng: np.random.Generator) -> tuple[list["Level"], np.ndarray]:
        """Draw `DRAWS` trees and return the levels and lengths of the accepted trees.

        All trees grow together, level by level. The children of a node are consecutive in the next level, in the order
        of their parents.
        """
        tree, lengths = np.arange(DRAWS), np.zeros(DRAWS, dtype=np.int64)
        grown = []
        for depth in range(1, self.max_depth + 1):
            if len(tree) == 0:
                break
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
    """[node]: whether the node is an operator."""
    arguments: np.ndarray
    """[operator]: number of its children in the next level."""

    @property
    def first(self) -> np.ndarray:
        """[operator]: index of its first argument in the next level."""
        return np.cumsum(self.arguments) - self.arguments


def written(levels: list[Level], trees: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill trees with random digits and operators; return them as rows of ids padded to n, and their values."""
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
    """Return the value of each operator (kinds 0 ... 3 in the order of `WORDS`) from the values of the next level."""
    owners = np.repeat(np.arange(len(kinds)), level.arguments)
    ranked = np.sort(16 * owners + values) % 16  # within each operator's arguments
    first, last = level.first, level.first + level.arguments - 1
    middle = (ranked[(first + last) // 2] + ranked[(first + last + 1) // 2]) // 2
    return np.choose(kinds, [ranked[first], ranked[last], middle, np.add.reduceat(values, first) % 10])
