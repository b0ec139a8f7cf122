"""Shared helpers of the tests, other than fixtures."""

import os
import signal

import numpy as np
import torch

from attnprobe.config import DataSpec, ModelConfig, TrainConfig
from attnprobe.errors import UsageError
from attnprobe.measures import gradients, terms
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import Probe, read
from attnprobe.networks.transformer import TransformerNetwork
from attnprobe.tasks import Split, Task
from attnprobe.training.checkpoint import Checkpoint
from attnprobe.training.objectives import Batch

N = 12

TINY = {
    "task_options": {"train_size": 64, "test_size": 40},
    "steps": 12,
    "evaluations": 2,
    "checkpoints": 2,
    "batch_size": 16,
}
"""Settings of a run that trains in about a second."""


def checkpoint(data=None, lengths=None, edit=None, seed=0, **settings):
    """Return a checkpoint of an untrained network on random tokens; ``edit`` can change its weights."""
    data = data or DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    config = ModelConfig(**{"d_model": 16, "init_std": 0.4, **settings})
    model = Transformer(config, data, seed)
    if edit is not None:
        with torch.no_grad():
            edit(model)
    rng = np.random.default_rng(0)
    if data.inputs == "values":
        inputs = rng.normal(size=(30, data.n, data.channels)[: 2 + (data.channels > 1)])
    else:
        inputs = rng.integers(6, size=(30, data.n))
    split = Split(inputs, rng.integers(2, size=30), lengths)
    task = Task("mine", data, split, split)
    result = Checkpoint(TrainConfig(model=config), data, model.state_dict(), {}, 5, "labels", [], task.fingerprint)
    object.__setattr__(result, "task", task)  # no registered task generates these data
    return result


def channels_checkpoint(**settings):
    """Return a checkpoint of an untrained network on random images of 3 x 4 patches of 2 x 2 pixels."""
    return checkpoint(DataSpec(N, "values", 2, grid=(3, 4), channels=4, patch=2), **settings)


def in_three_ways(folder, config, on_step):
    """Cell function of a worker process that succeeds, is killed or raises, depending on the name of the folder."""
    with (folder.parent / "begun").open("a") as file:
        file.write(f"{folder.name} ")
    if folder.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if folder.name == "refuses":
        raise UsageError("invalid cell")
    return "done"


def train_or_resume(folder, fields):
    """Train into a folder, or resume if it contains a run; the process may be killed."""
    from attnprobe.config import from_plain
    from attnprobe.training.loop import resume, train
    from attnprobe.training.run import Run

    torch.set_num_threads(1)
    if Run(folder).exists:
        resume(folder, progress=False)
    else:
        train(from_plain(TrainConfig, fields, "test"), folder, progress=False)


def own(model):
    """Wrap a `Transformer` in the network interface of the measures."""
    config = ModelConfig(**{name: getattr(model.cfg, name) for name in ModelConfig.__dataclass_fields__})
    return TransformerNetwork(model, TrainConfig(model=config), lambda: None)


def batch_of(inputs):
    return Batch(inputs, torch.zeros(len(inputs), dtype=torch.long))


def scores_by_layer(model, inputs):
    """Return the scores of each layer as a measure reads them."""
    layers = []
    read(own(model), batch_of(inputs), "labels", lambda heads: layers.append(heads.scores))
    return layers


def mean_profiles_of(model, split, most):
    """Return the mean score by offset in each view and layer."""
    task = Task("mine", model.data, split, split)
    return gradients.mean_profiles(own(model), Probe(own(model), lambda: task), most)


def means_of(model, batches):
    return terms.means(own(model), map(batch_of, batches))


def parts_of(model, inputs, means, mask=None):
    """Return the content and position parts of each layer's scores."""
    layers = []
    objective = "labels" if mask is None else "masked"
    terms.visit_parts(own(model), batch_of(inputs), means, lambda layer, parts: layers.append(parts), objective, mask)
    return layers
