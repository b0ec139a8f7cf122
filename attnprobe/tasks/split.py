"""Sequences with their labels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Split:
    """Sequences with their labels."""

    inputs: np.ndarray
    """[sequence, token]: integer ids or real values."""
    labels: np.ndarray
    """[sequence]: 0 ... classes - 1."""
    lengths: np.ndarray | None = None
    """[sequence]: tokens that are not padding, where they differ."""
    levels: int = 0
    """Where not 0, the inputs hold level numbers 0 ... levels - 1, which stand for the values from -1 to 1."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.inputs)

    def tensor(self, rows: Any = slice(None), length: int | None = None) -> "torch.Tensor":
        """Return the inputs [batch, token] of some sequences as a network takes them, up to a length."""
        import torch

        inputs = torch.from_numpy(np.require(self.inputs[rows, :length], requirements="W"))  # torch wants writable ones
        if self.levels:
            return inputs.float() * (2 / (self.levels - 1)) - 1
        return inputs.float() if inputs.is_floating_point() else inputs.long()

    def __getitem__(self, rows: slice) -> "Split":
        """Return some of the sequences."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Split(self.inputs[rows], self.labels[rows], lengths, self.levels)
