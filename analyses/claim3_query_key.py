"""Claim 3: SPT provides query-key maps (with the positions that they read) that labels cannot teach.

Source: arXiv:2605.21070 (abstract): the bottleneck is learning useful query-key patterns from labels.

Design. The tasks are `pairs` and `bigrams` (generated; token counts reveal the class of `bigrams`) and `digits` (real
data). A fresh network, whose initial weights have another seed, receives parts of the network at the end of
self-pretraining. It is then trained on the labels for the number of steps that SPT spends on them, with SPT's settings.
The transferred parts are: nothing; query and key maps, without or with positions, each trainable or frozen; everything
except query and key maps, with or without positions; positions alone; token embeddings alone. The controls are SPT with
query and key maps frozen at random, SPT on shuffled sequences, supervised training with its own chosen settings, and
supervised training for four times those steps. Each arm's fraction of the gap, (arm - nothing) / (SPT - nothing) in
mean test accuracy over paired seeds, has Fieller's interval, which is unbounded if the gap itself may be zero.

Rule, for each row (task and initial weights). The gain comes from the query-key maps if transferring them with the
positions (trainable) recovers more than half of the gap, everything except them less than half, and SPT with them
frozen at random less than half, each with its whole interval. It does not if one of these is on the other side of one
half. It is undecided if one of the intervals contains one half, or if the interval of the gap is not above 0. The claim
holds if the gain comes from the query-key maps in every decided row, and in part if it does in some. Large and small
initial weights also have verdicts of their own, since they are different regimes: large query and key maps frozen at
random give scores to which embeddings and positions can adapt, while small ones leave attention uniform.

Added after the first results, without counting: the arms of positions alone and of everything except maps and
positions; the proximity contrast (as in claim 4) of SPT, of SPT with its maps frozen at random, and of SPT on shuffled
sequences. Changed after the first results: fractions were relative to supervised training with its own chosen settings,
and arms fell below it because they had fewer steps, whatever was transferred; and wide intervals counted as no. Changed
last: `pairs` and `digits` with the best settings that have small initial weights, attnprobe's default, had been added
without counting. The verdict of the claim is the same under all of these.

One condition is hard on the claim: *everything except the maps* includes the position embeddings, from which fresh maps
can be relearned. Each row therefore also reports everything except maps and positions.

Command: python analyses/run.py claim3_query_key
Cost: 350 runs, about 80 minutes on two cores.
"""

import dataclasses
from typing import Any

import contrast
import numpy as np
import xarray as xr
from conclusion import Conclusion, Part, above, concluded, every, said, said_share, verdict
from drawing import seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import LARGE, SEEDS, SMALL, setting
from tables import BOUNDS, accuracies, at, chances, shares

from attnprobe.config import TrainConfig
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset
from attnprobe.statistics.seeds import mean_interval
from attnprobe.training.run import Run

