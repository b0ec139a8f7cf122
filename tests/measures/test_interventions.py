from dataclasses import replace

import numpy as np
import pytest
import torch
from support import N, batch_of, checkpoint, mean_profiles_of, means_of, parts_of

from attnprobe import interventions
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.geometry import geometry
from attnprobe.measures.driver import masked_tokens, permutation
from attnprobe.measures.edits import shuffled
from attnprobe.networks import probe

FEW = {"sequences": 8, "nulls": 2}


def spread(model):
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def dense(profile, grid):
    """Evaluate a function of the offset at all pairs, [..., query, key], in a line or on a grid."""
    shape = grid or (N,)
    positions = torch.cartesian_prod(*(torch.arange(side) for side in shape)).view(N, -1)
    offset = positions - positions[:, None]
    index = torch.zeros(N, N, dtype=torch.long)
    for axis, side in enumerate(shape):
        index = index * (2 * side - 1) + offset[..., axis] + side - 1
    return profile[..., index]


def by_hooks(ckpt, edit, layers, heads):
    """Return loss and accuracy of each sequence with ``edit(layer, scores)`` applied by hook_attn_scores."""
    model, inputs = ckpt.model, ckpt.tokens(8)
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()

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


EDITED = [
    *("uniform_attention", "keep_toeplitz", "ablate_toeplitz", "keep_position", "ablate_position", "impose_proximity"),
    *("ablate_content", "ablate_content_position", "ablate_position_content"),
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_interventions_match_hooks_on_the_scores(settings):
    """Every head, every layer and all heads, against n x n scores edited by hooks."""
    settings = dict(settings)
    grid = settings.pop("grid", None)
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    ckpt = checkpoint(data, n_layers=2, edit=spread, **settings)
    result = interventions(ckpt, length_scale=1.5, edits=tuple(EDITED), **FEW)
    model, inputs = ckpt.model, ckpt.tokens(8)
    train = ckpt.task.train
    of = means_of(model, [train.tensor(slice(8))])
    profiles = mean_profiles_of(model, train, 8)[-1]
    bias = model.bias(N)
    bias = torch.zeros(2, 2 * N - 1) if bias is None else bias.detach()
    line = None if bias.shape[1] == 2 * N - 1 else grid
    own = dense(bias, line)
    pp, cc, cp, pc = [], [], [], []
    for parts in parts_of(model, inputs, of):
        q, k = parts.q_position, parts.k_position
        q_content, k_content = parts.scores.q - q, parts.scores.k - k
        for term, (left, right) in (
            (pp, (q, k)),
            (cc, (q_content, k_content)),
            (cp, (q_content, k)),
            (pc, (q, k_content)),
        ):
            term.append(torch.einsum("bhid,bhjd->bhij", left, right) / 8**0.5)
        pp[-1] = pp[-1] + own
    far = dense(-geometry(grid or (N,)).distance / 1.5, grid)
    edits = {
        "uniform_attention": lambda layer, s: torch.zeros_like(s),
        "keep_toeplitz": lambda layer, s: dense(profiles[layer], grid).expand_as(s),
        "ablate_toeplitz": lambda layer, s: s - dense(profiles[layer], grid),
        "keep_position": lambda layer, s: pp[layer],
        "ablate_position": lambda layer, s: s - pp[layer],
        "impose_proximity": lambda layer, s: s + far,
        "ablate_content": lambda layer, s: s - cc[layer],
        "ablate_content_position": lambda layer, s: s - cp[layer],
        "ablate_position_content": lambda layer, s: s - pc[layer],
    }
    assert list(edits) == EDITED
    plain, right = by_hooks(ckpt, lambda layer, s: s, [0], [0])
    assert float(result["base_loss"]) == pytest.approx(float(plain.mean()), rel=1e-5)
    assert float(result["base_accuracy"]) == pytest.approx(float(right.mean()))
    scopes = [("", [layer], [head]) for layer in range(2) for head in range(2)]
    scopes += [("layer_", [layer], [0, 1]) for layer in range(2)] + [("all_", [0, 1], [0, 1])]
    for name, edit in edits.items():
        for kind, layers, heads in scopes:
            if "content" in name and kind == "all_":
                continue  # an edited first layer changes the content of the second
            loss, correct = by_hooks(ckpt, edit, layers, heads)
            at = {"": {"layer": layers[0], "head": heads[0]}, "layer_": {"layer": layers[0]}, "all_": {}}[kind]
            actual = result.sel(intervention=name, **at)
            assert float(actual[f"{kind}loss"]) == pytest.approx(float(loss.mean()), rel=1e-4), (name, kind)
            assert float(actual[f"{kind}accuracy"]) == pytest.approx(float(correct.mean())), (name, kind)
            change = (loss - plain).double()
            scale = {"rel": 1e-3, "abs": 1e-5}
            assert float(actual[f"{kind}loss_change"]) == pytest.approx(float(change.mean()), **scale)
            assert float(actual[f"{kind}loss_change_std"]) == pytest.approx(float(change.std()), **scale)


@pytest.mark.parametrize("position", ["rotary", "alibi", "relative"])
def test_moving_all_positions_equals_moving_the_tokens(position):
    """In a mean-pooled network of one layer both are equivalent, if positions affect only the scores."""
    ckpt = checkpoint(position=position, edit=spread)
    result = interventions(ckpt, **FEW)
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()
    shift = (torch.arange(N) + N // 2) % N
    with torch.no_grad():
        logits = ckpt.model(ckpt.tokens(8)[:, shift.argsort()])
    actual = float(result["all_loss"].sel(intervention="shift_positions"))
    assert actual == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert abs(actual - float(result["base_loss"])) > 1e-6
    order = torch.from_numpy(permutation("interventions", 0, 0, N))
    with torch.no_grad():
        logits = ckpt.model(ckpt.tokens(8)[:, order.argsort()])
    actual = float(result["all_loss"].sel(intervention="permute_positions"))
    assert actual == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def plain_norm(x, weights, name, kind):
    """Return a norm with the weights of a state dict, from its definition."""
    if kind == "none":
        return x
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights.get(
        f"{name}.bias", 0.0
    )


def plain_logits(ckpt, vectors, tokens, heads, moved):
    """Return the label logits of one sequence in plain torch, with position ``moved[i]`` for token i of some heads.

    One layer with two heads; only queries and keys of these heads read the moved vectors.
    """
    cfg, w = ckpt.model.cfg, {name: x.double() for name, x in ckpt.model.state_dict().items()}
    embedded, prefix = w["embed.weight"][tokens], int(cfg.pooling == "cls")
    if prefix:
        embedded = torch.cat([w["cls"][None], embedded])
        moved = torch.cat([torch.tensor([0]), moved + 1])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return plain_norm(x, w, name, cfg.norm)

    pre = cfg.norm_placement == "pre"
    stay, x = torch.arange(len(embedded)), embedded + vectors[: len(embedded)]
    outputs = []
    for head, part in enumerate((slice(0, 8), slice(8, 16))):
        shown = embedded + vectors[moved if head in heads else stay]
        query_key, value = (norm(y, "blocks.0.ln1") if pre else y for y in (shown, x))
        q, k = (linear(query_key, f"blocks.0.attn.{side}")[:, part] for side in "qk")
        scores = q @ k.T / 8**0.5
        if cfg.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        outputs.append(scores.softmax(-1) @ linear(value, "blocks.0.attn.v")[:, part])
    out = linear(torch.cat(outputs, -1), "blocks.0.attn.o")

    def mlp(y):
        return linear(torch.nn.functional.gelu(linear(y, "blocks.0.mlp.into")), "blocks.0.mlp.out")

    if pre:
        x = x + out
        x = norm(x + mlp(norm(x, "blocks.0.ln2")), "ln_final")
    else:
        x = norm(x + out, "blocks.0.ln1")
        x = norm(x + mlp(x), "blocks.0.ln2")
    return linear(x[0] if prefix else x.mean(0), "classify")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "rms", "pooling": "cls"},
        {"norm": "none"},
        {"norm_placement": "post", "pooling": "cls"},
        {"position": "sinusoidal", "causal": True},
        {"lengths": np.array([N, 7] * 15)},
    ],
    ids=str,
)
def test_moved_position_vectors_are_normalised_again_in_the_first_layer(settings):
    """Against the network written out in float64, with the moved vectors in the queries and keys of some heads."""
    ckpt = checkpoint(**{"position": "learned", "edit": spread, **settings})
    subject = probe(ckpt)
    result = interventions(replace(subject, network=subject.network.in_double()), **FEW)
    prefix = ckpt.model.n_prefix
    vectors = ckpt.model.double().position.embed(N + prefix).detach()
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()
    lengths = settings.get("lengths", np.full(30, N))[:8]
    order = permutation("interventions", 0, 0, N)
    for name in ("shift_positions", "permute_positions"):
        for kind, heads in (("", [0]), ("", [1]), ("all_", [0, 1])):
            losses = []
            for tokens, label, n in zip(ckpt.tokens(8), labels, lengths, strict=True):
                shifted = (torch.arange(n) + n // 2) % n
                moved = shifted if name == "shift_positions" else torch.from_numpy(order[order < n])
                logits = plain_logits(ckpt, vectors, tokens[:n], heads, moved)
                losses.append(float(torch.nn.functional.cross_entropy(logits, label)))
            at = {"layer": 0, "head": heads[0]} if not kind else {}
            found = float(result[f"{kind}loss"].sel(intervention=name, **at))
            assert found == pytest.approx(np.mean(losses), rel=1e-9), (name, heads)
            assert abs(found - float(result["base_loss"])) > 1e-4


def test_masked_tokens_keep_the_mask_embedding_when_positions_move():
    ckpt = checkpoint(edit=spread, position="learned")
    network = probe(ckpt).network
    mask = torch.from_numpy(masked_tokens(probe(ckpt), 0, 8))
    batch = batch_of(ckpt.tokens(8))
    caught = []

    def keep(heads):
        caught.append(heads.scores)
        return heads.attend()

    with torch.no_grad(), network.attending(keep):
        network.predictions(batch, "masked", mask)
    q, k = network.with_positions(batch, torch.arange(N), mask)
    torch.testing.assert_close((q, k), (caught[0].q, caught[0].k))


def test_deeper_layers_move_the_mean_at_each_position():
    ckpt = checkpoint(position="learned", edit=spread, n_layers=2)
    result = interventions(ckpt, **FEW)
    shift = (torch.arange(N) + N // 2) % N
    of = means_of(ckpt.model, [ckpt.task.train.tensor(slice(8))])
    parts = parts_of(ckpt.model, ckpt.tokens(8), of)[1]
    q = parts.scores.q - parts.q_position + parts.q_position[:, :, shift]
    k = parts.scores.k - parts.k_position + parts.k_position[:, :, shift]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    loss, _ = by_hooks(ckpt, lambda layer, s: scores, [1], [0, 1])
    found = float(result["layer_loss"].sel(intervention="shift_positions", layer=1))
    assert found == pytest.approx(float(loss.mean()), rel=1e-4)


def test_the_null_is_an_edit_of_the_same_norm_with_permuted_values():
    """The first draw, from its permutation of the positions and of the offsets."""
    ckpt = checkpoint(edit=spread, position="learned")
    result = interventions(ckpt, **FEW)
    rows = torch.arange(8)
    model, inputs = ckpt.model, ckpt.tokens(8)[rows]
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()[rows]
    (parts,) = parts_of(model, inputs, means_of(model, [ckpt.task.train.tensor(slice(8))]))
    order = torch.from_numpy(permutation("interventions", 0, 0, N))
    moved = torch.einsum("bhid,bhjd->bhij", parts.q_position[:, :, order], parts.k_position[:, :, order]) / 8**0.5
    for name, edit in (("keep_position", lambda s: moved), ("ablate_position", lambda s: s - moved)):
        hook = [("blocks.0.attn.hook_attn_scores", lambda s, hook, edit=edit: edit(s).to(s))]
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hook), labels)
        null = result["all_loss_null"].sel(null="permuted", draw=0, intervention=name)
        assert float(null) == pytest.approx(float(loss), rel=1e-4), name
    for pairs in (geometry((N,)), geometry((3, 4), True)):
        f = torch.randn(2, len(pairs.count), dtype=torch.float64) * pairs.seen
        g = shuffled(f, pairs, np.random.default_rng(0))
        torch.testing.assert_close(pairs.inner(g, g), pairs.inner(f, f))
        visible = pairs.seen
        ratio = g[:, visible].sort().values / f[:, visible].sort().values
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # the same values up to one factor
        assert not torch.allclose(g, f)


