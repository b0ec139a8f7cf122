"""Atomic and durable file writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from attnprobe.errors import UsageError

PART = ".part"
"""Suffix of incomplete files."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` on success and is deleted after an exception.

    The name is unique, so concurrent writers of the same path do not interfere: the last one wins. The content is on
    disk before it gets its name, and the name is when the block ends, so that a power failure leaves the previous file
    or the new one.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        flush(part)
        os.replace(part, path)
        flush_names(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write text to a file atomically."""
    with atomic_path(path) as part:
        part.write_text(text)


def flush(path: Path) -> None:
    """Write what the operating system still holds of a file, or of the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_names(folder: Path) -> None:
    """Write the names in a folder to disk if its file system can; some network file systems cannot."""
    with contextlib.suppress(OSError):
        flush(folder)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an error of the file system into a one-line `UsageError` that names the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be written ({reason})") from error
