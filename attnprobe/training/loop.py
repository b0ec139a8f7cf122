"""Training: the two recipes, on one step axis.

Recipe *labels* trains on the labels for ``steps`` steps. Recipe *spt* spends the first ``pretrain_steps`` of the same
number on self-pretraining, on the same training sequences without their labels. Each stage has its own optimiser,
warm-up and schedule. Every batch and every mask is a function of seed, stage and step, and the loss of a step is the
mean over all predictions of its batch, so that neither the number of processes nor that of parts changes it.
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
from attnprobe.training.rank import writes_here
from attnprobe.training.run import Run
from attnprobe.training.trackers import check, trackers

EVALUATED = 2000
"""At most so many training sequences are evaluated, the first ones; validation and test sequences always all."""
EVALUATED_AT_A_TIME = 2**17
"""Tokens evaluated at a time."""
SAVED_EVERY = 120.0
"""Seconds after which the newest state is saved between two evaluations."""


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
    log: Sequence[str] = (),
    minutes: float | None = None,
) -> Run:
    """Train a network and return its run folder, ``out`` or else runs/TASK-RECIPE-SEED.

    ``on_step`` is called after every step with its number; ``log`` names trackers that get every row of metrics too.
    After ``minutes`` of training the state is saved and the run returned as it is; `resume` goes on from there.
    Under ``accelerate launch`` the processes share each batch, and the first one writes. Raises `UsageError` for
    settings that do not fit each other or the task, and when the loss is no longer finite; then the folder keeps every
    checkpoint up to the last good one.
    """
    run = Run(Path(out or f"runs/{tasks.short_name(config.task)}-{config.recipe}-{config.seed}"))
    if writes_here():
        run.refuse_another()
    training = _prepare(config, run, on_step, log, None)
    with run.held() if training.ours.writes else contextlib.nullcontext():
        if training.ours.writes:
            Run.create(run.folder, config)
        training.ours.wait()
        training.go(None, progress, log, minutes)
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
    """Continue a run that was cut off, from its newest state to its end, and return it; a finished one is left alone.

    On the same device with one thread the end is the same, bit by bit, as if nothing had happened. ``device`` is the
    one to go on with, where it is not that of the run. Raises `UsageError` where the folder holds no run, or the task
    no longer gives the same data; else as `train`.
    """
    run = Run(Path(folder))
    config = run.config if device is None else dataclasses.replace(run.config, device=device)
    with run.held() if writes_here() and not run.finished else contextlib.nullcontext():
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
        made = f"now {training.task.fingerprint}, then {state.fingerprint}"
        raise UsageError(f"{run.folder}: task {training.task.name} no longer gives the data of this run ({made})")
    training.go(state, progress, log, minutes)


def _prepare(
    config: TrainConfig,
    run: Run,
    on_step: Callable[[int], None] | None,
    log: Sequence[str],
    state: Checkpoint | None,
) -> "_Training":
    """Make everything that a run needs and check that it fits together; nothing is written."""
    check(log)
    ours = processes(config.device)
    task = tasks.build(config)
    if config.gradient_accumulation_steps * ours.count > config.batch_size:
        parts = f"gradient_accumulation_steps={config.gradient_accumulation_steps} in {ours.count} processes"
        raise UsageError(f"{parts}: a batch of {config.batch_size} has not so many parts")
    model = Transformer(config.model, task.data, config.seed if config.init_seed is None else config.init_seed)
    if config.init_from is not None and state is None:
        model.load_state_dict(transfer(config.transfer, load(config.init_from).weights, model.state_dict()))
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for part in config.freeze for name in select(part, names)}
    if len(frozen) == len(names):
        raise UsageError(f"freeze={config.freeze}: leaves nothing to train")
    return _Training(config, task, model.to(ours.device), frozen, run, ours, on_step)


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


class _Training:
    """What one call of `train` or `resume` holds while it runs."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        model: Transformer,
        frozen: set[str],
        run: Run,
        ours: Processes,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.config, self.task, self.model, self.run, self.ours = config, task, model, run, ours
        self.on_step = on_step
        self.pretraining = task.shuffled(config.seed) if config.pretrain_order == "shuffled" else task
        self.parameters = [weight for name, weight in model.named_parameters() if name not in frozen]
        for name, weight in model.named_parameters():
            weight.requires_grad_(name not in frozen)
        self.metrics: list[dict[str, Any]] = []
        self.saved: Path | None = None
        self.saved_at = time.monotonic()
        self.unchecked: tuple[int, str, torch.Tensor] | None = None
        self.kept = set(checkpoint_steps(config))
        self.even = {round(step) for step in np.linspace(0, config.steps, config.evaluations + 1)}
        self.evaluated = self.even | self.kept

    def go(self, state: Checkpoint | None, progress: bool, log: Sequence[str], minutes: float | None) -> None:
        """Train from a state, or from the beginning, to the end or until the minutes are over."""
        config, writes = self.config, self.ours.writes
        self.until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        if state is not None:
            self.model.load_state_dict(state.weights)
            self.metrics, self.saved = state.metrics, state.path
        if writes:
            # What was logged after the state, or before there was one, comes again.
            self.run.rewind(self.metrics, {*self.kept, self._best_step(), 0 if state is None else state.step})
        if config.compile:
            self.model.residual = torch.compile(self.model.residual)
        done = 0 if state is None else state.step
        self.bar: Any = tqdm(
            total=config.steps, initial=done, unit="step", disable=not (progress and writes), dynamic_ncols=True
        )
        with self.bar, trackers(log if writes else (), self.run.folder, config) as self.trackers:
            ended = self._all_stages(state, done)
        if writes and ended:
            why = "patience" if self._lost_patience() else "all steps"
            self.run.finish({"step": self.metrics[-1]["step"], "why": why, "best_step": self._best_step()})
        self.ours.wait()

    def _all_stages(self, state: Checkpoint | None, step: int) -> bool:
        """Take every step that is left, and return whether there was time for all."""
        end = 0
        for objective, length in self.config.stages:
            begin, end = end, end + length
            optimiser = torch.optim.AdamW(self.parameters, weight_decay=self.config.weight_decay, fused=True)
            if state is None and begin == 0:
                self._pause(0, objective, optimiser)
            elif state is not None and begin < state.step < end:
                optimiser.load_state_dict(state.optimiser)
            self.model.train()
            while step < end and not self._lost_patience():
                step += 1
                self._step(step, step - begin, length, objective, optimiser)
                self._pause(step, objective, optimiser)
                self.bar.update()
                if self.on_step is not None:
                    self.on_step(step)
                if step < self.config.steps and self._time_is_over():
                    self._check_loss()
                    if self.ours.writes:
                        self._save(self.run.latest_path, step, objective, optimiser)
                    return False
        return True

    def _time_is_over(self) -> bool:
        """Return whether any process's minutes are over: all stop at one step."""
        return self.until < math.inf and self.ours.totals([float(time.monotonic() > self.until)])[0] > 0

    def _step(self, step: int, done: int, length: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        config, split = self.config, self._data(objective).train
        peak = (
            config.learning_rate if objective == "labels" else (config.pretrain_learning_rate or config.learning_rate)
        )
        optimiser.param_groups[0]["lr"] = peak * rate_factor(done, length, config.warmup_steps, config.schedule)
        drawn = draw(config, split, objective, done)
        optimiser.zero_grad()
        summed = torch.zeros((), device=self.ours.device)
        parts = np.array_split(np.arange(len(drawn.rows)), config.gradient_accumulation_steps * self.ours.count)
        for part in parts[self.ours.rank :: self.ours.count]:
            if len(part):
                mask = None if drawn.mask is None else drawn.mask[part]
                batch, hidden = take(split, drawn.rows[part], mask, self.ours.device)
                with self._precision():
                    loss = evaluate(self.model, batch, objective, hidden).loss / max(drawn.count, 1)
                loss.backward()
                summed += loss.detach()
        self._add_up(summed)
        self._check_loss()
        self.unchecked = step, objective, summed
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        optimiser.step()

    def _add_up(self, loss: torch.Tensor) -> None:
        """Add loss and gradients up over the processes."""
        if self.ours.count > 1:
            used = [weight for weight in self.parameters if weight.grad is not None]
            self.ours.add_up([loss, *(weight.grad for weight in used if weight.grad is not None)])

    def _check_loss(self) -> None:
        """Raise where the last loss that was not looked at yet is not finite.

        A step looks at the loss of the one before it, when a GPU has it ready.
        """
        if self.unchecked is None:
            return
        step, objective, loss = self.unchecked
        self.unchecked = None
        if not math.isfinite(loss.item()):
            raise self._diverged(f"the loss is {loss.item()} at step {step} ({objective})")

    def _pause(self, step: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        """Evaluate and save, where it is time for it."""
        if step not in self.evaluated:
            if self.ours.writes and time.monotonic() - self.saved_at > SAVED_EVERY:
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
        for name, split in self._data(objective).splits.items():
            row.update(self._evaluate(name, split, objective))
        for name in self.task.splits:
            if not math.isfinite(row[f"{name}_loss"]):
                raise self._diverged(f"the {name} loss is {row[f'{name}_loss']} at step {step} ({objective})")
        best_before = self._best_step()
        self.metrics.append(row)
        self.bar.set_description(f"{tasks.short_name(self.config.task)} {self.config.recipe}: {objective}")
        shown = (f"{name}_accuracy" for name in self.task.splits)
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in shown if row[name] is not None})
        if self.ours.writes:
            self.run.log(row)
            for tracker in self.trackers:
                tracker.log({name: value for name, value in row.items() if value is not None}, step=step)
            self._keep(step, objective, optimiser, best_before)
        self.model.train()

    def _keep(self, step: int, objective: str, optimiser: torch.optim.AdamW, best_before: int | None) -> None:
        """Save a checkpoint where one is due, where training ends, and where the validation loss is lowest so far."""
        lowest = self._best_step()
        if step in self.kept or self._lost_patience() or (self.config.patience and lowest == step):
            self._save(self.run.path_of(step), step, objective, optimiser)
        else:
            self._save(self.run.latest_path, step, objective, optimiser)
        if self.config.patience and best_before not in {None, lowest, *self.kept}:
            self.run.path_of(cast(int, best_before)).unlink(missing_ok=True)

    def _best_step(self) -> int | None:
        """Return the step of the lowest validation loss of the labels; None without one."""
        row = best(self.metrics)
        return None if row is None else row["step"]

    def _lost_patience(self) -> bool:
        lowest = self._best_step() if self.config.patience else None
        if lowest is None:
            return False
        # Evaluations of the warm-up, and those that only come with a checkpoint, say little: they do not count.
        *_, (_, length) = self.config.stages
        since = max(lowest, self.config.steps - length + min(self.config.warmup_steps, length // 2))
        return sum(row["step"] > since and row["step"] in self.even for row in self.metrics) >= self.config.patience

    def _save(self, path: Path, step: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        weights = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}
        bad = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if bad:
            raise self._diverged(f"{bad[0]} holds NaN or infinite weights at step {step} ({objective})")
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
        self.saved, self.saved_at = path, time.monotonic()

    @torch.no_grad()
    def _evaluate(self, name: str, split: Split, objective: str) -> dict[str, float | None]:
        size = min(EVALUATED, len(split)) if name == "train" else len(split)
        parts = np.split(np.arange(size), range(0, size, self._evaluated_at_a_time)[1:])
        loss, correct, count = 0.0, 0.0, 0.0
        for part in range(self.ours.rank, len(parts), self.ours.count):
            rows, mask = parts[part], None
            if OBJECTIVES[objective].hides_tokens:
                generator = torch_generator(self.config.seed, f"evaluation masks {name}", part)
                mask = mask_of(lengths_of(split, rows), self.config.mask_probability, generator)
            batch, hidden = take(split, rows, mask, self.ours.device)
            with self._precision():
                outcome = evaluate(self.model, batch, objective, hidden)
            loss, count = loss + outcome.loss.item(), count + outcome.count
            correct += 0.0 if outcome.correct is None else outcome.correct.item()
        loss, correct, count = self.ours.totals([loss, correct, count])
        data, count = self.task.data, max(count, 1)
        right_or_wrong = OBJECTIVES[objective].output == "labels" or data.inputs == "tokens" or data.levels
        return {f"{name}_loss": loss / count, f"{name}_accuracy": correct / count if right_or_wrong else None}

    def _data(self, objective: str) -> Task:
        """Return the sequences of a stage."""
        return self.task if objective == "labels" else self.pretraining

    @property
    def _evaluated_at_a_time(self) -> int:
        return min(512, max(1, EVALUATED_AT_A_TIME // self.task.data.n))

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.ours.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    def _diverged(self, why: str) -> UsageError:
        kept = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return UsageError(f"training stopped: {why}; {kept}")
