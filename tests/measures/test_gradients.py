import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import N, checkpoint, mean_profiles_of

from attnprobe import gradients
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.networks import probe
from attnprobe.networks.own import flat
from attnprobe.scores import Heads
from attnprobe.tables import POSITIONS

FEW = {"sequences": 6, "nulls": 1}
LINEAR = {"norm": "none", "mlp_ratio": 0}
"""A network in which labels see nothing but the mean of the values: the setting of the theory."""


def hidden(made, sequences):
    """Return the masks that the measure draws, by their definition."""
    from attnprobe.randomness import numpy_generator

    drawn = numpy_generator(0, "masks of measures").random((sequences, N))
    mask = drawn < made.config.mask_probability
    mask[~mask.any(1), 0] = True
    return torch.from_numpy(mask)


def by_autograd(made, sequences, loss, layer, model=None, attend=Heads.attend):
    """Return [batch, head, query, key]: the gradient of each sequence's mean loss, through the explicit path."""
    model, inputs = copy.deepcopy(model or made.model).double(), made.tokens(sequences)
    labels = torch.from_numpy(made.task.test.labels[:sequences]).long()
    caught = []
    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", lambda s, hook: caught.append(s.requires_grad_()))]
    with model.attending(attend), model.hooks(fwd_hooks=hooks):
        total = torch.zeros((), dtype=torch.float64)
        if loss == "labels":
            total = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        elif loss == "masked":
            mask = hidden(made, sequences)
            logits = model(inputs, masked=mask, output="tokens")
            for i in range(sequences):
                total = total + torch.nn.functional.cross_entropy(logits[i, mask[i]], inputs[i, mask[i]])
        else:
            logits = model(inputs, output="tokens")
            for i in range(sequences):
                total = total + torch.nn.functional.cross_entropy(logits[i, :-1], inputs[i, 1:])
        return torch.autograd.grad(total, caught[0])[0]


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"causal": True, "position": "relative"},
        {"norm_placement": "post", "position": "alibi"},
        {"position": "rotary"},
    ],
    ids=str,
)
def test_gradients_are_those_that_autograd_finds_at_the_scores(named):
    made = checkpoint(n_layers=2, **named)
    result = gradients(made, **FEW)
    offset = torch.arange(N) - torch.arange(N)[:, None]
    causal = made.config.model.causal
    visible = offset <= 0 if causal else torch.ones(N, N, dtype=torch.bool)

    def centred(d):
        d = d * visible
        return (d - d.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)) * visible

    zero = centred((offset == 0).double())
    kernels = mean_profiles_of(made.model, made.task.train, 6)[0]
    near = centred((offset.abs() <= 2).double())
    near = near - zero * (near * zero).sum() / zero.square().sum()
    for loss in result["loss"].values.tolist():
        for layer in range(2):
            gradient = by_autograd(made, 6, loss, layer)
            found = result.sel(loss=loss, layer=layer)
            size = gradient.square().sum((-2, -1)).sqrt()
            assert found["gradient_norm"].values == pytest.approx(size.mean(0).numpy(), rel=1e-4)
            own = centred(kernels[layer][:, offset + N - 1])
            own = own - zero * ((own * zero).sum((-2, -1)) / zero.square().sum())[:, None, None]
            along = -(gradient * own).sum((-2, -1)) / own.square().sum((-2, -1)).sqrt()
            one = found["descent"].sel(direction="measured profile")
            assert one.values == pytest.approx(along.mean(0).numpy(), abs=1e-4 * float(size.mean()))
            for name, direction in (("toeplitz band", near), ("offset 0", zero)):
                along = -(gradient * direction).sum((-2, -1)) / direction.square().sum().sqrt()
                one = found.sel(direction=name)
                scale = {"abs": 1e-4 * float(size.mean())}
                assert one["descent"].values == pytest.approx(along.mean(0).numpy(), **scale)
                assert one["descent_se"].values == pytest.approx(along.std(0).numpy() / 6**0.5, **scale)
                assert one["snr"].values == pytest.approx((along.mean(0) / along.std(0)).numpy(), abs=1e-2)
                # a causal first token has nothing to choose: a sequence that hides it alone has no gradient
                share = (along > 0).sum(0) / (size > 1e-12).sum(0)
                assert one["positive_share"].values == pytest.approx(share.numpy())
            by_offset = [-gradient.diagonal(o, -2, -1).sum(-1).mean(0) for o in range(1 - N, N)]
            scale = {"abs": 1e-4 * float(size.mean())}
            assert found["descent_by_offset"].values == pytest.approx(torch.stack(by_offset, -1).numpy(), **scale)
            column = gradient.sum(-2).square().sum(-1) / N / size.square()
            if not causal:
                assert found["energy_share"].sel(subspace="column").values == pytest.approx(
                    column.mean(0).numpy(), rel=1e-3
                )
    pairs = [by_autograd(made, 6, loss, 1).flatten(2) for loss in ("labels", "masked")]
    cosine = torch.cosine_similarity(*pairs, dim=-1)
    cosine = cosine.where(cosine != 0, torch.nan).nanmean(0).numpy()
    found = result["cosine"].sel(loss="labels", other_loss="masked", layer=1)
    assert found.values == pytest.approx(cosine, abs=1e-4)
    np.testing.assert_array_equal(found, result["cosine"].sel(loss="masked", other_loss="labels", layer=1))


