"""The data folder: archives that somebody put there, and arrays that were made once and are shared by every run.

It is the folder that the environment variable ATTNPROBE_DATA names (the flag ``--data`` sets it), or else the user's
cache folder. Arrays are written to a folder of their own which gets its name when it is whole, so that a reader never
sees a part of them; a lock keeps two runs from making the same arrays at the same time.
"""

import dataclasses
import hashlib
import inspect
import json
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
from attnprobe.errors import UsageError

VARIABLE = "ATTNPROBE_DATA"
Create = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""Name, shape and type of an array -> the array on disk, to be filled."""


def data_folder() -> Path:
    """Return the data folder, which may not exist yet."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    import pooch

    return Path(pooch.os_cache("attnprobe"))


def made_once(
    source: Any, make: Callable[[Create], None], *, helpers: Sequence[ModuleType] = (), **more: Any
) -> dict[str, np.ndarray]:
    """Return the arrays that ``make`` fills, read from the data folder, where they are made if they are not there.

    They belong to the class of ``source`` (a settings dataclass), the code of its module and of the ``helpers`` that
    have a part in the numbers, its parameters and ``more`` (a seed, the checksum of an archive): when one of these
    changes, new arrays are made. The arrays cannot be written to and are read from disk as they are used, so that they
    may be larger than memory. Raises `UsageError` where the folder cannot be written.
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
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(target.glob("*.npy"))}


def advice() -> str:
    """Return how to name another data folder, for messages."""
    return f"--data DIR or {VARIABLE} names another data folder"


def _make(target: Path, key: dict[str, Any], make: Callable[[Create], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():  # another run made it while this one waited
            return
        part = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
        try:
            made: list[np.memmap] = []

            def create(name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
                made.append(np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.dtype(kind), shape))
                return made[-1]

            make(create)
            for array in made:
                array.flush()
            (part / "key.json").write_text(json.dumps(key, indent=1) + "\n")
            part.chmod(0o755)  # others may read it
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
