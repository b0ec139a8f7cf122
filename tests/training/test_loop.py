import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import TINY

from attnprobe import proximity
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.model.parts import PARTS, select
from attnprobe.model.transformer import Transformer
from attnprobe.results import over_steps
from attnprobe.tables import FIGURES_OVER_STEPS
from attnprobe.tasks import Split, Task, build, configure
from attnprobe.training import loop as training
from attnprobe.training.batches import batch_rows, take
from attnprobe.training.checkpoint import load
from attnprobe.training.evaluation import evaluated_rows
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


@pytest.mark.parametrize("objective", ["masked", "next-token", "autoencoding"])
def test_all_pretraining_objectives_lower_their_own_loss(objective, tmp_path):
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
        (
            {"transfer": "qkv"},
            "unknown part 'qkv'; did you mean 'qk'\\? valid: all, all-but-PART, embeddings, positions, qk",
        ),
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
    monkeypatch.setattr(tasks, "build", lambda *_: task)
    run = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False)
    assert run.metrics[0]["test_accuracy"] is None  # no accuracy for real-valued targets
    assert run.metrics[-1]["test_accuracy"] is not None


def use(task, monkeypatch):
    """Make a task in memory the data of every run."""
    from attnprobe import tasks

    monkeypatch.setattr(tasks, "build", lambda *_: task)


