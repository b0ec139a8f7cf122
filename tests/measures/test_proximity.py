import dataclasses
import json
from functools import partial

import materialised
import numpy as np
import pytest
import torch
from support import N, checkpoint, scores_by_layer

from attnprobe import proximity
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.geometry import geometry
from attnprobe.measures.proximity import _in_all_views
from attnprobe.results import reasons
from attnprobe.statistics import Scores, pattern_statistics
from attnprobe.statistics.decay import fit_decay

FEW = {"sequences": 24, "nulls": 3}


def silence(model):
    for block in model.blocks:
        block.attn.q.weight.zero_()


@pytest.mark.parametrize("causal", [False, True])
def test_alibi_alone_is_minus_slope_times_distance(causal):
    result = proximity(checkpoint(position="alibi", causal=causal, edit=silence), **FEW)
    offset = result["offset"].values
    seen = offset <= 0 if causal else offset == offset
    for head in range(2):
        profile = result["score_by_offset"].isel(layer=0, head=head).values
        expected = -(2.0 ** (-8 * (head + 1) / 2)) * np.abs(offset)
        assert profile[seen] - profile[N - 1] == pytest.approx(expected[seen], abs=1e-9)
        assert np.isnan(profile[~seen]).all()
    assert result["toeplitz_share"].values == pytest.approx(np.ones((1, 2)))
    assert (result["mean_distance_ratio"] < 1).all()
    assert (result["decay_reason"] == "longer than the sequence can show").all()


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_an_imposed_proximity_bias_is_minus_distance_over_its_range(grid):
    data = DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6, grid=grid)
    result = proximity(checkpoint(data, position="none", score_bias="fixed", length_scale=4, edit=silence), **FEW)
    prefix = "grid_" if grid else ""
    profile = result[f"{prefix}score_by_offset"].values.reshape(2, -1)
    distance = geometry(grid or (N,)).distance.numpy()
    assert profile - profile[:, [0]] == pytest.approx(np.tile(-(distance - distance[0]) / 4, (2, 1)), abs=1e-6)
    assert result[f"{prefix}toeplitz_share"].values == pytest.approx(np.ones((1, 2)))
    assert (result[f"{prefix}toeplitz_share_null"].sel(null="permuted") < 0.9).all()
    assert (result["mean_distance_ratio"] < 1).all()


def planted(distance):
    """Return an edit by which head 0 attends to offset +distance via one-hot positions; head 1 stays uniform."""

    def edit(model):
        silence(model)
        attention = model.blocks[0].attn
        attention.k.weight.zero_()
        model.embed.weight.zero_()
        model.position.weight.copy_(10 * torch.eye(N, 32))
        attention.q.weight[:16, :N] = torch.eye(16, N).roll(distance, 0)
        attention.k.weight[:16, :N] = 10 * torch.eye(16, N)

    return edit


def test_a_planted_previous_token_head_is_found():
    result = proximity(checkpoint(d_model=32, norm="none", position="learned", edit=planted(-1)), **FEW).isel(layer=0)
    score, nmi = result["previous_token_score"], result["query_key_nmi"]
    assert float(score[0]) > 0.95 > 0.5 > float(result["previous_token_score_null"].max())
    assert float(score[1]) == pytest.approx(1 / N)
    assert float(nmi[0]) > 0.8 and float(nmi[1]) == pytest.approx(0, abs=1e-6)
    assert not result[["sink_rate", "any_sink_rate"]].to_array().any()


@pytest.mark.parametrize("place", [0, 5])
def test_a_planted_sink_is_found_at_its_token(place):
    def edit(model):
        silence(model)
        attention = model.blocks[0].attn
        attention.k.weight.zero_()
        model.position.weight.copy_(10 * torch.eye(N, 32))
        attention.q.bias[0] = 10
        attention.k.weight[0, place] = 10

    result = proximity(checkpoint(d_model=32, norm="none", position="learned", edit=edit), **FEW).isel(layer=0)
    assert result["sink_rate"].values.tolist() == [place == 0, 0]
    assert result["any_sink_rate"].values.tolist() == [1, 0]
    assert result["any_sink_rate_interval"].sel(head=0).values.tolist() == [1, 1]
    assert result["query_key_nmi"].values == pytest.approx([0, 0], abs=1e-3)
    # a permutation moves the sink, with probability 1 - 1 / n away from its place
    assert (result["any_sink_rate_null"].sel(null="permuted", head=0) == 1).all()


