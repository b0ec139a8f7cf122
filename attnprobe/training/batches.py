"""What a step of training sees: which sequences, which of their tokens are hidden, and both on the device.

Rows and masks are functions of seed, stage and step, and are drawn for the whole batch before it is cut into parts.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attnprobe.config import TrainConfig
from attnprobe.randomness import numpy_generator, torch_generator
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split
from attnprobe.training.objectives import Batch, draw_mask


@dataclass(frozen=True)
class Drawn:
    """A batch before its sequences are read."""

    rows: np.ndarray
    """Which sequences of the split."""
    mask: Bool[Tensor, "batch token"] | None
    """Which tokens are hidden, for *masked*."""
    count: int
    """Predictions that the loss is the mean over."""


def draw(config: TrainConfig, split: Split, objective: str, step: int) -> Drawn:
    """Return the batch of a step (1, 2, ...) of a stage."""
    rows = batch_rows(config, len(split), objective, step)
    lengths, kind, mask = lengths_of(split, rows), OBJECTIVES[objective], None
    if kind.hides_tokens:
        mask = mask_of(lengths, config.mask_probability, torch_generator(config.seed, "masks", step))
    return Drawn(rows, mask, kind.count(lengths, mask))


def batch_rows(config: TrainConfig, size: int, stage: str, step: int) -> np.ndarray:
    """Return which of ``size`` training sequences make up the batch of a step (1, 2, ...) of a stage.

    Each pass through the data is a fresh permutation; a batch may span two of them, or more.
    """
    first = (step - 1) * config.batch_size
    turns = range(first // size, (first + config.batch_size - 1) // size + 1)
    orders = np.concatenate([_order(config.seed, stage, turn, size) for turn in turns])
    return orders[first - turns[0] * size :][: config.batch_size]


@functools.lru_cache(maxsize=2)
def _order(seed: int, stage: str, turn: int, size: int) -> np.ndarray:
    return numpy_generator(seed, f"order {stage}", turn).permutation(size)


def lengths_of(split: Split, rows: np.ndarray) -> Int[Tensor, " batch"]:
    """Return how many tokens of some sequences are not padding."""
    if split.lengths is None:
        return torch.full((len(rows),), split.inputs.shape[1])
    return torch.from_numpy(split.lengths[rows]).long()


def mask_of(lengths: Int[Tensor, " batch"], share: float, generator: torch.Generator) -> Bool[Tensor, "batch token"]:
    """Return which tokens of sequences of some lengths to hide."""
    return draw_mask(torch.arange(int(lengths.max())) < lengths[:, None], share, generator)


def take(
    split: Split, rows: np.ndarray, mask: Bool[Tensor, "batch longest"] | None, device: torch.device
) -> tuple[Batch, Bool[Tensor, "batch token"] | None]:
    """Return sequences and which of their tokens are hidden, on the device, no longer than the longest of them."""
    lengths = None if split.lengths is None else lengths_of(split, rows)
    longest = split.inputs.shape[1] if lengths is None else int(lengths.max())
    labels = torch.from_numpy(split.labels[rows]).long()
    batch = Batch(
        _move(split.tensor(rows, longest), device),
        _move(labels, device),
        None if lengths is None else _move(lengths, device),
    )
    return batch, None if mask is None else _move(mask[:, :longest].contiguous(), device)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; a GPU fetches it while the processor goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
