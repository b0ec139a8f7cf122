"""Network interface of networks trained by attnprobe, and conversion of their checkpoints to probes."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError, listed
from attnprobe.model.parts import select
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import Attend, Mask, Probe, Shape
from attnprobe.randomness import torch_generator
from attnprobe.scores import Heads
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Task
from attnprobe.training.batches import batch_rows, lengths_of, mask_of, take
from attnprobe.training.checkpoint import Checkpoint
from attnprobe.training.objectives import Batch, Predictions, evaluate, predict, predict_from

FIT_RATE = 1e-3
"""Constant learning rate of `TransformerNetwork.fitted`."""
SPLIT = "batch token (head d_head) -> batch head token d_head"


def of_checkpoint(checkpoint: Checkpoint) -> Probe:
    """Convert a checkpoint to a probe: its network and its task."""
    config = checkpoint.config
    trained = [objective for objective, _ in config.stages]
    objectives = tuple(
        name
        for name, entry in OBJECTIVES.items()
        if (config.model.causal or not entry.needs_causal) and (name in trained or not entry.control)
    )
    return Probe(
        network=TransformerNetwork(checkpoint.model, config, lambda: checkpoint.task),
        data=lambda: checkpoint.task,
        objective=checkpoint.objective,
        objectives=objectives,
        mask_probability=config.mask_probability,
        title=checkpoint.title,
        metrics=checkpoint.last_metrics,
        facts={
            "step": checkpoint.step,
            "config": asdict(config),
            "data_fingerprint": checkpoint.fingerprint,
            "checkpoint_provenance": checkpoint.provenance,
        },
    )


@dataclass(frozen=True, eq=False)
class TransformerNetwork:
    """Network trained by attnprobe, with all optional capabilities of the interface."""

    model: Transformer
    config: TrainConfig
    task: Callable[[], Task]
    """Function that loads or generates the task that the network was trained on, for `fitted`."""

    @property
    def shape(self) -> Shape:
        """Sizes of the network."""
        cfg, data = self.model.cfg, self.model.data
        unit = "patches" if data.patch > 1 else "pixels"
        return Shape(
            cfg.n_layers, cfg.n_heads, data.n, cfg.d_model, data.grid, cfg.causal, self.model.n_prefix, grid_unit=unit
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""
        return self.model.parameters()

    def attending(self, attend: Attend) -> AbstractContextManager[None]:
        """Replace attention with a function, in every layer of every forward pass within a ``with`` block.

        Raises `UsageError` if the network has hooks, because measures would apply only some of them.
        """
        if self.model.hooked:
            raise UsageError(
                f"hooks on {listed(self.model.hooked)}: measures need a network without hooks; call model.reset_hooks()"
            )
        return self.model.attending(attend)

    def predictions(self, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Run the network and return its predictions; ``mask`` is used only by objectives that mask tokens."""
        return predict(self.model, batch, objective, mask)

    def untrained(self, seed: int) -> "TransformerNetwork":
        """Return a newly initialised network of the same configuration."""
        return replace(self, model=Transformer(self.config.model, self.model.data, seed=seed).eval())

    # positions

    @property
    def encoding(self) -> str:
        """Name of the position encoding."""
        return self.model.cfg.position

    @property
    def silent(self) -> bool:
        """Whether residual streams carry no position information: no position encoding and no causal mask."""
        return self.model.cfg.position == "none" and not self.model.cfg.causal

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated according to their positions."""
        return self.model.position.rotates

    @property
    def frequency(self) -> Float[Tensor, " pair"] | None:
        """Periods per token of each coordinate pair of a sinusoidal or rotary encoding, else None."""
        return self.model.position.frequency

    def bias(self, n: int) -> Float[Tensor, "head offset"] | None:
        """Return the total bias between n tokens at their 1-D or 2-D offsets, or None without one."""
        bias = self.model.bias(n)
        return None if bias is None else bias.detach()

    @torch.no_grad()
    def first_scale(self, batch: Batch, mask: Mask = None) -> Float[Tensor, "batch token 1"] | None:
        """Return the scale of the norm before the first layer's attention, or None without one."""
        if self.model.cfg.norm == "none" or self.model.cfg.norm_placement == "post":
            return None
        x = self.model.embedded(batch.inputs, masked=mask, lengths=batch.lengths)
        return self.model.block(0).ln1.scale(x)[:, self.model.n_prefix :]

    @torch.no_grad()
    def position_parts(self, scale: Float[Tensor, "*batch token 1"] | None, n: int) -> tuple[Tensor, Tensor] | None:
        """Return the contribution of position vectors to the first layer's queries and keys.

        Both have axes [batch, head, token, d_head]. The vectors are centred over positions and normalised with
        ``scale``, the scale of the norm. Returns None if the encoding adds no vectors.
        """
        table = self.model.position.embed(self.model.data.n + self.model.n_prefix)
        if table is None:
            return None
        vectors = table[self.model.n_prefix :]
        x, attn = (vectors - vectors.mean(0))[None, :n], self.model.block(0).attn
        if scale is not None:
            x = self.model.block(0).ln1.share(x, scale.to(x)[..., :n, :])
        pattern = "batch token d_model, head d_model d_head -> batch head token d_head"
        return einsum(x, attn.W_Q, pattern), einsum(x, attn.W_K, pattern)

    @torch.no_grad()
    def with_positions(
        self, batch: Batch, positions: Int[Tensor, " token"], mask: Mask = None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the first layer's queries and keys if the tokens have the position vectors of other positions.

        Both have axes [batch, head, token, d_head], with a prepended [CLS], which keeps its vector. Embedding, norm and
        maps are recomputed. Returns None if the encoding adds no vectors.
        """
        prefix, block = self.model.n_prefix, self.model.block(0)
        table = self.model.position.embed(len(positions) + prefix)
        if table is None:
            return None
        moved = torch.cat([torch.arange(prefix, device=positions.device), positions + prefix])
        x = self.model.embedded(batch.inputs, masked=mask, lengths=batch.lengths) - table + table[moved]
        x = block.ln1(x) if block.pre else x
        q, k = (rearrange(map_(x), SPLIT, head=self.model.cfg.n_heads) for map_ in (block.attn.q, block.attn.k))
        return q, k

    def turn(self, x: Float[Tensor, "*lead token d_head"], places: Float[Tensor, " token"]) -> Tensor:
        """Rotate the queries or keys of each token further, by the given number of positions."""
        flat = x.reshape(-1, *x.shape[-2:])[:, :, None]
        return self.model.position.turn(flat, places.to(x.device))[:, :, 0].reshape(x.shape)

    @torch.no_grad()
    def vector_maps(self, scale: Float[Tensor, "*batch token 1"] | None) -> tuple[Tensor, Tensor]:
        """Return the maps [head, d_model, d_head] from position vectors to the first layer's queries and keys.

        The maps include the norm, at the harmonic mean of its scale over positions.
        """
        attn = self.model.block(0).attn
        basis = torch.eye(self.model.cfg.d_model).to(attn.W_Q)
        if scale is not None:
            harmonic_mean = 1 / (1 / scale).mean().to(basis)
            basis = self.model.block(0).ln1.share(basis, harmonic_mean.expand(len(basis), 1))
        return (basis @ attn.W_Q).double().cpu(), (basis @ attn.W_K).double().cpu()

    def token_ids(self, batch: Batch) -> Tensor | None:
        """Return the ids of the tokens, or None if they are real values."""
        return batch.inputs if self.model.data.inputs == "tokens" else None

    # query and key maps

    @torch.no_grad()
    def query_key_maps(self) -> tuple[Tensor, Tensor]:
        """Return the query maps and the key maps of all heads, [layer, head, d_model, d_head]."""
        layers = [self.model.block(layer).attn for layer in range(self.model.cfg.n_layers)]
        return torch.stack([attn.W_Q for attn in layers]), torch.stack([attn.W_K for attn in layers])

    @torch.no_grad()
    def with_maps_of(self, other: "TransformerNetwork", heads: Sequence[tuple[int, slice]]) -> "TransformerNetwork":
        """Return a copy with the other network's query and key maps in the given (layer, slice of heads) pairs."""
        model, d_head = copy.deepcopy(self.model), self.model.cfg.d_head
        for layer, head_slice in heads:
            rows = slice(head_slice.start * d_head, head_slice.stop * d_head)
            for name in ("q", "k"):
                target, source = (getattr(network.block(layer).attn, name) for network in (model, other.model))
                target.weight[rows], target.bias[rows] = source.weight[rows], source.bias[rows]
        return replace(self, model=model)

    # resuming from a layer

    def streams(self, batch: Batch, mask: Mask = None) -> list[Tensor]:
        """Run the network and return the residual stream before each layer and after the last one.

        If gradients are enabled, all streams can be differentiated with respect to the first one.
        """
        streams: list[Tensor] = []

        def keep(point: nn.Module, args: Any, x: Tensor) -> None:
            streams.append(x)

        blocks = [self.model.block(layer) for layer in range(self.model.cfg.n_layers)]
        points = [*(block.hook_resid_pre for block in blocks), blocks[-1].hook_resid_post]
        x = self.model.embedded(batch.inputs, masked=mask, lengths=batch.lengths).detach()
        hooks = [point.register_forward_hook(keep) for point in points]
        try:
            self.model.through(x.requires_grad_(torch.is_grad_enabled()), lengths=batch.lengths)
        finally:
            for hook in hooks:
                hook.remove()
        return streams

    def resumed(self, stream: Tensor, layer: int, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Resume the forward pass from the residual stream before a layer and return the predictions."""
        x = self.model.through(stream, first=layer, lengths=batch.lengths)
        return predict_from(self.model, x, batch, objective, mask)

    # modified copies

    def in_double(self) -> "TransformerNetwork":
        """Return a copy in float64."""
        return replace(self, model=copy.deepcopy(self.model).double())

    def fitted(self, objective: str, steps: int, seed: int, uniform: bool) -> "TransformerNetwork":
        """Return a copy whose output head is trained for a number of steps.

        With ``uniform``, the copy attends uniformly during training, and its value and output maps are trained too.
        """
        model = copy.deepcopy(self.model)
        parts = "heads+vo" if uniform else "heads"
        trained_names = set(select(parts, [name for name, _ in model.named_parameters()]))
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trained_names)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=FIT_RATE, weight_decay=self.config.weight_decay)
        split, device, attend = self.task().train, model.classify.weight.device, flat if uniform else Heads.attend
        with model.attending(attend):
            for step in range(1, steps + 1):
                rows = batch_rows(self.config, len(split), f"fit {objective}", step)
                mask = None
                if OBJECTIVES[objective].masks_tokens:
                    generator = torch_generator(seed, f"fit masks {objective}", step)
                    mask = mask_of(lengths_of(split, rows), self.config.mask_probability, generator)
                batch, mask = take(split, rows, mask, device)
                loss = evaluate(model, batch, objective, mask).mean
                optimiser.zero_grad()
                loss.backward()
                if self.config.grad_clip:
                    nn.utils.clip_grad_norm_(trained, self.config.grad_clip)
                optimiser.step()
        for weight in model.parameters():
            weight.requires_grad_()
        return replace(self, model=model.eval())


def flat(heads: Heads) -> Tensor:
    """Return z of uniform attention."""
    return replace(heads, scores=heads.scores.flat()).attend()
