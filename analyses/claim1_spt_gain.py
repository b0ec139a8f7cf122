"""Claim 1: SPT gives better sequence classifiers than supervised training from random weights, even at tiny scale.

Source: arXiv:2605.21070 (abstract), after Amos et al. 2024, arXiv:2310.02980.

Design. There are eight tasks. On each, the same one-layer network is trained supervised only and with SPT, with the
same maximum number of steps, on the same sequences. Learning rate, initial weights and the split of the steps are
searched in the same way for both recipes: eight candidates each, on validation sequences of one seed (best final
validation accuracy, ties broken by validation loss). The reported runs use the chosen settings with other seeds, which
change matchings and permutations of the generated tasks, and weights and batches of all tasks. Token counts do not
reveal the class on `pairs` and `planted`, but they do on `bigrams` (a contaminated control). `digits`, `image-16` and
`text` are real data. Two more rows do not count: `pairs` and `digits` with the best candidates that have small initial
weights, as in other work.

Rule. SPT helps on a task if the paired gain is above 0 with p < 0.05 after Benjamini-Hochberg correction over the tasks
(two-sided paired t-test). A task on which neither recipe is better than guessing, by the 95 % interval of its accuracy,
tells nothing and is undecided. The claim holds if SPT helps on every decided task, and in part if it helps on some.
Changed with the first results: the correction was over all ten rows. Changed later: `pathfinder`, at chance with both
recipes, counted as no gain. The verdict is the same under all of these. Added later, without counting: the gain in
logit, log(p / (1 - p)), on which a step from 0.98 to 0.99 counts as much as one from 0.50 to 0.67, and the smallest
gain that a t-test of five seeds finds in 80 % of experiments, given the standard deviation of the gains.

Command: python analyses/run.py claim1_spt_gain
Cost: 128 search runs and 100 reported runs, about 80 minutes on two cores.
"""

from typing import Any, cast

import numpy as np
import scipy.stats
import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, mark, seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import LARGE, SEARCHED, SEEDS, SMALL, TASKS, Choice, candidates, setting
from tables import BOUNDS, accuracies, at, chances, detectable, effect, gained, logit, outcome

from attnprobe.config import Recipe, TrainConfig
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.statistics.seeds import mean_interval
from attnprobe.tasks import source
from attnprobe.training.run import Run

TITLE = "SPT beats supervised training at equal compute"

QUICK = {"pairs": {"steps": 300}, "digits": {"steps": 100}}
FULL = dict.fromkeys(TASKS, LARGE)
ROWS = (*TASKS, "pairs, small weights", "digits, small weights")


def study(lab: Lab) -> xr.Dataset:
    """Search on validation sequences, then train the chosen settings with new seeds."""
    sizes: dict[str, Any] = {"quick": QUICK, "default": dict.fromkeys(ROWS, {}), "full": FULL}[lab.scale]
    tasks, recipes, seeds = list(sizes), list(RECIPES), list(SEEDS[lab.scale])
    tried = {recipe: candidates(cast(Recipe, recipe)) for recipe in recipes}
    if lab.scale == "quick":
        tried = {recipe: choices[-2:] for recipe, choices in tried.items()}

    def config_for(task: str, recipe: str, seed: int, choice: Choice) -> TrainConfig:
        return setting(task, cast(Recipe, recipe), seed, choice, **sizes[task])

    searched = lab.train(
        {
            (task, recipe, number): config_for(task, recipe, SEARCHED, choice)
            for task in tasks
            for recipe in recipes
            for number, choice in enumerate(tried[recipe])
        }
    )
    chosen = {(task, recipe): best(searched, task, recipe, tried[recipe]) for task in tasks for recipe in recipes}
    runs = lab.train(
        {
            (task, recipe, seed): config_for(task, recipe, seed, tried[recipe][number])
            for (task, recipe), number in chosen.items()
            for seed in seeds
        }
    )
    axes = {"task": tasks, "recipe": recipes, "seed": seeds}
    numbers = list(range(len(tried["spt"])))
    search_axes = {"task": tasks, "recipe": recipes, "candidate": numbers}
    accuracy = accuracies(runs, axes)
    validation = [[[outcome(searched[t, r, c])[0] for c in numbers] for r in recipes] for t in tasks]
    descriptions = [[str(tried[recipe][number]) for number in numbers] for recipe in recipes]
    result = xr.Dataset(accuracy, axes)
    gains = gained(result["test_accuracy"])
    variables = {
        **accuracy,
        **effect("gain", gains, "gain of SPT in test accuracy"),
        "p": variable(
            ("task",), p_values(gains), "p-value of no gain", "1", "paired t-test, Benjamini-Hochberg over tasks"
        ),
        "validation_accuracy": variable(tuple(search_axes), validation, "validation accuracy in the search", "1"),
        "tried": variable(
            ("recipe", "candidate"), descriptions, "learning rate, initial weights, split of the steps", ""
        ),
        "chosen": variable(
            ("task", "recipe"), [[chosen[t, r] for r in recipes] for t in tasks], "number of the chosen candidate", ""
        ),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "candidate": numbers, "bound": BOUNDS}, {"searched_seed": SEARCHED})


