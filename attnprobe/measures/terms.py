r"""The four terms of a score: content and position of the query, times content and position of the key.

Queries and keys, as they enter the score, are split, $q_i = q^c_i + q^p_i$ and $k_j = k^c_j + k^p_j$, so that

$$S_{ij} = \frac{1}{\sqrt{d_{head}}} \left( q^c_i k^c_j + q^c_i k^p_j + q^p_i k^c_j + q^p_i k^p_j \right) + b(j - i),$$

where the bias, of the encoding or imposed, counts as position-position. The position part is

- layer 0, encodings that add a vector $p_i$: what $p_i - \bar p$ contributes, exactly: through the norm, with the
  scale that it had for this token in the forward pass, and through $W_Q$ or $W_K$;
- layer 0, rotary: the mean query (key) over data and positions, rotated to position i: all that the rotation does to
  content on average;
- deeper layers: the mean over data of what stands at position i, less its mean over positions (Song & Zhong 2023,
  arXiv:2310.04861); with rotary positions not less that mean, which the rotation makes depend on i;
- nothing where the network cannot know positions: without encoding and mask in every layer, and in layer 0 without a
  vector or rotation.

What all positions have in common, biases of the maps included, is content. Means are taken over other sequences than
those that are split, so that no sequence finds itself in its mean. In deeper layers a mean that differs between
positions may come from the encoding or from data that do (the border of an image): networks at initialisation show how
much the data do alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from attnprobe.measures.capture import by_head, catching, query_and_key
from attnprobe.statistics import Scores
from attnprobe.transformer import Transformer

TERMS = ("content-content", "content-position", "position-content", "position-position")
"""Query first."""


@dataclass(frozen=True)
class Parts:
    """Queries and keys of one layer, whole, and the position's part of them; float64."""

    q: Float[Tensor, "batch head token d_head"]
    k: Float[Tensor, "batch head token d_head"]
    q_position: Float[Tensor, "batch head token d_head"]
    k_position: Float[Tensor, "batch head token d_head"]
    bias: Float[Tensor, "head offset"] | None
    causal: bool
    grid: tuple[int, int] | None

    @property
    def whole(self) -> Scores:
        """The score."""
        return Scores(self.q, self.k, bias=self.bias, causal=self.causal, grid=self.grid)

    @property
    def terms(self) -> dict[str, Scores]:
        """The four scores that add up to it."""
        queries = (self.q - self.q_position, self.q_position)
        keys = (self.k - self.k_position, self.k_position)
        pairs = [(q, k) for q in queries for k in keys]
        biases = [None, None, None, self.bias]
        return {
            term: Scores(q, k, bias=bias, causal=self.causal, grid=self.grid)
            for term, (q, k), bias in zip(TERMS, pairs, biases, strict=True)
        }


@dataclass(frozen=True)
class Means:
    """Means over data, for each layer, of the queries and of the keys; float64 on the CPU."""

    by_position: list[list[Float[Tensor, "head token d_head"]]]
    """As they enter the score, at each position."""
    unrotated: list[list[Float[Tensor, "head d_head"]]]
    """Before any rotation, over all positions."""
    lengths: list[list[Float[Tensor, "head pair"]]]
    """Of the lengths in each pair of coordinates, over all positions; no pairs where nothing rotates."""
    inverse_scale: Float[Tensor, " token"]
    """Of 1 / the scale of the first layer's norm, at each position; 1 without a norm there."""


@torch.no_grad()
def means(model: Transformer, batches: Iterable[Tensor]) -> Means:
    """Return the means over batches, [batch, token]; a position that no sequence has gets the mean of the others."""
    n, rotated, plain = model.data.n, query_and_key(model), ("hook_q", "hook_k")
    sums: dict[str, Tensor] = {}
    count = torch.zeros(n, dtype=torch.float64)
    caught: dict[str, Tensor] = {}
    names = [_at(layer, hook) for layer in range(model.cfg.n_layers) for hook in {*rotated, *plain}]
    with catching(model, [*names, *([SCALE] if _normed(model) else [])], caught):
        for inputs in batches:
            model.residual(inputs)
            length = inputs.shape[1]
            count[:length] += len(inputs)
            for name in names:
                x = by_head(model, caught[name]).double()
                _add(sums, name, x.sum(0).cpu(), n)
                if model.position.rotates and name.endswith(plain):
                    _add(sums, f"{name} lengths", x.unflatten(-1, (-1, 2)).norm(dim=-1).sum(0).cpu(), n)
            if SCALE in caught:
                _add(sums, SCALE, (1 / caught[SCALE][:, model.n_prefix :].double()).sum(0).cpu(), n)

    def at_positions(name: str) -> Tensor:
        known = (count > 0)[:, None]
        return (sums[name] / count[:, None]).where(known, over_positions(name)[..., None, :])

    def over_positions(name: str) -> Tensor:
        return sums[name].sum(-2) / count.sum()

    def by_layer(of: Callable[[str], Tensor], hooks: Sequence[str], tail: str = "") -> list[list[Tensor]]:
        return [[of(_at(layer, hook) + tail) for hook in hooks] for layer in range(model.cfg.n_layers)]

    return Means(
        by_layer(at_positions, rotated),
        by_layer(over_positions, plain),
        by_layer(over_positions, plain, " lengths") if model.position.rotates else [],
        at_positions(SCALE)[:, 0] if SCALE in sums else torch.ones(n, dtype=torch.float64),
    )


