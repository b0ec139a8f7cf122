import pytest

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.tasks import PRESETS, TASKS, configure, source


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_configuration_of_its_task(preset):
    config = configure(preset=preset)
    assert config.task == PRESETS[preset]["task"] in TASKS
    assert source(config.task, config.task_options).data.n > 0
    assert 0 < config.pretrain_steps < config.steps


# as published: layers, d_model, heads, d_mlp, batch size, learning rate (supervised, pretraining), mask probability,
# pooling, n
AMOS = {
    "amos-listops": (6, 512, 8, 2048, 32, 1e-4, 1e-3, 0.1, "mean", 2048),
    "amos-text": (6, 512, 8, 2048, 32, 1e-4, 5e-4, 0.15, "mean", 4096),
    "amos-retrieval": (4, 128, 4, 512, 32, 5e-4, 5e-3, 0.15, "mean", 8001),
    "amos-image": (3, 64, 4, 128, 50, 1e-3, None, 0.5, "max", 1024),
    "amos-pathfinder": (4, 128, 8, 128, 32, 5e-4, 1e-3, 0.5, "mean", 1024),
    "amos-path-x": (4, 128, 4, 128, 32, 5e-4, None, 0.5, "max", 16384),
}


@pytest.mark.parametrize("preset", AMOS)
def test_the_published_numbers(preset):
    config = configure(preset=preset)
    model = config.model
    settings = (model.n_layers, model.d_model, model.n_heads, model.d_mlp, config.batch_size, config.learning_rate)
    n = source(config.task, config.task_options).data.n
    assert (*settings, config.pretrain_learning_rate, config.mask_probability, model.pooling, n) == AMOS[preset]
    assert (model.position, model.norm_placement, model.activation) == ("sinusoidal", "pre", "gelu")
    assert (config.schedule, config.weight_decay) == ("constant", 0.1 if preset == "amos-text" else 0.0)


def test_epochs_are_passes_through_the_training_sequences():
    config = configure(preset="amos-image")
    sequences = source(config.task).sizes["train"] - config.validation_size
    assert config.pretrain_steps * config.batch_size == 50 * sequences
    assert (config.steps - config.pretrain_steps) * config.batch_size == 200 * sequences


def test_keyword_settings_override_the_preset_and_options_are_merged():
    config = configure(preset="amos-path-x", learning_rate=0.5, task_options={"train_size": 10})
    assert config.learning_rate == 0.5
    assert config.task_options == {"side": 128, "train_size": 10}
    assert configure(preset="amos-path-x", task_options={"side": 32}).task_options == {"side": 32}
    assert configure() == TrainConfig()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"preset": "amos"}, "preset='amos' is unknown; valid: amos-listops"),
        ({"preset": "amos-image", "task": "text"}, "preset='amos-image' is for task image, not text"),
    ],
)
def test_invalid_presets_are_refused(named, message):
    with pytest.raises(UsageError, match=message):
        configure(**named)
