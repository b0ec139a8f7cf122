"""Hook points: where activations are read and edited.

Every activation passes `observe`, which gives hooks a copy of it. An edit in place therefore does what the same edit
returned does: it changes what the network computes from there on, and no weight, buffer or other activation that
shares its memory.
"""

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


def watched(point: nn.Module) -> bool:
    """Return whether anything can read or edit the activation there.

    That is a hook of TransformerLens or of plain torch, forward or backward, or another module or ``forward`` in the
    place of the hook point.
    """
    return (
        type(point) is not HookPoint
        or "forward" in vars(point)
        or len(point._forward_hooks) > 0
        or len(point._forward_pre_hooks) > 0
        or len(point._backward_hooks) > 0
        or len(point._backward_pre_hooks) > 0
    )


def observe(point: nn.Module, x: Tensor) -> Tensor:
    """Return an activation after the hooks of a hook point."""
    return point(x.clone()) if watched(point) else x
