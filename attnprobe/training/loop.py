"""Training loop: both recipes on one step axis.

The *supervised* recipe trains on the labels for ``steps`` steps. The *spt* recipe uses the first ``pretrain_steps`` of
these steps for self-pretraining (SPT) on the same training sequences without their labels. Each stage has its own
optimiser, warm-up and schedule. Every batch and mask is a function of seed, stage and step. The loss of a step is the
mean over all predictions of its batch, so it does not depend on the number of processes or micro-batches.

A finished run can be made longer by new stages (``more_steps``), which continue the last objective with its optimiser
and its order of batches, and have their own warm-up and schedule.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from attnprobe import tasks
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError, listed, shown
from attnprobe.interrupts import Signals
from attnprobe.model.parts import select, transfer
from attnprobe.model.transformer import Transformer
from attnprobe.progress import Bar, bar
from attnprobe.randomness import torch_generator
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split, Task
from attnprobe.training.batches import draw, lengths_of, mask_of, take
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.evaluation import Evaluation, evaluated_rows
from attnprobe.training.metrics import best, sealed
from attnprobe.training.objectives import balanced_weights, evaluate, predict
from attnprobe.training.processes import Processes, processes
from attnprobe.training.rank import is_main_process
from attnprobe.training.run import Run
from attnprobe.training.trackers import check, trackers

EVALUATED_AT_A_TIME = 2**17
"""Tokens per evaluation batch."""
SAVED_EVERY = 120.0
"""Seconds between saves of the latest state, in addition to the save at every evaluation."""
Why = Literal["time", "signal"]
"""Why training stopped before its last step."""


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

    Under ``accelerate launch`` or ``torchrun``, each batch is split over the processes and rank 0 writes the files.

    SIGINT (Ctrl-C) and SIGTERM end the current step and save the state before they take effect; a second signal takes
    effect at once. Signals that the calling program handles itself are left to it.

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
            run, if the loss is not finite, or if a file cannot be written. In the last two cases the folder keeps all
            checkpoints saved so far.
        KeyboardInterrupt: After SIGINT, with the state saved; `resume` continues.
    """
    if not isinstance(config, TrainConfig):
        raise UsageError(f"{shown(config)}: must be the settings of a run, as attnprobe.configure(TASK) returns them")
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
    more_steps: int | None = None,
) -> Run:
    """Resume an interrupted run from its latest state, or make a finished one longer, and return it.

    On the same device and with one thread, the result is bit-identical to that of an uninterrupted run. Without
    ``more_steps``, a finished run is returned unchanged.

    Args:
        folder: Run folder.
        device: Device to continue on; the run's own by default.
        progress: As in `train`.
        on_step: As in `train`.
        log: As in `train`.
        minutes: As in `train`.
        more_steps: Steps to add to a finished run: a new stage with its own warm-up and schedule, which continues the
            last objective with the weights, the state of the optimiser and further batches. The settings of the run
            record it (``more_steps``); evaluations keep their spacing.

    Raises:
        UsageError: If the folder holds no run or the task no longer generates the same data, or if steps are added to a
            run that has not finished or that patience ended; otherwise as in `train`.
    """
    run = Run(Path(folder))
    if not run.exists:
        raise UsageError(f"{run.folder}: holds no run (config.json: no such file)")
    is_finished = run.repaired()
    if is_finished and more_steps is None:
        run.latest_path.unlink(missing_ok=True)
        return run
    with run.held() if is_main_process() else contextlib.nullcontext():
        state = run.latest
        config = run.settings(state)
        if state is not None:
            _refuse_changes(run, config, state)
        if more_steps is not None:
            config = _longer(run, config, is_finished, more_steps)
        here = config if device is None else dataclasses.replace(config, device=device)
        try:
            training = _prepare(here, run, on_step, log, state)
        except UsageError as error:
            raise UsageError(f"{run.folder}: cannot be continued: {error}") from error
        if state is not None and state.fingerprint != training.task.fingerprint:
            fingerprints = f"fingerprint {training.task.fingerprint}, expected {state.fingerprint}"
            raise UsageError(
                f"{run.folder}: task {training.task.name} no longer generates this run's data ({fingerprints})"
            )
        training.world.wait()  # until every process has read the files
        if training.world.writes and (run.finished_path.exists() or not run.has_settings):
            with training.writing(run.folder / "config.json"):
                run.reopen(config, state)
        training.fit(state, progress, log, minutes)
    return run


