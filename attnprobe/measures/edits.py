r"""Edits of what enters a score, as contexts around a network's forward pass; no n x n array is made.

An `Edit` gets queries, keys and values of some heads of a layer as they enter `attnprobe.attention.Attention.attend`,
changes them or what is added to the score, and attends by that same function: an edited score is computed where every
score is. A token that the network puts in front ([CLS]) keeps its query and key, but where scores are flattened or
replaced by a function of the offset.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnprobe.attention import Additive, Attention
from attnprobe.position import PositionEncoding, Rotary
from attnprobe.transformer import Transformer


@dataclass(frozen=True)
class Given:
    """What some heads of a layer are given in one forward pass."""

    model: Transformer
    layer: int
    heads: slice
    q: Float[Tensor, "batch token head width"]
    k: Float[Tensor, "batch token head width"]
    v: Float[Tensor, "batch token head d_head"]
    additive: Additive

    def attend(self) -> Float[Tensor, "batch token head d_head"]:
        """Return z."""
        attention = self.model.block(self.layer).attn
        return Attention.attend(attention, self.q, self.k, self.v, self.additive)

    def with_bias(self, bias: Float[Tensor, "head offset"] | None) -> "Given":
        """Return the same with this bias at the offsets of the tokens (on images of the grid), and no other."""
        return replace(self, additive=replace(self.additive, bias=None, proximity=bias))

    def with_added(self, bias: Float[Tensor, "head offset"]) -> "Given":
        """Return the same with this bias added."""
        before = self.additive.proximity
        return replace(self, additive=replace(self.additive, proximity=bias if before is None else before + bias))


Edit = Callable[[Given], Float[Tensor, "batch token head d_head"]]
"""From what heads are given to their z."""


@dataclass(frozen=True)
class Material:
    """What edits are made of, for one batch of sequences of n tokens."""

    kernels: Sequence[Float[Tensor, "head offset"]]
    """Of each layer, the mean function of the offset that fits its scores best, biases included."""
    positions: Sequence[tuple[Float[Tensor, "batch head token d_head"], Float[Tensor, "batch head token d_head"]]]
    """Of each layer, the position parts of queries and keys (`attnprobe.measures.terms`)."""
    bias: Float[Tensor, "head offset"] | None
    """The network's whole bias among tokens, which counts as position-position; in a null one of its numbers moved."""
    bias_change: Float[Tensor, "head offset"] | None
    """In a null what that bias is more than the network's own."""
    imposed: Float[Tensor, "head offset"]
    """The bias that is imposed."""
    places: Int[Tensor, " token"]
    """Where each token's position is moved to."""


def flatten(given: Given) -> Tensor:
    """All scores are 0: attention is uniform."""
    return replace(given, q=torch.zeros_like(given.q)).with_bias(None).attend()


def keep_toeplitz(given: Given, material: Material) -> Tensor:
    """The score is the mean function of the offset alone."""
    kernel = material.kernels[given.layer][given.heads]
    return replace(given, q=torch.zeros_like(given.q)).with_bias(kernel).attend()


def remove_toeplitz(given: Given, material: Material) -> Tensor:
    """The mean function of the offset is subtracted."""
    return given.with_added(-material.kernels[given.layer][given.heads]).attend()


def impose(given: Given, material: Material) -> Tensor:
    """A proximity bias is added."""
    return given.with_added(material.imposed[given.heads]).attend()


def keep_position(given: Given, material: Material) -> Tensor:
    """The score is its position-position term alone, with the bias."""
    q, k = _position_parts(given, material, of_prefix=True)
    kept = replace(given, q=q, k=k)
    change = material.bias_change
    return (kept if change is None else kept.with_added(change[given.heads])).attend()


def remove_position(given: Given, material: Material) -> Tensor:
    """The position-position term and the bias are subtracted."""
    q, k = _position_parts(given, material, of_prefix=False)
    # Side by side they are the difference; the score is divided by the root of a width that is now twice as large.
    wide = torch.cat([given.q, q], dim=-1) * math.sqrt(2)
    without = replace(given, q=wide, k=torch.cat([given.k, -k], dim=-1))
    return (without if material.bias is None else without.with_added(-material.bias[given.heads])).attend()


