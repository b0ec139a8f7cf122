"""Splits: labelled sequences of a task, as arrays."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attnprobe.tasks.sequences import Sequences, concatenated

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"
"""Split of sequences that only self-pretraining sees."""
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **dict.fromkeys(("val", "valid", "validate", "dev"), "validation"),
    **{"training": "train", "testing": "test"},
    **dict.fromkeys((UNLABELLED, "unsupervised"), UNLABELLED),
}
"""Accepted names of splits in files, folders and cells, and the names of the splits."""


@dataclass(frozen=True)
class Split:
    """Labelled sequences of one split."""

    inputs: np.ndarray | Sequences
    """[sequence, token]: integer ids or real values; or [sequence, token, channel]: real values."""
    labels: np.ndarray
    """[sequence]: 0 ... classes - 1; -1 for unlabelled sequences."""
    lengths: np.ndarray | None = None
    """[sequence]: number of tokens before the padding; None if no sequence is padded."""
    levels: int = 0
    """If not 0, the inputs are level numbers 0 ... levels - 1, which represent evenly spaced values from -1 to 1."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, which a network's inputs are relative to; empty for inputs as they are."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, in units of which a network's inputs are."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.inputs)

    def tensor(self, rows: Any = slice(None), length: int | None = None) -> "torch.Tensor":
        """Return the inputs [batch, token, ...] of selected sequences for a network, truncated to ``length`` tokens.

        Padding is 0.
        """
        import torch

        inputs = self.inputs[rows, :length]
        if self.mean:
            standardised = (inputs - np.array(self.mean).squeeze()) / np.array(self.std).squeeze()
            inputs = standardised.astype(np.float32)
            if self.lengths is not None:
                inputs[np.arange(inputs.shape[1]) >= self.lengths[rows][:, None]] = 0
        # Copies if necessary: torch warns about read-only arrays.
        tensor = torch.from_numpy(np.require(inputs, requirements="W"))
        if self.levels:
            return tensor.float() * (2 / (self.levels - 1)) - 1
        return tensor.float() if tensor.is_floating_point() else tensor.long()

    def __getitem__(self, rows: Any) -> "Split":
        """Return some of the sequences."""
        inputs = self.inputs.select(rows) if isinstance(self.inputs, Sequences) else self.inputs[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(self, inputs=inputs, labels=self.labels[rows], lengths=lengths)

    def joined(self, other: "Split") -> "Split":
        """Return the sequences of both splits."""
        lengths = None
        if self.lengths is not None or other.lengths is not None:
            widths = (np.full(len(s), s.inputs.shape[1]) if s.lengths is None else s.lengths for s in (self, other))
            lengths = np.concatenate(list(widths))
        labels = np.concatenate([self.labels, other.labels])
        return replace(self, inputs=concatenated([self.inputs, other.inputs]), labels=labels, lengths=lengths)