def test_the_sink_is_the_first_measured_token():
    q, k = torch.zeros(2, 2, 1, N, N)
    q[0, 0, :, 2] = k[0, 0, 2, 2] = 9  # all attend to token 2, the first measured one of the first sequence
    real = torch.ones(2, N, dtype=torch.bool)
    real[0, :2] = False
    scores = Scores(q, k, real=real)
    values = _in_all_views(scores, pattern_statistics(scores))
    assert values["sink_rate"].tolist() == [[1], [0]]
    real[0, 1] = True
    scores = Scores(q, k, real=real)
    assert _in_all_views(scores, pattern_statistics(scores))["sink_rate"].tolist() == [[0], [0]]


@pytest.mark.parametrize(("n", "causal", "sinks"), [(3, False, 1), (4, False, 0), (9, True, 1), (10, True, 0)])
def test_uniform_attention_has_sinks_only_in_very_short_sequences(n, causal, sinks):
    data = DataSpec(n=n, inputs="tokens", classes=2, vocabulary=6)
    result = proximity(checkpoint(data, position="none", causal=causal, edit=silence), sequences=4, nulls=0, window=1)
    for name in ("sink_rate", "any_sink_rate"):
        assert result[name].values.tolist() == [[sinks, sinks]]


def matches_of(tokens, step):
    """Return for each query its earlier keys j for which token j - step is the token of the query."""
    return [[j for j in range(step, i) if tokens[j - step] == tokens[i]] for i in range(len(tokens))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, np.array([N] * 15 + [5] * 15)])
def test_a_planted_head_attends_to_equal_tokens(causal, lengths):
    """One-hot embeddings compare tokens: attention is uniform over all visible copies, and else uniform."""

    def edit(model):
        silence(model)
        attention = model.blocks[0].attn
        attention.k.weight.zero_()
        model.embed.weight.copy_(10 * torch.eye(*model.embed.weight.shape))
        attention.q.weight[:6, :6] = attention.k.weight[:6, :6] = 10 * torch.eye(6)

    settings = {"d_model": 32, "norm": "none", "position": "none", "causal": causal}
    ckpt = checkpoint(lengths=lengths, edit=edit, **settings)
    result = proximity(ckpt, sequences=30, nulls=3).isel(layer=0)
    expected = {"duplicate_token_score": [], "induction_score": []}
    for row, ids in enumerate(ckpt.task.test.inputs.tolist()):
        ids = ids[: N if lengths is None else lengths[row]]
        for step, name in enumerate(expected):
            masses = []
            for i, keys in enumerate(matches_of(ids, step)):
                seen = ids[: i + 1] if causal else ids
                copies = seen.count(ids[i])
                of_head = sum(ids[j] == ids[i] for j in keys) / copies
                masses += [(of_head, len(keys) / len(seen))] if keys else []
            expected[name].append(np.mean(masses, axis=0) if masses else [np.nan, np.nan])
    for name, of_sequences in expected.items():
        values = np.array(of_sequences)
        assert result[name].values == pytest.approx(np.nanmean(values, axis=0), abs=1e-6), name
        assert result[f"{name}_std"].values == pytest.approx(np.nanstd(values, axis=0, ddof=1), abs=1e-6), name
    null = result["duplicate_token_score_null"].sel(null="permuted", head=0)
    assert float(null.max()) < 0.7 * float(result["duplicate_token_score"].sel(head=0))


def test_only_ids_are_compared():
    values = checkpoint(DataSpec(N, "values", 2))
    result = proximity(values, sequences=4, nulls=1)
    assert "duplicate_token_score" not in result and "induction_score_null" not in result
    left_out = json.loads(result.attrs["left_out"])
    assert left_out["induction_score"] == "the tokens are not ids that can be compared"
    assert np.isfinite(result["previous_token_score"]).all()


def test_sequences_without_copies_have_no_scores_of_copies():
    data = DataSpec(n=6, inputs="tokens", classes=2, vocabulary=6)
    ckpt = checkpoint(data)
    ckpt.task.test.inputs[:] = np.arange(6)
    result = proximity(ckpt, sequences=4, nulls=1)
    assert result["duplicate_token_score"].isnull().all() and result["induction_score_null"].isnull().all()
    why = reasons(result)
    assert (why["duplicate_token_score"] == "no token has an earlier copy that it sees").all()
    assert (why["induction_score_null"] == "no token has an earlier copy whose next token it sees").all()


