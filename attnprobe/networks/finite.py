"""NaN and infinite values in a forward pass: checks of weights and predictions, and where such values come from."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from attnprobe.errors import NonFiniteError, UsageError
from attnprobe.training.objectives import Predictions

HOOK_POINTS = ("HookPoint", "LensPoint")
"""Classes of modules that return their input: TransformerLens's and those of `attnprobe.model`."""


def check_real(model: nn.Module) -> None:
    """Raise `UsageError` if a weight is complex, or is a plain parameter of integers (not a quantised one)."""
    for name, weight in model.named_parameters():
        if weight.is_complex() or (type(weight) is nn.Parameter and not weight.is_floating_point()):
            raise UsageError(f"{name} has type {weight.dtype}: weights must have a real floating-point type")


def invalid_sequences(predictions: Predictions) -> Int[Tensor, " sequence"]:
    """Return the sequences of the batch whose loss, or any of whose logits without targets, is NaN or infinite.

    Sequences without predictions have no loss and are valid.
    """
    if predictions.logits is not None:
        return predictions.sequence[~predictions.logits.isfinite().all(-1)].unique()
    loss = predictions.by_sequence()[0]
    predicted = torch.bincount(predictions.sequence, minlength=predictions.sequences) > 0
    return (~loss.isfinite() & predicted).nonzero()[:, 0]


def check_predictions(predictions: Predictions, what: str = "predictions") -> Predictions:
    """Return predictions; raise `NonFiniteError` if `invalid_sequences` finds any."""
    if count := len(invalid_sequences(predictions)):
        raise NonFiniteError(f"{what} of {count} of {predictions.sequences} sequences are NaN or infinite")
    return predictions


def module_of(network: Any) -> nn.Module | None:
    """Return the module that a network runs, or None if it is unknown."""
    model = network if isinstance(network, nn.Module) else getattr(network, "model", None)
    return model if isinstance(model, nn.Module) else None


def invalid_weight(model: nn.Module) -> str:
    """Return a description of the first weight with NaN or infinite values, or an empty string."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and (count := int((~weight.detach().isfinite()).sum())):
            return f"weight {name} has {count} NaN or infinite value{'s' * (count > 1)} of {weight.numel()}"
    return ""


@torch.no_grad()
def first_invalid(model: nn.Module, run: Callable[[], Any], rows: int) -> tuple[str, int | None] | None:
    """Return the first module in a forward pass whose output has NaN or +inf, and the first such row of the batch.

    Negative infinity alone is not reported: it masks keys and classes.

    Args:
        model: Module that runs.
        run: Runs the forward pass.
        rows: Number of rows in the batch; a row is given only if the first axis of the output has this size.
    """
    found: list[tuple[str, int | None]] = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for x in output if isinstance(output, tuple | list) else (output,):
                if found or not isinstance(x, Tensor) or not x.is_floating_point():
                    continue
                invalid = x.isnan() | (x == torch.inf)
                if invalid.any():
                    row = int(invalid.flatten(1).any(1).int().argmax()) if x.ndim > 1 and len(x) == rows else None
                    found.append((name or type(module).__name__, row))

        return hook

    points = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ not in ("HookPoint", "LensPoint")
    }
    handles = [module.register_forward_hook(hook_of(name)) for name, module in points.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
