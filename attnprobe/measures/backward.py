"""What the gradient measure reads from a network: the gradient of a loss with respect to the output of every head."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnprobe.batches import batch_rows, lengths_of, mask_of, take
from attnprobe.config import Objective, TrainConfig
from attnprobe.measures.capture import query_and_key
from attnprobe.objectives import Batch, evaluate, predict
from attnprobe.randomness import torch_generator
from attnprobe.statistics import Scores
from attnprobe.tasks import Task
from attnprobe.transfer import select
from attnprobe.transformer import Transformer

RATE = 1e-3
"""Learning rate of `fit`, constant."""


@dataclass(frozen=True)
class LayerGradient:
    """What the score gradient of one layer follows from, on sequences of one length without padding."""

    scores: Scores
    v: Float[Tensor, "batch head token d_head"]
    dz: Float[Tensor, "batch head token d_head"]
    """Gradient of each sequence's mean loss with respect to the head's output, through all that follows."""
    inputs: Float[Tensor, "batch token d_model"]
    """What the query and key maps read."""


def score_gradients(
    model: Transformer, batch: Batch, objective: Objective, mask: Bool[Tensor, "batch token"] | None = None
) -> list[LayerGradient]:
    """Return every layer's part of the gradient of each sequence's own mean loss."""
    query, key = query_and_key(model)
    caught: dict[str, Tensor] = {}

    def catch(tensor: Tensor, hook: object) -> None:
        caught[getattr(hook, "name", "")] = tensor

    def leaf(tensor: Tensor, hook: object) -> Tensor:
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        caught[getattr(hook, "name", "")] = tensor
        return tensor

    layers = range(model.cfg.n_layers)
    read = "ln1.hook_normalized" if model.cfg.norm_place == "pre" else "hook_resid_pre"
    names = [
        [f"blocks.{layer}.{hook}" for hook in (f"attn.{query}", f"attn.{key}", "attn.hook_v", read)] for layer in layers
    ]
    outputs = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in weights:  # nobody asks for their gradients
            weight.requires_grad_(False)
        with (
            torch.enable_grad(),
            model.hooks(fwd_hooks=[*((name, catch) for name in sum(names, [])), *((name, leaf) for name in outputs)]),
        ):
            loss, _ = predict(model, batch, objective, mask).by_sequence()
            slopes = torch.autograd.grad(loss.nansum(), [caught[name] for name in outputs])
    finally:
        for weight in weights:
            weight.requires_grad_()
    bias = model.bias(batch.inputs.shape[1])
    made = []
    for of_layer, slope in zip(names, slopes, strict=True):
        q, k, v = (caught[name].detach().transpose(1, 2) for name in of_layer[:3])
        scores = Scores(
            q, k, bias=None if bias is None else bias.detach(), causal=model.cfg.causal, grid=model.data.grid
        )
        made.append(LayerGradient(scores, v, slope.transpose(1, 2), caught[of_layer[3]].detach()))
    return made


def at_uniform_attention(model: Transformer) -> Transformer:
    """Return a copy whose scores are all 0, whatever it reads: query maps and biases are 0."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in range(made.cfg.n_layers):
            for weight in made.block(layer).attn.q.parameters():
                weight.zero_()
        for biased in (made.position, made.score_bias):
            if biased is not None and biased.bias(1) is not None:
                for weight in [*biased.parameters(), *biased.buffers()]:
                    weight.zero_()
    return made


def fit(
    model: Transformer,
    task: Task,
    config: TrainConfig,
    objective: Objective,
    parts: Sequence[str],
    steps: int,
    seed: int,
) -> Transformer:
    """Return a copy with the named parts (`attnprobe.transfer`) trained for some steps, and all else as it is."""
    made = copy.deepcopy(model)
    chosen = set(select("+".join(parts), [name for name, _ in made.named_parameters()]))
    for name, weight in made.named_parameters():
        weight.requires_grad_(name in chosen)
    trained = [weight for weight in made.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=config.weight_decay)
    split, device = task.train, made.classify.weight.device
    for step in range(1, steps + 1):
        rows = batch_rows(config, len(split), f"fit {objective}", step)
        mask = None
        if objective == "masked":
            generator = torch_generator(seed, f"fit masks {objective}", step)
            mask = mask_of(lengths_of(split, rows), config.mask_share, generator)
        batch, mask = take(split, rows, mask, device)
        loss = evaluate(made, batch, objective, mask).mean
        optimiser.zero_grad()
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(trained, config.clip)
        optimiser.step()
    for weight in made.parameters():
        weight.requires_grad_()
    return made.eval()
