import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import N, checkpoint, mean_profiles_of

from attnprobe import figures, gradients
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.networks import probe
from attnprobe.networks.transformer import flat
from attnprobe.results import reasons
from attnprobe.scores import Heads
from attnprobe.tables import FIGURES, POSITIONS

FEW = {"sequences": 6, "nulls": 1}
LINEAR = {"norm": "none", "mlp_ratio": 0}
"""Linear network, in which the labels depend on the mean of the values only: the setting of the theory."""


def hidden(ckpt, sequences):
    """Return the mask of masked tokens that the measure draws, from its definition."""
    from attnprobe.randomness import numpy_generator

    draws = numpy_generator(0, "masks of measures").random((sequences, N))
    mask = draws < ckpt.config.mask_probability
    mask[~mask.any(1), 0] = True
    return torch.from_numpy(mask)


def by_autograd(ckpt, sequences, loss, layer, model=None, attend=Heads.attend):
    """Return the gradient of the mean loss of each sequence, [batch, head, query, key], by autograd."""
    model, inputs = copy.deepcopy(model or ckpt.model).double(), ckpt.tokens(sequences)
    labels = torch.from_numpy(ckpt.task.test.labels[:sequences]).long()
    caught = []
    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", lambda s, hook: caught.append(s.requires_grad_()))]
    with model.attending(attend), model.hooks(fwd_hooks=hooks):
        total = torch.zeros((), dtype=torch.float64)
        if loss == "labels":
            total = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        elif loss == "masked":
            mask = hidden(ckpt, sequences)
            logits = model(inputs, masked=mask, output="tokens")
            for i in range(sequences):
                total = total + torch.nn.functional.cross_entropy(logits[i, mask[i]], inputs[i, mask[i]])
        else:
            logits = model(inputs, output="tokens")
            for i in range(sequences):
                total = total + torch.nn.functional.cross_entropy(logits[i, :-1], inputs[i, 1:])
        return torch.autograd.grad(total, caught[0])[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"causal": True, "position": "relative"},
        {"norm_placement": "post", "position": "alibi"},
        {"position": "rotary"},
    ],
    ids=str,
)
def test_gradients_match_autograd(settings):
    ckpt = checkpoint(n_layers=2, **settings)
    result = gradients(ckpt, **FEW)
    offset = torch.arange(N) - torch.arange(N)[:, None]
    causal = ckpt.config.model.causal
    visible = offset <= 0 if causal else torch.ones(N, N, dtype=torch.bool)

    def centred(d):
        d = d * visible
        return (d - d.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)) * visible

    zero = centred((offset == 0).double())
    profiles = mean_profiles_of(ckpt.model, ckpt.task.train, 6)[0]
    near = centred((offset.abs() <= 2).double())
    near = near - zero * (near * zero).sum() / zero.square().sum()
    for loss in result["loss"].values.tolist():
        for layer in range(2):
            gradient = by_autograd(ckpt, 6, loss, layer)
            selected = result.sel(loss=loss, layer=layer)
            norm = gradient.square().sum((-2, -1)).sqrt()
            assert selected["gradient_norm"].values == pytest.approx(norm.mean(0).numpy(), rel=1e-4)
            profile = centred(profiles[layer][:, offset + N - 1])
            profile = profile - zero * ((profile * zero).sum((-2, -1)) / zero.square().sum())[:, None, None]
            along = -(gradient * profile).sum((-2, -1)) / profile.square().sum((-2, -1)).sqrt()
            along_direction = selected["descent"].sel(direction="measured profile")
            assert along_direction.values == pytest.approx(along.mean(0).numpy(), abs=1e-4 * float(norm.mean()))
            for name, direction in (("toeplitz band", near), ("offset 0", zero)):
                along = -(gradient * direction).sum((-2, -1)) / direction.square().sum().sqrt()
                along_direction = selected.sel(direction=name)
                scale = {"abs": 1e-4 * float(norm.mean())}
                assert along_direction["descent"].values == pytest.approx(along.mean(0).numpy(), **scale)
                assert along_direction["descent_se"].values == pytest.approx(along.std(0).numpy() / 6**0.5, **scale)
                assert along_direction["snr"].values == pytest.approx((along.mean(0) / along.std(0)).numpy(), abs=1e-2)
                # causal: the first token sees one key, so a sequence in which only it is masked has no gradient
                share = (along > 0).sum(0) / (norm > 1e-12).sum(0)
                assert along_direction["positive_share"].values == pytest.approx(share.numpy())
            by_offset = [-gradient.diagonal(o, -2, -1).sum(-1).mean(0) for o in range(1 - N, N)]
            scale = {"abs": 1e-4 * float(norm.mean())}
            assert selected["descent_by_offset"].values == pytest.approx(torch.stack(by_offset, -1).numpy(), **scale)
            column = gradient.sum(-2).square().sum(-1) / N / norm.square()
            if not causal:
                assert selected["energy_share"].sel(subspace="column").values == pytest.approx(
                    column.mean(0).numpy(), rel=1e-3
                )
    pairs = [by_autograd(ckpt, 6, loss, 1).flatten(2) for loss in ("labels", "masked")]
    cosine = torch.cosine_similarity(*pairs, dim=-1)
    cosine = cosine.where(cosine != 0, torch.nan).nanmean(0).numpy()
    selected = result["cosine"].sel(loss="labels", other_loss="masked", layer=1)
    assert selected.values == pytest.approx(cosine, abs=1e-4)
    np.testing.assert_array_equal(selected, result["cosine"].sel(loss="masked", other_loss="labels", layer=1))


