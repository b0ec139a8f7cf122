import pytest
import torch
from transformer_lens import ActivationCache

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.model.parts import select
from attnprobe.model.transformer import Norm, Transformer
from attnprobe.tables import POSITIONS

TOKENS = DataSpec(n=8, inputs="tokens", classes=3, vocabulary=5)
VALUES = DataSpec(n=8, inputs="values", classes=3)


def network(data=TOKENS, **options):
    options = {"d_model": 12, "n_heads": 2, "n_layers": 2, "init_std": 0.3, "position_std": 0.3, **options}
    return Transformer(ModelConfig(**options), data).double()


@pytest.fixture
def tokens():
    return torch.randint(5, (4, 8), generator=torch.Generator().manual_seed(0))


def test_the_cache_is_an_activation_cache_with_transformer_lens_names(tokens):
    model = network()
    logits, cache = model.run_with_cache(tokens)
    assert isinstance(cache, ActivationCache)
    torch.testing.assert_close(logits, model(tokens))
    block = [
        "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
        "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
        "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
    ]  # fmt: skip
    expected = {"hook_embed", "hook_pos_embed", "ln_final.hook_scale", "ln_final.hook_normalized", "hook_pooled"}
    assert set(cache.keys()) == expected | {f"blocks.{layer}.{name}" for layer in range(2) for name in block}
    assert cache["q", 1].shape == (4, 8, 2, 6)
    assert cache["pattern", 1].shape == (4, 2, 8, 8)
    torch.testing.assert_close(cache["attn_scores", 0].softmax(-1), cache["pattern", 0])
    # TransformerLens's helpers read the network's configuration and weights.
    stacked, labels = cache.decompose_resid(return_labels=True)
    torch.testing.assert_close(stacked.sum(0), cache["resid_post", 1])
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    heads = cache.stack_head_results(layer=1)
    bias = model.blocks[0].attn.o.bias
    torch.testing.assert_close(heads.sum(0) + bias, cache["attn_out", 0])


@torch.no_grad()
def test_weights_have_transformer_lens_names_and_shapes(tokens):
    model = network(norm="none")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        x = cache["resid_pre", layer]
        for name in "qkv":
            expected = torch.einsum("btm,hmd->bthd", x, getattr(model, f"W_{name.upper()}")[layer])
            torch.testing.assert_close(cache[name, layer], expected + getattr(model, f"b_{name.upper()}")[layer])
        out = torch.einsum("bthd,hdm->btm", cache["z", layer], model.W_O[layer]) + model.b_O[layer]
        torch.testing.assert_close(cache["attn_out", layer], out)
        mid = cache["resid_mid", layer] @ model.W_in[layer] + model.b_in[layer]
        torch.testing.assert_close(cache["pre", layer], mid)
        torch.testing.assert_close(
            cache["mlp_out", layer], cache["post", layer] @ model.W_out[layer] + model.b_out[layer]
        )
    torch.testing.assert_close(model.QK.AB, model.W_Q @ model.W_K.mT)
    torch.testing.assert_close(model.OV.AB, model.W_V @ model.W_O)
    neurons, labels = cache.stack_neuron_results(layer=2, return_labels=True)
    assert len(labels) == 2 * 24
    torch.testing.assert_close(neurons.sum(0) + model.b_out.sum(0), cache["mlp_out", 0] + cache["mlp_out", 1])
    with pytest.raises(AttributeError, match="has no attribute 'W_in'"):
        _ = network(mlp_ratio=0).W_in


