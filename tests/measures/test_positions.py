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
from attnprobe.results import reasons
from attnprobe.statistics import Scores
from attnprobe.tables import POSITIONS

FEW = {"sequences": 24, "nulls": 2}
PP = "position-position"


def spread(model):
    """Move every parameter away from its initial value, including gains, biases and [CLS]."""
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def split(model, inputs, others=None):
    return parts_of(model, inputs, means_of(model, [inputs if others is None else others]))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "rms", "causal": True}, {"norm": "none"}, {"norm_placement": "post"}, {"pooling": "cls"}],
    ids=str,
)
def test_the_terms_add_up_to_the_score_of_the_forward_pass(position, settings):
    ckpt = checkpoint(position=position, n_layers=2, edit=spread, **settings)
    model, inputs = ckpt.model.double(), ckpt.tokens(5)
    _, cache = model.run_with_cache(inputs)
    for layer, parts in enumerate(split(model, inputs, ckpt.tokens(30)[5:])):
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][:, :, model.n_prefix :, model.n_prefix :]
        total = sum(materialised.dense(term) for term in parts.terms.values())
        torch.testing.assert_close(total, scores)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_the_position_part_of_layer_0_is_the_exact_contribution_of_its_vectors(position, norm):
    """Against a second float64 forward pass with frozen scales and equal position vectors."""
    ckpt = checkpoint(position=position, norm=norm, edit=spread)
    model, inputs = ckpt.model.double(), ckpt.tokens(4)
    (parts,) = split(model, inputs)
    _, cache = model.run_with_cache(inputs)
    frozen = cache["blocks.0.ln1.hook_scale"] if norm != "none" else None
    hooks = [("hook_pos_embed", lambda x, hook: x.mean(1, keepdim=True).expand_as(x))]
    if frozen is not None:
        hooks.append(("blocks.0.ln1.hook_scale", lambda x, hook: frozen))
    caught = {}
    for side in "qk":
        hooks.append((f"blocks.0.attn.hook_{side}", lambda x, hook: caught.update({hook.name[-1]: x.transpose(1, 2)})))
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    torch.testing.assert_close(parts.scores.q - parts.q_position, caught["q"])
    torch.testing.assert_close(parts.scores.k - parts.k_position, caught["k"])


def test_position_terms_are_zero_without_encoding():
    result = positions(checkpoint(position="none", n_layers=2), **FEW)
    share = result["variance_share"]
    assert share.sel(term="content-content").values == pytest.approx(np.ones((2, 2)))
    assert not share.drop_sel(term="content-content").values.any()
    assert not result["score_by_offset"].sel(term=PP).values.any()
    assert not result["wave_amplitude"].values.any()
    # permuting positions has no effect
    null = result["proximity_contrast_null"].sel(null="permuted").mean("draw")
    assert null.values == pytest.approx(result["proximity_contrast"].values, abs=1e-6)


def test_a_causal_mask_gives_deeper_layers_position_information():
    share = positions(checkpoint(position="none", n_layers=2, causal=True, edit=spread), **FEW)["variance_share"]
    assert not share.sel(layer=0, term=PP).values.any()
    assert (np.abs(share.sel(layer=1, term=PP).values) > 1e-6).all()


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_the_position_term_of_layer_0_is_the_bias(position):
    ckpt = checkpoint(position=position)
    result = positions(ckpt, **FEW)
    with torch.no_grad():
        bias = ckpt.model.position.bias(N).double()
    expected = materialised.score_statistics(Scores(torch.zeros(1, 2, N, 1), torch.zeros(1, 2, N, 1), bias=bias))
    profile = result["score_by_offset"].sel(layer=0, term=PP)
    assert profile.values == pytest.approx(expected["offset_profile"][0].numpy(), abs=1e-9)
    assert result["toeplitz_share"].sel(layer=0, term=PP).values == pytest.approx([1, 1])