def test_shares_of_the_query_key_map_gradient_match_autograd():
    """With one head and d_head = d_model, the map gradient follows from the weight gradients by the chain rule."""
    ckpt = checkpoint(n_heads=1, position="learned")
    result = gradients(ckpt, sequences=2, nulls=1).sel(layer=0, head=0)
    shares, ranks = [], []
    for i in range(2):
        model = copy.deepcopy(ckpt.model).double()
        inputs, label = ckpt.tokens(2)[i : i + 1], torch.from_numpy(ckpt.task.test.labels[i : i + 1]).long()
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
    """P1 and P3 of arXiv:2605.21070."""
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
    ckpt = checkpoint(position=position, score_bias=score_bias)
    before = {name: weight.clone() for name, weight in ckpt.model.state_dict().items()}
    with ckpt.model.attending(flat):
        _, cache = ckpt.model.run_with_cache(ckpt.tokens(3))
    assert (cache["blocks.0.attn.hook_attn_scores"] == 0).all()
    assert all(torch.equal(weight, before[name]) for name, weight in ckpt.model.state_dict().items())


def test_fitting_trains_only_the_output_head_and_value_maps():
    ckpt = checkpoint(position="learned")
    initial, network = ckpt.model, probe(ckpt).network
    for loss, head in (("labels", "classify"), ("masked", "unembed")):
        fitted = network.fitted(loss, 5, 0, uniform=True).model
        changed = {
            name for name, weight in fitted.named_parameters() if not torch.equal(weight, initial.get_parameter(name))
        }
        values = {f"blocks.0.attn.{side}.{kind}" for side in "vo" for kind in ("weight", "bias")}
        assert values | {f"{head}.weight", f"{head}.bias"} <= changed
        assert changed <= values | {
            f"{other}.{kind}" for other in ("classify", "unembed") for kind in ("weight", "bias")
        }
        assert all(weight.requires_grad for weight in fitted.parameters())
    result = gradients(ckpt, sequences=4, nulls=1, at="uniform", fit_steps=2)
    for loss in ("labels", "masked"):
        fitted = network.fitted(loss, 2, 0, uniform=True).model
        norm = by_autograd(ckpt, 4, loss, 0, fitted, flat).square().sum((-2, -1)).sqrt().mean(0)
        assert result["gradient_norm"].sel(loss=loss, layer=0).values == pytest.approx(norm.numpy(), rel=1e-4)


