"""Hook points: where activations are read and edited.

Every activation passes `observe`, which gives hooks a copy of it. An edit in place therefore does what the same edit
returned does: it changes what the network computes from there on, and no weight, buffer or other activation that
shares its memory.
"""

from torch import Tensor, nn
from transformer_lens import hook_points


class HookPoint(hook_points.HookPoint):
    """TransformerLens's hook point, which a compiled network asks again in every pass.

    torch.compile does not guard torch's own tables of hooks, and would ignore hooks added after it compiled. It does
    guard other attributes, so the same tables have a second name here.
    """

    def __init__(self) -> None:
        """Name the tables of hooks."""
        super().__init__()
        self.registered = (
            self._forward_hooks,
            self._forward_pre_hooks,
            self._backward_hooks,
            self._backward_pre_hooks,
        )


def watched(point: nn.Module) -> bool:
    """Return whether anything can read or edit the activation there.

    That is a hook of TransformerLens or of plain torch, forward or backward, or another module or ``forward`` in the
    place of the hook point.
    """
    if type(point) is not HookPoint or "forward" in vars(point):
        return True
    return any(len(hooks) > 0 for hooks in point.registered)


def observe(point: nn.Module, x: Tensor) -> Tensor:
    """Return an activation after the hooks of a hook point."""
    return point(x.clone()) if watched(point) else x
