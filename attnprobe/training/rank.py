"""Which of several training processes this is, without torch."""

import os


def writes_here() -> bool:
    """Say whether this is the process that writes, of those that train together (or the only one)."""
    return os.environ.get("RANK", "0") == "0"
