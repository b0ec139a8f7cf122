"""Any PyTorch model behind the network protocol, through its attention calls (`attnprobe.networks.calls`).

The model runs on its own inputs. The sequences that measures see are row numbers of these inputs, repeated once per
measured token, so that text, images and anything else a model reads need no conversion.
"""

import copy
import fnmatch
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attnprobe.config import DataSpec
from attnprobe.errors import NonFiniteError, UsageError, listed
from attnprobe.networks.base import Attend, Mask, Probe, Shape
from attnprobe.networks.calls import Call, calls, replay_error, watching
from attnprobe.networks.finite import check_real, first_invalid, invalid_weight
from attnprobe.networks.inputs import LeftOut, Rows, grid_of, is_attnprobe, joined, rows_of, special_tokens
from attnprobe.networks.position_table import PositionTable, find_table, position_parts
from attnprobe.networks.structure import is_product, scores_of
from attnprobe.provenance import fingerprint
from attnprobe.scores import Heads, Scores
from attnprobe.tables import OBJECTIVES
from attnprobe.tasks import Split, Task
from attnprobe.training.objectives import Batch, Predictions

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest replay error (`replay_error`) relative to the largest value of z, by floating-point type."""
BESIDE_IDS = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs that a model may read beside token ids."""
CHECKED = 2
"""Number of rows of the forward pass in which attention calls are found and checked."""


class _Reached(Exception):
    """Ends a forward pass at an attention call."""


