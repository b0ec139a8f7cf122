"""Archives of official data: found in the data folder or downloaded into it, and read as what strangers wrote.

Nothing is unpacked to disk: members are read one by one, in memory, from the stream, and only those with the names and
sizes that the official archive has. An archive that somebody put into the folder is used whatever its checksum; the
fingerprint of the data is in every checkpoint.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock

from attnprobe.errors import UsageError, listed
from attnprobe.tasks.folder import advice, data_folder
from attnprobe.tasks.split import Split


@dataclass(frozen=True)
class Archive:
    """A tar.gz that somebody publishes."""

    file: str
    address: str
    md5: str
    """Checksum of the official file: what is downloaded must have it."""

    def find(self) -> Path:
        """Return the archive in the data folder, where it is downloaded to if it is not there.

        Raises `UsageError` where that fails; the message says what to put where.
        """
        path = data_folder() / self.file
        if not path.is_file():
            self._download(path)
        return path

    def _download(self, path: Path) -> None:
        import pooch

        pooch.get_logger().setLevel("WARNING")  # the progress bar says what it does
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if path.is_file():  # another run downloaded it while this one waited
                    return
                # pooch writes to a file of another name, which gets this one when its checksum is right.
                pooch.retrieve(self.address, f"md5:{self.md5}", fname=path.name, path=path.parent, progressbar=True)
                path.chmod(0o644)  # others may read it
        except (OSError, ValueError) as error:
            known = isinstance(error, OSError) or "hash" not in str(error)
            why = (getattr(error, "strerror", None) or type(error).__name__) if known else "its checksum is wrong"
            raise UsageError(
                f"{path}: no such file, and {self.address} could not be downloaded ({why}); "
                f"put it there yourself, or {advice()}"
            ) from error


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def members(path: Path, sizes: Callable[[str], range | None]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the members that ``sizes`` wants, in the order of the archive.

    ``sizes`` returns the numbers of bytes that a member of that name may have, or None for one that is not wanted,
    which is passed over. Raises `UsageError`, with file and member, for names that lead out of the archive, for wanted
    members that are no regular files, have another size or come twice, and for a damaged or truncated archive.
    """
    seen: set[str] = set()
    try:
        # gzip checks the sum at the end of the stream, which tarfile's own reader of "r|gz" does not.
        with gzip.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # it would keep them all  # pyright: ignore[reportAttributeAccessIssue]
                name = member.name.removeprefix("./")
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise UsageError(f"{path}: member {member.name!r} leads out of the archive; this is not the data")
                size = sizes(name)
                if size is None:
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise UsageError(f"{path}: member {name!r} is no regular file")
                if member.size not in size:
                    may = f"{size[0]}" if len(size) == 1 else f"{size[0]} ... {size[-1]}"
                    raise UsageError(f"{path}: member {name!r} has {member.size} bytes: must have {may}")
                if name in seen:
                    raise UsageError(f"{path}: member {name!r} comes twice")
                seen.add(name)
                yield name, content.read()
            while stream.read(2**20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        why = " ".join(str(error).split())
        raise UsageError(f"{path}: not a whole tar.gz ({why}); remove it to download it again") from error


def complete(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Raise `UsageError` where members are missing."""
    if missing := sorted(set(wanted) - set(found)):
        raise UsageError(f"{path}: lacks {listed(missing)}")


def made_split(arrays: dict[str, np.ndarray], name: str, size: int, levels: int = 0) -> Split:
    """Return the first sequences of a split that `made_once` holds as NAME_inputs, NAME_labels and NAME_lengths.

    The inputs stay on disk.
    """
    labels = np.array(arrays[f"{name}_labels"], dtype=np.int64)
    lengths = arrays.get(f"{name}_lengths")
    lengths = None if lengths is None else np.array(lengths, dtype=np.int64)
    return Split(arrays[f"{name}_inputs"], labels, lengths, levels)[:size]
