"""What several tests share that is no fixture."""

import os
import signal

import numpy as np
import torch

from attnprobe.checkpoint import Checkpoint
from attnprobe.config import DataSpec, ModelConfig, TrainConfig
from attnprobe.errors import UsageError
from attnprobe.tasks import Split, Task
from attnprobe.transformer import Transformer

N = 12

TINY = {
    "task_options": {"train_size": 64, "test_size": 40},
    "steps": 12,
    "evaluations": 2,
    "checkpoints": 2,
    "batch_size": 16,
}
"""Settings of a run that trains in a second."""


def checkpoint(data=None, lengths=None, edit=None, **named):
    """Return a checkpoint of a network on random tokens, edited by hand."""
    data = data or DataSpec(n=N, inputs="tokens", classes=2, vocabulary=6)
    config = ModelConfig(**{"d_model": 16, "init_scale": 0.4, **named})
    model = Transformer(config, data)
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
    from attnprobe.run import Run
    from attnprobe.training import resume, train

    torch.set_num_threads(1)
    if Run(folder).exists:
        resume(folder, progress=False)
    else:
        train(from_plain(TrainConfig, fields, "test"), folder, progress=False)