Loss = Callable[[Any, dict[str, Tensor]], Tensor]
"""Function from the output of the model and its inputs to the loss of each row, [batch]."""
Site = tuple[str, int]
"""Path of the module that attends, and the number of its earlier calls in the forward pass."""


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A PyTorch model with the inputs that it is measured on."""

    model: nn.Module
    rows: Rows
    sites: tuple[Site, ...]
    """Attention calls that are measured, one per layer, in the order of the forward pass."""
    shape: Shape
    special: LeftOut
    """Special tokens, which are not measured."""
    initial: Callable[[int], nn.Module] | None
    """Function from a seed to a newly initialised model."""
    labels: Tensor | None = None
    loss: Loss | None = None
    mask_id: int | None = None
    """Token id with which masked tokens are replaced."""
    tokenizer: Any = None
    """Tokenizer of the ids, if it was given."""
    biases: tuple[Tensor | None, ...] = ()
    """Bias between the measured tokens of the longest rows at their offsets, [head, offset], in each layer."""
    table: PositionTable | None = None
    """Position vectors that the model adds to its inputs, if they are found."""
    running: list[Batch] = field(default_factory=list)
    """Batch of the forward pass that is running, if one is."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""
        return self.model.parameters()

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        """Replace attention with a function, in every measured call of every forward pass within a ``with`` block.

        Raises `UsageError` at the end if a measured call was not made.
        """
        seen: set[Site] = set()
        layers = {site: layer for layer, site in enumerate(self.sites)}
        prefix, suffix = self.special.prefix, self.special.suffix

        def answer(call: Call, own: Callable[[], Tensor]) -> Tensor:
            layer = layers.get((call.site, call.turn))
            if layer is None:
                return own()
            seen.add((call.site, call.turn))
            left_out = self.left_out(self.running[-1]) if self.running else None
            left_out = None if left_out is None else F.pad(left_out, (prefix, suffix)).to(call.q.device)
            scores = scores_of(call, prefix, suffix, self.shape.grid, self._mask_of(layer), left_out)

            def by(edited: Scores, v: Tensor) -> Tensor:
                return own() if edited is scores and v is call.v else edited.attend(v).to(call.v.dtype)

            return attend(Heads(layer, scores, call.v, None, by))

        with watching(self.model, answer):
            yield
        if missing := [path for path, turn in self.sites if (path, turn) not in seen]:
            raise UsageError(f"{listed(missing)}: did not attend in this batch, but did when the model was loaded")

    def left_out(self, batch: Batch) -> Tensor | None:
        """Return which tokens between prefix and suffix are not measured, or None if there are none in any batch."""
        inside, (rows, length) = self.special.inside, (batch.inputs[:, 0].cpu(), batch.inputs.shape[1])
        return None if inside is None else inside[rows, :length]

    def token_names(self, batch: Batch) -> tuple[str, list[str]]:
        """Return the row of the inputs, and its tokens by the tokenizer, as ids, or as numbers if it has no ids."""
        row, length, prefix = int(batch.inputs[0, 0]), batch.inputs.shape[1], self.special.prefix
        ids = self.rows.tensors.get("input_ids")
        if ids is None:
            return f"row {row}", [str(token) for token in range(length)]
        chosen = ids[row, prefix : prefix + length].tolist()
        if self.tokenizer is None:
            return f"row {row}", [str(token) for token in chosen]
        return f"row {row}", list(map(str, self.tokenizer.convert_ids_to_tokens(chosen)))

    def token_ids(self, batch: Batch) -> Tensor | None:
        """Return the ids of the tokens, or None if the rows are not ids, or not certainly those of the measured tokens.

        A model with further inputs (pixels) or with a decoder may attend between other tokens.
        """
        tensors = {name: x for name, x in self.rows.tensors.items() if name not in BESIDE_IDS}
        ids = tensors.get("input_ids") if not self.rows.positional else next(iter(tensors.values()))
        decodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        if ids is None or len(tensors) > 1 or decodes or ids.is_floating_point() or ids.ndim != 2:
            return None
        width = self.shape.n + self.special.ends
        if ids.shape[1] < width or (ids.shape[1] > width and self.rows.lengths is None):
            return None
        rows, prefix = batch.inputs[:, 0].to(ids.device), self.special.prefix
        return ids[rows, prefix : prefix + batch.inputs.shape[1]].long()

    def reordered(self, batch: Batch, order: Tensor) -> "TorchModel | None":
        """Return the model with the ids of the rows of a batch in another order, or None without `token_ids`."""
        ids = self.token_ids(batch)
        if ids is None:
            return None
        name = "input_ids" if not self.rows.positional else next(iter(self.rows.tensors))
        tensor, rows, start = self.rows.tensors[name].clone(), batch.inputs[:, 0].cpu(), self.special.prefix
        tensor[rows, start : start + ids.shape[1]] = ids.cpu().gather(1, order).to(tensor.dtype)
        return replace(self, rows=replace(self.rows, tensors={**self.rows.tensors, name: tensor}))

    def layer_bias(self, layer: int) -> Tensor | None:
        """Return the bias between n tokens at their offsets, [head, offset], in a layer."""
        bias = self.biases[layer]
        return None if bias is None else bias.detach()

    def first_position_parts(self, batch: Batch, mask: Mask = None) -> tuple[Tensor, Tensor] | None:
        """Return the exact contribution of position vectors to the first layer's queries and keys, if there is one."""
        if self.table is None:
            return None
        with torch.no_grad():
            return position_parts(self.model, partial(self._first_scores, batch, mask), self.table)

    def _first_scores(self, batch: Batch, mask: Mask, tensors: Mapping[str, Tensor]) -> Scores:
        """Run the model up to the first measured call, with some tensors replaced, and return its scores."""
        found: list[Scores] = []

        def answer(call: Call, own: Callable[[], Tensor]) -> Tensor:
            if (call.site, call.turn) != self.sites[0]:
                return own()
            prefix, suffix = self.special.prefix, self.special.suffix
            found.append(scores_of(call, prefix, suffix, self.shape.grid, self._mask_of(0)).between_tokens())
            raise _Reached

        try:
            with watching(self.model, answer):
                self.run(batch, mask, tensors)
        except _Reached:
            pass
        return found[0]

    def _mask_of(self, layer: int) -> tuple[bool, int | None]:
        return self.shape.causal, self.shape.window(layer)

    def run(
        self, batch: Batch, mask: Mask = None, tensors: Mapping[str, Tensor] | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the model's output on a batch and its inputs; masked tokens are replaced by the mask token.

        ``tensors`` replaces parameters and buffers of these names.
        """
        inputs = self.rows.select(batch.inputs[:, 0], batch.inputs.shape[1] + self.special.ends)
        inputs = {name: x.to(next(self.parameters()).device) for name, x in inputs.items()}
        if mask is not None and bool(mask.any()):
            assert self.mask_id is not None
            hidden = F.pad(mask, (self.special.prefix, self.special.suffix))
            inputs["input_ids"] = inputs["input_ids"].masked_fill(hidden, self.mask_id)
        args, kwargs = (tuple(inputs.values()), {}) if self.rows.positional else ((), inputs)
        self.running.append(batch)
        try:
            if not tensors:
                return self.model(*args, **kwargs), inputs
            return functional_call(self.model, dict(tensors), args, kwargs), inputs
        finally:
            self.running.pop()

    def predictions(self, batch: Batch, objective: str, mask: Mask = None) -> Predictions:
        """Run the model and return its predictions: those of the user's loss, of its logits, or none."""
        rows, prefix, suffix = torch.arange(len(batch.inputs)), self.special.prefix, self.special.suffix
        output, inputs = self.run(batch, mask if OBJECTIVES[objective].masks_tokens else None)
        device = next(self.parameters()).device
        if objective == "labels" and self.loss is not None:
            loss = self.loss(output, {**inputs, "row": batch.inputs[:, 0]})
            if not isinstance(loss, Tensor) or loss.shape != (len(rows),):
                found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise UsageError(f"loss returned {found}: must be a tensor [batch] = {(len(rows),)}, one loss per row")
            if not loss.isfinite().all():
                raise NonFiniteError("loss returned values that are NaN or infinite")
            return Predictions(loss, None, rows.to(device), len(rows))
        if objective == "labels" and self.labels is None:
            return _without_targets(output, rows.to(device))
        logits = _logits(output)
        if objective == "labels" and self.labels is not None:
            target, sequence = self.labels.to(device)[batch.inputs[:, 0].to(device)], rows.to(device)
            if logits.ndim != 2 or int(target.max()) >= logits.shape[1] or int(target.min()) < 0:
                raise UsageError(
                    f"labels {int(target.min())} ... {int(target.max())}: do not fit logits {tuple(logits.shape)}, "
                    "which must be [row, class]; or pass loss="
                )
        else:
            ids = self.rows.select(batch.inputs[:, 0], batch.inputs.shape[1] + prefix + suffix)["input_ids"].to(device)
            if objective == "masked":
                assert mask is not None
                chosen = F.pad(mask, (prefix, suffix)).to(device)
                logits, target, sequence = logits[chosen], ids[chosen], chosen.nonzero()[:, 0]
            else:
                sequence = rows.to(device).repeat_interleave(ids.shape[1] - 1)
                logits, target = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        correct = (logits.argmax(dim=-1) == target).float()
        return Predictions(F.cross_entropy(logits, target, reduction="none"), correct, sequence, len(rows))

    def in_double(self) -> "TorchModel":
        """Return a copy in float64."""
        tensors = {name: x.double() if x.is_floating_point() else x for name, x in self.rows.tensors.items()}
        return replace(self, model=copy.deepcopy(self.model).double(), rows=replace(self.rows, tensors=tensors))

    def untrained(self, seed: int) -> "TorchModel | None":
        """Return a newly initialised model of the same configuration, or None without a way to make it."""
        if self.initial is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            fresh = self.initial(seed)
        reference = next(self.parameters())
        return replace(self, model=fresh.eval().to(device=reference.device, dtype=reference.dtype))


def of_module(model: nn.Module) -> Probe:
    """Refuse a model without inputs."""
    name = type(model).__name__
    raise UsageError(f"a {name} needs inputs: ap.proximity(model, inputs) or ap.network(model, inputs, ...)")


def network(
    model: nn.Module,
    inputs: Any,
    *,
    labels: Any = None,
    loss: Loss | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    site: str | None = None,
    grid: tuple[int, int] | None = None,
    leave_out: Literal["special", "none"] | tuple[int, int] | np.ndarray | Tensor = "special",
    reference: Any = None,
    initial: Callable[[int], nn.Module] | None = None,
) -> Probe:
    """Return any PyTorch model, with the inputs to measure it on, as the argument of a measure.

    The attention calls of the model are found in one forward pass and checked: the recorded queries, keys, mask, bias
    and scale must reproduce the output z of every call.

    Args:
        model: A model in evaluation mode: Hugging Face, timm, torchvision, ``nn.TransformerEncoder``, your own.
        inputs: Token ids or other inputs [row, ...], a dictionary of such tensors, texts (with ``tokenizer``) or images
            (with ``processor``). Rows are cropped to the length that ``attention_mask`` gives.
        labels: Class of each row (a list, array or tensor of integers), for models whose output has logits
            [row, class]. `gradients` needs labels, a ``loss`` or a language-model head; without any of them,
            `interventions` compares the logits with the unedited ones.
        loss: Function from the model's output and its inputs to the loss of each row, instead of the cross-entropy of
            ``labels``. The inputs have the row numbers under "row".
        tokenizer: Hugging Face tokenizer for texts; it also says which tokens are special, and the mask token.
        processor: Hugging Face image processor for images.
        site: Pattern of the paths of the attention modules to measure, such as "encoder.*", if there are several
            kinds.
        grid: Rows and columns of the patches of an image; from the configuration of Hugging Face vision models.
        leave_out: Tokens that are not measured although they attend and are attended to: "special" tokens anywhere in a
            row, "none", the number at the beginning and at the end, (1, 1), or a Boolean array [row, token]. Tokens
            that are left out inside a row count as positions.
        reference: Inputs for the means and offset profiles of `positions` and `interventions`, in the same form as
            ``inputs``. By default every second row is used for these, and the others are measured.
        initial: Function from a seed to a newly initialised model, for the null at initialisation. Hugging Face models
            are made from their configuration.

    Raises:
        UsageError: If the model has no attention call that can be measured; the message says why and what to do.
    """
    if not isinstance(model, nn.Module) and not hasattr(model, "original_model"):
        raise UsageError(f"model of type {type(model).__name__}: must be a torch.nn.Module")
    grid = None if grid is None else (int(grid[0]), int(grid[1]))
    model = getattr(model, "original_model", model)  # TransformerLens's bridge holds the torch model
    model = getattr(model, "_orig_mod", model)  # torch.compile: the same model, not compiled
    if training := [name or type(model).__name__ for name, module in model.named_modules() if module.training]:
        raise UsageError(f"{training[0]} is in training mode: call model.eval()")
    check_real(model)
    rows = rows_of(model, inputs, tokenizer, processor)
    if reference is not None:
        rows = joined(rows, rows_of(model, reference, tokenizer, processor))
    length = None if rows.lengths is None else int(rows.lengths.max())
    # The longest rows show every sliding window.
    checked = np.arange(len(rows)) if length is None else np.flatnonzero(rows.lengths == length)

    outputs: list[Any] = []

    def run() -> None:
        batch = rows.select(torch.from_numpy(checked[:CHECKED]), length)
        batch = {name: x.to(next(model.parameters()).device) for name, x in batch.items()}
        outputs.append(model(*batch.values()) if rows.positional else model(**batch))

    found = calls(model, run)
    # Scores of a softmax stand for q, with -inf at masked keys.
    if any((x.isnan() | (x == math.inf)).any() for call, z in found for x in (call.q, call.k, call.v, z)):
        place = first_invalid(model, run, len(checked[:CHECKED]))
        first_module = "" if place is None else f", first in the output of {place[0]}"
        reason = invalid_weight(model)
        raise NonFiniteError(
            f"{type(model).__name__} attends over NaN or infinite values{first_module}{reason and '; '}{reason}"
        )
    selected = _chosen(found, len(checked[:CHECKED]), site, type(model).__name__)
    first = selected[0][0]
    tokens = first.q.shape[2]
    if grid is None and (patches := grid_of(model, rows)) is not None and math.prod(patches) <= tokens:
        grid = patches
    if length is not None and tokens != length:
        raise UsageError(f"{first.site}: attends over {tokens} tokens, but attention_mask has {length}")
    special = special_tokens(model, rows, tokenizer, leave_out, tokens, grid)
    scores = [scores_of(call, special.prefix, special.suffix, grid) for call, _ in selected]
    causal = {layer_scores.causal for layer_scores in scores}
    if len(causal) > 1:
        raise UsageError(
            f"{listed(call.site for call, _ in selected)}: some are causal and some not; name one kind: site="
        )
    windows = tuple(layer_scores.window for layer_scores in scores)
    lengths = rows.lengths if rows.lengths is not None else np.full(len(rows), tokens)
    measured = lengths - special.ends
    if measured.min() < 1:
        raise UsageError(f"row {int(measured.argmin())}: has no tokens besides {special.ends} special ones")
    d_model = first.module_input[-1] if first.module_input is not None else first.q.shape[1] * first.q.shape[3]
    shape = Shape(
        layers=len(selected),
        heads=first.q.shape[1],
        n=int(measured.max()),
        d_model=d_model,
        grid=grid,
        causal=causal.pop(),
        left_out=special.ends,
        windows=windows if any(window is not None for window in windows) else (),
        sinks=any(layer_scores.sink is not None for layer_scores in scores),
        knows_queries=all(is_product(call, one) for (call, _), one in zip(selected, scores, strict=True)),
        inputs_are_tokens=False,
        grid_unit=_grid_unit(model),
    )
    torch_model = TorchModel(
        model=model,
        rows=rows,
        sites=tuple((call.site, call.turn) for call, _ in selected),
        shape=shape,
        special=special,
        initial=initial if initial is not None else _from_config(model),
        labels=None if labels is None else _labels(labels, rows),
        loss=loss,
        mask_id=getattr(tokenizer, "mask_token_id", None),
        tokenizer=tokenizer,
        biases=tuple(one.bias_by_offset for one in scores),
    )
    longest = Batch(torch.from_numpy(checked[:1, None]).expand(-1, shape.n), torch.zeros(1))
    run_first = partial(torch_model._first_scores, longest, None)
    with torch.no_grad():
        between = slice(special.prefix, special.prefix + shape.n)
        table = find_table(model, run_first, between, shape.n + special.ends, d_model)
    torch_model = replace(torch_model, table=table)
    probe = _probe(torch_model, measured, reference is None)
    return replace(probe, has_logits=isinstance(getattr(outputs[0], "logits", None), Tensor))


def _labels(labels: Any, rows: Rows) -> Tensor:
    """Return the class of each row; that of reference rows is 0 and not used."""
    try:
        values = torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise UsageError(f"labels of type {type(labels).__name__}: must be class numbers, one per row") from error
    measured = len(rows) - rows.reference
    if values.shape != (measured,) or values.is_floating_point():
        raise UsageError(f"labels of shape {tuple(values.shape)}: must be class numbers [{measured}], one per row")
    if int(values.min()) < 0:
        raise UsageError(f"labels: row {int(values.argmin())} has {int(values.min())}; must not be negative")
    return F.pad(values.long(), (0, rows.reference))


def _probe(model: TorchModel, lengths: np.ndarray, halves: bool) -> Probe:
    """Return the probe of a model: its data are row numbers, one per measured token."""
    count, n = len(model.rows), model.shape.n
    numbers = np.broadcast_to(np.arange(count)[:, None], (count, n))
    labels = np.zeros(count, np.int64) if model.labels is None else model.labels.numpy().astype(np.int64)
    same_length = bool((lengths == n).all())
    is_reference = np.arange(count) % 2 == 1 if halves else np.arange(count) >= count - model.rows.reference
    if (~is_reference).sum() < 2:
        few = count - model.rows.reference
        hint = ": at least 3 are needed, since every second one is reference data" if halves else ": must be at least 2"
        raise UsageError(f"inputs of {few} row{'s' * (few > 1)}{hint}")

    def split(chosen: np.ndarray) -> Split:
        return Split(np.ascontiguousarray(numbers[chosen]), labels[chosen], None if same_length else lengths[chosen])

    spec = DataSpec(
        n=n, inputs="tokens", classes=max(2, int(labels.max()) + 1), vocabulary=count, grid=model.shape.grid
    )
    name = _name_of(model.model)
    task = Task(name, spec, split(is_reference), split(~is_reference))
    arrays = [x.cpu().numpy() for x in model.rows.tensors.values()]
    sites = [f"{path}#{turn}" if turn else path for path, turn in model.sites]
    return Probe(
        network=model,
        data=lambda: task,
        objective=_objectives(model)[0],
        objectives=_objectives(model),
        mask_probability=0.15,
        title=f"{name}, {count} inputs",
        facts={
            "model": type(model.model).__name__,
            "sites": sites,
            "special_tokens": [model.special.prefix, model.special.suffix],
            "special_tokens_inside": 0 if model.special.inside is None else int(model.special.inside.sum()),
            "position_table": "" if model.table is None else model.table.name,
            "inputs_fingerprint": fingerprint(arrays),
            "weights_fingerprint": _weights_fingerprint(model.model),
            "step": 0,
        },
        has_loss=model.loss is not None or model.labels is not None or _objectives(model) != ("labels",),
    )


def _grid_unit(model: Any) -> str:
    """Return what the tokens of a grid are: patches, except for an attnprobe model whose patches are single pixels."""
    return "pixels" if is_attnprobe(model) and model.config.data_spec.patch == 1 else "patches"


def _name_of(model: nn.Module) -> str:
    """Return the name of the class, and of a Hugging Face model's folder or repository."""
    origin = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "").rstrip("/").split("/")[-1]
    return f"{type(model).__name__} {origin}".strip()


