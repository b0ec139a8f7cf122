"""Search for the settings of the canvas analyses, on validation images of one seed that is not reported.

The question is whether supervised training fails on `digits-canvas` for want of good settings. Rule, fixed before any
run: every candidate trains a network of 2 layers, width 64 and 4 heads, with learned positions, for 4,000 steps (SPT:
3,000 of them on masked pixels). The candidates of both recipes are the same: two learning rates, two scales of the
initial weights, and three regularisations. The score of a run is the highest validation accuracy of its evaluations,
as early stopping would find it; this favours supervised training, which has four times as many evaluations on the
labels. The best candidate of each recipe is then trained with 1 and 3 layers and with width 32, with both learning
rates, and supervised training with 4 times the steps as well. Test accuracies are not used.

Command: python analyses/canvas_search.py
Cost: 41 runs, about 90 minutes on two cores. Claim 8 needs the first 24 only, whose table is written before the others.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from lab import FOLDER, Lab
from settings import SEARCHED, WEIGHTS

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic
from attnprobe.tasks import configure
from attnprobe.training.run import Run

NETWORK: dict[str, Any] = {"n_layers": 2, "d_model": 64, "n_heads": 4, "mlp_ratio": 2, "position": "learned"}
TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "steps": 4000,
    "pretrain_steps": 3000,
    "mask_probability": 0.3,
    "validation_size": 200,
    "evaluations": 20,
    "checkpoints": 1,
}
RECIPES = ("supervised", "spt")
RATES = (1e-3, 3e-3)
REGULARISATION: dict[str, dict[str, float]] = {
    "none": {"weight_decay": 0.01},
    "dropout": {"weight_decay": 0.01, "dropout": 0.2},
    "weight decay": {"weight_decay": 0.3},
}
SIZES: dict[str, dict[str, int]] = {
    "1 layer": {"n_layers": 1},
    "3 layers": {"n_layers": 3},
    "1 layer, width 32": {"n_layers": 1, "d_model": 32},
    "2 layers, width 32": {"d_model": 32},
}
RESULT = FOLDER / "results" / "canvas_search.csv"
Candidate = tuple[str, float, str, str, str]
"""Recipe, learning rate, initial weights, regularisation, and what differs from the network searched first."""


def configured(candidate: Candidate, seed: int = SEARCHED, task: str = "digits-canvas", **more: Any) -> TrainConfig:
    """Return the configuration of a candidate."""
    recipe, rate, weights, regularisation, size = candidate
    settings = {**NETWORK, **TRAINING, **WEIGHTS[weights], **REGULARISATION[regularisation], **SIZES.get(size, {})}
    if size == "4 x the steps":
        settings["steps"] *= 4
    return configure(task, **{**settings, "recipe": recipe, "learning_rate": rate, "seed": seed, **more})


def chosen(recipe: str, size: str = "") -> Candidate:
    """Return the candidate that the search chose for a recipe and size, from its table, which lists it first."""
    if not RESULT.exists():
        raise UsageError(f"{RESULT}: no such file; run analyses/canvas_search.py first")
    table = pd.read_csv(RESULT, keep_default_na=False)
    rows = table[(table["recipe"] == recipe) & (table["size"] == size)]
    if rows.empty:
        raise UsageError(f"{RESULT}: has no size {size!r} yet; run analyses/canvas_search.py to its end")
    row = rows.iloc[0]
    return recipe, float(row["learning rate"]), row["initial weights"], row["regularisation"], size


def stopped(run: Run) -> dict[str, Any]:
    """Return the evaluation on the labels with the highest validation accuracy; of equal ones, the lowest loss."""
    rows = [row for row in run.metrics if row["objective"] == "labels"]
    return max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))


def main() -> None:
    """Train all candidates and write the table, then train the other sizes and write it again."""
    lab = Lab()
    first: list[Candidate] = [
        (recipe, rate, weights, regularisation, "")
        for weights in ("large", "small")
        for regularisation in REGULARISATION
        for rate in RATES
        for recipe in RECIPES
    ]
    runs = lab.train({candidate: configured(candidate) for candidate in first})
    write_table(runs)
    best = {recipe: chosen(recipe) for recipe in RECIPES}
    second: list[Candidate] = [("supervised", *best["supervised"][1:4], "4 x the steps")]
    second += [(recipe, rate, *best[recipe][2:4], size) for size in SIZES for rate in RATES for recipe in RECIPES]
    runs |= lab.train({candidate: configured(candidate) for candidate in second})
    print(write_table(runs).to_string(index=False))


def write_table(runs: Mapping[Candidate, Run]) -> pd.DataFrame:
    """Write and return the table of all candidates; of each recipe and size, the best comes first."""
    names = ("recipe", "learning rate", "initial weights", "regularisation", "size")
    rows = []
    for candidate, run in runs.items():
        best = stopped(run)
        rows.append(
            {
                **dict(zip(names, candidate, strict=True)),
                "best validation accuracy": best["validation_accuracy"],
                "its validation loss": best["validation_loss"],
                "last validation accuracy": run.metrics[-1]["validation_accuracy"],
                "last training accuracy": run.metrics[-1]["train_accuracy"],
                "steps": run.config.steps,
            }
        )
    order = ["size", "recipe", "best validation accuracy", "its validation loss"]
    table = pd.DataFrame(rows).sort_values(order, ascending=[True, True, False, True])
    write_atomic(RESULT, table.to_csv(index=False))
    return table


if __name__ == "__main__":
    main()
