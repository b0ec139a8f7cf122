"""The part of hook points and networks that comes from TransformerLens, added to existing ones when it is first used.

Any of its methods makes a `Transformer` a `HookedTransformer`, which is a ``HookedRootModule`` of TransformerLens, in
place: ``model.setup()`` does nothing else. Weights, hooks of torch and results are unchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from transformer_lens import FactoredMatrix, hook_points
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.slice import Slice

from attnprobe.errors import UsageError, listed
from attnprobe.model.cache import Cache
from attnprobe.model.hooks import HookPoint
from attnprobe.model.transformer import Transformer

M = TypeVar("M", bound=nn.Module)


class LensPoint(HookPoint, hook_points.HookPoint):
    """TransformerLens's hook point."""

    __repr__ = hook_points.HookPoint.__repr__


class HookedTransformer(Transformer, HookedRootModule):
    """The network as TransformerLens's ``HookedRootModule``."""

    def hooks(self, *named_hooks: Any, **options: Any) -> Any:
        """Add hooks within a ``with`` block, as in TransformerLens."""
        self._refuse_replaced()
        return super().hooks(*named_hooks, **options)

    def add_hook(self, *hook: Any, **options: Any) -> None:
        """Add a hook until `reset_hooks`, as in TransformerLens."""
        self._refuse_replaced()
        super().add_hook(*hook, **options)

    def _refuse_replaced(self) -> None:
        """Raise `UsageError` if a hook point has been replaced: hooks would be added to the unused original."""
        modules = dict(self.named_modules())  # excludes the hook points of a norm that was removed
        replaced = [name for name, point in self.hook_dict.items() if modules.get(name, point) is not point]
        if replaced:
            raise UsageError(
                f"{listed(replaced)}: another module replaces the hook point, so hooks and caches cannot reach it; "
                "restore the hook point, or call model.setup() to omit it"
            )

    def __getattr__(self, name: str) -> Any:
        """Return the product of weights of all layers, [layer, head, ...], under its TransformerLens name QK or OV."""
        if name in ("QK", "OV"):
            left, right = (self.W_Q, self.W_K.mT) if name == "QK" else (self.W_V, self.W_O)
            return FactoredMatrix(left, right)
        return super().__getattr__(name)

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *inputs: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Cache | dict[str, Tensor]]:
        """Run the network and return its output and the `Cache` of activations (or a plain dict).

        ``names_filter`` is a hook name, several names or a predicate. ``pos_slice`` selects tokens (for scores and
        patterns, queries); position 0 is [CLS] if the network has one. Raises `UsageError` if no hook point passes the
        filter, and for ``incl_bwd``, which needs a network that returns a loss.
        """
        if incl_bwd:
            raise UsageError(
                "incl_bwd=True: this network returns logits, not a loss; use model.hooks(bwd_hooks=...) and call "
                "backward() on your loss"
            )
        if names_filter is None:
            names_filter = bool  # every name
        if not callable(names_filter):
            names: set[str] = {names_filter} if isinstance(names_filter, str) else set(names_filter)
            if not names or not names <= set(self.hook_dict):
                raise UsageError(
                    f"names_filter={names_filter!r}: no such hook point; valid: {listed(sorted(self.hook_dict))}"
                )
            names_filter = sorted(names)
        elif not any(map(names_filter, self.hook_dict)):
            raise UsageError(f"names_filter: matches none of the hook points {listed(sorted(self.hook_dict))}")
        output, cache = super().run_with_cache(
            *inputs, names_filter=names_filter, remove_batch_dim=remove_batch_dim, **kwargs
        )
        if pos_slice is not None:
            # TransformerLens infers the token axis from the number of axes, which is wrong for pooled activations.
            tokens = Slice.unwrap(pos_slice)
            for name in set(cache) - {"hook_pooled"}:
                by_query = name.endswith(("hook_attn_scores", "hook_pattern"))
                cache[name] = tokens.apply(cache[name], -2 if by_query else 1 - remove_batch_dim)
        return output, Cache(cache, self, has_batch_dim=not remove_batch_dim) if return_cache_object else cache


def lens_point(point: HookPoint) -> LensPoint:
    """Make a hook point TransformerLens's, in place, and return it."""
    return _become(point, LensPoint, hook_points.HookPoint)


def hooked_transformer(model: Transformer) -> HookedTransformer:
    """Make a network a ``HookedRootModule``, in place, and return it."""
    for point in model.points.values():
        if type(point) is HookPoint:
            lens_point(point)
    hooked = _become(model, HookedTransformer, HookedRootModule)
    hooked.setup()
    for name, point in model.points.items():  # also those that another module has replaced since
        vars(point)["name"] = name
        hooked.hook_dict.setdefault(name, cast(LensPoint, point))
    return hooked


def _become(module: nn.Module, kind: type[M], lens: type[nn.Module]) -> M:
    """Change the class of a module and add the attributes that the constructor of TransformerLens sets."""
    own = dict(vars(module))
    module.__class__ = kind
    lens.__init__(module)
    vars(module).update(own)
    return cast(M, module)
