"""Settings shared by claims 1 to 7: tasks, networks, search space, the search's choices, and seeds.

Every network has one layer and a residual stream of width 32, sized for two cores. It has two attention heads, except
on digits, where it has four. `claim1_spt_gain` chooses learning rate, initial weights and the split of the steps for
each task and recipe, on validation sequences of seed `SEARCHED`. `CHOSEN` repeats these choices, and a test checks that
they agree. The number of steps of the four longer tasks was raised once, to 2,000 and 3,000, after a search with 800
and 1,500 had left two of them at chance. Every other number was fixed before any result, and none was chosen on test
sequences.
"""

from typing import Any

from attnprobe.config import Recipe, TrainConfig
from attnprobe.tasks import PRESETS, Source, configure, source

SEARCHED = 0
"""Seed of the search."""
SEEDS = {"quick": (11, 12), "default": (11, 12, 13, 14, 15), "full": tuple(range(11, 21))}
"""Seeds of every reported number: new task instances, weights and batches."""

COMMON: dict[str, Any] = {
    "n_layers": 1,
    "d_model": 32,
    "n_heads": 2,
    "mlp_ratio": 2,
    "position": "learned",
    "pooling": "mean",
    "schedule": "cosine",
    "weight_decay": 0.01,
    "warmup_steps": 50,
    "mask_probability": 0.3,
    "evaluations": 4,
    "checkpoints": 5,
}
_LONG = {"batch_size": 16, "steps": 2000, "evaluations": 1, "checkpoints": 1}
"""For 256 tokens per sequence: more evaluations than one at the end of each stage would take as long as training."""

TASKS: dict[str, dict[str, Any]] = {
    "pairs": {"task_options": {"train_size": 700}, "validation_size": 200, "steps": 2000, "batch_size": 64},
    "planted": {"task_options": {"train_size": 700}, "validation_size": 200, "steps": 2000, "batch_size": 64},
    "bigrams": {"task_options": {"train_size": 700}, "validation_size": 200, "steps": 1500, "batch_size": 64},
    "digits": {"validation_size": 200, "n_heads": 4, "steps": 1500, "batch_size": 32},
    "listops": {
        "task_options": {
            **PRESETS["small-listops"]["task_options"],
            "train_size": 5000,
            "validation_size": 500,
            "test_size": 2000,
        },
        "steps": 3000,
        "batch_size": 32,
    },
    "image-16": {"task_options": {"train_size": 5500, "test_size": 1000}, "validation_size": 500, **_LONG},
    "pathfinder": {
        "task_options": {
            "side": 16,
            "contour_length": 5,
            "distractors": 1,
            "train_size": 3000,
            "validation_size": 500,
            "test_size": 1000,
        },
        **_LONG,
    },
    "text": {
        "task_options": {"n": 256, "train_size": 5500, "test_size": 1000},
        "validation_size": 500,
        **_LONG,
    },
}

RATES = (1e-3, 3e-3)
WEIGHTS: dict[str, dict[str, Any]] = {
    "small": {"init": "normal", "init_std": 0.02, "position_std": 0.02},
    "large": {"init": "xavier", "init_std": 0.1, "position_std": 0.1},
}
"""Small: weights, embeddings and positions N(0, 0.02). Large: Xavier weights, embeddings and positions N(0, 0.1)."""
SPLITS: dict[Recipe, tuple[float, ...]] = {"supervised": (0.5, 1.0), "spt": (0.5, 0.75)}
"""Fraction of the steps used by supervised training, and fraction that SPT spends on self-pretraining."""

LARGE: dict[str, Any] = {"n_layers": 2, "d_model": 128, "n_heads": 8}
"""Networks of ``--full``. Claim 1 searches again for them; the other claims keep the choices of the small networks."""

SMALL = ", small weights"
"""Suffix of a task whose candidates are restricted to small initial weights, since the initial scale matters a lot."""

Choice = tuple[float, str, float]
"""Learning rate, initial weights, split of the steps."""
CHOSEN: dict[tuple[str, Recipe], Choice] = {
    ("pairs", "supervised"): (1e-3, "large", 1.0),
    ("pairs", "spt"): (3e-3, "large", 0.5),
    ("planted", "supervised"): (1e-3, "small", 0.5),
    ("planted", "spt"): (3e-3, "large", 0.5),
    ("bigrams", "supervised"): (3e-3, "large", 1.0),
    ("bigrams", "spt"): (3e-3, "large", 0.5),
    ("digits", "supervised"): (3e-3, "large", 0.5),
    ("digits", "spt"): (3e-3, "large", 0.75),
    ("listops", "supervised"): (1e-3, "large", 1.0),
    ("listops", "spt"): (3e-3, "large", 0.75),
    ("image-16", "supervised"): (3e-3, "large", 1.0),
    ("image-16", "spt"): (3e-3, "large", 0.5),
    ("pathfinder", "supervised"): (3e-3, "large", 0.5),
    ("pathfinder", "spt"): (3e-3, "small", 0.5),
    ("text", "supervised"): (1e-3, "large", 0.5),
    ("text", "spt"): (3e-3, "large", 0.5),
    ("pairs, small weights", "supervised"): (3e-3, "small", 1.0),
    ("pairs, small weights", "spt"): (3e-3, "small", 0.75),
    ("digits, small weights", "supervised"): (3e-3, "small", 1.0),
    ("digits, small weights", "spt"): (3e-3, "small", 0.5),
}


def candidates(recipe: Recipe) -> list[Choice]:
    """Return the candidates of the search (learning rate, initial weights, split): the same number per recipe."""
    return [(rate, weights, split) for rate in RATES for weights in WEIGHTS for split in SPLITS[recipe]]


def source_of(task: str) -> Source:
    """Return the data source of a task."""
    return source(task.removesuffix(SMALL))


def setting(task: str, recipe: Recipe, seed: int, choice: Choice | None = None, **overrides: Any) -> TrainConfig:
    """Return the configuration of a task and recipe under a choice, by default the search's choice.

    Keyword arguments override all other settings; ``steps`` is the number of steps before the split.
    """
    rate, weights, split = choice or CHOSEN[task, recipe]
    task = task.removesuffix(SMALL)
    defaults = {**COMMON, **TASKS[task], **WEIGHTS[weights], "learning_rate": rate}
    options = {**defaults.get("task_options", {}), **overrides.pop("task_options", {})}
    steps = overrides.pop("steps", defaults["steps"])
    part = round(steps * split)
    stages = (
        {"steps": part, "pretrain_steps": 0} if recipe == "supervised" else {"steps": steps, "pretrain_steps": part}
    )
    settings = {**defaults, "recipe": recipe, "seed": seed, **stages, **overrides, "task_options": options}
    return configure(task, **settings)


def sized(task: str, *sizes: int) -> dict[int, dict[str, Any]]:
    """Return the settings for numbers of training sequences, excluding the validation split."""
    validation_size = TASKS[task]["validation_size"]
    return {size: {"task_options": {"train_size": size + validation_size}} for size in sizes}
