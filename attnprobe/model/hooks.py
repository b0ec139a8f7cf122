"""Hook points, where activations are read and edited.

Every activation passes through `observe`, which hands a copy to the hooks. An in-place edit therefore has the same
effect as returning the edited tensor: it changes the rest of the forward pass, but no weight, buffer or other
activation that shares memory with the original.
"""

from torch import Tensor, nn
from transformer_lens import hook_points


class HookPoint(hook_points.HookPoint):
    """TransformerLens's hook point, whose hooks also take effect in a compiled network.

    torch.compile does not guard torch's own hook dictionaries, so it would ignore hooks added after compilation. It
    does guard other attributes, so the same dictionaries are stored here under a second name.
    """

    def __init__(self) -> None:
        """Create the hook point and the second reference to its hook dictionaries."""
        super().__init__()
        self.registered = (
            self._forward_hooks,
            self._forward_pre_hooks,
            self._backward_hooks,
            self._backward_pre_hooks,
        )


def watched(point: nn.Module) -> bool:
    """Return whether anything can read or edit the activation at a hook point.

    This is the case if it has hooks (TransformerLens or plain torch, forward or backward), or if the module or its
    ``forward`` has been replaced.
    """
    if type(point) is not HookPoint or "forward" in vars(point):
        return True
    return any(len(hooks) > 0 for hooks in point.registered)


def observe(point: nn.Module, x: Tensor) -> Tensor:
    """Apply the hooks of a hook point to an activation and return the result."""
    return point(x.clone()) if watched(point) else x
