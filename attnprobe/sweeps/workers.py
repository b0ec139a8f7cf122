"""Parallel runs on one machine: worker processes of one thread each, under one progress bar.

Each worker processes runs one after another. A worker that dies (killed or out of memory) is replaced, and its run is
retried. If the main process is interrupted or dies, the workers save the states of their runs and exit.
"""

import math
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attnprobe import progress
from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.interrupts import Interrupted, terminating

Result = TypeVar("Result")
OnStep = Callable[[int], None]

TRIES = 3
"""Maximum number of times a run is started if its process dies."""
TOLD_EVERY = 0.2
"""Seconds between two progress reports of a run."""


def run_all(
    work: Callable[[Path, TrainConfig, OnStep], Result],
    plan: Mapping[Path, TrainConfig],
    workers: int,
    lost: Callable[[Path, str], Result],
) -> dict[Path, Result]:
    """Call ``work(folder, config, on_step)`` for every run of the plan and return the results, in the plan's order.

    Args:
        work: Function that processes one run and calls ``on_step`` with the number of every step. It must be defined at
            module level, since processes are spawned.
        plan: Run folders and their configurations.
        workers: Maximum number of runs in parallel.
        lost: ``lost(folder, reason)`` returns the result of a run whose process died `TRIES` times.

    Raises:
        Exception: The first exception of ``work``, after the runs in progress have ended; no others are started.
        Interrupted: After SIGINT or SIGTERM, when the runs in progress have saved their states. A second signal does
            not wait for that.
    """
    waiting, tries, results = deque(plan), Counter[Path](), dict[Path, Result]()
    reached = dict.fromkeys(plan, 0)
    failure: Exception | None = None
    idle: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    total = sum(config.total_steps for config in plan.values())
    with progress.bar(total, f"0 of {len(plan)} runs", "step") as bar:
        try:
            while waiting or busy:
                while waiting and len(busy) < workers:
                    worker = idle.pop() if idle else _Worker(work)
                    worker.send(waiting[0], plan[waiting[0]])
                    busy[worker.connection] = worker
                    tries[waiting.popleft()] += 1
                for ready in multiprocessing.connection.wait(list(busy), timeout=0.5):
                    worker = busy[ready]
                    kind, value = worker.receive()
                    if kind == "step":
                        reached[worker.folder] = value
                        continue
                    del busy[ready]
                    if kind != "died":
                        idle.append(worker)
                    if kind == "error":
                        failure = failure or value
                        waiting.clear()
                    elif kind == "result":
                        results[worker.folder] = value
                        reached[worker.folder] = plan[worker.folder].steps
                    elif failure is None and tries[worker.folder] < TRIES:
                        waiting.append(worker.folder)
                    elif failure is None:
                        results[worker.folder] = lost(
                            worker.folder, f"its process died in {TRIES} of {TRIES} attempts, {value}"
                        )
                bar.update(sum(reached.values()) - bar.n)
                bar.set_description_str(f"{len(results)} of {len(plan)} runs", refresh=False)
        except KeyboardInterrupt as stop:
            for worker in [*idle, *busy.values()]:
                worker.leave()
            for worker in [*idle, *busy.values()]:
                worker.process.join()
            number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
            ended = f"{len(results)} of {len(plan)} runs have ended, those in progress are saved"
            raise Interrupted(number, f"interrupted: {ended}; repeat the command to continue") from None
        finally:
            for worker in [*idle, *busy.values()]:
                worker.stop()
    if failure is not None:
        raise failure
    return {folder: results[folder] for folder in plan}


class _Worker:
    """Handle of a worker process in the main process."""

    def __init__(self, work: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_end, work))
        self.process.start()
        worker_end.close()

    def send(self, folder: Path, config: TrainConfig) -> None:
        """Send a run to the worker."""
        self.folder = folder
        try:
            self.connection.send((folder, config))
        except OSError:
            pass  # the worker died while idle, which `receive` reports next

    def receive(self) -> tuple[str, Any]:
        """Return the next message: ("step", number), ("result", ...), ("error", exception) or ("died", cause)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            cause = f"last by {signal.Signals(-code).name}" if code < 0 else f"last with exit status {code}"
            self.stop()
            return "died", cause

    def leave(self) -> None:
        """Close the connection: the worker saves the state of its run and exits."""
        self.connection.close()

    def stop(self) -> None:
        """Stop the worker, which is killed if it does not leave at once."""
        self.leave()
        self.process.join(2)
        self.process.kill()
        self.process.join()


def _serve(connection: Any, work: Callable[..., Any]) -> None:
    """Process runs from the connection until it closes; main function of a worker."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process stops its workers
    torch.set_num_threads(1)
    try:
        with terminating():
            _serve_all(connection, work)
    except Interrupted as stop:
        raise SystemExit(stop.status) from None


def _serve_all(connection: Any, work: Callable[..., Any]) -> None:
    reported = 0.0

    def on_step(step: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > TOLD_EVERY:
            reported = time.monotonic()
            try:
                connection.send(("step", step))
            except OSError:  # the main process has closed the connection
                reported = math.inf
                signal.raise_signal(signal.SIGTERM)  # training saves its state before this takes effect

    while True:
        try:
            folder, config = connection.recv()
        except (EOFError, OSError):
            return
        try:
            message = "result", work(folder, config, on_step)
        except UsageError as error:
            message = "error", error
        except Exception:
            message = "error", RuntimeError(traceback.format_exc())  # other exceptions may not be picklable
        try:
            connection.send(message)
        except OSError:
            return
