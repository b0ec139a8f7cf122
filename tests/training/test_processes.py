"""Training with several processes, micro-batches, bf16 and torch.compile agrees with plain training."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import TINY

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.model.transformer import Transformer
from attnprobe.tasks import Split, Task, configure
from attnprobe.training.evaluation import Evaluation
from attnprobe.training.loop import resume, train
from attnprobe.training.objectives import Batch, predict
from attnprobe.training.processes import processes
from attnprobe.training.run import Run

SETTINGS = {**TINY, "pretrain_steps": 8, "d_model": 16, "batch_size": 15}


def losses(run):
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return np.array([[row[name] for name in names] for row in run.metrics])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return train(configure("pairs", **SETTINGS), tmp_path_factory.mktemp("single") / "run", progress=False)


def attnprobe_train(folder, *launcher_and_flags, **overrides):
    """Run the command in a subprocess and return its run and output."""
    settings = {**SETTINGS, **overrides, "task": "pairs", "out": "run"}
    options = settings.pop("task_options")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    flags += ["--task-options", *(str(part) for pair in options.items() for part in pair)]
    command = [sys.executable, *launcher_and_flags, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert completed.returncode == 0, completed.stderr[-2000:]
    return Run.open(folder / "run"), completed.stdout


TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
def test_the_launcher_of_these_tests_starts_two_processes(tmp_path):
    flags = ["--gradient-accumulation-steps=8", "--batch-size=15", "--out=run"]
    command = [sys.executable, *TWO, "-m", "attnprobe", "train", *flags]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "gradient_accumulation_steps=8 in 2 processes: their product must be at most" in completed.stderr


@pytest.mark.slow
def test_two_processes_train_the_same_as_one(single, tmp_path):
    two, output = attnprobe_train(tmp_path, *TWO, "-m", "attnprobe", "train")
    assert output.count("next:") == 1, "only rank 0 prints"
    assert [row["step"] for row in two.metrics] == [row["step"] for row in single.metrics]
    assert losses(two) == pytest.approx(losses(single), abs=1e-5)
    assert two.finished == single.finished
    assert json.loads((two.folder / "config.json").read_text())["config"]["batch_size"] == 15


@pytest.mark.slow
def test_two_processes_count_every_class_and_can_be_made_longer(tmp_path):
    # More test sequences than one evaluation batch, so that both processes evaluate some.
    options = {"train_size": 64, "test_size": 1200}
    settings = {**SETTINGS, "recipe": "supervised", "class_weights": "balanced", "task_options": options}
    alone = train(configure("pairs", **settings), tmp_path / "alone", progress=False)
    alone = resume(alone.folder, more_steps=4, progress=False)
    launch = [*TWO, "-m", "attnprobe", "train"]
    two, _ = attnprobe_train(tmp_path, *launch, **settings)
    command = [sys.executable, *launch, "--resume=run", "--more-steps=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    assert two.config == alone.config and two.finished == alone.finished
    assert losses(two) == pytest.approx(losses(alone), abs=1e-5)
    for row, expected in zip(two.metrics, alone.metrics, strict=True):
        assert row["test_accuracy_by_class"] == pytest.approx(expected["test_accuracy_by_class"])
        assert row["test_balanced_accuracy"] == pytest.approx(expected["test_balanced_accuracy"])


@pytest.mark.parametrize("objective", ["labels", "masked"])
def test_sums_over_batches_add_up_to_those_of_all_predictions(objective):
    data = DataSpec(6, "values", 3, channels=2)
    model = Transformer(ModelConfig(d_model=8, init_std=0.5), data)
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(9, 6, 2, generator=generator), torch.randint(2, (9,), generator=generator)
    mask = torch.rand(9, 6, generator=generator) < 0.4

    def evaluated(*parts):
        evaluation = Evaluation(data, objective)
        for part in parts:
            batch = Batch(values[part], labels[part])
            with torch.no_grad():
                evaluation.add(predict(model, batch, objective, mask[part]), batch.labels)
        return evaluation

    whole = evaluated(slice(None))
    parts = [evaluated(slice(0, 2), slice(5, 9)), evaluated(slice(2, 5)), evaluated()]  # of three processes
    np.testing.assert_allclose(sum(part.sums for part in parts), whole.sums, rtol=1e-6)
    entries = whole.entries("test")
    if objective == "labels":
        assert entries["test_accuracy_by_class"][2] is None
        assert entries["test_balanced_accuracy"] == pytest.approx(np.mean(entries["test_accuracy_by_class"][:2]))
    else:
        assert np.mean(entries["test_error_by_channel"]) == pytest.approx(entries["test_loss"])
    assert set(evaluated().entries("test")) == set(entries) and evaluated().entries("test")["test_loss"] is None


def test_micro_batches_give_the_same_gradient(single, tmp_path):
    split = train(configure("pairs", **SETTINGS, gradient_accumulation_steps=4), tmp_path / "x", progress=False)
    assert losses(split) == pytest.approx(losses(single), abs=1e-5)


@pytest.mark.parametrize("objective", ["masked", "next-token"])
def test_micro_batches_of_padded_sequences(objective, tmp_path, monkeypatch):
    from attnprobe import tasks

    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 13, size=40)
    split = Split(rng.integers(5, size=(40, 12)), rng.integers(2, size=40), lengths)
    task = Task("mine", DataSpec(n=12, inputs="tokens", classes=2, vocabulary=5), split, split)
    monkeypatch.setattr(tasks, "build", lambda *_: task)
    settings = {**SETTINGS, "causal": True, "pretrain_objective": objective}
    runs = [
        train(configure("pairs", **settings, gradient_accumulation_steps=k), tmp_path / str(k), progress=False)
        for k in (1, 5)
    ]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-5)


def test_more_micro_batches_than_sequences_are_refused(tmp_path):
    with pytest.raises(UsageError, match="gradient_accumulation_steps=16: must be at most batch_size=15"):
        train(configure("pairs", **SETTINGS, gradient_accumulation_steps=16), tmp_path / "x")


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="device='abacus' cannot be used"):
        processes("abacus")


def test_bf16_is_close_to_float32_and_keeps_float32_weights(single, tmp_path):
    half = train(configure("pairs", **SETTINGS, precision="bf16"), tmp_path / "x", progress=False)
    assert all(weight.dtype == torch.float32 for weight in half.checkpoints[-1].weights.values())
    assert losses(half)[:, :2] == pytest.approx(losses(single)[:, :2], rel=0.02)
    assert (losses(half) != losses(single)).any(), "nothing was computed in bf16"


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_network_trains_the_same(tmp_path):
    # In a subprocess, because the type checks of the tests cannot be compiled.
    short = {"recipe": "supervised", "steps": 2, "evaluations": 1, "checkpoints": 1, "mlp_ratio": 0}
    compiled, _ = attnprobe_train(tmp_path, "-m", "attnprobe", "train", "--compile", **short)
    assert compiled.checkpoints[0].config.compile
    plain = train(configure("pairs", **{**SETTINGS, **short}), tmp_path / "plain", progress=False)
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
