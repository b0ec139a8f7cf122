"""Shared training runs and cached measures of the analyses.

All analyses share the runs in ``analyses/runs``. A run is requested by its complete configuration and trained only if
it is missing. An interrupted analysis therefore resumes, and analyses that need the same run share it.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import xarray as xr
from tqdm import tqdm

from attnprobe.config import TrainConfig
from attnprobe.measures import MEASURES
from attnprobe.networks.transformer import of_checkpoint
from attnprobe.results import open_result, save
from attnprobe.sweeps import train_all
from attnprobe.sweeps.cells import took
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run

FOLDER = Path(__file__).parent
RUNS = FOLDER / "runs"
Scale = Literal["quick", "default", "full"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Asked:
    """A measure of one checkpoint."""

    run: Run
    step: int
    measure: str
    keep: tuple[str, ...]
    """Variables to save, if the result has them: a file with all variables takes a second to open."""
    options: Mapping[str, Any] = field(default_factory=dict)
    shuffled: bool = False
    """Whether the tokens of each sequence are permuted, so that near tokens have no similar content."""
    one_masked: bool = False
    """Whether masked objectives mask one token of each sequence instead of the fraction of the training."""

    @property
    def path(self) -> Path:
        """Path of the cached result, inside the run folder."""
        asked = [self.options, self.keep, *(name for name in ("shuffled", "one_masked") if getattr(self, name))]
        request = json.dumps(asked, sort_keys=True, default=str)
        digest = hashlib.sha256(request.encode()).hexdigest()[:8]
        return self.run.folder / "measured" / f"{self.measure}-{self.step:06d}-{digest}.nc"


@dataclass
class Lab:
    """Scale and resources of an analysis, and the runs it has used so far."""

    scale: Scale = "default"
    workers: int = 2
    device: str = "cpu"
    used: dict[Path, TrainConfig] = field(default_factory=dict)

    def train(self, configs: Mapping[Key, TrainConfig]) -> dict[Key, Run]:
        """Return the finished run of every configuration."""
        configured = [replace(config, device=self.device) for config in configs.values()]
        runs = train_all(configured, RUNS, self.workers)
        self.used |= {run.folder: config for run, config in zip(runs, configured, strict=True)}
        return dict(zip(configs, runs, strict=True))

    def measure(self, asked: Mapping[Key, Asked]) -> dict[Key, xr.Dataset]:
        """Return every requested result; compute missing ones in single-threaded worker processes."""
        missing = {request.path: request for request in asked.values() if not request.path.exists()}
        if missing:
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(
                self.workers, spawn, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                futures = [pool.submit(take, request) for request in missing.values()]
                done = concurrent.futures.as_completed(futures)
                for future in tqdm(done, total=len(futures), unit="measure", dynamic_ncols=True):
                    future.result()
        return {key: open_result(request.path) for key, request in asked.items()}

    @property
    def cost(self) -> dict[str, float]:
        """Cost of the runs used: number of runs, training steps, and minutes of training on one core."""
        return {
            "runs": len(self.used),
            "steps": sum(config.steps for config in self.used.values()),
            "core_minutes": sum(map(took, self.used)) / 60,
        }

    @property
    def trained_at(self) -> list[str]:
        """Commits at which the runs used were trained; a + marks uncommitted changes."""
        commits = set()
        for folder in self.used:
            provenance = json.loads((folder / "config.json").read_text())["provenance"]
            commits.add(f"{str(provenance['commit'])[:12]}{'+' if provenance['uncommitted_changes'] else ''}")
        return sorted(commits)


def take(asked: Asked) -> None:
    """Measure one checkpoint and save the result."""
    measured = of_checkpoint(load(asked.run.path_of(asked.step)))
    if asked.shuffled:
        task = measured.task.shuffled(asked.run.config.seed)
        measured = replace(measured, data=lambda: task)
    if asked.one_masked:
        measured = replace(measured, mask_probability=0.0)
    result = MEASURES[asked.measure](measured, **asked.options)
    asked.path.parent.mkdir(exist_ok=True)
    save(result[[name for name in asked.keep if name in result]], asked.path)
