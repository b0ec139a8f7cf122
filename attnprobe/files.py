"""Atomic file writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

PART = ".part"
"""Suffix of incomplete files."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` on success and is deleted after an exception.

    The name is unique, so concurrent writers of the same path do not interfere.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write text to a file atomically."""
    with atomic_path(path) as part:
        part.write_text(text)