def _longer(run: Run, config: TrainConfig, is_finished: bool, more_steps: int) -> TrainConfig:
    """Return the settings of a finished run with an additional stage."""
    ended = run.finished if is_finished else None
    if ended is None:
        raise UsageError(
            f"{run.folder}: has not finished, so no steps can be added; first continue it with --resume {run.folder}"
        )
    if ended["why"] != "all steps":
        raise UsageError(
            f"{run.folder}: ended by patience={config.patience} at step {ended['step']} of {config.total_steps}, so no "
            "steps can be added; train a new run with a larger patience"
        )
    return dataclasses.replace(config, more_steps=(*config.more_steps, more_steps))


def _refuse_changes(run: Run, config: TrainConfig, state: Checkpoint) -> None:
    """Raise `UsageError` if config.json no longer holds the settings that the run was trained with.

    The device may change, and steps may have been added, to a finished run. A state without metrics is none of a run.
    """
    if not state.metrics:
        raise UsageError(f"{state.path}: holds no metrics, so the run cannot be continued from it; delete this file")
    now, before = _plain(config), _plain(state.config)
    changed = [f"{name}={now[name]!r} instead of {before[name]!r}" for name in now if now[name] != before[name]]
    steps = state.config.more_steps
    if config.more_steps[: len(steps)] != steps:
        changed.append(f"more_steps={list(config.more_steps)} instead of {list(steps)}")
    if changed:
        raise UsageError(
            f"{run.folder / 'config.json'}: changed since the run was trained: {listed(changed)}; settings of a run "
            f"stay the same: undo this, or train a new run with --init-from {state.path}"
        )


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that stay the same during a run, as in a JSON file and flat."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    del plain["device"], plain["more_steps"]
    return {**plain.pop("model"), **plain}


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
    task = tasks.build(config, None if state is None else state.data)
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


def evaluation_steps(config: TrainConfig) -> set[int]:
    """Return the steps of the evenly spaced evaluations; those of added steps have about the same spacing."""
    steps, begin = {round(step) for step in np.linspace(0, config.steps, config.evaluations + 1)}, config.steps
    for length in config.more_steps:
        count = max(1, round(config.evaluations * length / config.steps))
        steps |= {begin + round(step) for step in np.linspace(0, length, count + 1)}
        begin += length
    return steps


@dataclass(frozen=True)
class Stage:
    """A stage of training on one objective, from step ``begin`` + 1 to step ``end``."""

    objective: str
    begin: int
    end: int
    seen: int
    """Steps of earlier stages with this objective, which the stage continues: their batches are not repeated."""

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.end - self.begin


