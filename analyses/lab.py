"""What every analysis asks for: runs that are trained once, and measures of their checkpoints that are taken once.

All analyses share the runs in ``analyses/runs``. A run is asked for by its whole configuration and trained only where
it is not there yet, so that a cut-off analysis goes on where it was, and two that need the same run share it.
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
    """The variables that are wanted, of those that the result has: a file of all of them takes a second to open."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the result is kept: with the run."""
        said = json.dumps([self.options, self.keep], sort_keys=True, default=str)
        digest = hashlib.sha256(said.encode()).hexdigest()[:8]
        return self.run.folder / "measured" / f"{self.measure}-{self.step:06d}-{digest}.nc"


@dataclass
class Lab:
    """Where an analysis works: how large it is, and what it has used so far."""

    scale: Scale = "default"
    workers: int = 2
    device: str = "cpu"
    used: dict[Path, TrainConfig] = field(default_factory=dict)

    def train(self, configs: Mapping[Key, TrainConfig]) -> dict[Key, Run]:
        """Return the finished run of every configuration."""
        placed = [replace(config, device=self.device) for config in configs.values()]
        runs = train_all(placed, RUNS, self.workers)
        self.used |= {run.folder: config for run, config in zip(runs, placed, strict=True)}
        return dict(zip(configs, runs, strict=True))

    def measure(self, asked: Mapping[Key, Asked]) -> dict[Key, xr.Dataset]:
        """Return the result of every measure, in worker processes of one thread where it is not there yet."""
        missing = {one.path: one for one in asked.values() if not one.path.exists()}
        if missing:
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(
                self.workers, spawn, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                waiting = [pool.submit(take, one) for one in missing.values()]
                done = concurrent.futures.as_completed(waiting)
                for one in tqdm(done, total=len(waiting), unit="measure", dynamic_ncols=True):
                    one.result()
        return {key: open_result(one.path) for key, one in asked.items()}

    @property
    def cost(self) -> dict[str, float]:
        """What the runs cost that were used: their number, their steps, and minutes of training on one core."""
        return {
            "runs": len(self.used),
            "steps": sum(config.steps for config in self.used.values()),
            "core_minutes": sum(map(took, self.used)) / 60,
        }

    @property
    def trained_at(self) -> list[str]:
        """The commits at which the used runs were trained; those with uncommitted changes end in +."""
        found = set()
        for folder in self.used:
            made = json.loads((folder / "config.json").read_text())["provenance"]
            found.add(f"{str(made['commit'])[:12]}{'+' if made['uncommitted_changes'] else ''}")
        return sorted(found)


def take(asked: Asked) -> None:
    """Measure one checkpoint and keep the result."""
    result = MEASURES[asked.measure](load(asked.run.path_of(asked.step)), **asked.options)
    asked.path.parent.mkdir(exist_ok=True)
    save(result[[name for name in asked.keep if name in result]], asked.path)
