"""Parallel generation of data in numbered chunks, in an order independent of the number of threads."""

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
"""Arrays by name, all with the same number of rows."""


def in_order(make: Callable[[int], Chunk], threads: int | None = None) -> Iterator[Chunk]:
    """Yield ``make(0)``, ``make(1)``, ... indefinitely, computed by ``threads`` threads (None: one per core).

    Threads suffice because NumPy releases the GIL for large arrays. Unlike processes, they can be started anywhere: in
    a notebook, a script without a main guard or the worker of a sweep.
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
            for future in ahead:
                future.cancel()


def pour(create: Create, sizes: Mapping[str, int], columns: Mapping[str, Any], chunks: Iterator[Chunk]) -> None:
    """Create the arrays ``SPLIT_COLUMN`` and fill them with the rows of the chunks, split by split.

    ``columns`` maps each column to the shape of a row and the dtype. The chunks are closed when all splits are full.
    """
    with closing(chunks):  # pyright: ignore[reportArgumentType]
        chunk, used = next(chunks), 0
        for split, size in sizes.items():
            arrays = {
                name: create(f"{split}_{name}", (size, *shape), dtype) for name, (shape, dtype) in columns.items()
            }
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
