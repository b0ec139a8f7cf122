import dataclasses

import pytest

from attnprobe.config import DataSpec, ModelConfig, TrainConfig, from_flat, from_plain, read_settings
from attnprobe.errors import UsageError
from attnprobe.tables import POSITIONS
from attnprobe.tasks import configure


def test_setting_names_are_unique():
    names = [field.name for kind in (ModelConfig, TrainConfig) for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


def test_valid_positions_and_objectives_are_the_registered_names():
    assert [ModelConfig(position=name).position for name in POSITIONS] == list(POSITIONS)
    with pytest.raises(UsageError, match="position='absolute' is unknown; valid: none, learned"):
        ModelConfig(position="absolute")
    with pytest.raises(UsageError, match="pretrain_objective=.labels. is unknown; valid: masked, next-token, auto"):
        TrainConfig(pretrain_objective="labels")


def test_from_plain_inverts_asdict():
    config = configure("digits", recipe="supervised", n_layers=3, freeze=["qk"], task_options={"test_size": 5})
    assert from_plain(TrainConfig, dataclasses.asdict(config), "here") == config


def test_missing_fields_get_their_defaults():
    plain = dataclasses.asdict(configure("digits", recipe="supervised", n_layers=3))
    del plain["model"]["score_bias"], plain["grad_clip"]
    assert from_plain(TrainConfig, plain, "here") == configure("digits", recipe="supervised", n_layers=3)
    del plain["model"]
    assert from_plain(TrainConfig, plain, "here").model == ModelConfig()


@pytest.mark.parametrize(
    ("kind", "plain", "message"),
    [
        (ModelConfig, {"n_layer": 2}, "here: ModelConfig has unknown n_layer"),
        (TrainConfig, {"model": {"n_layer": 2}}, "here: ModelConfig has unknown n_layer"),
        (DataSpec, {"n": 4, "inputs": "values"}, "here: DataSpec has missing classes"),
        (DataSpec, {"n": 4, "input": "values"}, "here: DataSpec has unknown input; missing classes, inputs"),
        (ModelConfig, 3, "here: int instead of a mapping of ModelConfig fields"),
        (TrainConfig, {"model": 3}, "here: int instead of a mapping of ModelConfig fields"),
    ],
)
def test_unknown_and_missing_fields_are_refused(kind, plain, message):
    with pytest.raises(UsageError) as error:
        from_plain(kind, plain, "here")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length_scale": 0}, "length_scale=0: input should be greater than 0"),
        ({"score_bias": "on"}, "score_bias='on' is unknown; valid: none, fixed, learned"),
        ({"rat": 1}, "unknown setting 'rat'; valid: activation, batch_size, causal"),
        ({"recipe": "spit"}, "recipe='spit' is unknown; did you mean 'spt'? valid: supervised, spt"),
        ({"position": "rotory"}, "position='rotory' is unknown; did you mean 'rotary'? valid: none, learned"),
        ({"n_layers": 0}, "n_layers=0: input should be greater than 0"),
        ({"n_layers": "two"}, "n_layers='two'"),
        ({"mask_probability": 1.0}, "mask_probability=1.0: input should be less than 1"),
        ({"d_model": 30, "n_heads": 4}, "d_model=30: must be a multiple of n_heads=4"),
        ({"d_model": 6, "n_heads": 2, "position": "rotary"}, "even d_head; d_model / n_heads is 3"),
        ({"pooling": "cls", "causal": True}, "would attend only to itself"),
        ({"seed": 2**32}, "seed=4294967296: input should be less than"),
        ({"steps": 10, "pretrain_steps": 11}, "pretrain_steps=11 must be at least 1 and at most steps=10"),
        ({"pretrain_objective": "next-token"}, "needs causal=True"),
        ({"transfer": "qk"}, "needs init_from"),
    ],
)
def test_invalid_settings_are_refused_in_one_line_that_names_them(settings, message):
    with pytest.raises(UsageError) as error:
        from_flat(settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_stages_add_up_to_the_same_number_of_steps_in_both_recipes():
    settings = {"steps": 10, "pretrain_steps": 7}
    assert from_flat({**settings, "recipe": "spt"}).stages == (("masked", 7), ("labels", 3))
    assert from_flat({**settings, "recipe": "supervised"}).stages == (("labels", 10),)
    assert from_flat({"steps": 7, "pretrain_steps": 7}).stages == (("masked", 7),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "learning_rate = 1\n[model]\nn_layers = 2\n[task_options]\nn = 16\n"),
        ("a.yaml", "learning_rate: 1\nmodel:\n  n_layers: 2\ntask_options:\n  n: 16\n"),
    ],
)
def test_files_hold_the_same_settings(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    config = configure(**read_settings(path))
    assert (config.learning_rate, config.model.n_layers, config.task_options) == (1.0, 2, {"n": 16})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "must end in .toml, .yaml, .yml"),
        ("a.toml", "learning_rate = ", "a.toml: "),
        ("a.yaml", "learning_rate: [", "a.yaml: "),
        ("a.yaml", "- 1", "contains no settings"),
        ("a.toml", "learning_rate = 1\n[train]\nlearning_rate = 2", "learning_rate is set twice"),
        ("a.yaml", "1: 2", "1 is not the name of a setting"),
    ],
)
def test_invalid_files_are_refused_in_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_settings(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 4, "inputs": "tokens", "classes": 2}, "vocabulary must be positive"),
        ({"n": 4, "inputs": "values", "classes": 2, "vocabulary": 3}, "vocabulary must be positive"),
        ({"n": 4, "inputs": "values", "classes": 1}, "classes=1"),
        ({"n": 5, "inputs": "values", "classes": 2, "grid": (2, 2)}, "n=5: grid 2 x 2 has 4 tokens"),
    ],
)
def test_inconsistent_data_specs_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        DataSpec(**settings)


def test_settings_show_what_differs_from_the_defaults_as_an_expression():
    names = {"TrainConfig": TrainConfig, "ModelConfig": ModelConfig}
    assert repr(TrainConfig()) == "TrainConfig()"
    for config in (
        TrainConfig(),
        TrainConfig(task="digits", model=ModelConfig(n_layers=3, causal=True), more_steps=(3, 4)),
        TrainConfig(task_options={"n": 8}, init_seed=3),
    ):
        assert eval(repr(config), names) == config
    assert repr(TrainConfig(model=ModelConfig(n_layers=3))) == "TrainConfig(model=ModelConfig(n_layers=3))"
