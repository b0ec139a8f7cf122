"""Exact float64 cases of claim 5, in which labels are or are not blind to proximity.

Cases are small networks of the package on random tokens that satisfy all assumptions of the theory, or all except one.
Profiles are functions of the offset alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.geometry import geometry
from attnprobe.model.transformer import Transformer
from attnprobe.randomness import torch_generator
from attnprobe.results import variable
from attnprobe.statistics.directions import proximity_profiles

PROXIMITY, LENGTH = "circulant exponential", 2
"""Direction that represents proximity in networks, and its length."""

# Cases


@dataclass(frozen=True)
class Case:
    """A linear network with mean pooling at zero scores, with the listed departures."""

    blind: bool
    """Whether labels are blind by the theory."""
    model: Mapping[str, Any] = field(default_factory=dict)
    circulant: float = 0.0
    """Std of a random circulant score."""
    content: float = 0.0
    """Std of scores that depend on the tokens."""
    edit: Literal["", "no residual", "padding", "sigmoid"] = ""
    """Departure that cannot be expressed in the network's configuration."""
    invisible: Literal["circulant", "rows", "weights"] = "circulant"
    """Component that should vanish: circulant directions, differences between rows, or the part of the gradient of the
    query-key weights that does not read the mean token on the query side."""


CASES = {
    "zero scores": Case(True),
    "zero scores: differences of rows": Case(True, invisible="rows"),
    "zero scores: query-key weights": Case(True, invisible="weights"),
    "no residual stream": Case(True, edit="no residual"),
    "first of two linear layers": Case(True, {"n_layers": 2}),
    "circulant scores of std 2": Case(True, circulant=2.0),
    "content scores of std 0.1": Case(False, content=0.1),
    "content scores of std 0.3": Case(False, content=0.3),
    "content scores of std 1": Case(False, content=1.0),
    "std 1: query-key weights": Case(False, content=1.0, invisible="weights"),
    "MLP (GELU)": Case(False, {"mlp_ratio": 2}),
    "LayerNorm": Case(False, {"norm": "layer"}),
    "LayerNorm and MLP": Case(False, {"norm": "layer", "mlp_ratio": 2}),
    "max pooling": Case(False, {"pooling": "max"}),
    "class token": Case(False, {"pooling": "cls"}),
    "causal attention": Case(False, {"causal": True}),
    "padding attended to, not pooled": Case(False, edit="padding"),
    "sigmoid instead of softmax": Case(False, edit="sigmoid"),
}
LINEAR: dict[str, Any] = {"d_model": 16, "norm": "none", "mlp_ratio": 0, "init_std": 0.5, "position_std": 0.5}
SPEC = DataSpec(n=32, inputs="tokens", classes=4, vocabulary=8)
SAMPLES = 32


def of_cases(seeds: tuple[int, ...]) -> dict[str, xr.Variable]:
    """Return what labels detect where the theory predicts nothing, for every case and seed."""
    numbers_of_case = np.array([[seen(case, seed) for seed in seeds] for case in CASES.values()])
    axes, method = ("case", "seed"), f"float64, mean over {SAMPLES} random sequences of {SPEC.n} tokens, and heads"
    return {
        "blind": variable(("case",), [case.blind for case in CASES.values()], "blind by the theory", ""),
        "invisible_share": variable(
            axes, numbers_of_case[..., 0], "fraction of the label gradient's energy", "1", method
        ),
        "invisible_share_of_noise": variable(
            ("case",), numbers_of_case[:, 0, 1], "energy fraction of pure noise", "1", "dimensions"
        ),
        "loss_change": variable(axes, numbers_of_case[..., 2], "change of the loss by a circulant score", "1", method),
    }


def seen(case: Case, seed: int) -> tuple[float, float, float]:
    """Return the energy fraction of the component that should vanish, that of noise, and the change of the loss."""
    model = network(case, seed)
    loss, scores, inputs = losses(model, case, seed)
    gradient = torch.autograd.grad(loss.sum(), scores)[0]
    share, noise = invisible_share(case.invisible, gradient, inputs.detach())
    if case.invisible != "circulant":
        return share, noise, float("nan")
    changed, *_ = losses(model, case, seed, near=1.0)
    return share, noise, ((changed - loss).detach().abs().sum() / loss.detach().sum()).item()


def network(case: Case, seed: int) -> Transformer:
    """Return the network of a case, with content scores scaled to the requested std."""
    model = Transformer(ModelConfig(**{**LINEAR, **case.model}), SPEC, seed).double()
    if case.content:
        _, scores, _ = losses(model, case, seed)
        scale = case.content / scores.detach().std()
    else:
        scale = torch.zeros(())
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            model.block(layer).attn.q.weight.mul_(scale)
    return model


