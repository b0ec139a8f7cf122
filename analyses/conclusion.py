"""What an analysis says in the end, in the words of the page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "holds in part", "does not hold here", "cannot be told here"]


@dataclass(frozen=True)
class Part:
    """One thing that the rule of a claim asks."""

    asked: str
    held: bool | None
    """None where these data cannot tell: there is no gap to explain, or an interval of shares that is too wide."""
    found: str
    """The numbers that decide, with their intervals."""
    decides: bool = True
    """Whether it counts; what was added after first results does not."""


@dataclass(frozen=True)
class Conclusion:
    """One row of the table, and the parts behind it."""

    verdict: Verdict
    effect: str
    """The effect with its interval, in a few words."""
    seeds: int
    """Seeds of every reported number."""
    parts: tuple[Part, ...]


def concluded(parts: list[Part], effect: str, seeds: int) -> Conclusion:
    """Return the conclusion of a claim that holds where every part does, and in part where some do."""
    return Conclusion(verdict([part.held for part in parts if part.decides]), effect, seeds, tuple(parts))


def verdict(held: list[bool | None]) -> Verdict:
    """Return the verdict of a claim from whether each of its parts held; those that cannot be told do not count."""
    told = [one for one in held if one is not None]
    if not told:
        return "cannot be told here"
    return "holds" if all(told) else "holds in part" if any(told) else "does not hold here"


def above(half: float, interval: tuple[float, float, float]) -> bool | None:
    """Say whether a share is above a bound, or None where its interval (mean, lower, upper) has the bound in it."""
    _, low, high = interval
    return True if low > half else False if high < half else None


def every(told: Iterable[bool | None]) -> bool | None:
    """Say whether all are so: not where one is not, and None where that cannot be told."""
    found = list(told)
    return False if False in found else None if None in found else True


def said(mean: float, low: float, high: float) -> str:
    """Say a number with its interval, with enough digits to see on which side of 0 it ends.

    >>> said(0.5, 0.25, 0.75), said(-0.02, -0.031, -0.002)
    ('+0.50 (+0.25 to +0.75)', '-0.020 (-0.031 to -0.002)')
    """
    known = [x for x in (mean, low, high) if not math.isnan(x)]
    digits = next((n for n in (2, 3) if all(x == 0 or round(x, n) for x in known)), 4)
    mean, low, high = (round(x, digits) + 0.0 for x in (mean, low, high))  # no -0.00
    if math.isnan(low):
        return f"{mean:+.{digits}f} (one seed: no interval)"
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def said_share(mean: float, low: float, high: float) -> str:
    """Say a share of a gap with its interval, which has no ends where the gap cannot be told from nothing.

    >>> said_share(0.5, 0.25, 0.75)
    '0.50 (0.25 to 0.75)'
    """
    if math.isinf(low):
        return "undetermined (there may be no gap)"
    mean, low, high = (round(x, 2) + 0.0 for x in (mean, low, high))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
