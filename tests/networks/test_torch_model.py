"""Any PyTorch model: what is measured equals what the model computes, for many architectures."""

import copy
import functools
import json
import shutil

import families
import numpy as np
import pytest
import torch
import transformers as tf
from support import checkpoint
from torch import nn

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.errors import UsageError
from attnprobe.networks.base import read
from attnprobe.networks.calls import Call, calls, replay_error, watching
from attnprobe.networks.structure import scores_of
from attnprobe.networks.torch_model import network
from attnprobe.training.objectives import Batch

N, VOCABULARY = 13, 40
FEW = {"sequences": 4, "nulls": 1}
BASE = families.BASE
NAMES = {
    "bert": "BERT",
    "gpt2": "GPT-2",
    "vit": "ViT",
    "mistral": "Mistral",
    "modernbert": "ModernBERT",
    "starcoder": "Starcoder2",
}


@functools.cache
def family(name):
    return families.model_and_inputs(families.FAMILIES[NAMES[name]])


@pytest.mark.parametrize("name", ["gpt2", "vit", "mistral"])
def test_patterns_are_those_that_the_model_returns(name):
    model, inputs = family(name)
    with torch.no_grad():
        output = model(inputs, output_attentions=True)
        seen = []
        with watching(model, lambda call, own: seen.append(call) or own()):
            assert torch.equal(model(inputs).last_hidden_state, model(inputs).last_hidden_state)
            watched = model(inputs).last_hidden_state
        assert torch.allclose(watched, output.last_hidden_state, atol=1e-5)
    assert seen
    result = ap.proximity(network(model, inputs, reference=inputs, leave_out="special"), **{**FEW, "sequences": 6})
    special = 1 if name == "vit" else 0
    n = output.attentions[0].shape[-1] - special
    assert result.sizes["layer"] == len(output.attentions) == 2
    offset = torch.arange(n) - torch.arange(n)[:, None] + n - 1
    for layer, pattern in enumerate(output.attentions):
        tokens = pattern[..., special:, special:].double()
        tokens = tokens / tokens.sum(-1, keepdim=True)
        profile = torch.zeros(6, 2, 2 * n - 1, dtype=torch.float64).index_add_(-1, offset.flatten(), tokens.flatten(2))
        pairs = torch.bincount(offset[(tokens > 0).flatten(0, 1).any(0)], minlength=2 * n - 1)
        expected = (profile.mean(0) / pairs).numpy()
        found = result["pattern_by_offset"].sel(layer=layer).values
        seen = pairs.numpy() > 0
        np.testing.assert_allclose(found[:, seen], expected[:, seen], rtol=1e-4, atol=1e-6)
    assert ("grid_toeplitz_share" in result) == (name == "vit")
    assert result["toeplitz_share_null"].sizes["null"] == 2  # Hugging Face models can be initialised anew


# Our own network, seen from outside, has the numbers that it has from inside.


@pytest.fixture(scope="module", params=["learned", "rotary", "alibi", "relative"])
def twice(request):
    """A checkpoint of two layers, and its network as a plain PyTorch model on the same data."""
    ckpt = checkpoint(n_layers=2, position=request.param, position_std=0.4, causal=request.param == "alibi")
    split = ckpt.task.test
    inputs, labels = torch.from_numpy(split.inputs), torch.from_numpy(split.labels)
    outside = network(ckpt.model, inputs, labels=labels, reference=inputs)
    return ckpt, outside


@pytest.mark.parametrize(
    ("measure", "options", "names"),
    [
        ("proximity", {}, ("score_by_offset", "pattern_by_offset", "toeplitz_share", "entropy", "near_mass")),
        ("flow", {}, ("entropy_ratio", "entropy_ratio_std")),
        (
            "gradients",
            {"objectives": ("labels",), "curvature": 2},
            ("curvature", "descent", "gradient_norm", "energy_share", "descent_by_offset", "descent_null"),
        ),
        ("interventions", {}, ("loss_change", "all_accuracy_change", "base_loss", "layer_loss_change_null")),
    ],
)
def test_from_outside_as_from_inside(twice, measure, options, names):
    inside, outside = (getattr(ap, measure)(subject, **FEW, **options) for subject in twice)
    if measure == "interventions":
        common = [name for name in inside["intervention"].values if name in outside["intervention"].values]
        assert {"uniform_attention", "keep_toeplitz", "ablate_toeplitz", "impose_proximity"} <= set(common)
        edits = ["uniform_attention", "keep_toeplitz", "ablate_toeplitz", "impose_proximity"]
        inside, outside = inside.sel(intervention=edits), outside.sel(intervention=edits)
    for name in names:
        known = inside[name].sel(null="permuted") if "null" in inside[name].dims else inside[name]
        found = outside[name].sel(null="permuted") if "null" in outside[name].dims else outside[name]
        if measure == "gradients" and "direction" in known.dims:  # the measured profile is of training sequences
            known, found = (one.drop_sel(direction="random") for one in (known, found))
        np.testing.assert_allclose(found, known, rtol=2e-3, atol=1e-6, err_msg=name)


