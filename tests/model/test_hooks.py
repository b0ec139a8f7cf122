"""Every hook point of every architecture: edits by hooks always take effect and change no other tensor."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformer_lens import hook_points
from transformer_lens.HookedRootModule import HookedRootModule

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.model import hooks, transformer
from attnprobe.model.hooks import HookPoint
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import read
from attnprobe.tables import POSITIONS
from tests.support import batch_of, own

TOKENS = DataSpec(n=6, inputs="tokens", classes=2, vocabulary=5)
IMAGE = DataSpec(n=6, inputs="values", classes=2, grid=(2, 3))
ARCHITECTURES = {
    **{name: (TOKENS, {"position": name}) for name in POSITIONS},
    "causal": (TOKENS, {"causal": True, "pooling": "last"}),
    "cls": (TOKENS, {"pooling": "cls", "score_bias": "learned"}),
    "cls, ALiBi": (TOKENS, {"pooling": "cls", "score_bias": "fixed", "position": "alibi"}),
    "post-norm": (TOKENS, {"norm_placement": "post"}),
    "no norm": (TOKENS, {"norm": "none", "position": "sinusoidal"}),
    "no norm, post": (TOKENS, {"norm": "none", "norm_placement": "post", "mlp_ratio": 0}),
    "RMS, max": (TOKENS, {"norm": "rms", "pooling": "max"}),
    "image": (IMAGE, {"score_bias": "fixed"}),
}
PATTERN = "blocks.0.attn.hook_pattern"


def network(architecture="learned"):
    data, options = ARCHITECTURES[architecture]
    config = ModelConfig(d_model=8, n_layers=2, init_std=0.5, position_std=0.5, **options)
    return Transformer(config, data).eval()


def inputs_of(model):
    tokens = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    return tokens if model.data.inputs == "tokens" else tokens / 5


def state(model):
    return {name: x.clone() for name, x in [*model.named_parameters(), *model.named_buffers()]}


def edit(v, hook=None):
    """Edit in place and return nothing."""
    v.sigmoid_()


class Edited(nn.Module):
    """A user's module that replaces a hook point."""

    def forward(self, x):
        edit(x)
        return x


def outputs(model, x, name, hook):
    with model.hooks(fwd_hooks=[(name, hook)]):
        residual = model.residual(x)
        return torch.cat([model.read(residual).flatten(), model.read(residual, output="tokens").flatten()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_in_place_edits_equal_returned_edits_and_change_no_other_tensor(architecture):
    model = network(architecture).double()
    x = inputs_of(model)
    before, plain = state(model), outputs(model, x, "hook_embed", lambda v, hook: None)
    for name in model.hook_dict:
        returned = outputs(model, x, name, lambda v, hook: v.sigmoid())
        in_place = outputs(model, x, name, lambda v, hook: v.sigmoid_())
        nothing_returned = outputs(model, x, name, edit)
        for edited in (in_place, nothing_returned):
            assert torch.equal(edited, returned), name
        assert not torch.allclose(returned, plain, atol=1e-6), f"{name}: the edit is ignored"

        point = model.get_submodule(name)
        handle = point.register_forward_pre_hook(lambda point, v: edit(*v))
        assert torch.equal(outputs(model, x, "hook_embed", lambda v, hook: None), returned), f"{name}: a pre-hook"
        handle.remove()
    _, cache = model.run_with_cache(x)
    for tensor in cache.values():
        tensor.fill_(7)
    assert all(torch.equal(before[name], x) for name, x in state(model).items())
    assert torch.equal(outputs(model, x, "hook_embed", lambda v, hook: None), plain)


@pytest.mark.parametrize("architecture", ["learned", "rotary", "no norm", "RMS, max"])
@torch.no_grad()
def test_a_module_or_forward_that_replaces_a_hook_point_is_called(architecture):
    x = inputs_of(network(architecture))
    for name in network(architecture).hook_dict:
        expected = outputs(network(architecture), x, name, lambda v, hook: v.sigmoid())
        parent, _, leaf = name.rpartition(".")
        replaced, patched = network(architecture), network(architecture)
        setattr(replaced.get_submodule(parent), leaf, Edited())
        patched.get_submodule(name).forward = Edited().forward
        for model in (replaced, patched):
            residual = model.residual(x)
            both = [model.read(residual).flatten(), model.read(residual, output="tokens").flatten()]
            assert torch.equal(torch.cat(both), expected), name
        assert all(torch.equal(a, b) for a, b in zip(replaced.parameters(), patched.parameters(), strict=True))


def test_hooks_and_caches_are_refused_if_a_hook_point_is_replaced():
    model = network()
    model.blocks[0].attn.hook_pattern = Edited()
    x = inputs_of(model)
    for use in (
        lambda: model.run_with_cache(x),
        lambda: model.run_with_hooks(x, fwd_hooks=[(PATTERN, edit)]),
        lambda: model.add_hook(PATTERN, edit),
    ):
        with pytest.raises(UsageError, match=f"{PATTERN}: another module replaces the hook point"):
            use()
    model.setup()
    assert PATTERN not in model.run_with_cache(x)[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "accuracy"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)],
)
@torch.no_grad()
def test_cached_and_fused_outputs_agree_in_every_precision(architecture, dtype, accuracy):
    model = network(architecture).to(dtype)
    x = inputs_of(model)
    for lengths in (None, torch.tensor([6, 3, 1])):
        fused = model(x, lengths=lengths)
        cached, cache = model.run_with_cache(x, lengths=lengths)
        assert fused.dtype == cached.dtype == cache[PATTERN].dtype == cache["blocks.0.attn.hook_attn_scores"].dtype
        reference = network(architecture).to(dtype).double()(x, lengths=lengths)
        for output in (fused, cached):
            torch.testing.assert_close(output.double(), reference, rtol=accuracy, atol=accuracy)


