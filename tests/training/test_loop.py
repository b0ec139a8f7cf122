from dataclasses import replace

import numpy as np
import pytest
import torch
from support import TINY

from attnprobe.errors import UsageError
from attnprobe.model.parts import PARTS, select
from attnprobe.model.transformer import Transformer
from attnprobe.tasks import build, configure
from attnprobe.training import loop as training
from attnprobe.training.batches import batch_rows, take
from attnprobe.training.checkpoint import load
from attnprobe.training.loop import checkpoint_steps, rate_factor, train

SETTINGS = {**TINY, "pretrain_steps": 8, "d_model": 16}


def weights(run, step=-1):
    return run.checkpoints[step].weights


def test_spt_is_two_stages_on_one_step_axis(spt_run):
    steps = [row["step"] for row in spt_run.metrics]
    assert steps == sorted(set(steps))
    assert {row["step"]: row["objective"] for row in spt_run.metrics}[8] == "masked"
    assert spt_run.metrics[-1]["objective"] == "labels"
    assert [checkpoint.step for checkpoint in spt_run.checkpoints] == [0, 1, 8, 9, 12]
    for checkpoint in spt_run.checkpoints:
        assert checkpoint.last_metrics["step"] == checkpoint.step
        assert {"train_accuracy", "test_accuracy", "train_loss", "test_loss"} <= set(checkpoint.last_metrics)


def test_the_same_seed_gives_bit_identical_runs_and_another_seed_does_not(spt_run, tmp_path):
    again = train(spt_run.checkpoints[0].config, tmp_path / "again", progress=False)
    other = train(configure("pairs", seed=1, **SETTINGS), tmp_path / "other", progress=False)
    assert again.metrics == spt_run.metrics
    for name, weight in weights(spt_run).items():
        assert torch.equal(weight, weights(again)[name])
    assert not torch.equal(weights(spt_run)["embed.weight"], weights(other)["embed.weight"])


def test_recipes_with_one_seed_share_data_and_initial_weights(spt_run, tmp_path):
    supervised = train(configure("pairs", recipe="supervised", **SETTINGS), tmp_path / "supervised", progress=False)
    assert supervised.checkpoints[0].fingerprint == spt_run.checkpoints[0].fingerprint
    assert all(torch.equal(weight, weights(spt_run, 0)[name]) for name, weight in weights(supervised, 0).items())


def test_each_stage_trains_its_own_output_head_only(spt_run):
    start, middle, end = (weights(spt_run, step) for step in (0, 2, -1))
    assert torch.equal(start["classify.weight"], middle["classify.weight"])
    assert not torch.equal(start["unembed.weight"], middle["unembed.weight"])
    assert torch.equal(middle["unembed.weight"], end["unembed.weight"])
    assert not torch.equal(middle["classify.weight"], end["classify.weight"])


def test_training_learns(tmp_path):
    # The label depends on token counts only, not on order, so supervised training learns it in few steps.
    settings = {"n": 8, "alphabet": 8, "classes": 2, "strength": 1.0, "train_size": 200, "test_size": 50}
    config = configure("bigrams", recipe="supervised", task_options=settings, steps=150, evaluations=1, checkpoints=1)
    last = train(config, tmp_path / "x", progress=False).metrics[-1]
    assert last["train_accuracy"] > 0.9


@pytest.mark.parametrize("objective", ["masked", "next-token"])
def test_both_pretraining_objectives_lower_their_own_loss(objective, tmp_path):
    options = {"strength": 1.0, "train_size": 200, "test_size": 50}
    config = configure(
        "bigrams",
        task_options=options,
        steps=60,
        pretrain_steps=60,
        causal=True,
        pretrain_objective=objective,
        evaluations=1,
    )
    rows = train(config, tmp_path / "x", progress=False).metrics
    assert rows[-1]["objective"] == objective
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.02


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = configure(
        "pairs",
        recipe="supervised",
        **{**SETTINGS, "learning_rate": 1e30, "grad_clip": 0.0, "warmup_steps": 0, "checkpoints": 6},
    )
    with pytest.raises(UsageError, match=r"training stopped: .* at step \d+ \(labels\); the last good checkpoint is"):
        train(config, tmp_path / "x", progress=False)
    from attnprobe.training.run import Run

    run = Run.open(tmp_path / "x")
    kept = run.checkpoints
    assert kept[0].step == 0
    assert all(np.isfinite([row["train_loss"], row["test_loss"]]).all() for row in run.metrics)
    assert all(torch.isfinite(weight).all() for checkpoint in kept for weight in checkpoint.weights.values())