def stages(config: TrainConfig) -> list[Stage]:
    """Return the stages of a run."""
    found: list[Stage] = []
    for objective, length in config.stages:
        begin = found[-1].end if found else 0
        seen = sum(stage.length for stage in found if stage.objective == objective)
        found.append(Stage(objective, begin, begin + length, seen))
    return found


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
        with_unlabelled = task.for_pretraining
        shuffled = config.pretrain_order == "shuffled"
        self.pretraining = with_unlabelled.shuffled(config.seed) if shuffled else with_unlabelled
        self.parameters = [weight for name, weight in model.named_parameters() if name not in frozen]
        for name, weight in model.named_parameters():
            weight.requires_grad_(name not in frozen)
        self.title = f"{tasks.short_name(config.task)} {config.recipe}"
        self.metrics: list[dict[str, Any]] = []
        self.last_saved: Path | None = None
        self.saved_step = 0
        self.saved_at = time.monotonic()
        self.pending_loss: tuple[int, str, torch.Tensor] | None = None
        self.signals = Signals()
        self.wishes: list[torch.Tensor] = []
        """Number of processes that wanted to stop because of the time and of a signal, at the last two steps."""
        self.stages = stages(config)
        self.checkpoint_steps = set(checkpoint_steps(config))
        self.scheduled = evaluation_steps(config)
        self.evaluation_steps = self.scheduled | self.checkpoint_steps
        self.ends = {config.total_steps - sum(config.more_steps[index:]) for index in range(len(config.more_steps) + 1)}
        """Steps at which the run ends, or ended before steps were added."""
        balanced = config.class_weights == "balanced"
        weights = balanced_weights(task.train.labels, task.data.classes) if balanced else None
        self.class_weights = None if weights is None else weights.to(world.device)

    def fit(self, state: Checkpoint | None, progress: bool, log: Sequence[str], minutes: float | None) -> None:
        """Train from a state, or from initialisation, until the last step, the time limit or a signal."""
        config, writes = self.config, self.world.writes
        settings = self.run.content if writes else None
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        if state is not None:
            self.model.load_state_dict(state.weights)
            self.metrics, self.last_saved = state.metrics, state.path
        if writes:
            # Rows logged after the state, or before the first one, will be logged again.
            kept = {*self.checkpoint_steps, self._best_step(), 0 if state is None else state.step}
            with self.writing(self.run.metrics_path):
                self.run.rewind(self.metrics, kept)
        if config.compile:
            self.model.residual = torch.compile(self.model.residual)
        done = 0 if state is None else state.step
        self.bar: Bar = bar(config.total_steps, self.title, "step", shown=progress and writes, initial=done)
        with self.signals:
            with self.bar, trackers(log if writes else (), self.run.folder, config) as self.trackers:
                why = self._train_stages(state, done)
            if writes and why is None:
                why_ended = "patience" if self._out_of_patience(self.metrics) else "all steps"
                ended = {"step": self.metrics[-1]["step"], "why": why_ended, "best_step": self._best_step()}
                with self.writing(self.run.finished_path):
                    self.run.finish(sealed({**ended, "rows": len(self.metrics)}, settings, self.metrics))
            self.world.wait()  # launchers end all processes as soon as one ends
        if why == "signal":
            reason = f"{self.run.folder}: interrupted after step {self.saved_step}, which is saved"
            self.signals.deliver(f"{reason}; continue with attnprobe train --resume {self.run.folder}")
        if self.signals.received is not None:
            self.signals.deliver(f"{self.run.folder}: interrupted after its last step; the run is finished")

    def _train_stages(self, state: Checkpoint | None, step: int) -> Why | None:
        """Train all remaining steps; if stopped before the last one, save the state and return why."""
        optimiser = None
        for stage in self.stages:
            if optimiser is None or not stage.seen:
                optimiser = torch.optim.AdamW(self.parameters, weight_decay=self.config.weight_decay, fused=True)
            if state is None and stage.begin == 0:
                self._evaluate_and_checkpoint(0, stage.objective, optimiser)
            elif state is not None and stage.begin + (not stage.seen) <= state.step < stage.end:
                optimiser.load_state_dict(state.optimiser)
            self.model.train()
            while step < stage.end and not self._out_of_patience(self.metrics):
                step += 1
                self._step(step, stage, optimiser)
                self._evaluate_and_checkpoint(step, stage.objective, optimiser)
                self.bar.update()
                if self.on_step is not None:
                    self.on_step(step)
                if step < self.config.total_steps and (why := self._stopped()) is not None:
                    self._check_loss()
                    if self.world.writes:
                        self._save(self.run.latest_path, step, stage.objective, optimiser)
                    return why
        return None

    def _wish(self) -> list[float]:
        """Return whether this process is out of time, and whether it has received a signal, as 0 or 1."""
        return [float(time.monotonic() > self.deadline), float(self.signals.received is not None)]

    def _stopped(self) -> Why | None:
        """Return why any process wants to stop, so that all stop at the same step.

        Several processes read the wishes that they summed at the step before, so that a GPU is not kept waiting.
        """
        if self.world.count == 1:
            out_of_time, signalled = self._wish()
        else:
            out_of_time, signalled = self.wishes[0].tolist() if len(self.wishes) == 2 else (0.0, 0.0)
        return "signal" if signalled else "time" if out_of_time else None

    def _step(self, step: int, stage: Stage, optimiser: torch.optim.AdamW) -> None:
        config, objective, stage_step = self.config, stage.objective, step - stage.begin
        split, weights = self._stage_data(objective).train, self.class_weights if objective == "labels" else None
        peak = (
            config.learning_rate if objective == "labels" else (config.pretrain_learning_rate or config.learning_rate)
        )
        factor = rate_factor(stage_step, stage.length, config.warmup_steps, config.schedule)
        optimiser.param_groups[0]["lr"] = peak * factor
        drawn = draw(config, split, objective, stage.seen + stage_step)
        optimiser.zero_grad()
        total_loss = torch.zeros((), device=self.world.device)
        micro_batches = np.array_split(
            np.arange(len(drawn.rows)), config.gradient_accumulation_steps * self.world.count
        )
        for number in range(self.world.rank, len(micro_batches), self.world.count):
            if len(indices := micro_batches[number]):
                mask = None if drawn.mask is None else drawn.mask[indices]
                batch, batch_mask = take(split, drawn.rows[indices], mask, self.world.device)
                with self._autocast(), self._dropout(step, number):
                    loss = evaluate(self.model, batch, objective, batch_mask, weights).loss / max(drawn.count, 1)
                loss.backward()
                total_loss += loss.detach()
        self._all_reduce(total_loss)
        self._check_loss()
        self.pending_loss = step, objective, total_loss
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        optimiser.step()

    def _all_reduce(self, loss: torch.Tensor) -> None:
        """Sum loss, wishes to stop and gradients over the processes."""
        if self.world.count > 1:
            used = [weight for weight in self.parameters if weight.grad is not None]
            self.wishes = [*self.wishes[-1:], torch.tensor(self._wish(), device=self.world.device)]
            self.world.add_up([loss, self.wishes[-1], *(weight.grad for weight in used if weight.grad is not None)])

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
            row.update(self._evaluate(name, split, objective, self._is_whole(name, row)))
        for name in self.task.splits:
            if not math.isfinite(row[f"{name}_loss"] or 0.0):
                raise self._divergence_error(f"the {name} loss is {row[f'{name}_loss']} at step {step} ({objective})")
        best_before = self._best_step()
        self.metrics.append(row)
        accuracies = (f"{name}_accuracy" for name in self.task.splits)
        shown = {name: f"{row[name]:.3f}" for name in accuracies if row[name] is not None}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.note(f"{self.title}: {objective}")
        if self.world.writes:
            with self.writing(self.run.metrics_path):
                self.run.log(row)
            with self.writing(self.run.folder):
                for tracker in self.trackers:
                    scalars = {name: value for name, value in row.items() if isinstance(value, int | float | str)}
                    tracker.log(scalars, step=step)
            self._checkpoint(step, objective, optimiser, best_before)
        self.model.train()

    def _checkpoint(self, step: int, objective: str, optimiser: torch.optim.AdamW, best_before: int | None) -> None:
        """Save a checkpoint if scheduled, at the end or at the lowest validation loss so far; else the latest state."""
        lowest = self._best_step()
        is_best = self.config.patience and lowest == step
        if step in self.checkpoint_steps or is_best or self._out_of_patience(self.metrics):
            self._save(self.run.path_of(step), step, objective, optimiser)
        else:
            self._save(self.run.latest_path, step, objective, optimiser)
        if self.config.patience and best_before not in {None, lowest, *self.checkpoint_steps}:
            self.run.path_of(cast(int, best_before)).unlink(missing_ok=True)

    def _best_step(self) -> int | None:
        """Return the step of the lowest validation loss on the labels; None without a validation split."""
        row = best(self.metrics)
        return None if row is None else row["step"]

    def _out_of_patience(self, metrics: list[dict[str, Any]]) -> bool:
        lowest = best(metrics) if self.config.patience else None
        if lowest is None:
            return False
        # Evaluations during warm-up, and unscheduled ones at checkpoints, do not count.
        stage = next(stage for stage in self.stages if metrics[-1]["step"] <= stage.end)
        since = max(lowest["step"], stage.begin + min(self.config.warmup_steps, stage.length // 2))
        return sum(row["step"] > since and row["step"] in self.scheduled for row in metrics) >= self.config.patience

    def _save(self, path: Path, step: int, objective: str, optimiser: torch.optim.AdamW) -> None:
        weights = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}
        bad = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if bad:
            raise self._divergence_error(f"{bad[0]} holds NaN or infinite weights at step {step} ({objective})")
        checkpoint = Checkpoint(
            config=self.config,
            data=self.task.data,
            weights=weights,
            optimiser=optimiser.state_dict(),
            step=step,
            objective=objective,
            metrics=self.metrics,
            fingerprint=self.task.fingerprint,
        )
        with self.writing(path):
            checkpoint.save(path)
        self.last_saved, self.saved_step, self.saved_at = path, step, time.monotonic()

    def _is_whole(self, name: str, row: dict[str, Any]) -> bool:
        """Return whether the whole of a split is evaluated in spite of ``eval_size``, given the splits before it.

        This is so at the end of the run. With patience, validation losses are always of the same sequences.
        """
        if name == "validation" and self.config.patience:
            return False
        return row["step"] in self.ends or (name == "test" and self._out_of_patience([*self.metrics, row]))

    @torch.no_grad()
    def _evaluate(self, name: str, split: Split, objective: str, whole: bool) -> dict[str, Any]:
        selected = evaluated_rows(self.config, name, len(split), whole)
        batches = np.split(selected, range(0, len(selected), self._evaluation_batch_size)[1:])
        evaluation = Evaluation(self.task.data, objective)
        for index in range(self.world.rank, len(batches), self.world.count):
            rows, mask = batches[index], None
            if OBJECTIVES[objective].masks_tokens:
                generator = torch_generator(self.config.seed, f"evaluation masks {name}", index)
                mask = mask_of(lengths_of(split, rows), self.config.mask_probability, generator)
            batch, batch_mask = take(split, rows, mask, self.world.device)
            self.bar.note(f"{self.title}: {objective}, evaluating {name} {index + 1}/{len(batches)}")
            with self._autocast():
                evaluation.add(predict(self.model, batch, objective, batch_mask), batch.labels)
        evaluation.sums = np.array(self.world.totals(evaluation.sums.tolist()))
        count = {f"{name}_sequences": len(selected)} if self.config.eval_size else {}
        return {**evaluation.entries(name), **count}

    def _stage_data(self, objective: str) -> Task:
        """Return the task whose sequences a stage trains on."""
        return self.task if objective == "labels" else self.pretraining

    @property
    def _evaluation_batch_size(self) -> int:
        return min(512, max(1, EVALUATED_AT_A_TIME // self.task.data.n))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    @contextlib.contextmanager
    def _dropout(self, *counters: int) -> Iterator[None]:
        """Draw dropout as a function of seed and counters, and leave torch's own generators as they were."""
        if self.config.model.dropout == 0:
            yield
            return
        with torch.random.fork_rng([self.world.device] if self.world.device.type == "cuda" else []):
            torch.manual_seed(torch_generator(self.config.seed, "dropout", *counters).initial_seed())
            yield

    def _divergence_error(self, reason: str) -> UsageError:
        return UsageError(f"training stopped: {reason}; {self._last_good}")

    @property
    def _last_good(self) -> str:
        """What is left of the run, for messages."""
        is_there = self.last_saved is not None and self.last_saved.exists()
        return f"the last good checkpoint is {self.last_saved}" if is_there else "no checkpoint was saved"

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turn a failure to write a file into a `UsageError` that says how to go on."""
        try:
            yield
        except OSError as error:
            reason = f"training stopped: {path}: cannot be written ({error.strerror or error})"
            advice = f"{self._last_good}; continue with attnprobe train --resume {self.run.folder}"
            if not self.run.exists:
                advice = "the run folder is gone; train again"
            raise UsageError(f"{reason}; {advice}") from error
