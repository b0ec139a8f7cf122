"""Network interface that the measures use.

A `Network` runs forward passes in which a caller's function replaces attention in every layer. That function serves
three purposes:

- *read*: inspect the `Heads` and attend as the network would (`read`);
- *differentiate*: make z a leaf and compute the gradient of a loss with respect to it (`differentiate`);
- *edit*: return another z.

Optional capabilities are separate protocols (`LeavesOut`, `KnowsTokens`, `Reorders`, `KnowsPositions`, `AddsPositions`,
`KnowsMaps`, `Resumes`, `Fits`, `Swaps`, `Doubles`). A measure checks for them with ``isinstance``; it omits variables
that need a missing capability and lists them in its result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnprobe.errors import NonFiniteError, UsageError, listed
from attnprobe.networks.finite import check_predictions
from attnprobe.scores import Heads
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Task
from attnprobe.training.objectives import Batch, Predictions

Attend = Callable[[Heads], Tensor]
"""Function that maps the inputs of a layer's attention to its z, [batch, head, token, d_head]."""
Mask = Bool[Tensor, "batch token"] | None


@dataclass(frozen=True)
class Shape:
    """Sizes of a network."""

    layers: int
    heads: int
    n: int
    """Number of tokens in the longest sequence."""
    d_model: int
    grid: tuple[int, int] | None = None
    """Rows and columns if the tokens are pixels, or patches of an image, in row-major order."""
    causal: bool = False
    prefix: int = 0
    """Number of prepended tokens ([CLS])."""
    left_out: int = 0
    """Number of special tokens at both ends that attend and are attended to, but are not measured."""
    windows: tuple[int | None, ...] = ()
    """Largest visible distance in each layer, None without a limit; empty if no layer has sliding-window attention."""
    sinks: bool = False
    """Whether queries also attend to a sink, which has a score and no value."""
    knows_queries: bool = True
    """Whether scores are given as products of queries and keys, which can be split into content and position."""
    inputs_are_tokens: bool = True
    """Whether a batch has one input per token, so that inputs can be permuted to permute the tokens."""
    grid_unit: str = "pixels"
    """What the tokens of a grid are, pixels or patches: the unit of distances on it."""

    def window(self, layer: int) -> int | None:
        """Return the largest visible distance in a layer, or None without a limit."""
        return self.windows[layer] if self.windows else None


