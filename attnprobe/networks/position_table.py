"""Position vectors that a PyTorch model adds to its inputs, and their part in the first layer's queries and keys.

With the scales of all layer norms frozen, the first layer's queries and keys are affine functions of the position
vectors. The position part is then the difference from the same queries (keys) with every vector replaced by the mean
over positions. `find_table` accepts a table only if this map is affine, which excludes norms that it does not know.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnprobe.scores import Scores

NAME = re.compile(r"(^|[._])(wpe|pos|positions?|positional)([._]|$)|pos(ition|itional)?_embed")
"""Names of parameters and buffers that may hold position vectors."""
AFFINE = 1e-3
"""Largest deviation from an affine map, relative to the largest position part."""

Run = Callable[[Mapping[str, Tensor]], Scores]
"""Runs the model up to its first measured attention call, with some of its tensors replaced, and returns its scores."""


@dataclass(frozen=True)
class PositionTable:
    """Position vectors of a model."""

    name: str
    """Name of the parameter or buffer."""
    rows: Tensor
    """[token]: row of each measured position."""

    def scaled(self, values: Tensor, factor: float) -> Tensor:
        """Return the table with the deviations from the mean over measured positions multiplied by a factor."""
        values = values.detach().clone()
        table = values[0] if values.ndim == 3 else values
        mean = table[self.rows].mean(0, keepdim=True)
        table[self.rows] = mean + factor * (table[self.rows] - mean)
        return values


def position_parts(model: nn.Module, run: Run, table: PositionTable, factor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the difference of queries and of keys, [batch, head, token, d_head], from those with a scaled table."""
    norms: list[Tensor] = []
    with _Norms(norms, frozen=False):
        scores = run({})
    with _Norms(norms, frozen=True):
        other = run({table.name: table.scaled(_tensors(model)[table.name], factor)})
    return scores.q - other.q, scores.k - other.k


def find_table(model: nn.Module, run: Run, tokens: slice, n: int, d_model: int) -> PositionTable | None:
    """Return the position table that a model adds to its inputs, or None.

    Args:
        model: The model.
        run: Runs it on sequences of n tokens.
        tokens: The measured tokens.
        n: Number of tokens, including those that are not measured.
        d_model: Width of the model.
    """
    for name, x in _tensors(model).items():
        if not (NAME.search(name) and _may_be_table(model, name, x, n, d_model)):
            continue
        lookups = _Lookups(x)
        with lookups:
            run({})
        rows = lookups.rows if lookups.rows is not None else torch.arange(n, device=x.device)
        if rows.shape[-1] != n or not bool((rows.reshape(-1, n) == rows.reshape(-1, n)[0]).all()):
            continue
        table = PositionTable(name, rows.reshape(-1, n)[0, tokens])
        if not _moves_its_tokens(model, run, table):
            continue
        removed, doubled = (position_parts(model, run, table, factor) for factor in (0.0, 2.0))
        largest = max(float(part.abs().max()) for part in removed)
        deviation = max(float((one + two).abs().max()) for one, two in zip(removed, doubled, strict=True))
        if 0 < largest and deviation <= AFFINE * largest:
            return table
    return None


def _moves_its_tokens(model: nn.Module, run: Run, table: PositionTable) -> bool:
    """Return whether each row of a table is the vector of its token, and of no other one.

    It is not if the model interpolates the table, reads it with a shift, or adds several tables.
    """
    rows = table.rows
    if len(rows.unique()) < len(rows):
        return False
    some = torch.rand(len(rows), generator=torch.Generator().manual_seed(0)) < 0.5
    values = _tensors(model)[table.name].detach().clone()
    vectors = values[0] if values.ndim == 3 else values
    moved = rows[some.to(rows.device)]
    vectors[moved] += vectors.std() + 1
    vectors[moved, 0] += vectors.std() + 1
    scores, other = run({}), run({table.name: values})
    change = torch.stack([x - y for x, y in ((scores.q, other.q), (scores.k, other.k))]).abs().amax((0, 1, 2, 4))
    return torch.equal(change.cpu() > AFFINE * float(change.max()), some)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _may_be_table(model: nn.Module, name: str, x: Tensor, n: int, d_model: int) -> bool:
    """Return whether a tensor has the shape of a position table and is no map (the weight of a linear layer)."""
    owner = model.get_submodule(name.rpartition(".")[0])
    is_embedding = isinstance(owner, nn.Embedding)
    is_map = type(owner).__module__.startswith("torch.nn") and not is_embedding
    has_rows = x.ndim == 2 or (x.ndim == 3 and len(x) == 1)
    if is_map or not has_rows or not x.is_floating_point() or x.shape[-2] < n:
        return False
    return x.shape[-1] == d_model or is_embedding


class _Lookups(TorchFunctionMode):
    """Records the rows of a table that an embedding reads."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the indices of lookups in the table; run all functions."""
        if func is F.embedding and args[1].data_ptr() == self.table.data_ptr():
            self.rows = args[0]
        return func(*args, **(kwargs or {}))


class _Norms(TorchFunctionMode):
    """Records the scales of layer norms, or applies recorded scales in the same order."""

    def __init__(self, scales: list[Tensor], frozen: bool) -> None:
        super().__init__()
        self.scales, self.frozen, self.turn = scales, frozen, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept layer norms over the last axis; run all other functions."""
        if func is not F.layer_norm or len(args[1]) != 1:
            return func(*args, **(kwargs or {}))
        return self._layer_norm(*args, **(kwargs or {}))

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        centred = input - input.mean(-1, keepdim=True)
        if not self.frozen:
            self.scales.append((centred.square().mean(-1, keepdim=True) + eps).rsqrt())
            return F.layer_norm(input, normalized_shape, weight, bias, eps)
        output = centred * self.scales[self.turn]
        self.turn += 1
        output = output if weight is None else output * weight
        return output if bias is None else output + bias
