"""Conclusions of the analyses: verdicts, parts of a rule, and formatted numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "holds in part", "does not hold here", "undecided"]


@dataclass(frozen=True)
class Part:
    """One condition of a claim's rule."""

    asked: str
    held: bool | None
    """None if the data cannot decide: there is no gap to explain, or the interval of a fraction is too wide."""
    found: str
    """The deciding numbers with their intervals."""
    decides: bool = True
    """Whether the part counts towards the verdict; conditions added after the first results do not."""


@dataclass(frozen=True)
class Conclusion:
    """Verdict and effect of an analysis (one table row), and the parts of its rule."""

    verdict: Verdict
    effect: str
    """Short description of the effect, with its interval."""
    seeds: int
    """Number of seeds of every reported number."""
    parts: tuple[Part, ...]


def concluded(parts: list[Part], effect: str, seeds: int) -> Conclusion:
    """Return the conclusion of a claim that holds if every part holds, and in part if some parts hold."""
    return Conclusion(verdict([part.held for part in parts if part.decides]), effect, seeds, tuple(parts))


def verdict(held: list[bool | None]) -> Verdict:
    """Return the verdict of a claim, given whether each part held; undecided parts (None) do not count."""
    decided = [answer for answer in held if answer is not None]
    if not decided:
        return "undecided"
    return "holds" if all(decided) else "holds in part" if any(decided) else "does not hold here"


def above(half: float, interval: tuple[float, float, float]) -> bool | None:
    """Return whether a fraction is above a bound; None if its interval (mean, lower, upper) contains the bound."""
    _, low, high = interval
    return True if low > half else False if high < half else None


def every(told: Iterable[bool | None]) -> bool | None:
    """Return the three-valued conjunction: False if any value is False, else None if any is None, else True."""
    values = list(told)
    return False if False in values else None if None in values else True


def said(mean: float, low: float, high: float) -> str:
    """Format a number with its interval, with enough digits to show on which side of 0 its ends are.

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
    """Format a fraction of a gap with its interval, which is unbounded if the gap itself may be zero.

    >>> said_share(0.5, 0.25, 0.75)
    '0.50 (0.25 to 0.75)'
    """
    if math.isinf(low):
        return "undetermined (there may be no gap)"
    mean, low, high = (round(x, 2) + 0.0 for x in (mean, low, high))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
