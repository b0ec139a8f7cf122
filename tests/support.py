"""What several tests share that is no fixture."""

import os
import signal

import numpy as np
import torch

from attnprobe.config import DataSpec, ModelConfig, TrainConfig
from attnprobe.errors import UsageError
from attnprobe.measures import gradients, terms
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import Probe, read
from attnprobe.networks.own import Own
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
"""Settings of a run that trains in a second."""


def checkpoint(data=None, lengths=None, edit=None, seed=0, **named):
    """Return a checkpoint of a network on random tokens, edited by hand."""
    data = data or DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    config = ModelConfig(**{"d_model": 16, "init_std": 0.4, **named})
    model = Transformer(config, data, seed)
    if edit is not None:
        with torch.no_grad():
            edit(model)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(6, size=(30, data.n)), rng.integers(2, size=30), lengths)
    task = Task("mine", data, split, split)
    made = Checkpoint(TrainConfig(model=config), data, model.state_dict(), {}, 5, "labels", [], task.fingerprint)
    object.__setattr__(made, "task", task)  # its data come from no generator
    return made


def in_three_ways(folder, config, on_step):
    """End well, die or raise, by the name of the folder: what a worker process is given to do."""
    with (folder.parent / "begun").open("a") as file:
        file.write(f"{folder.name} ")
    if folder.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if folder.name == "refuses":
        raise UsageError("mend this")
    return "done"


def train_or_resume(folder, fields):
    """Train into a folder, or go on there: what a process does that may be killed."""
    from attnprobe.config import from_plain
    from attnprobe.training.loop import resume, train
    from attnprobe.training.run import Run

    torch.set_num_threads(1)
    if Run(folder).exists:
        resume(folder, progress=False)
    else:
        train(from_plain(TrainConfig, fields, "test"), folder, progress=False)


def own(model):
    """Return one of attnprobe's networks behind the seam."""
    config = ModelConfig(**{name: getattr(model.cfg, name) for name in ModelConfig.__dataclass_fields__})
    return Own(model, TrainConfig(model=config), lambda: None)


def batch_of(inputs):
    return Batch(inputs, torch.zeros(len(inputs), dtype=torch.long))


def scores_by_layer(model, inputs):
    """Return each layer's scores among the tokens of the sequence, as a measure reads them."""
    found = []
    read(own(model), batch_of(inputs), "labels", lambda heads: found.append(heads.scores))
    return found


def mean_profiles_of(model, split, most):
    """Return the mean score by offset, in each view and layer."""
    task = Task("mine", model.data, split, split)
    return gradients.mean_profiles(own(model), Probe(own(model), lambda: task), most)


def means_of(model, batches):
    return terms.means(own(model), map(batch_of, batches))


def parts_of(model, inputs, means, mask=None):
    """Return each layer's parts of a score."""
    found = []
    objective = "labels" if mask is None else "masked"
    terms.visit_parts(own(model), batch_of(inputs), means, lambda layer, one: found.append(one), objective, mask)
    return found