@pytest.mark.parametrize("distance", [1, 3])
def test_a_planted_offset_is_found_only_in_its_head(distance):
    result = proximity(checkpoint(d_model=32, norm="none", position="learned", edit=planted(distance)), **FEW)
    pattern = result["pattern_by_offset"].isel(layer=0)
    assert int(pattern.isel(head=0).idxmax("offset")) == distance
    assert float(pattern.isel(head=0).max()) > 0.95
    assert pattern.isel(head=1).values == pytest.approx(np.full(2 * N - 1, 1 / N))
    near = result["near_mass"].isel(layer=0).values
    assert (near[0, 0] > 4) == (distance == 1)
    assert near[1] == pytest.approx([1, 1])
    contrast = float(result["proximity_contrast"].isel(layer=0, head=0))
    assert (contrast > 0.5) == (distance == 1)


def test_the_permuted_null_has_no_positional_structure():
    result = proximity(checkpoint(d_model=32, norm="none", position="learned", edit=planted(1)), **FEW)
    null = result.sel(null="permuted").isel(layer=0, head=0)
    assert float(result["toeplitz_share"].isel(layer=0, head=0)) > 0.9
    assert float(null["toeplitz_share_null"].max()) < 0.5
    # the permutation changes the positions of scores, not their values
    assert null["entropy_null"].mean() == pytest.approx(float(result["entropy"].isel(layer=0, head=0)))


@pytest.mark.parametrize("causal", [False, True])
def test_the_permuted_null_keeps_the_values_of_the_scores(causal):
    result = proximity(checkpoint(position="relative", causal=causal), **FEW)
    null = result["entropy_null"].sel(null="permuted")
    assert null.mean("draw").values == pytest.approx(result["entropy"].values)
    assert (result["mean_distance_null"].sel(null="permuted").std("draw") > 0).all()
    if not causal:  # queries and keys are permuted together, so offset 0 stays
        diagonal = result["pattern_by_offset_null"].sel(null="permuted", offset=0).mean("draw")
        assert diagonal.values == pytest.approx(result["pattern_by_offset"].sel(offset=0).values)


def test_draws_of_a_null_differ():
    # all sequences have the same scores
    result = proximity(checkpoint(position="alibi", edit=silence), sequences=2, nulls=8)
    assert len(np.unique(result["mean_distance_null"].sel(null="permuted").isel(layer=0, head=0).values.round(9))) == 8


def test_the_initial_null_has_seeds_that_no_run_uses():
    result = proximity(checkpoint(position="alibi", edit=silence), **FEW)
    draws = result["score_by_offset_null"].sel(null="initial")
    assert float(draws.std("draw").min()) > 0
    profile = proximity(checkpoint(position="alibi"), **FEW)["score_by_offset"]
    assert not any(np.allclose(draws.isel(draw=draw), profile) for draw in range(draws.sizes["draw"]))


def test_a_network_without_positions_is_like_its_permuted_null():
    """Only offset 0 can differ (a token compared with itself), with and without permutation."""
    result = proximity(checkpoint(position="none"), sequences=30, nulls=8)
    for name in ("toeplitz_share", "mean_distance_ratio", "proximity_contrast"):
        null = result[f"{name}_null"].sel(null="permuted")
        spread = 4 * null.std("draw", ddof=1).values
        assert (abs(result[name].values - null.mean("draw").values) < spread).all(), name


def test_images_have_both_views(image_checkpoint):
    result = proximity(image_checkpoint, sequences=8, nulls=1)
    assert result["grid_score_by_offset"].dims == ("layer", "head", "row_offset", "column_offset")
    assert result["grid_pattern_by_offset"].sizes == {"layer": 2, "head": 2, "row_offset": 15, "column_offset": 15}
    assert result["grid_mean_distance"].attrs["units"] == "pixels"
    count = geometry((8, 8)).count.reshape(15, 15).numpy()
    weight = (result["grid_pattern_by_offset"] * count).sum(("row_offset", "column_offset"))
    assert weight.values == pytest.approx(np.full((2, 2), 64))
    # one row down is eight tokens ahead
    line, grid = result["pattern_by_offset"], result["grid_pattern_by_offset"]
    far = line.sel(offset=63) - grid.sel(row_offset=7, column_offset=7)
    assert far.values == pytest.approx(np.zeros((2, 2)), abs=1e-12)


def test_a_window_must_leave_far_pixels(image_checkpoint):
    with pytest.raises(UsageError, match="window=10: must be at least 1 and below 9.9"):
        proximity(image_checkpoint, window=10)


def test_uniform_attention_is_uniform_for_all_lengths():
    lengths = np.array([N] * 15 + [5] * 15)
    result = proximity(checkpoint(position="none", lengths=lengths, edit=silence), sequences=30, nulls=1)
    ratio = result["pattern_by_offset"] / result["uniform_pattern_by_offset"]
    assert ratio.values == pytest.approx(np.ones((1, 2, 2 * N - 1)))