COMPILED = """
import torch
from attnprobe import DataSpec, ModelConfig, Transformer

for compiled in (torch.compile, lambda model, **options: model.compile(**options) or model):
    model = Transformer(ModelConfig(d_model=8, init_std=0.5), DataSpec(n=6, inputs="tokens", classes=2, vocabulary=5))
    x = torch.randint(5, (3, 6))
    called = compiled(model.eval(), backend="eager")
    with torch.no_grad():
        plain = called(x)
        for name in ("blocks.0.attn.hook_pattern", "hook_pos_embed", "blocks.0.hook_resid_mid"):
            model.add_hook(name, lambda v, hook: v.sigmoid_())
            expected = model.forward(x)
            assert not torch.allclose(expected, plain), name
            torch.testing.assert_close(called(x), expected)
            model.reset_hooks()
            torch.testing.assert_close(called(x), plain)
        assert set(called.run_with_cache(x)[1]) == set(model.hook_dict)
"""


@pytest.mark.slow
def test_hooks_added_after_compilation_take_effect():
    # In a subprocess, because the runtime type checks of the tests cannot be compiled.
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], check=True)


def public(kind, instance):
    return {name for name in {*dir(kind), *vars(instance)} if not name.startswith("_")}


def test_every_name_of_transformer_lens_is_known_before_its_import():
    """A name that is missing would not exist until another one is used."""
    module = nn.Module()
    lens = public(HookedRootModule, HookedRootModule()) - public(nn.Module, module)
    hooked = network()
    hooked.setup()
    lens |= set(vars(hooked)) & {"mod_dict", "hook_dict"}
    assert lens - public(Transformer, network()) <= transformer.METHODS
    lens = public(hook_points.HookPoint, hook_points.HookPoint()) - public(nn.Module, module)
    assert lens <= hooks.METHODS


def test_a_network_becomes_a_hooked_root_module_in_place():
    model = network()
    x, point = inputs_of(model), model.blocks[0].attn.hook_v
    assert type(point) is HookPoint and not isinstance(model, HookedRootModule)
    handle = point.register_forward_hook(lambda module, args, v: v.sigmoid())
    before, expected, hooked = state(model), model(x), model.hooked
    model.setup()
    assert isinstance(model, HookedRootModule) and isinstance(model, Transformer)
    assert model.blocks[0].attn.hook_v is point and isinstance(point, hook_points.HookPoint)
    assert point.name == "blocks.0.attn.hook_v" and set(model.points) == set(model.hook_dict)
    assert torch.equal(model(x), expected) and model.hooked == hooked == ["blocks.0.attn.hook_v"]
    handle.remove()
    assert not torch.equal(model(x), expected) and not model.hooked
    assert all(torch.equal(after, before[name]) for name, after in state(model).items())
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(x), model(x)) and copied.hook_dict.keys() == model.hook_dict.keys()


