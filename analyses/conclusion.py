"""What an analysis says in the end, in the words of the table."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "holds in part", "does not hold here"]


@dataclass(frozen=True)
class Conclusion:
    """One row of the table."""

    verdict: Verdict
    effect: str
    """The effect with its interval, in a few words."""
    seeds: int
    """Seeds of every reported number."""


def verdict(held: list[bool]) -> Verdict:
    """Return the verdict of a claim from whether each of its parts held."""
    return "holds" if all(held) else "holds in part" if any(held) else "does not hold here"