def test_remove_batch_dim_drops_the_batch_axis_of_a_single_sequence(tokens):
    _, cache = network().run_with_cache(tokens[:1], remove_batch_dim=True)
    assert cache["pattern", 0].shape == (2, 8, 8)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_fused_and_explicit_norm_agree_and_have_unit_scale(norm):
    module = Norm(ModelConfig(norm=norm, d_model=12)).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(3, 12, dtype=torch.float64)
    fused = module(x)
    scale = []
    module.hook_scale.add_hook(lambda tensor, hook: scale.append(tensor))
    torch.testing.assert_close(module(x), fused)
    centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    torch.testing.assert_close(scale[0], (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def test_edits_of_the_scale_by_a_torch_hook_take_effect():
    module = Norm(ModelConfig(d_model=12))
    x = torch.randn(3, 12)
    unedited = module(x)
    module.hook_scale.register_forward_pre_hook(lambda hook, args: (args[0] * 2,))
    torch.testing.assert_close(module(x), unedited / 2)


def test_hook_points_that_would_never_fire_do_not_exist(tokens):
    for options in ({"norm": "none", "position": "rotary"}, {"position": "none"}, {"position": "alibi"}):
        model = network(**options)
        _, cache = model.run_with_cache(tokens)
        assert set(model.hook_dict) == set(cache.keys())


def test_without_positions_permuting_tokens_permutes_scores_and_keeps_label_logits(tokens):
    model, order = network(position="none"), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    logits, cache = model.run_with_cache(tokens)
    shuffled, other = model.run_with_cache(tokens[:, order])
    torch.testing.assert_close(shuffled, logits)
    for layer in range(2):
        permuted = cache["attn_scores", layer][..., order, :][..., order]
        torch.testing.assert_close(other["attn_scores", layer], permuted)


@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "none"])
def test_with_positions_permuting_tokens_changes_the_logits(position, tokens):
    model = network(position=position)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(model(tokens), model(tokens[:, order]), atol=1e-6)


@pytest.mark.parametrize("position", list(POSITIONS))
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("score_bias", ["none", "fixed"])
def test_padding_changes_nothing(position, pooling, causal, score_bias, tokens):
    causal = causal and pooling != "cls"
    model = network(position=position, pooling=pooling, causal=causal, score_bias=score_bias)
    padded = model(tokens, lengths=torch.tensor([8, 5, 3, 1]))
    for row, length in enumerate([8, 5, 3, 1]):
        torch.testing.assert_close(padded[row], model(tokens[row : row + 1, :length])[0])


def test_pooling_matches_its_definition(tokens):
    models = {pooling: network(pooling=pooling) for pooling in ("mean", "max", "last")}
    x = torch.randn(2, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(models["mean"].pool(x, None), x.mean(1))
    torch.testing.assert_close(models["max"].pool(x, None), x.amax(1))
    torch.testing.assert_close(models["last"].pool(x, None), x[:, -1])


def test_the_prepended_token_is_pooled_and_excluded_from_token_logits(tokens):
    model = network(pooling="cls")
    _, cache = model.run_with_cache(tokens)
    stream = cache["ln_final.hook_normalized"]
    assert stream.shape == (4, 9, 12)
    assert torch.equal(cache["hook_pooled"], stream[:, 0])
    torch.testing.assert_close(model(tokens, output="tokens"), model.unembed(stream[:, 1:]))


@pytest.mark.parametrize("data", [TOKENS, VALUES])
def test_outputs_do_not_depend_on_masked_tokens(data, tokens):
    model = network(data)
    inputs = tokens if data is TOKENS else tokens.double() / 5
    masked = torch.zeros(4, 8, dtype=torch.bool)
    masked[:, 2] = True
    other = inputs.clone()
    other[:, 2] = (inputs[:, 2] + 1) % 5
    outputs = [model(x, masked=masked, output="tokens") for x in (inputs, other)]
    assert torch.equal(*outputs)
    # The mask embedding differs from every token embedding, including that of 0.
    assert not torch.allclose(outputs[0], model(inputs.masked_fill(masked, 0), output="tokens"))


CHANNELS = DataSpec(n=8, inputs="values", classes=3, channels=3)


def test_permuting_channels_and_their_weights_gives_the_same_outputs():
    model, order = network(CHANNELS), torch.tensor([2, 0, 1])
    values = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0)).double()
    masked = torch.rand(4, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    labels, tokens = (model(values, masked=masked, output=output) for output in ("labels", "tokens"))
    assert tokens.shape == (4, 8, 3)
    with torch.no_grad():
        model.embed.weight[:, :3] = model.embed.weight[:, order]
        model.unembed.weight.copy_(model.unembed.weight[order])
    torch.testing.assert_close(model(values[..., order], masked=masked), labels)
    torch.testing.assert_close(model(values[..., order], masked=masked, output="tokens"), tokens[..., order])


def test_a_masked_token_shows_no_channel_and_is_flagged():
    model = network(CHANNELS)
    values = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0)).double()
    masked = torch.zeros(4, 8, dtype=torch.bool)
    masked[:, 2] = True
    other = values.clone()
    other[:, 2] = 7
    assert torch.equal(model(values, masked=masked), model(other, masked=masked))
    _, cache = model.run_with_cache(values, masked=masked)
    flagged = model.embed.weight[:, 3] + model.embed.bias
    torch.testing.assert_close(cache["hook_embed"][:, 2], flagged.expand(4, -1))


