"""Autocovariance of the data by offset, and how well a learned score profile agrees with it."""

import numpy as np

from attnprobe.tasks import Split


def autocovariance(split: Split, offsets: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the norm of the covariance of tokens d positions apart, for d = 1, 2, ..., and under a null.

    With one-hot tokens $e_i$ of a sequence,

    $$a(d) = \lVert \tfrac{1}{n - d} \sum_i \mathrm{Cov}(e_i, e_{i + d}) \rVert_F$$

    where the covariance is over sequences, so that what is common to all sequences at a position does not count. In the
    null, the second token comes from another sequence, which leaves only the sampling error.
    """
    one_hot = np.eye(int(split.inputs.max()) + 1)[split.inputs]
    centred = one_hot - one_hot.mean(0)
    count, n = centred.shape[:2]

    def sizes(other: np.ndarray) -> np.ndarray:
        covariances = (
            np.einsum("siv,siw->vw", centred[:, : n - d], other[:, d:]) / (count * (n - d))
            for d in range(1, offsets + 1)
        )
        return np.array([np.linalg.norm(covariance) for covariance in covariances])

    return sizes(centred), sizes(np.roll(centred, 1, axis=0))


def correlation(kernel: np.ndarray, of_data: np.ndarray) -> np.ndarray:
    """Return the correlation of arrays over their last axis, the distance."""
    kernel, of_data = (values - values.mean(-1, keepdims=True) for values in (kernel, of_data))
    return (kernel * of_data).sum(-1) / np.sqrt(np.square(kernel).sum(-1) * np.square(of_data).sum(-1))
