"""Provenance of artefacts: versions, commit, command and creation time."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def provenance() -> dict[str, Any]:
    """Return version, commit (with a flag for uncommitted changes), command, torch and Python version, and time.

    The commit is read from attnprobe's own checkout; it is ``None`` for an installed copy.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "attnprobe": version("attnprobe"),
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "command": _command(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def fingerprint(arrays: Iterable[Any]) -> str:
    """Hash the values, shapes and types of arrays, which may be read in blocks, to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for block in array.blocks() if hasattr(array, "blocks") else (array,):
            # Not tobytes(), which copies: a memory-mapped array may be larger than memory.
            digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _command() -> str:
    program, *arguments = sys.argv
    name = Path(program).name
    # A notebook's kernel is started with the path of a temporary file, which says nothing about what was run.
    return name if name == "ipykernel_launcher.py" else " ".join([name, *arguments])


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(package), *arguments]  # killed, it leaves no index.lock
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