TITLE = "The gain of SPT comes from its query-key maps"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 400}},
    "default": {"pairs": {}, "pairs, small weights": {}, "bigrams": {}, "digits": {}, "digits, small weights": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16"), LARGE),
}
FRESH = 1000
"""Added to the seed for the initial weights of the receiving network, so that they differ from the source's."""
NOTHING = "nothing"
TRANSPLANTS: dict[str, dict[str, Any]] = {
    NOTHING: {"init_from": None},
    "QK": {"transfer": "qk"},
    "QK + positions": {"transfer": "qk+positions"},
    "QK, frozen": {"transfer": "qk", "freeze": ("qk",)},
    "QK + positions, frozen": {"transfer": "qk+positions", "freeze": ("qk", "positions")},
    "all but QK": {"transfer": "all-but-qk"},
    "all but QK, positions": {"transfer": "all-but-qk+positions"},
    "positions": {"transfer": "positions"},
    "embeddings": {"transfer": "embeddings"},
}
FROZEN = "SPT, QK frozen at random"
SHUFFLED = "SPT on shuffled sequences"
CONTROLS = (FROZEN, SHUFFLED, "supervised, 4 x the steps")
MEASURED = ("SPT", FROZEN, SHUFFLED)
"""Arms whose proximity contrast is measured."""
BASES = ("supervised", "SPT")
ARMS = (*BASES, *TRANSPLANTS, *CONTROLS)
LABELS = {
    NOTHING: "nothing transferred",
    "all but QK": "all except QK",
    "all but QK, positions": "all except QK + positions",
    "supervised, 4 x the steps": "supervised, 4 × the steps",
}
"""Figure labels of arms, if other than their names."""


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes and the controls, then the networks that receive parts of the SPT runs."""
    tasks, seed_numbers = TASKS[lab.scale], list(SEEDS[lab.scale])
    first: dict[tuple[str, str, int], TrainConfig] = {}
    for task, sizes in tasks.items():
        for seed in seed_numbers:
            supervised, spt = setting(task, "supervised", seed, **sizes), setting(task, "spt", seed, **sizes)
            controls = (
                dataclasses.replace(spt, freeze=("qk",)),
                dataclasses.replace(spt, pretrain_order="shuffled"),
                dataclasses.replace(supervised, steps=4 * supervised.steps),
            )
            for arm, config in zip((*BASES, *CONTROLS), (supervised, spt, *controls), strict=True):
                first[task, arm, seed] = config
    runs = lab.train(first)
    runs |= lab.train(
        {
            (task, arm, seed): transplanted(runs[task, "SPT", seed], **options)
            for task in tasks
            for seed in seed_numbers
            for arm, options in TRANSPLANTS.items()
        }
    )
    axes = {"task": list(tasks), "arm": list(ARMS), "seed": seed_numbers}
    accuracy = accuracies(runs, axes)
    measured = {key: run for key, run in runs.items() if key[1] in MEASURED}
    variables = {
        **accuracy,
        **contrast.at_the_end(lab, measured, axes),
        **shares(xr.Dataset(accuracy, axes)["test_accuracy"], NOTHING, "SPT"),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {})


def transplanted(source: Run, **options: Any) -> TrainConfig:
    """Return the configuration of a fresh network that receives parts of an SPT run after self-pretraining."""
    config = source.config
    transfer = {"init_from": str(source.path_of(config.pretrain_steps)), **options}
    steps = config.steps - config.pretrain_steps
    return dataclasses.replace(
        config, recipe="supervised", steps=steps, pretrain_steps=0, init_seed=config.seed + FRESH, **transfer
    )


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    maps, rest, frozen = "QK + positions", "all but QK", FROZEN
    arms = (maps, rest, frozen, "all but QK, positions")
    tasks, parts = [str(task) for task in result["task"].values], []
    fractions = {(task, arm): at(result, "share", task=task, arm=arm) for task in tasks for arm in arms}
    for task in tasks:
        held = None
        if at(result, "gap", task=task)[1] > 0:
            more = {arm: above(0.5, fractions[task, arm]) for arm in (maps, rest, frozen)}
            held = every([more[maps], *(None if more[arm] is None else not more[arm] for arm in (rest, frozen))])
        words = ", ".join(f"{LABELS.get(arm, arm)} {said_share(*fractions[task, arm])}" for arm in arms)
        gap = said(*at(result, "gap", task=task))
        contrasts = ", ".join(
            f"{arm} {said(*mean_interval(result['contrast'].sel(task=task, arm=arm)))}" for arm in MEASURED
        )
        numbers = f"gap {gap}; fractions of the gap: {words}; contrast: {contrasts}"
        parts.append(Part(f"the gain comes from the query-key maps on {task}", held, numbers))
    effects = []
    for regime, ending in (("large", ""), ("small", SMALL)):
        answers = [part.held for task, part in zip(tasks, parts, strict=True) if task.endswith(SMALL) == bool(ending)]
        task = f"{tasks[0]}{ending}"
        if task in tasks:
            recovered, without = (said_share(*fractions[task, arm]) for arm in (maps, frozen))
            effects.append(
                f"{regime} weights: {verdict(answers)} (on {tasks[0]}, transferring {maps} recovers {recovered} "
                f"of the gap, SPT with QK frozen at random {without})"
            )
    return concluded(parts, "; ".join(effects), result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw the test accuracy of every arm, selected panel per task."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 0.17 * len(ARMS) + 0.75))
        axes = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axis, task in zip(axes, tasks, strict=True):
            selected = result.sel(task=task)
            for row, arm in enumerate(ARMS):
                number = BASES.index(arm) if arm in BASES else 2 if arm in TRANSPLANTS else 3
                seeds(axis, row, selected["test_accuracy"].sel(arm=arm), number, upright=False)
                axis.plot(float(selected["train_accuracy"].sel(arm=arm).mean()), row, "|", color="black", markersize=5)
            for arm in BASES:
                axis.axvline(
                    float(selected["test_accuracy"].sel(arm=arm).mean()), color="#9A9A9A", linewidth=0.5, zorder=0
                )
            for row in (len(BASES) - 0.5, len(BASES) + len(TRANSPLANTS) - 0.5):
                axis.axhline(row, color="#9A9A9A", linewidth=0.4)
            axis.axvline(float(selected["chance"]), color="black", linewidth=0.6, linestyle=":")
            axis.set(title=task.replace(", ", ",\n"), xlabel="accuracy", xlim=(0, 1.08))
        axes[0].set_yticks(range(len(ARMS)), [LABELS.get(arm, arm) for arm in ARMS])
        axes[0].invert_yaxis()
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy of supervised training and SPT (top), of networks that receive parts of a self-pretrained one "
        "(triangles; trained on the labels for the number of steps that SPT spends on them, with SPT's settings, from "
        "initial weights of another seed), and of controls (diamonds). Small dots: "
        f"{result.sizes['seed']} seeds. Markers: means with 95 % t-intervals. Black bars: mean training accuracy. "
        "Dotted line: chance. Grey lines: means of supervised training and SPT. QK: query and key maps."
    )