def uneven_task(size=60, lengths=None):
    """Return a task of 4 classes in memory, sorted by class: 40, 15 and 5 sequences of three of them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], np.array([40, 15, 5]) * size // 60)
    inputs = (rng.random((size, 6)) < 0.3 + 0.1 * labels[:, None]).astype(np.int64)
    order = rng.permutation(size)
    train = Split(inputs[order], labels[order], lengths)
    return Task("mine", DataSpec(6, "tokens", 4, vocabulary=2), train, Split(inputs, labels, lengths))


def test_numbers_by_class_agree_with_an_independent_reference(tmp_path, monkeypatch):
    from sklearn.metrics import balanced_accuracy_score, recall_score

    use(uneven_task(), monkeypatch)
    monkeypatch.setattr(training, "EVALUATED_AT_A_TIME", 6 * 7)
    run = train(configure("pairs", recipe="supervised", **{**SETTINGS, "steps": 40}), tmp_path / "x", progress=False)
    for checkpoint in run.checkpoints:
        row = checkpoint.last_metrics
        for name, split in uneven_task().splits.items():
            with torch.no_grad():
                predicted = checkpoint.model(split.tensor()).argmax(-1).numpy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # classes may be predicted that do not occur
                balanced = balanced_accuracy_score(split.labels, predicted)
            recall = recall_score(split.labels, predicted, labels=[0, 1, 3], average=None, zero_division=0)
            assert row[f"{name}_balanced_accuracy"] == pytest.approx(balanced)
            by_class = row[f"{name}_accuracy_by_class"]
            assert by_class[2] is None
            assert [by_class[c] for c in (0, 1, 3)] == pytest.approx(recall.tolist())


def test_class_weights_change_the_training_but_not_the_evaluated_loss(tmp_path, monkeypatch):
    task = uneven_task()
    use(task, monkeypatch)
    runs = [
        train(
            configure("pairs", recipe="supervised", class_weights=weights, **{**SETTINGS, "steps": 60}),
            tmp_path / weights,
            progress=False,
        )
        for weights in ("none", "balanced")
    ]
    assert runs[0].metrics[0] == runs[1].metrics[0], "the same network has the same loss"
    last = [run.metrics[-1] for run in runs]
    assert last[1]["test_balanced_accuracy"] > last[0]["test_balanced_accuracy"]
    with torch.no_grad():
        logits = runs[1].last.model(task.test.tensor())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(task.test.labels))
    assert last[1]["test_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_weights_of_balanced_classes_change_nothing(tmp_path, monkeypatch):
    labels = np.arange(64) % 2
    split = Split(np.random.default_rng(0).integers(2, size=(64, 6)), labels)
    use(Task("mine", DataSpec(6, "tokens", 2, vocabulary=2), split, split), monkeypatch)
    runs = [
        train(configure("pairs", class_weights=weights, **SETTINGS), tmp_path / weights, progress=False)
        for weights in ("none", "balanced")
    ]
    assert runs[0].metrics == runs[1].metrics


def test_errors_by_channel_average_to_the_loss_and_follow_the_channels(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 6, 3)) * [0.1, 1, 10]
    split = Split(values, rng.integers(2, size=40), rng.integers(2, 7, size=40))
    use(Task("mine", DataSpec(6, "values", 2, channels=3), split, split), monkeypatch)
    settings = {**SETTINGS, "pretrain_order": "shuffled"}
    run = train(configure("pairs", **settings, gradient_accumulation_steps=3), tmp_path / "x", progress=False)
    masked = [row for row in run.metrics if row["objective"] == "masked"]
    for row in masked:
        errors = row["test_error_by_channel"]
        assert row["test_loss"] == pytest.approx(np.mean(errors)) and row["test_accuracy"] is None
        # An untrained network predicts almost 0, so the error is the mean absolute value: std * sqrt(2 / pi)
        assert errors == pytest.approx([0.08, 0.8, 8], rel=0.5)
    assert "test_error_by_channel" not in run.metrics[-1] and run.metrics[-1]["test_balanced_accuracy"] is not None
    whole = train(configure("pairs", **settings), tmp_path / "y", progress=False)
    assert whole.metrics[-1]["test_loss"] == pytest.approx(run.metrics[-1]["test_loss"], abs=1e-5)


def test_shuffling_keeps_the_channels_of_a_token_together():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 6, 1)) + np.array([0, 100])  # the second channel is the first plus 100
    split = Split(values, np.zeros(5, np.int64), np.array([2, 3, 4, 5, 6]))
    task = Task("mine", DataSpec(6, "values", 2, channels=2), split, split)
    shuffled = task.shuffled(0).train.inputs
    assert np.allclose(shuffled[..., 1] - shuffled[..., 0], 100) and not np.array_equal(shuffled, values)
    flat = replace(
        task,
        data=DataSpec(6, "values", 2),
        **{name: Split(values[..., 0], split.labels, split.lengths) for name in ("train", "test")},
    )
    assert np.array_equal(shuffled[..., 0], flat.shuffled(0).train.inputs), "the order of one channel"


def test_evaluations_use_a_fixed_random_subset_until_the_end(tmp_path, monkeypatch):
    task = uneven_task(600)
    use(replace(task, validation=task.test), monkeypatch)
    settings = {**SETTINGS, "recipe": "supervised", "evaluations": 3}
    run = train(configure("pairs", eval_size=30, **settings), tmp_path / "x", progress=False)
    whole = train(configure("pairs", **settings), tmp_path / "y", progress=False)
    *during, last = run.metrics
    assert [row["test_sequences"] for row in run.metrics] == [30] * len(during) + [600]
    assert [row["validation_sequences"] for row in run.metrics] == [30] * len(during) + [600]
    assert all(row["train_sequences"] == 600 for row in run.metrics)
    assert {name: x for name, x in last.items() if "sequences" not in name} == whole.metrics[-1]
    rows = {name: evaluated_rows(run.config, name, 600, False) for name in ("test", "validation")}
    assert not np.array_equal(rows["test"], rows["validation"])
    for step, row in ((0, run.metrics[0]), (during[-1]["step"], during[-1])):
        chosen = rows["test"]
        assert len(set(chosen)) == 30 and set(task.test.labels[chosen]) == {0, 1, 3}, "the split is sorted by class"
        if run.path_of(step).exists():
            with torch.no_grad():
                logits = load(run.path_of(step)).model(task.test.tensor(chosen))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(task.test.labels[chosen]))
            assert row["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert best_step(run) == run.finished["best_step"] or run.finished["best_step"] in {row["step"] for row in during}


def test_an_eval_size_above_the_split_changes_nothing_but_the_counts(tmp_path):
    whole = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False)
    limited = train(configure("pairs", eval_size=40, **SETTINGS), tmp_path / "y", progress=False)
    for row, expected in zip(limited.metrics, whole.metrics, strict=True):
        assert (row.pop("train_sequences"), row.pop("test_sequences")) == (64, 40)
        assert row == expected


def test_with_patience_validation_losses_are_of_the_same_sequences(tmp_path):
    run = train(configure("pairs", **PATIENT, patience=3, eval_size=10), tmp_path / "x", progress=False)
    assert run.finished["why"] == "patience" and run.finished["best_step"] == best_step(run)
    assert all(row["validation_sequences"] == 10 for row in run.metrics)
    assert [row["test_sequences"] for row in run.metrics] == [10] * (len(run.metrics) - 1) + [40]
    unlimited = train(configure("pairs", **{**PATIENT, "steps": 20}, patience=60, eval_size=10), tmp_path / "y")
    assert unlimited.finished["why"] == "all steps"
    assert (unlimited.metrics[-1]["validation_sequences"], unlimited.metrics[-1]["test_sequences"]) == (10, 40)


def test_an_evaluation_without_predictions_has_no_loss(tmp_path, monkeypatch, capsys):
    from attnprobe.cli import main

    rng = np.random.default_rng(0)
    many, few = (Split(rng.integers(3, size=(size, 2)), np.arange(size) % 2) for size in (40, 2))
    use(Task("mine", DataSpec(2, "tokens", 2, vocabulary=3), many, few, few), monkeypatch)
    config = configure("pairs", mask_probability=0.001, **SETTINGS)
    run = train(config, tmp_path / "x", log=["tensorboard"])
    masked = [row for row in run.metrics if row["objective"] == "masked"]
    assert all(row[f"test_{name}"] is None for row in masked for name in ("loss", "accuracy"))
    assert all(row["validation_loss"] is None for row in masked)
    assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["test_loss"] is None
    first = run.checkpoints[0]
    assert "accuracy" not in first.title and run.finished["best_step"] in {row["step"] for row in run.metrics}
    main(["show", str(run.folder)])
    assert "None" in capsys.readouterr().out
    results = [proximity(checkpoint, sequences=2, nulls=0) for checkpoint in run.checkpoints]
    assert np.isnan(results[0]["test_accuracy"])
    assert FIGURES_OVER_STEPS["proximity"](over_steps(results)) is not None
    nothing = {**run.last.last_metrics, "train_accuracy": None}
    assert "None" not in replace(run.last, metrics=[nothing]).title


def test_no_batch_is_padded_beyond_its_longest_sequence(tmp_path, monkeypatch):
    from attnprobe import tasks
    from attnprobe.config import DataSpec
    from attnprobe.model.transformer import Transformer

    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(40) == 7, 30, rng.integers(2, 9, size=40))  # a single long sequence
    split = tasks.Split(rng.integers(4, size=(40, 30)).astype(np.uint8), rng.integers(2, size=40), lengths)
    task = tasks.Task("mine", DataSpec(n=30, inputs="tokens", classes=2, vocabulary=4), split, split)
    monkeypatch.setattr(tasks, "build", lambda *_: task)
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
    assert run.finished == {"step": 12, "why": "all steps", "best_step": best_step(run), "rows": 4}
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
    replace(checkpoint, fingerprint="0" * 16).save(tmp_path / "x.pt")
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


def test_dropout_depends_on_the_seed_alone_and_leaves_the_generator_of_torch(tmp_path):
    def trained(name, state, **options):
        torch.manual_seed(state)
        run = train(configure("pairs", **SETTINGS, **options), tmp_path / name, progress=False)
        return run.metrics, torch.rand(3)

    (first, drawn), (second, _), (whole, expected) = (
        trained("first", 1, dropout=0.5),
        trained("second", 2, dropout=0.5),
        trained("whole", 1),
    )
    assert first == second
    assert torch.equal(drawn, expected)
    assert whole[0] == first[0] and whole[-1] != first[-1]