def test_positions_of_a_model_that_does_not_show_its_encoding_add_up_to_the_score(twice):
    ckpt, outside = twice
    result = ap.positions(outside, **FEW)
    assert bool(outside.facts["position_table"]) == (ckpt.config.model.position == "learned")
    if outside.facts["position_table"]:  # found from outside: the same split as from inside
        inside = ap.positions(ckpt, **FEW)
        for name in ("variance_share", "score_by_offset", "position_score"):
            np.testing.assert_allclose(result[name][0], inside[name][0], rtol=1e-3, atol=1e-6, err_msg=name)
    assert result["variance_share"].sum("term").values == pytest.approx(1, abs=1e-6)
    for name in ("positional_score", "symbolic_score", "symbolic_score_interval"):
        np.testing.assert_allclose(result[name], ap.positions(ckpt, **FEW)[name], rtol=1e-3, atol=1e-5, err_msg=name)
    proximity = ap.proximity(outside, **FEW)
    total = result["proximity_contrast"].sum("term")
    np.testing.assert_allclose(total, proximity["proximity_contrast"], rtol=1e-4, atol=1e-6)


def test_position_vectors_are_split_through_the_norm_of_the_embeddings():
    """In BERT, the part of a vector p is W (p - mean) * gain / std, with the std of the token in the forward pass."""
    model, ids = family("bert")
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("sdpa")  # eager attention shows scores, not queries
    probe = network(model, ids, reference=ids, leave_out=(1, 2))
    tokens = slice(1, N - 2)
    found, _ = probe.network.first_position_parts(Batch(torch.arange(6)[:, None].expand(-1, N - 3), torch.zeros(6)))
    embeddings, query = model.embeddings, model.encoder.layer[0].attention.self.query
    vectors = embeddings.position_embeddings.weight[:N]
    x = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings.weight[0] + vectors
    std = (x.var(-1, unbiased=False, keepdim=True) + model.config.layer_norm_eps).sqrt()[:, tokens]
    part = vectors[tokens] - vectors[tokens].mean(0)
    part = (part - part.mean(-1, keepdim=True)) / std * embeddings.LayerNorm.weight
    expected = (part @ query.weight.T).unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("ViT", "embeddings.position_embeddings"),
        ("GPT-2", "wpe.weight"),
        ("ALBERT", "embeddings.position_embeddings.weight"),
        ("OPT", "decoder.embed_positions.weight"),
        ("Llama", ""),
        ("DeBERTa-v2", ""),
        ("T5 encoder", ""),
    ],
)
def test_position_tables_are_found(name, table):
    model, inputs = families.model_and_inputs(families.FAMILIES[name])
    model.set_attn_implementation("eager" if name == "DeBERTa-v2" else "sdpa")
    probe = network(model, inputs, reference=inputs, leave_out="special" if inputs.is_floating_point() else "none")
    assert probe.facts["position_table"] == table


def test_a_compiled_model_is_measured():
    model, inputs = family("bert")
    compiled = network(torch.compile(model, backend="eager"), inputs, reference=inputs)
    few = {"sequences": 6, "nulls": 0}
    entropies = [ap.proximity(one, **few)["entropy"] for one in (compiled, network(model, inputs, reference=inputs))]
    np.testing.assert_array_equal(*entropies)


def test_a_large_negative_value_hides_a_key_and_a_long_ramp_does_not():
    n = 9
    position = torch.arange(n)
    q, k, v = torch.randn(3, 1, 2, n, 4)
    hidden = torch.zeros(1, 1, n, n).masked_fill(position > position[:, None], -100.0)
    ramp = -10.0 * (position - position[:, None]).abs().float()[None, None]
    scores = [scores_of(Call("", 0, None, False, q, k, v, 0.5, mask=mask)) for mask in (hidden, ramp)]
    assert [one.causal for one in scores] == [True, False]
    assert scores[0].bias is None
    torch.testing.assert_close(scores[1].bias[0], -10.0 * torch.arange(1 - n, n).abs().float())


