"""Pattern and gradient statistics by the compiled loops of `attnprobe.statistics.kernels`, on the threads of torch.

They replace the torch operations on a CPU with numba (``pip install -e ".[fast]"``), for at least `SMALLEST` scores and
`SHORTEST` tokens. Which way is taken, and how the work is divided, depend on sizes alone, so that results are the same
on any number of threads.
"""

import functools
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from attnprobe.scores import Part, Scores
from attnprobe.statistics.blocks import FEWEST_QUERIES, Block, Group, group, matrices, rows_and_columns

SMALLEST = 2**20
"""Scores below which loading the compiled code is not worth its second."""
SHORTEST = 128
"""Tokens below which torch is as fast."""
BLOCK_BYTES = 2**20
"""Bytes of the scores of a block, about the size of a second-level cache: smaller blocks cost more calls."""
QUERIES = 256
"""Most queries of a block."""
SPAN = 1024
"""Queries of a task."""

T = TypeVar("T")


@functools.cache
def kernels() -> ModuleType | None:
    """Return the compiled loops, or None without numba."""
    if find_spec("numba") is None:
        return None
    try:
        from attnprobe.statistics import kernels
    except Exception as error:  # numba raises many types for an installation that does not fit
        warnings.warn(f"numba could not be used, so torch is: {error}", RuntimeWarning, stacklevel=2)
        return None
    return kernels


def kernels_for(scores: Scores) -> ModuleType | None:
    """Return the compiled loops if they are to be used for these scores, else None."""
    batch, heads, n = scores.shape
    width = n if scores.window is None else min(n, 2 * scores.window + 1)
    large = n >= SHORTEST and batch * heads * n * width >= SMALLEST
    return kernels() if large and scores.q.device.type == "cpu" else None


@dataclass(frozen=True)
class Task:
    """Matrices of a part, and the span of queries for which a thread computes their sums."""

    group: Group
    span: slice
    order: Tensor | None
    """Permutation that the kernels apply; None if there is none, or if queries and keys are permuted already."""

    def product(self, block: Block, left: Tensor, right: Tensor, memory: Tensor) -> Tensor:
        """Return the products of left and right for the pairs of a block, before any permutation by the kernels."""
        out = block.of(memory, self.group.size)
        moved = self.order is not None and not self.group.stays
        queries = self.group.sources(block) if moved else block.queries
        torch.bmm(left[:, queries], right[:, block.keys].mT, out=out)
        return out

    def moved(self, x: Tensor) -> Tensor:
        """Return values or output gradients in the sequence of the queries and keys."""
        order = self.group.scores.order
        return x if order is None or self.order is not None else x[:, order]

    @property
    def layout(self) -> tuple[Any, ...]:
        """Arguments of the kernels from ``rows`` to ``bias``."""
        geometry, bias = self.group.geometry, self.group.bias
        return (
            *rows_and_columns(geometry),
            geometry.causal,
            geometry.n if geometry.window is None else geometry.window,
            geometry.present.numpy() if geometry.absent else np.empty(0, bool),
            np.empty(0, np.int64) if self.order is None else self.order.numpy(),
            self.group.stays,
            np.empty((0, 0), self.group.q.numpy().dtype) if bias is None else bias.numpy(),
        )


def tasks(part: Part, unit: float = math.log(2)) -> Iterator[Callable[[], Task]]:
    """Yield functions that return the tasks of a part, so that each thread copies its own queries and keys.

    The queries and keys of short sequences are copied here. Scores are divided by ``unit``; weights are powers of 2 in
    the kernels of patterns and gradients.
    """
    n = part.scores.shape[2]
    size = n * part.scores.type.itemsize
    queries = min(n, QUERIES, max(FEWEST_QUERIES, BLOCK_BYTES // size))
    for sequences, heads in matrices(part.scores, BLOCK_BYTES // (queries * size)):
        make = functools.partial(_task, part, sequences, heads, queries, unit=unit)
        if n <= SPAN:  # a thread would wait for the interpreter longer than these copies take
            yield functools.partial(_given, make(span=slice(0, n)))
            continue
        for start in range(0, n, SPAN):
            yield functools.partial(make, span=slice(start, start + SPAN))


def _given(task: Task) -> Task:
    return task


def _task(part: Part, sequences: slice, heads: slice, queries: int, span: slice, unit: float) -> Task:
    of = group(part, sequences, heads, queries, unit)
    order = part.scores.order
    if order is None or of.stays or of.bias is not None:
        return Task(of, span, order)
    return Task(replace(of, q=of.q[:, order], k=of.k[:, order]), span, None)


def in_threads(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of tasks in their sequence, computed on as many threads as torch uses.

    At most twice as many results as threads exist at a time: each holds its queries and keys.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from (task() for task in tasks)
        return
    without_gradients = torch.no_grad()(lambda task: task())  # each thread has its own grad mode
    pending: deque[Future[T]] = deque()
    try:
        for task in tasks:
            if len(pending) == 2 * threads:
                yield pending.popleft().result()
            pending.append(_pool(threads).submit(without_gradients, task))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        torch.set_num_threads(threads)  # each worker set it to 1, for itself and for threads that start later


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return worker threads in which torch uses no further threads."""
    return ThreadPoolExecutor(threads, "attnprobe", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads
