"""The data folder: dataset archives, and a cache of generated arrays that all runs share.

The environment variable ATTNPROBE_DATA (set by the flag ``--data``) names it; the default is the user's cache folder.
Arrays are written to a temporary folder that is renamed when complete, so that readers never see partial data. A lock
prevents two runs from generating the same arrays at the same time. The checksums of the arrays are stored with them and
verified when a process first uses them.
"""

import dataclasses
import errno
import functools
import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock

from attnprobe import randomness
from attnprobe.errors import UsageError, listed
from attnprobe.files import flush, flush_names

VARIABLE = "ATTNPROBE_DATA"
CHECKSUMS = "checksums.json"
Create = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""Function that creates an array on disk, given its name, shape and dtype."""


def data_folder() -> Path:
    """Return the path of the data folder; it may not exist yet."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    import pooch

    return Path(pooch.os_cache("attnprobe"))


def made_once(
    source: Any, make: Callable[[Create], None], *, helpers: Sequence[ModuleType] = (), **more: Any
) -> dict[str, np.ndarray]:
    """Return arrays from the cache in the data folder; generate them with ``make`` if they are missing.

    The arrays are read-only memory maps, so they may be larger than memory. The cache key is a hash of all arguments
    except ``make``, and of source code *including its comments*: if any of it changes, new arrays are generated.

    Args:
        source: A settings dataclass. Its class name, its parameters and the code of its module are part of the key.
        make: Creates and fills the arrays.
        helpers: Further modules that affect the numbers. Their code is part of the key.
        **more: Further values of the key, such as a seed or the checksum of an archive.

    Raises:
        UsageError: The data folder is not writable, or an array differs from its checksum.
    """
    kind = type(source)
    code = "".join(map(inspect.getsource, [sys.modules[kind.__module__], randomness, *helpers]))
    key = {"kind": kind.__qualname__, "code": hashlib.sha256(code.encode()).hexdigest()}
    key |= {"parameters": dataclasses.asdict(source), **more}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    target = data_folder() / "made" / f"{kind.__name__.lower()}-{digest}"
    if not target.exists():
        try:
            _make(target, key, make)
        except OSError as error:
            raise UsageError(f"{target}: cannot be written ({error.strerror}); {advice()}") from error
    files = sorted(target.glob("*.npy"))
    try:
        _verify(target, files)
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in files}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"{target}: damaged ({reason}); delete this folder, and its arrays are made again") from error


def _verify(target: Path, files: Sequence[Path]) -> None:
    """Raise ``ValueError`` if an array is missing or differs from its checksum.

    Folders of earlier versions have no checksums.
    """
    if not (target / CHECKSUMS).exists():
        return
    checksums = json.loads((target / CHECKSUMS).read_text())
    found = {path.name: _checksum(path, *_version(path)) for path in files}
    if found != checksums:
        differing = sorted(name for name in {*found, *checksums} if found.get(name) != checksums.get(name))
        raise ValueError(f"{listed(differing)}: wrong checksum")


@functools.cache
def _checksum(path: Path, changed: int, size: int) -> str:
    """Return the SHA-256 checksum of a file; a process reads it once unless it changed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def advice() -> str:
    """Return a hint for error messages: how to use another data folder."""
    return f"--data DIR or {VARIABLE} sets another data folder"


def _reserve(path: Path) -> None:
    """Reserve the space of a file: if the disk is full, writing to a map of it would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _make(target: Path, key: dict[str, Any], make: Callable[[Create], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():  # another run generated it while this one waited
            return
        for stale in target.parent.glob(f"{target.name}.part-*"):  # of a killed process: this one has the lock
            shutil.rmtree(stale, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
        try:
            arrays: list[np.memmap] = []

            def create(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
                path, kind = part / f"{name}.npy", np.dtype(dtype)
                if math.prod(shape) * kind.itemsize > shutil.disk_usage(part).free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                arrays.append(np.lib.format.open_memmap(path, "w+", kind, shape))
                _reserve(path)
                return arrays[-1]

            make(create)
            for array in arrays:
                array.flush()
            checksums = {path.name: _checksum(path, *_version(path)) for path in sorted(part.glob("*.npy"))}
            for name, content in (("key.json", key), (CHECKSUMS, checksums)):
                (part / name).write_text(json.dumps(content, indent=1) + "\n")
            part.chmod(0o755)  # mkdtemp creates folders that only their owner can read
            for path in part.iterdir():
                flush(path)
            flush_names(part)
            part.rename(target)
            flush_names(target.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
