"""Training objectives: which network outputs are predictions, and their targets.

- *labels*: cross-entropy of the sequence's label.
- *masked*: tokens are masked independently with probability ``mask_probability``; the loss covers masked tokens only
  (Devlin et al. 2019, arXiv:1810.04805, without their 80/10/10 rule, as in Amos et al. 2024, arXiv:2310.02980).
- *next-token*: prediction of the token after each prefix; needs causal attention.
- *autoencoding*: reconstruction of every token from the unmasked sequence, which needs no attention: a control.

The loss is cross-entropy for token ids and for values with a fixed number of levels, and absolute error for other real
values, as in Amos et al. for images. A token with several channels is one prediction; its loss is the mean over them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attnprobe.tables import OBJECTIVES


@dataclass(frozen=True)
class Batch:
    """Sequences with labels and lengths, on the network's device."""

    inputs: Shaped[Tensor, "batch token *channel"]
    labels: Shaped[Tensor, " batch"]
    lengths: Shaped[Tensor, " batch"] | None = None

    def real(self) -> Bool[Tensor, "batch token"]:
        """Return a mask of the tokens that are not padding."""
        if self.lengths is None:
            return torch.ones(self.inputs.shape[:2], dtype=torch.bool, device=self.inputs.device)
        return torch.arange(self.inputs.shape[1], device=self.inputs.device) < self.lengths[:, None]


@dataclass(frozen=True)
class Outcome:
    """Loss and number of correct predictions, summed over predictions; training minimises `mean`."""

    loss: Float[Tensor, ""]
    """Summed loss."""
    correct: Float[Tensor, ""] | None
    """Number of correct predictions; None for real-valued targets."""
    count: int
    """Number of predictions."""

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Loss per prediction."""
        return self.loss / max(self.count, 1)


@dataclass(frozen=True)
class Predictions:
    """Loss and correctness of each prediction of a batch."""

    loss: Float[Tensor, " prediction"]
    correct: Float[Tensor, " prediction"] | None
    """1 if correct, else 0; None for real-valued targets."""
    sequence: Int[Tensor, " prediction"]
    """Index of the sequence that each prediction belongs to."""
    sequences: int
    """Number of sequences in the batch."""
    logits: Float[Tensor, "prediction class_"] | None = None
    """Logits, for networks without targets: their predictions can be compared with others."""
    errors: Float[Tensor, "prediction channel"] | None = None
    """Absolute error of each channel, whose mean is the loss; None unless the data have several channels."""

    def compared_with(self, other: "Predictions") -> "Predictions":
        r"""Return the predictions with the KL divergence from another network's predictions as the loss, in nats.

        $$\mathrm{KL} = \sum_c p_c (\log p_c - \log q_c)$$

        with p of the other network and q of this one. They count as correct if both have the same most likely class.
        """
        assert self.logits is not None and other.logits is not None
        log_q, log_p = (logits.double().log_softmax(-1) for logits in (self.logits, other.logits))
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).clamp(min=0)
        same = (self.logits.argmax(-1) == other.logits.argmax(-1)).float()
        return replace(self, loss=divergence, correct=same)

    def by_sequence(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"] | None]:
        """Return the mean loss and the accuracy of each sequence; NaN for sequences without predictions."""
        count = torch.bincount(self.sequence, minlength=self.sequences)

        def mean(x: Tensor) -> Tensor:
            return x.new_zeros(self.sequences).index_add(0, self.sequence, x) / count

        return mean(self.loss), None if self.correct is None else mean(self.correct)


@dataclass(frozen=True)
class Objective:
    """An objective, defined by functions of the network's outputs.

    To add an objective, create an instance and register it in `attnprobe.tables.OBJECTIVES`.
    """

    output: Literal["labels", "tokens"]
    """Output head that is read: labels [batch, class_] or tokens [batch, token, vocabulary or channel]."""
    answers: Callable[[Tensor, Batch, Tensor | None], tuple[Tensor, Tensor, Tensor]]
    """Map logits, batch and mask to the logits, the target and the sequence index of every prediction."""
    count: Callable[[Tensor, Tensor | None], int]
    """Map sequence lengths and mask to the number of predictions."""
    noun: str
    """Name of the predicted item, for titles: "label" accuracy."""
    masks_tokens: bool = False
    """Whether input tokens are masked."""
    needs_causal: bool = False
    """Whether bidirectional attention would reveal the target."""
    control: bool = False
    """Whether measures use it only for networks that were trained with it."""


def _label(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return logits, batch.labels, torch.arange(len(batch.labels), device=batch.labels.device)


def _masked_tokens(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    assert mask is not None, "the objective 'masked' needs a mask"
    return logits[mask], batch.inputs[mask], mask.nonzero()[:, 0]


def _next_tokens(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    real = batch.real()[:, 1:]
    return logits[:, :-1][real], batch.inputs[:, 1:][real], real.nonzero()[:, 0]


def _all_tokens(logits: Tensor, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    real = batch.real()
    return logits[real], batch.inputs[real], real.nonzero()[:, 0]


def _masked_count(lengths: Tensor, mask: Tensor | None) -> int:
    assert mask is not None
    return int(mask.sum())


labels = Objective("labels", _label, lambda lengths, mask: len(lengths), "label")
masked = Objective("tokens", _masked_tokens, _masked_count, "masked-token", masks_tokens=True)
next_token = Objective(
    "tokens", _next_tokens, lambda lengths, mask: int((lengths - 1).sum()), "next-token", needs_causal=True
)
autoencoding = Objective(
    "tokens", _all_tokens, lambda lengths, mask: int(lengths.sum()), "token reconstruction", control=True
)


def draw_mask(
    real: Bool[Tensor, "batch token"], share: float, generator: torch.Generator
) -> Bool[Tensor, "batch token"]:
    """Draw a mask: each real token (not padding) is masked independently with probability ``share``."""
    return (torch.rand(real.shape, generator=generator) < share) & real


def predictions(
    logits: Tensor, batch: Batch, objective: str, mask: Bool[Tensor, "batch token"] | None = None, levels: int = 0
) -> Predictions:
    """Return the predictions in a network's logits; ``levels`` is `DataSpec.levels`."""
    logits, target, sequence = OBJECTIVES[objective].answers(logits, batch, mask)
    if target.is_floating_point() and levels:
        target = ((target + 1) * ((levels - 1) / 2)).round().long()
    if target.is_floating_point():
        errors = F.l1_loss(logits, target.reshape(logits.shape), reduction="none")
        several = errors if errors.shape[1] > 1 else None
        return Predictions(errors.mean(-1), None, sequence, len(batch.inputs), errors=several)
    correct = (logits.argmax(dim=-1) == target).float()
    return Predictions(F.cross_entropy(logits, target, reduction="none"), correct, sequence, len(batch.inputs))


