"""What a network is trained for: each objective says which outputs are predictions, and what is right.

- *labels*: cross-entropy of the label of the sequence.
- *masked*: tokens are masked independently with probability ``mask_probability``; the loss is taken on masked tokens
  only (Devlin et al. 2019, arXiv:1810.04805, without their 80/10/10 rule, as in Amos et al. 2024, arXiv:2310.02980).
- *next-token*: the token after each prefix; needs causal attention.

Token ids are scored by cross-entropy, and so are values that have levels; other real values by their absolute error, as
Amos et al. do for images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attnprobe.tables import OBJECTIVES


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


@dataclass(frozen=True)
class Objective:
    """An objective, as plain functions of what a network puts out.

    Adding one is an instance of this and one line in `attnprobe.tables.OBJECTIVES`.
    """

    output: Literal["labels", "tokens"]
    """The head of the network that is read: logits [batch, class_], or [batch, token, vocabulary]."""
    answers: Callable[[Tensor, Batch, Tensor | None], tuple[Tensor, Tensor, Tensor]]
    """From logits, batch and mask to the logits and the target of every prediction, and the sequence it belongs to."""
    count: Callable[[Tensor, Tensor | None], int]
    """From the lengths of some sequences and their mask to the number of predictions."""
    noun: str
    """What an accuracy is of, for titles."""
    hides_tokens: bool = False
    """Whether tokens are hidden from the network, by a mask."""
    needs_causal: bool = False
    """Whether bidirectional attention would see the answer."""


def _label(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return logits, batch.labels, torch.arange(len(batch.labels), device=batch.labels.device)


def _hidden_tokens(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    assert mask is not None, "the objective 'masked' needs a mask"
    return logits[mask], batch.inputs[mask], mask.nonzero()[:, 0]


def _following_tokens(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    following = batch.real()[:, 1:]
    return logits[:, :-1][following], batch.inputs[:, 1:][following], following.nonzero()[:, 0]


def _hidden(lengths: Tensor, mask: Tensor | None) -> int:
    assert mask is not None
    return int(mask.sum())


labels = Objective("labels", _label, lambda lengths, mask: len(lengths), "label")
masked = Objective("tokens", _hidden_tokens, _hidden, "masked-token", hides_tokens=True)
next_token = Objective(
    "tokens", _following_tokens, lambda lengths, mask: int((lengths - 1).sum()), "next-token", needs_causal=True
)


def draw_mask(
    real: Bool[Tensor, "batch token"], share: float, generator: torch.Generator
) -> Bool[Tensor, "batch token"]:
    """Return which tokens to hide: each real one (no padding) independently with probability ``share``."""
    return (torch.rand(real.shape, generator=generator) < share) & real


def predictions(
    logits: Tensor, batch: Batch, objective: str, mask: Bool[Tensor, "batch token"] | None = None, levels: int = 0
) -> Predictions:
    """Return the predictions in a network's logits; ``levels`` are those of the data (`DataSpec.levels`)."""
    logits, target, sequence = OBJECTIVES[objective].answers(logits, batch, mask)
    if target.is_floating_point() and levels:
        target = ((target + 1) * ((levels - 1) / 2)).round().long()
    if target.is_floating_point():
        return Predictions(F.l1_loss(logits[:, 0], target, reduction="none"), None, sequence, len(batch.inputs))
    correct = (logits.argmax(dim=-1) == target).float()
    return Predictions(F.cross_entropy(logits, target, reduction="none"), correct, sequence, len(batch.inputs))


@runtime_checkable
class Reads(Protocol):
    """What `predict` needs of our own network."""

    data: Any
    residual: Callable[..., Tensor]
    read: Callable[..., Tensor]


def predict(model: Reads, batch: Batch, objective: str, mask: Bool[Tensor, "batch token"] | None = None) -> Predictions:
    """Return the network's predictions on a batch; ``mask`` says what an objective that hides tokens hides."""
    hidden = mask if OBJECTIVES[objective].hides_tokens else None
    x = model.residual(batch.inputs, masked=hidden, lengths=batch.lengths)
    return predict_from(model, x, batch, objective, mask)


def predict_from(
    model: Reads,
    x: Float[Tensor, "batch prefix_and_token d_model"],
    batch: Batch,
    objective: str,
    mask: Bool[Tensor, "batch token"] | None = None,
) -> Predictions:
    """Return the predictions that the network reads from the last residual stream of a batch."""
    logits = model.read(x, lengths=batch.lengths, output=OBJECTIVES[objective].output)
    return predictions(logits, batch, objective, mask, model.data.levels)


def evaluate(model: Reads, batch: Batch, objective: str, mask: Bool[Tensor, "batch token"] | None = None) -> Outcome:
    """Return how well the network does on a batch, in sums over its predictions."""
    made = predict(model, batch, objective, mask)
    return Outcome(made.loss.sum(), None if made.correct is None else made.correct.sum(), len(made.loss))
