import contextlib
import os
import pickle

import numpy as np
import pytest
import torch

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.results import open_result
from attnprobe.training.checkpoint import FORMAT, load
from attnprobe.training.run import Run


@pytest.fixture
def fields(spt_run):
    """Entries of a checkpoint file, with a format that has no digest so that tests can change them."""
    fields = torch.load(spt_run.checkpoints[-1].path, weights_only=True)
    del fields["digest"]
    return {**fields, "format": 1}


def test_save_and_load_round_trip(spt_run, tmp_path):
    saved = spt_run.checkpoints[-1]
    saved.save(tmp_path / "again.pt")
    loaded = load(tmp_path / "again.pt")
    for name in ("config", "data", "step", "objective", "metrics", "fingerprint", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert all(torch.equal(weight, loaded.weights[name]) for name, weight in saved.weights.items())
    assert loaded.optimiser["state"][0]["step"] == saved.optimiser["state"][0]["step"] == 4  # steps on the labels
    assert not list(tmp_path.glob("*.part"))


def test_the_network_of_a_checkpoint_has_its_weights_and_accuracy(spt_run):
    checkpoint = spt_run.checkpoints[-1]
    test = checkpoint.task.test
    with torch.no_grad():
        predicted = checkpoint.model(torch.from_numpy(test.inputs).long()).argmax(-1).numpy()
    assert (predicted == test.labels).mean() == pytest.approx(checkpoint.last_metrics["test_accuracy"])


def test_provenance_records_versions_and_command(spt_run):
    provenance = spt_run.checkpoints[0].provenance
    assert {"attnprobe", "commit", "uncommitted_changes", "command", "torch", "python", "created"} == set(provenance)
    assert torch.__version__.startswith(provenance["torch"])  # "+cu124" of PyPI is not in the metadata of the package


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def refused(path, message):
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_not_checkpoints_are_refused(tmp_path, fields, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "is a folder")
    for name, content in (("text.pt", b"hello"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an attnprobe checkpoint, or damaged")
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile()))
    refused(tmp_path / "hostile.pt", "not an attnprobe checkpoint, or damaged")
    torch.save({"format": FORMAT, "weights": Hostile()}, tmp_path / "inside.pt")
    refused(tmp_path / "inside.pt", "not an attnprobe checkpoint, or damaged")
    assert not (tmp_path / "hacked").exists()
    torch.save({"model": 1}, tmp_path / "foreign.pt")
    refused(tmp_path / "foreign.pt", "no format version")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(share, tmp_path, spt_run):
    content = spt_run.checkpoints[0].path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "cut.pt", "not an attnprobe checkpoint, or damaged")


def test_a_newer_format_is_refused(tmp_path, fields):
    torch.save({**fields, "format": FORMAT + 1}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", f"checkpoint format {FORMAT + 1}; this attnprobe reads formats 1, {FORMAT}; upgrade")


def test_unknown_and_missing_entries_are_named(tmp_path, fields):
    torch.save({**fields, "extra": 1}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "unknown entries: extra; missing: none")
    torch.save({name: value for name, value in fields.items() if name != "step"}, tmp_path / "y.pt")
    refused(tmp_path / "y.pt", "missing: step")
    torch.save({**fields, "config": {**fields["config"], "speed": 1}}, tmp_path / "z.pt")
    refused(tmp_path / "z.pt", "TrainConfig has unknown speed")
    data = {name: value for name, value in fields["data"].items() if name != "classes"}
    torch.save({**fields, "data": data}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "DataSpec has missing classes")


def test_a_checkpoint_from_before_a_setting_existed_is_read(tmp_path, fields, spt_run):
    model = {name: value for name, value in fields["config"]["model"].items() if "proximity" not in name}
    model.pop("score_bias")
    torch.save({**fields, "config": {**fields["config"], "model": model}}, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt").config == spt_run.checkpoints[-1].config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", 3, "config has type int, not dict"),
        ("weights", {"embed.weight": 3}, "weights contain a value that is not a tensor"),
        ("step", "x", "step has type str, not int"),
        ("objective", "zz", "objective='zz' is unknown; valid: labels, masked, next-token, autoencoding"),
        ("metrics", [3], "metrics contain a row that is not a dict"),
        ("provenance", 3, "provenance has type int, not dict"),
        ("format", 0, "checkpoint format 0; this attnprobe reads formats 1, 2$"),
    ],
)
def test_entries_of_the_wrong_type_are_named(name, value, message, tmp_path, fields):
    torch.save({**fields, name: value}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", message)
    torch.save({**fields, "config": {**fields["config"], "model": 3}}, tmp_path / "y.pt")
    refused(tmp_path / "y.pt", "int instead of a mapping of ModelConfig fields")


def test_damaged_files_raise_usage_errors_only(tmp_path, spt_run):
    content, rng = spt_run.checkpoints[0].path.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02]q\x00(K\x01a.")
    refused(path, "or damaged")
    for _ in range(40):
        damaged = bytearray(content)
        for index in rng.integers(len(content), size=20):
            damaged[index] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UsageError):
            load(path)


def test_a_failed_write_keeps_the_previous_file(spt_run, tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    spt_run.checkpoints[0].save(path)
    before = path.read_bytes()

    def full_disk(fields, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        spt_run.checkpoints[-1].save(path)
    assert path.read_bytes() == before


def test_weights_of_another_network_are_refused(tmp_path, fields):
    torch.save({**fields, "weights": {**fields["weights"], "ghost": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="weights do not fit: .*ghost"):
        _ = load(tmp_path / "x.pt").model


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no checkpoints"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        Run.open(tmp_path / "none")


def test_the_html_representation_is_escaped(spt_run):
    import dataclasses

    text = dataclasses.replace(spt_run.checkpoints[-1], objective="<b>x</b>")._repr_html_()
    assert "pairs, spt, seed 0, step 12" in text
    assert "&lt;b&gt;x" in text
    assert "<b>x" not in text


def test_descriptions_give_the_number_of_long_lists(spt_run):
    import dataclasses

    last = spt_run.checkpoints[-1]
    data = DataSpec(
        last.data.n, "tokens", 50, vocabulary=50_000, symbols=tuple(map(str, range(50_000))),
        class_names=tuple(f"c{label}" for label in range(50)),
    )  # fmt: skip
    row = {**last.last_metrics, "test_accuracy_by_class": [None] * 50}
    large = dataclasses.replace(last, data=data, metrics=[row])
    described = large.describe()
    assert described["data"]["symbols"] == "50,000 symbols" and described["data"]["class_names"] == "50 class names"
    assert described["metrics"]["test_accuracy_by_class"] == "50 values"
    assert described["data"]["grid"] is None and last.describe()["metrics"] == last.last_metrics
    assert "49999" not in large._repr_html_() and "50,000 symbols" in large._repr_html_()


def test_the_representation_is_one_short_line(spt_run):
    text = repr(spt_run.checkpoints[-1])
    assert "pairs, spt, seed 0, step 12" in text and "step-000012.pt" in text
    assert len(text) < 300


def test_a_wrong_path_lists_the_available_ones(spt_run, tmp_path):
    refused(spt_run.path_of(7), r"no such file; available: step-000000\.pt, .*step-000012\.pt")
    (tmp_path / "x.nc").write_bytes(b"")
    refused(tmp_path / "x.nc", "a result, not a checkpoint")
    with pytest.raises(UsageError, match=rf"holds no checkpoints .*runs in it: .*{spt_run.folder.name}"):
        Run.open(spt_run.folder.parent)
    with pytest.raises(UsageError, match="none.nc: no such file"):
        open_result(tmp_path / "none.nc")
