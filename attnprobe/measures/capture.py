"""What the measures read from a network: the scores that its forward pass computed, layer by layer."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from attnprobe.attention import Additive, scores
from attnprobe.tasks import Split
from attnprobe.transformer import Transformer

ELEMENTS = 2**22
"""Scores held at a time."""


def chunks(split: Split, rows: np.ndarray, heads: int) -> Iterator[tuple[np.ndarray, Shaped[Tensor, "batch token"]]]:
    """Yield rows of a split and their inputs, a few at a time, all of one length and without padding."""
    lengths = np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths
    for length in np.unique(lengths[rows]).tolist():
        places = np.flatnonzero(lengths[rows] == length)
        size = max(1, ELEMENTS // (heads * length**2))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            yield chosen, split.tensor(rows[chosen], length)


def scores_by_layer(
    model: Transformer, inputs: Shaped[Tensor, "batch token"]
) -> Iterator[Float[Tensor, "batch head query key"]]:
    """Yield each layer's scores in float64, with their position bias but without the causal mask.

    They are computed by `attnprobe.attention.scores` from the queries and keys of the forward pass, and are those that
    ``hook_attn_scores`` shows before any edit there; a token that the network itself puts in front ([CLS]) is left out.
    """
    names = ("hook_rot_q", "hook_rot_k") if model.position.rotates else ("hook_q", "hook_k")
    caught: dict[str, Tensor] = {}

    def catch(tensor: Tensor, hook: object, name: str) -> None:
        caught[name] = tensor.detach()

    wanted = [f"blocks.{layer}.attn.{name}" for layer in range(model.cfg.n_layers) for name in names]
    device = next(model.parameters()).device
    n = inputs.shape[1]
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(catch, name=name)) for name in wanted]):
        model.residual(inputs.to(device))
        additive = Additive(n, device, model.position.bias(n))
    for layer in range(model.cfg.n_layers):
        q, k = (caught[f"blocks.{layer}.attn.{name}"][:, model.n_prefix :].double() for name in names)
        yield scores(q, k, additive).cpu()
