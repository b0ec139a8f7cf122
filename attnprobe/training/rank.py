"""Rank of this process, determined without torch."""

import os


def writes_here() -> bool:
    """Return whether this process writes the files: rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"
