"""Rank of this process, determined without torch."""

import os


def is_main_process() -> bool:
    """Return whether this process writes the files: rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"
