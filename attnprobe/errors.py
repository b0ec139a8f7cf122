"""Exceptions for user errors, a warning of data, and text from files in messages."""

from typing import Any

JOINERS = "\u200c\u200d"
"""Invisible characters that words of Persian, Hindi and others need; they change nothing around them."""
MOST = 1000
"""Largest number of characters of a message. A list of all settings fits; a value from a file is cut before."""
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


class NonFiniteError(UsageError):
    """Activations, predictions or gradients that are NaN, infinite or outside the range of their type."""


class DataWarning(UserWarning):
    """Something about the user's data that is surely not intended."""


def listed(values: object) -> str:
    """Format an iterable as one comma-separated line for messages."""
    return ", ".join(map(str, values))  # pyright: ignore[reportArgumentType]


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
