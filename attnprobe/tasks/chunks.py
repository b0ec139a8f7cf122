"""Generated data in numbered chunks, several at a time, in an order that does not depend on how many that are."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from attnprobe.tasks.folder import Create

Chunk = Mapping[str, np.ndarray]
"""Arrays of as many rows, by name."""


def in_order(make: Callable[[int], Chunk], threads: int | None = None) -> Iterator[Chunk]:
    """Yield ``make(0)``, ``make(1)`` and so on without end, made by some threads (None: one for each core).

    Threads, because NumPy lets go of the interpreter's lock while it works on large arrays, and because they can be
    started from anywhere: a notebook, a script without a main guard, the worker of a sweep.
    """
    threads = threads or _cores()
    if threads == 1:
        yield from map(make, itertools.count())
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(make, chunk) for chunk in range(threads + 1))
        try:
            for chunk in itertools.count(threads + 1):
                yield ahead.popleft().result()
                ahead.append(pool.submit(make, chunk))
        finally:
            for one in ahead:
                one.cancel()


def pour(create: Create, sizes: Mapping[str, int], columns: Mapping[str, Any], chunks: Iterator[Chunk]) -> None:
    """Create the arrays ``SPLIT_COLUMN`` and fill them with the rows of the chunks, one split after the other.

    ``columns`` gives the shape of a row and the type of each column. The chunks are closed when every split is full.
    """
    with closing(chunks):  # pyright: ignore[reportArgumentType]
        chunk, used = next(chunks), 0
        for split, size in sizes.items():
            arrays = {name: create(f"{split}_{name}", (size, *shape), kind) for name, (shape, kind) in columns.items()}
            filled = 0
            while filled < size:
                rows = len(next(iter(chunk.values())))
                if used == rows:
                    chunk, used = next(chunks), 0
                    continue
                taken = min(size - filled, rows - used)
                for name, array in arrays.items():
                    array[filled : filled + taken] = chunk[name][used : used + taken]
                filled, used = filled + taken, used + taken


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
