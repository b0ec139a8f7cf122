import materialised
import numpy as np
import pytest
import torch
from support import N, checkpoint, means_of, own, parts_of

from attnprobe import positions, proximity
from attnprobe.config import DataSpec
from attnprobe.geometry import geometry
from attnprobe.measures.driver import permutation, untrained
from attnprobe.measures.terms import TERMS, mean_position_parts
from attnprobe.networks import probe
from attnprobe.statistics import Scores
from attnprobe.tables import POSITIONS

FEW = {"sequences": 24, "nulls": 2}
PP = "position-position"


def spread(model):
    """Move every parameter away from its initial value: gains, biases, the [CLS]."""
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def split(model, inputs, others=None):
    return parts_of(model, inputs, means_of(model, [inputs if others is None else others]))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    "named",
    [{}, {"norm": "rms", "causal": True}, {"norm": "none"}, {"norm_placement": "post"}, {"pooling": "cls"}],
    ids=str,
)
def test_the_terms_add_up_to_the_score_that_the_forward_pass_computed(position, named):
    made = checkpoint(position=position, n_layers=2, edit=spread, **named)
    model, inputs = made.model.double(), made.tokens(5)
    _, cache = model.run_with_cache(inputs)
    for layer, found in enumerate(split(model, inputs, made.tokens(30)[5:])):
        shown = cache[f"blocks.{layer}.attn.hook_attn_scores"][:, :, model.n_prefix :, model.n_prefix :]
        total = sum(materialised.dense(term) for term in found.terms.values())
        torch.testing.assert_close(total, shown)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_layer_0_gives_position_what_its_vectors_add_at_the_scale_of_each_token(position, norm):
    """By a second forward pass with the scales frozen and the vectors made equal, in float64."""
    made = checkpoint(position=position, norm=norm, edit=spread)
    model, inputs = made.model.double(), made.tokens(4)
    (found,) = split(model, inputs)
    _, cache = model.run_with_cache(inputs)
    frozen = cache["blocks.0.ln1.hook_scale"] if norm != "none" else None
    hooks = [("hook_pos_embed", lambda x, hook: x.mean(1, keepdim=True).expand_as(x))]
    if frozen is not None:
        hooks.append(("blocks.0.ln1.hook_scale", lambda x, hook: frozen))
    caught = {}
    for side in "qk":
        hooks.append((f"blocks.0.attn.hook_{side}", lambda x, hook: caught.update({hook.name[-1]: x.transpose(1, 2)})))
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    torch.testing.assert_close(found.scores.q - found.q_position, caught["q"])
    torch.testing.assert_close(found.scores.k - found.k_position, caught["k"])


def test_without_encoding_there_is_no_position():
    result = positions(checkpoint(position="none", n_layers=2), **FEW)
    share = result["variance_share"]
    assert share.sel(term="content-content").values == pytest.approx(np.ones((2, 2)))
    assert not share.drop_sel(term="content-content").values.any()
    assert not result["score_by_offset"].sel(term=PP).values.any()
    assert not result["wave_amplitude"].values.any()
    # and permuting positions changes nothing: each draw finds what its share of the sequences shows
    null = result["proximity_contrast_null"].sel(null="permuted").mean("draw")
    assert null.values == pytest.approx(result["proximity_contrast"].values, abs=1e-6)


def test_a_causal_mask_tells_deeper_layers_where_they_are():
    share = positions(checkpoint(position="none", n_layers=2, causal=True, edit=spread), **FEW)["variance_share"]
    assert not share.sel(layer=0, term=PP).values.any()
    assert (np.abs(share.sel(layer=1, term=PP).values) > 1e-6).all()


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_the_position_term_of_layer_0_is_the_bias(position):
    made = checkpoint(position=position)
    result = positions(made, **FEW)
    with torch.no_grad():
        bias = made.model.position.bias(N).double()
    expected = materialised.score_statistics(Scores(torch.zeros(1, 2, N, 1), torch.zeros(1, 2, N, 1), bias=bias))
    found = result["score_by_offset"].sel(layer=0, term=PP)
    assert found.values == pytest.approx(expected["offset_profile"][0].numpy(), abs=1e-9)
    assert result["toeplitz_share"].sel(layer=0, term=PP).values == pytest.approx([1, 1])


