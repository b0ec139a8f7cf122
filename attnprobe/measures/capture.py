"""What the measures read from a network: the queries and keys of its forward pass, layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from attnprobe.statistics import Scores, score_statistics
from attnprobe.tasks import Split
from attnprobe.transformer import Transformer

ELEMENTS = 2**23
"""Queries and keys held at a time, in numbers."""


def chunks(
    split: Split, rows: np.ndarray, model: Transformer
) -> Iterator[tuple[np.ndarray, Shaped[Tensor, "batch token"]]]:
    """Yield rows of a split and their inputs, a few at a time, all of one length and without padding.

    The inputs are on the device of the network.
    """
    lengths = np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths
    for length in np.unique(lengths[rows]).tolist():
        places = np.flatnonzero(lengths[rows] == length)
        size = max(1, ELEMENTS // (2 * length * model.cfg.d_model * model.cfg.n_layers))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            yield chosen, split.tensor(rows[chosen], length).to(model.classify.weight.device)


def query_and_key(model: Transformer) -> tuple[str, str]:
    """Return the hooks that see queries and keys as they enter the score: rotated, where the encoding rotates."""
    return ("hook_rot_q", "hook_rot_k") if model.position.rotates else ("hook_q", "hook_k")


def catching(model: Transformer, names: Sequence[str], into: dict[str, Tensor]) -> AbstractContextManager[object]:
    """Return a context in which the named activations of every forward pass are put into a dictionary."""

    def catch(tensor: Tensor, hook: object, name: str) -> None:
        into[name] = tensor

    return model.hooks(fwd_hooks=[(name, partial(catch, name=name)) for name in names])


def by_head(
    model: Transformer, x: Shaped[Tensor, "batch prefix_and_token head d_head"]
) -> Shaped[Tensor, "batch head token d_head"]:
    """Return queries, keys or values as the statistics take them, without a token that the network puts in front."""
    return x.detach()[:, model.n_prefix :].transpose(1, 2)


def scores_by_layer(model: Transformer, inputs: Shaped[Tensor, "batch token"]) -> Iterator[Scores]:
    """Yield each layer's scores, as the queries and keys of the forward pass and the network's biases and mask.

    They are those that ``hook_attn_scores`` shows before any edit there, on the grid of an image; a token that the
    network itself puts in front ([CLS]) is left out.
    """
    caught: dict[str, Tensor] = {}
    names = [[f"blocks.{layer}.attn.{hook}" for hook in query_and_key(model)] for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), catching(model, sum(names, []), caught):
        model.residual(inputs.to(model.classify.weight.device))
        bias = model.bias(inputs.shape[1])
    for of_layer in names:
        q, k = (by_head(model, caught.pop(name)) for name in of_layer)
        yield Scores(q, k, bias=bias, causal=model.cfg.causal, grid=model.data.grid)


def mean_kernels(model: Transformer, split: Split, most: int) -> list[list[Float[Tensor, "head offset"]]]:
    """Return the mean score by offset in the longest sequences of a split, at most so many, layer by layer.

    The first list is in the line; a second one, where the tokens are pixels, on the grid. Least squares with a free
    constant for each query, at the offsets of the longest sequence that the network takes; 0 where there is no pair.
    """
    lengths = np.full(len(split), split.inputs.shape[1]) if split.lengths is None else split.lengths
    rows = np.flatnonzero(lengths == lengths.max())[:most]
    sums: list[list[Tensor]] = [[], []]
    for _, inputs in chunks(split, rows, model):
        for layer, scores in enumerate(scores_by_layer(model, inputs)):
            finest = score_statistics(scores)
            for view, found in zip(sums, (finest.in_line(), finest), strict=True):
                kernel = found.kernel.nan_to_num().sum(0) / len(rows)
                if layer == len(view):
                    view.append(torch.zeros_like(kernel))
                view[layer] += kernel
    short = model.data.n - int(lengths.max())
    return [[F.pad(one, (short, short)) for one in sums[0]], *([sums[1]] if model.data.grid is not None else [])]
