"""TransformerLens's helpers are correct for this network or raise an error."""

import pytest
import torch
from transformer_lens import patching

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.model.transformer import Transformer

DATA = DataSpec(n=6, inputs="tokens", classes=2, vocabulary=5)


def network(data=DATA, **options):
    config = ModelConfig(d_model=8, n_layers=2, **options)
    model = Transformer(config, data).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def tokens():
    return torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "pooling": "cls"}, {"norm": "none"}, {"position": "none"}])
@torch.no_grad()
def test_components_add_up_to_the_residual_stream_and_their_logits_to_the_logits(options):
    model = network(**options)
    logits, cache = model.run_with_cache(tokens(), output="tokens")
    stream = cache["resid_post", 1]
    torch.testing.assert_close(cache.decompose_resid().sum(0), stream)
    torch.testing.assert_close(cache.get_full_resid_decomposition().sum(0), stream)
    torch.testing.assert_close(cache.accumulated_resid()[-1], stream)
    token_ids = torch.tensor([4, 0, 2])
    parts = cache.logit_attrs(cache.decompose_resid(), token_ids)
    # The contribution of the norm's bias to a logit belongs to no component.
    directions = model.unembed.weight[token_ids]
    offset = model.unembed.bias[token_ids] + (directions @ model.ln_final.bias if model.cfg.norm == "layer" else 0)
    expected = logits[torch.arange(3), :, token_ids] - offset[:, None]
    torch.testing.assert_close(parts.sum(0)[:, model.n_prefix :], expected)


def test_helpers_that_need_a_sum_of_components_are_refused_with_post_norm():
    _, cache = network(norm_placement="post").run_with_cache(tokens())
    for name in ("decompose_resid", "get_full_resid_decomposition"):
        with pytest.raises(UsageError, match=f"{name}: with post-norm"):
            getattr(cache, name)()
    for name in ("apply_ln_to_stack", "logit_attrs"):
        with pytest.raises(UsageError, match=f"{name}: with post-norm"):
            getattr(cache, name)(cache.accumulated_resid(), 1)
    with pytest.raises(UsageError, match="logit_lens needs a tokeniser"):
        cache.logit_lens()


def test_tokens_without_directions_are_refused():
    values = DataSpec(n=6, inputs="values", classes=2)
    for model, ids in ((network(values), torch.tensor([0])), (network(), torch.tensor([0.5]))):
        with pytest.raises(UsageError, match="must be token ids"):
            model.tokens_to_residual_directions(ids)


@torch.no_grad()
def test_transformer_lens_patching_matches_patching_with_hooks():
    model, clean, corrupted = network(), tokens(), (tokens() + 1) % 5
    assert (model.cfg.n_ctx, model.cfg.d_vocab) == (6, 5)
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[:, 0].sum()

    streams = patching.get_act_patch_resid_pre(model, corrupted, cache, metric)
    by_head = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
    assert streams.shape == (2, 6) and by_head.shape == (2, 2)

    def patch_stream(v, hook):
        v[:, 3] = cache["resid_pre", 1][:, 3]

    def patch_head(v, hook):
        v[:, :, 1] = cache["z", 0][:, :, 1]

    patched = model.run_with_hooks(corrupted, fwd_hooks=[("blocks.1.hook_resid_pre", patch_stream)])
    torch.testing.assert_close(streams[1, 3].double(), metric(patched), rtol=1e-5, atol=1e-5)
    patched = model.run_with_hooks(corrupted, fwd_hooks=[("blocks.0.attn.hook_z", patch_head)])
    torch.testing.assert_close(by_head[0, 1].double(), metric(patched), rtol=1e-5, atol=1e-5)