@pytest.mark.parametrize(
    "settings", [{"pretrain_learning_rate": 1e-4}, {"grad_clip": 1e-3}, {"weight_decay": 5.0}, {"schedule": "constant"}]
)
def test_every_optimiser_setting_takes_effect(settings, spt_run, tmp_path):
    other = train(configure("pairs", **{**SETTINGS, **settings}), tmp_path / "x", progress=False)
    assert not torch.equal(weights(other)["embed.weight"], weights(spt_run)["embed.weight"])
    if "pretrain_learning_rate" in settings:
        peaks = {row["objective"]: row["learning_rate"] for row in other.metrics[1:]}
        assert peaks["masked"] < 1e-3 < peaks["labels"] * 20


def test_checkpoint_paths_are_sorted_numerically(spt_run, tmp_path):
    from attnprobe.training.run import Run

    (tmp_path / "checkpoints").mkdir()
    for step in (1000000, 999999, 0):
        Run(tmp_path).path_of(step).write_bytes(b"")
    assert [path.stem for path in Run(tmp_path).checkpoint_paths] == ["step-000000", "step-999999", "step-1000000"]


def test_train_refuses_a_folder_that_holds_a_run(spt_run):
    before = spt_run.metrics
    with pytest.raises(UsageError, match="already holds a run"):
        train(configure("pairs", **SETTINGS), spt_run.folder, progress=False)
    assert spt_run.metrics == before


@pytest.mark.parametrize("part", ["qk", "positions", "qk+positions", "all-but-qk", "all"])
def test_transfer_loads_the_named_parameters_only(part, spt_run, tmp_path):
    source = spt_run.checkpoints[-1]
    config = configure("pairs", recipe="supervised", seed=7, init_from=str(source.path), transfer=part, **SETTINGS)
    start = train(config, tmp_path / "x", progress=False).checkpoints[0].weights
    fresh = (
        train(configure("pairs", recipe="supervised", seed=7, **SETTINGS), tmp_path / "y", progress=False)
        .checkpoints[0]
        .weights
    )
    transferred = select(part, start)
    for name, weight in start.items():
        assert torch.equal(weight, source.weights[name] if name in transferred else fresh[name]), name


def test_frozen_parts_do_not_change_and_the_others_do(tmp_path):
    config = configure("pairs", recipe="supervised", freeze=["qk,positions"], **SETTINGS)
    run = train(config, tmp_path / "x", progress=False)
    start, end = weights(run, 0), weights(run)
    frozen = set(select("qk+positions", start))
    untrained = frozen | set(select("heads", start)) - {"classify.weight", "classify.bias"}
    for name in start:
        assert torch.equal(start[name], end[name]) == (name in untrained), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transfer": "qkv"}, "unknown part 'qkv'; valid: all, all-but-PART, embeddings, positions, qk"),
        (
            {"transfer": "positions", "position": "rotary"},
            "'positions' has no parameters in this network; valid",
        ),
        ({"transfer": "qk", "n_layers": 2}, "has no blocks.1.attn.q.weight"),
        (
            {"transfer": "qk", "d_model": 32},
            r"blocks.0.attn.q.weight has different shapes: \(16, 16\) in init_from, \(32, 32\) in this",
        ),
        ({"transfer": "all-but-" + "+".join(PARTS)}, "selects no parameters"),
        ({"freeze": ["all"]}, "leaves no parameters to train"),
        ({"device": "cuda:7"}, "device='cuda:7' cannot be used"),
    ],
)
def test_invalid_settings_are_refused_before_the_folder_is_created(settings, message, spt_run, tmp_path):
    config = configure("pairs", **{**SETTINGS, "init_from": str(spt_run.checkpoints[0].path), **settings})
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_every_parameter_belongs_to_one_part(spt_run):
    names = list(weights(spt_run))
    parts = [set(select(part, names)) for part in PARTS]
    assert set().union(*parts) == set(names)
    assert sum(map(len, parts)) == len(names)