def best(searched: dict[tuple[str, str, int], Run], task: str, recipe: str, tried: list[Choice]) -> int:
    """Return the number of the best admissible candidate of a task and recipe."""
    admissible = [
        number for number, (_, weights, _) in enumerate(tried) if weights == "small" or not task.endswith(SMALL)
    ]
    return max(admissible, key=lambda number: outcome(searched[task, recipe, number]))


def p_values(gains: xr.DataArray) -> np.ndarray:
    """Return two-sided p-values of no gain, corrected over the tasks that count; NaN for the others."""
    counted = [not str(task).endswith(SMALL) for task in gains["task"].values]
    values = gains.transpose("task", "seed").values[counted]
    with np.errstate(invalid="ignore", divide="ignore"):
        error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        t = np.where(values.mean(axis=1) == 0, 0.0, abs(values.mean(axis=1)) / error)
    p = np.full(len(counted), np.nan)
    p[counted] = scipy.stats.false_discovery_control(2 * scipy.stats.t.sf(t, values.shape[1] - 1))
    return p


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    gains = {task: at(result, "gain", task=task) for task in map(str, result["task"].values)}
    parts = []
    for task, (gain, low, high) in gains.items():
        decides, p = not task.endswith(SMALL), float(result["p"].sel(task=task))
        accuracy, interval = result["test_accuracy"].sel(task=task), said(gain, low, high)
        in_logit = mean_interval(gained(logit(accuracy, tested(task))))
        found = [
            f"{interval}, p = {p:.2g}" if decides else interval,
            f"in logit {said(*in_logit)}",
            f"detectable {detectable(gained(accuracy)):.3f}",
        ]
        held = gain > 0 and p < 0.05 if decides else low > 0
        if not any(better_than_guessing(result.sel(task=task), recipe) for recipe in RECIPES):
            held, found = None, [*found, "both recipes at chance: tells nothing"]
        parts.append(Part(f"SPT helps on {task}", held, "; ".join(found), decides))
    effect = f"gain in test accuracy: pairs {said(*gains['pairs'])}, digits {said(*gains['digits'])}"
    return concluded(parts, effect, result.sizes["seed"])


def tested(task: str) -> int:
    """Return the number of test sequences of a task."""
    config = setting(task, "supervised", SEARCHED)
    return source(config.task, config.task_options).sizes["test"]


def better_than_guessing(of_task: xr.Dataset, recipe: str) -> bool:
    """Return whether the mean test accuracy of a recipe is above chance, by its interval."""
    _, low, _ = mean_interval(of_task["test_accuracy"].sel(recipe=recipe))
    return low > float(of_task["chance"])


def draw(result: xr.Dataset) -> Figure:
    """Draw the test accuracy of both recipes on each task, and the gain."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 0.34 * len(tasks) + 0.9))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
        for row, task in enumerate(tasks):
            selected = result.sel(task=task)
            for number, recipe in enumerate(RECIPES):
                place = row + (-0.17, 0.17)[number]
                label = RECIPES[recipe] if row == 0 else None
                seeds(left, place, selected["test_accuracy"].sel(recipe=recipe), number, upright=False, label=label)
                trained = float(selected["train_accuracy"].sel(recipe=recipe).mean())
                left.plot(trained, place, marker="|", markersize=5, color=mark(number)["color"])
            left.plot([selected["chance"]] * 2, [row - 0.4, row + 0.4], color="black", linewidth=0.7, linestyle=":")
            gains = gained(selected["test_accuracy"])
            seeds(right, row, gains, 7, upright=False)
        right.axvline(0, color="black", linewidth=0.6)
        left.set(xlabel="accuracy", xlim=(0, 1.04))
        left.set_yticks(range(len(tasks)), tasks)
        left.invert_yaxis()
        right.set(xlabel="gain of SPT in test accuracy")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    count, tried = result.sizes["seed"], result.sizes["candidate"]
    return (
        "Left: test accuracy of supervised training and of SPT followed by supervised training, with the same maximum "
        f"number of steps. Small dots: {count} seeds. Markers: means with 95 % t-intervals. Vertical bars: mean "
        "training accuracy. Dotted lines: chance. Right: gain of SPT, paired by seed. Learning rate, initial weights "
        f"and split of the steps were chosen for each task and recipe among {tried} candidates (half of them for the "
        "rows with small weights), on validation sequences of another seed."
    )
