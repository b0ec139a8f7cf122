"""Flow: receptive fields and collapse against closed forms and explicit Jacobians."""

import numpy as np
import pytest
import torch
from support import N, checkpoint

import attnprobe as ap
from attnprobe.config import DataSpec
from attnprobe.measures.flow import _permuted
from attnprobe.randomness import numpy_generator
from attnprobe.results import reasons

LAYERS = 3
IMAGE = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=(3, 4))


def uniform_identity(model):
    """Make every layer add the mean of the visible tokens: scores 0, values and outputs identities."""
    for layer in range(LAYERS):
        attn = model.block(layer).attn
        attn.q.weight.zero_()
        attn.v.weight.copy_(torch.eye(16))
        attn.o.weight.copy_(torch.eye(16))


def uniform(**settings):
    options = {"n_layers": LAYERS, "n_heads": 1, "norm": "none", "mlp_ratio": 0, "edit": uniform_identity}
    return checkpoint(**options | settings)


def no_values(model):
    for layer in range(model.cfg.n_layers):
        model.block(layer).attn.v.weight.zero_()


def drawn(sequences, lengths, width=16, seed=0):
    """Return the query and the projection of each sequence, from their definition."""
    generator = numpy_generator(seed, "flow projections")
    strata = (generator.permutation(sequences) + generator.random(sequences)) / sequences
    return (strata * lengths).astype(int), generator.standard_normal((sequences, width))


@pytest.mark.parametrize("data", [None, IMAGE], ids=["sequence", "image"])
def test_uniform_attention_over_identities_has_a_closed_form(data):
    """After l layers, x_i + (2^l - 1) mean(x): shares (1 + c)^2 and c^2 with c = (2^l - 1) / n, whatever the query."""
    ckpt = uniform(data=data)
    result = ap.flow(ckpt, sequences=24, nulls=2)
    prefix = "" if data is None else "grid_"
    with torch.no_grad():
        x = ckpt.model.embedded(ckpt.tokens(24)).double().numpy()
    for layer in range(LAYERS):
        c = (2 ** (layer + 1) - 1) / N
        other = c**2 / ((1 + c) ** 2 + (N - 1) * c**2)
        here = result.sel(layer=layer)
        assert float(here["field_own_share"]) == pytest.approx(1 - (N - 1) * other, rel=1e-5)
        assert float(here[f"{prefix}field_distance_ratio"]) == pytest.approx(N * other, rel=1e-5)
        field = here[f"{prefix}field_by_offset"]
        own = {axis: 0 for axis in field.dims}
        assert float(field.sel(own)) == pytest.approx(1 - (N - 1) * other, rel=1e-5)
        shares = field.values[np.isfinite(field.values)]
        assert np.sort(shares)[:-1] == pytest.approx(np.full(len(shares) - 1, other), rel=1e-4)
        assert float(here["field_own_share_std"]) < 1e-6
        mixed = x + (2 ** (layer + 1) - 1) * x.mean(1, keepdims=True)
        unit = mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
        cosine = (unit @ unit.transpose(0, 2, 1))[:, ~np.eye(N, dtype=bool)].mean(1)
        assert float(here["token_similarity"]) == pytest.approx(cosine.mean(), rel=1e-5)
        spread = np.linalg.norm(x - x.mean(1, keepdims=True), axis=(1, 2)) / np.linalg.norm(mixed, axis=(1, 2))
        assert float(here["mean_residual"]) == pytest.approx(spread.mean(), rel=1e-5)
    assert (result["mean_residual"].diff("layer") < 0).all() and (result["token_similarity"].diff("layer") > 0).all()
    assert result["entropy_ratio"].values == pytest.approx(1, abs=1e-6)