def test_each_epoch_is_a_new_permutation():
    config = configure("pairs", batch_size=4)
    rows = np.concatenate([batch_rows(config, 10, "labels", step) for step in range(1, 6)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert batch_rows(config, 10, "masked", 1).tolist() != batch_rows(config, 10, "labels", 1).tolist()
    big = batch_rows(configure("pairs", batch_size=25), 10, "labels", 1)
    assert np.bincount(big).tolist().count(3) == 5  # 2.5 epochs


def test_the_learning_rate_warms_up_and_decays_along_a_cosine():
    factors = [rate_factor(step, 100, 10, "cosine") for step in range(1, 101)]
    assert factors[4] == pytest.approx(0.5)
    assert factors[9] == 1
    assert factors[54] == pytest.approx(0.05 + 0.95 / 2)
    assert factors[-1] == pytest.approx(0.05)
    assert rate_factor(100, 100, 10, "constant") == 1
    assert rate_factor(2, 4, 50, "cosine") == 1  # warm-up takes at most half of a stage
    assert rate_factor(1, 1, 50, "cosine") == pytest.approx(0.05)


def test_checkpoints_are_log_spaced_in_each_stage():
    config = configure("pairs", steps=20000, pretrain_steps=10000, checkpoints=3)
    # from 0.5 % to 100 % of each stage, with ratio sqrt(200)
    assert checkpoint_steps(config) == [0, 50, 707, 10000, 10050, 10707, 20000]
    assert checkpoint_steps(configure("pairs", steps=9, pretrain_steps=4, checkpoints=1)) == [0, 4, 9]


def test_training_on_padded_values(tmp_path, monkeypatch):
    from attnprobe import tasks
    from attnprobe.config import DataSpec

    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    split = tasks.Split(rng.normal(size=(40, 6)) + labels[:, None], labels, rng.integers(2, 7, size=40))
    task = tasks.Task("mine", DataSpec(n=6, inputs="values", classes=2), split, split)
    monkeypatch.setattr(tasks, "build", lambda config: task)
    run = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False)
    assert run.metrics[0]["test_accuracy"] is None  # no accuracy for real-valued targets
    assert run.metrics[-1]["test_accuracy"] is not None


def test_no_batch_is_padded_beyond_its_longest_sequence(tmp_path, monkeypatch):
    from attnprobe import tasks
    from attnprobe.config import DataSpec
    from attnprobe.model.transformer import Transformer

    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(40) == 7, 30, rng.integers(2, 9, size=40))  # a single long sequence
    split = tasks.Split(rng.integers(4, size=(40, 30)).astype(np.uint8), rng.integers(2, size=40), lengths)
    task = tasks.Task("mine", DataSpec(n=30, inputs="tokens", classes=2, vocabulary=4), split, split)
    monkeypatch.setattr(tasks, "build", lambda config: task)
    widths, residual = [], Transformer.residual

    def recorded(self, inputs, *, masked=None, lengths=None):
        widths.append((inputs.shape[1], int(lengths.max())))
        return residual(self, inputs, masked=masked, lengths=lengths)

    monkeypatch.setattr(Transformer, "residual", recorded)
    train(configure("pairs", **{**SETTINGS, "batch_size": 4}), tmp_path / "x", progress=False)
    assert all(width == longest for width, longest in widths)
    assert {width for width, _ in widths} & set(range(2, 9)), "most batches are short"


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path, monkeypatch):
    from attnprobe.training import loop as training

    runs = []
    for tokens in (32, 32 * 7, 2**17):
        monkeypatch.setattr(training, "EVALUATED_AT_A_TIME", tokens)
        config = configure("pairs", **{**SETTINGS, "recipe": "supervised"})
        runs.append(train(config, tmp_path / str(tokens), progress=False).metrics)
    for run in runs[:-1]:
        for row, expected in zip(run, runs[-1], strict=True):
            assert row["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
            assert row["test_accuracy"] == pytest.approx(expected["test_accuracy"])


def test_the_validation_split_is_evaluated_and_not_trained_on(tmp_path):
    config = configure("pairs", **{**SETTINGS, "recipe": "supervised", "validation_size": 10})
    task, full = build(config), build(configure("pairs", **SETTINGS))
    assert (task.train.inputs == full.train.inputs[:-10]).all()
    assert (task.validation.inputs == full.train.inputs[-10:]).all()
    run = train(config, tmp_path / "x", progress=False)
    assert all({"validation_loss", "validation_accuracy"} <= set(row) for row in run.metrics)
    assert run.finished == {"step": 12, "why": "all steps", "best_step": best_step(run)}
    without = train(configure("pairs", **{**SETTINGS, "recipe": "supervised"}), tmp_path / "y", progress=False)
    assert without.finished["best_step"] is None
    assert not any("validation_loss" in row for row in without.metrics)


def best_step(run):
    rows = [row for row in run.metrics if row["objective"] == "labels" and row["step"] > 0]
    return min(rows, key=lambda row: row["validation_loss"])["step"]


PATIENT = {
    **SETTINGS,
    "recipe": "supervised",
    "validation_size": 20,
    "learning_rate": 0.03,
    "warmup_steps": 10,
    "steps": 200,
    "evaluations": 50,
}
"""44 sequences and a high learning rate: the network overfits and the validation loss soon rises."""


def test_early_stopping_after_patience_evaluations_without_improvement(tmp_path):
    run = train(configure("pairs", **PATIENT, patience=3), tmp_path / "x", progress=False)
    assert run.finished["why"] == "patience"
    assert run.finished["best_step"] == best_step(run) > 0
    even = [row["step"] for row in run.metrics if row["step"] % 4 == 0]
    assert sum(step > max(best_step(run), 10) for step in even) == 3
    assert run.last.step == run.metrics[-1]["step"] == run.finished["step"] < 200
    assert load(run.path_of(best_step(run))).step == best_step(run), "the best checkpoint is kept"
    steps = {checkpoint.step for checkpoint in run.checkpoints}
    scheduled = {step for step in checkpoint_steps(run.config) if step <= run.finished["step"]}
    assert steps == {*scheduled, best_step(run), run.finished["step"]}, "earlier best checkpoints are deleted"


def test_patience_ignores_evaluations_during_warm_up_and_at_checkpoints(tmp_path):
    # The learning rate is nearly 0, so the validation loss does not improve; training must not stop too early.
    settings = {**PATIENT, "learning_rate": 1e-9, "warmup_steps": 90, "checkpoints": 30, "evaluations": 20}
    run = train(configure("pairs", **settings, patience=2), tmp_path / "x", progress=False)
    assert run.finished["step"] >= 110
    spt = {**settings, "recipe": "spt", "pretrain_steps": 100, "warmup_steps": 40}
    run = train(configure("pairs", **spt, patience=2), tmp_path / "y", progress=False)
    assert run.finished["step"] >= 160


def test_invalid_patience_and_validation_size_are_refused(tmp_path):
    with pytest.raises(UsageError, match="patience=3: needs a validation split; set validation_size"):
        train(configure("pairs", **SETTINGS, patience=3), tmp_path / "x")
    with pytest.raises(UsageError, match="validation_size=64: must be below the 64 training sequences"):
        train(configure("pairs", **SETTINGS, validation_size=64), tmp_path / "x")
    with pytest.raises(UsageError, match="validation_size=64"):
        build(replace(configure("pairs", **SETTINGS), validation_size=64))
    assert not (tmp_path / "x").exists()


def test_the_data_of_a_run_are_rebuilt_and_compared(spt_run, tmp_path):
    checkpoint = spt_run.checkpoints[-1]
    assert checkpoint.task.fingerprint == build(checkpoint.config).fingerprint
    fields = torch.load(checkpoint.path, weights_only=True)
    torch.save({**fields, "fingerprint": "0" * 16}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="no longer generates this run's data"):
        _ = load(tmp_path / "x.pt").task


def test_shuffled_pretraining_permutes_tokens_and_supervised_training_does_not(tmp_path, monkeypatch):
    splits = {}

    def recorded(split, rows, mask, device):
        if len(rows) == 16:  # a training batch
            splits.setdefault("labels" if mask is None else "masked", []).append(split)
        return take(split, rows, mask, device)

    monkeypatch.setattr(training, "take", recorded)
    run = train(configure("pairs", pretrain_steps=6, pretrain_order="shuffled", **TINY), tmp_path / "x", progress=False)
    original = build(run.config).train
    for split in splits["masked"]:
        assert np.array_equal(split.inputs, splits["masked"][0].inputs), "the same order at every step"
        assert not np.array_equal(split.inputs, original.inputs)
        assert np.array_equal(np.sort(split.inputs, axis=1), np.sort(original.inputs, axis=1))
    assert all(np.array_equal(split.inputs, original.inputs) for split in splits["labels"])


def test_init_seed_changes_the_initial_weights_only(spt_run, tmp_path):
    other = train(replace(spt_run.config, init_seed=5), tmp_path / "x", progress=False)
    same = train(replace(spt_run.config, init_seed=spt_run.config.seed), tmp_path / "y", progress=False)
    assert other.last.fingerprint == spt_run.last.fingerprint
    assert not torch.equal(weights(other, 0)["embed.weight"], weights(spt_run, 0)["embed.weight"])
    assert all(torch.equal(weight, weights(same)[name]) for name, weight in weights(spt_run).items())
    expected = Transformer(other.config.model, other.last.data, seed=5).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(other, 0).items())