@runtime_checkable
class Network(Protocol):
    """A network with attention, in evaluation mode."""

    @property
    def shape(self) -> Shape:
        """Sizes of the network."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Iterate over the weights."""
        ...

    def attending(self, attend: Attend) -> AbstractContextManager[None]:
        """Replace attention with a function, in every layer of every forward pass within a ``with`` block."""
        ...

    def predictions(self, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Run the network and return its predictions; ``mask`` is used only by objectives that mask tokens."""
        ...

    def untrained(self, seed: int) -> "Network | None":
        """Return a newly initialised network of the same configuration, or None if that is impossible."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """Network that does not measure some tokens inside its sequences, although they attend and are attended to."""

    def left_out(self, batch: Batch) -> Bool[Tensor, "batch token"] | None:
        """Return which tokens are not measured, on the CPU, or None if there are none in any batch."""
        ...


@runtime_checkable
class NamesTokens(Protocol):
    """Network whose inputs are not the task's, and which knows what its tokens are."""

    def token_names(self, batch: Batch) -> tuple[str, list[str]]:
        """Return a name of the first sequence of a batch, and a text for each of its tokens, left out or not."""
        ...


@runtime_checkable
class KnowsTokens(Protocol):
    """Network whose tokens may be ids, which can be compared with each other."""

    def token_ids(self, batch: Batch) -> Int[Tensor, "batch token"] | None:
        """Return the ids of the tokens, without prefix and suffix, or None if the network reads no ids."""
        ...


@runtime_checkable
class Reorders(Protocol):
    """Network of other inputs than one per token, which may run with its tokens in another order."""

    def reordered(self, batch: Batch, order: Int[Tensor, "batch token"]) -> "Network | None":
        """Return the network that has token ``order[b, p]`` at position p in sequence b of a batch.

        Prefix and suffix stay. Returns None if the inputs of the network are not those of the measured tokens.
        """
        ...


@runtime_checkable
class KnowsPositions(Protocol):
    """Network with a known position encoding."""

    encoding: str
    """Name of the position encoding."""
    silent: bool
    """Whether residual streams carry no position information: no position encoding and no causal mask."""
    rotates: bool
    """Whether queries and keys are rotated according to their positions."""
    frequency: Float[Tensor, " pair"] | None
    """Periods per token of each coordinate pair (2m, 2m + 1) of a sinusoidal or rotary encoding, else None."""

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the total bias between n tokens at their 1-D or 2-D offsets, or None without one."""
        ...

    def first_scale(self, batch: Batch, mask: Mask = None) -> Float[Tensor, "batch token 1"] | None:
        """Return the scale of the norm before the first layer's attention, or None without one."""
        ...

    def position_parts(self, scale: Float[Tensor, "*batch token 1"] | None, n: int) -> tuple[Tensor, Tensor] | None:
        """Return the contribution of position vectors to the first layer's queries and keys.

        Both have axes [batch, head, token, d_head]. The vectors are centred over positions and normalised with
        ``scale``, the scale of the norm. Returns None if the encoding adds no vectors.
        """
        ...

    def with_positions(
        self, batch: Batch, positions: Int[Tensor, " token"], mask: Mask = None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the first layer's queries and keys if the tokens have the position vectors of other positions.

        Both have axes [batch, head, token, d_head], with prepended tokens, which keep their vectors. Embedding, norm
        and maps are recomputed. Returns None if the encoding adds no vectors.
        """
        ...

    def turn(self, x: Float[Tensor, "*lead token d_head"], places: Float[Tensor, " token"]) -> Tensor:
        """Rotate the queries or keys of each token further, by the given number of positions."""
        ...

    def vector_maps(self, scale: Float[Tensor, "*batch token 1"] | None) -> tuple[Tensor, Tensor]:
        """Return the maps [head, d_model, d_head] from position vectors to the first layer's queries and keys.

        The maps include the norm, at the harmonic mean of its scale over positions.
        """
        ...


@runtime_checkable
class AddsPositions(Protocol):
    """Network of unknown encoding that may add position vectors to its inputs, or a bias to its scores."""

    def layer_bias(self, layer: int) -> Float[Tensor, "head offset"] | None:
        """Return the bias between n tokens at their 1-D or 2-D offsets in a layer, or None without one."""
        ...

    def first_position_parts(self, batch: Batch, mask: Mask = None) -> tuple[Tensor, Tensor] | None:
        """Return the exact contribution of position vectors to the first layer's queries and keys, if there is one.

        As in `KnowsPositions.position_parts`, with the scale of the norms in the forward pass of this batch; without
        prefix and suffix.
        """
        ...


@runtime_checkable
class KnowsMaps(Protocol):
    """Network whose scores are computed with one query map and one key map per head."""

    def query_key_maps(
        self,
    ) -> tuple[Float[Tensor, "layer head d_model d_head"], Float[Tensor, "layer head d_model d_head"]]:
        """Return the query maps and the key maps of all heads."""
        ...


@runtime_checkable
class Resumes(Protocol):
    """Network whose forward pass can resume from the residual stream before a layer."""

    def streams(self, batch: Batch, mask: Mask = None) -> list[Tensor]:
        """Run the network and return the residual stream before each layer and after the last one.

        If gradients are enabled, all streams can be differentiated with respect to the first one.
        """
        ...

    def resumed(self, stream: Tensor, layer: int, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Resume the forward pass from the residual stream before a layer and return the predictions."""
        ...


@runtime_checkable
class Fits(Protocol):
    """Network whose output head can be trained with all other weights frozen."""

    def fitted(self, objective: str, steps: int, seed: int, uniform: bool) -> Network:
        """Return a copy whose output head is trained for a number of steps.

        With ``uniform``, the copy attends uniformly during training, and its value and output maps are trained too.
        """
        ...


@runtime_checkable
class Swaps(Protocol):
    """Network whose query and key maps can be replaced with those of another network."""

    def with_maps_of(self, other: Any, heads: Sequence[tuple[int, slice]]) -> Network:
        """Return a copy with the other network's query and key maps in the given (layer, slice of heads) pairs."""
        ...


@runtime_checkable
class Doubles(Protocol):
    """Network that can compute in float64."""

    def in_double(self) -> Network:
        """Return a copy in float64."""
        ...


@dataclass(frozen=True)
class Probe:
    """A network and the data that it is measured on."""

    network: Network
    data: Callable[[], Task]
    """Function that loads or generates the task whose training and test sequences the network is measured on."""
    objective: str = "labels"
    """Objective whose loss and accuracy interventions report."""
    objectives: tuple[str, ...] = ("labels",)
    """Objectives that the network can be evaluated on."""
    mask_probability: float = 0.3
    """Probability that a token is masked, for objectives that mask tokens."""
    title: str = ""
    """Title of figures."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Train and test accuracy, if known."""
    has_loss: bool = True
    """Whether the network's predictions have a loss; without one, gradients cannot be measured."""
    has_logits: bool = True
    """Whether edited predictions can be compared with unedited ones; without loss and logits, only scores are measured.
    """
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the network (step, configuration ...), saved as attributes of results."""

    def __post_init__(self) -> None:
        """Check that there is at least one objective."""
        if not self.objectives:
            raise UsageError(f"objectives=(): a probe needs at least one objective; valid: {listed(OBJECTIVES)}")

    @cached_property
    def task(self) -> Task:
        """Task that the network is measured on."""
        return self.data()


def device_of(network: Network) -> torch.device:
    """Return the device of a network's parameters."""
    return next(network.parameters()).device


def read(network: Network, batch: Batch, objective: str, see: Callable[[Heads], object], mask: Mask = None) -> None:
    """Run a forward pass and call ``see`` with the `Heads` of each layer, between measured tokens (`Heads.inner`)."""

    def attend(heads: Heads) -> Tensor:
        try:
            see(heads.inner().detached())
        except NonFiniteError as error:
            raise NonFiniteError(f"layer {heads.layer}: {error}") from error
        return heads.attend()

    if mask is None and OBJECTIVES[objective].masks_tokens:
        mask = torch.zeros_like(batch.real())  # no masked tokens

    with torch.no_grad(), network.attending(attend):
        network.predictions(batch, objective, mask)


def differentiate(
    network: Network,
    batch: Batch,
    objective: str,
    mask: Mask = None,
    change: Callable[[Heads], Heads] = lambda heads: heads,
) -> list[tuple[Heads, Float[Tensor, "batch head any_token d_head"]]]:
    """Return the heads of every layer with the gradient of each sequence's mean loss with respect to their z.

    ``change`` edits the heads of each layer before they attend. Raises `NonFiniteError` if a loss is NaN or infinite.
    """
    layers: list[tuple[Heads, Tensor]] = []

    def attend(heads: Heads) -> Tensor:
        heads = change(heads)
        z = heads.attend()
        z = z if z.requires_grad else z.detach().requires_grad_()
        layers.append((heads, z))
        return z

    weights = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in weights:  # no gradients of the weights are needed
            weight.requires_grad_(False)
        with torch.enable_grad(), network.attending(attend):
            predictions = network.predictions(batch, objective, mask)
            loss, _ = check_predictions(predictions, f"losses ({objective})").by_sequence()
            gradients = torch.autograd.grad(loss.nansum(), [z for _, z in layers])
    finally:
        for weight in weights:
            weight.requires_grad_()
    return [(heads.detached(), gradient) for (heads, _), gradient in zip(layers, gradients, strict=True)]
