"""The one exception for what a user can mend."""


class UsageError(ValueError):
    """Something that was given cannot be used.

    The message is one line that holds the value that was wrong and the valid ones. The command line prints it and
    exits with status 2; in Python it is an ordinary ``ValueError``.
    """


def listed(values: object) -> str:
    """Return the values of an iterable as one comma-separated line, for messages."""
    return ", ".join(map(str, values))  # pyright: ignore[reportArgumentType]