def _objectives(model: TorchModel) -> tuple[str, ...]:
    """Return the objectives that the model can be evaluated on; labels stands for the user's loss, or for none."""
    names = ["labels"]
    head = type(model.model).__name__
    if "input_ids" in model.rows.tensors and ("LMHead" in head or "CausalLM" in head or "MaskedLM" in head):
        if "MaskedLM" in head and model.mask_id is not None:
            names.append("masked")
        elif model.shape.causal:
            names.append("next-token")
    if len(names) > 1 and model.labels is None and model.loss is None:
        names.remove("labels")
    return tuple(names)


def _without_targets(output: Any, rows: Tensor) -> Predictions:
    """Return predictions with a loss of NaN, and with the logits of rows or tokens if the output has them."""
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        return Predictions(torch.full((len(rows),), torch.nan), None, rows, len(rows))
    sequence = rows.repeat_interleave(logits[..., 0].numel() // len(rows))
    logits = logits.flatten(0, -2)
    return Predictions(logits.new_full((len(logits),), torch.nan), None, sequence, len(rows), logits)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise UsageError(f"the output of the model, a {type(output).__name__}, has no logits: pass loss=")
    return logits


def _chosen(found: list[tuple[Call, Tensor]], rows: int, site: str | None, name: str) -> list[tuple[Call, Tensor]]:
    """Return the calls to measure, checked; raise `UsageError` if there are none or several kinds."""
    if not found:
        raise UsageError(
            f"{name}: no attention call seen; use attn_implementation='sdpa' or 'eager', an untraced model, or, in "
            "your own code, scaled_dot_product_attention or a softmax over [batch, head, query, key]"
        )
    usable = {id(call): _refusal(call, rows) for call, _ in found}
    kinds: dict[str, list[tuple[Call, Tensor]]] = {}
    for call, z in found:
        if site is None or fnmatch.fnmatch(call.site, site):
            kinds.setdefault(re.sub(r"(?<![A-Za-z\d])\d+(?![A-Za-z\d])", "*", call.site), []).append((call, z))
    if not kinds:
        raise UsageError(
            f"site={site!r} matches no attention call; valid: {listed(sorted({c.site for c, _ in found}))}"
        )
    good = {kind: pairs for kind, pairs in kinds.items() if all(usable[id(call)] is None for call, _ in pairs)}
    if not good:
        call, reason = next(
            (call, usable[id(call)]) for pairs in kinds.values() for call, _ in pairs if usable[id(call)]
        )
        raise UsageError(f"{call.site or name}: {reason}")
    if len(good) > 1 and site is None:
        raise UsageError(f"{name} has several kinds of attention; name one, or a pattern, with site=: {listed(good)}")
    measured = {id(call) for pairs in good.values() for call, _ in pairs}
    chosen = [pair for pair in found if id(pair[0]) in measured]
    if len({call.q.shape[1:3] for call, _ in chosen}) > 1:
        raise UsageError(f"{name}: layers differ in heads or tokens; name some of them with site=")
    for call, z in chosen:
        error, limit = replay_error(call, z), TOLERANCE.get(z.dtype, 0.0) * max(1.0, float(z.abs().max()))
        if not error <= limit:
            raise UsageError(
                f"{call.site}: the recorded scores reproduce z to {error:.1e}, must be {limit:.1e}; dropout?"
            )
    return chosen


def _refusal(call: Call, rows: int) -> str | None:
    """Return why a call cannot be measured, or None."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    if queries != keys:
        return f"{queries} queries and {keys} keys: cross-attention, a cache or chunks cannot be measured"
    if call.crosses:
        return "cross-attention cannot be measured"
    if len(call.q) != rows:
        hint = "set batch_first=True" if queries == rows else "attention within parts cannot be measured"
        return f"{len(call.q)} score matrices per head for {rows} rows: {hint}"
    if call.module_input is not None and queries not in call.module_input[:2]:
        return f"{queries} queries, but its module reads {call.module_input}: attention is not over tokens"
    return None


def _from_config(model: nn.Module) -> Callable[[int], nn.Module] | None:
    """Return how to make a new Hugging Face model of the same configuration."""
    if not any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__):
        return None
    kind: Any = type(model)
    return lambda seed: kind(model.config)


def _weights_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name}{weight.dtype}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
