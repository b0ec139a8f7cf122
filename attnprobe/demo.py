"""Demo: train both recipes on a generated and a real task over several seeds and compare their attention scores."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError
from attnprobe.figures.recipes import recipes as draw_recipes
from attnprobe.files import writing
from attnprobe.report import write as report
from attnprobe.results import join, most_proximal, own_prefix, save
from attnprobe.statistics.seeds import mean_interval
from attnprobe.sweeps.cells import complete
from attnprobe.sweeps.workers import run_all
from attnprobe.tasks import configure
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run

# Few evaluations and checkpoints, and on the canvas one layer of width 32 and few steps, to take only minutes.
SETTINGS: dict[str, dict[str, Any]] = {
    "pairs": {"task": "pairs", "evaluations": 4, "checkpoints": 4},
    "digits-canvas": {
        "task": "digits-canvas",
        **{"n_layers": 1, "d_model": 32, "n_heads": 4, "mlp_ratio": 2, "batch_size": 32},
        **{"learning_rate": 3e-3, "init": "xavier", "init_std": 0.1, "position_std": 0.1},
        **{"steps": 1000, "pretrain_steps": 700, "evaluations": 4, "checkpoints": 4},
    },
}
"""Settings by the name of the task in the table and the figure."""
RECIPES = ("supervised", "spt")


def demo(out: Path, seeds: int, workers: int, quick: bool = False) -> None:
    """Run `compare` on the tasks of the demonstration, or only on ``pairs``, and print what to do next."""
    settings = {"pairs": SETTINGS["pairs"]} if quick else SETTINGS
    compare(settings, out, seeds, workers, "demo")
    print(f"next:   attnprobe proximity {out / 'pairs-spt-0'}    # measure all checkpoints of a run")


def compare(settings: Mapping[str, Mapping[str, Any]], out: Path, seeds: int, workers: int, figure: str) -> None:
    """Train both recipes on tasks with paired seeds, measure the runs, print a table and draw a figure.

    Args:
        settings: Settings of `configure` by name of the task.
        out: Folder of the runs, the results and the figure. Runs that it already holds are not repeated.
        seeds: Number of seeds.
        workers: Number of concurrent runs.
        figure: Name of the figure in the folder.
    """
    if seeds < 1 or workers < 1:
        raise UsageError(f"seeds={seeds}, workers={workers}: both must be at least 1")
    report.prepare(out)
    plan = {
        out / f"{task}-{recipe}-{seed}": configure(recipe=recipe, seed=seed, **of_task)
        for task, of_task in reversed(list(settings.items()))  # longest first, so that no worker idles at the end
        for seed in range(seeds)
        for recipe in RECIPES
    }
    for folder, config in plan.items():
        _check_folder(folder, config)
    print(f"training {len(plan)} runs in {out}, {workers} in parallel")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    results = run_all(_run_one, plan, workers, _lost)
    joined: dict[str, xr.Dataset] = {}
    for task in settings:
        by_recipe = [
            join([results[out / f"{task}-{recipe}-{seed}"] for seed in range(seeds)], "seed", range(seeds))
            for recipe in RECIPES
        ]
        joined[task] = join(by_recipe, "recipe", RECIPES)
        save(joined[task], out / f"{task}.nc")
    report.write_figure(draw_recipes(joined), out / figure, "supervised training and self-pretraining (SPT)")
    print(_table(joined))
    spread = "mean ± std over seeds; " if seeds > 1 else "one seed; "
    print(f"\n{spread}distance, share and contrast: head with the largest contrast in each run")
    print("contrast (null): largest over heads for the same scores with permuted positions, mean over draws\n")
    for task, result in joined.items():
        print(_gain(task, result))
    print(f"\nfigure: {out / figure}.png (and .pdf); of each final checkpoint: {out}/RUN/figures/STEP/proximity.png")


def _check_folder(folder: Path, config: TrainConfig) -> None:
    """Raise `UsageError` if a folder holds another run or an unfinished one."""
    if not (folder / "config.json").exists():
        return
    last = Run(folder).path_of(config.steps)
    if not last.exists() or load(last).config != config:
        raise UsageError(f"{folder}: holds another run or an unfinished one; choose another folder or delete it")


def _run_one(folder: Path, config: TrainConfig, on_step: Callable[[int], None]) -> xr.Dataset:
    """Train one run if the folder does not hold it already, and measure its final checkpoint."""
    last = complete(folder, config, on_step).path_of(config.steps)
    return report.write_checkpoint("proximity", load(last), report.default_folder(last))


def _lost(folder: Path, reason: str) -> xr.Dataset:
    raise UsageError(f"{folder}: {reason}")


def _table(joined: dict[str, xr.Dataset]) -> str:
    rows = []
    for task, result in joined.items():
        prefix, best = own_prefix(result), result.isel(most_proximal(result))
        null = result[f"{prefix}proximity_contrast_null"].sel(null="permuted").max(("layer", "head")).mean("draw")
        columns = {
            "train accuracy": result["train_accuracy"],
            "test accuracy": result["test_accuracy"],
            "mean distance / uniform": best[f"{prefix}mean_distance_ratio"],
            "Toeplitz share": best[f"{prefix}toeplitz_share"],
            "contrast": best[f"{prefix}proximity_contrast"],
            "contrast (null)": null,
        }
        for recipe in RECIPES:
            cells = {name: _mean_and_std(values.sel(recipe=recipe).values) for name, values in columns.items()}
            rows.append({"task": task, "recipe": recipe, **cells})
    return pd.DataFrame(rows).to_string(index=False)


def _mean_and_std(values: np.ndarray) -> str:
    std = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{std}"


def _gain(task: str, result: xr.Dataset) -> str:
    """Report the change in test accuracy from supervised training to SPT, paired over seeds."""
    gains = (result["test_accuracy"].sel(recipe="spt") - result["test_accuracy"].sel(recipe="supervised")).values
    message = f"{task}: SPT changes test accuracy by {gains.mean():+.3f} relative to supervised training"
    if len(gains) < 2:
        return f"{message} (one seed: no interval)"
    _, low, high = mean_interval(gains)
    return f"{message}, 95 % t-interval {low:+.3f} to {high:+.3f} over {len(gains)} paired seeds"