def test_edits_under_masked_reconstruction_mask_the_tokens():
    """The position parts are those of forward passes with masked tokens."""
    ckpt = checkpoint(edit=spread, position="learned")
    object.__setattr__(ckpt, "objective", "masked")
    result = interventions(ckpt, **FEW)
    model, inputs, mask = ckpt.model, ckpt.tokens(8), torch.from_numpy(masked_tokens(probe(ckpt), 0, 8))
    (parts,) = parts_of(model, inputs, means_of(model, [ckpt.task.train.tensor(slice(8))]), mask)
    pp = torch.einsum("bhid,bhjd->bhij", parts.q_position, parts.k_position) / model.cfg.d_head**0.5
    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda s, hook: (s - pp).to(s))]):
        logits = model(inputs, masked=mask, output="tokens")
    loss = [torch.nn.functional.cross_entropy(logits[i, mask[i]], inputs[i, mask[i]]).item() for i in range(8)]
    edited_loss = result["all_loss"].sel(intervention="ablate_position")
    assert float(edited_loss) == pytest.approx(np.mean(loss), rel=1e-5)


def test_a_prepended_token_keeps_its_query_and_key():
    ckpt = checkpoint(edit=spread, position="learned", pooling="cls")
    result = interventions(ckpt, **FEW)
    model, inputs = ckpt.model, ckpt.tokens(8)
    (parts,) = parts_of(model, inputs, means_of(model, [ckpt.task.train.tensor(slice(8))]))
    _, cache = model.run_with_cache(inputs)
    q, k = (cache[f"blocks.0.attn.hook_{side}"].transpose(1, 2).clone() for side in "qk")
    q[:, :, 1:], k[:, :, 1:] = parts.q_position.to(q), parts.k_position.to(k)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    hooks = [("blocks.0.attn.hook_attn_scores", lambda s, hook: scores)]
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hooks), labels)
    assert float(result["all_loss"].sel(intervention="keep_position")) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_keep_position_has_no_effect_if_the_score_is_the_bias(position):
    def edit(model):
        spread(model)
        for weight in model.block(0).attn.q.parameters():
            weight.zero_()

    result = interventions(checkpoint(edit=edit, position=position, pooling="cls"), **FEW)
    assert abs(float(result["all_loss_change"].sel(intervention="keep_position"))) < 1e-6


