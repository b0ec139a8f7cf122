"""Atomic file writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is not whole yet."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the name of a new file that takes the place of ``path`` at the end, and none at all after an exception.

    Whoever else writes the same path at the same time has another name.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with whole(path) as part:
        part.write_text(text)