def move_positions(given: Given, material: Material) -> Tensor:
    """Each token keeps its content and gets the position of another, in vectors, rotations and biases."""
    prefix, position = given.model.n_prefix, given.model.position
    places = material.places.to(given.q.device)
    q, k = given.q, given.k
    if isinstance(position, Rotary):
        steps = torch.cat([places.new_zeros(prefix), places - torch.arange(len(places), device=places.device)])
        q, k = position.turn(q, steps.to(q)), position.turn(k, steps.to(k))
    else:
        parts = _position_parts(given, material, of_prefix=False)
        q, k = (x - part + _moved(part, places, prefix) for x, part in zip((q, k), parts, strict=True))
    if not given.additive.biased:
        return replace(given, q=q, k=k).attend()
    # With the tokens in the order of their new positions the bias is that of their new offsets.
    order = _behind(places.argsort(), prefix)
    back = order.argsort()
    return replace(given, q=q[:, order], k=k[:, order], v=given.v[:, order]).attend()[:, back]


def from_donor(
    given: Given, queries: Sequence[Tensor], keys: Sequence[Tensor], additive: Additive
) -> Float[Tensor, "batch token head d_head"]:
    """The scores, and so the pattern, are those of another network on the same inputs; values stay.

    Queries and keys are those of each layer there, [batch, token, head, d_head].
    """
    q, k = queries[given.layer][:, :, given.heads], keys[given.layer][:, :, given.heads]
    return replace(given, q=q, k=k, additive=_of_heads(additive, given.heads)).attend()


@contextmanager
def edited(
    model: Transformer,
    heads: Sequence[tuple[int, slice]],
    edit: Edit,
    kept: Sequence[Float[Tensor, "batch token head d_head"]] | None = None,
) -> Iterator[None]:
    """Edit some heads of some layers in every forward pass.

    ``kept`` is what heads that are not edited put out, layer by layer, where it is known: nothing before them has
    changed. They are not computed then.
    """

    def attend_of(layer: int, some: slice) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, additive: Additive) -> Tensor:
            given = Given(model, layer, some, q[:, :, some], k[:, :, some], v[:, :, some], _of_heads(additive, some))
            z = edit(given)
            if z.shape == q.shape:
                return z
            whole = Attention.attend(model.block(layer).attn, q, k, v, additive) if kept is None else kept[layer]
            whole = whole.clone()
            whole[:, :, some] = z
            return whole

        return attend

    try:
        for layer, some in heads:
            model.block(layer).attn.attend = attend_of(layer, some)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for layer, _ in heads:
            model.block(layer).attn.__dict__.pop("attend", None)


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


def _of_heads(additive: Additive, heads: slice) -> Additive:
    bias = None if additive.bias is None else additive.bias[heads]
    proximity = None if additive.proximity is None else additive.proximity[heads]
    return replace(additive, bias=bias, proximity=proximity)


def _position_parts(given: Given, material: Material, of_prefix: bool) -> tuple[Tensor, Tensor]:
    """Return the position parts, [batch, token, head, d_head]; in front the whole query and key, or nothing."""
    found = []
    for whole, part in zip((given.q, given.k), material.positions[given.layer], strict=True):
        front = whole[:, : given.model.n_prefix]
        part = part[:, given.heads].transpose(1, 2).to(whole)
        found.append(torch.cat([front if of_prefix else torch.zeros_like(front), part], dim=1))
    return found[0], found[1]


def _moved(part: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Return position parts of the places that tokens are moved to."""
    return part[:, _behind(places, prefix)]


def _behind(places: Tensor, prefix: int) -> Tensor:
    """Return indices of tokens as indices in a sequence with some in front, which stay."""
    return torch.cat([torch.arange(prefix, device=places.device), places + prefix])