def test_short_sequences_use_the_profile_at_their_offsets():
    ckpt = checkpoint(edit=spread, position="relative", lengths=np.full(30, 5))
    result = interventions(ckpt, **FEW)
    model, inputs = ckpt.model, ckpt.tokens(8)[:, :5]
    profile = mean_profiles_of(model, ckpt.task.train, 8)[-1][0]
    index = torch.arange(5) - torch.arange(5)[:, None] + N - 1
    hooks = [("blocks.0.attn.hook_attn_scores", lambda s, hook: profile[:, index].expand_as(s).to(s))]
    labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.run_with_hooks(inputs, fwd_hooks=hooks), labels)
    assert float(result["all_loss"].sel(intervention="keep_toeplitz")) == pytest.approx(float(loss), rel=1e-4)


def test_a_planted_cause_is_found_only_in_its_head():
    """The label is the token after the only marker; head 0 attends to the next token by position only."""
    n, classes = N, 3
    data = DataSpec(n=n, inputs="tokens", classes=classes, vocabulary=6)

    def edit(model):
        for weight in model.parameters():
            weight.zero_()
        attention = model.block(0).attn
        # coordinates: 0-5 token, 6-17 position, 18-20 attention output
        model.embed.weight[:6, :6] = torch.eye(6)
        model.position.weight[:, 6:18] = torch.eye(n)
        attention.q.weight[:12, 6:18] = 60 * torch.eye(n).roll(1, 0)
        attention.k.weight[:12, 6:18] = torch.eye(n)
        attention.v.weight[:3, :3] = torch.eye(3)
        attention.o.weight[18:21, :3] = torch.eye(3)
        # each token reads the next one; the MLP passes it on to the output head at the marker (token 5) only
        mlp = model.block(0).mlp
        mlp.into.weight[:3, 18:21] = 30 * torch.eye(3)
        mlp.into.weight[:3, 5] = 30
        mlp.into.bias[:3] = -45
        mlp.out.weight[21:24, :3] = torch.eye(3)
        model.classify.weight[:, 21:24] = 100 * torch.eye(3)

    ckpt = checkpoint(data, edit=edit, d_model=48, n_heads=2, norm="none", activation="relu", mlp_ratio=1)
    rng = np.random.default_rng(0)
    for split in (ckpt.task.train, ckpt.task.test):
        split.inputs[:] = rng.integers(0, 3, size=split.inputs.shape)
        where = rng.integers(0, n - 1, size=len(split))
        split.inputs[np.arange(len(split)), where] = 5
        split.labels[:] = split.inputs[np.arange(len(split)), where + 1]
    result = interventions(ckpt, sequences=30)
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


