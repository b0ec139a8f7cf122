"""`pairs`: the label depends only on which tokens are adjacent."""

from typing import Annotated

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.source import IN_MEMORY, Source, check_size
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

MOST_IDS = 4096
"""Largest alphabet: all of its matchings, of which the classes are drawn, have as many tokens as its square."""


@settings
class Pairs(Source):
    """Adjacent pairs of one of several matchings of the alphabet; the label is the matching.

    Each class is a perfect matching of the alphabet; no pair belongs to two classes. A sequence contains every pair of
    its class equally often, in random order and orientation. Some pairs are broken (the tokens of all broken pairs are
    shuffled), and half of the sequences are rolled by one token. Every token occurs n / alphabet times in *every*
    sequence, so token counts carry no information about the label: only adjacency does.
    """

    n: Count = 32
    """Tokens per sequence; must be a multiple of the alphabet."""
    alphabet: Annotated[int, Field(ge=4, le=MOST_IDS)] = 8
    """Number of token ids; must be even."""
    classes: Annotated[int, Field(ge=2)] = 4
    """Number of matchings; must be below the alphabet."""
    broken: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that a pair is broken."""
    train_size: Count = 500
    """Number of training sequences."""
    test_size: Count = 2000
    """Number of test sequences."""

    def __post_init__(self) -> None:
        """Check that the matchings and sequences exist."""
        check_size("pairs", self.n, self.sizes, IN_MEMORY)
        check_matchings("pairs", self.n, self.alphabet, self.classes)

    @property
    def data(self) -> DataSpec:
        """Token ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=self.classes, vocabulary=self.alphabet)

    def build(self, seed: int) -> Task:
        """Draw the matchings and the training and test sequences."""
        matchings = disjoint_matchings(self.alphabet, self.classes, numpy_generator(seed, "pairs matchings"))
        train, test = (
            self._draw(matchings, size, numpy_generator(seed, f"pairs {split}")) for split, size in self.sizes.items()
        )
        return Task("pairs", self.data, train, test)

    def _draw(self, matchings: np.ndarray, size: int, rng: np.random.Generator) -> Split:
        labels = rng.integers(self.classes, size=size)
        inputs = drawn_pairs(matchings[labels], self.n // 2, self.broken, rng).reshape(size, self.n)
        rolled = rng.random(size) < 0.5
        inputs[rolled] = np.roll(inputs[rolled], 1, axis=1)
        return Split(inputs, labels)


def check_matchings(task: str, n: int, alphabet: int, classes: int) -> None:
    """Raise `UsageError` unless ``classes`` matchings exist and n is a multiple of the even alphabet."""
    if alphabet % 2 or n % alphabet:
        raise UsageError(f"{task}: alphabet={alphabet} must be even and divide n={n}")
    if classes >= alphabet:
        raise UsageError(f"{task}: classes={classes}: alphabet={alphabet} has only {alphabet - 1} disjoint matchings")


def disjoint_matchings(alphabet: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return [class, pair, 2]: disjoint perfect matchings, from a random round-robin schedule of the ids."""
    players = np.arange(alphabet - 1)
    rounds = []
    for shift in range(alphabet - 1):
        circle = np.roll(players, shift)
        half = alphabet // 2 - 1
        facing = np.stack([circle[1 : half + 1], circle[::-1][:half]], axis=1)
        rounds.append(np.concatenate([[[circle[0], alphabet - 1]], facing]))
    chosen = np.stack(rounds)[rng.permutation(alphabet - 1)[:classes]]
    return rng.permutation(alphabet)[chosen]


def drawn_pairs(matchings: np.ndarray, count: int, broken: float, rng: np.random.Generator) -> np.ndarray:
    """Return [sequence, pair, 2]: ``count`` pairs per sequence, drawn from ``matchings`` [sequence, pair, 2].

    Each pair of a sequence's matching occurs equally often, in random order and orientation. A pair is broken with
    probability ``broken``; within a sequence, the tokens of all broken pairs are shuffled.
    """
    size = len(matchings)
    pairs = np.tile(matchings, (1, count // matchings.shape[1], 1))
    pairs = rng.permuted(pairs, axis=2)
    pairs = np.take_along_axis(pairs, rng.random((size, count)).argsort(axis=1)[..., None], axis=1)
    for sequence, chosen in zip(pairs, rng.random((size, count)) < broken, strict=True):
        sequence[chosen] = rng.permutation(sequence[chosen].ravel()).reshape(-1, 2)
    return pairs
