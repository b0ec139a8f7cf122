"""Sequences of different lengths, stored one after another and padded when they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ELEMENTS = 2**22
"""Numbers in a block of padded sequences."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences that read as an array [sequence, token] or [sequence, token, channel], padded with 0.

    Only the rows that are read are padded, so one long sequence costs its own tokens and not those of all others. The
    numbers may be memory-mapped. As with an array, ``sequences[rows, :length]`` returns an array; `select` returns
    `Sequences` without reading anything.
    """

    flat: np.ndarray
    """[token] or [token, channel]: the tokens of all sequences."""
    starts: np.ndarray
    """[sequence]: index of the first token."""
    lengths: np.ndarray
    """[sequence]: number of tokens, at most n."""
    n: int
    """Number of tokens to which sequences are padded."""

    @classmethod
    def of_array(cls, array: np.ndarray, lengths: np.ndarray | None = None) -> "Sequences":
        """Return the rows of an array [sequence, token, ...], up to their lengths."""
        count, n = array.shape[:2]
        lengths = np.full(count, n) if lengths is None else lengths
        return cls(array.reshape(count * n, *array.shape[2:]), np.arange(count) * n, lengths, n)

    @classmethod
    def of_rows(cls, rows: Sequence[np.ndarray]) -> "Sequences":
        """Return rows [token, ...] of different lengths as sequences."""
        return cls.of_flat(np.concatenate(rows), np.array([len(row) for row in rows]))

    @classmethod
    def of_flat(cls, flat: np.ndarray, lengths: np.ndarray) -> "Sequences":
        """Return sequences of these lengths that lie one after another."""
        return cls(flat, np.cumsum(lengths) - lengths, lengths, int(lengths.max()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the padded array."""
        return len(self.starts), self.n, *self.flat.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of axes of the padded array."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.flat.dtype

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.starts)

    def __getitem__(self, key: Any) -> Any:
        """Return rows of the padded array: ``sequences[rows]``, or ``sequences[rows, tokens]``."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        picked = np.arange(len(self))[rows]
        stop = rest[0].stop if rest and isinstance(rest[0], slice) else None
        width = self.n if stop is None or stop < 0 else int(min(stop, self.n))
        padded = self._padded(np.atleast_1d(picked), width)
        return padded[(slice(None), *rest) if picked.ndim else (0, *rest)]

    def _padded(self, rows: np.ndarray, width: int) -> np.ndarray:
        lengths, token = np.minimum(self.lengths[rows], width), np.arange(width)
        real = token < lengths[:, None]
        index = np.where(real, self.starts[rows][:, None] + token, 0)
        padded = self.flat[index]  # advanced indexing copies, also from a memory-mapped file
        padded[~real] = 0
        return padded

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the whole padded array."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def select(self, rows: Any) -> "Sequences":
        """Return some of the sequences."""
        return replace(self, starts=self.starts[rows], lengths=self.lengths[rows])

    def cut(self, n: int) -> "Sequences":
        """Return the first n tokens of each sequence, padded to the longest of them."""
        lengths = np.minimum(self.lengths, n)
        return replace(self, lengths=lengths, n=int(lengths.max(initial=0)))

    def mapped(self, table: np.ndarray) -> "Sequences":
        """Return the sequences with each id replaced by its entry in a table."""
        return replace(self, flat=table[self.flat])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the padded array in blocks of rows."""
        yield from (self[rows] for rows in self.block_rows())

    def block_rows(self) -> Iterator[slice]:
        """Yield consecutive rows whose padded array is small."""
        step = max(1, ELEMENTS // max(1, int(np.prod(self.shape[1:]))))
        yield from (slice(first, first + step) for first in range(0, len(self), step))

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the tokens of all sequences without padding, [token, ...], in chunks."""
        for rows in self.block_rows():
            yield self[rows][np.arange(self.n) < self.lengths[rows][:, None]]


def extremes(inputs: np.ndarray | Sequences) -> tuple[Any, Any]:
    """Return the smallest and the largest number in padded sequences; NaN if there is one."""
    blocks = inputs.blocks() if isinstance(inputs, Sequences) else (inputs,)
    smallest, largest = zip(*((block.min(), block.max()) for block in blocks), strict=True)
    return np.min(smallest), np.max(largest)


def concatenated(parts: Sequence[np.ndarray | Sequences]) -> np.ndarray | Sequences:
    """Return the sequences of several parts, one after another; nothing is copied if they share their numbers."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    ragged = [part if isinstance(part, Sequences) else Sequences.of_array(part) for part in parts]
    first, n = ragged[0], max(part.n for part in ragged)
    if all(part.flat is first.flat for part in ragged):
        starts, lengths = (np.concatenate([getattr(part, name) for part in ragged]) for name in ("starts", "lengths"))
        return replace(first, starts=starts, lengths=lengths, n=n)
    rows = [part[row, :length] for part in ragged for row, length in enumerate(part.lengths)]
    return replace(Sequences.of_rows(rows), n=n)