def test_one_channel_is_the_network_of_values_without_channels():
    # Two channels of which the second is always 0 and has the weights of the single one.
    one, two = network(VALUES), network(DataSpec(n=8, inputs="values", classes=3, channels=2))
    assert one.embed.weight.shape == (12, 2) and one.unembed.weight.shape == (1, 12)
    state = {**one.state_dict()}
    for name in ("unembed.weight", "unembed.bias"):
        state[name] = state[name].repeat_interleave(2, dim=0)
    state["embed.weight"] = state["embed.weight"][:, [0, 0, 1]]
    two.load_state_dict(state)
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).double()
    padded = torch.stack([values, torch.zeros_like(values)], dim=-1)
    masked = torch.rand(4, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    for output in ("labels", "tokens"):
        expected = one(values, masked=masked, output=output)
        torch.testing.assert_close(two(padded, masked=masked, output=output)[..., : expected.shape[-1]], expected)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (CHANNELS, (2, 8), r"inputs of shape \(2, 8\): must be \[batch, token, channel=3\] with 1 to 8 tokens"),
        (CHANNELS, (2, 8, 2), r"inputs of shape \(2, 8, 2\): must be \[batch, token, channel=3\]"),
        (CHANNELS, (2, 9, 3), r"inputs of shape \(2, 9, 3\): must be .* with 1 to 8 tokens"),
        (VALUES, (2, 8, 1), r"inputs of shape \(2, 8, 1\): must be \[batch, token\] with 1 to 8 tokens"),
    ],
)
def test_inputs_with_the_wrong_channels_are_refused(data, shape, message):
    with pytest.raises(UsageError, match=message):
        network(data)(torch.zeros(shape))


def test_causal_outputs_do_not_depend_on_later_tokens(tokens):
    other = tokens.clone()
    other[:, 5:] = (tokens[:, 5:] + 1) % 5
    for causal in (True, False):
        model = network(causal=causal)
        same = torch.allclose(model(tokens, output="tokens")[:, :5], model(other, output="tokens")[:, :5])
        assert same == causal


def test_post_norm_normalises_the_stream_after_each_sum(tokens):
    _, cache = network(norm_placement="post").run_with_cache(tokens)
    stream = cache["resid_post", 1]
    torch.testing.assert_close(stream.mean(-1), torch.zeros_like(stream[..., 0]))
    torch.testing.assert_close(stream.var(-1, unbiased=False), torch.ones_like(stream[..., 0]), rtol=1e-3, atol=1e-3)


def test_without_mlp_and_norm_a_block_is_attention_and_residual(tokens):
    _, cache = network(mlp_ratio=0, norm="none").run_with_cache(tokens)
    torch.testing.assert_close(cache["resid_post", 0], cache["resid_pre", 0] + cache["attn_out", 0])
    assert not any("mlp" in name for name in cache.keys())


def test_initial_weights_have_the_configured_std_and_depend_on_the_seed():
    config = ModelConfig(d_model=128, n_heads=2, init_std=0.5, position_std=0.1)
    model, again, other = (Transformer(config, TOKENS, seed) for seed in (0, 0, 1))
    assert model.blocks[0].attn.q.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.embed.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.position.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.blocks[0].attn.q.bias.abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.embed.weight, other.embed.weight)
    # Networks of other architectures share the initial weights of common parts.
    rotary = Transformer(ModelConfig(d_model=128, n_heads=2, init_std=0.5, position="rotary"), TOKENS, 0)
    assert torch.equal(rotary.blocks[0].attn.q.weight, model.blocks[0].attn.q.weight)


def test_xavier_weights_have_xaviers_variance():
    weight = Transformer(ModelConfig(d_model=128, init="xavier"), TOKENS).blocks[0].mlp.into.weight
    assert weight.var().item() == pytest.approx(2 / (128 + 256), rel=0.05)


