"""Named training settings: published ones, and small ones that train on a laptop in minutes.

``amos-...`` presets are the Transformers of Amos et al. 2024 (arXiv:2310.02980, and the configurations in their
repository, IdoAmos/not-from-scratch) on the Long Range Arena: pre-norm, GELU, no dropout, fixed sinusoidal positions,
AdamW with a constant learning rate after warm-up, self-pretraining followed by supervised training. Our settings differ
from theirs as follows:

- Our classification head is linear; theirs has a hidden layer.
- `image` uses batch size 50 in both stages; they pretrain with 32 and finetune with 50.
- The two stages share one warm-up.
- Initial weights are Xavier.
- `retrieval` joins the two documents in one sequence; they encode two sequences.
- Path-X uses full attention; they use windows of 4,096 tokens plus the neighbouring windows.

``small-...`` presets keep the tasks and shrink sequences, networks and data: two layers, minutes on two cores. They are
for experimenting, not for drawing conclusions.
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
_VALUES = {
    **_AMOS,
    "init_std": 0.4,
    "mask_probability": 0.5,
}  # std of torch's default Linear initialisation with two inputs

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


def _epochs(pretraining: int, supervised: int, sequences: int, batch_size: int = 32) -> dict[str, int]:
    """Convert the lengths of the two stages from epochs to steps."""
    first, second = (round(epochs * sequences / batch_size) for epochs in (pretraining, supervised))
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
        **_epochs(50, 200, 45000, batch_size=50),
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
"""Recommended (``small-...``) and published (``amos-...``) settings by name; `attnprobe.configure` reads them."""


def recommended(preset: str) -> dict[str, Any]:
    """Return the network and training settings of a preset, without its data settings."""
    data_settings = ("task", "task_options", "validation_size")
    return {name: value for name, value in PRESETS[preset].items() if name not in data_settings}