def parts(
    model: Transformer,
    inputs: Shaped[Tensor, "batch token"],
    of: Means,
    masked: Bool[Tensor, "batch token"] | None = None,
) -> Iterator[Parts]:
    """Yield each layer's queries and keys on a batch, some tokens of it hidden, with their position parts."""
    names = [[_at(layer, hook) for hook in query_and_key(model)] for layer in range(model.cfg.n_layers)]
    caught: dict[str, Tensor] = {}
    with torch.no_grad(), catching(model, [*sum(names, []), *([SCALE] if _normed(model) else [])], caught):
        model.residual(inputs, masked=masked)
        bias = model.bias(inputs.shape[1])
    scale = caught[SCALE][:, model.n_prefix :] if SCALE in caught else None
    for layer, of_layer in enumerate(names):
        q, k = (by_head(model, caught.pop(name)).double() for name in of_layer)
        shares = _position_shares(model, layer, of, scale, inputs.shape[1])
        q_position, k_position = (share.to(q).expand_as(q) for share in shares)
        yield Parts(q, k, q_position, k_position, bias, model.cfg.causal, model.data.grid)


def mean_position_parts(model: Transformer, of: Means) -> list[Float[Tensor, "layer head token d_head"]]:
    """Return the position parts of queries and of keys, mean over data, in float64 on the CPU."""
    scale = (1 / of.inverse_scale)[None, :, None].to(model.classify.weight) if _normed(model) else None
    shares = [_position_shares(model, layer, of, scale, model.data.n) for layer in range(model.cfg.n_layers)]
    return [torch.cat([of_layer[side].double().cpu() for of_layer in shares]) for side in range(2)]


SCALE = "blocks.0.ln1.hook_scale"


def _normed(model: Transformer) -> bool:
    """Say whether a norm stands before the first layer's attention."""
    return model.cfg.norm != "none" and model.cfg.norm_place == "pre"


def _at(layer: int, hook: str) -> str:
    return f"blocks.{layer}.attn.{hook}"


def _add(sums: dict[str, Tensor], name: str, x: Float[Tensor, "*lead token width"], n: int) -> None:
    """Add sums at the first positions to those at all n."""
    if name not in sums:
        sums[name] = x.new_zeros(*x.shape[:-2], n, x.shape[-1])
    sums[name][..., : x.shape[-2], :] += x


@torch.no_grad()
def _position_shares(
    model: Transformer, layer: int, of: Means, scale: Float[Tensor, "batch token 1"] | None, n: int
) -> list[Float[Tensor, "#batch head token d_head"]]:
    """Return the position parts of one layer's queries and keys in sequences of n tokens."""
    if layer == 0 and model.position.embed(1) is not None:
        return _shares_of_vectors(model, scale, n)
    found = [mean[None] for mean in of.by_position[layer]]
    if model.position.rotates and layer == 0:
        levels = [mean.to(model.classify.weight).expand(1, n + model.n_prefix, -1, -1) for mean in of.unrotated[0]]
        found = [by_head(model, model.position.rotate(level)) for level in levels]
    elif not model.position.rotates:
        silent = layer == 0 or (model.cfg.position == "none" and not model.cfg.causal)
        found = [torch.zeros_like(one) if silent else one - one.mean(2, keepdim=True) for one in found]
    return [one[:, :, :n] for one in found]


def _shares_of_vectors(
    model: Transformer, scale: Float[Tensor, "batch token 1"] | None, n: int
) -> list[Float[Tensor, "batch head token d_head"]]:
    """Return what the encoding's vectors contribute to the first layer's queries and keys."""
    whole = model.position.embed(model.data.n + model.n_prefix)
    assert whole is not None
    vectors = whole[model.n_prefix :]
    x = (vectors - vectors.mean(0))[None, :n]
    block = model.block(0)
    if scale is not None:
        x = block.ln1.share(x, scale)
    return [
        einsum(x, w, "batch token d_model, head d_model d_head -> batch head token d_head")
        for w in (block.attn.W_Q, block.attn.W_K)
    ]
