"""Many runs on one machine: worker processes of one thread each, under one progress bar.

A worker takes one run after the other. One that dies (killed, or out of memory) is replaced, and its run is handed out
again.
"""

import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError

Result = TypeVar("Result")
OnStep = Callable[[int], None]

TRIES = 3
"""How often a run is started whose process dies each time."""
TOLD_EVERY = 0.2
"""Seconds between two reports of the step that a run has reached."""


def run_all(
    work: Callable[[Path, TrainConfig, OnStep], Result],
    plan: Mapping[Path, TrainConfig],
    workers: int,
    lost: Callable[[Path, str], Result],
) -> dict[Path, Result]:
    """Return ``work(folder, config, on_step)`` for every run of the plan, ``workers`` at a time, in its order.

    ``work`` calls ``on_step`` with the number of every step; it is a function of a module, since processes are spawned.
    ``lost(folder, why)`` stands in for the result of a run whose process died `TRIES` times. The first exception of
    ``work`` is raised when the runs that are under way have ended; no others are started.
    """
    waiting, tries, results = deque(plan), Counter[Path](), dict[Path, Result]()
    reached = dict.fromkeys(plan, 0)
    failure: Exception | None = None
    idle: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    total = sum(config.steps for config in plan.values())
    with tqdm(total=total, unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        try:
            while waiting or busy:
                while waiting and len(busy) < workers:
                    worker = idle.pop() if idle else _Worker(work)
                    worker.take(waiting[0], plan[waiting[0]])
                    busy[worker.connection] = worker
                    tries[waiting.popleft()] += 1
                for ready in multiprocessing.connection.wait(list(busy), timeout=0.5):
                    worker = busy[ready]
                    what, value = worker.hear()
                    if what == "step":
                        reached[worker.folder] = value
                        continue
                    del busy[ready]
                    if what != "died":
                        idle.append(worker)
                    if what == "error":
                        failure = failure or value
                        waiting.clear()
                    elif what == "result":
                        results[worker.folder] = value
                        reached[worker.folder] = plan[worker.folder].steps
                    elif failure is None and tries[worker.folder] < TRIES:
                        waiting.append(worker.folder)
                    elif failure is None:
                        results[worker.folder] = lost(
                            worker.folder, f"its process died in {TRIES} of {TRIES} tries, {value}"
                        )
                bar.update(sum(reached.values()) - bar.n)
                bar.set_description(f"{len(results)} of {len(plan)} runs", refresh=False)
        finally:
            for worker in [*idle, *busy.values()]:
                worker.end()
    if failure is not None:
        raise failure
    return {folder: results[folder] for folder in plan}


class _Worker:
    """A worker process, as the one that started it sees it."""

    def __init__(self, work: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work))
        self.process.start()
        theirs.close()

    def take(self, folder: Path, config: TrainConfig) -> None:
        """Hand it a run."""
        self.folder = folder
        try:
            self.connection.send((folder, config))
        except OSError:
            pass  # it died while it was idle: the next word from it is that

    def hear(self) -> tuple[str, Any]:
        """Return what it says: ("step", number), ("result", ...), ("error", exception); or ("died", how)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"last by {signal.Signals(-code).name}" if code < 0 else f"last with exit status {code}"
            self.end()
            return "died", how

    def end(self) -> None:
        """Stop it: it leaves by itself when nobody listens, and is made to where it does not."""
        self.connection.close()
        self.process.join(2)
        self.process.terminate()
        self.process.join()


def _serve(connection: Any, work: Callable[..., Any]) -> None:
    """Do what comes over the connection until it closes: the life of a worker."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the one that started it, and it ends this
    torch.set_num_threads(1)
    told = 0.0

    def say(what: str, value: Any) -> None:
        try:
            connection.send((what, value))
        except OSError:  # nobody listens any more
            raise SystemExit(1) from None

    def on_step(step: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            say("step", step)
            told = time.monotonic()

    while True:
        try:
            folder, config = connection.recv()
        except (EOFError, OSError):
            return
        try:
            said = "result", work(folder, config, on_step)
        except UsageError as error:
            said = "error", error
        except Exception:
            said = "error", RuntimeError(traceback.format_exc())  # an exception of any kind may not be picklable
        say(*said)
