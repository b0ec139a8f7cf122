"""Initial query and key maps, compared with NumPy references and with the scores of complete networks."""

import math

import numpy as np
import pytest
import torch
from support import scores_by_layer

from attnprobe.config import DataSpec, ModelConfig, from_flat
from attnprobe.errors import UsageError
from attnprobe.model.initialisation import PEAK, mimetic, proximity
from attnprobe.model.transformer import Transformer
from attnprobe.randomness import torch_generator
from attnprobe.statistics import score_statistics

LINE = DataSpec(n=12, inputs="tokens", classes=2, vocabulary=30)
GRID = DataSpec(n=12, inputs="tokens", classes=2, vocabulary=30, grid=(3, 4))


def network(data=LINE, seed=0, **options):
    return Transformer(ModelConfig(**{"d_model": 32, "n_layers": 2, **options}), data, seed).double()


def kernel(shape, length_scale, prefix=0):
    """Return the target K from its definition: rows and columns centred, 0 for prepended tokens."""
    positions = np.argwhere(np.ones(shape))
    k = np.exp(-np.linalg.norm(positions[:, None] - positions, axis=-1) / length_scale)
    k = k - k.mean(0) - k.mean(1)[:, None] + k.mean()
    return np.pad(k, (prefix, 0))


def power(matrix, exponent):
    size, axes = np.linalg.eigh(matrix)
    return axes * size**exponent @ axes.T


@pytest.mark.parametrize(("shape", "prefix"), [((9,), 0), ((9,), 1), ((2, 5), 0), ((2, 5), 1)])
@pytest.mark.parametrize("length_scale", [0.7, 3.0, 1e5])
def test_the_proximity_map_is_optimal_for_its_rank_and_has_the_documented_height(
    shape, prefix, length_scale, monkeypatch
):
    monkeypatch.setattr("attnprobe.model.initialisation.QUERIES", 4)
    d_head, noise, scale = 3, 0.4, 0.6
    rng = np.random.default_rng(0)
    p = rng.normal(size=(math.prod(shape) + prefix, 7))
    maps = proximity(torch.from_numpy(p), noise, scale, shape, length_scale, d_head)
    assert torch.equal(*maps)
    w = maps[0].numpy()
    k = kernel(shape, length_scale, prefix)
    far = math.hypot(*(side - 1 for side in shape))
    # Least-squares slope of the position scores on K, times the difference in K between distance 1 and the farthest.
    score = (p / scale) @ w @ w.T @ (p / scale).T / math.sqrt(d_head)
    height = (score * k).sum() / (k * k).sum() * (math.exp(-1 / length_scale) - math.exp(-far / length_scale))
    assert height == pytest.approx(PEAK, rel=1e-6)
    # Up to scale, no product of this rank estimates K better: the error is given by the remaining eigenvalues.
    r = p.T @ p + len(p) * noise**2 * np.eye(7)
    target = power(r, -0.5) @ p.T @ k @ p @ power(r, -0.5)
    m = power(r, 0.5) @ w @ w.T @ power(r, 0.5)
    m *= (m * target).sum() / (m * m).sum()
    remaining = np.linalg.eigvalsh(target)[:-d_head]
    assert np.linalg.norm(target - m) ** 2 == pytest.approx((remaining**2).sum(), rel=1e-4, abs=1e-12)


def test_the_expected_error_depends_on_the_whitened_target():
    """Check the identity in the docstring on random embeddings: the expected error is the distance plus a constant."""
    rng = np.random.default_rng(0)
    n, noise, k = 5, 0.7, kernel((5,), 2.0)
    p, (a, b) = rng.normal(size=(n, 3)), rng.normal(size=(2, 3, 3))
    r = p.T @ p + n * noise**2 * np.eye(3)
    target = power(r, -0.5) @ p.T @ k @ p @ power(r, -0.5)
    e, f = noise * rng.normal(size=(2, 200_000, n, 3))
    errors = [((k - (p + e) @ m @ (p + f).transpose(0, 2, 1)) ** 2).sum((1, 2)).mean() for m in (a, b)]
    distances = [np.linalg.norm(target - power(r, 0.5) @ m @ power(r, 0.5)) ** 2 for m in (a, b)]
    assert errors[0] - errors[1] == pytest.approx(distances[0] - distances[1], rel=0.02)


@pytest.mark.parametrize("data", [LINE, GRID])
@pytest.mark.parametrize(
    "options",
    [
        {"position": "learned"},
        {"position": "sinusoidal"},
        {"position": "learned", "init_std": 1e-3, "position_std": 1e-3},
        {"position": "learned", "norm": "rms"},
        {"position": "learned", "norm": "none"},
        {"position": "sinusoidal", "norm_placement": "post"},
        {"position": "learned", "norm_placement": "post"},
        {"position": "learned", "pooling": "cls"},
        {"position": "learned", "causal": True},
    ],
)
def test_initial_scores_decay_with_distance(data, options):
    """On random tokens, in every layer, more than with random maps, and with a height of about PEAK."""
    tokens = torch.randint(30, (60, 12), generator=torch.Generator().manual_seed(0))

    def statistics(init_qk, seed):
        return [score_statistics(s) for s in scores_by_layer(network(data, seed, init_qk=init_qk, **options), tokens)]

    random = [layer.contrast(1).mean(0) for seed in range(5) for layer in statistics("random", seed)]
    for layer in statistics("proximity", 0):
        assert (layer.contrast(1).mean(0) > 1.2 * torch.stack(random).abs().max()).all()
        distance, seen = layer.geometry.distance, layer.geometry.seen
        profile = layer.offset_profile.mean((0, 1))
        near = [profile[seen & (distance >= a) & (distance < b)].mean().item() for a, b in ((1, 2), (2, 3), (3, 99))]
        assert near[0] > near[1]
        if (
            data is LINE or options["position"] == "learned"
        ):  # sinusoids in row-major order cannot achieve more on a grid
            assert near[1] > near[2]
        assert 1.5 < near[0] - near[2] < 5


