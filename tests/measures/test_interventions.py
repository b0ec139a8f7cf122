import numpy as np
import pytest
import torch
from support import N, checkpoint, mean_profiles_of, means_of, parts_of

from attnprobe import interventions
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.geometry import geometry
from attnprobe.measures.driver import hidden_tokens, permutation
from attnprobe.measures.edits import shuffled
from attnprobe.networks import probe

FEW = {"sequences": 8, "nulls": 2}


def spread(model):
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def dense(kernel, grid):
    """Return [..., query, key] of a function of the offset, in a line or on a grid."""
    shape = grid or (N,)
    at = torch.cartesian_prod(*(torch.arange(side) for side in shape)).view(N, -1)
    step = at - at[:, None]
    place = torch.zeros(N, N, dtype=torch.long)
    for axis, side in enumerate(shape):
        place = place * (2 * side - 1) + step[..., axis] + side - 1
    return kernel[..., place]


def by_hooks(made, edit, layers, heads):
    """Return loss and accuracy of each sequence with ``edit(layer, scores)`` written into hook_attn_scores."""
    model, inputs = made.model, made.tokens(8)
    labels = torch.from_numpy(made.task.test.labels[:8]).long()

    def hook(scores, hook):
        layer = int(hook.name.split(".")[1])
        changed = scores.clone()
        p = model.n_prefix
        new = edit(layer, scores[..., p:, p:])
        changed[:, heads, p:, p:] = new[:, heads].to(scores).masked_fill(scores[:, heads, p:, p:].isinf(), -torch.inf)
        return changed

    with torch.no_grad():
        logits = model.run_with_hooks(
            inputs, fwd_hooks=[(f"blocks.{layer}.attn.hook_attn_scores", hook) for layer in layers]
        )
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return loss, (logits.argmax(-1) == labels).float()


KINDS = [
    {"position": "learned"},
    {"position": "sinusoidal", "norm_placement": "post", "pooling": "max"},
    {"position": "rotary", "norm": "rms"},
    {"position": "relative"},
    {"position": "alibi", "causal": True},
    {"position": "learned", "score_bias": "fixed", "grid": (3, 4)},
    {"position": "none", "causal": True, "pooling": "last"},
]


@pytest.mark.parametrize("named", KINDS, ids=str)
def test_interventions_are_what_hooks_on_the_scores_do(named):
    """Every head, layer and all at once, against n x n scores that are edited by hand."""
    named = dict(named)
    grid = named.pop("grid", None)
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    made = checkpoint(data, n_layers=2, edit=spread, **named)
    result = interventions(made, length_scale=1.5, **FEW)
    model, inputs = made.model, made.tokens(8)
    train = made.task.train
    of = means_of(model, [train.tensor(slice(8))])
    kernels = mean_profiles_of(model, train, 8)[-1]
    bias = model.bias(N)
    bias = torch.zeros(2, 2 * N - 1) if bias is None else bias.detach()
    line = None if bias.shape[1] == 2 * N - 1 else grid
    own = dense(bias, line)
    pp = []
    for found in parts_of(model, inputs, of):
        pp.append(torch.einsum("bhid,bhjd->bhij", found.q_position, found.k_position) / 8**0.5 + own)
    far = dense(-geometry(grid or (N,)).distance / 1.5, grid)
    edits = {
        "uniform_attention": lambda layer, s: torch.zeros_like(s),
        "keep_toeplitz": lambda layer, s: dense(kernels[layer], grid).expand_as(s),
        "ablate_toeplitz": lambda layer, s: s - dense(kernels[layer], grid),
        "keep_position": lambda layer, s: pp[layer],
        "ablate_position": lambda layer, s: s - pp[layer],
        "impose_proximity": lambda layer, s: s + far,
    }
    assert set(edits) <= set(result["intervention"].values.tolist())
    plain, right = by_hooks(made, lambda layer, s: s, [0], [0])
    assert float(result["base_loss"]) == pytest.approx(float(plain.mean()), rel=1e-5)
    assert float(result["base_accuracy"]) == pytest.approx(float(right.mean()))
    scopes = [("", [layer], [head]) for layer in range(2) for head in range(2)]
    scopes += [("layer_", [layer], [0, 1]) for layer in range(2)] + [("all_", [0, 1], [0, 1])]
    for name, edit in edits.items():
        for kind, layers, heads in scopes:
            loss, correct = by_hooks(made, edit, layers, heads)
            at = {"": {"layer": layers[0], "head": heads[0]}, "layer_": {"layer": layers[0]}, "all_": {}}[kind]
            found = result.sel(intervention=name, **at)
            assert float(found[f"{kind}loss"]) == pytest.approx(float(loss.mean()), rel=1e-4), (name, kind)
            assert float(found[f"{kind}accuracy"]) == pytest.approx(float(correct.mean())), (name, kind)
            change = (loss - plain).double()
            scale = {"rel": 1e-3, "abs": 1e-5}
            assert float(found[f"{kind}loss_change"]) == pytest.approx(float(change.mean()), **scale)
            assert float(found[f"{kind}loss_change_std"]) == pytest.approx(float(change.std()), **scale)


