import contextlib
import json

import pytest
from support import TINY

from attnprobe.errors import UsageError
from attnprobe.tasks import configure
from attnprobe.training import loop, trackers
from attnprobe.training.loop import train

SETTINGS = {**TINY, "recipe": "supervised", "steps": 2, "d_model": 16}


def test_tensorboard_logs_every_row(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False, log=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "test_accuracy", "test_balanced_accuracy", "learning_rate"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({row["step"]: row[name] for row in run.metrics})


def test_trackers_get_single_numbers_only(tmp_path, monkeypatch):
    logged = []

    class Recorder:
        def log(self, row, step):
            logged.append(row)

    monkeypatch.setattr(loop, "trackers", lambda *_: contextlib.nullcontext([Recorder()]))
    run = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False)
    assert [set(row) - set(kept) for row, kept in zip(run.metrics, logged, strict=True)] == [
        {"train_accuracy_by_class", "test_accuracy_by_class"}
    ] * len(run.metrics)


def test_wandb_works_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False, log=["wandb"])
    assert list((tmp_path / "x" / "wandb").glob("offline-run-*/*.wandb"))


def test_unknown_and_missing_trackers_are_refused_before_files_are_written(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="log='abacus' is unknown; valid: tensorboard, wandb"):
        train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False, log=["abacus"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"log='wandb' needs .*pip install 'attnprobe\[wandb\]'"):
        train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False, log=["wandb"])
    assert not (tmp_path / "x").exists()


def test_metrics_jsonl_is_written_without_trackers(tmp_path):
    run = train(configure("pairs", **SETTINGS), tmp_path / "x", progress=False)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.metrics