def test_the_view_of_the_map_is_the_gradient_of_its_product():
    """With one head as wide as the network the map's gradient follows from the weights' by the chain rule."""
    made = checkpoint(n_heads=1, position="learned")
    result = gradients(made, sequences=2, nulls=1).sel(layer=0, head=0)
    shares, ranks = [], []
    for i in range(2):
        model = copy.deepcopy(made.model).double()
        inputs, label = made.tokens(2)[i : i + 1], torch.from_numpy(made.task.test.labels[i : i + 1]).long()
        torch.nn.functional.cross_entropy(model(inputs), label).backward()
        attention = model.block(0).attn
        x = model.run_with_cache(inputs)[1]["blocks.0.ln1.hook_normalized"][0].detach()
        # dL/dW_Q = (dL/dM) W_K; biases are 0 at initialisation
        gradient = attention.q.weight.grad.mT @ torch.linalg.inv(attention.k.weight.detach().mT)
        mean = torch.nn.functional.normalize(x.mean(0), dim=0)
        shares.append(float((mean @ gradient).square().sum() / gradient.square().sum()))
        values = torch.linalg.svdvals(gradient).square()
        ranks.append(float(values[0] / values.sum()))
    of_labels = result.sel(loss="labels")
    assert float(of_labels["mean_token_share"]) == pytest.approx(np.mean(shares), rel=1e-3)
    assert float(of_labels["rank_one_share"]) == pytest.approx(np.mean(ranks), rel=1e-3)


@pytest.mark.parametrize("position", ["learned", "relative"])
def test_at_uniform_attention_labels_are_blind_and_reconstruction_is_not(position):
    """P1 and P3 of arXiv:2605.21070, in the measure itself."""
    result = gradients(checkpoint(position=position, **LINEAR), sequences=12, nulls=1, at="uniform").sel(layer=0)
    labels, masked = (result.sel(loss=loss) for loss in ("labels", "masked"))
    share = labels["energy_share"]
    assert (share.sel(subspace="circulant") < 1e-10).all()
    assert share.sel(subspace="column").values == pytest.approx(np.ones(2))
    around = labels["descent"].where(labels["direction"].str.startswith("circulant"), drop=True)
    assert (np.abs(around) < 1e-6 * labels["gradient_norm"]).all()
    assert labels["mean_token_share"].values == pytest.approx(np.ones(2))
    assert labels["rank_one_share"].values == pytest.approx(np.ones(2))
    assert (masked["energy_share"].sel(subspace="circulant") > 0.03).all()
    assert (masked["mean_token_share"] < 0.9).all()
    # the positive control
    assert (labels["squared_cosine"].sel(direction="column") > 1e-3).all()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("score_bias", ["none", "learned"])
