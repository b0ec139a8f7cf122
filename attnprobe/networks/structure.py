"""From an attention call to `Scores`: the mask and the bias of a call are recognised by their values.

It does not matter how a model expresses its mask: as a flag, a Boolean array, or large negative numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.networks.calls import MASKED, Call
from attnprobe.scores import Scores, bias_of_pairs

SAME = 1e-6
"""Largest difference, relative to the largest bias, up to which biases count as equal."""


def scores_of(
    call: Call,
    prefix: int = 0,
    suffix: int = 0,
    grid: tuple[int, int] | None = None,
    known: tuple[bool, int | None] | None = None,
    left_out: Tensor | None = None,
) -> Scores:
    """Return the scores of a call; prefix, suffix and ``left_out`` [batch, token] are left out of statistics.

    ``known`` is whether the mask is causal, and its window, if that was found in another batch.

    Raises `UsageError` if the mask is anything but causal, a sliding window, or both, differs between rows or heads, or
    is not the known one.
    """
    n = call.q.shape[2]
    causal, window = _mask(call) if known is None or not call.softmax else _known_mask(call, *known)
    if known is not None and n > 1 and (causal, window) != _clipped(*known, n):
        raise UsageError(f"{call.site}: its mask is not that of the rows with which the model was loaded")
    q, k, scale, bias, token_bias, special_width = call.q, call.k, call.scale, None, None, 0
    if call.softmax and (causal or window is not None):
        q = q.masked_fill(~_band(n, causal, window, q), 0.0)
    added = call.bias
    if added is not None:
        heads, n = q.shape[1:3]
        added = added.expand(-1, -1, n, n)
        bias = by_offset(added, call.visible)
        if bias is not None:
            bias = bias.to(q.dtype).expand(heads, -1)
        else:
            tokens = slice(prefix, n - suffix)
            recognised = by_offset(added[..., tokens, tokens], call.visible[..., tokens, tokens], grid)
            if recognised is not None:
                token_bias = recognised.to(q.dtype).expand(heads, -1)
                position = torch.arange(n - prefix - suffix, device=q.device)
                inner_bias = bias_of_pairs(token_bias, grid or (len(position),), position, position)
                left, right = _factors(added[0].expand(heads, -1, -1), inner_bias, tokens)
                special_width = left.shape[-1]
            else:  # more coordinates: scale [q, b / scale] . [k, 1]
                left, right = added, torch.eye(n, dtype=q.dtype, device=q.device)
            q = torch.cat([q, (left / scale).to(q.dtype).expand(*q.shape[:3], -1)], dim=-1)
            k = torch.cat([k, right.to(k.dtype).expand(*k.shape[:3], -1)], dim=-1)
    return Scores(
        q,
        k,
        scale=scale,
        bias=bias,
        causal=causal,
        grid=grid,
        prefix=prefix,
        suffix=suffix,
        token_bias=token_bias,
        window=window,
        sink=call.sink,
        special_width=special_width,
        left_out=left_out,
    )


def _clipped(causal: bool, window: int | None, n: int) -> tuple[bool, int | None]:
    """Return a mask in sequences of n tokens, where a window may cover all."""
    return causal, window if window is not None and window < n - 1 else None


def _band(n: int, causal: bool, window: int | None, like: Tensor) -> Tensor:
    """Return which pairs [query, key] a mask shows."""
    band = torch.ones(n, n, dtype=torch.bool, device=like.device).tril(0 if causal else n)
    return band if window is None else band.triu(-window) & band.tril(window)


def _known_mask(call: Call, causal: bool, window: int | None) -> tuple[bool, int | None]:
    """Return a known mask of scores, in which values that hide keys need not stand out in every batch."""
    n = call.q.shape[2]
    if bool((call.q <= MASKED)[..., _band(n, causal, window, call.q)].any()):
        raise UsageError(f"{call.site}: its mask is not that of the rows with which the model was loaded")
    return _clipped(causal and n > 1, window, n)


def is_product(call: Call, scores: Scores) -> bool:
    """Return whether scores are products of queries and keys, plus a bias by offset."""
    return not call.softmax and (call.bias is None or scores.biased)


def _factors(added: Tensor, inner_bias: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
    """Return factors [head, token, coordinate] of what a bias between tokens leaves of a bias [head, n, n].

    It is a constant per query between tokens, and free in the rows and columns of all other (special) tokens.
    """
    heads, n, _ = added.shape
    is_token = torch.zeros(n, dtype=added.dtype, device=added.device)
    is_token[tokens] = 1
    special = (is_token == 0).nonzero()[:, 0]
    one_hot = F.one_hot(special, n).to(added).T.expand(heads, -1, -1)
    constant = added.new_zeros(heads, n)
    constant[:, tokens] = (added[:, tokens, tokens] - inner_bias).diagonal(dim1=-2, dim2=-1)
    rows = added[:, special].mT  # [head, key, special]
    columns = added[:, :, special] * is_token[:, None]  # [head, query, special]
    left = torch.cat([constant[..., None], one_hot, columns], dim=-1)
    right = torch.cat([is_token.expand(heads, -1)[..., None], rows, one_hot], dim=-1)
    return left, right


def _mask(call: Call) -> tuple[bool, int | None]:
    """Return whether the mask is causal, and the largest visible distance if it is limited."""
    n = call.q.shape[2]
    if call.mask is None and not call.softmax:
        return call.causal and n > 1, None
    visible = call.visible
    if bool(visible.all()):
        return False, None
    if not bool((visible == visible[:1, :1]).all()):
        raise UsageError(f"{call.site}: the mask differs between rows or heads; pass rows of one length, unpadded")
    visible = visible[0, 0].expand(n, n)
    after, before = int(visible[0].sum()) - 1, int(visible[-1].sum()) - 1
    band = torch.ones(n, n, dtype=torch.bool, device=visible.device).tril(after).triu(-before)
    if not torch.equal(visible, band) or after not in (0, before):
        raise UsageError(f"{call.site}: its mask is not causal, a sliding window or both; pass rows without padding")
    return after == 0, before if before < n - 1 else None


def by_offset(added: Tensor, visible: Tensor, grid: tuple[int, int] | None = None) -> Tensor | None:
    """Return a bias [head or 1, offset] if added values [.., head or 1, n, n] depend on the offset only, else None.

    On a grid the offset is 2-D. A constant per row is free, since the softmax ignores it: ALiBi may come as slope times
    key position.
    """
    n = added.shape[-1]
    if added.shape[0] != 1 and not bool((added == added[:1]).all()):
        return None
    offset = _offsets(n, grid).to(added.device)
    visible = visible[0].any(0).expand(n, n)
    biases = [_offset_function(head, offset, visible) for head in added[0].expand(-1, n, n)]
    return None if any(bias is None for bias in biases) else torch.stack([bias for bias in biases if bias is not None])


def _offset_function(added: Tensor, offset: Tensor, visible: Tensor) -> Tensor | None:
    """Return values by offset if values [query, key] depend on the offset only, up to a constant per row, else None."""
    values = (added - added.diagonal()[:, None]).double()
    bias = values.new_zeros(int(offset.max()) + 1)
    bias[offset[visible]] = values[visible]
    difference = ((bias[offset] - values) * visible).abs().max()
    return bias if float(difference) <= SAME * max(1.0, float((values * visible).abs().max())) else None


def _offsets(n: int, grid: tuple[int, int] | None) -> Tensor:
    """Return the index of the offset of each pair of tokens, [query, key]."""
    columns = n if grid is None else grid[1]
    rows = n // columns
    position = torch.arange(n)
    down = position // columns - (position // columns)[:, None] + rows - 1
    right = position % columns - (position % columns)[:, None] + columns - 1
    return down * (2 * columns - 1) + right
