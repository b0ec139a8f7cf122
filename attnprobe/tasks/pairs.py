"""`pairs`: the label is which tokens stand side by side, and nothing else about the sequence tells it."""

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.task import Split, Task


@settings
class Pairs:
    """Adjacent pairs of one of several matchings of the alphabet; the label is the matching.

    Each class is a perfect matching of the alphabet; no pair belongs to two classes. A sequence holds every pair of its
    class equally often, in random order and orientation; some pairs are broken (their tokens are shuffled among
    themselves), and half the sequences are rolled by one. Every token occurs n / alphabet times in *every* sequence, so
    a bag of tokens says nothing about the label: only neighbours do.
    """

    settings: ClassVar[dict[str, Any]] = {}  # the defaults of `TrainConfig` were chosen for this task
    licence: ClassVar[str] = "generated"
    origin: ClassVar[str] = "attnprobe"

    n: Count = 32
    """Tokens in a sequence: a multiple of the alphabet."""
    alphabet: Annotated[int, Field(ge=4)] = 8
    """Number of ids: even."""
    classes: Annotated[int, Field(ge=2)] = 4
    """Number of matchings: below the alphabet."""
    broken: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability with which a pair is broken."""
    train_size: Count = 500
    """Training sequences."""
    test_size: Count = 2000
    """Test sequences."""

    def __post_init__(self) -> None:
        """Check that such matchings and sequences exist."""
        if self.alphabet % 2 or self.n % self.alphabet:
            raise UsageError(f"pairs: alphabet={self.alphabet} must be even and divide n={self.n}")
        if self.classes >= self.alphabet:
            raise UsageError(f"pairs: {self.alphabet} ids have only {self.alphabet - 1} disjoint matchings")

    @property
    def data(self) -> DataSpec:
        """Token ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=self.classes, vocabulary=self.alphabet)

    @property
    def sizes(self) -> dict[str, int]:
        """Sequences of each split."""
        return {"train": self.train_size, "test": self.test_size}

    @property
    def balance(self) -> None:
        """Every class is drawn alike."""

    @property
    def best_accuracy(self) -> None:
        """Not known in closed form."""

    def build(self, seed: int) -> Task:
        """Draw matchings, training and test sequences."""
        matchings = self.matchings(numpy_generator(seed, "pairs matchings"))
        train, test = (
            self._draw(matchings, size, numpy_generator(seed, f"pairs {split}")) for split, size in self.sizes.items()
        )
        return Task("pairs", self.data, train, test)

    def matchings(self, rng: np.random.Generator) -> np.ndarray:
        """Return [class, pair, 2]: disjoint perfect matchings, drawn from a random round-robin schedule of the ids."""
        players = np.arange(self.alphabet - 1)
        rounds = []
        for turn in range(self.alphabet - 1):
            circle = np.roll(players, turn)
            half = self.alphabet // 2 - 1
            facing = np.stack([circle[1 : half + 1], circle[::-1][:half]], axis=1)
            rounds.append(np.concatenate([[[circle[0], self.alphabet - 1]], facing]))
        chosen = np.stack(rounds)[rng.permutation(self.alphabet - 1)[: self.classes]]
        return rng.permutation(self.alphabet)[chosen]

    def _draw(self, matchings: np.ndarray, size: int, rng: np.random.Generator) -> Split:
        labels = rng.integers(self.classes, size=size)
        pairs = np.tile(matchings[labels], (1, self.n // self.alphabet, 1))
        pairs = rng.permuted(pairs, axis=2)
        pairs = np.take_along_axis(pairs, rng.random((size, self.n // 2)).argsort(axis=1)[..., None], axis=1)
        for sequence, broken in zip(pairs, rng.random((size, self.n // 2)) < self.broken, strict=True):
            sequence[broken] = rng.permutation(sequence[broken].ravel()).reshape(-1, 2)
        inputs = pairs.reshape(size, self.n)
        rolled = rng.random(size) < 0.5
        inputs[rolled] = np.roll(inputs[rolled], 1, axis=1)
        return Split(inputs, labels)