@pytest.mark.parametrize("hidden", [-1e9, -1e4, -1000.0, -100.0])
@pytest.mark.parametrize("added", [True, False])
def test_masks_in_scores_are_recognised(hidden, added):
    """Scores with a causal mask that was added or filled in, before a softmax."""
    scores = 6 * torch.randn(2, 2, 9, 9)
    later = ~torch.ones(9, 9, dtype=torch.bool).tril()
    masked = scores + hidden * later if added else scores.masked_fill(later, hidden)
    identity = torch.eye(9).expand(2, 2, 9, 9)
    found = scores_of(Call("", 0, None, False, masked, identity, identity, 1.0, softmax=True))
    assert found.causal and found.window is None


class Scaled(nn.Module):
    """Attention with position vectors, a scale, and a bias by distance (ALiBi)."""

    def __init__(self, scale, slope=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.position_embeddings = nn.Parameter(torch.randn(12, 8))
        self.q, self.k, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), scale
        with torch.no_grad():
            self.q.weight.mul_(0.5 / scale)
            self.q.bias.mul_(0.5 / scale)
        self.bias = -slope * (torch.arange(12)[:, None] - torch.arange(12)).abs().float()

    def forward(self, x):
        x = x + self.position_embeddings
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in (self.q(x), self.k(x), x))
        z = nn.functional.scaled_dot_product_attention(q, k, v, self.bias.expand(1, 2, -1, -1), scale=self.scale)
        return z.transpose(1, 2).flatten(2)


