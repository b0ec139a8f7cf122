"""What a measure reads is what the forward pass computed."""

import materialised
import numpy as np
import pytest
import torch

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.measures import capture
from attnprobe.measures.capture import chunks, scores_by_layer
from attnprobe.position import POSITIONS
from attnprobe.tasks import Split
from attnprobe.transformer import Transformer

DATA = DataSpec(n=7, inputs="tokens", classes=2, vocabulary=5)


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_captured_scores_are_those_of_the_hook(position, causal):
    config = ModelConfig(n_layers=2, d_model=8, position=position, causal=causal, init_scale=0.5, position_scale=0.5)
    model = Transformer(config, DATA)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    visible = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
    for layer, found in enumerate(scores_by_layer(model, tokens)):
        scores = materialised.dense(found)
        torch.testing.assert_close(scores[..., visible].float(), cache["attn_scores", layer][..., visible])
        torch.testing.assert_close(scores.softmax(-1).float(), cache["pattern", layer])


def test_the_networks_own_first_token_is_left_out():
    model = Transformer(ModelConfig(d_model=8, pooling="cls", position="alibi", init_scale=0.5), DATA)
    tokens = torch.randint(5, (3, 7))
    _, cache = model.run_with_cache(tokens)
    (found,) = scores_by_layer(model, tokens)
    torch.testing.assert_close(materialised.dense(found).float(), cache["attn_scores", 0][..., 1:, 1:])


@pytest.mark.parametrize("score_bias", ["fixed", "learned"])
@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(("pooling", "causal"), [("mean", False), ("mean", True), ("cls", False)])
@pytest.mark.parametrize("grid", [None, (2, 4)])
def test_captured_scores_have_the_proximity_bias_of_the_network(score_bias, position, pooling, causal, grid):
    data = DataSpec(n=8, inputs="tokens", classes=2, vocabulary=5, grid=grid)
    named = {"d_model": 8, "init_scale": 0.5, "position_scale": 0.5, "pooling": pooling, "causal": causal}
    model = Transformer(ModelConfig(n_layers=2, position=position, score_bias=score_bias, **named), data).double()
    with torch.no_grad():
        model.score_bias.weight.add_(torch.randn(model.score_bias.weight.shape))
    tokens = torch.randint(5, (3, 8), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    behind = slice(model.n_prefix, None)
    for layer, found in enumerate(scores_by_layer(model, tokens)):
        torch.testing.assert_close(materialised.dense(found), cache["attn_scores", layer][..., behind, behind])


def test_chunks_hold_each_row_once_without_padding(monkeypatch):
    lengths = np.array([3, 7, 3, 5, 7, 3])
    inputs = np.arange(42).reshape(6, 7)
    model = Transformer(ModelConfig(d_model=8), DATA)
    monkeypatch.setattr(capture, "ELEMENTS", 2 * 3 * 8 * 2)  # two sequences of three tokens at a time
    seen, sizes = {}, []
    for places, tokens in chunks(Split(inputs, np.zeros(6), lengths), np.array([0, 1, 2, 4, 5]), model):
        sizes.append(tokens.shape)
        for place, row in zip(places, tokens, strict=True):
            seen[int(place)] = row.tolist()
    assert sizes == [(2, 3), (1, 3), (1, 7), (1, 7)]
    assert {place: len(row) for place, row in seen.items()} == {0: 3, 1: 7, 2: 3, 3: 7, 4: 3}
    assert seen[3] == inputs[4].tolist()
