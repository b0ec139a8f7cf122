"""From an attention call to `Scores`: the mask and the bias of a call are recognised by their values.

It does not matter how a model expresses its mask: as a flag, a Boolean array, or large negative numbers.
"""

import torch
from torch import Tensor

from attnprobe.errors import UsageError
from attnprobe.networks.calls import Call
from attnprobe.scores import Scores

SAME = 1e-6
"""Largest difference, relative to the largest bias, up to which biases count as equal."""


def scores_of(call: Call, prefix: int = 0, suffix: int = 0, grid: tuple[int, int] | None = None) -> Scores:
    """Return the scores of a call; prefix and suffix are left out of statistics.

    Raises `UsageError` if the mask is anything but causal, a sliding window, or both, or differs between rows or heads.
    """
    causal, window = _mask(call)
    q, k, scale, bias = call.q, call.k, call.scale, None
    if call.softmax and not bool(call.visible.all()):
        q = q.masked_fill(~call.visible, 0.0)
    added = call.bias
    if added is not None:
        bias = by_offset(added, call.visible)
        if bias is None:  # more coordinates: [scale q, b] . [k, 1]
            n = q.shape[2]
            identity = torch.eye(n, dtype=q.dtype, device=q.device).expand(*q.shape[:2], n, n)
            q = torch.cat([q * scale, added.to(q.dtype).expand(*q.shape[:2], n, n)], dim=-1)
            k, scale = torch.cat([k, identity], dim=-1), 1.0
        else:
            bias = bias.to(q.dtype).expand(q.shape[1], -1)
    return Scores(q, k, scale=scale, bias=bias, causal=causal, grid=grid, prefix=prefix, suffix=suffix, window=window)


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
    position = torch.arange(n, device=visible.device)
    offset = position - position[:, None]
    lowest, highest = int(offset[visible].min()), int(offset[visible].max())
    causal = highest == 0
    if (not causal and highest != -lowest) or not bool((visible == (offset >= lowest) & (offset <= highest)).all()):
        raise UsageError(f"{call.site}: its mask is not causal, a sliding window or both; pass rows without padding")
    return causal, -lowest if -lowest < n - 1 else None


def by_offset(added: Tensor, visible: Tensor) -> Tensor | None:
    """Return a bias [head or 1, offset] if added values [.., head or 1, n, n] depend on the offset only, else None.

    A constant per row is free, since the softmax ignores it: ALiBi may come as slope times key position.
    """
    n = added.shape[-1]
    if added.shape[0] != 1 and not bool((added == added[:1]).all()):
        return None
    values = added[0].double().expand(-1, n, n)
    values = values - values.diagonal(dim1=-2, dim2=-1)[..., None]
    position = torch.arange(n, device=added.device)
    offset = position - position[:, None] + n - 1
    seen = visible[0].any(0).expand(n, n)
    bias = values.new_zeros(len(values), 2 * n - 1)
    bias[:, offset[seen]] = values[:, seen]
    close = (bias[:, offset] - values).abs()[:, seen] <= SAME * max(1.0, float(values[:, seen].abs().max()))
    return bias if bool(close.all()) else None
