"""Materialised reference: every statistic of scores by its definition, from n x n arrays in float64."""

from dataclasses import replace

import numpy as np
import torch


def pairs(shape, causal):
    """Yield (query, key, index of the offset) for every visible pair."""
    n = int(np.prod(shape))
    sides = [2 * side - 1 for side in shape]
    for i in range(n):
        for j in range(i + 1 if causal else n):
            here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
            shifted = [int(b - a) + side - 1 for a, b, side in zip(here, there, shape, strict=True)]
            yield i, j, int(np.ravel_multi_index(shifted, sides))


def dense(scores):
    """Return [batch, head, query, key] in float64, with -inf at masked keys and in rows of padding."""
    n = scores.shape[2]
    q, k = scores.q.double(), scores.k.double()
    result = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scores.scale is None else scores.scale)
    position = torch.arange(n)
    if scores.bias is not None:
        index = position - position[:, None] + n - 1
        if scores.bias.shape[1] != 2 * n - 1:
            index = torch.tensor([o for _, _, o in pairs(scores.grid, causal=False)]).view(n, n)
        result = result + scores.bias.double()[:, index]
    result = rearranged(scores, result)
    if scores.causal:
        result = result.masked_fill(position > position[:, None], -torch.inf)
    if scores.window is not None:
        result = result.masked_fill((position - position[:, None]).abs() > scores.window, -torch.inf)
    if scores.real is not None:
        result = result.masked_fill(~(scores.real[:, None, :, None] & scores.real[:, None, None, :]), -torch.inf)
    return result


def rearranged(scores, x):
    """Permute [batch, head, query, key] by the order of the scores, among the real tokens of each sequence."""
    if scores.order is None:
        return x
    permuted, n = x.clone(), x.shape[-1]
    window = n if scores.window is None else scores.window
    for b in range(len(x)):
        real = torch.ones(n, dtype=torch.bool) if scores.real is None else scores.real[b]
        places, source = real.nonzero()[:, 0], scores.order[real[scores.order]]
        span = int(places.max() - places.min())
        if not scores.causal and window >= span:
            permuted[b][:, places[:, None], places] = x[b][:, source[:, None], source]
            continue
        for i in places.tolist():
            seen = [abs(j - i) <= window and (j <= i or not scores.causal) and bool(real[j]) for j in range(n)]
            seen = torch.tensor(seen)
            permuted[b][:, i, seen] = x[b][:, i, scores.order[seen[scores.order]]]
    return permuted


def by_offset(scores, x):
    """Sum [batch, head, query, key] at each offset, without any mask."""
    shape = scores.grid or (scores.shape[2],)
    sums = x.new_zeros(*x.shape[:2], int(np.prod([2 * side - 1 for side in shape])))
    for i, j, index in pairs(shape, causal=False):
        sums[..., index] += x[..., i, j]
    return sums


def offset_profiles(scores, visible, centred):
    """Fit the offset profiles, [batch, head, offset], with numpy's solver on the full design matrix."""
    shape = scores.grid or (scores.shape[2],)
    n, offsets = scores.shape[2], int(np.prod([2 * side - 1 for side in shape]))
    profiles = torch.full((*centred.shape[:2], offsets), torch.nan, dtype=torch.float64)
    explained = torch.zeros(centred.shape[:2], dtype=torch.float64)
    for b in range(len(centred)):
        visible_pairs = [(i, j, o) for i, j, o in pairs(shape, False) if visible[b, 0, i, j]]
        row, key, index = np.array(visible_pairs).T
        design = np.zeros((len(visible_pairs), n + offsets))
        design[np.arange(len(visible_pairs)), row] = design[np.arange(len(visible_pairs)), n + index] = 1
        values = centred[b][:, row, key].T.numpy()
        solution = np.linalg.lstsq(design, values, rcond=None)[0][n:]
        count = np.bincount(index, minlength=offsets)
        solution = solution - count @ solution / count.sum()
        profiles[b, :, count > 0] = torch.from_numpy(solution[count > 0].T)
        explained[b] = torch.from_numpy((values * solution[index]).sum(0))
    return profiles, explained


