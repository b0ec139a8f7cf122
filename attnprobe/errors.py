"""Exceptions for user errors, a warning of data, and text from files in messages."""

import difflib
from collections.abc import Iterable
from typing import Any

JOINERS = "\u200c\u200d"
"""Invisible characters that words of Persian, Hindi and others need; they change nothing around them."""
MOST = 1000
"""Largest number of characters of a message. A list of all settings fits; a value from a file is cut before."""
SIMILAR = 0.7
"""Similarity, of at most 1, from which a name is suggested: 0.75 for tusk and task, 0.67 for on and none."""
MOST_SHOWN = 80
"""Largest number of characters of a value in a message."""


class UsageError(ValueError):
    """An invalid argument, setting or file.

    The message is one line with the invalid value and the valid ones, without control characters. The command line
    prints it and exits with status 2; in Python it is an ordinary ``ValueError``.
    """

    def __init__(self, message: object = "") -> None:
        """Create the exception from its message."""
        super().__init__(abridged(printable(message), MOST))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and Jupyter print instead of the traceback: the message. ``%debug`` still works."""
        return [f"{type(self).__name__}: {self}"]


class NonFiniteError(UsageError):
    """Activations, predictions or gradients that are NaN, infinite or outside the range of their type."""


class DataWarning(UserWarning):
    """Something about the user's data that is surely not intended."""


def listed(values: object) -> str:
    """Format an iterable as one comma-separated line for messages."""
    return ", ".join(map(str, values))  # pyright: ignore[reportArgumentType]


def choices(name: object, valid: Iterable[object]) -> str:
    """Return what a message about an unknown name says of the valid ones: the most similar one, and all of them.

    >>> choices("pears", ["pairs", "digits"])
    "did you mean 'pairs'? valid: pairs, digits"
    >>> choices("x", ["pairs", "digits"])
    'valid: pairs, digits'
    """
    names = [str(other) for other in valid]
    return f"{suggestion(name, names)}valid: {listed(names)}"


def suggestion(name: object, valid: Iterable[str]) -> str:
    """Return the question whether the most similar of the valid names was meant, or "" if none is similar."""
    similar = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=SIMILAR)
    return f"did you mean {similar[0]!r}? " if similar else ""


def printable(value: object) -> str:
    r"""Return text as one line in which a terminal finds no commands: control and direction characters are escaped.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def abridged(text: str, most: int = MOST_SHOWN) -> str:
    """Return text without its middle if it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def shown(value: Any) -> str:
    """Return a value from a file for a message: as Python writes it, and abridged."""
    try:
        return abridged(repr(value))
    except (ValueError, RecursionError):  # Python writes neither numbers of thousands of digits nor endless nesting
        return f"{type(value).__name__} that cannot be written"
