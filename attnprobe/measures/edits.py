"""Edits of what enters a score, as contexts around a network's forward pass; no n x n array is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from attnprobe.attention import Additive
from attnprobe.position import PositionEncoding
from attnprobe.transformer import Transformer


@contextmanager
def added_bias(model: Transformer, layer: int, bias: Float[Tensor, "head offset"]) -> Iterator[None]:
    """Add a bias to the scores of one layer, at the offsets of its tokens: on images those of the grid."""

    def edit(module: nn.Module, given: tuple[Tensor, PositionEncoding, Additive]) -> tuple[object, ...]:
        x, position, additive = given
        whole = bias if additive.proximity is None else additive.proximity + bias
        return x, position, replace(additive, proximity=whole)

    handle = model.block(layer).attn.register_forward_pre_hook(edit)
    try:
        yield
    finally:
        handle.remove()
