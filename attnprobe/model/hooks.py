"""Hook points, where activations are read and edited.

Every activation passes through `observe`, which hands a copy to the hooks. An in-place edit therefore has the same
effect as returning the edited tensor: it changes the rest of the forward pass, but no weight, buffer or other
activation that shares memory with the original.

Importing TransformerLens takes longer than importing torch, so that its part of hook points and networks is added when
it is first used; see `attnprobe.model.lens`.
"""

from typing import Any

from torch import Tensor, nn

METHODS = frozenset(
    "add_hook add_perma_hook backward_scale bwd_hooks clear_context ctx enable_reshape fwd_hooks has_hooks "
    "hook_conversion layer name pos_dim remove_hooks".split()
)
"""Methods and attributes of TransformerLens's ``HookPoint``."""


class HookPoint(nn.Module):
    """The identity, whose hooks also take effect in a compiled network. It becomes TransformerLens's hook point on use.

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

    def forward(self, x: Tensor) -> Tensor:
        """Return x; hooks are added by torch."""
        return x

    def __getattr__(self, name: str) -> Any:
        """Add TransformerLens's part if one of its names is used."""
        if name in METHODS and type(self) is HookPoint:
            from attnprobe.model.lens import lens_point

            return getattr(lens_point(self), name)
        return super().__getattr__(name)


def watched(point: nn.Module) -> bool:
    """Return whether anything can read or edit the activation at a hook point.

    This is the case if it has hooks (TransformerLens or plain torch, forward or backward), or if the module or its
    ``forward`` has been replaced.
    """
    if not isinstance(point, HookPoint) or type(point).forward is not HookPoint.forward or "forward" in vars(point):
        return True
    return any(len(hooks) > 0 for hooks in point.registered)


def observe(point: nn.Module, x: Tensor) -> Tensor:
    """Apply the hooks of a hook point to an activation and return the result."""
    return point(x.clone()) if watched(point) else x
