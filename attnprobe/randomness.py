"""Random generators as a pure function of (seed, purpose, counters).

No generator state is carried from step to step. Step 700 of a run draws the same batch and masks whether the run was
uninterrupted, was resumed at step 699, or is one of two processes. Two arms with the same seed share data, initial
weights and batches, so seeds are paired by construction.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _sequence(seed: int, purpose: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *counters])


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return the NumPy generator of a seed, a purpose (one word) and counters (step, epoch, ...)."""
    return np.random.default_rng(_sequence(seed, purpose, counters))


def torch_generator(seed: int, purpose: str, *counters: int) -> "torch.Generator":
    """Return the CPU torch generator of a seed, a purpose (one word) and counters (step, epoch, ...)."""
    import torch

    state = _sequence(seed, purpose, counters).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # manual_seed accepts 63 bits
