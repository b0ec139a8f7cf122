"""Training: the two recipes, on one step axis.

Recipe *labels* trains on the labels for ``steps`` steps. Recipe *spt* spends the first ``pretrain_steps`` of the same
number on self-pretraining, on the same training sequences without their labels. Each stage has its own optimiser,
warm-up and schedule. Every batch and every mask is a function of seed, stage and step.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from attnprobe import tasks
from attnprobe.checkpoint import Checkpoint, load
from attnprobe.config import Objective, TrainConfig
from attnprobe.errors import UsageError
from attnprobe.objectives import Batch, draw_mask, evaluate
from attnprobe.randomness import numpy_generator, torch_generator
from attnprobe.run import Run
from attnprobe.tasks import Split, Task
from attnprobe.transfer import select, transfer
from attnprobe.transformer import Transformer

EVALUATED = 2000
"""At most so many training sequences are evaluated, the first ones; test sequences always all."""


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Run:
    """Train a network and return its run folder, ``out`` or else runs/TASK-RECIPE-SEED.

    ``on_step`` is called after every step with its number. Raises `UsageError` for settings that do not fit each other
    or the task, and when the loss is no longer finite; then the folder keeps every checkpoint up to the last good one.
    """
    device = _device(config.device)
    task = tasks.build(config)
    model = Transformer(config.model, task.data, config.seed)
    if config.init_from is not None:
        model.load_state_dict(transfer(config.transfer, load(config.init_from).weights, model.state_dict()))
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for part in config.freeze for name in select(part, names)}
    if len(frozen) == len(names):
        raise UsageError(f"freeze={config.freeze}: leaves nothing to train")
    model.to(device)
    run = Run.create(Path(out or f"runs/{config.task}-{config.recipe}-{config.seed}"), config)
    with tqdm(total=config.steps, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        _Training(config, task, model, frozen, run, bar, on_step).all_stages()
    return run


def rate_factor(step: int, length: int, warmup: int, schedule: str) -> float:
    """Return the share of the peak rate at a step (1 ... length) of a stage: linear warm-up, then the schedule.

    The cosine goes from 1 down to 0.05. A warm-up never takes more than half of a stage.
    """
    warmup = min(warmup, length // 2)
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(length - warmup, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def checkpoint_steps(config: TrainConfig) -> list[int]:
    """Return the steps to keep: 0, and in each stage log-spaced ones from half a percent of it to its end."""
    kept, begin = {0}, 0
    for _, length in config.stages:
        spaced = np.geomspace(length, max(1, length / 200), config.checkpoints)
        kept |= {begin + int(step) for step in spaced.round()}
        begin += length
    return sorted(kept)


def batch_rows(config: TrainConfig, size: int, stage: str, step: int) -> np.ndarray:
    """Return which of ``size`` training sequences make up the batch of a step (1, 2, ...) of a stage.

    Each pass through the data is a fresh permutation; a batch may span two of them.
    """
    first = (step - 1) * config.batch_size
    places = np.arange(first, first + config.batch_size)
    passes = {int(one): numpy_generator(config.seed, f"order {stage}", int(one)) for one in np.unique(places // size)}
    orders = {one: generator.permutation(size) for one, generator in passes.items()}
    return np.array([orders[place // size][place % size] for place in places.tolist()])


class _Training:
    """What one call of `train` holds while it runs."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        model: Transformer,
        frozen: set[str],
        run: Run,
        bar: Any,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.config, self.task, self.model, self.run = config, task, model, run
        self.bar, self.on_step = bar, on_step
        self.parameters = [weight for name, weight in model.named_parameters() if name not in frozen]
        for name, weight in model.named_parameters():
            weight.requires_grad_(name not in frozen)
        self.splits = {"train": self._tensors(task.train), "test": self._tensors(task.test)}
        self.metrics: list[dict[str, Any]] = []
        self.saved: Path | None = None
        self.kept = set(checkpoint_steps(config))
        self.evaluated = {round(step) for step in np.linspace(0, config.steps, config.evaluations + 1)} | self.kept

    def all_stages(self) -> None:
        step = 0
        for objective, length in self.config.stages:
            optimiser = torch.optim.AdamW(self.parameters, weight_decay=self.config.weight_decay, fused=True)
            if step == 0:
                self._pause(0, objective, optimiser)
            self.model.train()
            for done in range(1, length + 1):
                step += 1
                self._step(step, done, length, objective, optimiser)
                self._pause(step, objective, optimiser)
                self.bar.update()
                if self.on_step is not None:
                    self.on_step(step)

    def _step(self, step: int, done: int, length: int, objective: Objective, optimiser: torch.optim.AdamW) -> None:
        config = self.config
        peak = config.rate if objective == "labels" else (config.pretrain_rate or config.rate)
        optimiser.param_groups[0]["lr"] = peak * rate_factor(done, length, config.warmup, config.schedule)
        rows = torch.from_numpy(batch_rows(config, len(self.task.train), objective, done))
        batch = self._take("train", rows)
        mask = None
        if objective == "masked":
            mask = draw_mask(batch, config.mask_share, torch_generator(config.seed, "masks", done))
        loss = evaluate(self.model, batch, objective, mask).mean
        if not math.isfinite(loss.item()):
            raise self._diverged(f"the loss is {loss.item()} at step {step} ({objective})")
        optimiser.zero_grad()
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.parameters, config.clip)
        optimiser.step()

    def _pause(self, step: int, objective: Objective, optimiser: torch.optim.AdamW) -> None:
        """Evaluate and save, where it is time for it."""
        if step not in self.evaluated:
            return
        self.model.eval()
        row: dict[str, Any] = {
            "step": step,
            "objective": objective,
            "rate": optimiser.param_groups[0]["lr"] if step else 0.0,
        }
        for split in ("train", "test"):
            row.update(self._evaluate(split, objective))
        for split in ("train", "test"):
            if not math.isfinite(row[f"{split}_loss"]):
                raise self._diverged(f"the {split} loss is {row[f'{split}_loss']} at step {step} ({objective})")
        self.metrics.append(row)
        self.run.log(row)
        shown = {name: f"{row[name]:.3f}" for name in ("train_accuracy", "test_accuracy") if row[name] is not None}
        self.bar.set_description(f"{self.config.task} {self.config.recipe}: {objective}")
        self.bar.set_postfix(shown)
        if step in self.kept:
            self._save(step, objective, optimiser)
        self.model.train()

    def _save(self, step: int, objective: Objective, optimiser: torch.optim.AdamW) -> None:
        weights = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}
        bad = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if bad:
            raise self._diverged(f"{bad[0]} holds NaN or infinite weights at step {step} ({objective})")
        path = self.run.path_of(step)
        Checkpoint(
            config=self.config,
            data=self.task.data,
            weights=weights,
            optimiser=optimiser.state_dict(),
            step=step,
            objective=objective,
            metrics=self.metrics,
            fingerprint=self.task.fingerprint,
        ).save(path)
        self.saved = path

    @torch.no_grad()
    def _evaluate(self, split: str, objective: Objective) -> dict[str, float | None]:
        size = len(self.splits[split].inputs)
        size = min(EVALUATED, size) if split == "train" else size
        loss, correct, count = 0.0, 0.0, 0
        for part, rows in enumerate(torch.arange(size).split(512)):
            batch = self._take(split, rows)
            mask = None
            if objective == "masked":
                generator = torch_generator(self.config.seed, f"evaluation masks {split}", part)
                mask = draw_mask(batch, self.config.mask_share, generator)
            outcome = evaluate(self.model, batch, objective, mask)
            loss, count = loss + outcome.loss.item(), count + outcome.count
            correct = None if outcome.correct is None or correct is None else correct + outcome.correct.item()
        count = max(count, 1)
        return {f"{split}_loss": loss / count, f"{split}_accuracy": None if correct is None else correct / count}

    def _tensors(self, split: Split) -> Batch:
        lengths = None if split.lengths is None else torch.from_numpy(split.lengths)
        return Batch(split.tensor(), torch.from_numpy(split.labels).long(), lengths)

    def _take(self, split: str, rows: torch.Tensor) -> Batch:
        whole, device = self.splits[split], next(self.model.parameters()).device
        lengths = None if whole.lengths is None else whole.lengths[rows].to(device)
        return Batch(whole.inputs[rows].to(device), whole.labels[rows].to(device), lengths)

    def _diverged(self, why: str) -> UsageError:
        kept = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return UsageError(f"training stopped: {why}; {kept}")


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().split("\n")[0]
        raise UsageError(f"device={name!r} cannot be used: {first}") from error