def test_uniform_attention_is_uniform_and_leaves_the_network_alone(position, score_bias):
    made = checkpoint(position=position, score_bias=score_bias)
    before = {name: weight.clone() for name, weight in made.model.state_dict().items()}
    with made.model.attending(flat):
        _, cache = made.model.run_with_cache(made.tokens(3))
    assert (cache["blocks.0.attn.hook_attn_scores"] == 0).all()
    assert all(torch.equal(weight, before[name]) for name, weight in made.model.state_dict().items())


def test_fitting_trains_what_is_named_on_its_objective_and_nothing_else():
    made = checkpoint(position="learned")
    start, network = made.model, probe(made).network
    for loss, head in (("labels", "classify"), ("masked", "unembed")):
        fitted = network.fitted(loss, 5, 0, uniform=True).model
        changed = {
            name for name, weight in fitted.named_parameters() if not torch.equal(weight, start.get_parameter(name))
        }
        values = {f"blocks.0.attn.{side}.{kind}" for side in "vo" for kind in ("weight", "bias")}
        assert values | {f"{head}.weight", f"{head}.bias"} <= changed
        assert changed <= values | {
            f"{other}.{kind}" for other in ("classify", "unembed") for kind in ("weight", "bias")
        }
        assert all(weight.requires_grad for weight in fitted.parameters())
    result = gradients(made, sequences=4, nulls=1, at="uniform", fit_steps=2)
    for loss in ("labels", "masked"):
        fitted = network.fitted(loss, 2, 0, uniform=True).model
        size = by_autograd(made, 4, loss, 0, fitted, flat).square().sum((-2, -1)).sqrt().mean(0)
        assert result["gradient_norm"].sel(loss=loss, layer=0).values == pytest.approx(size.numpy(), rel=1e-4)