def test_the_masked_gradient_favours_proximity_if_neighbours_are_equal():
    """With an output head fitted at uniform attention, masked reconstruction favours neighbours, labels do not."""
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    ckpt = checkpoint(data=data, position="none", norm="none", mlp_ratio=0, init_std=0.2)
    rng = np.random.default_rng(0)
    for split in (ckpt.task.train, ckpt.task.test):
        pairs = rng.integers(6, size=(len(split), N // 2))
        split.inputs[:] = (
            np.roll(np.repeat(pairs, 2, axis=1), 1, axis=1) if rng.random() < 0.5 else np.repeat(pairs, 2, axis=1)
        )
    result = gradients(ckpt, sequences=30, nulls=1, at="uniform", fit_steps=400, length_scale=1).sel(layer=0)
    near = result.sel(direction="circulant band")
    assert (near["descent_interval"].sel(loss="masked", bound="lower") > 0).all()
    assert (near["positive_share"].sel(loss="masked") > 0.6).all()
    assert (np.abs(near["descent"].sel(loss="labels")) < 1e-6).all()


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_a_direction_to_which_the_gradient_is_blind_has_no_sign(grid, tmp_path):
    """P1: in a linear network at uniform attention, the label gradient along circulant directions is rounding."""
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    result = gradients(checkpoint(data, **LINEAR), sequences=8, nulls=1, at="uniform")
    why = reasons(result)
    prefix = "" if grid is None else "grid_"
    names = result["direction"].values.tolist()
    blind = [name for name in names if name.startswith("circulant") or name == "offset 0"]
    labels, masked = (result.sel(loss=loss) for loss in ("labels", "masked"))
    assert (labels["gradient_norm"] > 0).all()
    assert not labels[f"{prefix}descent"].sel(direction=blind).values.any()
    for name in ("positive_share", "snr"):
        assert labels[f"{prefix}{name}"].sel(direction=blind).isnull().all()
        texts = why[f"{prefix}{name}"].sel(loss="labels", direction=blind).values
        assert all("the gradient is orthogonal to the direction" in text for text in texts.ravel())
        assert masked[f"{prefix}{name}"].sel(direction=blind).notnull().all()
        seen = [name for name in names if name not in blind]
        assert labels[f"{prefix}{name}"].sel(direction=seen).notnull().all()
    squared = labels[f"{prefix}squared_cosine"].sel(direction=blind)
    assert (squared < 1e-12).all() and np.isfinite(squared).all()
    figure = FIGURES["gradients"](result)
    figure.savefig(tmp_path / "x.png")
    assert "orthogonal to the direction" in figures.caption(result)


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_curvature_is_the_second_derivative_of_the_loss(grid):
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    ckpt = checkpoint(data=data, n_layers=2, position="relative", score_bias="fixed", init_std=0.8)
    result = gradients(ckpt, sequences=4, nulls=1, curvature=2, objectives=("labels",)).sel(loss="labels")
    from attnprobe.geometry import geometry
    from attnprobe.statistics.directions import proximity_profiles, unit, without_own_pair

    pairs = geometry(grid or (N,))
    f = unit(without_own_pair(proximity_profiles(pairs, 2)["toeplitz exponential"], pairs), pairs)
    model, inputs = copy.deepcopy(ckpt.model).double(), ckpt.tokens(2)
    labels = torch.from_numpy(ckpt.task.test.labels[:2]).long()

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
        curvature = result["curvature"].sel(layer=layer, head=head, direction="toeplitz exponential")
        assert float(curvature) == pytest.approx(second, rel=2e-2, abs=1e-8)
    assert np.isnan(result["curvature"].sel(direction=["column", "random"])).all()


def test_the_label_loss_is_flat_along_circulant_directions():
    """P2: in a linear network, a circulant score of any amplitude does not change the loss."""
    ckpt = checkpoint(position="learned", **LINEAR)
    result = gradients(ckpt, sequences=4, nulls=1, at="uniform", curvature=4).sel(layer=0)
    around = result["direction"].str.startswith("circulant")
    labels, masked = (result["curvature"].sel(loss=loss) for loss in ("labels", "masked"))
    scale = float(np.abs(labels.sel(direction="toeplitz linear")).max())
    assert (np.abs(labels.where(around, drop=True)) < 1e-6 * scale).all()
    assert (np.abs(masked.where(around, drop=True)) > 1e-3 * scale).all()


def test_the_permuted_null_permutes_gradient_entries():
    ckpt = checkpoint(position="learned")
    result = gradients(ckpt, sequences=16, nulls=2)
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


def test_sequences_of_all_lengths_are_measured():
    lengths = np.array([N] * 14 + [5] * 15 + [1])
    result = gradients(checkpoint(lengths=lengths), sequences=30, nulls=1)
    for name in ("descent", "energy_share", "descent_by_offset", "cosine"):
        defined = result[name] if name != "cosine" else result[name].sel(loss="labels", other_loss="masked")
        assert np.isfinite(defined).all(), name


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            {"pooling": "cls"},
            {},
            r"pooling='cls': the gradient of the labels reaches the last layer's scores only through the row",
        ),
        (
            {},
            {"objectives": ("next-token",)},
            "objectives='next-token': does not apply to this network .it requires causal.*; valid: labels, masked",
        ),
        (
            {},
            {"objectives": ("label",)},
            "objectives='label': is unknown; did you mean 'labels'. valid: labels, masked",
        ),
        ({}, {"length_scale": 11}, "length_scale=11: must be at least 1 and below 11"),
        ({}, {"fit_steps": -1}, "fit_steps=-1: must not be negative"),
        ({}, {"curvature": -2}, "curvature=-2: must not be negative"),
    ],
)
def test_invalid_arguments_are_refused(settings, options, message):
    with pytest.raises(UsageError, match=message):
        gradients(checkpoint(**settings), **FEW | options)
