"""Scores that measures read from attnprobe's networks match those at the hook points."""

import materialised
import pytest
import torch
from support import scores_by_layer

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.model.transformer import Transformer
from attnprobe.tables import POSITIONS

DATA = DataSpec(n=7, inputs="tokens", classes=2, vocabulary=5)


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_read_scores_match_hook_attn_scores(position, causal):
    config = ModelConfig(n_layers=2, d_model=8, position=position, causal=causal, init_std=0.5, position_std=0.5)
    model = Transformer(config, DATA)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    visible = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
    for layer, scores in enumerate(scores_by_layer(model, tokens)):
        dense = materialised.dense(scores)
        torch.testing.assert_close(dense[..., visible].float(), cache["attn_scores", layer][..., visible])
        torch.testing.assert_close(dense.softmax(-1).float(), cache["pattern", layer])


def test_prepended_tokens_are_excluded():
    model = Transformer(ModelConfig(d_model=8, pooling="cls", position="alibi", init_std=0.5), DATA)
    tokens = torch.randint(5, (3, 7))
    _, cache = model.run_with_cache(tokens)
    (scores,) = scores_by_layer(model, tokens)
    torch.testing.assert_close(materialised.dense(scores).float(), cache["attn_scores", 0][..., 1:, 1:])


@pytest.mark.parametrize("score_bias", ["fixed", "learned"])
@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(("pooling", "causal"), [("mean", False), ("mean", True), ("cls", False)])
@pytest.mark.parametrize("grid", [None, (2, 4)])
def test_read_scores_include_the_proximity_bias(score_bias, position, pooling, causal, grid):
    data = DataSpec(n=8, inputs="tokens", classes=2, vocabulary=5, grid=grid)
    options = {"d_model": 8, "init_std": 0.5, "position_std": 0.5, "pooling": pooling, "causal": causal}
    model = Transformer(ModelConfig(n_layers=2, position=position, score_bias=score_bias, **options), data).double()
    with torch.no_grad():
        model.score_bias.weight.add_(torch.randn(model.score_bias.weight.shape))
    tokens = torch.randint(5, (3, 8), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    after_prefix = slice(model.n_prefix, None)
    for layer, scores in enumerate(scores_by_layer(model, tokens)):
        torch.testing.assert_close(
            materialised.dense(scores), cache["attn_scores", layer][..., after_prefix, after_prefix]
        )
