"""Settings under a name: the published ones of a paper, and small ones that a laptop trains in minutes.

``amos-...`` are the Transformers of Amos et al. 2024 (arXiv:2310.02980, and the configurations in their repository,
IdoAmos/not-from-scratch) on the Long Range Arena: pre-norm, GELU, no dropout, fixed sinusoidal positions, AdamW with a
constant rate after the warm-up, self-pretraining and then the labels. Differences: their label head has a hidden layer
and ours is linear; they pretrain `image` in batches of 32 and finetune in batches of 50, here both have 50; the two
stages share one warm-up; initial weights are Xavier's. `retrieval` is one sequence here and two there, and Path-X has
full attention here and windows of 4,096 tokens with their neighbours there.

``small-...`` keep the tasks and shrink sequences, networks and data: two layers, some minutes on two cores. They
are for trying things out and not for conclusions.
"""

from typing import Any

_AMOS: dict[str, Any] = {
    "position": "sinusoidal",
    "init": "xavier",
    "schedule": "constant",
    "weight_decay": 0.0,
    "batch_size": 32,
}
_IDS = {**_AMOS, "init_std": 1.0}
_VALUES = {**_AMOS, "init_std": 0.4, "mask_probability": 0.5}  # the spread of torch's own Linear from two inputs

_SMALL: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 64,
    "n_heads": 4,
    "position": "sinusoidal",
    "init": "xavier",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "steps": 2000,
    "pretrain_steps": 1500,
    "evaluations": 8,
}


def _epochs(pretraining: int, labels: int, sequences: int, batch: int = 32) -> dict[str, int]:
    """Return the steps of both stages, whose lengths are given in passes through the training sequences."""
    first, second = (round(epochs * sequences / batch) for epochs in (pretraining, labels))
    return {"pretrain_steps": first, "steps": first + second}


PRESETS: dict[str, dict[str, Any]] = {
    "amos-listops": {
        **_IDS,
        **_epochs(100, 100, 96000),
        "task": "listops",
        "n_layers": 6,
        "d_model": 512,
        "n_heads": 8,
        "mlp_ratio": 4,
        "mask_probability": 0.1,
        "learning_rate": 1e-4,
        "pretrain_learning_rate": 1e-3,
        "warmup_steps": 2000,
    },
    "amos-text": {
        **_IDS,
        **_epochs(32, 65, 25000),
        "task": "text",
        "n_layers": 6,
        "d_model": 512,
        "n_heads": 8,
        "mlp_ratio": 4,
        "mask_probability": 0.15,
        "learning_rate": 1e-4,
        "pretrain_learning_rate": 5e-4,
        "weight_decay": 0.1,
        "warmup_steps": 5000,
    },
    "amos-retrieval": {
        **_IDS,
        **_epochs(32, 32, 147086),
        "task": "retrieval",
        "n_layers": 4,
        "d_model": 128,
        "n_heads": 4,
        "mlp_ratio": 4,
        "mask_probability": 0.15,
        "learning_rate": 5e-4,
        "pretrain_learning_rate": 5e-3,
        "warmup_steps": 2000,
    },
    "amos-image": {
        **_VALUES,
        **_epochs(50, 200, 45000, batch=50),
        "task": "image",
        "validation_size": 5000,
        "n_layers": 3,
        "d_model": 64,
        "n_heads": 4,
        "pooling": "max",
        "learning_rate": 1e-3,
        "batch_size": 50,
        "warmup_steps": 2500,
    },
    "amos-pathfinder": {
        **_VALUES,
        **_epochs(50, 200, 160000),
        "task": "pathfinder",
        "n_layers": 4,
        "d_model": 128,
        "n_heads": 8,
        "mlp_ratio": 1,
        "learning_rate": 5e-4,
        "pretrain_learning_rate": 1e-3,
        "warmup_steps": 2500,
    },
    "amos-path-x": {
        **_VALUES,
        **_epochs(200, 200, 160000),
        "task": "pathfinder",
        "task_options": {"side": 128},
        "n_layers": 4,
        "d_model": 128,
        "n_heads": 4,
        "mlp_ratio": 1,
        "pooling": "max",
        "learning_rate": 5e-4,
        "warmup_steps": 5000,
    },
    "small-listops": {
        **_SMALL,
        "task": "listops",
        "task_options": {
            "n": 64,
            "min_length": 10,
            "max_length": 64,
            "max_depth": 5,
            "max_args": 5,
            "train_size": 20000,
            "validation_size": 1000,
            "test_size": 1000,
        },
        "init_std": 0.1,
        "mask_probability": 0.1,
        "batch_size": 64,
        "steps": 4000,
        "pretrain_steps": 2000,
    },
    "small-pathfinder": {
        **_SMALL,
        "task": "pathfinder",
        "task_options": {"train_size": 5000, "validation_size": 500, "test_size": 500},
        "init_std": 0.4,
        "mask_probability": 0.5,
        "d_model": 32,
        "n_heads": 2,
        "batch_size": 8,
        "steps": 1500,
        "pretrain_steps": 1000,
    },
    "small-image": {
        **_SMALL,
        "task": "image-16",
        "task_options": {"train_size": 5000, "test_size": 1000},
        "init_std": 0.4,
        "mask_probability": 0.5,
    },
    "small-text": {
        **_SMALL,
        "task": "text",
        "task_options": {"n": 256, "train_size": 5000, "test_size": 1000},
        "init_std": 0.1,
        "mask_probability": 0.15,
    },
    "small-mnist": {
        **_SMALL,
        "task": "mnist-5k",
        "task_options": {"side": 14, "levels": 8, "inputs": "tokens"},
        "position": "learned",
        "init": "normal",
        "mask_probability": 0.5,
    },
}


def recommended(preset: str) -> dict[str, Any]:
    """Return what a preset says of network and training, for the task that it was made for."""
    of_the_data = ("task", "task_options", "validation_size")
    return {name: value for name, value in PRESETS[preset].items() if name not in of_the_data}
