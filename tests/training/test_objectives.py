"""Losses compared with loops over single predictions."""

import numpy as np
import pytest
import torch

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.model.transformer import Transformer
from attnprobe.training.objectives import Batch, balanced_weights, draw_mask, evaluate, predict

LENGTHS = torch.tensor([6, 4, 1])


def model_and_batch(inputs="tokens", causal=False):
    data = DataSpec(n=6, inputs=inputs, classes=3, vocabulary=5 if inputs == "tokens" else 0)
    model = Transformer(ModelConfig(d_model=8, causal=causal, init_std=0.5), data)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (3, 6), generator=generator)
    return model, Batch(ids if inputs == "tokens" else ids / 4, torch.tensor([0, 1, 2]), LENGTHS)


def negative_log_likelihood(logits, target):
    return -(logits[target] - logits.logsumexp(-1)).item()


def test_labels_are_scored_by_cross_entropy():
    model, batch = model_and_batch()
    outcome = evaluate(model, batch, "labels")
    logits = model(batch.inputs, lengths=LENGTHS)
    expected = [negative_log_likelihood(logits[b], batch.labels[b]) for b in range(3)]
    assert outcome.mean.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert outcome.correct.item() == sum(logits[b].argmax() == batch.labels[b] for b in range(3))


def test_only_masked_tokens_are_scored():
    model, batch = model_and_batch()
    mask = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    outcome = evaluate(model, batch, "masked", mask)
    logits = model(batch.inputs, masked=mask, lengths=LENGTHS, output="tokens")
    expected = [negative_log_likelihood(logits[b, i], batch.inputs[b, i]) for b, i in mask.nonzero().tolist()]
    assert outcome.count == 3
    assert outcome.mean.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_masked_values_are_scored_by_absolute_error():
    model, batch = model_and_batch("values")
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    outcome = evaluate(model, batch, "masked", mask)
    predicted = model(batch.inputs, masked=mask, lengths=LENGTHS, output="tokens")[..., 0]
    expected = sum(abs(predicted[b, i] - batch.inputs[b, i]).item() for b, i in ((0, 1), (1, 3))) / 2
    assert outcome.mean.item() == pytest.approx(expected, rel=1e-5)
    assert outcome.correct is None


@pytest.mark.parametrize("objective", ["masked", "next-token"])
def test_the_error_of_a_token_is_the_mean_over_its_channels(objective):
    model = Transformer(ModelConfig(d_model=8, causal=True, init_std=0.5), DataSpec(6, "values", 3, channels=4))
    values = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(values, torch.tensor([0, 1, 2]), LENGTHS)
    assert batch.real().sum(1).tolist() == LENGTHS.tolist()
    mask = draw_mask(batch.real(), 0.5, torch.Generator().manual_seed(1)) if objective == "masked" else None
    outcome, single = evaluate(model, batch, objective, mask), predict(model, batch, objective, mask)
    logits = model(values, masked=mask, lengths=LENGTHS, output="tokens").detach().numpy()
    assert logits.shape == (3, 6, 4)
    if mask is None:
        later = batch.real()[:, 1:].numpy()
        errors = np.abs(logits[:, :-1] - values[:, 1:].numpy())[later]
    else:
        errors = np.abs(logits - values.numpy())[mask.numpy()]
    assert outcome.count == len(errors), "one prediction per token"
    assert outcome.mean.item() == pytest.approx(errors.mean(), rel=1e-5)
    assert outcome.correct is None
    np.testing.assert_allclose(single.errors.detach(), errors, rtol=1e-5)


@pytest.mark.parametrize("levels", [5, 256])
def test_values_with_levels_are_scored_by_cross_entropy(levels):
    data = DataSpec(n=6, inputs="values", classes=3, levels=levels)
    model = Transformer(ModelConfig(d_model=8, init_std=0.5), data)
    indices = torch.randint(levels, (3, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch(indices * (2 / (levels - 1)) - 1, torch.tensor([0, 1, 2]))
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    outcome = evaluate(model, batch, "masked", mask)
    logits = model(batch.inputs, masked=mask, output="tokens")
    assert logits.shape == (3, 6, levels)
    expected = [negative_log_likelihood(logits[b, i], indices[b, i]) for b, i in mask.nonzero().tolist()]
    assert outcome.mean.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert outcome.correct.item() == sum((logits.argmax(-1) == indices)[mask])


def test_next_token_scores_each_real_token_after_the_first():
    model, batch = model_and_batch(causal=True)
    outcome = evaluate(model, batch, "next-token")
    expected = []
    for b, length in enumerate(LENGTHS.tolist()):
        for i in range(1, length):
            logits = model(batch.inputs[b : b + 1, :i], output="tokens")[0, -1]
            expected.append(negative_log_likelihood(logits, batch.inputs[b, i]))
    assert outcome.count == 5 + 3
    assert outcome.mean.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_autoencoding_scores_each_real_token_of_the_unmasked_sequence():
    model, batch = model_and_batch()
    outcome = evaluate(model, batch, "autoencoding")
    logits = model(batch.inputs, lengths=LENGTHS, output="tokens")
    expected = [
        negative_log_likelihood(logits[b, i], batch.inputs[b, i])
        for b, length in enumerate(LENGTHS.tolist())
        for i in range(length)
    ]
    assert outcome.count == len(expected) == LENGTHS.sum()
    assert outcome.mean.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_masks_cover_the_share_of_real_tokens_and_no_padding():
    batch = Batch(torch.zeros(400, 50), torch.zeros(400), torch.full((400,), 40))
    mask = draw_mask(batch.real(), 0.3, torch.Generator().manual_seed(0))
    assert not mask[:, 40:].any()
    assert mask[:, :40].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_a_batch_without_masked_tokens_has_loss_zero():
    model, batch = model_and_batch()
    assert evaluate(model, batch, "masked", torch.zeros(3, 6, dtype=torch.bool)).mean.item() == 0


def test_balanced_weights_have_mean_1_and_give_every_class_the_same_total():
    labels = np.array([0, 0, 0, 0, 0, 1, 3, 3])
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([8 / (3 * 5), 8 / 3, 0, 8 / 6])
    assert weights[labels].mean().item() == pytest.approx(1)


def test_the_weighted_gradient_is_that_of_the_weighted_mean_of_single_losses():
    model, batch = model_and_batch()
    weights = torch.tensor([0.5, 3.0, 1.5])
    evaluate(model, batch, "labels", weights=weights).mean.backward()
    found = model.classify.weight.grad.clone()
    _, cache = model.run_with_cache(batch.inputs, lengths=LENGTHS)
    logits = model(batch.inputs, lengths=LENGTHS)
    error = logits.softmax(-1) - torch.eye(3)[batch.labels]  # gradient of the cross-entropy of each sequence
    expected = (weights[batch.labels][:, None] * error).T @ cache["hook_pooled"] / 3
    torch.testing.assert_close(found, expected.detach())
