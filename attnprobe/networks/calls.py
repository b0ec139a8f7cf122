"""Attention calls of any PyTorch model.

In PyTorch, scores become a pattern in ``F.scaled_dot_product_attention`` or in a softmax over keys. A
`torch.overrides.TorchFunctionMode` intercepts both, in any model, after rotation and head splitting, with mask, bias
and scale, and may replace the result. Without a replacement the model computes exactly what it computes otherwise.

A softmax call is represented as attention as well, with q = the scores and k = v = the identity: $S = q k^T$ and $z =
A v = A$. The function that replaces attention then returns the pattern.

Not seen: an exponential divided by its sum, traced models (``torch.jit.trace``) and ``flex_attention``.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnprobe.errors import UsageError

SDPA = F.scaled_dot_product_attention
SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
MASKED = -1e4
"""Added values at or below this mask a key: -inf, torch.finfo(...).min, the -10000 of early BERT models."""
WEAKLY_MASKED = -50.0
"""Values near the lowest one mask a key (Swin's -100) if that is at most this, none is between 0.7 and 0.4 of it, and
they are the same pairs in all rows and heads."""


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call of a forward pass."""

    site: str
    """Path of the module that makes the call, such as ``encoder.layer.3.attention.self``."""
    turn: int
    """Number of earlier calls by the same module in this forward pass (shared layers, as in ALBERT)."""
    module_input: tuple[int, ...] | None
    """Shape of the nearest 3-D input of a module around the call, [batch, token, d_model]."""
    crosses: bool
    """Whether the module reads keys from another sequence (cross-attention), as far as its arguments show."""
    q: Tensor
    """[batch, head, query, d_head]."""
    k: Tensor
    """[batch, head, key, d_head], repeated to the number of query heads."""
    v: Tensor
    """[batch, head, key, d_value], repeated to the number of query heads."""
    scale: float
    mask: Tensor | None = None
    """[batch or 1, head or 1, query or 1, key]: True for visible pairs, or values added to the scores."""
    causal: bool = False
    """Whether keys after the query are masked in addition."""
    softmax: bool = False
    """Whether the call is a softmax: q is the score, and z the pattern."""
    sink: Tensor | None = None
    """[head]: score of every query with an extra key that has no value."""

    @property
    def visible(self) -> Tensor:
        """[batch or 1, head or 1, query, key]: True for visible pairs."""
        return self._visible_to(slice(0, self.q.shape[2]))

    def _visible_to(self, queries: slice) -> Tensor:
        query = torch.arange(self.q.shape[2], device=self.q.device)[queries, None]
        key = torch.arange(self.k.shape[2], device=self.q.device)
        visible = (key <= query if self.causal else (key >= 0) & (query >= 0))[None, None]
        if self.softmax:
            return visible & ~_negligible(self.q[:, :, queries])
        if self.mask is None:
            return visible
        mask = _rows(self.mask, queries)
        return visible & (mask if mask.dtype == torch.bool else mask > self._limit)

    @cached_property
    def _limit(self) -> float:
        """Largest added value that hides a key."""
        assert self.mask is not None
        values = self.mask.detach()
        lowest = float(values.where(values > -math.inf, 0.0).min())
        if lowest > WEAKLY_MASKED:
            return MASKED
        gap, hidden = (values < 0.4 * lowest) & (values > 0.7 * lowest), values <= 0.7 * lowest
        is_mask = not bool(gap.any()) and bool((hidden == hidden[:1, :1]).all())
        return max(0.7 * lowest, MASKED) if is_mask else MASKED

    @property
    def bias(self) -> Tensor | None:
        """Values added to the scores, 0 at masked pairs; None if there are none."""
        return self._bias_of(slice(0, self.q.shape[2]))

    def _bias_of(self, queries: slice) -> Tensor | None:
        if self.softmax or self.mask is None or self.mask.dtype == torch.bool:
            return None
        mask = _rows(self.mask, queries)
        bias = mask.masked_fill(mask <= self._limit, 0.0)
        return bias if bool((bias != 0).any()) else None

    def dense(self, queries: slice | None = None) -> Tensor:
        """Return the scores of some or all queries, [batch, head, query, key], with -inf at masked pairs."""
        queries = slice(0, self.q.shape[2]) if queries is None else queries
        q = self.q[:, :, queries]
        scores = q if self.softmax else q @ self.k.mT * self.scale
        bias = self._bias_of(queries)
        scores = scores if bias is None else scores + bias
        return scores.masked_fill(~self._visible_to(queries), -math.inf)


def _negligible(scores: Tensor) -> Tensor:
    """Return which keys [query, key] are hidden in scores: at most `MASKED`, or without weight in all rows and heads.

    Fewer than four score matrices are too few to tell a mask from low scores.
    """
    scores = scores.detach()
    hidden = scores <= MASKED
    if scores.shape[0] * scores.shape[1] < 4:
        return hidden
    return hidden | (scores < scores.amax(-1, keepdim=True) - NO_WEIGHT).flatten(0, 1).all(0)


def _rows(mask: Tensor, queries: slice) -> Tensor:
    """Return the rows of a mask for some queries."""
    return mask if mask.shape[2] == 1 else mask[:, :, queries]


REPLAYED = 256
"""Number of queries in the check of a call, at most twice as many."""

NO_WEIGHT = 40.0
"""Distance of a score from the largest of its query at which a key has no weight (e^-40)."""

Answer = Callable[[Call, Callable[[], Tensor]], Tensor]
"""Function from a call and the model's own computation of z to z."""


@contextmanager
def watching(model: nn.Module, answer: Answer) -> Iterator[None]:
    """Pass every attention call of a model's forward passes to ``answer``, which returns its z."""
    mode = _Mode(answer)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            # Hooks on leaves would make attnprobe's hook points explicit, and name calls after nn.Softmax.
            if name and next(module.children(), None) is None:
                continue
            enter = module.register_forward_pre_hook(mode.entering(name), with_kwargs=True)
            leave = module.register_forward_hook(mode.leaving, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(mode)
        yield


def calls(model: nn.Module, run: Callable[[], object]) -> list[tuple[Call, Tensor]]:
    """Return every attention call of one forward pass with its z."""
    seen: list[tuple[Call, Tensor]] = []

    def answer(call: Call, own: Callable[[], Tensor]) -> Tensor:
        z = own()
        seen.append((call, z))
        return z

    with torch.no_grad(), watching(model, answer):
        run()
    return seen


def replay_error(call: Call, z: Tensor) -> float:
    """Return the largest difference between softmax(scores) v and the model's own z, in float64.

    Queries without visible keys are ignored. Of long sequences, about `REPLAYED` evenly spaced queries are compared.
    """
    queries = slice(0, None, max(1, call.q.shape[2] // REPLAYED))
    scores = call.dense(queries).double()
    attends = scores.isfinite().any(-1, keepdim=True)
    if call.sink is not None:
        sink = call.sink.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    pattern = scores.softmax(-1)[..., : call.v.shape[2]]
    replayed = pattern if call.softmax else pattern @ call.v.double()
    return float((replayed - z[:, :, queries].double()).where(attends, 0.0).abs().max())


OTHER_SEQUENCE = ("encoder_hidden_states", "key_value_states", "memory", "context")
"""Arguments of attention modules that hold another sequence."""


def _crosses(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a module is called with another sequence to attend to."""
    if isinstance(module, nn.MultiheadAttention):
        query, key = (args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(("query", "key")))
        return query is not key
    return any(isinstance(kwargs.get(name), Tensor) for name in OTHER_SEQUENCE)


class _Mode(TorchFunctionMode):
    """Intercepts attention calls and knows which module makes them."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.path: list[tuple[str, tuple[int, ...] | None, bool]] = [("", None, False)]
        self.modules: list[nn.Module] = []
        self.turns: dict[str, int] = {}

    def entering(self, name: str) -> Callable[..., None]:
        """Return a forward pre-hook that records entering a module."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not name:
                self.turns.clear()
            tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            first = next(tensors, None)
            shape = tuple(first.shape) if first is not None and first.ndim == 3 else None
            self.path.append((name, shape, _crosses(module, args, kwargs)))
            self.modules.append(module)

        return enter

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook that records leaving a module."""
        self.path.pop()
        self.modules.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept attention functions; run all others."""
        kwargs = kwargs or {}
        if func is SDPA:
            return self._sdpa(*args, **kwargs)
        if func in SOFTMAX:
            return self._softmax(func, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            # The mode is off inside an overridden function, so its attention function is patched.
            weights_wanted = kwargs.get("need_weights", True)
            with patch.object(F, "scaled_dot_product_attention", self._sdpa):
                output, _ = func(*args, **{**kwargs, "need_weights": False})
            return output, (func(*args, **kwargs)[1] if weights_wanted else None)
        return func(*args, **kwargs)

    def _location(self) -> tuple[str, int, tuple[int, ...] | None, bool]:
        site = self.path[-1][0]
        turn = self.turns.get(site, 0)
        self.turns[site] = turn + 1
        shape = next((shape for _, shape, _ in reversed(self.path) if shape is not None), None)
        return site, turn, shape, self.path[-1][2]

    def _sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.ndim != 4:
            raise UsageError(
                f"{self.path[-1][0]}: attention over {query.ndim} axes; must be [batch, head, token, d_head]"
            )
        groups = query.shape[1] // key.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        mask = attn_mask if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
        call = Call(*self._location(), q=query, k=k, v=v, scale=factor, mask=mask, causal=is_causal)
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return self.answer(call, lambda: SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options))

    def _softmax(self, func: Any, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        def own() -> Tensor:
            return func(input, dim, *args, **kwargs)

        if input.ndim != 4 or dim not in (-1, 3) or (input.shape[-2] == 1 != input.shape[-1]):
            return own()
        sink = self._sink(input)
        keys = input.shape[-1] - (sink is not None)
        identity = torch.eye(keys, dtype=input.dtype, device=input.device).expand(*input.shape[:2], -1, -1)
        call = Call(*self._location(), q=input, k=identity, v=identity, scale=1.0, softmax=True, sink=sink)
        if sink is None:
            return self.answer(call, own)
        pattern = own()
        tokens = pattern[..., :-1]
        # The scores may have been shifted by their row maximum.
        z = self.answer(replace(call, q=input[..., :-1] - input[..., -1:] + sink[:, None, None]), lambda: tokens)
        sink_weight = pattern[..., -1:] if z is tokens else 1 - z.sum(-1, keepdim=True)
        return torch.cat([z, sink_weight], dim=-1)

    def _sink(self, scores: Tensor) -> Tensor | None:
        """Return the scores of the last key, [head], if it is a sink: a parameter of the module, and not a token."""
        if scores.shape[-1] != scores.shape[-2] + 1 or not self.modules:
            return None
        by_head = [x for x in self.modules[-1].parameters(recurse=False) if x.shape == (scores.shape[1],)]
        return by_head[0].detach().to(scores) if len(by_head) == 1 else None
