"""The seam: all that a measure sees of a network.

A network runs, and in its forward passes a given function takes the place of attention in every layer. To read scores,
to differentiate with respect to them and to edit them are three uses of that one function:

- *read*: condition at the `Heads` and attend as the network would (`read`);
- *differentiate*: make z a leaf, and take the gradient of a loss with respect to it (`differentiate`);
- *edit*: return another z.

What only some networks can do is in protocols of their own (`KnowsPositions`, `KnowsMaps`, `Resumes`, `Fits`, `Swaps`,
`Doubles`). A measure asks with ``isinstance`` and leaves out what needs them, saying so in its result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnprobe.errors import UsageError, listed
from attnprobe.scores import Heads
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Task
from attnprobe.training.objectives import Batch, Predictions

Attend = Callable[[Heads], Tensor]
"""From what a layer is about to attend with to its z, [batch, head, token, d_head]."""
Mask = Bool[Tensor, "batch token"] | None


@dataclass(frozen=True)
class Shape:
    """The sizes of a network."""

    layers: int
    heads: int
    n: int
    """Tokens in the longest sequence."""
    d_model: int
    grid: tuple[int, int] | None = None
    """Rows and columns if the tokens are pixels read row by row."""
    causal: bool = False
    prefix: int = 0
    """Tokens that the network puts in front of the sequence ([CLS])."""


@runtime_checkable
class Network(Protocol):
    """A network with attention, in evaluation mode."""

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield its weights."""
        ...

    def attending(self, attend: Attend) -> AbstractContextManager[None]:
        """Let a function take the place of attention in every layer of every forward pass."""
        ...

    def predictions(self, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Run the network and return its predictions; ``mask`` hides tokens if the objective does."""
        ...

    def untrained(self, seed: int) -> "Network | None":
        """Return a network of the same configuration at initialisation, or None if that cannot be made."""
        ...


@runtime_checkable
class KnowsPositions(Protocol):
    """A network that knows its position encoding."""

    encoding: str
    """Its name."""
    silent: bool
    """Whether nothing but the encoding of the first layer can tell positions: without encoding and mask nothing can."""
    rotates: bool
    """Whether queries and keys are rotated by their positions."""
    frequency: Float[Tensor, " pair"] | None
    """Periods per token of each pair of coordinates (2m, 2m + 1), if the encoding is made of waves."""

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the whole bias among n tokens, at the offsets of their line or grid."""
        ...

    def first_scale(self, batch: Batch, mask: Mask = None) -> Float[Tensor, "batch token 1"] | None:
        """Return the scale of the norm before the first layer's attention, or None without one."""
        ...

    def position_parts(self, scale: Float[Tensor, "*batch token 1"] | None, n: int) -> tuple[Tensor, Tensor] | None:
        """Return what position vectors add to the first layer's queries and keys, [batch, head, token, d_head].

        Vectors less their mean over positions, at a scale of the norm; None if the encoding adds no vectors.
        """
        ...

    def turn(self, x: Float[Tensor, "*lead token d_head"], places: Float[Tensor, " token"]) -> Tensor:
        """Return queries or keys with each token rotated further, by that many positions."""
        ...

    def vector_maps(self, scale: Float[Tensor, "*batch token 1"] | None) -> tuple[Tensor, Tensor]:
        """Return the maps [head, d_model, d_head] from position vectors to the first layer's queries and keys.

        At the harmonic mean of the norm's scale over positions.
        """
        ...


@runtime_checkable
class KnowsMaps(Protocol):
    """A network whose scores come from one query and one key map per head."""

    def query_key_maps(
        self,
    ) -> tuple[Float[Tensor, "layer head d_model d_head"], Float[Tensor, "layer head d_model d_head"]]:
        """Return the query and the key map of every head."""
        ...


@runtime_checkable
class Resumes(Protocol):
    """A network that can go on from the residual stream before a layer."""

    def streams(self, batch: Batch, mask: Mask = None) -> list[Tensor]:
        """Run the network and return the residual stream before each layer."""
        ...

    def resumed(self, stream: Tensor, layer: int, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Return the predictions, given the residual stream before a layer."""
        ...


@runtime_checkable
class Fits(Protocol):
    """A network whose output head can be trained while all else stays as it is."""

    def fitted(self, objective: str, steps: int, seed: int, uniform: bool) -> Network:
        """Return a copy with the output head trained for some steps; at uniform attention, with its value maps too."""
        ...


@runtime_checkable
class Swaps(Protocol):
    """A network that can take another's query and key maps."""

    def with_maps_of(self, other: Any, heads: Sequence[tuple[int, slice]]) -> Network:
        """Return a copy with the other network's query and key maps in some heads of some layers."""
        ...


@runtime_checkable
class Doubles(Protocol):
    """A network that can compute in float64."""

    def in_double(self) -> Network:
        """Return a copy in float64."""
        ...


@dataclass(frozen=True)
class Probe:
    """A network and the data it is measured on."""

    network: Network
    data: Callable[[], Task]
    """Makes the task whose training and test sequences the network is measured on."""
    objective: str = "labels"
    """The objective whose loss and accuracy interventions report."""
    objectives: tuple[str, ...] = ("labels",)
    """The objectives that the network can be evaluated on."""
    mask_probability: float = 0.3
    """Probability with which a token is hidden, for objectives that hide tokens."""
    title: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Train and test accuracy, if known."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What results say of where the network comes from."""

    def __post_init__(self) -> None:
        """Check that the network can be run under some objective."""
        if not self.objectives:
            raise UsageError(f"objectives=(): a probe needs at least one; valid: {listed(OBJECTIVES)}")

    @cached_property
    def task(self) -> Task:
        """The task."""
        return self.data()


def device_of(network: Network) -> torch.device:
    """Return the device that a network's inputs belong on."""
    return next(network.parameters()).device


def read(network: Network, batch: Batch, objective: str, see: Callable[[Heads], object], mask: Mask = None) -> None:
    """Show each layer's heads, among the tokens of the sequence, as they come in a forward pass."""

    def attend(heads: Heads) -> Tensor:
        see(heads.behind_prefix().detached())
        return heads.attend()

    if mask is None and OBJECTIVES[objective].hides_tokens:
        mask = torch.zeros_like(batch.inputs, dtype=torch.bool)  # the sequence as it is

    with torch.no_grad(), network.attending(attend):
        network.predictions(batch, objective, mask)


def differentiate(
    network: Network,
    batch: Batch,
    objective: str,
    mask: Mask = None,
    change: Callable[[Heads], Heads] = lambda heads: heads,
) -> list[tuple[Heads, Float[Tensor, "batch head token d_head"]]]:
    """Return every layer's heads with the gradient of each sequence's own mean loss with respect to their z.

    ``change`` is applied to what each layer attends with first.
    """
    kept: list[tuple[Heads, Tensor]] = []

    def leaf(heads: Heads) -> Tensor:
        heads = change(heads)
        z = heads.attend()
        z = z if z.requires_grad else z.detach().requires_grad_()
        kept.append((heads, z))
        return z

    weights = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in weights:  # their gradients are not needed
            weight.requires_grad_(False)
        with torch.enable_grad(), network.attending(leaf):
            loss, _ = network.predictions(batch, objective, mask).by_sequence()
            slopes = torch.autograd.grad(loss.nansum(), [z for _, z in kept])
    finally:
        for weight in weights:
            weight.requires_grad_()
    return [(heads.detached(), slope) for (heads, _), slope in zip(kept, slopes, strict=True)]