def score_statistics(scores):
    """Return the fields of `attnprobe.statistics.score_statistics` as a dictionary."""
    s = dense(scores)
    visible = s.isfinite()
    s = s.masked_fill(~visible, 0.0)
    keys, queries = visible.sum(-1).double(), visible.sum(-2).double()
    count = by_offset(scores, visible[:, :1].double())
    mean = s.sum(-1) / keys
    centred = (s - mean.nan_to_num()[..., None]).masked_fill(~visible, 0.0)
    kernel, explained = offset_profiles(scores, visible, centred)
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
    """Return the residual sum of squares of a fit of row and key constants, by numpy's solver."""
    query, key = visible.nonzero(as_tuple=True)
    n = len(s)
    design = np.zeros((len(query), 2 * n))
    design[np.arange(len(query)), query] = design[np.arange(len(query)), n + key] = 1
    values = s[query, key].numpy()
    return float(np.square(values - design @ np.linalg.lstsq(design, values, rcond=None)[0]).sum())


def pattern(scores):
    """Return the softmax, [batch, head, query, key], with zeros in rows of padding."""
    return dense(scores).softmax(-1).nan_to_num()


def pattern_statistics(scores):
    """Return the fields of `attnprobe.statistics.pattern_statistics` as a dictionary."""
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


def matched_mass(scores, tokens):
    """Return the attention to earlier keys that match the query, [batch, head, match], query by query."""
    a, seen = pattern(scores), dense(replace(scores, order=None)).isfinite()
    result = torch.full((*a.shape[:2], 2), torch.nan, dtype=torch.float64)
    for b in range(len(a)):
        real = torch.ones(a.shape[2], dtype=torch.bool) if scores.real is None else scores.real[b]
        for match in range(2):
            masses = []
            for i in range(a.shape[2]):
                keys = [j for j in range(match, i) if seen[b, 0, i, j] and real[j - match]]
                keys = [j for j in keys if tokens[b, j - match] == tokens[b, i]]
                if keys:
                    masses.append(a[b, :, i, keys].sum(-1))
            if masses:
                result[b, :, match] = torch.stack(masses).mean(0)
    return result


def nmi(a):
    """Return the mutual information of query and key over sqrt(H(Q) H(K)), from the joint distribution of one head."""
    joint = a[a.sum(-1) > 0]
    joint = joint / joint.sum()
    of_queries, of_keys = joint.sum(1), joint.sum(0)
    independent = of_queries[:, None] * of_keys
    information = torch.where(joint > 0, joint * (joint / independent).log(), 0.0).sum()
    return information / (torch.special.entr(of_queries).sum() * torch.special.entr(of_keys).sum()).sqrt()


def score_gradient(scores, v, dz):
    """Return the score gradient, [batch, head, query, key], by autograd through softmax and values."""
    with torch.enable_grad():
        s = dense(replace(scores, order=None))
        leaf = s.masked_fill(~s.isfinite(), 0.0).requires_grad_()
        a = leaf.masked_fill(~s.isfinite(), torch.finfo(torch.float64).min).softmax(-1)
        if scores.sink is not None:
            sink = scores.sink.double()[None, :, None, None].expand(*s.shape[:3], 1)
            a = torch.cat([leaf.masked_fill(~s.isfinite(), -torch.inf), sink], dim=-1).softmax(-1)[..., :-1]
        a = a * s.isfinite()
        ((a @ v.double()) * dz.double()).sum().backward()
    gradient = leaf.grad
    if scores.sink is not None:  # the sink takes part in the softmax but has no pair
        visible = s.isfinite()
        gradient = (gradient - gradient.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)) * visible
    return rearranged(scores, gradient)


def double(scores):
    """Convert all tensors of the scores to float64."""
    bias = None if scores.bias is None else scores.bias.double()
    return replace(scores, q=scores.q.double(), k=scores.k.double(), bias=bias)
