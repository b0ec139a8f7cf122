"""Training batches: which sequences a step trains on and which of their tokens are masked.

Rows and masks are functions of seed, stage and step. They are drawn for the whole batch before it is split into
micro-batches.
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
    """Rows and mask of a batch, drawn before its sequences are read."""

    rows: np.ndarray
    """Indices of the sequences in the split."""
    mask: Bool[Tensor, "batch token"] | None
    """Masked tokens, if the objective masks tokens."""
    count: int
    """Number of predictions that the loss averages over."""


def draw(config: TrainConfig, split: Split, objective: str, step: int) -> Drawn:
    """Draw the batch of a step (1, 2, ...) of a stage."""
    rows = batch_rows(config, len(split), objective, step)
    lengths, kind, mask = lengths_of(split, rows), OBJECTIVES[objective], None
    if kind.masks_tokens:
        mask = mask_of(lengths, config.mask_probability, torch_generator(config.seed, "masks", step))
    return Drawn(rows, mask, kind.count(lengths, mask))


def batch_rows(config: TrainConfig, size: int, stage: str, step: int) -> np.ndarray:
    """Return the rows, out of ``size`` training sequences, in the batch of a step (1, 2, ...) of a stage.

    Each epoch is a new permutation of the rows; a batch may span several epochs.
    """
    first = (step - 1) * config.batch_size
    epochs = range(first // size, (first + config.batch_size - 1) // size + 1)
    rows = np.concatenate([_permutation(config.seed, stage, epoch, size) for epoch in epochs])
    return rows[first - epochs[0] * size :][: config.batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, stage: str, epoch: int, size: int) -> np.ndarray:
    return numpy_generator(seed, f"order {stage}", epoch).permutation(size)


def lengths_of(split: Split, rows: np.ndarray) -> Int[Tensor, " batch"]:
    """Return the length of each sequence without padding."""
    if split.lengths is None:
        return torch.full((len(rows),), split.inputs.shape[1])
    return torch.from_numpy(split.lengths[rows]).long()


def mask_of(lengths: Int[Tensor, " batch"], share: float, generator: torch.Generator) -> Bool[Tensor, "batch token"]:
    """Draw a mask for sequences of these lengths: each token is masked with probability ``share``."""
    return draw_mask(torch.arange(int(lengths.max())) < lengths[:, None], share, generator)


def take(
    split: Split, rows: np.ndarray, mask: Bool[Tensor, "batch longest"] | None, device: torch.device
) -> tuple[Batch, Bool[Tensor, "batch token"] | None]:
    """Return rows of a split and their mask on the device, truncated to the longest of these sequences."""
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
    """Return the tensor on the device; copies to a GPU are asynchronous."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
