"""The materialised way: every statistic of scores by its definition, from n x n arrays in float64. Slow and plain."""

from dataclasses import replace

import numpy as np
import torch


def pairs(shape, causal):
    """Yield (query, key, place of the offset) for every visible pair."""
    n = int(np.prod(shape))
    sides = [2 * side - 1 for side in shape]
    for i in range(n):
        for j in range(i + 1 if causal else n):
            here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
            shifted = [int(b - a) + side - 1 for a, b, side in zip(here, there, shape, strict=True)]
            yield i, j, int(np.ravel_multi_index(shifted, sides))


def dense(scores):
    """Return [batch, head, query, key] in float64, hidden keys and the rows of padding -inf."""
    n = scores.shape[2]
    q, k = scores.q.double(), scores.k.double()
    made = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scores.scale is None else scores.scale)
    position = torch.arange(n)
    if scores.bias is not None:
        place = position - position[:, None] + n - 1
        if scores.bias.shape[1] != 2 * n - 1:
            place = torch.tensor([o for _, _, o in pairs(scores.grid, causal=False)]).view(n, n)
        made = made + scores.bias.double()[:, place]
    made = rearranged(scores, made)
    if scores.causal:
        made = made.masked_fill(position > position[:, None], -torch.inf)
    if scores.real is not None:
        made = made.masked_fill(~(scores.real[:, None, :, None] & scores.real[:, None, None, :]), -torch.inf)
    return made


def rearranged(scores, x):
    """Return [batch, head, query, key] as an order of the scores moves it."""
    if scores.order is None:
        return x
    if not scores.causal:
        return x[..., scores.order, :][..., scores.order]
    x = x.clone()
    for i in range(x.shape[-1]):
        x[..., i, : i + 1] = x[..., i, scores.order[scores.order <= i]]
    return x


def by_offset(scores, x):
    """Return the sums of [batch, head, query, key] at each offset, whatever is hidden."""
    shape = scores.grid or (scores.shape[2],)
    sums = x.new_zeros(*x.shape[:2], int(np.prod([2 * side - 1 for side in shape])))
    for i, j, place in pairs(shape, causal=False):
        sums[..., place] += x[..., i, j]
    return sums


def kernels(scores, visible, centred):
    """Return [batch, head, offset]: the least-squares kernels, from numpy's solver on the full design."""
    shape = scores.grid or (scores.shape[2],)
    n, offsets = scores.shape[2], int(np.prod([2 * side - 1 for side in shape]))
    found = torch.full((*centred.shape[:2], offsets), torch.nan, dtype=torch.float64)
    explained = torch.zeros(centred.shape[:2], dtype=torch.float64)
    for b in range(len(centred)):
        used = [(i, j, o) for i, j, o in pairs(shape, False) if visible[b, 0, i, j]]
        row, key, place = np.array(used).T
        design = np.zeros((len(used), n + offsets))
        design[np.arange(len(used)), row] = design[np.arange(len(used)), n + place] = 1
        values = centred[b][:, row, key].T.numpy()
        solved = np.linalg.lstsq(design, values, rcond=None)[0][n:]
        count = np.bincount(place, minlength=offsets)
        solved = solved - count @ solved / count.sum()
        found[b, :, count > 0] = torch.from_numpy(solved[count > 0].T)
        explained[b] = torch.from_numpy((values * solved[place]).sum(0))
    return found, explained


def score_statistics(scores):
    """Return a dictionary of what `attnprobe.statistics.score_statistics` returns, and of its scales."""
    s = dense(scores)
    visible = s.isfinite()
    s = s.masked_fill(~visible, 0.0)
    keys, queries = visible.sum(-1).double(), visible.sum(-2).double()
    count = by_offset(scores, visible[:, :1].double())
    mean = s.sum(-1) / keys
    centred = (s - mean.nan_to_num()[..., None]).masked_fill(~visible, 0.0)
    kernel, explained = kernels(scores, visible, centred)
    double = torch.zeros(s.shape[:2], dtype=torch.float64)
    for b, h in np.ndindex(*s.shape[:2]):
        double[b, h] = after_rows_and_keys(s[b, h], visible[b, 0])
    square = centred.square().sum((-2, -1))
    return {
        "pairs": count[:, 0],
        "mean": s.sum((-2, -1)) / keys.sum(-1),
        "mean_by_query": mean,
        "mean_by_key": s.sum(-2) / queries,
        "mean_by_offset": by_offset(scores, s) / count,
        "centred_by_offset": by_offset(scores, centred) / count,
        "offset_profile": kernel,
        "square": s.square().sum((-2, -1)),
        "square_row_centred": square,
        "square_double_centred": double,
        "toeplitz_share": explained / square,
        "std": (square / keys.sum(-1)).sqrt(),
    }


def after_rows_and_keys(s, visible):
    """Return the sum of squares that constants of rows and of keys leave over, by numpy's solver."""
    query, key = visible.nonzero(as_tuple=True)
    n = len(s)
    design = np.zeros((len(query), 2 * n))
    design[np.arange(len(query)), query] = design[np.arange(len(query)), n + key] = 1
    values = s[query, key].numpy()
    return float(np.square(values - design @ np.linalg.lstsq(design, values, rcond=None)[0]).sum())


def pattern(scores):
    """Return [batch, head, query, key]: the softmax, zero in rows of padding."""
    return dense(scores).softmax(-1).nan_to_num()


def pattern_statistics(scores):
    """Return a dictionary of what `attnprobe.statistics.pattern_statistics` returns."""
    a = pattern(scores)
    queries = (a.sum(-1) > 0).sum(-1).double()
    visible = dense(scores)[:, :1].isfinite().double()
    uniform = (visible / visible.sum(-1, keepdim=True)).nan_to_num()
    return {
        "uniform_by_offset": by_offset(scores, uniform)[:, 0] / queries[:, :1],
        "mass_by_offset": by_offset(scores, a) / queries[..., None],
        "mass_by_key": a.sum(-2),
        "entropy": torch.special.entr(a).sum((-2, -1)) / queries,
    }


def score_gradient(scores, v, dz):
    """Return [batch, head, query, key]: the gradient with respect to the score, by autograd through softmax and v."""
    with torch.enable_grad():
        s = dense(replace(scores, order=None))
        leaf = s.masked_fill(~s.isfinite(), 0.0).requires_grad_()
        a = leaf.masked_fill(~s.isfinite(), torch.finfo(torch.float64).min).softmax(-1)
        a = a * s.isfinite()
        ((a @ v.double()) * dz.double()).sum().backward()
    return rearranged(scores, leaf.grad)


def double(scores):
    """Return the scores with everything in float64."""
    bias = None if scores.bias is None else scores.bias.double()
    return replace(scores, q=scores.q.double(), k=scores.k.double(), bias=bias)