def test_the_rotary_term_is_the_profile_of_the_mean_query_and_key():
    """The waves of the pairs of coordinates add up to it."""
    ckpt = checkpoint(position="rotary", edit=spread)
    result = positions(ckpt, sequences=30, nulls=2)
    _, cache = ckpt.model.run_with_cache(ckpt.tokens(30))
    q, k = (cache[f"blocks.0.attn.hook_{side}"].double().mean((0, 1)) for side in "qk")  # [head, d_head]
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    offset = torch.arange(-(N - 1), N, dtype=torch.float64)
    angle = offset[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    rotated = torch.polar(torch.ones_like(angle), angle)
    expected = (q.conj()[:, None] * k[:, None] * rotated).real.sum(-1) / 8**0.5
    profile = result["score_by_offset"].sel(layer=0, term=PP).values
    level = (expected - torch.from_numpy(profile)).mean(1, keepdim=True)  # a profile is defined up to a constant
    assert profile == pytest.approx((expected - level).numpy(), abs=1e-6)
    pairs = result.sel(layer=0)
    phase = 2 * np.pi * pairs["pair_frequency"] * (result["offset"] - pairs["pair_offset"])
    waves = (pairs["pair_amplitude"] * np.cos(phase)).sum("pair").transpose("head", "offset")
    assert waves.values == pytest.approx(expected.numpy(), abs=1e-6)
    lengths = [cache[f"blocks.0.attn.hook_{side}"].unflatten(-1, (4, 2)).norm(dim=-1).mean((0, 1)) for side in "qk"]
    assert pairs["pair_use"].values == pytest.approx((lengths[0] * lengths[1]).numpy() / 8**0.5, rel=1e-5)


def test_sinusoidal_encodings_are_analysed_at_their_frequencies():
    """A map that rotates the sine and cosine of one frequency by a phase prefers one offset."""
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
    profile = result["score_by_offset"].sel(term=PP)
    wave = 16**-0.5 * np.cos(turn * (result["offset"] - shift))
    # centring the positions adds only functions of the query and of the key
    difference = (profile - wave).values
    assert difference == pytest.approx(
        np.polynomial.Polynomial.fit(np.arange(23), difference, 4)(np.arange(23)), abs=0.1
    )


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_measured_values_and_nulls_have_the_same_noise(position):
    """A network of the initial null has the same values when it is measured: the means use the same sequences."""
    ckpt = checkpoint(n_layers=2, position=position)
    ckpt.__dict__["model"] = untrained(probe(ckpt).network, 0, 1).model
    result = positions(ckpt, **FEW)
    for name in ("position_singular_value", "wave_amplitude", "positional_score", "symbolic_score"):
        null = result[f"{name}_null"].sel(null="initial", draw=1)
        np.testing.assert_allclose(null, result[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("position", ["none", "learned", "rotary", "relative"])
@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_an_imposed_bias_counts_as_position(position, grid):
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    biased = positions(checkpoint(data, position=position, score_bias="learned"), sequences=4, nulls=1)
    unbiased = positions(checkpoint(data, position=position), sequences=4, nulls=1)
    prefix = "grid_" if grid else ""
    added = (biased[f"{prefix}score_by_offset"] - unbiased[f"{prefix}score_by_offset"]).sel(term=PP, layer=0, head=0)
    pairs = geometry(grid or (N,))
    expected = -pairs.distance / 2
    expected = expected - expected @ pairs.count / pairs.count.sum()
    assert added.values.flatten() == pytest.approx(expected.numpy(), abs=1e-6)
    difference = biased["position_score"] - unbiased["position_score"]
    assert difference.sum("key_bin").values == pytest.approx(np.zeros((1, 2, N)), abs=1e-5)


def test_profiles_of_different_lengths_have_the_same_level():
    def silence(model):
        model.block(0).attn.q.weight.zero_()

    lengths = np.array([N] * 15 + [5] * 15)
    result = positions(checkpoint(position="alibi", edit=silence, lengths=lengths), sequences=30, nulls=2)
    profile = result["score_by_offset"].sel(layer=0, head=1, term=PP)
    slope = profile.values[N - 1] - profile.values
    assert slope == pytest.approx(2.0**-8 * np.abs(np.arange(1 - N, N)), abs=1e-9)


def planted(model):
    """Make head 0 attend to the next position via one-hot position vectors, and head 1 compare tokens."""
    attention = model.blocks[0].attn
    for side in (attention.q, attention.k):
        side.weight.zero_()
    model.position.weight.copy_(10 * torch.eye(N, 32))
    model.embed.weight[:, :N] = 0
    attention.q.weight[:16, :N] = torch.eye(16, N).roll(1, 0)
    attention.k.weight[:16, :N] = torch.eye(16, N)
    attention.q.weight[16:, 16:] = torch.eye(16)
    attention.k.weight[16:, 16:] = torch.eye(16)


def test_planted_terms_are_found_in_their_heads():
    ckpt = checkpoint(d_model=32, norm="none", edit=planted, init_std=1.0)
    result = positions(ckpt, **FEW).sel(layer=0)
    share = result["variance_share"]
    # the mean of the one-hot vectors is content
    assert 0.98 < float(share.sel(head=0, term=PP)) < 1
    assert float(share.sel(head=1, term="content-content")) == pytest.approx(1)
    profile = result["score_by_offset"].sel(head=0, term=PP)
    assert int(profile.idxmax("offset")) == 1
    contrast = result["proximity_contrast"]
    assert float(contrast.sel(head=0, term=PP)) > 0.5
    null = result["toeplitz_share_null"].sel(null="permuted", head=0, term=PP)
    assert float(result["toeplitz_share"].sel(head=0, term=PP)) > 0.9 > 0.6 > float(null.max())
    waves = result["wave_amplitude"].sel(head=0)
    permuted = result["wave_amplitude_null"].sel(null="permuted", head=0)
    assert (permuted.max("draw") < 0.9 * waves).any() and not np.allclose(permuted.isel(draw=0), waves)
    # the circuit of the planted head has one equal singular value per position that it moves
    assert result["qk_singular_value"].sel(head=0).values == pytest.approx([0.25] * (N - 1) + [0] * (17 - N), abs=1e-6)
    assert float(result["qk_effective_rank"].sel(head=0)) == pytest.approx(N - 1, rel=1e-4)
    # a shift by one position has neither symmetry nor eigenvalues; a head that compares tokens is symmetric
    symmetry = result["qk_symmetry"].values
    assert symmetry == pytest.approx([0, 1], abs=1e-6)
    assert float(result["qk_eigenvalue_positivity"].sel(head=1)) == pytest.approx(1)
    assert not result["qk_eigenvalue_positivity"].sel(head=0).notnull()
    assert reasons(result)["qk_eigenvalue_positivity"].values[0] == "all eigenvalues of the query-key map are 0"
    assert (abs(result["qk_symmetry_null"].sel(null="initial")) < 0.5).all()
    binned = result["position_score"].sel(head=0)
    assert binned.argmax("key_bin").values[:-1].tolist() == list(range(1, N))


@pytest.mark.parametrize(
    "settings", [{"position": "learned"}, {"position": "rotary"}, {"position": "relative", "causal": True}]
)
def test_the_terms_add_up_to_the_values_of_proximity(settings):
    ckpt = checkpoint(n_layers=2, **settings)
    terms, scores = positions(ckpt, **FEW), proximity(ckpt, **FEW)
    assert terms["variance_share"].sum("term").values == pytest.approx(np.ones((2, 2)))
    for name in ("proximity_contrast", "score_by_offset"):
        total = terms[name].sum("term", skipna=False)
        assert total.values == pytest.approx(scores[name].values, abs=1e-6, nan_ok=True), name


def test_images_are_also_measured_over_two_dimensional_offsets(image_checkpoint):
    result = positions(image_checkpoint, sequences=8, nulls=1)
    contrast = proximity(image_checkpoint, sequences=8, nulls=1)["grid_proximity_contrast"]
    assert result["grid_proximity_contrast"].sum("term").values == pytest.approx(contrast.values, abs=1e-6)
    assert result["grid_score_by_offset"].sizes["row_offset"] == 15
    assert set(TERMS) == set(result["term"].values.tolist())


@pytest.mark.parametrize("causal", [False, True])
def test_the_permuted_null_matches_a_network_with_permuted_vectors(causal):
    """The first draw, from a network with a permuted embedding of positions."""
    ckpt = checkpoint(edit=spread, causal=causal)
    result = positions(ckpt, **FEW)
    null = result.sel(null="permuted", draw=0)
    order = torch.from_numpy(permutation("positions", 0, 0, N))
    rows = torch.arange(24)
    model = ckpt.model
    if not causal:
        with torch.no_grad():
            model.position.weight.copy_(model.position.weight[torch.argsort(order)])
    (parts,) = split(model, ckpt.tokens(24)[rows])
    shares = []
    for term in parts.terms.values():
        rearranged = Scores(term.q, term.k, causal=causal, order=order if causal else None)
        shares.append(materialised.score_statistics(rearranged)["toeplitz_share"].mean(0))
    assert null["toeplitz_share_null"].values[0] == pytest.approx(torch.stack(shares, -1).numpy(), rel=1e-4)


def test_sequences_of_all_lengths_are_measured():
    lengths = np.array([N] * 15 + [5] * 15)
    result = positions(checkpoint(n_layers=2, lengths=lengths), sequences=30, nulls=2)
    assert np.isfinite(result["score_by_offset"]).all()
    assert result["variance_share"].sum("term").values == pytest.approx(np.ones((2, 2)))


def test_means_are_over_other_sequences():
    """Otherwise each sequence would contribute to its mean, and a few sequences of noise would appear positional."""
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    ckpt = checkpoint(data=data, n_layers=2, position="relative")
    model = ckpt.model
    inputs, other = ckpt.tokens(2), ckpt.tokens(30)[2:]
    energies = [split(model, inputs, others)[1].q_position.square().sum() for others in (inputs, other)]
    assert energies[0] > 3 * energies[1]


def test_mean_position_parts_are_means_of_the_position_parts():
    ckpt = checkpoint(edit=spread, n_layers=2)
    inputs = ckpt.tokens(30)
    means = means_of(ckpt.model, [inputs[:10], inputs[10:]])
    for side, mean in zip(("q_position", "k_position"), mean_position_parts(own(ckpt.model), means), strict=True):
        parts = [getattr(layer_parts, side).mean(0) for layer_parts in parts_of(ckpt.model, inputs, means)]
        torch.testing.assert_close(mean, torch.stack(parts), atol=1e-6, rtol=1e-5)


def test_numbers_of_maps_without_scores_are_undefined():
    def silence(model):
        model.block(0).attn.q.weight.zero_()

    result = positions(checkpoint(edit=silence), **FEW)
    for name in ("qk_effective_rank", "qk_symmetry", "qk_directionality"):
        assert result[name].isnull().all()
        assert (reasons(result)[name] == "the query-key map is 0").all()


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_numbers_of_maps_are_those_of_the_weights(position):
    ckpt = checkpoint(n_layers=2, position=position, edit=spread)
    result = positions(ckpt, sequences=4, nulls=2)
    m = (ckpt.model.W_Q @ ckpt.model.W_K.mT).double().detach()
    expected = (m * m.mT).sum((-2, -1)) / m.square().sum((-2, -1))
    assert result["qk_symmetry"].values == pytest.approx(expected.numpy(), abs=1e-6)
    values = torch.linalg.eigvals(m)
    expected = values.real.sum(-1) / values.abs().sum(-1)
    assert result["qk_eigenvalue_positivity"].values == pytest.approx(expected.numpy(), abs=1e-5)
    assert result["qk_symmetry"].attrs["valid_min"] == -1
    first = untrained(probe(ckpt).network, 0, 0).model
    m = (first.W_Q @ first.W_K.mT).double()
    expected = (m * m.mT).sum((-2, -1)) / m.square().sum((-2, -1))
    null = result["qk_symmetry_null"]
    assert null.sel(null="initial", draw=0).values == pytest.approx(expected.detach().numpy(), abs=1e-6)
    why = reasons(result)
    for name in ("qk_symmetry", "qk_effective_rank", "qk_singular_value"):
        permuted = why[f"{name}_null"].sel(null="permuted")
        assert (permuted == "permuting positions does not change the weights").all()
