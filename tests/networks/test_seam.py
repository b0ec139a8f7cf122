"""The four measures on a network of another class, compared with explicit n x n arrays in float64."""

import json
from contextlib import contextmanager
from dataclasses import replace

import materialised
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import attnprobe as ap
from attnprobe.config import DataSpec
from attnprobe.geometry import geometry
from attnprobe.networks import Network, Probe
from attnprobe.networks.base import Shape
from attnprobe.scores import Heads, Scores
from attnprobe.tasks import Split, Task
from attnprobe.training.objectives import Batch, predictions

N, VOCABULARY, WIDTH, HEADS = 8, 5, 12, 2
FEW = {"sequences": 10, "nulls": 2}


class Stranger(nn.Module):
    """Two-layer attention network in plain torch, with position vectors and a bias, that implements only `Network`."""

    def __init__(self, seed=0):
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY + 1, WIDTH), nn.Embedding(N, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.classify, self.tokens = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, VOCABULARY)
        self.bias, self.attend = nn.Parameter(torch.zeros(HEADS, 2 * N - 1)), Heads.attend
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)

    shape = Shape(layers=2, heads=HEADS, n=N, d_model=WIDTH)

    def forward(self, tokens, attend):
        x = self.embed(tokens) + self.position.weight
        for layer, (maps, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            q, k, v = maps(x).view(*tokens.shape, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            x = x + out(attend(layer, q, k, v).transpose(1, 2).flatten(2)).tanh()
        return x

    @contextmanager
    def attending(self, attend):
        self.attend = attend
        yield
        self.attend = Heads.attend

    def predictions(self, batch, objective, mask=None):
        tokens = batch.inputs if mask is None else batch.inputs.masked_fill(mask, VOCABULARY)
        x = self(tokens, lambda layer, q, k, v: self.attend(Heads(layer, Scores(q, k, bias=self.bias), v)))
        logits = self.classify(x.mean(1)) if objective == "labels" else self.tokens(x)
        return predictions(logits, batch, objective, mask)

    def untrained(self, seed):
        return Stranger(seed)


def explicit(network, tokens, edit=lambda layer, s: s):
    """Return label logits, with explicit scores that can be edited and an explicit softmax."""
    offset = torch.arange(N) - torch.arange(N)[:, None] + N - 1

    def attend(layer, q, k, v):
        s = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5 + network.bias[:, offset]
        return torch.einsum("bhij,bhjd->bhid", edit(layer, s).softmax(-1), v)

    return network.classify(network(tokens, attend).mean(1))


@pytest.fixture(scope="module")
def example():
    """Network, probe, test tokens and labels, and the queries and keys of every layer on test and training data."""
    rng = np.random.default_rng(0)
    train, test = (Split(rng.integers(VOCABULARY, size=(20, N)), rng.integers(2, size=20)) for _ in range(2))
    task = Task("mine", DataSpec(n=N, inputs="tokens", classes=2, vocabulary=VOCABULARY), train, test)
    network = Stranger()
    tokens, labels = test.tensor(slice(10)), torch.from_numpy(test.labels[:10])
    products = {}
    for name, inputs in (("test", tokens), ("train", train.tensor(slice(10)))):
        products[name] = []
        with torch.no_grad():
            network(inputs, lambda layer, q, k, v, to=products[name]: (to.append((q, k)), plain(network, q, k, v))[1])
    return network, Probe(network, lambda: task, objectives=("labels", "masked")), tokens, labels, products


def plain(network, q, k, v):
    return materialised.pattern(Scores(q, k, bias=network.bias)) @ v


def test_stranger_implements_network(example):
    network, *_ = example
    assert isinstance(network, Network)
    with torch.no_grad():
        loss = network.predictions(Batch(example[2], example[3]), "labels").loss
        expected = nn.functional.cross_entropy(explicit(network, example[2]), example[3], reduction="none")
    torch.testing.assert_close(loss, expected)


def test_proximity(example):
    network, probe, _, _, products = example
    result = ap.proximity(probe, **FEW)
    distance = geometry((N,)).distance
    for layer, (q, k) in enumerate(products["test"]):
        scores = Scores(q, k, bias=network.bias.detach())
        score, pattern = materialised.score_statistics(scores), materialised.pattern_statistics(scores)
        here = result.sel(layer=layer)
        assert here["toeplitz_share"].values == pytest.approx(score["toeplitz_share"].mean(0).numpy())
        assert here["score_by_offset"].values == pytest.approx(score["offset_profile"].mean(0).numpy())
        assert here["entropy"].values == pytest.approx(pattern["entropy"].mean(0).numpy())
        reach = (pattern["mass_by_offset"] @ distance).mean(0)
        assert here["mean_distance"].values == pytest.approx(reach.numpy())
    assert result["entropy_null"].sel(null="permuted").mean("draw").values == pytest.approx(result["entropy"].values)


def parts(products, layer):
    """Return the content and position parts of queries and of keys: position parts are centred training means."""
    split_parts = []
    for test, train in zip(products["test"][layer], products["train"][layer], strict=True):
        mean = train.mean(0)
        position = (mean - mean.mean(1, keepdim=True)).expand_as(test)
        split_parts.append((test - position, position))
    return split_parts


def centred(s):
    return s - s.mean(-1, keepdim=True)


def test_positions_splits_by_means_over_data_and_lists_omitted_variables(example):
    network, probe, _, _, products = example
    result = ap.positions(probe, **FEW)
    offset = torch.arange(N) - torch.arange(N)[:, None] + N - 1
    for layer in range(2):
        (qc, qp), (kc, kp) = parts(products, layer)
        terms = [torch.einsum("bhid,bhjd->bhij", q, k) / 6**0.5 for q in (qc, qp) for k in (kc, kp)]
        terms[3] = terms[3] + network.bias.detach()[:, offset]
        total = centred(sum(terms))
        square = total.square().sum((-2, -1))
        shares = torch.stack([(centred(term) * total).sum((-2, -1)) / square for term in terms], -1).mean(0)
        assert result["variance_share"].sel(layer=layer).values == pytest.approx(shares.numpy())
    assert result.attrs["encoding"] == "unknown"
    assert set(json.loads(result.attrs["left_out"])) == {"qk_*", "pair_*"}
    assert not any(name.startswith(("qk_", "pair_")) for name in result)


def test_gradients(example):
    network, probe, tokens, labels, _ = example
    result = ap.gradients(probe, objectives=("labels",), **FEW).sel(loss="labels")
    leaves = []

    def edit(layer, s):
        leaves.append(s)
        return s

    loss = nn.functional.cross_entropy(explicit(network, tokens, edit), labels, reduction="sum")
    for layer, gradient in enumerate(torch.autograd.grad(loss, leaves)):
        here = result.sel(layer=layer)
        assert here["gradient_norm"].values == pytest.approx(gradient.square().sum((-2, -1)).sqrt().mean(0).numpy())
        by_offset = torch.stack([-gradient.diagonal(o, -2, -1).sum(-1).mean(0) for o in range(1 - N, N)], -1)
        assert here["descent_by_offset"].values == pytest.approx(by_offset.numpy(), abs=1e-12)
    assert "mean_token_share" not in result and "mean_token_share" in result.attrs["left_out"]
    uniform = ap.gradients(probe, at="uniform", **FEW)
    assert uniform["energy_share"].sel(loss="labels", layer=1, subspace="circulant").max() < 1e-20
    with pytest.raises(ap.UsageError, match="fit_steps=2: the output head of this network cannot be trained"):
        ap.gradients(probe, fit_steps=2, **FEW)
    with pytest.raises(ap.UsageError, match="curvature=1: this network cannot compute in float64"):
        ap.gradients(probe, curvature=1, **FEW)


def test_interventions(example):
    network, probe, tokens, labels, products = example
    result = ap.interventions(probe, length_scale=1.5, **FEW)
    profiles = []
    for q, k in products["train"]:
        statistics = materialised.score_statistics(Scores(q, k, bias=network.bias.detach()))
        profiles.append(statistics["offset_profile"].mean(0))
    offset = torch.arange(N) - torch.arange(N)[:, None]
    index = offset + N - 1
    pp = []
    for layer in range(2):
        (_, qp), (_, kp) = parts(products, layer)
        pp.append(torch.einsum("bhid,bhjd->bhij", qp, kp) / 6**0.5 + network.bias.detach()[:, index])
    edits = {
        "uniform_attention": lambda layer, s: torch.zeros_like(s),
        "ablate_toeplitz": lambda layer, s: s - profiles[layer][:, index],
        "keep_position": lambda layer, s: pp[layer],
        "impose_proximity": lambda layer, s: s - offset.abs() / 1.5,
    }
    with torch.no_grad():
        for name, edit in edits.items():
            for layer, head in np.ndindex(2, HEADS):

                def edit_head(edited_layer, s, edit=edit, layer=layer, head=head):
                    edited = s.clone()
                    if edited_layer == layer:
                        edited[:, head] = edit(layer, s)[:, head]
                    return edited

                loss = nn.functional.cross_entropy(explicit(network, tokens, edit_head), labels)
                measured = float(result["loss"].sel(intervention=name, layer=layer, head=head))
                assert measured == pytest.approx(float(loss), rel=1e-6), (name, layer, head)
            loss = nn.functional.cross_entropy(explicit(network, tokens, edit), labels)
            assert float(result["all_loss"].sel(intervention=name)) == pytest.approx(float(loss), rel=1e-6)
    names = result["intervention"].values.tolist()
    assert "permute_positions" not in names, "positions of an unknown encoding cannot be permuted"
    assert "permute_positions" in result.attrs["left_out"]


def test_measures_read_unmasked_sequences_under_a_masked_objective(example):
    network, probe, *_ = example
    masked = replace(probe, objective="masked", objectives=("masked",))
    xr.testing.assert_equal(
        ap.proximity(masked, **FEW).drop_vars("objective"), ap.proximity(probe, **FEW).drop_vars("objective")
    )
    assert np.isfinite(ap.interventions(masked, **FEW)["all_loss"]).all()
    assert ap.gradients(masked, **FEW)["loss"].values.tolist() == ["masked"]
    with pytest.raises(ap.UsageError, match="objectives=.*a probe needs at least one"):
        replace(probe, objectives=())


def test_the_untrained_null_is_omitted_if_the_network_has_none(example, monkeypatch):
    _, probe, *_ = example
    monkeypatch.setattr(Stranger, "untrained", lambda self, seed: None)
    assert ap.proximity(probe, **FEW)["null"].values.tolist() == ["permuted"]
