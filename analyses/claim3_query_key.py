"""Claim 3: what SPT gives that labels cannot learn is its query-key maps (with the positions that they read).

Source: arXiv:2605.21070 (its abstract): the bottleneck is learning useful query-key patterns from labels.

Design. On `pairs` and `bigrams` (generated; counts of tokens leak the class of the second) and `digits` (real) a fresh
network, with initial weights of another seed, gets parts of the network at the end of self-pretraining and is trained
on the labels for the steps that SPT spends on them, with SPT's settings: nothing, query and key maps alone, with
positions, everything but query and key maps (also without the positions), positions alone, token embeddings alone;
maps and positions also frozen.
Beside them SPT whose query and key maps stay frozen at random, SPT on sequences in shuffled order, and labels alone, as
chosen for them and for four times those steps. Each arm's share of the gap, (arm - nothing) / (SPT - nothing) in mean
test accuracy over paired seeds, has Fieller's interval, which is unbounded where the gap itself cannot be told from
nothing.

Rule, for each task: it is the query-key maps where transplanting them with the positions (trained) recovers more than
half of the gap, everything but them less than half, and SPT with them frozen at random less than half, each with its
whole interval; it is not where one of these is the other way, and cannot be told where one has one half in its interval
or the gap's own is not above 0. The claim holds where it is the query-key maps on every task that can tell, and in part
where it is on some.

Added after first results, and deciding nothing: the arms of positions alone and of all but maps and positions; the
proximity contrast (as in claim 4) of SPT, with its maps frozen at random, and on shuffled sequences; and `pairs` and
`digits` with the best settings that begin with small weights. There query and key maps frozen at random leave the
scores so small that attention stays uniform, so that this arm asks whether attention is needed at all. Changed after
first results: the zero of the shares was labels alone as chosen for them, and arms fell below it by having fewer steps,
whatever they were given; and wide intervals counted as no. The verdict of the claim is the same by all of these.

Command: python analyses/run.py claim3_query_key
Cost: 350 runs, about 80 minutes on two cores.
"""

import dataclasses
from typing import Any

import contrast
import numpy as np
import xarray as xr
from conclusion import Conclusion, Part, above, concluded, every, said, said_share
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

TITLE = "What SPT gives is its query-key maps"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 400}},
    "default": {"pairs": {}, "pairs, small weights": {}, "bigrams": {}, "digits": {}, "digits, small weights": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16"), LARGE),
}
FRESH = 1000
"""Added to the seed for the weights of a network that takes a transplant: not those that its donor began with."""
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
LOOKED_AT = ("SPT", FROZEN, SHUFFLED)
"""Arms whose contrast is measured."""
BASES = ("supervised", "SPT")
ARMS = (*BASES, *TRANSPLANTS, *CONTROLS)


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes and the controls, then what takes a transplant from the SPT runs."""
    tasks, of_seed = TASKS[lab.scale], list(SEEDS[lab.scale])
    first: dict[tuple[str, str, int], TrainConfig] = {}
    for task, sizes in tasks.items():
        for seed in of_seed:
            labels, spt = setting(task, "supervised", seed, **sizes), setting(task, "spt", seed, **sizes)
            controls = (
                dataclasses.replace(spt, freeze=("qk",)),
                dataclasses.replace(spt, pretrain_order="shuffled"),
                dataclasses.replace(labels, steps=4 * labels.steps),
            )
            for arm, config in zip((*BASES, *CONTROLS), (labels, spt, *controls), strict=True):
                first[task, arm, seed] = config
    runs = lab.train(first)
    runs |= lab.train(
        {
            (task, arm, seed): transplanted(runs[task, "SPT", seed], **named)
            for task in tasks
            for seed in of_seed
            for arm, named in TRANSPLANTS.items()
        }
    )
    axes = {"task": list(tasks), "arm": list(ARMS), "seed": of_seed}
    found = accuracies(runs, axes)
    compared = {key: run for key, run in runs.items() if key[1] in LOOKED_AT}
    variables = {
        **found,
        **contrast.at_the_end(lab, compared, axes),
        **shares(xr.Dataset(found, axes)["test_accuracy"], NOTHING, "SPT"),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {})


def transplanted(donor: Run, **named: Any) -> TrainConfig:
    """Return the configuration of a fresh network with parts of an SPT run's at the end of self-pretraining."""
    config = donor.config
    given = {"init_from": str(donor.path_of(config.pretrain_steps)), **named}
    steps = config.steps - config.pretrain_steps
    return dataclasses.replace(
        config, recipe="supervised", steps=steps, pretrain_steps=0, init_seed=config.seed + FRESH, **given
    )


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    given, rest, frozen = "QK + positions", "all but QK", FROZEN
    tasks, parts = [str(task) for task in result["task"].values], []
    found = {(task, arm): at(result, "share", task=task, arm=arm) for task in tasks for arm in (given, rest, frozen)}
    for task in tasks:
        held = None
        if at(result, "gap", task=task)[1] > 0:
            more = {arm: above(0.5, found[task, arm]) for arm in (given, rest, frozen)}
            held = every([more[given], *(None if more[arm] is None else not more[arm] for arm in (rest, frozen))])
        words = ", ".join(f"{arm} {said_share(*found[task, arm])}" for arm in (given, rest, frozen))
        gap = said(*at(result, "gap", task=task))
        looks = ", ".join(
            f"{arm} {said(*mean_interval(result['contrast'].sel(task=task, arm=arm)))}" for arm in LOOKED_AT
        )
        found_here = f"gap {gap}; shares: {words}; contrast: {looks}"
        parts.append(Part(f"it is the query-key maps on {task}", held, found_here, decides=not task.endswith(SMALL)))
    recovered, without = (said_share(*found[tasks[0], arm]) for arm in (given, frozen))
    effect = f"{tasks[0]}: {given} recover {recovered} of the gap, SPT with QK frozen at random {without}"
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw the test accuracy of every arm, a panel for each task."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 0.17 * len(ARMS) + 0.75), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axis, task in zip(axes, tasks, strict=True):
            one = result.sel(task=task)
            for row, arm in enumerate(ARMS):
                kind = BASES.index(arm) if arm in BASES else 2 if arm in TRANSPLANTS else 3
                seeds(axis, row, one["test_accuracy"].sel(arm=arm), kind, upright=False)
                axis.plot(float(one["train_accuracy"].sel(arm=arm).mean()), row, "|", color="black", markersize=5)
            for arm in BASES:
                axis.axvline(float(one["test_accuracy"].sel(arm=arm).mean()), color="#9A9A9A", linewidth=0.5, zorder=0)
            for row in (len(BASES) - 0.5, len(BASES) + len(TRANSPLANTS) - 0.5):
                axis.axhline(row, color="#9A9A9A", linewidth=0.4)
            axis.axvline(float(one["chance"]), color="black", linewidth=0.6, linestyle=":")
            axis.set(title=task.replace(", ", ",\n"), xlabel="accuracy", xlim=(0, 1.08))
        axes[0].set_yticks(range(len(ARMS)), ARMS)
        axes[0].invert_yaxis()
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy of networks that are given nothing or parts of a self-pretrained one (triangles: trained on the "
        "labels for the steps that SPT spends on them, with its settings, from weights of another seed) and of "
        "controls (diamonds), beside labels alone and SPT. Small dots are "
        f"{result.sizes['seed']} seeds, marks their means with 95 % Student intervals; black bars are mean training "
        "accuracies, the dotted line is chance, grey lines are the means of labels alone and SPT. QK: query and key "
        "maps."
    )
