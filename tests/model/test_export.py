"""Exports of a network: what is read back computes the same, and says what it is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import N, channels_checkpoint, checkpoint

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.config import DataSpec, ModelConfig, TrainConfig, from_plain
from attnprobe.errors import UsageError
from attnprobe.model.pretrained import AttnprobeConfig, AttnprobeModel, configuration
from attnprobe.model.transformer import Transformer

LENGTHS = np.array([N, 5, 8, N - 1, 3, N] * 5)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def logits(model, *inputs, **options):
    with torch.no_grad():
        output = model(*inputs, **options)
    return getattr(output, "logits", output)


# Weights with metadata.


def test_safetensors_hold_the_weights_and_say_what_they_are(tmp_path):
    ckpt = checkpoint(n_layers=2, position="rotary")
    file = tmp_path / "new" / "weights.safetensors"
    for _ in range(2):  # the second replaces the first
        ckpt.to_safetensors(str(file))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["step"] == "5" and metadata["objective"] == "labels" and metadata["format"] == "pt"
    assert metadata["fingerprint"] == ckpt.fingerprint
    assert json.loads(metadata["provenance"]) == ckpt.provenance
    config = from_plain(TrainConfig, json.loads(metadata["config"]), "metadata")
    data = from_plain(DataSpec, json.loads(metadata["data"]), "metadata")
    assert config == ckpt.config and data == ckpt.data
    model = Transformer(config.model, data, seed=1)
    model.load_state_dict(load_file(file))
    assert torch.equal(logits(model, ckpt.tokens(4)), logits(ckpt.model, ckpt.tokens(4)))
    assert [path.name for path in file.parent.iterdir()] == ["weights.safetensors"]


# Hugging Face folders.

ARCHITECTURES = [
    {"position": "learned", "score_bias": "learned"},
    {"position": "rotary", "score_bias": "fixed", "norm": "rms", "pooling": "last", "causal": True},
    {"position": "sinusoidal", "norm_placement": "post", "pooling": "cls"},
    {"position": "alibi", "mlp_ratio": 0, "norm": "none"},
    {"position": "relative", "pooling": "max", "position_std": 0.4},
    {"position": "none", "activation": "relu"},
]


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=lambda settings: settings["position"])
def test_a_folder_gives_back_the_network(settings, tmp_path):
    ckpt = checkpoint(n_layers=2, lengths=LENGTHS, **settings)
    ckpt.save_pretrained(str(tmp_path / "model"))
    AttnprobeModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    inputs = ckpt.tokens(6)
    lengths = torch.from_numpy(LENGTHS[:6])
    real = torch.arange(N) < lengths[:, None]
    masked = real & (inputs == 2)
    for model in (
        AttnprobeModel.from_pretrained(tmp_path / "model"),
        tf.AutoModel.from_pretrained(tmp_path / "model"),
        AttnprobeModel.from_pretrained(tmp_path / "again"),
    ):
        assert isinstance(model, AttnprobeModel) and not model.training
        assert torch.equal(logits(model, inputs), logits(ckpt.model, inputs))
        for options in ({}, {"output": "tokens"}, {"output": "tokens", "masked": masked}):
            found = logits(model, input_ids=inputs, attention_mask=real.long(), **options)
            assert torch.equal(found, logits(ckpt.model, inputs, lengths=lengths, **options))
        for (name, weight), (_, expected) in zip(
            model.network.state_dict().items(), ckpt.model.state_dict().items(), strict=True
        ):
            assert torch.equal(weight, expected), name


def test_a_network_that_reads_values_of_an_image(tmp_path):
    config, data = ModelConfig(d_model=16, score_bias="fixed"), DataSpec(N, "values", classes=3, grid=(3, 4))
    weights = Transformer(config, data).state_dict()
    ckpt = replace(checkpoint(), config=TrainConfig(model=config), data=data, weights=weights)
    ckpt.save_pretrained(tmp_path)
    model = tf.AutoModel.from_pretrained(tmp_path)
    inputs = torch.rand(3, N)
    assert model.main_input_name == "input_values" and model.config.grid == (3, 4) and model.config.num_labels == 3
    for output in ("labels", "tokens"):
        found = logits(model, input_values=inputs, output=output)
        assert torch.equal(found, logits(ckpt.model, inputs, output=output))


def test_a_network_that_reads_several_channels(tmp_path):
    ckpt = channels_checkpoint()
    ckpt.save_pretrained(tmp_path)
    model = tf.AutoModel.from_pretrained(tmp_path)
    inputs, lengths = ckpt.tokens(6), torch.tensor([N, 5, 8, 3, N, 1])
    attention_mask = (torch.arange(N) < lengths[:, None]).long()
    for output in ("labels", "tokens"):
        found = logits(model, input_values=inputs, attention_mask=attention_mask, output=output)
        assert torch.equal(found, logits(ckpt.model, inputs, lengths=lengths, output=output))
    refused(
        f"attention_mask of shape (6, 5): must be (6, {N}), 1 for the first tokens",
        lambda: model(input_values=inputs, attention_mask=attention_mask[:, :5]),
    )
    probe = ap.network(model, {"input_values": inputs.repeat_interleave(2, 0)})
    found, expected = (ap.proximity(of, sequences=6, nulls=0) for of in (probe, ckpt))
    np.testing.assert_allclose(found["grid_score_by_offset"], expected["grid_score_by_offset"], atol=1e-5)
    assert found["grid_mean_distance"].attrs["units"] == expected["grid_mean_distance"].attrs["units"] == "patches"


def test_the_configuration_says_where_the_weights_are_from(tmp_path):
    ckpt = checkpoint(n_layers=2)
    ckpt.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "attnprobe" and content["architectures"] == ["AttnprobeModel"]
    assert "auto_map" not in content  # no code is needed to load it
    config = tf.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AttnprobeConfig)
    assert config.settings == ckpt.config.model and config.data_spec == ckpt.data
    origin = config.checkpoint
    assert (origin["step"], origin["objective"], origin["fingerprint"]) == (5, "labels", ckpt.fingerprint)
    assert origin["provenance"] == ckpt.provenance
    assert from_plain(TrainConfig, {**origin["training"], "model": content["network"]}, "config.json") == ckpt.config


def test_an_export_has_the_weights_of_the_checkpoint_and_keeps_other_files(tmp_path):
    ckpt = checkpoint()
    expected = logits(ckpt.model, ckpt.tokens(4))
    (tmp_path / "README.md").write_text("a model card")
    checkpoint(seed=1, n_layers=2).save_pretrained(tmp_path)
    with torch.no_grad():
        ckpt.model.classify.weight.zero_()  # an edit of the cached network, not of the checkpoint
    ckpt.save_pretrained(tmp_path)
    assert torch.equal(logits(AttnprobeModel.from_pretrained(tmp_path), ckpt.tokens(4)), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_new_model_has_weights_of_the_default_generator():
    config = configuration(
        ModelConfig(d_model=8, position="rotary", init_std=0.4), DataSpec(4, "tokens", 2, vocabulary=3)
    )

    def weights(seed):
        torch.manual_seed(seed)
        return AttnprobeModel(config).network

    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first.W_Q, again.W_Q) and not torch.equal(first.W_Q, other.W_Q)
    assert torch.equal(first.position.cosine, other.position.cosine)
    mean_std = torch.stack([weights(seed).W_Q.detach().std() for seed in range(20)]).mean()
    assert float(mean_std) == pytest.approx(0.4, rel=0.1)  # transformers would use 0.02
    assert not first.classify.bias.any()


# Measures of an exported network have the numbers of the checkpoint.


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"position": "sinusoidal", "score_bias": "fixed"}, None),
        ({"position": "rotary"}, LENGTHS),
        ({"position": "learned", "pooling": "cls"}, None),
    ],
    ids=["one length", "padding", "cls"],
)
def test_the_command_measures_a_folder_as_the_checkpoint(settings, lengths, tmp_path):
    ckpt = checkpoint(n_layers=2, lengths=lengths, **settings)
    split = ckpt.task.test
    arrays = {"input_ids": split.inputs}
    if lengths is not None:
        arrays["attention_mask"] = (np.arange(N) < lengths[:, None]).astype(int)
    compare(ckpt, arrays, tmp_path)


def test_the_command_measures_images_on_their_grid(image_checkpoint, tmp_path):
    inputs = image_checkpoint.task.test.tensor(slice(6)).numpy()
    found = compare(image_checkpoint, {"input_ids": inputs}, tmp_path)
    assert "grid_toeplitz_share" in found


@pytest.mark.parametrize("task", ["pairs", "digits"])
def test_the_command_measures_a_folder_on_a_task(task, tmp_path):
    few = {"sequences": 4, "nulls": 0}
    ckpt = ap.train(ap.configure(task, recipe="supervised", steps=2), out=tmp_path / "run").checkpoints[-1]
    ckpt.save_pretrained(tmp_path / "model")
    flags = ["--sequences", "4", "--nulls", "0", "--out", str(tmp_path)]
    main(["interventions", f"hf:{tmp_path / 'model'}", "--task", task, "--edits", "uniform_attention", *flags])
    found = ap.open_result(tmp_path / "interventions.nc")
    expected = ap.interventions(ckpt, edits=("uniform_attention",), **few)
    for name in ("base_loss", "loss_change", "all_accuracy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def compare(ckpt, arrays, folder):
    """Measure a checkpoint and its export on the same sequences: every second row is measured."""
    ckpt.save_pretrained(folder / "model")
    np.savez(folder / "x.npz", **{name: np.repeat(x, 2, axis=0) for name, x in arrays.items()})
    few = ["--sequences", "6", "--nulls", "2", "--out", str(folder)]
    main(["proximity", f"hf:{folder / 'model'}", "--tokens", str(folder / "x.npz"), *few])
    found, expected = ap.open_result(folder / "proximity.nc"), ap.proximity(ckpt, sequences=6, nulls=2)
    names = [name for name, values in expected.data_vars.items() if "layer" in values.dims and name in found]
    names = [name for name in names if "null" not in expected[name].dims and expected[name].dtype.kind == "f"]
    assert {"score_by_offset", "pattern_by_offset", "toeplitz_share", "entropy", "near_mass"} <= set(names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    null = found["toeplitz_share_null"].sel(null="initial")
    assert (null.std("draw") > 0).all()  # networks at initialisation differ
    return found


# What cannot be read or written is refused in one line.


def refused(said, call):
    with pytest.raises(UsageError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["network.classify.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change(section, **fields):
    def edit(folder):
        content = json.loads((folder / "config.json").read_text())
        content[section].update(fields)
        (folder / "config.json").write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "not an attnprobe model (its configuration has no 'network')",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be loaded"),
        (lambda folder: shutil.rmtree(folder), "cannot be loaded"),
        (without_a_weight, "weights do not fit the configuration; missing or unexpected: network.classify.bias"),
        (change("network", d_model=32), "cannot be loaded"),
        (change("network", n_layers=1), "missing or unexpected: network.blocks.1"),
        (change("network", width=3), "network: ModelConfig has unknown width"),
        (change("data", n=0), "n=0"),
        (lambda folder: tf.BertConfig().save_pretrained(folder), "not an attnprobe model"),
    ],
    ids=range(10),
)
def test_folders_that_hold_no_model_are_refused(damage, said, tmp_path):
    folder = tmp_path / "model"
    checkpoint(n_layers=2).save_pretrained(folder)
    damage(folder)
    refused(said, lambda: AttnprobeModel.from_pretrained(folder))


def test_the_command_refuses_a_damaged_folder_in_one_line(tmp_path, capsys):
    checkpoint().save_pretrained(tmp_path / "model")
    without_a_weight(tmp_path / "model")
    np.savez(tmp_path / "x.npz", input_ids=np.zeros((4, N), int))
    with pytest.raises(SystemExit) as stop:
        main(["proximity", f"hf:{tmp_path / 'model'}", "--tokens", str(tmp_path / "x.npz")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "weights do not fit the configuration" in error


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    ckpt = checkpoint()
    (tmp_path / "file").write_text("")
    refused("cannot be written", lambda: ckpt.save_pretrained(tmp_path / "file"))
    refused("cannot be written", lambda: ckpt.to_safetensors(tmp_path / "file" / "x.safetensors"))
    refused("cannot be written", lambda: ckpt.to_safetensors(tmp_path))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "this network reads input_ids"),
        ({"input_ids": torch.ones(2, 4).long(), "input_values": torch.ones(2, 4)}, "this network reads input_ids"),
        ({"input_values": torch.ones(2, 4)}, "this network accepts tokens"),
        (
            {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.tensor([[0, 1, 1, 1]])},
            "attention_mask of shape (1, 4): must be (1, 4), 1 for the first tokens",
        ),
        (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 3)},
            "attention_mask of shape (2, 3): must be (2, 4)",
        ),
    ],
)
def test_inputs_that_the_network_cannot_read_are_refused(inputs, said):
    ckpt = checkpoint()
    model = AttnprobeModel(configuration(ckpt.config.model, ckpt.data)).eval()
    refused(said, lambda: model(**inputs))


def test_a_mask_that_does_not_count_cls_is_refused(tmp_path):
    ckpt = checkpoint(pooling="cls")
    model = AttnprobeModel(configuration(ckpt.config.model, ckpt.data)).eval()
    inputs = {"input_ids": ckpt.tokens(4), "attention_mask": torch.ones(4, N).long()}
    refused("attends over 13 tokens, but attention_mask has 12", lambda: ap.network(model, inputs))