def test_the_error_of_the_decay_is_the_jackknife_over_groups():
    ckpt = checkpoint(position="relative", edit=fading, init_std=0.25)
    result = proximity(ckpt, sequences=30, nulls=1)
    (scores,) = scores_by_layer(ckpt.model, ckpt.tokens(30))
    profiles = materialised.score_statistics(scores)["offset_profile"].numpy()
    distance = np.arange(1.0, N)
    lengths = []
    for group in range(20):
        mean = np.delete(profiles, [group, group + 20] if group < 10 else [group], axis=0).mean(0)
        folded = (mean[:, N:] + mean[:, : N - 1][:, ::-1]) / 2
        lengths.append(fit_decay(folded, distance, N - distance).length)
    error = np.sqrt(19 / 20 * np.square(np.array(lengths) - np.mean(lengths, axis=0)).sum(0))
    assert result["decay_length_se"].values[0] == pytest.approx(error, rel=1e-6)


def fading(model):
    """Set relative biases that decay exponentially with the distance, with length 2."""
    reach = torch.arange(16.0)
    model.position.weight.copy_(4 * torch.exp(-torch.cat([reach, reach]) / 2).expand(2, 32))


def test_a_planted_decay_is_found_with_its_error():
    """Exponentially decaying relative biases, with content scores as noise."""
    ckpt = checkpoint(position="relative", edit=fading, init_std=0.25, lengths=np.full(30, 8))
    result = proximity(ckpt, sequences=30, nulls=1)
    length, error = (result[name].isel(layer=0).values for name in ("decay_length", "decay_length_se"))
    assert (error > 0).all()
    assert (abs(length - 2) < 5 * error).all()
    assert (error < 0.5).all()
    assert (result["decay_reason"] == "").all()


def test_short_sequences_that_are_not_measured_have_no_effect():
    lengths = np.array([N] * 10 + [7] * 10 + [1] * 10)
    ckpt = checkpoint(position="relative", lengths=lengths)
    profile = (
        proximity(ckpt, sequences=20, nulls=1)["score_by_offset"].isel(layer=0).sel(offset=slice(-6, 6)).mean("head")
    )
    weight = 7 - abs(profile["offset"])
    assert float((profile * weight).sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_shorter_sequences_contribute_to_their_own_offsets(causal):
    lengths = np.array([N] * 15 + [5] * 15)
    make = partial(checkpoint, position="alibi", edit=silence, causal=causal)
    result = proximity(make(lengths=lengths), sequences=30, nulls=1)
    profile = result["score_by_offset"].isel(layer=0, head=0).dropna("offset")
    assert profile.size == (N if causal else 2 * N - 1)
    short = proximity(make(lengths=np.full(30, 5)), sequences=30, nulls=1)
    assert np.isfinite(short["score_by_offset"].isel(layer=0, head=0)).sum() == (5 if causal else 9)
    offset = np.abs(profile["offset"].values)
    assert (profile - profile.sel(offset=0)).values == pytest.approx(-0.0625 * offset, abs=1e-9)
    assert result["toeplitz_share"].values == pytest.approx(np.ones((1, 2)))
    ratio = [float(measured["mean_distance"].isel(layer=0, head=0)) for measured in (short, result)]
    assert ratio[0] < ratio[1]


@pytest.mark.parametrize("settings", [{"pooling": "cls"}, {"causal": True, "position": "relative"}, {"n_layers": 3}])
def test_all_kinds_of_networks_can_be_measured(settings):
    result = proximity(checkpoint(**settings), **FEW)
    for name in ("toeplitz_share", "proximity_contrast", "mean_distance_ratio", "entropy", "near_mass"):
        assert np.isfinite(result[name]).all(), name


def test_intervals_narrow_with_more_sequences():
    few, many = (proximity(checkpoint(), sequences=size, nulls=1) for size in (5, 30))
    width = [float(measured["entropy_interval"].diff("bound").mean()) for measured in (few, many)]
    assert width[1] < 0.7 * width[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequences": 1}, "sequences=1: must be at least 2 for an interval"),
        ({"window": 0}, "window=0: must be at least 1 and below 11, the largest distance"),
        ({"window": N - 1}, "window=11"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        proximity(checkpoint(), **arguments)


def test_results_have_accuracy_and_objective(spt_run):
    last = spt_run.checkpoints[-1]
    result = proximity(last, sequences=4, nulls=1)
    assert float(result["test_accuracy"]) == last.last_metrics["test_accuracy"]
    assert result["objective"].item() == "labels"
    without_metrics = proximity(dataclasses.replace(last, metrics=[]), sequences=4, nulls=1)
    assert np.isnan(without_metrics["test_accuracy"])