@pytest.mark.parametrize("position", ["rotary", "alibi", "relative"])
def test_moving_all_positions_is_moving_the_tokens(position):
    """A mean-pooled network of one layer cannot tell the one from the other, where positions act in scores alone."""
    made = checkpoint(position=position, edit=spread)
    result = interventions(made, **FEW)
    labels = torch.from_numpy(made.task.test.labels[:8]).long()
    shift = (torch.arange(N) + N // 2) % N
    with torch.no_grad():
        logits = made.model(made.tokens(8)[:, shift.argsort()])
    found = float(result["all_loss"].sel(intervention="shift_positions"))
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert abs(found - float(result["base_loss"])) > 1e-6
    order = torch.from_numpy(permutation("interventions", 0, 0, N))
    with torch.no_grad():
        logits = made.model(made.tokens(8)[:, order.argsort()])
    found = float(result["all_loss"].sel(intervention="permute_positions"))
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_moved_vectors_are_those_of_a_network_whose_queries_and_keys_see_them_moved(norm):
    made = checkpoint(position="learned", edit=spread, norm=norm)
    result = interventions(made, **FEW)
    model, inputs = made.model, made.tokens(8)
    shift = (torch.arange(N) + N // 2) % N
    of = means_of(model, [made.task.train.tensor(slice(8))])
    (found,) = parts_of(model, inputs, of)
    q = found.scores.q - found.q_position + found.q_position[:, :, shift]
    k = found.scores.k - found.k_position + found.k_position[:, :, shift]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    loss, _ = by_hooks(made, lambda layer, s: scores, [0], [0, 1])
    assert float(result["all_loss"].sel(intervention="shift_positions")) == pytest.approx(float(loss.mean()), rel=1e-4)


def test_the_null_is_as_large_an_edit_elsewhere():
    """The first draw by hand: its permutation of the positions, its offsets."""
    made = checkpoint(edit=spread, position="learned")
    result = interventions(made, **FEW)
    rows = torch.arange(8)
    model, inputs = made.model, made.tokens(8)[rows]
    labels = torch.from_numpy(made.task.test.labels[:8]).long()[rows]
    (found,) = parts_of(model, inputs, means_of(model, [made.task.train.tensor(slice(8))]))
    order = torch.from_numpy(permutation("interventions", 0, 0, N))
    moved = torch.einsum("bhid,bhjd->bhij", found.q_position[:, :, order], found.k_position[:, :, order]) / 8**0.5
    for name, edit in (("keep_position", lambda s: moved), ("ablate_position", lambda s: s - moved)):
        hook = [("blocks.0.attn.hook_attn_scores", lambda s, hook, edit=edit: edit(s).to(s))]
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hook), labels)
        null = result["all_loss_null"].sel(null="permuted", draw=0, intervention=name)
        assert float(null) == pytest.approx(float(loss), rel=1e-4), name
    for places in (geometry((N,)), geometry((3, 4), True)):
        f = torch.randn(2, len(places.count), dtype=torch.float64) * places.seen
        g = shuffled(f, places, np.random.default_rng(0))
        torch.testing.assert_close(places.inner(g, g), places.inner(f, f))
        at = places.seen
        ratio = g[:, at].sort().values / f[:, at].sort().values
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # the same numbers, all times one factor
        assert not torch.allclose(g, f)


def test_hidden_tokens_are_hidden_in_what_is_edited():
    """Masked reconstruction, with the position parts of the passes whose tokens are hidden."""
    made = checkpoint(edit=spread, position="learned")
    object.__setattr__(made, "objective", "masked")
    result = interventions(made, **FEW)
    model, inputs, mask = made.model, made.tokens(8), torch.from_numpy(hidden_tokens(probe(made), 0, 8))
    (found,) = parts_of(model, inputs, means_of(model, [made.task.train.tensor(slice(8))]), mask)
    pp = torch.einsum("bhid,bhjd->bhij", found.q_position, found.k_position) / model.cfg.d_head**0.5
    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda s, hook: (s - pp).to(s))]):
        logits = model(inputs, masked=mask, output="tokens")
    loss = [torch.nn.functional.cross_entropy(logits[i, mask[i]], inputs[i, mask[i]]).item() for i in range(8)]
    found = result["all_loss"].sel(intervention="ablate_position")
    assert float(found) == pytest.approx(np.mean(loss), rel=1e-5)