def test_patching_scores_and_maps(tmp_path):
    ckpt, other = (checkpoint(position="learned", edit=edit) for edit in (None, spread))
    path = tmp_path / "other.pt"
    other.save(path)
    result = interventions(ckpt, patch_from=path, **FEW)
    with torch.no_grad():
        _, cache = other.model.run_with_cache(ckpt.tokens(8))
    scores = cache["blocks.0.attn.hook_attn_scores"]
    for head in range(2):
        loss, _ = by_hooks(ckpt, lambda layer, s: scores, [0], [head])
        actual = result["loss"].sel(intervention="patch_scores", layer=0, head=head)
        assert float(actual) == pytest.approx(float(loss.mean()), rel=1e-5)
    attention, theirs = ckpt.model.block(0).attn, other.model.block(0).attn
    with torch.no_grad():
        for side in ("q", "k"):
            for kind in ("weight", "bias"):
                getattr(getattr(attention, side), kind)[8:] = getattr(getattr(theirs, side), kind)[8:]
        labels = torch.from_numpy(ckpt.task.test.labels[:8]).long()
        loss = torch.nn.functional.cross_entropy(ckpt.model(ckpt.tokens(8)), labels)
    actual = result["loss"].sel(intervention="patch_qk", layer=0, head=1)
    assert float(actual) == pytest.approx(float(loss), rel=1e-5)