def test_the_rotary_term_is_the_kernel_of_the_mean_query_and_key():
    """And its pairs of coordinates add up to it, wave by wave."""
    made = checkpoint(position="rotary", edit=spread)
    result = positions(made, sequences=30, nulls=2)
    _, cache = made.model.run_with_cache(made.tokens(30))
    q, k = (cache[f"blocks.0.attn.hook_{side}"].double().mean((0, 1)) for side in "qk")  # [head, d_head]
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    offset = torch.arange(-(N - 1), N, dtype=torch.float64)
    angle = offset[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.polar(torch.ones_like(angle), angle)
    kernel = (q.conj()[:, None] * k[:, None] * turned).real.sum(-1) / 8**0.5
    found = result["score_by_offset"].sel(layer=0, term=PP).values
    level = (kernel - torch.from_numpy(found)).mean(1, keepdim=True)  # a kernel has a free constant
    assert found == pytest.approx((kernel - level).numpy(), abs=1e-6)
    pairs = result.sel(layer=0)
    phase = 2 * np.pi * pairs["pair_frequency"] * (result["offset"] - pairs["pair_offset"])
    waves = (pairs["pair_amplitude"] * np.cos(phase)).sum("pair").transpose("head", "offset")
    assert waves.values == pytest.approx(kernel.numpy(), abs=1e-6)
    lengths = [cache[f"blocks.0.attn.hook_{side}"].unflatten(-1, (4, 2)).norm(dim=-1).mean((0, 1)) for side in "qk"]
    assert pairs["pair_use"].values == pytest.approx((lengths[0] * lengths[1]).numpy() / 8**0.5, rel=1e-5)


def test_sinusoids_are_read_in_their_own_frequencies():
    """A map that takes the sine and cosine of one frequency to themselves, turned by a phase, prefers one offset."""
    shift, pair, turn = 2.0, 1, 1 / 10000 ** (2 / 32)

    def edit(model):
        attention = model.blocks[0].attn
        attention.q.weight.zero_()
        attention.k.weight.zero_()
        # sin(w (i + shift)) and cos(w (i + shift)) as the query of position i
        sine, cosine = np.sin(turn * shift), np.cos(turn * shift)
        attention.q.weight[0, 2 * pair : 2 * pair + 2] = torch.tensor([cosine, sine])
        attention.q.weight[1, 2 * pair : 2 * pair + 2] = torch.tensor([-sine, cosine])
        attention.k.weight[0, 2 * pair], attention.k.weight[1, 2 * pair + 1] = 1, 1

    result = positions(checkpoint(d_model=32, position="sinusoidal", norm="none", edit=edit), **FEW).sel(
        layer=0, head=0
    )
    amplitude = result["pair_amplitude"].values
    assert amplitude[pair] == pytest.approx(16**-0.5)
    assert np.delete(amplitude, pair) == pytest.approx(np.zeros(15), abs=1e-7)
    assert float(result["pair_offset"][pair]) == pytest.approx(shift, rel=1e-5)
    kernel = result["score_by_offset"].sel(term=PP)
    wave = 16**-0.5 * np.cos(turn * (result["offset"] - shift))
    # positions less their mean: what is left differs by constants of rows and of keys alone
    difference = (kernel - wave).values
    assert difference == pytest.approx(
        np.polynomial.Polynomial.fit(np.arange(23), difference, 4)(np.arange(23)), abs=0.1
    )


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_null_has_as_much_noise_in_it_as_what_it_stands_beside(position):
    """A network of the initial null finds itself there: its means come from as many sequences."""
    made = checkpoint(n_layers=2, position=position)
    made.__dict__["model"] = untrained(probe(made).network, 0, 1).model
    result = positions(made, **FEW)
    for name in ("position_singular_value", "wave_amplitude"):
        null = result[f"{name}_null"].sel(null="initial", draw=1)
        np.testing.assert_allclose(null, result[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("position", ["none", "learned", "rotary", "relative"])
@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_an_imposed_bias_counts_as_position(position, grid):
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    one = positions(checkpoint(data, position=position, score_bias="learned"), sequences=4, nulls=1)
    other = positions(checkpoint(data, position=position), sequences=4, nulls=1)
    prefix = "grid_" if grid else ""
    added = (one[f"{prefix}score_by_offset"] - other[f"{prefix}score_by_offset"]).sel(term=PP, layer=0, head=0)
    places = geometry(grid or (N,))
    expected = -places.distance / 2
    expected = expected - expected @ places.count / places.count.sum()
    assert added.values.flatten() == pytest.approx(expected.numpy(), abs=1e-6)
    kernel = one["position_score"] - other["position_score"]
    assert kernel.sum("key_bin").values == pytest.approx(np.zeros((1, 2, N)), abs=1e-5)


def test_profiles_of_sequences_of_different_lengths_have_one_level():
    def silence(model):
        model.block(0).attn.q.weight.zero_()

    lengths = np.array([N] * 15 + [5] * 15)
    result = positions(checkpoint(position="alibi", edit=silence, lengths=lengths), sequences=30, nulls=2)
    kernel = result["score_by_offset"].sel(layer=0, head=1, term=PP)
    slope = kernel.values[N - 1] - kernel.values
    assert slope == pytest.approx(2.0**-8 * np.abs(np.arange(1 - N, N)), abs=1e-9)


def planted(model):
    """Head 0 attends to the next position, through one-hot position vectors; head 1 compares tokens."""
    attention = model.blocks[0].attn
    for side in (attention.q, attention.k):
        side.weight.zero_()
    model.position.weight.copy_(10 * torch.eye(N, 32))
    model.embed.weight[:, :N] = 0
    attention.q.weight[:16, :N] = torch.eye(16, N).roll(1, 0)
    attention.k.weight[:16, :N] = torch.eye(16, N)
    attention.q.weight[16:, 16:] = torch.eye(16)
    attention.k.weight[16:, 16:] = torch.eye(16)


def test_planted_terms_are_found_where_they_are():
    made = checkpoint(d_model=32, norm="none", edit=planted, init_std=1.0)
    result = positions(made, **FEW).sel(layer=0)
    share = result["variance_share"]
    # the mean of the one-hot vectors says nothing about position
    assert 0.98 < float(share.sel(head=0, term=PP)) < 1
    assert float(share.sel(head=1, term="content-content")) == pytest.approx(1)
    kernel = result["score_by_offset"].sel(head=0, term=PP)
    assert int(kernel.idxmax("offset")) == 1
    contrast = result["proximity_contrast"]
    assert float(contrast.sel(head=0, term=PP)) > 0.5
    null = result["toeplitz_share_null"].sel(null="permuted", head=0, term=PP)
    assert float(result["toeplitz_share"].sel(head=0, term=PP)) > 0.9 > 0.6 > float(null.max())
    waves = result["wave_amplitude"].sel(head=0)
    permuted = result["wave_amplitude_null"].sel(null="permuted", head=0)
    assert (permuted.max("draw") < 0.9 * waves).any() and not np.allclose(permuted.isel(draw=0), waves)
    # the circuit of the planted head: as many equal singular values as it has positions to condition at
    assert result["qk_singular_value"].sel(head=0).values == pytest.approx([0.25] * (N - 1) + [0] * (17 - N), abs=1e-6)
    assert float(result["qk_effective_rank"].sel(head=0)) == pytest.approx(N - 1, rel=1e-4)
    shown = result["position_score"].sel(head=0)
    assert shown.argmax("key_bin").values[:-1].tolist() == list(range(1, N))


@pytest.mark.parametrize(
    "named", [{"position": "learned"}, {"position": "rotary"}, {"position": "relative", "causal": True}]
)
def test_what_the_terms_add_up_to_is_what_proximity_measures(named):
    made = checkpoint(n_layers=2, **named)
    of_terms, whole = positions(made, **FEW), proximity(made, **FEW)
    assert of_terms["variance_share"].sum("term").values == pytest.approx(np.ones((2, 2)))
    for name in ("proximity_contrast", "score_by_offset"):
        total = of_terms[name].sum("term", skipna=False)
        assert total.values == pytest.approx(whole[name].values, abs=1e-6, nan_ok=True), name


def test_images_are_seen_over_two_dimensional_offsets_too(image_checkpoint):
    result = positions(image_checkpoint, sequences=8, nulls=1)
    whole = proximity(image_checkpoint, sequences=8, nulls=1)["grid_proximity_contrast"]
    assert result["grid_proximity_contrast"].sum("term").values == pytest.approx(whole.values, abs=1e-6)
    assert result["grid_score_by_offset"].sizes["row_offset"] == 15
    assert set(TERMS) == set(result["term"].values.tolist())


@pytest.mark.parametrize("causal", [False, True])
def test_the_permuted_encoding_is_that_of_a_network_whose_vectors_were_permuted(causal):
    """The first draw, done by hand: the table of vectors permuted, for every sequence."""
    made = checkpoint(edit=spread, causal=causal)
    result = positions(made, **FEW)
    null = result.sel(null="permuted", draw=0)
    order = torch.from_numpy(permutation("positions", 0, 0, N))
    rows = torch.arange(24)
    model = made.model
    if not causal:
        with torch.no_grad():
            model.position.weight.copy_(model.position.weight[torch.argsort(order)])
    (found,) = split(model, made.tokens(24)[rows])
    share = []
    for term in found.terms.values():
        rearranged = Scores(term.q, term.k, causal=causal, order=order if causal else None)
        share.append(materialised.score_statistics(rearranged)["toeplitz_share"].mean(0))
    assert null["toeplitz_share_null"].values[0] == pytest.approx(torch.stack(share, -1).numpy(), rel=1e-4)


def test_sequences_of_any_length_take_part():
    lengths = np.array([N] * 15 + [5] * 15)
    result = positions(checkpoint(n_layers=2, lengths=lengths), sequences=30, nulls=2)
    assert np.isfinite(result["score_by_offset"]).all()
    assert result["variance_share"].sum("term").values == pytest.approx(np.ones((2, 2)))


def test_means_are_those_of_other_sequences():
    """With the same ones a sequence would find itself in its mean: few sequences of noise would look positional."""
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    made = checkpoint(data=data, n_layers=2, position="relative")
    model = made.model
    own, other = made.tokens(2), made.tokens(30)[2:]
    found = [split(model, own, of)[1].q_position.square().sum() for of in (own, other)]
    assert found[0] > 3 * found[1]


def test_the_mean_position_parts_are_the_means_of_the_parts():
    made = checkpoint(edit=spread, n_layers=2)
    inputs = made.tokens(30)
    of = means_of(made.model, [inputs[:10], inputs[10:]])
    for side, mean in zip(("q_position", "k_position"), mean_position_parts(own(made.model), of), strict=True):
        shown = [getattr(found, side).mean(0) for found in parts_of(made.model, inputs, of)]
        torch.testing.assert_close(mean, torch.stack(shown), atol=1e-6, rtol=1e-5)
