"""What the measures read from a network: the queries and keys of its forward pass, layer by layer."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from attnprobe.statistics import Scores
from attnprobe.tasks import Split
from attnprobe.transformer import Transformer

ELEMENTS = 2**23
"""Queries and keys held at a time, in numbers."""


def chunks(
    split: Split, rows: np.ndarray, model: Transformer
) -> Iterator[tuple[np.ndarray, Shaped[Tensor, "batch token"]]]:
    """Yield rows of a split and their inputs, a few at a time, all of one length and without padding."""
    lengths = np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths
    for length in np.unique(lengths[rows]).tolist():
        places = np.flatnonzero(lengths[rows] == length)
        size = max(1, ELEMENTS // (2 * length * model.cfg.d_model * model.cfg.n_layers))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            yield chosen, split.tensor(rows[chosen], length)


def scores_by_layer(model: Transformer, inputs: Shaped[Tensor, "batch token"]) -> Iterator[Scores]:
    """Yield each layer's scores, as the queries and keys of the forward pass and the network's biases and mask.

    They are those that ``hook_attn_scores`` shows before any edit there, on the grid of an image; a token that the
    network itself puts in front ([CLS]) is left out.
    """
    names = ("hook_rot_q", "hook_rot_k") if model.position.rotates else ("hook_q", "hook_k")
    caught: dict[str, Tensor] = {}

    def catch(tensor: Tensor, hook: object, name: str) -> None:
        caught[name] = tensor.detach()[:, model.n_prefix :].transpose(1, 2)

    wanted = [f"blocks.{layer}.attn.{name}" for layer in range(model.cfg.n_layers) for name in names]
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(catch, name=name)) for name in wanted]):
        model.residual(inputs.to(model.classify.weight.device))
        bias = model.bias(inputs.shape[1])
    for layer in range(model.cfg.n_layers):
        q, k = (caught.pop(f"blocks.{layer}.attn.{name}") for name in names)
        yield Scores(q, k, bias=bias, causal=model.cfg.causal, grid=model.data.grid)