def losses(
    model: Transformer, case: Case, seed: int, near: float = 0.0
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch head query key"], Float[Tensor, "batch token d_model"]]:
    """Return the loss of each sequence, the scores of the first layer, and the input of that layer.

    ``near`` is the std of an added proximity score.
    """
    generator = torch_generator(seed, "claim5 sequences")
    tokens = torch.randint(SPEC.vocabulary, (SAMPLES, SPEC.n), generator=generator)
    target = torch.randint(SPEC.classes, (SAMPLES,), generator=generator)
    steps = torch.randn(SPEC.n + 1, generator=generator).double()
    caught: dict[str, Tensor] = {}

    def enter(stream: Tensor, hook: object) -> Tensor:
        caught["inputs"] = stream
        return stream

    def add(scores: Tensor, hook: object) -> Tensor:
        n = scores.shape[-1]
        around = proximity_profiles(geometry((n,)), LENGTH)[PROXIMITY][n - 1 :]
        caught["scores"] = scores + case.circulant * circulant(steps[:n]) + near * circulant(around)
        return caught["scores"]

    hooks: list[tuple[str, Callable[..., Any]]] = [
        ("blocks.0.hook_resid_pre", enter),
        ("blocks.0.attn.hook_attn_scores", add),
    ]
    if case.edit == "no residual":
        hooks.append(("blocks.0.hook_attn_out", lambda out, hook: out - caught["inputs"]))
    if case.edit == "sigmoid":
        hooks.append(("blocks.0.attn.hook_pattern", lambda pattern, hook: caught["scores"].sigmoid() / SPEC.n))
    lengths = torch.full((SAMPLES,), SPEC.n - 4) if case.edit == "padding" else None
    with model.hooks(fwd_hooks=hooks):
        logits = model.read(model.residual(tokens), lengths=lengths)
    return F.cross_entropy(logits, target, reduction="none"), caught["scores"], caught["inputs"]


def circulant(steps: Float[Tensor, " shift"]) -> Float[Tensor, "query key"]:
    """Return the circulant score of mean 0 and std 1 that is this function of the offset modulo n."""
    position = torch.arange(len(steps))
    return ((steps - steps.mean()) / steps.std(correction=0))[(position - position[:, None]) % len(steps)]


def invisible_share(
    kind: str, gradient: Float[Tensor, "batch head query key"], inputs: Float[Tensor, "batch token d_model"]
) -> tuple[float, float]:
    """Return the energy fraction of the component that should vanish (`Case.invisible`), and that of noise."""
    n, width = gradient.shape[-1], inputs.shape[-1]
    whole = gradient
    if kind == "circulant":
        place = torch.arange(n)
        sums = gradient[..., place[:, None], (place + place[:, None]) % n].sum(-2)
        part, noise = sums / n**0.5, 1 / n
    elif kind == "rows":
        part, noise = gradient - gradient.mean(-2, keepdim=True), 1 - 1 / n
    else:
        whole = torch.einsum("bid,bhij,bje->bhde", inputs, gradient, inputs)
        token = F.normalize(inputs.mean(1), dim=-1)
        part, noise = whole - torch.einsum("bd,bc,bhce->bhde", token, token, whole), 1 - 1 / width
    shares = part.square().flatten(2).sum(-1) / whole.square().flatten(2).sum(-1)
    return float(shares.mean()), noise


# Profiles


PROFILES: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": lambda distance: (-distance / 4).exp(),
    "band": lambda distance: (distance == 1).double(),
    "linear": lambda distance: -distance,
    "logarithmic": lambda distance: -(1 + distance).log(),
}
LENGTHS = (32, 64, 128, 256, 512)


def of_profiles() -> dict[str, xr.Variable]:
    """Return the fraction of each profile visible to labels at zero scores, and its power law in the length."""
    distances = [geometry((n,)).distance for n in LENGTHS]
    shares = np.array([[visible_share(profile(distance)) for distance in distances] for profile in PROFILES.values()])
    slopes = np.polyfit(np.log(LENGTHS[1:]), np.log(shares[:, 1:]).T, 1)[0]  # the shortest length is not asymptotic
    fraction, power = "fraction of the row-centred profile's energy in column sums", "exponent of n in that fraction"
    return {
        "visible_share": variable(("profile", "length"), shares, fraction, "1", "exact"),
        "visible_power": variable(("profile",), slopes, power, "1", "least squares on logarithms"),
    }


def visible_share(profile: Float[Tensor, " offset"]) -> float:
    """Return the energy fraction of an offset profile visible to labels at zero scores: that in its column sums."""
    line = geometry(((len(profile) + 1) // 2,))
    sums = line.windows_by_key(profile)
    return float((sums - sums.mean()).square().sum() / line.n / line.inner(profile, profile))
