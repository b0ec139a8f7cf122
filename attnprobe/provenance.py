"""Where an artefact comes from: version, commit, command, machine-independent facts of how it was made."""

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

    The commit is that of attnprobe's own checkout; an installed copy has none, and says ``None``.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "attnprobe": version("attnprobe"),
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "torch": version("torch"),
        "python": platform.python_version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Return 16 hexadecimal digits that change when any value, shape or type of the arrays changes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        )  # no copy: it may be larger than memory
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