def test_the_masked_gradient_favours_what_the_data_repeat():
    """Neighbours are alike: with a readout fitted at uniform attention reconstruction asks for them, labels do not."""
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    made = checkpoint(data=data, position="none", norm="none", mlp_ratio=0, init_std=0.2)
    rng = np.random.default_rng(0)
    for split in (made.task.train, made.task.test):
        pairs = rng.integers(6, size=(len(split), N // 2))
        split.inputs[:] = (
            np.roll(np.repeat(pairs, 2, axis=1), 1, axis=1) if rng.random() < 0.5 else np.repeat(pairs, 2, axis=1)
        )
    result = gradients(made, sequences=30, nulls=1, at="uniform", fit_steps=400, length_scale=1).sel(layer=0)
    near = result.sel(direction="circulant band")
    assert (near["descent_interval"].sel(loss="masked", bound="lower") > 0).all()
    assert (near["positive_share"].sel(loss="masked") > 0.6).all()
    assert (np.abs(near["descent"].sel(loss="labels")) < 1e-6).all()


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_curvature_is_the_second_derivative_of_the_loss(grid):
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    made = checkpoint(data=data, n_layers=2, position="relative", score_bias="fixed", init_std=0.8)
    result = gradients(made, sequences=4, nulls=1, curvature=2, objectives=("labels",)).sel(loss="labels")
    from attnprobe.geometry import geometry
    from attnprobe.statistics.directions import proximity_profiles, unit, without_own_pair

    places = geometry(grid or (N,))
    f = unit(without_own_pair(proximity_profiles(places, 2)["toeplitz exponential"], places), places)
    model, inputs = copy.deepcopy(made.model).double(), made.tokens(2)
    labels = torch.from_numpy(made.task.test.labels[:2]).long()

    def loss(layer, head, step):
        bias = torch.zeros(2, len(f), dtype=torch.float64)
        bias[head] = step * f

        def attend(heads):
            biased = replace(heads, scores=heads.scores.with_bias(bias))
            return biased.attend() if heads.layer == layer else heads.attend()

        with torch.no_grad(), model.attending(attend):
            return torch.nn.functional.cross_entropy(model(inputs), labels).item()

    for layer, head in np.ndindex(2, 2):
        step = 0.02
        second = (loss(layer, head, step) - 2 * loss(layer, head, 0) + loss(layer, head, -step)) / step**2
        found = result["curvature"].sel(layer=layer, head=head, direction="toeplitz exponential")
        assert float(found) == pytest.approx(second, rel=2e-2, abs=1e-8)
    assert np.isnan(result["curvature"].sel(direction=["column", "random"])).all()


def test_what_labels_are_blind_to_is_flat_as_well():
    """P2: at any amplitude a circulant score changes nothing in a linear network."""
    made = checkpoint(position="learned", **LINEAR)
    result = gradients(made, sequences=4, nulls=1, at="uniform", curvature=4).sel(layer=0)
    around = result["direction"].str.startswith("circulant")
    labels, masked = (result["curvature"].sel(loss=loss) for loss in ("labels", "masked"))
    scale = float(np.abs(labels.sel(direction="toeplitz linear")).max())
    assert (np.abs(labels.where(around, drop=True)) < 1e-6 * scale).all()
    assert (np.abs(masked.where(around, drop=True)) > 1e-3 * scale).all()


def test_permuting_moves_the_gradient_and_changes_none_of_it():
    made = checkpoint(position="learned")
    result = gradients(made, sequences=16, nulls=2)
    null = result.sel(null="permuted")
    whole = null["gradient_norm_null"].mean("draw")
    assert whole.values == pytest.approx(result["gradient_norm"].values, rel=1e-5)
    column = null["energy_share_null"].sel(subspace="column").mean("draw")
    assert column.values == pytest.approx(result["energy_share"].sel(subspace="column").values, rel=1e-4)
    toeplitz = null["energy_share_null"].sel(subspace="toeplitz").mean("draw")
    assert (np.abs(toeplitz - result["energy_share"].sel(subspace="toeplitz")) > 1e-4).all()


def test_images_have_both_views(image_checkpoint):
    result = gradients(image_checkpoint, sequences=4, nulls=1, objectives=("labels",))
    assert result["grid_descent"].dims == result["descent"].dims
    same = ["column", "random"]
    assert result["grid_descent"].sel(direction=same).equals(result["descent"].sel(direction=same))
    assert not np.allclose(*(result[name].sel(direction="toeplitz band") for name in ("grid_descent", "descent")))
    total = result["grid_descent_by_offset"].sum(("row_offset", "column_offset"))
    assert np.abs(total).max() < 1e-5 * float(result["gradient_norm"].max())
    assert "mean_token_share" not in result  # rotary: the map depends on the offset
    assert "cosine" not in result


def test_causal_networks_have_next_token_and_nothing_circulant():
    result = gradients(checkpoint(causal=True), **FEW)
    assert result["loss"].values.tolist() == ["labels", "masked", "next-token"]
    assert not any("circulant" in name for name in result["direction"].values.tolist())
    assert np.isnan(result["energy_share"].sel(subspace="circulant")).all()
    assert np.isnan(result["cosine"].sel(loss="masked", other_loss="masked")).all()


def test_sequences_of_any_length_take_part():
    lengths = np.array([N] * 14 + [5] * 15 + [1])
    result = gradients(checkpoint(lengths=lengths), sequences=30, nulls=1)
    for name in ("descent", "energy_share", "descent_by_offset", "cosine"):
        known = result[name] if name != "cosine" else result[name].sel(loss="labels", other_loss="masked")
        assert np.isfinite(known).all(), name


@pytest.mark.parametrize(
    ("named", "options", "said"),
    [
        (
            {"pooling": "cls"},
            {},
            r"pooling='cls': labels reach the last layer's scores through the row of \[CLS\] alone",
        ),
        (
            {},
            {"objectives": ("next-token",)},
            "'next-token' makes no sense here .attention is not causal.*; valid: labels, masked",
        ),
        ({}, {"objectives": ("label",)}, "objectives: 'label' makes no sense here; valid: labels, masked"),
        ({}, {"length_scale": 11}, "length_scale=11: must be at least 1 and below 11"),
        ({}, {"fit_steps": -1}, "fit_steps=-1: must not be negative"),
        ({}, {"curvature": -2}, "curvature=-2: must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(named, options, said):
    with pytest.raises(UsageError, match=said):
        gradients(checkpoint(**named), **FEW | options)