def test_a_subclass_of_a_hook_point_edits_the_activation():
    class Zero(HookPoint):
        def forward(self, x):
            return 0 * x

    model = network()
    x = inputs_of(model)
    plain = model(x)
    model.blocks[1].attn.hook_z = Zero()
    assert not torch.equal(model(x), plain) and model.hooked == ["blocks.1.attn.hook_z"]


def test_a_single_hook_point_takes_a_hook():
    model = network()
    x = inputs_of(model)
    plain = model(x)
    model.blocks[1].attn.hook_z.add_hook(lambda z, hook: 0 * z)
    assert not torch.equal(model(x), plain)
    model.reset_hooks()
    assert torch.equal(model(x), plain)


def test_a_query_without_keys_attends_to_nothing():
    model = network().double()
    x = inputs_of(model)

    def mask_all_keys(scores, hook):
        scores[:, :, 2] = -math.inf

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", mask_all_keys)]):
        logits, cache = model.run_with_cache(x)
    assert cache[PATTERN][:, :, 2].abs().max() == 0
    assert cache["blocks.0.attn.hook_z"][:, 2].abs().max() == 0
    other_queries = [i for i in range(6) if i != 2]
    torch.testing.assert_close(cache[PATTERN][:, :, other_queries].sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
    logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_q", PATTERN, "hook_pos_embed"])
def test_measures_refuse_a_network_with_hooks(name):
    model = network()
    model.add_hook(name, lambda v, hook: v * 0)
    with pytest.raises(UsageError, match=f"hooks on {name}: measures need a network without hooks"):
        read_heads_of(model)
    model.reset_hooks()
    read_heads_of(model)


def read_heads_of(model):
    read(own(model), batch_of(inputs_of(model)), "labels", lambda heads: None)


@pytest.mark.parametrize("architecture", ["learned", "rotary", "cls"])
@pytest.mark.parametrize("pos_slice", [-1, 2, (1, 3), [0, 2]])
@torch.no_grad()
def test_pos_slice_selects_tokens(architecture, pos_slice):
    model = network(architecture)
    x = inputs_of(model)
    full, part = model.run_with_cache(x)[1], model.run_with_cache(x, pos_slice=pos_slice)[1]
    tokens = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    tokens = [tokens % (6 + model.n_prefix)] if isinstance(tokens, int) else tokens
    for name, tensor in full.items():
        if name == "hook_pooled":
            expected = tensor
        elif name.endswith(("hook_attn_scores", "hook_pattern")):
            expected = tensor[:, :, tokens]
        else:
            expected = tensor[:, tokens]
        assert torch.equal(part[name], expected), name
    single = model.run_with_cache(x[:1], pos_slice=pos_slice, remove_batch_dim=True)[1]
    assert all(torch.allclose(single[name], part[name][0], atol=1e-5) for name in part)


@torch.no_grad()
def test_lengths_may_be_a_list_or_an_array():
    model = network()
    x = inputs_of(model)
    expected = model(x, lengths=torch.tensor([6, 3, 1]))
    for lengths in ([6, 3, 1], (6, 3, 1), np.array([6, 3, 1], dtype=np.int32)):
        assert torch.equal(model(x, lengths=lengths), expected)
        assert torch.equal(model.run_with_cache(x, lengths=lengths)[0].argmax(-1), expected.argmax(-1))
    with pytest.raises(UsageError, match="lengths=.*must be whole numbers"):
        model(x, lengths=np.array([6.0, 3.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names_filter": "hook_patern"}, "names_filter='hook_patern': no such hook point; valid: .*hook_embed"),
        ({"names_filter": ["hook_embed", "q"]}, "no such hook point"),
        ({"names_filter": []}, "no such hook point"),
        ({"names_filter": lambda name: name == "q"}, "names_filter: matches none of the hook points"),
        ({"incl_bwd": True}, "incl_bwd=True: this network returns logits, not a loss"),
    ],
)
def test_invalid_arguments_of_run_with_cache_are_refused(options, message):
    model = network()
    with pytest.raises(UsageError, match=message):
        model.run_with_cache(inputs_of(model), **options)