@runtime_checkable
class Reads(Protocol):
    """Interface of a network that `predict` accepts."""

    data: Any
    residual: Callable[..., Tensor]
    read: Callable[..., Tensor]


def predict(model: Reads, batch: Batch, objective: str, mask: Bool[Tensor, "batch token"] | None = None) -> Predictions:
    """Return the network's predictions on a batch; objectives that mask tokens need ``mask``."""
    input_mask = mask if OBJECTIVES[objective].masks_tokens else None
    x = model.residual(batch.inputs, masked=input_mask, lengths=batch.lengths)
    return predict_from(model, x, batch, objective, mask)


def predict_from(
    model: Reads,
    x: Float[Tensor, "batch prefix_and_token d_model"],
    batch: Batch,
    objective: str,
    mask: Bool[Tensor, "batch token"] | None = None,
) -> Predictions:
    """Return the network's predictions from the final residual stream of a batch."""
    logits = model.read(x, lengths=batch.lengths, output=OBJECTIVES[objective].output)
    return predictions(logits, batch, objective, mask, model.data.levels)


def evaluate(
    model: Reads,
    batch: Batch,
    objective: str,
    mask: Bool[Tensor, "batch token"] | None = None,
    weights: Float[Tensor, " class_"] | None = None,
) -> Outcome:
    """Return the loss and number of correct predictions of the network, summed over a batch.

    ``weights`` multiply the loss of each prediction, by the class of its sequence.
    """
    result = predict(model, batch, objective, mask)
    loss = result.loss if weights is None else result.loss * weights[batch.labels[result.sequence]]
    return Outcome(loss.sum(), None if result.correct is None else result.correct.sum(), len(loss))


def balanced_weights(labels: np.ndarray, classes: int) -> Float[Tensor, " class_"]:
    r"""Return the weight of each class, with mean 1 over the sequences; 0 for a class without sequences.

    $$w_c = \frac{N}{K N_c}$$

    for N sequences of K classes, N_c of them of class c.
    """
    count = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), (count > 0).sum() * count, out=np.zeros(classes), where=count > 0)
    return torch.from_numpy(weights).float()