def test_position_terms_have_the_scale_and_the_bias_of_the_model():
    x = torch.randn(6, 12, 8, generator=torch.Generator().manual_seed(0))
    half, eighth, biased = (
        ap.positions(network(model.eval(), x, reference=x), sequences=6, nulls=0)
        for model in (Scaled(0.5), Scaled(0.125), Scaled(0.5, slope=2.0))
    )
    for name in ("position_score", "wave_amplitude", "position_singular_value", "score_by_offset"):
        np.testing.assert_allclose(half[name], eighth[name], rtol=1e-4, atol=1e-6, err_msg=name)
    bias = Scaled(0.5, slope=2.0).bias.numpy()
    difference = (biased["position_score"] - half["position_score"]).values[0, 0]
    np.testing.assert_allclose(difference, bias - bias.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_biases_of_special_tokens_do_not_disturb_positions():
    """BEiT: the trained model has a bias of the class token in more coordinates, the untrained one has none."""
    model, inputs = families.model_and_inputs(families.FAMILIES["BEiT"])
    model.set_attn_implementation("sdpa")
    probe = network(model, inputs, reference=inputs)
    result = ap.positions(probe, sequences=6, nulls=1)
    assert result["variance_share"].sum("term").values == pytest.approx(1, abs=1e-5)
    assert result.sizes["component"] == 8


@pytest.mark.parametrize("side", [12, 16])
def test_a_table_that_the_model_interpolates_is_not_taken_for_its_position_vectors(side):
    model, _ = families.model_and_inputs(families.FAMILIES["DINOv2"])
    model.set_attn_implementation("sdpa")
    found = network(model, torch.randn(6, 3, side, side)).facts["position_table"]
    assert found == ("embeddings.position_embeddings" if side == 12 else "")


def test_rows_of_one_token_and_of_the_length_of_a_window():
    """With eager attention; a layer with a window has no circulant numbers, whatever the length of its rows."""
    model, ids = family("modernbert")
    lengths = torch.tensor([1, 3, N, N, 1, 3])
    mask = (torch.arange(N) < lengths[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    probe = network(model, inputs, reference=inputs, loss=lambda output, batch: output[0].square().mean((1, 2)))
    gradients = ap.gradients(probe, sequences=6, nulls=0).isel(layer=1, loss=0)
    assert gradients["energy_share"].sel(subspace="circulant").isnull().all()
    assert gradients["descent"].sel(direction="circulant band").isnull().all()
    assert np.isfinite(gradients["gradient_norm"]).all()


def test_a_single_low_score_is_no_mask():
    scores = torch.randn(2, 2, 9, 9)
    scores[0, 1, 2, 5] = -80
    identity = torch.eye(9).expand(2, 2, 9, 9)
    found = scores_of(Call("", 0, None, False, scores, identity, identity, 1.0, softmax=True))
    torch.testing.assert_close(found.dense(), scores)


def test_a_model_that_shows_only_scores_has_no_terms():
    """Eager attention shows scores, which cannot be split; other measures do not need queries and keys."""
    model, inputs = family("gpt2")
    probe = network(model, inputs, reference=inputs, loss=lambda output, batch: output[0].square().mean((1, 2)))
    with pytest.raises(UsageError, match="positions needs queries and keys"):
        ap.positions(probe, **FEW)
    result = ap.interventions(probe, **FEW)
    assert not {"keep_position", "ablate_position"} & set(result["intervention"].values)


@pytest.mark.parametrize("side", [8, 12, 20])
def test_the_grid_is_that_of_the_images(side):
    model = families.FAMILIES["DINOv2"].make().eval()
    shape = network(model, torch.randn(6, 3, side, side)).network.shape
    assert shape.grid == (side // 4, side // 4) and shape.left_out == 1 and shape.grid_unit == "patches"


def test_uniform_attention_has_ratio_1_in_every_layer():
    model, inputs = families.model_and_inputs(families.FAMILIES["ModernBERT"])
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.Wqkv.weight.zero_()
    result = ap.proximity(network(model, inputs, reference=inputs), sequences=6, nulls=0)
    ratio = (result["pattern_by_offset"] / result["uniform_pattern_by_offset"]).transpose("layer", ...).values
    seen = result["pattern_by_offset"].transpose("layer", ...).values > 0
    np.testing.assert_allclose(ratio[seen], 1, rtol=1e-5)


# Inputs.


def test_padding_and_special_tokens_are_not_measured():
    model, _ = family("bert")
    ids = torch.randint(5, VOCABULARY, (4, N), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([N, N - 3, N, N - 3])
    ids[:, 0] = 3
    ids[torch.arange(4), lengths - 1] = 4
    mask = (torch.arange(N) < lengths[:, None]).long()
    ids = ids * mask
    padded = {"input_ids": ids, "attention_mask": mask}
    together = network(model, padded, reference=padded, leave_out=(1, 1))
    assert together.network.shape.n == N - 2
    result = ap.proximity(together, sequences=4, nulls=0)
    short = ids[1::2, : N - 3]
    alone = ap.proximity(network(model, short, reference=short, leave_out=(1, 1)), sequences=2, nulls=0)
    # Of the padded sequences, entropy is the mean over both lengths.
    long = ap.proximity(network(model, ids[::2], reference=ids[::2], leave_out=(1, 1)), sequences=2, nulls=0)
    np.testing.assert_allclose(result["entropy"], (alone["entropy"] + long["entropy"]) / 2, rtol=1e-5)


def test_ids_of_copies_are_those_of_the_measured_tokens():
    """Special tokens at the ends and inside, and padding, are neither queries nor keys."""
    model, _ = family("bert")
    ids = torch.randint(5, 9, (6, N), generator=torch.Generator().manual_seed(2))
    ids[:, 0], ids[:, 5], ids[3:, N - 3 :] = 3, 4, 0
    left_out = torch.zeros(6, N, dtype=torch.bool)
    left_out[:, [0, 5]] = left_out[0, 1] = True
    mask = torch.ones(6, N, dtype=torch.long)
    mask[3:, N - 3 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    probe = network(model, inputs, reference=inputs, leave_out=left_out.repeat(2, 1))
    result = ap.proximity(probe, sequences=6, nulls=0)
    with torch.no_grad():
        patterns = model(**inputs, output_attentions=True).attentions
    measured = mask.bool() & ~left_out
    for layer, pattern in enumerate(patterns):
        pattern = pattern * (measured[:, None, :, None] & measured[:, None, None, :])
        pattern = (pattern / pattern.sum(-1, keepdim=True)).nan_to_num()
        for step, name in enumerate(("duplicate_token_score", "induction_score")):
            by_sequence = []
            for row in range(6):
                masses = []
                for i in measured[row].nonzero()[:, 0].tolist():
                    keys = [j for j in range(step, i) if measured[row, j] and measured[row, j - step]]
                    keys = [j for j in keys if ids[row, j - step] == ids[row, i]]
                    masses += [pattern[row, :, i, keys].sum(-1)] if keys else []
                by_sequence.append(torch.stack(masses).mean(0))
            expected = torch.stack(by_sequence).mean(0)
            assert result[name].values[layer] == pytest.approx(expected.numpy(), rel=1e-4), name


@pytest.mark.parametrize("name", ["vit", "encoder and decoder", "vectors"])
def test_tokens_without_ids_of_their_own_are_not_compared(name):
    if name == "vit":
        model, inputs = family("vit")
        options = {"leave_out": "special"}
    elif name == "vectors":
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model, inputs, options = nn.TransformerEncoder(layer, 1).eval(), torch.randn(4, 6, 8), {}
    else:
        model = tf.T5Model(tf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)).eval()
        ids = torch.randint(5, 20, (4, 6))
        inputs, options = {"input_ids": ids, "decoder_input_ids": ids.flip(0)}, {"site": "decoder.*SelfAttention"}
    result = ap.proximity(network(model, inputs, **options), sequences=2, nulls=0)
    assert "induction_score" not in result and "induction_score" in result.attrs["left_out"]


def test_a_language_model_head_has_its_own_objectives():
    torch.manual_seed(0)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**families.GPT, n_embd=16, bos_token_id=0, eos_token_id=1)).eval()
    ids = torch.randint(5, VOCABULARY, (4, N), generator=torch.Generator().manual_seed(3))
    probe = network(model, ids, reference=ids)
    result = ap.interventions(probe, sequences=4, nulls=0)
    with torch.no_grad():
        logits = model(ids).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(result["base_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert ap.gradients(probe, sequences=4, nulls=0)["loss"].values.tolist() == ["next-token"]


def test_without_labels_edited_predictions_are_compared_with_unedited_ones():
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**BASE, num_labels=3)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
        model.classifier.weight.mul_(20)
    _, inputs = family("bert")
    result = ap.interventions(network(model, inputs, reference=inputs), sequences=6, nulls=0)
    with torch.no_grad():
        p = model(inputs).logits.softmax(-1)
        with watching(model, lambda call, own: call.v.mean(2, keepdim=True).expand_as(call.v)):
            q = model(inputs).logits.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    uniform = result.sel(intervention="uniform_attention")
    assert float(uniform["all_loss"]) == pytest.approx(divergence.item(), rel=1e-4)
    assert float(uniform["all_accuracy"]) == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
    assert float(result["base_loss"]) == 0 and float(result["base_accuracy"]) == 1
    assert "KL divergence" in result["loss"].attrs["long_name"]


def test_images_have_no_positional_and_symbolic_scores():
    """Their pixels are not the tokens that attend."""
    model, inputs = family("vit")
    model = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    result = ap.positions(network(model, inputs, reference=inputs), **FEW)
    left_out = json.loads(result.attrs["left_out"])
    assert "not those of the measured tokens" in left_out["positional_score symbolic_score"]
    assert not any(name.startswith(("positional_score", "symbolic_score")) for name in result)


WINDOWED = {"modernbert": 3, "mistral": 4}
"""Sliding windows of the second layer: the largest visible distance."""


@pytest.mark.parametrize("name", WINDOWED)
def test_measures_of_sliding_window_attention(name):
    """Positions add up to the score, and edits are those of the dense scores of the model's own calls."""
    model, inputs = family(name)
    model = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    probe = network(model, inputs, reference=inputs, loss=lambda output, batch: output[0].square().mean((1, 2)))
    assert probe.network.shape.windows[1] == WINDOWED[name]
    few = {"sequences": 6, "nulls": 0}
    proximity, positions = ap.proximity(probe, **few), ap.positions(probe, **few)
    assert positions["variance_share"].sum("term").values == pytest.approx(1, abs=1e-6)
    # The blocks are so close that a query of the layer with the window sees both.
    assert positions[["positional_score", "symbolic_score"]].notnull().to_array().all()
    total = positions["proximity_contrast"].sum("term")
    np.testing.assert_allclose(total, proximity["proximity_contrast"], rtol=1e-4, atol=1e-6)
    offset = torch.arange(N) - torch.arange(N)[:, None]
    profiles = torch.from_numpy(proximity["score_by_offset"].values).nan_to_num()[..., offset + N - 1].float()
    edits = {
        "uniform_attention": lambda scores, layer: torch.zeros_like(scores),
        "ablate_toeplitz": lambda scores, layer: scores - profiles[layer],
        "keep_toeplitz": lambda scores, layer: profiles[layer].expand_as(scores),
        "impose_proximity": lambda scores, layer: scores - offset.abs() / 2,
    }
    result = ap.interventions(probe, **few)
    for name, edit in edits.items():

        def answer(call, own, edit=edit):
            scores = call.dense()
            layer = int(call.site.split(".")[1])
            return edit(scores, layer).masked_fill(~scores.isfinite(), -torch.inf).softmax(-1) @ call.v

        with torch.no_grad(), watching(model, answer):
            expected = model(inputs)[0].square().mean((1, 2)).mean().item()
        assert float(result["all_loss"].sel(intervention=name)) == pytest.approx(expected, rel=1e-4), name


def test_a_loss_of_your_own():
    model, inputs = family("bert")
    probe = network(model, inputs, reference=inputs, loss=lambda output, batch: output.pooler_output.square().sum(-1))
    result = ap.interventions(probe, sequences=4, nulls=0)
    with torch.no_grad():
        expected = model(inputs[:4]).pooler_output.square().sum(-1).mean()
    assert float(result["base_loss"]) == pytest.approx(expected.item(), rel=1e-5)
    assert np.isfinite(ap.gradients(probe, sequences=4, nulls=0)["gradient_norm"]).all()


def test_torch_encoders_are_seen_and_replayed():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for model in (nn.TransformerEncoder(layer, 2).eval(), nn.Sequential(Attends(), Attends()).eval()):
        x = torch.randn(4, 9, 16)
        pairs = calls(model, lambda model=model, x=x: model(x))
        assert len(pairs) == 2 and max(replay_error(*pair) for pair in pairs) < 1e-6
        assert ap.proximity(model, x, sequences=2, nulls=0).sizes["layer"] == 2


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_mask_over_queries_and_keys_only(slope):
    """A mask [query, key], causal, with or without a bias by distance (ALiBi)."""
    position = torch.arange(9)
    mask = (-slope * (position[:, None] - position)).masked_fill(position > position[:, None], -torch.inf)
    probe = network(Masked(mask).eval(), torch.randn(4, 9, 16))
    assert probe.network.shape.causal
    seen = []
    read(probe.network, Batch(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1)), "labels", seen.append)
    assert (seen[0].scores.bias is not None) == (slope > 0)


class Masked(nn.Module):
    """An encoder with a mask."""

    def __init__(self, mask):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.mask = mask

    def forward(self, x):
        return self.encoder(x, mask=self.mask)


class Attends(nn.Module):
    """Attention written out, with a softmax."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return (nn.functional.softmax(q @ k.mT / 3, dim=-1) @ v).transpose(1, 2).flatten(2)


# What cannot be measured is refused in one line.


def _training_inside():
    model = nn.Sequential(Attends(), nn.Dropout()).eval()
    model[1].train()
    return model


def _decoder():
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2).eval()


CROSS = {"site": "*multihead_attn"}


def _several_kinds():
    return tf.T5Model(tf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).eval()


@pytest.mark.parametrize(
    ("model", "inputs", "options", "said"),
    [
        (lambda: family("bert")[0].train(), "ids", {}, "BertModel is in training mode: call model.eval()"),
        (lambda: nn.Sequential(nn.Linear(16, 16)).eval(), torch.zeros(3, 4, 16), {}, "no attention call seen"),
        (lambda: family("bert")[0].eval(), ["a text"], {}, "inputs are texts: ap.network(model, texts, tokenizer=...)"),
        (lambda: family("bert")[0].eval(), np.array(["a", "b"]), {}, "inputs are texts"),
        (lambda: family("bert")[0].eval(), [], {}, "inputs: have no rows"),
        (
            lambda: family("bert")[0].eval(),
            torch.arange(6),
            {},
            "input_ids of shape (6,) and type torch.int64: must be",
        ),
        (lambda: family("bert")[0].eval(), "ids", {"reference": torch.full((4, 5), 6)}, "reference input_ids of shape"),
        (lambda: family("bert")[0].eval(), "ids", {"reference": torch.full((1, 13), 6)}, "reference: has 1 row"),
        (lambda: family("bert")[0].eval(), "ids", {"labels": [0, 1, -1, 0, 1, 0]}, "labels: row 2 has -1; must not be"),
        (_training_inside, torch.randn(3, 4, 16), {}, "1 is in training mode: call model.eval()"),
        (_decoder, {"tgt": torch.randn(3, 4, 16), "memory": torch.randn(3, 4, 16)}, CROSS, "cross-attention cannot be"),
        (lambda: family("bert")[0].eval(), [[1, 2], [3]], {}, "inputs of type list: must be numbers [row, ...]"),
        (lambda: family("bert")[0].eval(), torch.full((2, 6), 5), {}, "inputs of 2 rows: at least 3 are needed"),
        (lambda: family("bert")[0].eval(), "ids", {"labels": ["a"] * 6}, "labels of type list: must be class numbers"),
        (lambda: family("bert")[0].eval(), "ids", {"site": "decoder.*"}, "matches no attention call; valid: encoder"),
        (
            lambda: family("bert")[0].eval(),
            "ids",
            {"labels": [0, 1]},
            "labels of shape (2,): must be class numbers [6]",
        ),
        (lambda: family("bert")[0].eval(), "ids", {"leave_out": (1, -1)}, "leave_out=(1, -1): must be the number"),
        (
            _several_kinds,
            {"input_ids": torch.full((3, 6), 5), "decoder_input_ids": torch.full((3, 6), 5)},
            {},
            "several kinds of attention; name one, or a pattern, with site=",
        ),
    ],
)
def test_refusals(model, inputs, options, said):
    inputs = family("bert")[1] if isinstance(inputs, str) else inputs
    with pytest.raises(UsageError) as caught:
        network(model(), inputs, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    family("bert")[0].eval()


class Numbered(nn.Module):
    """Two attention modules with numbers in their names, which are two kinds."""

    def __init__(self):
        super().__init__()
        self.attn1, self.attn2 = Attends(), Attends()

    def forward(self, x):
        return self.attn2(self.attn1(x))


def test_a_pattern_may_name_several_kinds():
    x = torch.randn(4, 9, 16)
    with pytest.raises(UsageError, match="several kinds of attention.*: attn1, attn2"):
        network(Numbered().eval(), x)
    assert network(Numbered().eval(), x, site="attn*").facts["sites"] == ["attn1", "attn2"]


class Skips(nn.Sequential):
    """Two layers of attention, of which the second is skipped for batches of one row."""

    def forward(self, x):
        return super().forward(x) if len(x) > 1 else self[0](x)


def test_a_model_whose_calls_differ_between_batches_is_refused():
    probe = network(Skips(Attends(), Attends()).eval(), torch.randn(4, 9, 16))
    one = Batch(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UsageError, match="1: did not attend in this batch"), torch.no_grad():
        with probe.network.attending(lambda heads: heads.attend()):
            probe.network.predictions(one, "labels")


def test_labels_that_do_not_fit_are_refused():
    model = tf.BertForSequenceClassification(tf.BertConfig(**BASE, num_labels=3)).eval()
    _, inputs = family("bert")
    with pytest.raises(UsageError, match=r"labels 3 ... 3: do not fit logits \(., 3\)"):
        ap.interventions(network(model, inputs, labels=[3] * 6, reference=inputs), **FEW)


def test_a_model_without_inputs_or_loss_is_refused():
    model, inputs = family("bert")
    with pytest.raises(UsageError, match=r"a BertModel needs inputs: ap.proximity\(model, inputs\)"):
        ap.proximity(model)
    for measure, needed in ((ap.gradients, "a loss"), (ap.interventions, "logits or a loss")):
        with pytest.raises(UsageError, match=f"needs {needed}"):
            measure(model, inputs)


@pytest.mark.parametrize("name", ["bert", "starcoder"])
@pytest.mark.parametrize("leave_out", ["none", (1, 2)])
def test_gradients_are_derivatives_of_the_loss(name, leave_out):
    """In float64, adding a row-centred bias at one offset between the measured tokens changes the loss as it says."""
    model, inputs = family(name)
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("sdpa")  # eager attention computes in float32
    probe = network(
        model, inputs, reference=inputs, leave_out=leave_out, loss=lambda output, batch: output[0].sum((1, 2)) / N
    )
    result = ap.gradients(probe, sequences=6, nulls=0)
    prefix, suffix = (0, 0) if leave_out == "none" else leave_out
    n = N - prefix - suffix
    batch = Batch(torch.arange(6)[:, None].expand(-1, n), torch.zeros(6, dtype=torch.long))
    position = torch.arange(n)

    def loss(layer, head, offset, size):
        direction = (position - position[:, None] == offset).double()

        def attend(heads):
            if heads.layer != layer:
                return heads.attend()
            scores, tokens = heads.scores.dense(), slice(prefix, N - suffix)
            visible = scores[0, 0, tokens, tokens].isfinite()
            centred = direction - (direction * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)
            scores[:, head, tokens, tokens] += size * centred
            return scores.softmax(-1) @ heads.v

        with torch.no_grad(), probe.network.attending(attend):
            return probe.network.predictions(batch, "labels").loss.mean().item()

    for layer, head, offset in ((0, 1, -1), (0, 0, 3), (1, 1, 0), (1, 0, -n + 1)):
        slope = (loss(layer, head, offset, 1e-4) - loss(layer, head, offset, -1e-4)) / 2e-4
        descent = result["descent_by_offset"].sel(layer=layer, head=head, offset=offset, loss="labels")
        assert float(descent) == pytest.approx(-slope, rel=1e-5, abs=1e-9)


# From the command line.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a masked language model with its tokenizer, and inputs of three kinds."""
    folder = tmp_path_factory.mktemp("hf")
    words = [f"w{number}" for number in range(20)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    torch.manual_seed(0)
    tf.BertForMaskedLM(tf.BertConfig(**{**BASE, "vocab_size": 25})).save_pretrained(folder / "model")
    tf.BertModel(tf.BertConfig(**{**BASE, "vocab_size": 25})).save_pretrained(folder / "untold")  # without tokenizer
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choice(words, size)) for size in [9, 7] * 6))
    labels = np.arange(40) % 2
    np.savez(folder / "real.npz", values=rng.normal(size=(40, 8)), labels=labels)
    np.savez(folder / "big.npz", tokens=np.arange(320).reshape(40, 8) % 40, labels=labels)
    np.savez(folder / "x.npz", input_ids=rng.integers(5, 25, (10, 8)))
    return folder


@pytest.mark.parametrize(
    ("measure", "inputs", "n"),
    [
        ("proximity", ["--text", "text.txt"], 9),
        ("positions", ["--task", "digits"], 64),
        ("gradients", ["--tokens", "x.npz"], 8),
    ],
)
def test_the_command_measures_a_hugging_face_folder(measure, inputs, n, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flag, file = inputs
    few = ["--sequences", "5", "--nulls", "1", "--out", str(tmp_path), "--all"]
    main([measure, f"hf:{folder / 'model'}", flag, file if flag == "--task" else str(folder / file), *few])
    result = ap.open_result(tmp_path / f"{measure}.nc")
    assert result.attrs["n"] == n and result.attrs["title"] == f"model on {file}"
    assert (tmp_path / f"{measure}.png").exists() and "layer 1, head 1" in capsys.readouterr().out


def test_a_bridge_of_transformer_lens_is_measured_as_its_torch_model(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformer_lens.model_bridge import TransformerBridge

    model = tf.GPT2LMHeadModel(tf.GPT2Config(**families.GPT, n_embd=16, bos_token_id=0, eos_token_id=1)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder / "model")
    _, inputs = family("gpt2")
    direct = ap.proximity(model, inputs, sequences=3, nulls=0)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=model, tokenizer=tokenizer, device="cpu")
    bridged = ap.proximity(bridge.eval(), inputs, sequences=3, nulls=0)
    np.testing.assert_allclose(bridged["score_by_offset"], direct["score_by_offset"], rtol=1e-4, atol=1e-7)


def test_checkpoints_of_a_trainer_are_measured_over_steps(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for step in (20, 100):
        shutil.copytree(folder / "model", tmp_path / f"run/checkpoint-{step}")
    few = ["--sequences", "4", "--nulls", "0", "--out", str(tmp_path / "out")]
    main(["proximity", f"hf:{tmp_path / 'run'}", "--text", str(folder / "text.txt"), *few])
    result = ap.open_result(tmp_path / "out/proximity_over_steps.nc")
    assert result["step"].values.tolist() == [20, 100]
    assert (tmp_path / "out/proximity_over_steps.png").exists() and (tmp_path / "out/step-000100/proximity.nc").exists()
    few[-1] = str(tmp_path / "one")
    main(["proximity", f"hf:{tmp_path / 'run'}", "--step", "20", "--text", str(folder / "text.txt"), *few])
    one = ap.open_result(tmp_path / "one/proximity.nc")
    assert one.attrs["step"] == 20
    np.testing.assert_array_equal(one["toeplitz_share"], result["toeplitz_share"].sel(step=20))
    with pytest.raises(SystemExit):
        main(["proximity", f"hf:{tmp_path / 'run'}", "--step", "30", "--text", str(folder / "text.txt"), *few])
    assert "has no checkpoint at step 30; valid: 20, 100\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hf:{}/model"], "needs inputs: one of --text, --tokens, --images"),
        (["hf:{}/none", "--text", "{}/text.txt"], "none: cannot be loaded"),
        (["hf:./none", "--text", "{}/text.txt"], "hf:./none: cannot be loaded (no such folder)"),
        (["hf:{}/untold", "--text", "{}/text.txt"], "has no usable tokenizer"),
        (["hf:{}/model", "--task", "{}/real.npz"], "the model reads input_ids; must be a task of such inputs"),
        (["hf:{}/model", "--task", "{}/big.npz"], "has 40 token ids; must be at most the model's 25"),
        (["hf:{}/model", "--images", "{}"], "holds 0 images; must hold at least 4"),
        (["hf:{}/model", "--tokens", "{}/text.txt"], "must be an .npz file of arrays"),
        (["hf:{}/model", "--text", "{}/text.txt", "--step", "3"], "at step 3; it has no folders checkpoint-STEP"),
        (["{}/x.pt", "--site", "encoder.*"], "--site is for Hugging Face models"),
    ],
)
def test_commands_that_cannot_work_are_refused_in_one_line(arguments, said, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stop:
        main(["proximity", *(argument.format(folder) for argument in arguments)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
