"""Exact statistics of attention scores, patterns and gradients from queries, keys and values.

Independent of any model or checkpoint. No n x n array is allocated, at any sequence length:

>>> import torch
>>> from attnprobe.statistics import Scores, pattern_statistics, score_statistics
>>> q, k = torch.randn(2, 1, 4, 3000, 16)  # [batch, head, token, d_head] of any network
>>> scores = Scores(q, k)
>>> score_statistics(scores).toeplitz_share.shape, pattern_statistics(scores).mass_by_offset.shape
(torch.Size([1, 4]), torch.Size([1, 4, 5999]))
"""

from attnprobe.scores import Scores
from attnprobe.statistics.gradient import GradientStatistics, gradient_product, gradient_statistics
from attnprobe.statistics.moments import Moments
from attnprobe.statistics.pattern import PatternStatistics, pattern_statistics
from attnprobe.statistics.score import ScoreStatistics, covariance, score_statistics

__all__ = [
    "GradientStatistics",
    "Moments",
    "PatternStatistics",
    "ScoreStatistics",
    "Scores",
    "covariance",
    "gradient_product",
    "gradient_statistics",
    "pattern_statistics",
    "score_statistics",
]