def test_scores_at_the_hook_point_decay_with_distance():
    _, cache = network(init_qk="proximity", position="sinusoidal").run_with_cache(torch.randint(30, (40, 12)))
    mean = cache["attn_scores", 0].mean((0, 1))
    near = (mean.diagonal(1) + mean.diagonal(-1)).mean() / 2
    assert near - mean.diagonal(6).mean() > 2


@pytest.mark.parametrize("init_qk", ["proximity", "mimetic"])
@pytest.mark.parametrize("init", ["normal", "xavier"])
def test_init_qk_changes_only_query_and_key_weights(init_qk, init):
    random, special = (network(init_qk=name, init=init, pooling="cls") for name in ("random", init_qk))
    changed = {f"blocks.{layer}.attn.{name}.weight" for layer in range(2) for name in "qk"}
    other = special.state_dict()
    assert {name for name, weight in random.state_dict().items() if not torch.equal(weight, other[name])} == changed
    again = network(init_qk=init_qk, init=init, pooling="cls").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in other.items())


def test_mimetic_maps_are_the_best_low_rank_product_for_noise_plus_identity():
    """Eckart & Young: the squared distance is the sum of the squares of the omitted singular values."""
    d_model, d_head = 32, 8
    q, k = (map_.numpy() for map_ in mimetic(d_model, d_head, torch_generator(3, "here")))
    noise = torch.randn(d_model, d_model, generator=torch_generator(3, "here"), dtype=torch.float64).numpy()
    full = 0.7 * noise / math.sqrt(d_model) + 0.7 * np.eye(d_model)
    product = q @ k.T
    size = np.linalg.svd(full, compute_uv=False)
    assert np.linalg.matrix_rank(product) == d_head
    assert np.linalg.norm(full - product) ** 2 == pytest.approx((size[d_head:] ** 2).sum())
    assert q.T @ q == pytest.approx(np.diag(size[:d_head]))  # split evenly
    assert k.T @ k == pytest.approx(np.diag(size[:d_head]))
    # At full rank, the mean of the diagonal is beta, and the mean square of the other entries is alpha² / d_model.
    q, k = (map_.numpy() for map_ in mimetic(300, 300, torch_generator(4, "here")))
    diagonal = np.diag(q @ k.T)
    assert diagonal.mean() == pytest.approx(0.7, abs=5 * 0.7 / 300)
    off = q @ k.T - np.diag(diagonal)
    assert 300 * (off**2).sum() / (300 * 299) == pytest.approx(0.49, rel=0.05)


def test_mimetic_maps_differ_between_heads_layers_and_seeds():
    maps = [
        block.attn.W_Q[head] @ block.attn.W_K[head].mT
        for seed in (0, 1)
        for block in network(seed=seed, init_qk="mimetic").blocks
        for head in range(2)
    ]
    assert len({round(map_.sum().item(), 9) for map_ in maps}) == 8
    for map_ in maps:  # the rank covers half of the identity's directions
        assert map_.trace().item() > 0.3 * 0.7 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "rotary"}, "position vectors in the residual stream: position learned or sinusoidal, not rotary"),
        ({"position": "alibi"}, "not alibi"),
        ({"position": "relative"}, "not relative"),
        ({"position": "none"}, "not none"),
        ({"position_std": 0}, "needs distinct position vectors: position_std=0.0 makes them all 0"),
        ({"length_scale": 0.3}, "needs a length_scale of 0.5 ... 1e6, not 0.3"),
        ({"length_scale": 2e6}, "needs a length_scale of 0.5 ... 1e6, not 2000000.0"),
    ],
)
def test_settings_without_a_proximity_map_are_refused(options, message):
    with pytest.raises(UsageError, match=f"^init_qk='proximity' needs .*{message[-20:]}$") as error:
        from_flat({"init_qk": "proximity", **options})
    assert message in str(error.value)
    from_flat({"init_qk": "mimetic", **options})


def test_proximity_maps_need_keys_beyond_distance_1():
    data = DataSpec(n=2, inputs="tokens", classes=2, vocabulary=30)
    with pytest.raises(UsageError, match=r"keys beyond distance 1; data of shape \(2,\) have none"):
        network(data, init_qk="proximity")


@pytest.mark.parametrize("n_heads", [1, 2])
def test_zero_embeddings_and_more_dimensions_than_positions_are_valid(n_heads):
    model = network(init_qk="proximity", init_std=0, n_heads=n_heads)
    assert all(weight.isfinite().all() for weight in model.parameters())
    (scores, _) = scores_by_layer(model, torch.zeros(1, 12, dtype=torch.long))
    assert (score_statistics(scores).toeplitz_share > 0.9).all()