def test_without_values_no_information_moves():
    result = ap.flow(checkpoint(n_layers=2, edit=no_values), sequences=24, nulls=1)
    assert (result["field_own_share"] == 1).all() and (result["field_distance"] == 0).all()
    assert (result["field_by_offset"].where(result["offset"] != 0, drop=True).fillna(0) == 0).all()
    assert (result["field_distance_ratio_null"].sel(null="permuted") == 0).all()
    assert (result["field_own_share_null"].sel(null="initial") < 1).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"position": "rotary"},
        {"norm": "rms", "causal": True},
        {"norm_placement": "post", "pooling": "cls"},
        {"data": IMAGE, "causal": True},
        {"lengths": np.array([N, 7, 3] * 10)},
    ],
    ids=str,
)
def test_fields_are_shares_of_explicit_jacobians(settings):
    """Products of a random vector with the whole Jacobian of each sequence in float64, for each layer."""
    ckpt = checkpoint(n_layers=2, **settings)
    lengths = settings.get("lengths", np.full(30, N))[:9]
    result = ap.flow(ckpt, sequences=9, nulls=0)
    queries, projections = drawn(9, lengths)
    model, causal = ckpt.model.double(), ckpt.model.cfg.causal
    prefix, sides = model.n_prefix, (3, 4) if "data" in settings else None
    by_offset, distances, ratios = (np.full((2, 9, *shape), np.nan) for shape in ((2 * N - 1,), (), ()))
    grid_distances = np.full((2, 9), np.nan)
    streams = []
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: streams.append(x)) for layer in range(2)]
    for row, (n, i) in enumerate(zip(lengths, queries, strict=True)):
        with torch.no_grad():
            start = model.embedded(ckpt.tokens(9)[row : row + 1, :n])

        def after(x, layer):
            streams.clear()
            model.through(x)
            return streams[layer][0]

        for layer in range(2):
            with model.hooks(fwd_hooks=hooks):
                jacobian = torch.autograd.functional.jacobian(lambda x, layer=layer: after(x, layer), start)
            product = torch.einsum("d,dje->je", torch.from_numpy(projections[row]), jacobian[prefix + i, :, 0])
            square = product[prefix:].square().sum(-1).numpy()
            assert not causal or not square[i + 1 :].any()
            share, keys = square / square.sum(), np.arange(i + 1 if causal else n)
            by_offset[layer, row, keys - i + N - 1] = share[keys]
            distances[layer, row] = (share * abs(np.arange(n) - i)).sum()
            if abs(keys - i).any():
                ratios[layer, row] = distances[layer, row] / abs(keys - i).mean()
            if sides:
                place = np.stack(np.unravel_index(np.arange(n), sides))
                grid_distances[layer, row] = (share * np.hypot(*(place - place[:, i : i + 1]))).sum()
    tolerance = {"rel": 1e-3, "abs": 1e-6}
    for layer in range(2):
        here = result.sel(layer=layer)
        found = here["field_by_offset"].values
        seen = np.isfinite(by_offset[layer]).any(0)
        assert (np.isfinite(found) == seen).all()
        assert found[seen] == pytest.approx(np.nanmean(by_offset[layer][:, seen], 0), **tolerance)
        assert float(here["field_distance"]) == pytest.approx(distances[layer].mean(), **tolerance)
        assert float(here["field_distance_ratio"]) == pytest.approx(np.nanmean(ratios[layer]), **tolerance)
        if sides:
            assert float(here["grid_field_distance"]) == pytest.approx(grid_distances[layer].mean(), **tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_the_permuted_null_moves_tokens_with_their_shares(causal):
    """Compared with a permuted matrix; causal queries stay, and the keys before them follow the order."""
    field = torch.rand(N, N, dtype=torch.float64)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shares, place = _permuted(field, torch.arange(N), order, causal)
    if not causal:
        torch.testing.assert_close(shares[place.argsort()], field[order][:, order])
        return
    assert torch.equal(place, torch.arange(N))
    for i in range(N):
        before = [int(key) for key in order if key < i]
        assert shares[i, :i].tolist() == [float(field[i, key]) for key in before]
        assert shares[i, i] == field[i, i]


def test_a_local_field_is_below_its_permuted_null():
    """Scores are -distance, without content: attention and field decay with distance."""
    result = ap.flow(uniform(score_bias="fixed", length_scale=1.0), sequences=30, nulls=4)
    null = result["field_distance_ratio_null"].sel(null="permuted")
    assert (result["field_distance_ratio"] < 0.6 * null.min("draw")).all()
    assert (result["field_distance"].diff("layer") > 0).all()
    field, null = (result[f"field_by_offset{tail}"].sel(offset=0) for tail in ("", "_null"))
    assert np.allclose(null.sel(null="permuted"), field)  # the token's own share stays


def test_equal_tokens_have_no_residual_and_orthogonal_ones_no_similarity():
    ckpt = checkpoint(position="none", n_layers=2)
    ckpt.task.test.inputs[:] = 3
    result = ap.flow(ckpt, sequences=4, nulls=0)
    for prefix in ("", "input_"):
        assert result[f"{prefix}token_similarity"].values == pytest.approx(1)
        assert np.abs(result[f"{prefix}mean_residual"]).max() < 1e-6

    def one_hot(model):
        no_values(model)
        model.embed.weight[:N] = torch.eye(N, 16)

    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=N)
    ckpt = checkpoint(data, position="none", n_layers=2, mlp_ratio=0, edit=one_hot)
    ckpt.task.test.inputs[:] = np.arange(N)
    result = ap.flow(ckpt, sequences=4, nulls=0)
    for prefix in ("", "input_"):
        assert np.abs(result[f"{prefix}token_similarity"]).max() < 1e-6
        assert result[f"{prefix}mean_residual"].values == pytest.approx((1 - 1 / N) ** 0.5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_entropy_is_1_if_uniform_and_0_if_one_hot(causal):
    def one_hot(model):
        model.block(0).attn.q.weight.mul_(1e6)

    result = ap.flow(checkpoint(causal=causal, edit=lambda model: model.block(0).attn.q.weight.zero_()), sequences=6)
    assert result["entropy_ratio"].values == pytest.approx(1, abs=1e-6)
    assert ap.flow(checkpoint(causal=causal, edit=one_hot), sequences=6)["entropy_ratio"].max() < 1e-3
    proximity = ap.proximity(checkpoint(causal=causal), sequences=6)["entropy"]
    ratio = proximity / np.mean([np.log(n) for n in (range(1, N + 1) if causal else [N] * N)])
    np.testing.assert_allclose(ap.flow(checkpoint(causal=causal), sequences=6)["entropy_ratio"], ratio, rtol=1e-5)


def test_networks_without_streams_have_the_entropy_only():
    ckpt = checkpoint(n_layers=2)
    tokens = torch.from_numpy(ckpt.task.test.inputs)
    result = ap.flow(ap.network(ckpt.model, tokens, reference=tokens), sequences=8, nulls=1)
    inside = ap.flow(ckpt, sequences=8, nulls=1)
    np.testing.assert_allclose(result["entropy_ratio"], inside["entropy_ratio"], rtol=1e-5)
    assert "field_distance_ratio" not in result and "token_similarity" not in result
    assert "this network gives no streams" in result.attrs["left_out"]
    assert len(ap.figures.flow(result).axes) == 1


def test_undefined_values_have_specific_reasons():
    why = reasons(ap.flow(checkpoint(), sequences=3, nulls=1))
    permuted = why.sel(null="permuted")
    for name in ("entropy_ratio", "field_own_share", "token_similarity", "input_mean_residual"):
        assert set(permuted[f"{name}_null"].values.ravel()) == {"does not depend on positions"}
    assert "no measured query has a visible key at this offset" in why["field_by_offset"].values
    dead = reasons(ap.flow(checkpoint(norm_placement="post", edit=lambda m: m.block(0).ln2.weight.zero_()), nulls=0))
    assert set(dead["field_distance"].values) == {"the residual streams do not depend on the input"}
