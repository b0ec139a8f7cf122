"""Claim 7: how much SPT is enough, and with which objective?

Source: a question raised by arXiv:2605.21070 (masked reconstruction can teach what labels cannot), not a claim of its
abstract. Amos et al. 2024 (arXiv:2310.02980) mask 10 to 50 % and also pretrain with next-token prediction.

Design. On `pairs` (generated) and `digits` (real data): SPT that masks 5 to 75 % of the tokens; SPT with a sixteenth to
all of its self-pretraining steps before the same number of steps on the labels; and, with causal attention, masked and
next-token SPT against supervised training. All other settings are those that the search of claim 1 chose (at 30 %).
Fractions of the gap, (arm - supervised) / (SPT - supervised), are ratios of means over paired seeds with Fieller's
interval. Supervised training has its own chosen number of steps.

Rule: three parts for each task, each with its whole 95 % interval. Every mask probability recovers more than half of
the gap. A quarter of the self-pretraining steps does. Next-token SPT gains over causal supervised training. The first
two are undecided if an interval contains one half, or if the interval of the gap is not above 0. The claim, that a
little SPT of any kind is enough, holds if all decided parts do, and in part if some do. Changed after the first
results: undecided parts do not count; the verdict is the same by the rule as first written.

Command: python analyses/run.py claim7_objectives
Cost: 140 runs, 20 of them shared with claim 1, about 30 minutes on two cores.
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr
from conclusion import Conclusion, Part, above, concluded, every, said, said_share
from drawing import course, mark, seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import COMMON, LARGE, SEEDS, setting
from tables import BOUNDS, accuracies, at, chances, effect, shares

from attnprobe.config import TrainConfig
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset, variable

TITLE = "A little SPT is enough, at any mask probability and with next-token prediction"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 300}},
    "default": {"pairs": {}, "digits": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16"), LARGE),
}
MASKED = (0.05, 0.15, 0.3, 0.5, 0.75)
BUDGETS = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)
CAUSAL: dict[str, dict[str, Any]] = {"supervised": {}, "masked": {}, "next-token": {"pretrain_objective": "next-token"}}


def study(lab: Lab) -> xr.Dataset:
    """Train every objective, mask probability and amount of SPT."""
    tasks, seed_numbers = TASKS[lab.scale], list(SEEDS[lab.scale])
    configs = {
        (task, arm, seed): config
        for task, sizes in tasks.items()
        for seed in seed_numbers
        for arm, config in arms(task, seed, sizes).items()
    }
    runs = lab.train(configs)
    axes = {"task": list(tasks), "arm": list(arms(next(iter(tasks)), seed_numbers[0], {})), "seed": seed_numbers}
    accuracy_variables = accuracies(runs, axes)
    accuracy = xr.Dataset(accuracy_variables, axes)["test_accuracy"]
    gains = accuracy.sel(arm=["causal, masked", "causal, next-token"]) - accuracy.sel(
        arm="causal, supervised", drop=True
    )
    steps = [runs[task, "SPT", seed_numbers[0]].config.pretrain_steps for task in tasks]
    variables = {
        **accuracy_variables,
        **shares(accuracy, "supervised", "SPT"),
        **effect("causal_gain", gains.rename(arm="objective"), "gain over causal supervised training in test accuracy"),
        "pretrain_steps": variable(("task",), steps, "steps of self-pretraining of the chosen recipe", "steps"),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "objective": ["masked", "next-token"], "bound": BOUNDS}, {})


def arms(task: str, seed: int, sizes: dict[str, Any]) -> dict[str, TrainConfig]:
    """Return every arm's configuration."""
    supervised, spt = setting(task, "supervised", seed, **sizes), setting(task, "spt", seed, **sizes)
    finetuned = spt.steps - spt.pretrain_steps
    configs = {"supervised": supervised, "SPT": spt}
    for p in MASKED:
        configs[f"mask {p:g}"] = dataclasses.replace(spt, mask_probability=p)
    for budget in BUDGETS:
        steps = round(budget * spt.pretrain_steps)
        recipe = "spt" if steps else "supervised"
        configs[f"budget {budget:g}"] = dataclasses.replace(
            spt, recipe=recipe, pretrain_steps=steps, steps=steps + finetuned
        )
    for objective, overrides in CAUSAL.items():
        base = supervised if objective == "supervised" else spt
        model = dataclasses.replace(base.model, causal=True)
        configs[f"causal, {objective}"] = dataclasses.replace(base, model=model, **overrides)
    return configs


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts, tasks = [], [str(task) for task in result["task"].values]
    for task in tasks:
        masked = {p: at(result, "share", task=task, arm=f"mask {p:g}") for p in MASKED}
        quarter = at(result, "share", task=task, arm="budget 0.25")
        gain = at(result, "causal_gain", task=task, objective="next-token")
        least = min(masked, key=lambda p: masked[p][0])
        smallest = f"smallest with {100 * least:g} %: {said_share(*masked[least])}"
        masks_held = quarter_held = None
        if at(result, "gap", task=task)[1] > 0:
            masks_held = every(above(0.5, fraction) for fraction in masked.values())
            quarter_held = above(0.5, quarter)
        parts += [
            Part(f"{task}: every mask probability recovers more than half of the gap", masks_held, smallest),
            Part(
                f"{task}: a quarter of the steps recovers more than half of the gap", quarter_held, said_share(*quarter)
            ),
            Part(f"{task}: next-token SPT gains over causal supervised training", gain[1] > 0, said(*gain)),
        ]
    quarter = said_share(*at(result, "share", task=tasks[0], arm="budget 0.25"))
    effect = f"{tasks[0]}: a quarter of the self-pretraining steps recovers {quarter} of the gap"
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw test accuracy by mask probability, by steps of self-pretraining, and of the causal arms."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 2.0))
        by_mask, by_budget, causal = figure.subplots(1, 3, sharey=True, width_ratios=[1, 1, 0.8])
        for number, task in enumerate(tasks):
            accuracy = result["test_accuracy"].sel(task=task)
            masked = accuracy.sel(arm=[f"mask {p:g}" for p in MASKED])
            course(by_mask, 100 * np.array(MASKED), masked, number, task)
            steps = np.array(BUDGETS) * float(result["pretrain_steps"].sel(task=task))
            course(by_budget, steps, accuracy.sel(arm=[f"budget {budget:g}" for budget in BUDGETS]), number, task)
            for axis in (by_mask, by_budget):
                for arm, dash in (("supervised", ":"), ("SPT", (0, (6, 2)))):
                    style = {"color": mark(number)["color"], "linewidth": 0.7, "linestyle": dash}
                    axis.axhline(float(accuracy.sel(arm=arm).mean()), **style)
            for column, objective in enumerate(CAUSAL):
                position = column + 0.25 * (number - (len(tasks) - 1) / 2)
                seeds(causal, position, accuracy.sel(arm=f"causal, {objective}"), number)
        by_mask.set(xlabel="masked tokens (%)", ylabel="test accuracy", ylim=(0, 1.04))
        by_budget.set(xlabel="steps of self-pretraining")
        by_budget.set_xscale("symlog", linthresh=100)
        causal.set_xticks(range(len(CAUSAL)), list(CAUSAL))
        causal.set(xlabel="first objective (causal)")
        for axis, letter in zip((by_mask, by_budget, causal), "abc", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
        figure.legend(*by_mask.get_legend_handles_labels(), loc="outside upper center", ncols=len(tasks))
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy after SPT: (a) by percentage of masked tokens; (b) by number of self-pretraining steps before "
        "the same number of supervised steps; (c) with causal attention, by first objective. Means over "
        f"{result.sizes['seed']} seeds with 95 % t-intervals. Dotted lines: supervised training with its chosen number "
        f"of steps. Dashed lines: SPT as chosen (masking {100 * COMMON['mask_probability']:g} %)."
    )
