"""How near the keys are that a head scores high and attends to: numbers for each sequence, from scores in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attnprobe.statistics.geometry import Geometry


@dataclass(frozen=True)
class ProximityStatistics:
    """Statistics of each score matrix; the leading axes are those of the scores."""

    score_by_offset: Float[Tensor, "*lead offset"]
    """The least-squares function of the offset, up to row constants (see `Geometry.kernel`)."""
    pattern_by_offset: Float[Tensor, "*lead offset"]
    """Mean attention weight of the pairs at each offset."""
    toeplitz_share: Float[Tensor, "*lead"]
    """Share of the row-centred score's sum of squares that a function of the offset explains."""
    proximity_contrast: Float[Tensor, "*lead"]
    """Mean centred score at 0 < distance <= window, minus that beyond, over the centred score's sd."""
    mean_distance: Float[Tensor, "*lead"]
    """Mean over queries of the attention-weighted distance."""
    mean_distance_ratio: Float[Tensor, "*lead"]
    """The same over that of uniform attention."""
    near_mass: Float[Tensor, "*lead within"]
    """Attention at 0 < distance <= d over its uniform share, for each d."""
    entropy: Float[Tensor, "*lead"]
    """Mean over queries of the attention's entropy, in nats."""


def proximity_statistics(
    scores: Float[Tensor, "*lead query key"], geometry: Geometry, within: tuple[int, ...]
) -> ProximityStatistics:
    r"""Return the statistics of scores (unmasked: the geometry says which pairs are visible).

    Over the visible pairs, with the row-centred score c, the fitted kernel t, offset sums b of c, and the pattern A:
    Toeplitz share $\sum_o b_o t_o / \sum c_{ij}^2$, in 0 ... 1; contrast
    $(\bar c_{0<d\le w} - \bar c_{d>w}) / \mathrm{sd}(c)$ with w the last of ``within``; mean distance
    $\frac1n \sum_{ij} A_{ij} d_{ij}$. Where a quotient has nothing below (constant scores, no far keys) it is NaN.
    """
    scores = scores.double()
    distance, count = geometry.distance, geometry.count
    centred = geometry.centre(scores)
    sums = geometry.sums(centred)
    kernel = geometry.kernel(sums)
    energy = centred.square().sum((-2, -1))
    # Of constant scores only rounding is left, which has no shape.
    rounding = count.sum() * (1e-13 * (scores * geometry.visible).abs().amax((-2, -1))).square()
    energy = torch.where(energy > rounding, energy, torch.nan)
    near, far = (distance > 0) & (distance <= within[-1]), distance > within[-1]
    difference = sums[..., near].sum(-1) / count[near].sum() - sums[..., far].sum(-1) / count[far].sum()

    pattern = scores.masked_fill(~geometry.visible, -torch.inf).softmax(-1)
    weight = geometry.sums(pattern)
    closer = torch.stack([(distance > 0) & (distance <= d) for d in within], dim=-1).double()
    mean_distance = weight @ distance / geometry.n
    return ProximityStatistics(
        score_by_offset=kernel,
        pattern_by_offset=weight / count,
        toeplitz_share=(sums * kernel.nan_to_num()).sum(-1) / energy,
        proximity_contrast=difference / (energy / count.sum()).sqrt(),
        mean_distance=mean_distance,
        mean_distance_ratio=mean_distance / (geometry.uniform @ distance / geometry.n),
        near_mass=weight @ closer / (geometry.uniform @ closer),
        entropy=torch.special.entr(pattern).sum((-2, -1)) / geometry.n,
    )
