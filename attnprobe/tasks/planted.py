"""`planted`: the label depends only on tokens a known distance apart; ground truth for measures of proximity."""

from typing import Annotated

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pairs import MOST_IDS, check_matchings, disjoint_matchings, drawn_pairs
from attnprobe.tasks.source import IN_MEMORY, Source, check_size
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task


@settings
class Planted(Source):
    """Pairs of one of several matchings of the alphabet, a known distance apart; the label is the matching.

    With ``distance=1`` these are the sequences of `pairs`. As in `pairs`, token counts carry no information about the
    label. A sequence consists of blocks of 2 * distance tokens, in which tokens r and r + distance are a pair. It is
    rolled by a random 0 ... 2 * distance - 1 tokens, so that at every position the partner is equally often ahead and
    behind.
    """

    distance: Count = 3
    """Offset between the two tokens of a pair."""
    n: Count = 48
    """Tokens per sequence; must be a multiple of twice the distance and of the alphabet."""
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
        check_size("planted", self.n, self.sizes, IN_MEMORY)
        check_matchings("planted", self.n, self.alphabet, self.classes)
        if self.n % (2 * self.distance):
            raise UsageError(f"planted: n={self.n}: must be a multiple of 2 * distance={2 * self.distance}")

    @property
    def data(self) -> DataSpec:
        """Token ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=self.classes, vocabulary=self.alphabet)

    def build(self, seed: int) -> Task:
        """Draw the matchings and the training and test sequences."""
        matchings = disjoint_matchings(self.alphabet, self.classes, numpy_generator(seed, "planted matchings"))
        train, test = (
            self._draw(matchings, size, numpy_generator(seed, f"planted {split}")) for split, size in self.sizes.items()
        )
        return Task("planted", self.data, train, test)

    def _draw(self, matchings: np.ndarray, size: int, rng: np.random.Generator) -> Split:
        labels = rng.integers(self.classes, size=size)
        pairs = drawn_pairs(matchings[labels], self.n // 2, self.broken, rng)
        blocks = pairs.reshape(size, -1, self.distance, 2).swapaxes(2, 3)  # [sequence, block, token of the pair, pair]
        rolls = rng.integers(2 * self.distance, size=size)
        inputs = np.take_along_axis(blocks.reshape(size, self.n), (np.arange(self.n) - rolls[:, None]) % self.n, axis=1)
        return Split(inputs, labels)