def test_a_token_in_front_keeps_its_query_and_key():
    made = checkpoint(edit=spread, position="learned", pooling="cls")
    result = interventions(made, **FEW)
    model, inputs = made.model, made.tokens(8)
    (found,) = parts_of(model, inputs, means_of(model, [made.task.train.tensor(slice(8))]))
    _, cache = model.run_with_cache(inputs)
    q, k = (cache[f"blocks.0.attn.hook_{side}"].transpose(1, 2).clone() for side in "qk")
    q[:, :, 1:], k[:, :, 1:] = found.q_position.to(q), found.k_position.to(k)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    hooks = [("blocks.0.attn.hook_attn_scores", lambda s, hook: scores)]
    labels = torch.from_numpy(made.task.test.labels[:8]).long()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hooks), labels)
    assert float(result["all_loss"].sel(intervention="keep_position")) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_keeping_the_bias_keeps_everything_where_the_score_is_the_bias(position):
    def edit(model):
        spread(model)
        for weight in model.block(0).attn.q.parameters():
            weight.zero_()

    result = interventions(checkpoint(edit=edit, position=position, pooling="cls"), **FEW)
    assert abs(float(result["all_loss_change"].sel(intervention="keep_position"))) < 1e-6


def test_kernels_of_short_sequences_are_those_of_their_offsets():
    made = checkpoint(edit=spread, position="relative", lengths=np.full(30, 5))
    result = interventions(made, **FEW)
    model, inputs = made.model, made.tokens(8)[:, :5]
    kernel = mean_profiles_of(model, made.task.train, 8)[-1][0]
    at = torch.arange(5) - torch.arange(5)[:, None] + N - 1
    hooks = [("blocks.0.attn.hook_attn_scores", lambda s, hook: kernel[:, at].expand_as(s).to(s))]
    labels = torch.from_numpy(made.task.test.labels[:8]).long()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hooks), labels)
    assert float(result["all_loss"].sel(intervention="keep_toeplitz")) == pytest.approx(float(loss), rel=1e-4)


def test_a_planted_cause_is_found_in_its_head():
    """The label is the token after the single marker; head 0 passes one place ahead through positions alone."""
    n, classes = N, 3
    data = DataSpec(n=n, inputs="tokens", classes=classes, vocabulary=6)

    def edit(model):
        for weight in model.parameters():
            weight.zero_()
        attention = model.block(0).attn
        # coordinates: 0-5 token, 6-17 position, 18-20 what was read
        model.embed.weight[:6, :6] = torch.eye(6)
        model.position.weight[:, 6:18] = torch.eye(n)
        attention.q.weight[:12, 6:18] = 60 * torch.eye(n).roll(1, 0)
        attention.k.weight[:12, 6:18] = torch.eye(n)
        attention.v.weight[:3, :3] = torch.eye(3)
        attention.o.weight[18:21, :3] = torch.eye(3)
        # a token reads what follows it; only the marker (token 5) lets it through to the readout
        mlp = model.block(0).mlp
        mlp.into.weight[:3, 18:21] = 30 * torch.eye(3)
        mlp.into.weight[:3, 5] = 30
        mlp.into.bias[:3] = -45
        mlp.out.weight[21:24, :3] = torch.eye(3)
        model.classify.weight[:, 21:24] = 100 * torch.eye(3)

    made = checkpoint(data, edit=edit, d_model=48, n_heads=2, norm="none", activation="relu", mlp_ratio=1)
    rng = np.random.default_rng(0)
    for split in (made.task.train, made.task.test):
        split.inputs[:] = rng.integers(0, 3, size=split.inputs.shape)
        where = rng.integers(0, n - 1, size=len(split))
        split.inputs[np.arange(len(split)), where] = 5
        split.labels[:] = split.inputs[np.arange(len(split)), where + 1]
    result = interventions(made, sequences=30)
    assert float(result["base_accuracy"]) == 1
    head = result.sel(layer=0)
    for name in ("uniform_attention", "ablate_toeplitz", "ablate_position", "permute_positions"):
        assert float(head["accuracy"].sel(head=0, intervention=name)) < 0.7, name
        assert float(head["accuracy_change_interval"].sel(head=0, intervention=name, bound="upper")) < 0
    for name in ("keep_toeplitz", "keep_position"):
        assert float(head["accuracy"].sel(head=0, intervention=name)) == 1, name
    assert not head["accuracy_change"].sel(head=1).values.any()
    null = head["accuracy_change_null"].sel(null="permuted", head=0)
    assert (null.sel(intervention="keep_toeplitz").mean("draw") < -0.3).all()
    assert (null.sel(intervention="ablate_toeplitz").mean("draw") > -0.3).all()


