"""Splits: labelled sequences of a task, as arrays."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Split:
    """Labelled sequences of one split."""

    inputs: np.ndarray
    """[sequence, token]: integer ids or real values."""
    labels: np.ndarray
    """[sequence]: 0 ... classes - 1."""
    lengths: np.ndarray | None = None
    """[sequence]: number of tokens before the padding; None if no sequence is padded."""
    levels: int = 0
    """If not 0, the inputs are level numbers 0 ... levels - 1, which represent evenly spaced values from -1 to 1."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.inputs)

    def tensor(self, rows: Any = slice(None), length: int | None = None) -> "torch.Tensor":
        """Return the inputs [batch, token] of selected sequences as a network input, truncated to ``length`` tokens."""
        import torch

        # Copies if necessary: torch warns about read-only arrays.
        inputs = torch.from_numpy(np.require(self.inputs[rows, :length], requirements="W"))
        if self.levels:
            return inputs.float() * (2 / (self.levels - 1)) - 1
        return inputs.float() if inputs.is_floating_point() else inputs.long()

    def __getitem__(self, rows: slice) -> "Split":
        """Return a slice of the sequences."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Split(self.inputs[rows], self.labels[rows], lengths, self.levels)
