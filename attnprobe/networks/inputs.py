"""Inputs of a PyTorch model as rows of tensors, from ids, texts, images or dictionaries, and their special tokens."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.errors import UsageError, listed

SHARED = 4
"""Number of rows from which a first or last id that all rows share is suspected to be special."""


@dataclass(frozen=True)
class Rows:
    """Inputs of a model: tensors whose first axis is the row."""

    tensors: dict[str, Tensor]
    positional: bool
    """Whether the single tensor is the positional argument of the model."""
    lengths: np.ndarray | None
    """Number of tokens of each row before its padding, if an attention mask says so; rows are cropped to it."""
    padded: tuple[str, ...] = ()
    """Tensors that have a token axis, and are cropped."""
    reference: int = 0
    """Number of rows at the end that serve as reference data."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tensors.values())))

    def select(self, rows: Tensor, length: int | None = None) -> dict[str, Tensor]:
        """Return the inputs of some rows of the same length."""
        return {
            name: x[rows.to(x.device)][:, :length] if name in self.padded else x[rows.to(x.device)]
            for name, x in self.tensors.items()
        }


def rows_of(model: nn.Module, inputs: Any, tokenizer: Any, processor: Any) -> Rows:
    """Return inputs as tensors by name."""
    if processor is not None and not isinstance(inputs, Tensor | Mapping):
        inputs = processor(images=inputs, return_tensors="pt")
    elif (texts := _texts(inputs)) is not None:
        if tokenizer is None:
            raise UsageError("inputs are texts: ap.network(model, texts, tokenizer=...), or pass token ids")
        if not hasattr(tokenizer, "pad_token_id"):
            raise UsageError(
                f"tokenizer={tokenizer!r}: must be a tokenizer, such as AutoTokenizer.from_pretrained(...)"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        limit = min(
            tokenizer.model_max_length, getattr(getattr(model, "config", None), "max_position_embeddings", 10**6)
        )
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", truncation=True, max_length=limit
        )
    if isinstance(inputs, Mapping):
        tensors = {str(name): _tensor(x, str(name)) for name, x in inputs.items()}
        positional = False
    else:
        x = _tensor(inputs, "inputs")
        main = getattr(model, "main_input_name", None)
        tensors, positional = {main or "inputs": x}, main is None
    tensors = {name: x.detach().cpu() for name, x in tensors.items()}
    if not tensors:
        raise UsageError("inputs: have no tensors")
    if any(x.ndim == 0 for x in tensors.values()) or len({len(x) for x in tensors.values()}) != 1:
        shapes = listed(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise UsageError(f"inputs {shapes}: must have the same number of rows")
    if not len(next(iter(tensors.values()))):
        raise UsageError("inputs: have no rows")
    if "input_ids" in tensors and (tensors["input_ids"].ndim != 2 or tensors["input_ids"].is_floating_point()):
        ids = tensors["input_ids"]
        raise UsageError(f"input_ids of shape {tuple(ids.shape)} and type {ids.dtype}: must be integers [row, token]")
    mask = tensors.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return Rows(tensors, positional, None)
    lengths = mask.sum(1).long()
    if not torch.equal(mask.bool(), torch.arange(mask.shape[1]) < lengths[:, None].to(mask.device)):
        raise UsageError(
            "attention_mask: must be 1 for the first tokens of each row and 0 for padding after them "
            "(tokenizer(..., padding_side='right'))"
        )
    padded = tuple(name for name, x in tensors.items() if x.ndim >= 2 and x.shape[:2] == mask.shape)
    return Rows(tensors, positional, lengths.numpy(), padded)


def _texts(inputs: Any) -> list[str] | None:
    """Return inputs as a list of texts if they are texts: one, a sequence, an array or a column of a table."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, Tensor | Mapping) or not hasattr(inputs, "__len__"):
        return None
    values = list(inputs)
    return [str(text) for text in values] if values and all(isinstance(text, str) for text in values) else None


def _tensor(x: Any, name: str) -> Tensor:
    try:
        return x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} of type {type(x).__name__}: must be numbers [row, ...], rows of one length"
        ) from error


def joined(rows: Rows, reference: Rows) -> Rows:
    """Return the rows of both, the reference last."""
    if rows.tensors.keys() != reference.tensors.keys():
        raise UsageError(f"reference has {listed(reference.tensors)}: must have {listed(rows.tensors)} as the inputs")
    tensors = {}
    for name, x in rows.tensors.items():
        y = reference.tensors[name]
        if name in rows.padded:
            width = max(x.shape[1], y.shape[1])
            x, y = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, width - part.shape[1])) for part in (x, y))
        if x.shape[1:] != y.shape[1:]:
            raise UsageError(f"reference {name} of shape {tuple(y.shape)}: must be like the inputs', {tuple(x.shape)}")
        tensors[name] = torch.cat([x, y])
    if len(reference) < 2:
        raise UsageError("reference: has 1 row; must have at least 2")
    lengths = [part.lengths for part in (rows, reference) if part.lengths is not None]
    return Rows(tensors, rows.positional, np.concatenate(lengths) if lengths else None, rows.padded, len(reference))


@dataclass(frozen=True)
class LeftOut:
    """Tokens that attend and are attended to, but are not measured."""

    prefix: int = 0
    """Number of them at the beginning of every row."""
    suffix: int = 0
    """Number of them at the end of every row."""
    inside: Tensor | None = None
    """[row, token]: which tokens between prefix and suffix are left out too; None if there are none in any row."""

    @property
    def ends(self) -> int:
        """Number at both ends."""
        return self.prefix + self.suffix


def special_tokens(
    model: nn.Module, rows: Rows, tokenizer: Any, leave_out: Any, tokens: int, grid: tuple[int, int] | None
) -> LeftOut:
    """Return which of the tokens of every row are left out."""
    if isinstance(leave_out, tuple) and all(isinstance(x, int) for x in leave_out):
        if len(leave_out) != 2 or min(leave_out) < 0:
            raise UsageError(f"leave_out={leave_out}: must be the number of tokens at the beginning and at the end")
        return LeftOut(*leave_out)
    config: Any = getattr(model, "config", None)
    lengths = torch.full((len(rows),), tokens) if rows.lengths is None else torch.as_tensor(rows.lengths)
    if not isinstance(leave_out, str):
        return _ends_and_inside(_checked_mask(leave_out, len(rows), tokens), lengths, grid)
    if leave_out not in ("special", "none"):
        raise UsageError(
            f"leave_out={leave_out!r}: must be special, none, (at the beginning, at the end), or Boolean [row, token]"
        )
    if leave_out == "special" and is_attnprobe(model):
        return LeftOut(config.n_prefix)
    if leave_out == "special" and grid is not None and tokenizer is None and rows.lengths is None:
        if tokens < grid[0] * grid[1]:
            raise UsageError(f"grid={grid}: has more patches than the {tokens} tokens of the model")
        return LeftOut(tokens - grid[0] * grid[1])  # class, distillation and register tokens come first
    ids = rows.tensors.get("input_ids")
    if leave_out == "none" or ids is None:
        return LeftOut()
    left_out = _ends_and_inside(_special(ids, config if tokenizer is None else tokenizer, lengths, rows), lengths, grid)
    if tokenizer is None:
        _warn_of_shared_ends(ids, lengths, left_out.prefix, left_out.suffix)
    return left_out


def _special(ids: Tensor, source: Any, lengths: Tensor, rows: Rows) -> Tensor:
    """Return which ids, [row, token], are special ones of a tokenizer or configuration."""

    def among(*names: str) -> Tensor:
        known = {getattr(source, f"{name}_token_id", None) for name in names}
        return torch.isin(ids, torch.tensor(sorted(x for x in known if isinstance(x, int)), dtype=ids.dtype))

    special = among("bos", "eos", "cls", "sep", "pad")
    padding = special & ~among("bos", "eos", "cls", "sep")
    if rows.lengths is None and (counts := padding.sum(1)).max() > counts.min():
        row = int(counts.argmax())
        raise UsageError(
            f"row {row} of input_ids has {int(counts[row])} padding tokens (id {int(ids[row][padding[row]][0])}): pass "
            "attention_mask too, or leave_out='none' if they are no padding"
        )
    return special


def _checked_mask(leave_out: Any, rows: int, tokens: int) -> Tensor:
    """Return a user's Boolean array [row, token]."""
    mask = _tensor(leave_out, "leave_out").cpu()
    if mask.dtype != torch.bool or mask.shape != (rows, tokens):
        raise UsageError(
            f"leave_out of shape {tuple(mask.shape)} and type {mask.dtype}: must be Boolean [row, token] = "
            f"{(rows, tokens)}, with the rows of the reference last"
        )
    return mask


def _ends_and_inside(left_out: Tensor, lengths: Tensor, grid: tuple[int, int] | None) -> LeftOut:
    """Split the tokens that are left out into those at the ends of all rows, and others."""
    tokens = left_out.shape[1]
    place = torch.arange(tokens)
    real = place < lengths[:, None]
    left_out = left_out & real
    if not (has_tokens := (real & ~left_out).any(1)).all():
        row = int((~has_tokens).int().argmax())
        raise UsageError(f"row {row}: has no tokens besides {int(left_out[row].sum())} special ones")
    prefix = int(left_out.int().cumprod(1).sum(1).min())
    suffix = int(((left_out | ~real).flip(1).int().cumprod(1).sum(1) - (tokens - lengths)).min())
    if grid is not None and (others := tokens - grid[0] * grid[1]) >= 0:
        # Tokens that are left out on the grid keep their place on it.
        prefix, most = min(prefix, others), suffix
        suffix = others - prefix
        if suffix > most:
            raise UsageError(f"grid={grid}: leave_out must be True for the {others} tokens that are no patches")
    n = tokens - prefix - suffix
    inside = left_out[:, prefix : prefix + n] & (place[:n] < (lengths - prefix - suffix)[:, None])
    return LeftOut(prefix, suffix, inside if inside.any() else None)


def _warn_of_shared_ends(ids: Tensor, lengths: Tensor, prefix: int, suffix: int) -> None:
    """Warn if all rows begin or end with the same measured id, which may be a special token."""
    if len(ids) < SHARED or int(lengths.min()) <= prefix + suffix + 1:
        return
    first, last = ids[:, prefix], ids[torch.arange(len(ids)), lengths - suffix - 1]
    if shared := [f"{name} with id {int(x[0])}" for name, x in (("begin", first), ("end", last)) if (x == x[0]).all()]:
        warnings.warn(
            f"all rows {' and '.join(shared)}: if these are special tokens, pass tokenizer= or leave_out=(1, 1)",
            stacklevel=4,
        )


def grid_of(model: nn.Module, rows: Rows) -> tuple[int, int] | None:
    """Return the patches of a Hugging Face vision model's images, or the pixels of an attnprobe model's."""
    config: Any = getattr(model, "config", None)
    if is_attnprobe(model):
        return config.grid
    patch, images = (
        getattr(getattr(config, "vision_config", config), "patch_size", None),
        rows.tensors.get("pixel_values"),
    )
    if images is None or images.ndim != 4 or patch is None:
        return None
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return images.shape[2] // height, images.shape[3] // width


def is_attnprobe(model: nn.Module) -> bool:
    """Return whether a model is an `AttnprobeModel`, without importing transformers."""
    return getattr(getattr(model, "config", None), "model_type", None) == "attnprobe"
