"""Training loop: both recipes on one step axis.

The *supervised* recipe trains on the labels for ``steps`` steps. The *spt* recipe uses the first ``pretrain_steps`` of
these steps for self-pretraining (SPT) on the same training sequences without their labels. Each stage has its own
optimiser, warm-up and schedule. Every batch and mask is a function of seed, stage and step. The loss of a step is the
mean over all predictions of its batch, so it does not depend on the number of processes or micro-batches.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from attnprobe import tasks
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.model.parts import select, transfer
from attnprobe.model.transformer import Transformer
from attnprobe.randomness import torch_generator
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split, Task
from attnprobe.training.batches import draw, lengths_of, mask_of, take
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.metrics import best
from attnprobe.training.objectives import evaluate
from attnprobe.training.processes import Processes, processes
from attnprobe.training.rank import is_main_process
from attnprobe.training.run import Run
from attnprobe.training.trackers import check, trackers

EVALUATED = 2000
"""Maximum number of training sequences to evaluate (the first ones); other splits are evaluated completely."""
EVALUATED_AT_A_TIME = 2**17
"""Tokens per evaluation batch."""
SAVED_EVERY = 120.0
"""Seconds between saves of the latest state, in addition to the save at every evaluation."""


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
    log: Sequence[str] = (),
    minutes: float | None = None,
) -> Run:
    """Train a network and return its run.

    Under ``accelerate launch``, each batch is split over the processes and rank 0 writes the files.

    Args:
        config: Settings of the run, from `attnprobe.configure`.
        out: Run folder; runs/TASK-RECIPE-SEED by default.
        progress: Whether to show a progress bar.
        on_step: Callback that receives the step number after every step.
        log: Experiment trackers that log the metrics as well: tensorboard, wandb.
        minutes: Time limit in minutes. When it is reached, the state is saved and the unfinished run is returned;
            continue it with `resume`.

    Raises:
        UsageError: If the settings are inconsistent with each other or with the task, if the folder already holds a
            run, or if the loss is not finite. In the last case the folder keeps all checkpoints saved so far.
    """
    run = Run(Path(out or f"runs/{tasks.short_name(config.task)}-{config.recipe}-{config.seed}"))
    if is_main_process():
        run.refuse_another()
    training = _prepare(config, run, on_step, log, None)
    with run.held() if training.world.writes else contextlib.nullcontext():
        if training.world.writes:
            Run.create(run.folder, config)
        training.world.wait()
        training.fit(None, progress, log, minutes)
    return run


def resume(
    folder: str | Path,
    *,
    device: str | None = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
    log: Sequence[str] = (),
    minutes: float | None = None,
) -> Run:
    """Resume an interrupted run from its latest state and return it; a finished run is returned unchanged.

    On the same device and with one thread, the result is bit-identical to that of an uninterrupted run.

    Args:
        folder: Run folder.
        device: Device to continue on; the run's own by default.
        progress: As in `train`.
        on_step: As in `train`.
        log: As in `train`.
        minutes: As in `train`.

    Raises:
        UsageError: If the folder holds no run or the task no longer generates the same data; otherwise as in `train`.
    """
    run = Run(Path(folder))
    config = run.config if device is None else dataclasses.replace(run.config, device=device)
    with run.held() if is_main_process() and not run.finished else contextlib.nullcontext():
        if run.finished:
            run.latest_path.unlink(missing_ok=True)
        else:
            _resume(run, config, progress, on_step, log, minutes)
    return run


def _resume(
    run: Run,
    config: TrainConfig,
    progress: bool,
    on_step: Callable[[int], None] | None,
    log: Sequence[str],
    minutes: float | None,
) -> None:
    state = run.latest
    training = _prepare(config, run, on_step, log, state)
    if state is not None and state.fingerprint != training.task.fingerprint:
        fingerprints = f"fingerprint {training.task.fingerprint}, expected {state.fingerprint}"
        raise UsageError(
            f"{run.folder}: task {training.task.name} no longer generates this run's data ({fingerprints})"
        )
    training.fit(state, progress, log, minutes)


def _prepare(
    config: TrainConfig,
    run: Run,
    on_step: Callable[[int], None] | None,
    log: Sequence[str],
    state: Checkpoint | None,
) -> "_Training":
    """Build everything that a run needs and check that it is consistent, without writing files."""
    check(log)
    world = processes(config.device)
    task = tasks.build(config)
    if config.gradient_accumulation_steps * world.count > config.batch_size:
        setting = f"gradient_accumulation_steps={config.gradient_accumulation_steps} in {world.count} processes"
        raise UsageError(f"{setting}: their product must be at most batch_size={config.batch_size}")
    model = Transformer(config.model, task.data, config.seed if config.init_seed is None else config.init_seed)
    if config.init_from is not None and state is None:
        model.load_state_dict(transfer(config.transfer, load(config.init_from).weights, model.state_dict()))
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for part in config.freeze for name in select(part, names)}
    if len(frozen) == len(names):
        raise UsageError(f"freeze={config.freeze}: leaves no parameters to train")
    return _Training(config, task, model.to(world.device), frozen, run, world, on_step)


def rate_factor(step: int, length: int, warmup: int, schedule: str) -> float:
    """Return the learning rate, relative to its peak, at a step (1 ... length) of a stage.

    Linear warm-up over at most half of the stage, then the schedule; cosine decays from 1 to 0.05.
    """
    warmup = min(warmup, length // 2)
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(length - warmup, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def checkpoint_steps(config: TrainConfig) -> list[int]:
    """Return the steps of the checkpoints: 0, and log-spaced steps from 0.5 % to 100 % of each stage."""
    steps, begin = {0}, 0
    for _, length in config.stages:
        spaced = np.geomspace(length, max(1, length / 200), config.checkpoints)
        steps |= {begin + int(step) for step in spaced.round()}
        begin += length
    return sorted(steps)


class _Training:
    """State of one call of `train` or `resume`."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        model: Transformer,
        frozen: set[str],
        run: Run,
        world: Processes,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.config, self.task, self.model, self.run, self.world = config, task, model, run, world
        self.on_step = on_step
        self.pretraining = task.shuffled(config.seed) if config.pretrain_order == "shuffled" else task
        self.parameters = [weight for name, weight in model.named_parameters() if name not in frozen]
        for name, weight in model.named_parameters():
            weight.requires_grad_(name not in frozen)
        self.metrics: list[dict[str, Any]] = []
        self.last_saved: Path | None = None
        self.saved_at = time.monotonic()
        self.pending_loss: tuple[int, str, torch.Tensor] | None = None
        self.checkpoint_steps = set(checkpoint_steps(config))
        self.scheduled = {round(step) for step in np.linspace(0, config.steps, config.evaluations + 1)}
        self.evaluation_steps = self.scheduled | self.checkpoint_steps

    def fit(self, state: Checkpoint | None, progress: bool, log: Sequence[str], minutes: float | None) -> None:
        """Train from a state, or from initialisation, until the last step or the time limit."""
        config, writes = self.config, self.world.writes
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        if state is not None:
            self.model.load_state_dict(state.weights)
            self.metrics, self.last_saved = state.metrics, state.path
        if writes:
            # Rows logged after the state, or before the first one, will be logged again.
            self.run.rewind(
                self.metrics, {*self.checkpoint_steps, self._best_step(), 0 if state is None else state.step}
            )
        if config.compile:
            self.model.residual = torch.compile(self.model.residual)
        done = 0 if state is None else state.step
        self.bar: Any = tqdm(
            total=config.steps, initial=done, unit="step", disable=not (progress and writes), dynamic_ncols=True
        )
        with self.bar, trackers(log if writes else (), self.run.folder, config) as self.trackers:
            completed = self._train_stages(state, done)
        if writes and completed:
            why = "patience" if self._out_of_patience() else "all steps"
            self.run.finish({"step": self.metrics[-1]["step"], "why": why, "best_step": self._best_step()})
        self.world.wait()

    def _train_stages(self, state: Checkpoint | None, step: int) -> bool:
        """Train all remaining steps; return whether the time limit allowed it."""
        end = 0
        for objective, length in self.config.stages:
            begin, end = end, end + length
            optimiser = torch.optim.AdamW(self.parameters, weight_decay=self.config.weight_decay, fused=True)
            if state is None and begin == 0:
                self._evaluate_and_checkpoint(0, objective, optimiser)
            elif state is not None and begin < state.step < end:
                optimiser.load_state_dict(state.optimiser)
            self.model.train()
            while step < end and not self._out_of_patience():
                step += 1
                self._step(step, step - begin, length, objective, optimiser)
                self._evaluate_and_checkpoint(step, objective, optimiser)
                self.bar.update()
                if self.on_step is not None:
                    self.on_step(step)
                if step < self.config.steps and self._out_of_time():
                    self._check_loss()
                    if self.world.writes:
                        self._save(self.run.latest_path, step, objective, optimiser)
                    return False
        return True

    def _out_of_time(self) -> bool:
        """Return whether any process has reached the time limit, so that all stop at the same step."""
        return self.deadline < math.inf and self.world.totals([float(time.monotonic() > self.deadline)])[0] > 0

    def _step(self, step: int, stage_step: int, length: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        config, split = self.config, self._stage_data(objective).train
        peak = (
            config.learning_rate if objective == "labels" else (config.pretrain_learning_rate or config.learning_rate)
        )
        optimiser.param_groups[0]["lr"] = peak * rate_factor(stage_step, length, config.warmup_steps, config.schedule)
        drawn = draw(config, split, objective, stage_step)
        optimiser.zero_grad()
        total_loss = torch.zeros((), device=self.world.device)
        micro_batches = np.array_split(
            np.arange(len(drawn.rows)), config.gradient_accumulation_steps * self.world.count
        )
        for indices in micro_batches[self.world.rank :: self.world.count]:
            if len(indices):
                mask = None if drawn.mask is None else drawn.mask[indices]
                batch, batch_mask = take(split, drawn.rows[indices], mask, self.world.device)
                with self._autocast():
                    loss = evaluate(self.model, batch, objective, batch_mask).loss / max(drawn.count, 1)
                loss.backward()
                total_loss += loss.detach()
        self._all_reduce(total_loss)
        self._check_loss()
        self.pending_loss = step, objective, total_loss
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        optimiser.step()

    def _all_reduce(self, loss: torch.Tensor) -> None:
        """Sum loss and gradients over the processes."""
        if self.world.count > 1:
            used = [weight for weight in self.parameters if weight.grad is not None]
            self.world.add_up([loss, *(weight.grad for weight in used if weight.grad is not None)])

    def _check_loss(self) -> None:
        """Raise `UsageError` if the pending loss is not finite.

        Each step checks the loss of the previous step, so that a GPU is not kept waiting.
        """
        if self.pending_loss is None:
            return
        step, objective, loss = self.pending_loss
        self.pending_loss = None
        if not math.isfinite(loss.item()):
            raise self._divergence_error(f"the loss is {loss.item()} at step {step} ({objective})")

    def _evaluate_and_checkpoint(self, step: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        """Evaluate and checkpoint if scheduled."""
        if step not in self.evaluation_steps:
            if self.world.writes and time.monotonic() - self.saved_at > SAVED_EVERY:
                self._check_loss()
                self._save(self.run.latest_path, step, objective, optimiser)
            return
        self._check_loss()
        self.model.eval()
        row: dict[str, Any] = {
            "step": step,
            "objective": objective,
            "learning_rate": optimiser.param_groups[0]["lr"] if step else 0.0,
        }
        for name, split in self._stage_data(objective).splits.items():
            row.update(self._evaluate(name, split, objective))
        for name in self.task.splits:
            if not math.isfinite(row[f"{name}_loss"]):
                raise self._divergence_error(f"the {name} loss is {row[f'{name}_loss']} at step {step} ({objective})")
        best_before = self._best_step()
        self.metrics.append(row)
        self.bar.set_description(f"{tasks.short_name(self.config.task)} {self.config.recipe}: {objective}")
        accuracies = (f"{name}_accuracy" for name in self.task.splits)
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in accuracies if row[name] is not None})
        if self.world.writes:
            self.run.log(row)
            for tracker in self.trackers:
                tracker.log({name: value for name, value in row.items() if value is not None}, step=step)
            self._checkpoint(step, objective, optimiser, best_before)
        self.model.train()

    def _checkpoint(self, step: int, objective: str, optimiser: torch.optim.AdamW, best_before: int | None) -> None:
        """Save a checkpoint if scheduled, at the end or at the lowest validation loss so far; else the latest state."""
        lowest = self._best_step()
        if step in self.checkpoint_steps or self._out_of_patience() or (self.config.patience and lowest == step):
            self._save(self.run.path_of(step), step, objective, optimiser)
        else:
            self._save(self.run.latest_path, step, objective, optimiser)
        if self.config.patience and best_before not in {None, lowest, *self.checkpoint_steps}:
            self.run.path_of(cast(int, best_before)).unlink(missing_ok=True)

    def _best_step(self) -> int | None:
        """Return the step of the lowest validation loss on the labels; None without a validation split."""
        row = best(self.metrics)
        return None if row is None else row["step"]

    def _out_of_patience(self) -> bool:
        lowest = self._best_step() if self.config.patience else None
        if lowest is None:
            return False
        # Evaluations during warm-up, and unscheduled ones at checkpoints, do not count.
        *_, (_, length) = self.config.stages
        since = max(lowest, self.config.steps - length + min(self.config.warmup_steps, length // 2))
        return (
            sum(row["step"] > since and row["step"] in self.scheduled for row in self.metrics) >= self.config.patience
        )

    def _save(self, path: Path, step: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        weights = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}
        bad = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if bad:
            raise self._divergence_error(f"{bad[0]} holds NaN or infinite weights at step {step} ({objective})")
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
        self.last_saved, self.saved_at = path, time.monotonic()

    @torch.no_grad()
    def _evaluate(self, name: str, split: Split, objective: str) -> dict[str, float | None]:
        size = min(EVALUATED, len(split)) if name == "train" else len(split)
        batches = np.split(np.arange(size), range(0, size, self._evaluation_batch_size)[1:])
        loss, correct, count = 0.0, 0.0, 0.0
        for index in range(self.world.rank, len(batches), self.world.count):
            rows, mask = batches[index], None
            if OBJECTIVES[objective].masks_tokens:
                generator = torch_generator(self.config.seed, f"evaluation masks {name}", index)
                mask = mask_of(lengths_of(split, rows), self.config.mask_probability, generator)
            batch, batch_mask = take(split, rows, mask, self.world.device)
            with self._autocast():
                outcome = evaluate(self.model, batch, objective, batch_mask)
            loss, count = loss + outcome.loss.item(), count + outcome.count
            correct += 0.0 if outcome.correct is None else outcome.correct.item()
        loss, correct, count = self.world.totals([loss, correct, count])
        data, count = self.task.data, max(count, 1)
        has_accuracy = OBJECTIVES[objective].output == "labels" or data.inputs == "tokens" or data.levels
        return {f"{name}_loss": loss / count, f"{name}_accuracy": correct / count if has_accuracy else None}

    def _stage_data(self, objective: str) -> Task:
        """Return the task whose sequences a stage trains on."""
        return self.task if objective == "labels" else self.pretraining

    @property
    def _evaluation_batch_size(self) -> int:
        return min(512, max(1, EVALUATED_AT_A_TIME // self.task.data.n))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    def _divergence_error(self, reason: str) -> UsageError:
        last_good = f"the last good checkpoint is {self.last_saved}" if self.last_saved else "no checkpoint was saved"
        return UsageError(f"training stopped: {reason}; {last_good}")
