"""The exception for user errors."""


class UsageError(ValueError):
    """An invalid argument, setting or file.

    The message is one line with the invalid value and the valid ones. The command line prints it and exits with status
    2; in Python it is an ordinary ``ValueError``.
    """


def listed(values: object) -> str:
    """Format an iterable as one comma-separated line for messages."""
    return ", ".join(map(str, values))  # pyright: ignore[reportArgumentType]
