"""Sweeps on a Ray cluster: one task per cell, with one CPU (and one GPU if the device is a GPU).

Every node needs attnprobe and the sweep's folder on a shared file system. If a node dies, its cells are resumed on
other nodes from their latest state, as soon as the locks of the dead processes are released.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnprobe import progress
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.sweeps.cells import Outcome, attempt, reached, record_failure
from attnprobe.sweeps.workers import TRIES
from attnprobe.tasks.folder import VARIABLE

AGAIN_AFTER = 3.0
"""Seconds before a locked cell is retried."""
LOOKED_EVERY = 2.0
"""Seconds between two progress updates."""


def run_on_ray(plan: Mapping[Path, TrainConfig], address: str) -> None:
    """Train every cell of the plan, until done or failed, on the cluster at ``address``.

    A task whose node or process dies is started up to `TRIES` times. Raises `UsageError` if Ray is not installed or the
    cluster cannot be reached.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError(f"ray={address!r}: Ray is not installed; pip install 'attnprobe[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"ray={address!r}: cannot be reached ({' '.join(str(error).split())})") from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # messages of Ray about dead nodes
            _run(ray, plan)
    finally:
        ray.shutdown()


def _run(ray: Any, plan: Mapping[Path, TrainConfig]) -> None:
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_task)
    data = os.environ.get(VARIABLE)

    def start(folder: Path) -> Any:
        gpus = int(plan[folder].device.startswith("cuda"))
        return task.options(num_gpus=gpus, name=folder.name).remote(folder, plan[folder], data)

    running = {start(folder): folder for folder in plan}
    held: dict[Path, float] = {}
    ended, updated = set[Path](), 0.0
    total = sum(config.total_steps for config in plan.values())
    with progress.bar(total, f"0 of {len(plan)} runs", "step") as bar:
        while running or held:
            for folder in [path for path, since in held.items() if time.monotonic() - since > AGAIN_AFTER]:
                del held[folder]
                running[start(folder)] = folder
            for reference in ray.wait(list(running), timeout=0.5)[0] if running else ():
                folder = running.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    message = str(error).strip().split("\n")[0]
                    outcome = record_failure(folder, f"the Ray task was lost: {type(error).__name__}: {message}")
                if outcome == "held":
                    held[folder] = time.monotonic()
                else:
                    ended.add(folder)
            if not running:
                time.sleep(0.5 if held else 0)
            if time.monotonic() - updated > LOOKED_EVERY or not (running or held):
                updated = time.monotonic()
                steps = (config.total_steps if path in ended else reached(path) for path, config in plan.items())
                bar.update(sum(steps) - bar.n)
            bar.set_description_str(f"{len(ended)} of {len(plan)} runs", refresh=False)


def _task(folder: Path, config: TrainConfig, data: str | None) -> Outcome:
    """Attempt one cell on a node of the cluster."""
    import torch

    torch.set_num_threads(1)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent}: not found on node {socket.gethostname()}; all nodes must share this folder")
    if data is not None:
        os.environ[VARIABLE] = data
    return attempt(folder, config)
