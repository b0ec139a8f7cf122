"""`bigrams`: Markov chains labelled by transition rule; a contaminated control, because token counts leak the label."""

from math import comb, lgamma, log
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from attnprobe.config import Count, DataSpec, settings
from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.source import IN_MEMORY, Source, check_size
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task

MOST_IDS = 256
"""Largest alphabet: each class solves an assignment problem of that size."""
MOST_PRODUCTS = 10**9
"""Largest number of products for the exact accuracy; sequences of 512 tokens with four classes have fewer."""


@settings
class Bigrams(Source):
    """Markov chains with one permutation of the alphabet per class; the label is the permutation.

    With probability ``strength`` the next token is the class's permutation of the current token; otherwise it is
    uniform. The permutations have no fixed points and differ everywhere. Each token is marginally uniform, but the
    token *counts* within a sequence depend on the cycles of the permutation and so on the class: a network that only
    counts does better than chance.
    """

    settings: ClassVar[dict[str, Any]] = {"steps": 1500, "pretrain_steps": 1000}

    n: Annotated[int, Field(ge=2)] = 32
    """Tokens per sequence."""
    alphabet: Annotated[int, Field(ge=3, le=MOST_IDS)] = 8
    """Number of token ids."""
    classes: Annotated[int, Field(ge=2)] = 4
    """Number of permutations; must be below the alphabet."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Probability that a transition follows the rule."""
    train_size: Count = 500
    """Number of training sequences."""
    test_size: Count = 2000
    """Number of test sequences."""

    def __post_init__(self) -> None:
        """Check that enough permutations exist, and that the data can be drawn."""
        check_size("bigrams", self.n, self.sizes, IN_MEMORY)
        if self.classes >= self.alphabet:
            raise UsageError(
                f"bigrams: classes={self.classes}: must be below alphabet={self.alphabet}, which has only "
                f"{self.alphabet - 1} such permutations"
            )

    @property
    def data(self) -> DataSpec:
        """Token ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=self.classes, vocabulary=self.alphabet)

    @property
    def best_accuracy(self) -> float | None:
        """Exact accuracy of the Bayes-optimal classifier; None if it takes more than `MOST_PRODUCTS` products.

        The classifier counts the transitions that follow each class's rule and predicts the class with the largest
        count, with random tie-breaking. The n - 1 transitions are independent. A transition follows the true rule with
        probability q = s + (1 - s) / a, each other rule with p = (1 - s) / a, and no rule otherwise. Multinomial counts
        are independent Poisson counts conditioned on their sum, so the sum over the true count m and the number of
        tied rivals reduces to convolutions.
        """
        steps, rivals = self.n - 1, self.classes - 1
        if self.n**3 * rivals**2 / 2 > MOST_PRODUCTS:
            return None
        p = (1 - self.strength) / self.alphabet
        q = self.strength + p
        counts = np.arange(steps + 1)
        true, rival = _poisson(counts, float(steps * q)), _poisson(counts, float(steps * p))
        none = _poisson(counts, steps * max(0.0, 1 - q - rivals * p))
        total = 0.0
        for m in counts:
            behind = np.where(counts < m, rival, 0.0)
            for ties in range(min(rivals, (steps - m) // m if m else rivals) + 1):
                ways = none
                for _ in range(rivals - ties):
                    ways = np.convolve(ways, behind)[: steps + 1]
                total += true[m] * comb(rivals, ties) * rival[m] ** ties / (ties + 1) * ways[steps - m - ties * m]
        return float(total / _poisson(np.array([steps]), float(steps))[0])

    def build(self, seed: int) -> Task:
        """Draw the permutations and the training and test sequences."""
        rules = self.rules(numpy_generator(seed, "bigrams rules"))
        train, test = (
            self._draw(rules, size, numpy_generator(seed, f"bigrams {split}")) for split, size in self.sizes.items()
        )
        return Task("bigrams", self.data, train, test)

    def rules(self, rng: np.random.Generator) -> np.ndarray:
        """Return [class, id]: random permutations without fixed points that differ everywhere."""
        from scipy.optimize import linear_sum_assignment

        taken = np.eye(self.alphabet, dtype=bool)
        rules = []
        for _ in range(self.classes):
            # The free entries form a regular bipartite graph, so a complete assignment always exists.
            _, rule = linear_sum_assignment(np.where(taken, 1e6, rng.random(taken.shape)))
            taken[np.arange(self.alphabet), rule] = True
            rules.append(rule)
        return np.stack(rules)

    def _draw(self, rules: np.ndarray, size: int, rng: np.random.Generator) -> Split:
        labels = rng.integers(self.classes, size=size)
        inputs = rng.integers(self.alphabet, size=(size, self.n))
        follows = rng.random((size, self.n)) < self.strength
        for i in range(1, self.n):
            inputs[:, i] = np.where(follows[:, i], rules[labels, inputs[:, i - 1]], inputs[:, i])
        return Split(inputs, labels)


def _poisson(counts: np.ndarray, mean: float) -> np.ndarray:
    """Return the probabilities of counts under a Poisson distribution."""
    if mean == 0:
        return (counts == 0).astype(float)
    return np.exp(counts * log(mean) - mean - np.array([lgamma(count + 1) for count in counts.tolist()]))