@pytest.mark.parametrize("score_bias", ["fixed", "learned"])
def test_a_proximity_bias_changes_no_other_weight_and_is_a_parameter_only_if_learned(score_bias, tokens):
    plain, biased = network(), network(score_bias=score_bias)
    extra = {"score_bias.weight": biased.score_bias.weight} if score_bias == "learned" else {}
    for weights, biased_weights in (
        (plain.state_dict(), biased.state_dict()),
        (dict(plain.named_parameters()), dict(biased.named_parameters())),
    ):
        assert set(biased_weights) == {*weights, *extra}
        assert all(torch.equal(biased_weights[name], weight) for name, weight in weights.items())
    assert not torch.allclose(plain(tokens), biased(tokens))
    initial = -torch.arange(-7, 8).abs() / 2.0
    assert torch.equal(biased.score_bias.weight, initial.expand(2, 15).double())
    assert select("positions", dict(biased.named_parameters())) == ["position.weight", *extra]


def test_a_learned_proximity_bias_gets_gradients_from_every_layer(tokens):
    model = network(score_bias="learned")
    gradients = []
    for block in model.blocks:
        (gradient,) = torch.autograd.grad(model(tokens).sum(), model.score_bias.weight)
        gradients.append(gradient.abs().sum())
        block.attn.o.weight.data.zero_()  # the attention of this layer no longer has an effect
    assert gradients[0] > 0 and gradients[1] > 0
    assert torch.autograd.grad(model(tokens).sum(), model.score_bias.weight)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.zeros(2, 9, dtype=torch.long), {}, r"shape \(2, 9\): must be \[batch, token\] with 1 to 8"),
        (torch.zeros(2, 3, 4, dtype=torch.long), {}, r"shape \(2, 3, 4\)"),
        (torch.zeros(2, 8), {}, "this network accepts tokens"),
        (torch.zeros(2, 8, dtype=torch.long), {"lengths": torch.tensor([1, 2, 3])}, r"lengths of shape \(3,\)"),
        (
            torch.zeros(2, 8, dtype=torch.long),
            {"lengths": torch.tensor([1, 9])},
            r"lengths 1 \.\.\. 9: must be 1 \.\.\. 8",
        ),
        (torch.zeros(2, 8, dtype=torch.long), {"lengths": torch.tensor([0, 8])}, r"lengths 0 \.\.\. 8"),
    ],
)
def test_invalid_inputs_are_refused(inputs, options, message):
    with pytest.raises(UsageError, match=message):
        network()._check(inputs, options.get("lengths"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_first_pixels_of_an_image_equal_a_padded_image(pooling):
    data = DataSpec(n=12, inputs="tokens", classes=2, vocabulary=5, grid=(3, 4))
    model = Transformer(ModelConfig(d_model=8, score_bias="fixed", pooling=pooling, init_std=0.5), data)
    image = torch.randint(5, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(image[:, :5]), model(image, lengths=torch.tensor([5, 5])))


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_the_bias_of_the_first_pixels_of_an_image_is_1_d(position):
    data = DataSpec(n=12, inputs="tokens", classes=2, vocabulary=5, grid=(3, 4))
    model = Transformer(ModelConfig(d_model=8, position=position), data)
    torch.testing.assert_close(model.bias(5), model.position.bias(5))


def test_an_empty_batch_has_empty_logits():
    data = DataSpec(n=12, inputs="tokens", classes=2, vocabulary=5)
    assert Transformer(ModelConfig(d_model=8), data)(torch.empty(0, 12, dtype=torch.long)).shape == (0, 2)


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_dropout_scales_or_drops_elements_of_inputs_and_sublayers_in_training_only(norm_placement):
    tokens = torch.randint(5, (64, 8), generator=torch.Generator().manual_seed(0))
    plain = network(norm_placement=norm_placement, n_layers=1, d_model=48)
    model = network(norm_placement=norm_placement, n_layers=1, d_model=48, dropout=0.25)
    assert torch.equal(model.eval()(tokens), plain(tokens))
    sublayers = ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    _, whole = model.run_with_cache(tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, dropped = model.train().run_with_cache(tokens)
    start = sublayers[0]
    kept = dropped[start] != 0
    assert torch.allclose(dropped[start][kept], whole[start][kept] / 0.75)
    for name in sublayers:
        assert (dropped[name] == 0).double().mean() == pytest.approx(0.25, abs=0.02)
