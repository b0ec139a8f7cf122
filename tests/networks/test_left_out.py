"""Special tokens anywhere in a row: they attend and are attended to, and are not measured."""

from dataclasses import replace
from types import SimpleNamespace

import families
import materialised
import numpy as np
import pytest
import torch
import transformers as tf

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.measures import edits
from attnprobe.measures.block_swap import draw_swap
from attnprobe.measures.driver import masked_tokens
from attnprobe.measures.terms import means
from attnprobe.networks.base import read
from attnprobe.networks.torch_model import network
from attnprobe.randomness import numpy_generator
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import gradient_statistics, pattern_statistics, score_statistics
from attnprobe.tables import EDITS
from attnprobe.training.objectives import Batch

VOCABULARY, CLS, SEP, MASK = 40, 3, 4, 2
LENGTHS = torch.tensor([14, 14, 11, 12, 14, 11])
SECOND = torch.tensor([4, 6, 5, 7, 8, 3])
"""Position of the [SEP] between the sentences."""
N = int(LENGTHS.max())
FEW = {"sequences": 6, "nulls": 1}


def pairs_of_sentences():
    """Return inputs of [CLS] a a a [SEP] b b [SEP] with padding."""
    ids = torch.randint(5, VOCABULARY, (6, N), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    ids[:, 0], ids[rows, SECOND], ids[rows, LENGTHS - 1] = CLS, SEP, SEP
    mask = (torch.arange(N) < LENGTHS[:, None]).long()
    second = (torch.arange(N) > SECOND[:, None]) * mask
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": second}


@pytest.fixture(scope="module")
def bert():
    """A classifier in float64, and sentence pairs."""
    torch.manual_seed(0)
    config = tf.BertConfig(**families.BASE, cls_token_id=CLS, sep_token_id=SEP, initializer_range=0.4)
    config.cls_token_id, config.sep_token_id = CLS, SEP
    model = tf.BertForSequenceClassification(config).eval().double()
    model.set_attn_implementation("sdpa")
    inputs = pairs_of_sentences()
    return model, inputs, network(model, inputs, reference=inputs, labels=[0, 1] * 3)


def measured_tokens():
    """Return which tokens between the first and the last one are measured, for each row."""
    place = torch.arange(1, N - 1)
    return (place != SECOND[:, None]) & (place < LENGTHS[:, None] - 1)


def attentions(model, inputs):
    """Return the pattern of eager attention between the measured tokens, renormalised, [layer, row, head, i, j]."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = torch.stack(model(**inputs, output_attentions=True).attentions)
    model.set_attn_implementation("sdpa")
    measured = measured_tokens()
    inner = whole[..., 1:-1, 1:-1] * (measured[:, None, :, None] & measured[:, None, None])
    return (inner / inner.sum(-1, keepdim=True)).nan_to_num()


def test_the_special_tokens_of_sentence_pairs_are_found(bert):
    left_out = bert[2].network.special
    assert (left_out.prefix, left_out.suffix) == (1, 1)
    expected = (torch.arange(1, N - 1) == SECOND[:, None]).nonzero().tolist()
    assert left_out.inside[:6].nonzero().tolist() == expected
    assert bert[2].facts["special_tokens_inside"] == 12  # measured and reference rows


def test_patterns_of_sentence_pairs_are_those_of_eager_attention(bert):
    model, inputs, probe = bert
    patterns, measured = attentions(model, inputs), measured_tokens()
    result = ap.proximity(probe, **FEW)
    shown = Scores(*torch.zeros(2, 6, 1, N - 2, 1), real=measured)
    seen = (measured[:, :, None] & measured[:, None]).double()
    count = materialised.by_offset(shown, seen[:, None])[:, 0]
    queries = measured.sum(1).double()
    for layer, pattern in enumerate(patterns):
        by_offset = materialised.by_offset(shown, pattern) / count[:, None]
        np.testing.assert_allclose(result["pattern_by_offset"][layer], by_offset.nanmean(0), rtol=1e-9, atol=1e-12)
        entropy = (torch.special.entr(pattern).sum((-2, -1)) / queries[:, None]).mean(0)
        np.testing.assert_allclose(result["entropy"][layer], entropy, rtol=1e-9)
    uniform = materialised.by_offset(shown, (seen / seen.sum(-1, keepdim=True)).nan_to_num()[:, None])[:, 0] / count
    np.testing.assert_allclose(result["uniform_pattern_by_offset"], uniform.nanmean(0), rtol=1e-9)


def test_scores_of_sentence_pairs_are_those_of_eager_attention(bert):
    """The logarithm of a pattern is the score up to a constant per query."""
    model, inputs, probe = bert
    measured = measured_tokens()
    result = ap.proximity(probe, **FEW)
    shown = Scores(*torch.zeros(2, 6, 1, N - 2, 1), real=measured)
    seen = (measured[:, :, None] & measured[:, None])[:, None]
    shortest = int(LENGTHS.min()) - 2
    weight = (shortest - torch.arange(3 - N, N - 2).abs()).clamp(min=0).double()
    for layer, pattern in enumerate(attentions(model, inputs)):
        score = pattern.log().masked_fill(~seen, 0.0)
        centred = (score - score.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)) * seen
        profile, explained = materialised.offset_profiles(shown, seen, centred)
        # Profiles are aligned at the offsets of the shortest row before they are averaged.
        known = profile.isfinite() * weight
        profile = profile - (profile.nan_to_num() * weight).sum(-1, keepdim=True) / known.sum(-1, keepdim=True)
        np.testing.assert_allclose(result["score_by_offset"][layer], profile.nanmean(0), rtol=1e-8, atol=1e-8)
        share = (explained / centred.square().sum((-2, -1))).mean(0)
        np.testing.assert_allclose(result["toeplitz_share"][layer], share, rtol=1e-8)


def test_gradients_of_sentence_pairs_are_those_of_autograd(bert):
    """Through the whole softmax, between measured tokens, row-centred over them."""
    probe = bert[2]
    result = ap.gradients(probe, **FEW)
    sums = torch.zeros(2, 6, 2, 2 * (N - 2) - 1, dtype=torch.float64)
    for row, length in enumerate(LENGTHS.tolist()):
        added = [torch.zeros(1, 2, length, length, dtype=torch.float64, requires_grad=True) for _ in range(2)]

        def attend(heads, added=added):
            return (heads.scores.dense() + added[heads.layer]).softmax(-1) @ heads.v

        batch = Batch(torch.full((1, length - 2), row), torch.zeros(1))
        with probe.network.attending(attend):
            loss = probe.network.predictions(batch, "labels").loss.sum()
        measured = torch.arange(1, length - 1) != SECOND[row]
        seen = measured[:, None] & measured
        for layer, gradient in enumerate(torch.autograd.grad(loss, added)):
            gradient = gradient[..., 1:-1, 1:-1] * seen
            gradient = (gradient - gradient.sum(-1, keepdim=True) / measured.sum()) * seen
            short = N - length
            shown = Scores(*torch.zeros(2, 1, 2, length - 2, 1))
            found = materialised.by_offset(shown, gradient)[0]
            sums[layer, row, :, short : sums.shape[-1] - short] = found
            sums[layer, row, :, :short] = sums[layer, row, :, sums.shape[-1] - short :] = torch.nan
    np.testing.assert_allclose(result["descent_by_offset"][0], -sums.nanmean(1), rtol=1e-8, atol=1e-12)
    assert (result["energy_share"].sel(subspace="toeplitz", layer=0) > 0).all()
    assert result["energy_share"].sel(subspace="circulant").isnull().all()
    assert result["descent"].sel(direction=["circulant band", "circulant linear"]).isnull().all()


def test_terms_of_sentence_pairs_add_up_to_the_score(bert):
    probe = bert[2]
    result, proximity = ap.positions(probe, **FEW), ap.proximity(probe, **FEW)
    assert result["variance_share"].sum("term").values == pytest.approx(1, abs=1e-9)
    for name in ("score_by_offset", "proximity_contrast"):
        np.testing.assert_allclose(result[name].sum("term"), proximity[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_positional_and_symbolic_scores_are_those_of_eager_attention(bert):
    """Ids change places among the measured tokens; special tokens and token types stay."""
    model, inputs, probe = bert
    result, measured = ap.positions(probe, **FEW), measured_tokens()
    uniform = torch.from_numpy(numpy_generator(0, "positions block_swap").random((6, 3)))
    swaps = []
    for length, row, numbers in zip((LENGTHS - 2).tolist(), measured, uniform, strict=True):
        swaps.append(draw_swap(row[None, :length], numbers[None], causal=False, window=None))
    swapped = {**inputs, "input_ids": inputs["input_ids"].clone()}
    for row, swap in enumerate(swaps):
        order = swap.order[0] + 1
        assert (inputs["input_ids"][row, order] == SEP).sum() == 1  # that between the sentences
        assert not order.equal(torch.arange(1, len(order) + 1))
        swapped["input_ids"][row, 1 : len(order) + 1] = inputs["input_ids"][row, order]
    before, after = (attentions(model, x).clamp(min=1e-300).log() for x in (inputs, swapped))
    sums = torch.zeros(2, 2, 4, dtype=torch.float64)  # [layer, head, sum]
    for row, swap in enumerate(swaps):
        queries, keys = swap.queries[0].nonzero()[:, 0], swap.keys[0]
        partners = keys.roll(len(keys) // 2)
        a, same_position, same_token = (
            x[:, row][:, :, queries[:, None], places]
            for x, places in ((before, keys), (after, keys), (after, partners))
        )
        a, same_position, same_token = (x - x.mean(-1, keepdim=True) for x in (a, same_position, same_token))
        pairs = ((a, same_position), (a, same_token), (a, a), (same_position, same_position))
        sums += torch.stack([(x * y).sum((-2, -1)) for x, y in pairs], -1)
    expected = sums[..., :2] / (sums[..., 2] * sums[..., 3]).sqrt()[..., None]
    for i, name in enumerate(("positional_score", "symbolic_score")):
        np.testing.assert_allclose(result[name], expected[..., i], rtol=1e-7, atol=1e-9)


def test_means_are_over_measured_tokens(bert):
    probe, measured = bert[2], measured_tokens()
    batches = [Batch(torch.full((1, length - 2), row), torch.zeros(1)) for row, length in enumerate(LENGTHS.tolist())]
    keys = torch.full((6, 2, N - 2, 8), torch.nan, dtype=torch.float64)
    for row, batch in enumerate(batches):
        see = lambda heads, row=row: keys[row, :, : heads.scores.shape[2]].copy_(heads.scores.k[0])  # noqa: E731
        read(probe.network, batch, "labels", see)  # ends with the last layer
    keys[~measured[:, None, :, None].expand(keys.shape)] = torch.nan
    found = means(probe.network, batches).by_position[1][1]
    torch.testing.assert_close(found, keys.nanmean(0))


def test_a_mask_at_both_ends_is_a_prefix_and_a_suffix(bert):
    model, inputs, _ = bert
    place = torch.arange(N)
    ends = (place == 0) | ((place >= LENGTHS[:, None] - 2) & (place < LENGTHS[:, None]))
    both = torch.cat([ends, ends])
    masked, counted = (
        network(model, inputs, reference=inputs, leave_out=leave_out).network.special for leave_out in (both, (1, 2))
    )
    assert masked == counted
    found = network(model, inputs, reference=inputs, leave_out=both.numpy())
    assert found.network.shape.left_out == 3


def test_second_derivatives_and_edits_run_on_sentence_pairs(bert):
    probe = bert[2]
    curvature = ap.gradients(probe, sequences=2, nulls=0, curvature=1)["curvature"]
    assert np.isfinite(curvature.sel(direction="toeplitz linear", layer=0)).all()
    result = ap.interventions(probe, **FEW, edits=("uniform_attention", "ablate_toeplitz", "keep_position"))
    assert np.isfinite(result["loss_change"]).all()
    assert np.isfinite(result["loss_change_null"].sel(intervention="keep_position")).all()


# Scores with tokens that are left out, against arrays.


def scores_with_special_tokens(**options):
    """Return scores of 9 tokens, of which 2 to 3 are left out, and values and output gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dz = torch.randn(4, 3, 2, 9, 4, generator=generator, dtype=torch.float64)
    left_out = torch.zeros(3, 9, dtype=torch.bool)
    left_out[[0, 0, 1, 1, 2, 2, 2], [0, 4, 0, 8, 0, 2, 3]] = True
    return Scores(q, k, left_out=left_out, **options), v, dz


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_a_mask_at_the_ends_gives_the_numbers_of_prefix_and_suffix(causal, window):
    whole, v, dz = scores_with_special_tokens(causal=causal, window=window)
    ends = torch.tensor([True, *[False] * 6, True, True]).expand(3, -1)
    masked, cut = replace(whole, left_out=ends), replace(whole, left_out=None, prefix=1, suffix=2)
    for statistics, arguments in ((score_statistics, ()), (pattern_statistics, ()), (gradient_statistics, (v, dz))):
        one, other = (statistics(scores, *arguments) for scores in (masked, cut))
        for name in ("by_key", "mean_by_key", "mass_by_key"):
            if hasattr(one, name):
                torch.testing.assert_close(getattr(one, name)[..., 1:7], getattr(other, name), equal_nan=True)
        for name in ("pairs", "offset_profile", "mass_by_offset", "uniform_by_offset", "by_offset"):
            if hasattr(one, name):
                torch.testing.assert_close(getattr(one, name)[..., 3:-3], getattr(other, name), equal_nan=True)
        for name in ("square", "entropy", "toeplitz_share", "square_double_centred"):
            if hasattr(one, name):
                torch.testing.assert_close(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("causal", [False, True])
def test_a_permutation_keeps_the_scores_of_the_measured_tokens(causal):
    whole, *_ = scores_with_special_tokens(causal=causal)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    plain, permuted = (score_statistics(replace(whole, order=one)) for one in (None, order))
    assert torch.equal(plain.pairs, permuted.pairs)
    torch.testing.assert_close(plain.square, permuted.square)
    means = [one.mean_by_query.nan_to_num(1e9) for one in (plain, permuted)]
    torch.testing.assert_close(*(means if causal else (one.flatten(1).sort().values for one in means)))
    assert (plain.toeplitz_share - permuted.toeplitz_share).abs().min() > 1e-3
    tops = [pattern_statistics(replace(whole, order=one), top=9).top_weights.flatten(2) for one in (None, order)]
    torch.testing.assert_close(*(one.sort().values for one in tops))


@pytest.mark.parametrize(
    "name",
    [
        *("ablate_toeplitz", "keep_toeplitz", "impose_proximity", "keep_position", "ablate_position"),
        *("ablate_content", "ablate_content_position", "ablate_position_content"),
    ],
)
def test_edits_leave_the_scores_of_special_tokens_as_they_are(name, bert):
    scores, v, _ = scores_with_special_tokens()
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(2, 17, generator=generator, dtype=torch.float64)
    q_position, k_position = torch.randn(2, 3, 2, 9, 4, generator=generator, dtype=torch.float64)
    network, order = bert[2].network, torch.arange(9)
    material = edits.Material(network, bias, q_position, k_position, None, None, bias, order, None, None)
    found = EDITS[name].edit(Heads(0, scores, v), material)
    special = scores.left_out[:, None]
    between = ~(special[..., None] | special[..., None, :])
    dense = scores.q @ scores.k.mT / 2
    by_pair = bias[:, torch.arange(9) - torch.arange(9)[:, None] + 8] * between
    q, k = (own.where(special[..., None], part) for own, part in ((scores.q, q_position), (scores.k, k_position)))
    q_content, k_content = scores.q - q_position, scores.k - k_position
    edited = {
        "ablate_toeplitz": dense - by_pair,
        "keep_toeplitz": by_pair,
        "impose_proximity": dense + by_pair,
        "keep_position": q @ k.mT / 2,
        "ablate_position": dense - q_position @ k_position.mT / 2 * between,
        "ablate_content": dense - q_content @ k_content.mT / 2 * between,
        "ablate_content_position": dense - q_content @ k_position.mT / 2 * between,
        "ablate_position_content": dense - q_position @ k_content.mT / 2 * between,
    }
    torch.testing.assert_close(found, edited[name].softmax(-1) @ v)


# Images, masked tokens and refusals.


@pytest.mark.parametrize(("name", "grid"), [("ViT", (3, 3)), ("Mistral", None), ("gpt-oss", None)])
def test_patterns_of_images_and_sliding_windows_are_those_of_eager_attention(name, grid):
    """Patches that are left out keep their place on the grid."""
    model, inputs = families.model_and_inputs(families.FAMILIES[name])
    with torch.no_grad():
        patterns = [pattern.double() for pattern in model(inputs, output_attentions=True).attentions]
    rows, tokens = len(inputs), patterns[0].shape[-1]
    leave_out = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(0)) < 0.3
    leave_out[:, 0], leave_out[:, 5] = True, False
    leave_out[:, -1] = False
    leave_out[:, 1] = grid is not None  # a patch of all images, besides the class token
    probe = network(model, inputs, reference=inputs, leave_out=torch.cat([leave_out, leave_out]))
    assert probe.network.shape.n == tokens - 1 and probe.network.shape.grid == grid
    result = ap.proximity(probe, sequences=rows, nulls=1)
    measured = ~leave_out[:, 1:]
    for layer, pattern in enumerate(patterns):
        inner = pattern[..., 1:, 1:] * (measured[:, None, :, None] & measured[:, None, None])
        seen = (inner[:, :1] > 0).double()
        inner = (inner / inner.sum(-1, keepdim=True)).nan_to_num()
        for sides, found in ((None, "pattern_by_offset"), (grid, "grid_pattern_by_offset")):
            if found in result:
                shown = Scores(*torch.zeros(2, rows, 1, tokens - 1, 1), grid=sides)
                expected = (materialised.by_offset(shown, inner) / materialised.by_offset(shown, seen)).nanmean(0)
                by_offset = torch.from_numpy(result[found][layer].values).flatten(1)
                torch.testing.assert_close(by_offset, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert np.isfinite(result["toeplitz_share"]).all() and np.isfinite(result["toeplitz_share_null"]).all()


def test_tokens_that_are_left_out_are_never_masked():
    config = tf.BertConfig(**families.BASE)
    config.cls_token_id, config.sep_token_id = CLS, SEP
    inputs = pairs_of_sentences()
    tokenizer = SimpleNamespace(cls_token_id=CLS, sep_token_id=SEP, mask_token_id=MASK)
    probe = network(tf.BertForMaskedLM(config).eval(), inputs, reference=inputs, tokenizer=tokenizer)
    for probability in (0.0, 0.5, 1.0):  # at least one token of each row is masked
        mask = torch.from_numpy(masked_tokens(replace(probe, mask_probability=probability), 0, 6))
        assert not (mask & ~measured_tokens()).any() and mask.any(1).all()
    ones = np.stack([masked_tokens(replace(probe, mask_probability=0.0), seed, 6) for seed in range(150)])
    assert (ones.sum(2) == 1).all()
    assert (ones.any(0) == measured_tokens().numpy()).all(), "every measured token can be the masked one"
    assert np.isfinite(ap.gradients(probe, **FEW)["gradient_norm"]).all()


@pytest.mark.parametrize(
    ("leave_out", "change", "message"),
    [
        (np.zeros((6, N)), {}, r"leave_out of shape \(6, 14\) and type torch.float64: must be Boolean \[row, token\]"),
        (np.zeros((6, N - 1), bool), {}, r"leave_out of shape \(6, 13\) .*: must be .* = \(6, 14\)"),
        (np.ones((6, N), bool), {}, "row 0: has no tokens besides 14 special ones"),
        (
            np.arange(N) < np.full((6, 1), 3),
            {"grid": (3, 4)},
            r"grid=\(3, 4\): leave_out must be True for the 2 tokens that are no patches",
        ),
        ("special", {"attention_mask": None}, r"row 2 of input_ids has 3 padding tokens \(id 0\): pass attention_mask"),
    ],
)
def test_what_cannot_be_left_out_is_refused_in_one_line(bert, leave_out, change, message):
    model, inputs, _ = bert
    inputs = {name: x for name, x in inputs.items() if name not in change}
    options = {name: x for name, x in change.items() if name == "grid"}
    if options:
        inputs = inputs["input_ids"]
        leave_out = leave_out & (np.arange(N) > 0)
    with pytest.raises(UsageError, match=message):
        network(model, inputs, leave_out=leave_out, **options)
