"""Official dataset archives: download to the data folder, and reading as untrusted input.

Nothing is unpacked to disk. Members are read from the stream one by one, in memory, and only if name and size match the
official archive. An archive that already is in the folder is used whatever its checksum; the fingerprint of the data is
in every checkpoint.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock

from attnprobe.errors import UsageError, abridged, listed, shown
from attnprobe.tasks.folder import advice, data_folder
from attnprobe.tasks.split import Split

RATIO = 20
"""Largest ratio of the unpacked to the packed size of an archive; the official ones have at most 6."""
SMALL = 2**26
"""Unpacked size that is allowed in any case: it takes a fraction of a second to read."""


@dataclass(frozen=True)
class Archive:
    """A published tar.gz archive."""

    file: str
    address: str
    md5: str
    """MD5 checksum that a downloaded file must have."""

    def find(self) -> Path:
        """Return the path of the archive in the data folder; download it if it is missing.

        Raises `UsageError` if the download fails; the message tells where to put the file.
        """
        path = data_folder() / self.file
        if not path.is_file():
            self._download(path)
        return path

    def _download(self, path: Path) -> None:
        import pooch

        pooch.get_logger().setLevel("WARNING")  # the progress bar suffices
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if path.is_file():  # another run downloaded it while this one waited for the lock
                    return
                # pooch downloads to a temporary file and renames it after verifying the checksum.
                pooch.retrieve(self.address, f"md5:{self.md5}", fname=path.name, path=path.parent, progressbar=True)
                path.chmod(0o644)  # readable by other users
        except (OSError, ValueError) as error:
            checksum_ok = isinstance(error, OSError) or "hash" not in str(error)
            reason = (getattr(error, "strerror", None) or type(error).__name__) if checksum_ok else "wrong checksum"
            raise UsageError(
                f"{path}: no such file, and {self.address} could not be downloaded ({reason}); "
                f"put the file there, or {advice()}"
            ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def members(path: Path, sizes: Callable[[str], range | None]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the requested members, in archive order.

    Args:
        path: A tar.gz archive.
        sizes: Maps the name of a member to its valid sizes in bytes, or to None to skip the member.

    Raises:
        UsageError: The archive is damaged or truncated, unpacks to far more than its own size, a name points outside
            the archive, or a requested member is not a regular file, has an invalid size or occurs twice. The message
            names file and member.
    """
    seen: set[str] = set()
    try:
        # gzip verifies the checksum at the end of the stream; tarfile's own "r|gz" reader does not.
        most = max(SMALL, RATIO * path.stat().st_size)
        with gzip.open(path, "rb") as unpacked, _opened(bounded := _Bounded(unpacked, most)) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # avoid keeping all members  # pyright: ignore[reportAttributeAccessIssue]
                name = member.name.removeprefix("./")
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise UsageError(
                        f"{path}: member {shown(member.name)} points outside the archive; not the official data"
                    )
                size = sizes(name)
                if size is None:
                    _check_claim(path, member, most)
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise UsageError(f"{path}: member {shown(name)} is not a regular file")
                if member.size not in size:
                    valid = f"{size[0]}" if len(size) == 1 else f"{size[0]} ... {size[-1]}"
                    raise UsageError(f"{path}: member {shown(name)} has {member.size} bytes: must have {valid}")
                if name in seen:
                    raise UsageError(f"{path}: member {shown(name)} occurs twice")
                seen.add(name)
                yield name, content.read()
            while bounded.read(2**20):
                pass
    except _TooLarge as error:
        raise UsageError(
            f"{path}: unpacks to more than {error} bytes, {RATIO} times its size; not the official data"
        ) from None
    except (tarfile.TarError, OSError, EOFError, zlib.error, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        reason = abridged(" ".join(str(error).split()))
        raise UsageError(f"{path}: not a complete tar.gz ({reason}); remove it to download it again") from error


def _opened(stream: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|")


def _check_claim(path: Path, member: tarfile.TarInfo, most: int) -> None:
    """Raise `UsageError` if a member that is skipped is larger than the archive can be.

    The reader of tarfile looks for as many bytes as it claims, also after the end of the file: for hours.
    """
    if member.size > most:
        name = shown(member.name)
        raise UsageError(f"{path}: member {name} claims {member.size:,} bytes: at most {most:,} can be in it")


class _TooLarge(Exception):
    """More bytes than the argument were unpacked."""


class _Bounded:
    """A stream that raises `_TooLarge` if more than ``most`` bytes are read from it."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise _TooLarge(f"{self._most:,}")
        return block


def complete(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Raise `UsageError` if members are missing."""
    if missing := sorted(set(wanted) - set(found)):
        raise UsageError(f"{path}: lacks {listed(missing)}")


def made_split(arrays: dict[str, np.ndarray], name: str, size: int, levels: int = 0) -> Split:
    """Return the first ``size`` sequences of a split from the arrays NAME_inputs, NAME_labels and NAME_lengths.

    The arrays are those of `made_once`. The inputs stay on disk.
    """
    labels = np.array(arrays[f"{name}_labels"], dtype=np.int64)
    lengths = arrays.get(f"{name}_lengths")
    lengths = None if lengths is None else np.array(lengths, dtype=np.int64)
    return Split(arrays[f"{name}_inputs"], labels, lengths, levels)[:size]
