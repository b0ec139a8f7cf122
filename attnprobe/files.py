"""Atomic and durable file writes, and zip archives from files that may be hostile."""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import socket
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from attnprobe.errors import UsageError

PART = ".part"
"""Suffix of incomplete files."""
MOST_DIRECTORY = 2**22
"""Largest number of bytes of the directory of a zip archive, 60,000 members: Python takes seconds to read a million."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` on success and is deleted after an exception.

    The name is unique, so concurrent writers of the same path do not interfere: the last one wins. The content is on
    disk before it gets its name, and the name is when the block ends, so that a power failure leaves the previous file
    or the new one. What killed processes left in the folder is deleted.
    """
    remove_stale(path.parent)
    part = path.with_name(f"{path.name}.{_writer()}{PART}")
    try:
        yield part
        flush(part)
        os.replace(part, path)
        flush_names(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def incomplete_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside a folder, for files that are moved to it; it is deleted at the end."""
    remove_stale(folder)
    with tempfile.TemporaryDirectory(dir=folder, suffix=f".{_writer()}{PART}") as part:
        yield Path(part)


def _writer() -> str:
    """Return a unique name that states which process writes a file, and on which machine."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


@functools.cache
def _machine() -> str:
    """Return a name of the machine and container: process numbers are those of one."""
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return hashlib.sha256(f"{socket.gethostname()} {uuid.getnode()} {container}".encode()).hexdigest()[:12]


def remove_stale(folder: Path) -> None:
    """Delete the incomplete files and folders of processes of this machine that no longer run."""
    for part in folder.glob(f"*.{_machine()}-*-*{PART}"):
        number = part.name.rsplit(".", 2)[1].split("-")[1]
        if number.isdecimal() and not _runs(int(number)):
            with contextlib.suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user, or no number of a process
        pass
    return True


def write_atomic(path: Path, text: str) -> None:
    """Write text to a file atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")  # the default encoding depends on the locale


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


class Unwritable(UsageError):
    """A file or folder cannot be written, for example because the disk is full."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an error of the file system into `Unwritable`, in one line with the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise Unwritable(f"{path}: cannot be written ({reason})") from error


@contextlib.contextmanager
def opened_zip(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; raise `UsageError` if it has a directory of more than `MOST_DIRECTORY` bytes."""
    directory = _Directory(file)
    with zipfile.ZipFile(directory) as archive:  # pyright: ignore[reportArgumentType]
        directory.is_open = True
        yield archive


class _Directory(io.RawIOBase):
    """A file from which at most `MOST_DIRECTORY` bytes are read at once until the archive in it is open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.is_open = file, False

    def read(self, size: int = -1) -> Any:
        if not self.is_open and size > MOST_DIRECTORY:
            raise UsageError(f"its directory claims {size:,} bytes: must have at most {MOST_DIRECTORY:,}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