def test_a_donor_gives_its_scores_or_its_maps(tmp_path):
    made, other = (checkpoint(position="learned", edit=edit) for edit in (None, spread))
    path = tmp_path / "donor.pt"
    other.save(path)
    result = interventions(made, patch_from=path, **FEW)
    with torch.no_grad():
        _, cache = other.model.run_with_cache(made.tokens(8))
    scores = cache["blocks.0.attn.hook_attn_scores"]
    for head in range(2):
        loss, _ = by_hooks(made, lambda layer, s: scores, [0], [head])
        found = result["loss"].sel(intervention="patch_scores", layer=0, head=head)
        assert float(found) == pytest.approx(float(loss.mean()), rel=1e-5)
    attention, theirs = made.model.block(0).attn, other.model.block(0).attn
    with torch.no_grad():
        for side in ("q", "k"):
            for kind in ("weight", "bias"):
                getattr(getattr(attention, side), kind)[8:] = getattr(getattr(theirs, side), kind)[8:]
        labels = torch.from_numpy(made.task.test.labels[:8]).long()
        loss = torch.nn.functional.cross_entropy(made.model(made.tokens(8)), labels)
    found = result["loss"].sel(intervention="patch_qk", layer=0, head=1)
    assert float(found) == pytest.approx(float(loss), rel=1e-5)


def test_its_own_donor_changes_nothing(tmp_path):
    made = checkpoint(position="relative", n_layers=2)
    made.save(tmp_path / "x.pt")
    result = interventions(made, patch_from=tmp_path / "x.pt", **FEW).sel(intervention=["patch_scores", "patch_qk"])
    assert np.abs(result["loss_change"]).max() < 1e-6 and np.abs(result["all_loss_change"]).max() < 1e-6


def test_without_positions_there_are_none_to_edit():
    names = interventions(checkpoint(position="none"), **FEW)["intervention"].values.tolist()
    assert names == ["uniform_attention", "keep_toeplitz", "ablate_toeplitz", "impose_proximity"]
    grid = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=(3, 4))
    for made in (checkpoint(position="alibi", causal=True), checkpoint(grid, causal=True, score_bias="fixed")):
        causal = interventions(made, **FEW)["intervention"].values.tolist()
        assert "keep_position" in causal and "permute_positions" not in causal


def test_the_network_is_left_as_it_was(spt_run):
    made = spt_run.checkpoints[-1]
    before = made.model(made.tokens(4))
    interventions(made, **FEW)
    assert torch.equal(made.model(made.tokens(4)), before)


def test_self_pretraining_is_judged_by_its_own_objective(spt_run):
    result = interventions(spt_run.checkpoints[1], **FEW)
    assert result.attrs["of_objective"] == "masked"
    assert np.isfinite(result["accuracy_change"]).all()


def test_sequences_of_any_length_and_a_token_in_front_take_part():
    lengths = np.array([N, 5] * 15)
    for named in ({"pooling": "cls"}, {"position": "rotary"}, {"position": "relative"}):
        result = interventions(checkpoint(lengths=lengths, n_layers=2, **named), **FEW)
        assert np.isfinite(result["loss_change"]).all()
        own = result["all_loss"].sel(intervention="impose_proximity")
        assert abs(float(own) - float(result["base_loss"])) > 1e-7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length_scale": 0.0}, "length_scale=0.0: must be above 0"),
        ({"sequences": 1}, "sequences=1: an interval needs at least 2"),
        ({"patch_from": {"d_model": 32}}, "has d_model=32, not 16"),
        ({"patch_from": {"causal": True}}, "has causal=True, not False"),
        ({"patch_from": {"pooling": "cls"}}, "only one of the two networks puts .CLS. in front"),
        (
            {"patch_from": {"data": DataSpec(n=4, inputs="tokens", classes=2, vocabulary=6)}},
            "was trained on other data",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(options, said, tmp_path):
    if "patch_from" in options:
        checkpoint(**options["patch_from"]).save(tmp_path / "x.pt")
        options = {"patch_from": tmp_path / "x.pt"}
    with pytest.raises(UsageError, match=said):
        interventions(checkpoint(), **FEW | options)
