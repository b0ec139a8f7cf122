"""Score gradients of label losses and masked-token losses: tests of the theory of arXiv:2605.21070, in float64.

Labels of mean-pooled tokens: at zero scores (P1), at circulant scores (P2) and in the weights (P3). Masked tokens (P4).
Each assumption of P1 violated, with a control. The directions that labels see at any pattern, and their share of an
offset profile. References are closed forms, autograd through an explicit softmax, and the network, for which
`gradient_statistics` is compared with autograd every time.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.geometry import geometry
from attnprobe.model.transformer import Transformer
from attnprobe.statistics import Scores, gradient_statistics
from attnprobe.training.objectives import Batch, evaluate

N, D = 9, 8
SPEC = DataSpec(n=N, inputs="tokens", classes=3, vocabulary=5)
TOKENS = torch.randint(5, (6, N), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
MASKED = torch.isin(torch.arange(N), torch.tensor([1, 5, 6]))
ZERO, EYE = torch.zeros(N, N, dtype=torch.float64), torch.eye(N, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def equal(found, expected, scale=None):
    scale = expected.abs().max() if scale is None else scale
    assert 0 < scale < math.inf and (found - expected).abs().max() <= 1e-12 * scale


def periodic(values):
    """Return a function of (j - i) modulo n at offsets -(n - 1) ... n - 1; its score is circulant."""
    return torch.cat([values[1:], values])


def proximity(n):
    position = torch.arange(n, dtype=torch.float64)
    distance = torch.minimum(position, n - position)
    return periodic(distance.mean() - distance)


def dense(profile):
    position = torch.arange((len(profile) + 1) // 2)
    return profile[position - position[:, None] + len(position) - 1]


def along(gradient, direction):
    """Return the cosine between gradient and direction."""
    return (gradient * direction).sum((-2, -1)) / gradient.norm(dim=(-2, -1)) / direction.norm(dim=(-2, -1))


def circulant_share(gradient):
    """Return the norm of the projection onto circulant matrices divided by the norm of the gradient."""
    position = torch.arange(gradient.shape[-1])
    by_offset = gradient[..., position[:, None], (position + position[:, None]) % len(position)].mean(-2)
    return by_offset.norm(dim=-1) * len(position) ** 0.5 / gradient.norm(dim=(-2, -1))


def is_blind(gradient):
    return circulant_share(gradient).max() < 1e-12


def sees(gradient):
    near = along(gradient, dense(proximity(gradient.shape[-1]))).abs()
    return near.mean() > 0.01 and circulant_share(gradient).mean() > 0.05


def attend(s, v):
    weights = s.exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def after(y):
    """Apply a nonlinear loss after the pooling."""
    return (y @ torch.linspace(-1, 2, y.shape[-1] * 3, dtype=y.dtype).reshape(-1, 3)).tanh().square().sum()


def pooled(s, v, x=0.0):
    return after((attend(s, v) + x).mean(0))


def slope(function, at):
    at = at.detach().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def network(data=SPEC, **overrides):
    """Build a linear network with mean pooling and scores of 0, except for the overridden settings."""
    settings = {"d_model": D, "norm": "none", "mlp_ratio": 0, "init_std": 0.5, "position_std": 0.5, **overrides}
    model = Transformer(ModelConfig(**settings), data).double()
    for block in model.blocks:
        nn.init.zeros_(block.attn.q.weight)
    return model


def labels(model, **options):
    return F.cross_entropy(model(TOKENS, **options), LABELS, reduction="sum")


def score_gradient(model, loss=labels, layer=0, bias=None, residual=True, real=None, directions=()):
    """Return dloss/dscore [sequence, head, query, key] by autograd, and check that `gradient_statistics` agrees."""
    caught = {}

    def catch(tensor, hook):
        if bias is not None and hook.name.endswith("attn_scores"):
            tensor = tensor + dense(bias)
        caught[hook.name.split("hook_")[1]] = tensor
        return tensor

    names = ["hook_resid_pre", *(f"attn.hook_{name}" for name in ("q", "k", "v", "z", "attn_scores"))]
    hooks = [(f"blocks.{layer}.{name}", catch) for name in names]
    if not residual:
        hooks += [(f"blocks.{layer}.hook_attn_out", lambda tensor, hook: tensor - caught["resid_pre"])]
    with model.hooks(fwd_hooks=hooks):
        gradient, dz = torch.autograd.grad(loss(model), [caught["attn_scores"], caught["z"]])
    q, k, v, dz = (x.detach().transpose(1, 2) for x in (caught["q"], caught["k"], caught["v"], dz))
    bias = model.position.bias(q.shape[2]) if bias is None else bias.expand(q.shape[1], -1)
    scores = Scores(q, k, bias=bias, causal=model.cfg.causal, real=real)
    found = gradient_statistics(scores, v, dz, [(x, torch.eye(x.shape[-1]).double()) for x in directions])
    n, size = gradient.shape[-1], gradient.abs().sum((-2, -1)).max()
    equal(found.by_offset, torch.stack([gradient.diagonal(o, -2, -1).sum(-1) for o in range(1 - n, n)], -1), size)
    equal(found.by_key, gradient.sum(-2), size)
    equal(found.square, gradient.square().sum((-2, -1)), size**2)
    for number, direction in enumerate(directions):
        equal(found.along[..., number], (gradient * direction).sum((-2, -1)), size)
    return gradient


# P1: zero scores.
@pytest.mark.parametrize("x", [0.0, torch.arange(N * D).reshape(N, D) / 99], ids=["no residual", "residual"])
def test_at_zero_scores_all_rows_of_the_gradient_are_centred_values_times_the_pooled_gradient(x):
    v = normal(N, D)
    gradient, g = slope(lambda s: pooled(s, v, x), ZERO), slope(after, (v + x).mean(0))
    equal(gradient, ((v - v.mean(0)) @ g / N**2).expand(N, N))
    column = normal(20, 1, N).expand(20, N, N)
    assert is_blind(gradient) and along(gradient, column).abs().mean() > 0.1


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rotary"])
def test_the_network_at_zero_scores_has_the_same_gradient(position):
    model = network(position=position)
    logits, cache = model.run_with_cache(TOKENS)
    g = (logits.softmax(-1) - F.one_hot(LABELS, 3)) @ model.classify.weight @ model.blocks[0].attn.W_O.mT
    v = cache["v", 0].transpose(1, 2)
    expected = torch.einsum("bhjd,hbd->bhj", v - v.mean(2, keepdim=True), g) / N**2
    column, near = normal(N).expand(N, N), dense(proximity(N))
    gradient = score_gradient(model, directions=[column, near])
    equal(gradient, expected[:, :, None].expand_as(gradient))
    assert is_blind(gradient) and along(gradient, column).abs().mean() > 0.1


def test_labels_see_n_minus_1_of_the_n_squared_directions():
    gradients = torch.stack([slope(lambda s: pooled(s, normal(N, D)), ZERO).flatten() for _ in range(3 * N)])
    _, size, basis = torch.linalg.svd(gradients, full_matrices=False)
    assert size[N - 2] > 0.01 * size[0] and size[N - 1] < 1e-12 * size[0]
    profile = normal(2 * N - 1)
    direction = (dense(profile) - dense(profile).mean(1, keepdim=True)).flatten()
    equal(visible(profile), (basis[: N - 1] @ direction).square().sum() / direction.square().sum())


# P2: any amplitude.
def test_a_doubly_stochastic_pattern_pools_to_the_mean_value():
    s, v = normal(N, N), normal(N, D)
    assert (attend(s, v).mean(0) - v.mean(0)).abs().max() > 0.02
    for _ in range(200):
        s = s - s.logsumexp(1, keepdim=True)
        s = s - s.logsumexp(0)
    equal(attend(s, v).mean(0), v.mean(0))


@pytest.mark.parametrize("amplitude", [0.5, 2.0])
def test_a_circulant_score_of_any_amplitude_changes_nothing(amplitude):
    model, v = network(n_heads=1), normal(N, D)
    circulant, toeplitz = amplitude * (proximity(N) + periodic(normal(N))), 2 * normal(2 * N - 1)
    equal(attend(dense(circulant), v).mean(0), v.mean(0))

    def logits(profile):
        hook = ("blocks.0.attn.hook_attn_scores", lambda s, hook: s + dense(profile))
        return model.run_with_hooks(TOKENS, fwd_hooks=[hook])

    equal(logits(circulant), model(TOKENS))
    assert (logits(toeplitz) - model(TOKENS)).abs().max() > 0.02
    assert is_blind(score_gradient(model, bias=circulant)) and sees(score_gradient(model, bias=toeplitz))


# P3: the weights.
def test_the_gradient_of_the_query_key_map_is_the_mean_token_times_one_vector():
    x, w_v = normal(N, D), normal(D, D)
    gradient = slope(lambda w: pooled(x @ w @ x.T, x @ w_v), torch.zeros(D, D).double())
    equal(gradient, torch.outer(x.mean(0), x.T.cov(correction=0) @ w_v @ slope(after, (x @ w_v).mean(0))))
    assert torch.linalg.matrix_rank(gradient) == 1

    model = network()
    F.cross_entropy(model(TOKENS[:1]), LABELS[:1]).backward()
    x = (model.embed(TOKENS[0]) + model.position.embed(N)).detach()
    attn, g = model.blocks[0].attn, model.classify.bias.grad @ model.classify.weight
    for head, gradient in enumerate(attn.q.weight.grad.unflatten(0, (attn.n_heads, -1)).mT):
        vector = x.T.cov(correction=0) @ attn.W_V[head] @ attn.W_O[head] @ g
        equal(gradient, torch.outer(x.mean(0), vector @ attn.W_K[head]) / attn.W_K.shape[-1] ** 0.5)


# P4: masked tokens.
def test_a_masked_query_attends_to_keys_whose_values_help_to_reconstruct_it():
    v, x = normal(N, D), normal(N, D)
    g = slope(lambda o: after((o - x)[MASKED]), v.mean(0).expand(N, D))  # 0 at unmasked tokens
    equal(slope(lambda s: after((attend(s, v) - x)[MASKED]), ZERO), g @ (v - v.mean(0)).T / N)

    model, mask = network(), MASKED.expand(6, N)
    logits, cache = model.run_with_cache(TOKENS, masked=mask, output="tokens")
    error = (logits.softmax(-1) - F.one_hot(TOKENS, SPEC.vocabulary)) * mask[..., None] / mask.sum()
    g, v = (error @ model.unembed.weight)[:, None] @ model.blocks[0].attn.W_O.mT, cache["v", 0].transpose(1, 2)
    gradient = score_gradient(model, lambda model: evaluate(model, Batch(TOKENS, LABELS), "masked", mask).mean)
    equal(gradient, g @ (v - v.mean(2, keepdim=True)).mT / N)
    assert sees(gradient) and is_blind(score_gradient(model))


def roots(gamma):
    """Return sequences [number, n, d] whose sum of a quadratic form is its exact expectation, without sampling."""
    n, _, d, _ = gamma.shape
    return torch.linalg.cholesky(gamma.transpose(1, 2).reshape(n * d, n * d)).T.unflatten(1, (n, d))


def centred(x):
    return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seen", [~MASKED, ~MASKED | MASKED], ids=["masked", "unmasked"])
def test_the_expected_descent_of_a_reconstruction_follows_the_autocovariance_of_the_data(sign, seen):
    step, w_v = torch.tensor([[0.8, 0.3], [-0.2, 0.6]]).double(), normal(2, 3)
    u = 0.1 * sign * w_v.T @ torch.tensor([[1.0, 0.2], [-0.2, 1.0]]).double()
    powers = [torch.linalg.matrix_power(step, lag) for lag in range(N)]  # E[x_{t + lag} x_t'], where E[x_t x_t'] = 1
    gamma = dense(torch.stack(powers[::-1] + [power.T for power in powers[1:]]))
    x = roots(gamma)

    def loss(s):
        return (attend(s, x * seen[:, None] @ w_v) @ u - x)[:, MASKED].square().sum() / 2 / MASKED.sum()

    follows = torch.einsum("ab,ijba->ij", w_v @ u, gamma) * seen
    # The second-order term in the readout is the same for all queries.
    common = torch.einsum("ab,kjba,k->j", w_v @ u @ u.T @ w_v.T, gamma, seen.double()) * seen / N
    descent = -slope(loss, ZERO)
    equal(descent, centred(follows - common) * MASKED[:, None] / (N * MASKED.sum()))
    diagonal, rows = descent[MASKED][:, MASKED].diagonal(), descent[MASKED]
    if seen.all():  # lag 0 has the largest descent
        assert torch.equal((sign * rows).amax(1), sign * diagonal)
    else:  # all masked keys are equal, including the token itself
        equal(rows[:, MASKED], diagonal[:, None].expand(3, 3))


@pytest.mark.parametrize("readout", [0.1, 1.0])
def test_reconstructing_ar1_data_descends_towards_proximity_or_away_with_a_negated_readout(readout):
    model = network(DataSpec(n=N, inputs="values", classes=2), n_heads=1, position="none")
    nn.init.zeros_(model.embed.weight[:, 1])  # a masked token has value 0
    value = (model.embed.weight[:, 0] @ model.blocks[0].attn.W_V[0] @ model.blocks[0].attn.W_O[0]).detach()
    gamma = 0.9 ** dense(geometry((N,)).distance)
    x, mask = roots(gamma[..., None, None])[..., 0], MASKED.expand(N, N)
    near = centred(-dense(geometry((N,)).distance)[MASKED][:, ~MASKED])

    def loss(model):
        return (model(x, masked=mask, output="tokens")[..., 0] - x)[mask].square().sum() / 2 / MASKED.sum()

    def descent(u):
        model.unembed.weight = nn.Parameter(u * value[None] / value.square().sum())
        return -score_gradient(model, loss).sum((0, 1))

    aligned, negated = descent(readout), descent(-readout)
    follows = centred(readout * gamma * ~MASKED) * MASKED[:, None] / (N * MASKED.sum())
    equal((aligned - negated) / 2, follows)
    assert along(centred(aligned[MASKED][:, ~MASKED]), near) > 0.5
    assert along(centred(negated[MASKED][:, ~MASKED]), near) < -0.5


# Each assumption violated, with a control.
@pytest.mark.parametrize(
    "overrides, module, nonlinear",
    [
        ({"mlp_ratio": 2}, "blocks.0.mlp", "activation"),
        ({"norm": "layer"}, "", "ln_final"),
        ({"norm": "layer", "norm_placement": "post"}, "blocks.0", "ln1"),
    ],
)
def test_a_nonlinearity_after_attention_sees_unless_there_is_no_residual(overrides, module, nonlinear):
    model = network(**overrides)
    assert sees(score_gradient(model))
    assert is_blind(score_gradient(model, residual=False))
    assert sees(score_gradient(model, residual=False, bias=proximity(N)))
    setattr(model.get_submodule(module), nonlinear, nn.Identity())
    assert is_blind(score_gradient(model)) and is_blind(score_gradient(model, bias=proximity(N)))


@pytest.mark.parametrize(
    "overrides",
    [{"pooling": "max"}, {"pooling": "last"}, {"pooling": "cls"}, {"causal": True}, {"position": "relative"}],
)
def test_other_poolings_causal_attention_and_position_biases_break_blindness(overrides):
    assert sees(score_gradient(network(**overrides))) and is_blind(score_gradient(network()))


def test_with_a_class_token_only_its_own_row_has_a_gradient_in_the_last_layer():
    model = network(pooling="cls", n_layers=2)
    last, first = score_gradient(model, layer=1), score_gradient(model, layer=0)
    assert (last[..., 1:, :] == 0).all() and (last[..., 0, :] != 0).all() and (first != 0).all()


def test_the_circulant_share_is_proportional_to_the_size_of_content_scores():
    model, query = network(), normal(D, D)

    def share(size):
        model.blocks[0].attn.q.weight = nn.Parameter(size * query)
        return circulant_share(score_gradient(model))

    assert share(0.0).max() < 1e-12 and share(0.3).mean() > 0.05
    assert share(2e-4) / share(1e-4) == pytest.approx(2, rel=0.01)


def test_the_first_of_two_linear_layers_is_blind_if_the_second_is_uniform():
    model = network(n_layers=2)
    assert is_blind(score_gradient(model, layer=0)) and is_blind(score_gradient(model, layer=1))
    nn.init.normal_(model.blocks[1].attn.q.weight)
    assert sees(score_gradient(model, layer=0))


def test_padding_that_is_attended_to_but_not_pooled_breaks_blindness():
    model, lengths, real = network(), torch.full((6,), N - 3), (torch.arange(N) < N - 3).expand(6, N)

    def attended(model):
        return F.cross_entropy(model.classify(model.pool(model.residual(TOKENS), lengths)), LABELS)

    assert sees(score_gradient(model, attended))
    assert is_blind(score_gradient(model, lambda model: labels(model, lengths=lengths), real=real)[..., :-3, :-3])


def test_unnormalised_attention_sees_the_sum_of_a_circulant_profile_but_not_its_shape():
    v, profile = normal(N, D), normal(N)
    equal((dense(periodic(profile)).sigmoid() @ v).mean(0), profile.sigmoid().sum() * v.mean(0))
    gradient = slope(lambda s: after((s.sigmoid() @ v).mean(0)), ZERO)
    assert along(gradient, dense(proximity(N) - 1)).abs() > 0.01 and not is_blind(gradient)
    assert along(gradient, dense(proximity(N))).abs() < 1e-12  # because proximity has mean 0
    assert is_blind(slope(lambda s: after((F.normalize(s.sigmoid(), p=1, dim=1) @ v).mean(0)), ZERO))


# Directions that labels see at any pattern, and their share of profiles that are not circulant.
def columns(pattern, direction):
    """Return 1'(A o (D - r 1')) with r_i = sum_k A_ik D_ik."""
    return (pattern * (direction - (pattern * direction).sum(-1, keepdim=True))).sum(-2)


def blind_part(pattern, direction):
    """Return the closest direction whose `columns` are zero."""
    matrix = (pattern[..., None, :, :] * (EYE[:, None] - pattern.mT[..., None])).flatten(
        -2
    )  # the linear map D -> columns
    seen = torch.linalg.pinv(matrix) @ columns(pattern, direction)[..., None]
    return direction - seen[..., 0].unflatten(-1, (N, N))


@pytest.mark.parametrize("causal", [False, True])
def test_labels_are_blind_to_a_direction_for_all_values_iff_its_columns_vanish(causal):
    s = normal(N, N).masked_fill(torch.ones(N, N).triu(1).bool() & causal, -math.inf)
    direction, w = normal(N, N), normal(D)
    blind, seen = blind_part(attend(s, EYE), direction), columns(attend(s, EYE), direction)
    assert columns(attend(s, EYE), blind).abs().max() < 1e-12 < 0.01 < seen.abs().max()
    for _ in range(5):
        assert along(slope(lambda s: pooled(s, normal(N, D)), s), blind).abs() < 1e-12
    gradient = slope(lambda s: attend(s, torch.outer(seen, w)).mean(0) @ w, s)  # values for which it is visible
    equal((gradient * direction).sum(), seen @ seen * (w @ w) / N)


def test_the_network_is_blind_to_the_same_directions_at_any_scores():
    model = network()
    nn.init.normal_(model.blocks[0].attn.q.weight)
    pattern, direction = model.run_with_cache(TOKENS)[1]["pattern", 0].detach(), normal(6, 2, N, N)
    blind = blind_part(pattern, direction)
    gradient = score_gradient(model, directions=[direction, blind])
    assert along(gradient, blind).abs().max() < 1e-12 and along(gradient, direction).abs().mean() > 0.02


def visible(profile):
    """Return the fraction of the energy of a row-centred profile that labels see, from its column sums."""
    line = geometry(((len(profile) + 1) // 2,))
    energy = line.count @ profile.square() - line.windows(profile).square().sum() / line.n
    return centred(line.windows_by_key(profile)).square().sum() / line.n / energy


@pytest.mark.parametrize("n", [32, 64, 128, 1024])
def test_labels_see_a_vanishing_part_of_a_short_profile_but_a_fixed_part_of_a_long_one(n):
    distance, twice = geometry((n,)).distance, geometry((2 * n,)).distance
    assert visible((-distance / 4).exp()) / visible((-twice / 4).exp()) == pytest.approx(4, rel=3 / n)
    assert visible((distance == 1).double()) == pytest.approx((n - 2) / ((n - 1) ** 3 + 1), rel=1e-11)  # 1 / n^2
    assert visible(-distance) == pytest.approx((n**2 - 4) / (9 * n**2 + 24), rel=1e-11)  # 1 / 9
    variance = 7 / 12 - math.pi**2 / 18  # over x of the integral of log |x - y| over y, both in [0, 1]
    limit = variance / (5 / 4 - variance)
    assert 0.028 < limit < visible(-(1 + distance).log()) < limit * (1 + 3 / n**0.5)
