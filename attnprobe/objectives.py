"""What a network is trained for: each objective turns a batch into logits, targets and a loss.

- *labels*: cross-entropy of the label of the sequence.
- *masked*: tokens are hidden independently with probability ``mask_share``; the loss is taken on hidden tokens only
  (Devlin et al. 2019, arXiv:1810.04805, without their 80/10/10 rule, as in Amos et al. 2024, arXiv:2310.02980).
- *next-token*: the token after each prefix; needs causal attention.

Token ids are scored by cross-entropy, and so are values that have levels; other real values by their absolute error, as
Amos et al. do for images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attnprobe.config import Objective
from attnprobe.transformer import Transformer


@dataclass(frozen=True)
class Batch:
    """Sequences on the device of the network."""

    inputs: Shaped[Tensor, "batch token"]
    labels: Shaped[Tensor, " batch"]
    lengths: Shaped[Tensor, " batch"] | None = None

    def real(self) -> Bool[Tensor, "batch token"]:
        """Return which tokens are not padding."""
        if self.lengths is None:
            return torch.ones_like(self.inputs, dtype=torch.bool)
        return torch.arange(self.inputs.shape[1], device=self.inputs.device) < self.lengths[:, None]


@dataclass(frozen=True)
class Outcome:
    """Sums over what was predicted; ``loss.mean`` is what training descends."""

    loss: Float[Tensor, ""]
    """Summed loss."""
    correct: Float[Tensor, ""] | None
    """Number of right answers; None where the answer is a real value."""
    count: int
    """Number of predictions."""

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Loss per prediction."""
        return self.loss / max(self.count, 1)


@dataclass(frozen=True)
class Predictions:
    """Every single prediction of a batch."""

    loss: Float[Tensor, " prediction"]
    correct: Float[Tensor, " prediction"] | None
    """1 for a right answer, 0 for a wrong one; None where the answer is a real value."""
    sequence: Int[Tensor, " prediction"]
    """The sequence that it belongs to."""
    sequences: int
    """Number of sequences."""

    def by_sequence(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"] | None]:
        """Return the mean loss and the share of right answers of each sequence; NaN where nothing is predicted."""
        count = torch.bincount(self.sequence, minlength=self.sequences)

        def mean(x: Tensor) -> Tensor:
            return x.new_zeros(self.sequences).index_add(0, self.sequence, x) / count

        return mean(self.loss), None if self.correct is None else mean(self.correct)


def draw_mask(
    real: Bool[Tensor, "batch token"], share: float, generator: torch.Generator
) -> Bool[Tensor, "batch token"]:
    """Return which tokens to hide: each real one (no padding) independently with probability ``share``."""
    return (torch.rand(real.shape, generator=generator) < share) & real


def predict(
    model: Transformer, batch: Batch, objective: Objective, mask: Bool[Tensor, "batch token"] | None = None
) -> Predictions:
    """Return the network's predictions on a batch; ``mask`` says which tokens are hidden, for *masked*."""
    hidden = mask if objective == "masked" else None
    return predictions(
        model, model.residual(batch.inputs, masked=hidden, lengths=batch.lengths), batch, objective, mask
    )


def predictions(
    model: Transformer,
    x: Float[Tensor, "batch prefix_and_token d_model"],
    batch: Batch,
    objective: Objective,
    mask: Bool[Tensor, "batch token"] | None = None,
) -> Predictions:
    """Return the predictions that the network reads from the residual stream x of a batch."""
    if objective == "labels":
        logits, target = model.read(x, lengths=batch.lengths), batch.labels
        sequence = torch.arange(len(target), device=target.device)
    elif objective == "masked":
        assert mask is not None, "the objective 'masked' needs a mask"
        logits = model.read(x, output="tokens")[mask]
        target, sequence = batch.inputs[mask], mask.nonzero()[:, 0]
    else:
        following = batch.real()[:, 1:]
        logits = model.read(x, output="tokens")[:, :-1][following]
        target, sequence = batch.inputs[:, 1:][following], following.nonzero()[:, 0]
    if target.is_floating_point() and model.data.levels:
        target = ((target + 1) * ((model.data.levels - 1) / 2)).round().long()
    if target.is_floating_point():
        return Predictions(F.l1_loss(logits[:, 0], target, reduction="none"), None, sequence, len(batch.inputs))
    correct = (logits.argmax(dim=-1) == target).float()
    return Predictions(F.cross_entropy(logits, target, reduction="none"), correct, sequence, len(batch.inputs))


def evaluate(
    model: Transformer, batch: Batch, objective: Objective, mask: Bool[Tensor, "batch token"] | None = None
) -> Outcome:
    """Return how well the network does on a batch, in sums over its predictions."""
    made = predict(model, batch, objective, mask)
    return Outcome(made.loss.sum(), None if made.correct is None else made.correct.sum(), len(made.loss))