def test_patching_from_the_same_network_has_no_effect(tmp_path):
    ckpt = checkpoint(position="relative", n_layers=2)
    ckpt.save(tmp_path / "x.pt")
    result = interventions(ckpt, patch_from=tmp_path / "x.pt", **FEW).sel(intervention=["patch_scores", "patch_qk"])
    assert np.abs(result["loss_change"]).max() < 1e-6 and np.abs(result["all_loss_change"]).max() < 1e-6


def test_interventions_on_positions_require_positions():
    names = interventions(checkpoint(position="none"), **FEW)["intervention"].values.tolist()
    assert names == ["uniform_attention", "keep_toeplitz", "ablate_toeplitz", "impose_proximity"]
    grid = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=(3, 4))
    for ckpt in (checkpoint(position="alibi", causal=True), checkpoint(grid, causal=True, score_bias="fixed")):
        causal = interventions(ckpt, **FEW)["intervention"].values.tolist()
        assert "keep_position" in causal and "permute_positions" not in causal


def test_the_network_is_unchanged(spt_run):
    ckpt = spt_run.checkpoints[-1]
    before = ckpt.model(ckpt.tokens(4))
    interventions(ckpt, **FEW)
    assert torch.equal(ckpt.model(ckpt.tokens(4)), before)


def test_self_pretraining_checkpoints_use_their_objective(spt_run):
    result = interventions(spt_run.checkpoints[1], **FEW)
    assert result.attrs["of_objective"] == "masked"
    assert np.isfinite(result["accuracy_change"]).all()


def test_sequences_of_all_lengths_and_prepended_tokens_are_supported():
    lengths = np.array([N, 5] * 15)
    for settings in ({"pooling": "cls"}, {"position": "rotary"}, {"position": "relative"}):
        result = interventions(checkpoint(lengths=lengths, n_layers=2, **settings), **FEW)
        assert np.isfinite(result["loss_change"]).all()
        own = result["all_loss"].sel(intervention="impose_proximity")
        assert abs(float(own) - float(result["base_loss"])) > 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_scale": 0.0}, "length_scale=0.0: must be above 0"),
        ({"sequences": 1}, "sequences=1: must be at least 2 for an interval"),
        ({"patch_from": {"d_model": 32}}, "has d_model=32; must be 16"),
        ({"patch_from": {"causal": True}}, "has causal=True; must be False"),
        ({"patch_from": {"pooling": "cls"}}, "both networks or neither must have a prepended .CLS."),
        (
            {"patch_from": {"data": DataSpec(n=4, inputs="tokens", classes=2, vocabulary=6)}},
            "trained on data",
        ),
    ],
)
def test_invalid_arguments_are_refused(options, message, tmp_path):
    if "patch_from" in options:
        checkpoint(**options["patch_from"]).save(tmp_path / "x.pt")
        options = {"patch_from": tmp_path / "x.pt"}
    with pytest.raises(UsageError, match=message):
        interventions(checkpoint(), **FEW | options)
