"""Lists of numbers that were written as text, as tables in files hold them: "[1, 2]", "(1.5, 2)", "70 80 82"."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnprobe.errors import UsageError

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf(?:inity)?)"
ITEM = rf"(?:np\.\w+\()?{NUMBER}\)?"
LIST = re.compile(rf"\s*[\[(]?\s*{ITEM}(?:(?:\s*,\s*|\s+){ITEM})*\s*,?\s*[\])]?\s*", re.ASCII | re.IGNORECASE)
NUMBERS = re.compile(rf"(?<![a-z.\d]){NUMBER}", re.ASCII | re.IGNORECASE)
BRACKETS = re.compile(r"\s*[\[(].*[\])]\s*", re.DOTALL)


def number_lists(texts: Sequence[bytes], where: str) -> list[np.ndarray] | None:
    """Return the numbers of each text if texts are lists of numbers, else None; a text without characters is empty.

    They are if all are in brackets and one is a list, or if all are numbers with commas or spaces between them and at
    least half have several.

    Raises:
        UsageError: If all are in brackets, but only some are lists.
    """
    present = [text for text in texts if text.strip()]
    if not present or not all(text.isascii() for text in present):
        return None
    strings = [text.decode("ascii") for text in texts]
    if all(text.lstrip().startswith(b"[[") for text in present):
        return [
            np.array(_nested(text, where, row)) if text.strip() else np.zeros(0) for row, text in enumerate(strings)
        ]
    bracketed = all(BRACKETS.fullmatch(text.decode()) for text in present)
    wrong = next((row for row, text in enumerate(strings) if text.strip() and not _is_list(text)), None)
    if wrong is not None:
        if bracketed and any(map(_is_list, strings)):
            raise UsageError(f"{where}, row {wrong} holds {strings[wrong].strip()[:40]!r}: not a list such as [1, 2]")
        return None
    found = [NUMBERS.findall(text) for text in strings]
    if not bracketed and 2 * sum(len(numbers) > 1 for numbers in found) < len(present):
        return None
    return [_parsed(numbers) for numbers in found]


def _is_list(text: str) -> bool:
    return bool(LIST.fullmatch(text)) or bool(re.fullmatch(r"\s*(\[\s*\]|\(\s*\))\s*", text))


def _parsed(numbers: list[str]) -> np.ndarray:
    if all(re.fullmatch(r"[+-]?\d+", number) for number in numbers):
        return np.array([int(number) for number in numbers])
    return np.array([float(number) for number in numbers])


def _nested(text: str, where: str, row: int) -> Any:
    try:
        return json.loads(re.sub("nan", "NaN", text))
    except (ValueError, RecursionError):
        raise UsageError(
            f"{where}, row {row} holds {text.strip()[:40]!r}: not a list such as [[1, 2], [3, 4]]"
        ) from None
