"""Claim 3: what SPT gives that labels cannot learn is its query-key maps (with the positions that they read).

Source: arXiv:2605.21070 (its abstract): the bottleneck is learning useful query-key patterns from labels.

Design. On `pairs` and `bigrams` (generated; counts of tokens leak the class of the second) and `digits` (real) a fresh
network, with initial weights of another seed, gets parts of the network at the end of self-pretraining and is trained
on the labels for the steps that SPT spends on them: query and key maps alone, with positions, everything but query and
key maps, positions alone, token embeddings alone; the first two also frozen. `pairs` and `digits` are there twice: with
the settings that the search chose, and with the best ones that begin with small weights (added when the first results
showed that these decide). Beside them SPT whose query and key maps stay frozen at random, SPT on sequences in shuffled
order, and labels alone for four times the steps. Each arm's share of the gap, (arm - labels) / (SPT - labels) in mean
test accuracy over paired seeds, has Fieller's interval, which is unbounded where the gap itself cannot be told from
nothing.

Rule, for each task: it is the query-key maps where transplanting them with the positions (trained) recovers more than
half of the gap, everything but them less than half, and SPT with them frozen at random less than half, each with its
whole interval. The claim holds where this is so on every task, and in part where it is on some.

Command: python analyses/run.py claim3_query_key
Cost: 165 runs, about 30 minutes on two cores.
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr
from conclusion import Conclusion, Part, concluded, said_share
from drawing import seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import SEEDS, setting, source_of
from tables import BOUNDS, accuracies, at, shares

from attnprobe.config import TrainConfig
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.run import Run

TITLE = "What SPT gives is its query-key maps"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 400}},
    "default": {"pairs": {}, "pairs, small weights": {}, "bigrams": {}, "digits": {}, "digits, small weights": {}},
    "full": {task: {"n_layers": 2, "d_model": 128, "n_heads": 8} for task in ("pairs", "digits", "image-16")},
}
FRESH = 1000
"""Added to the seed for the weights of a network that takes a transplant: not those that its donor began with."""
TRANSPLANTS: dict[str, dict[str, Any]] = {
    "QK": {"transfer": "qk"},
    "QK + positions": {"transfer": "qk+positions"},
    "QK, frozen": {"transfer": "qk", "freeze": ("qk",)},
    "QK + positions, frozen": {"transfer": "qk+positions", "freeze": ("qk", "positions")},
    "all but QK": {"transfer": "all-but-qk"},
    "positions": {"transfer": "positions"},
    "embeddings": {"transfer": "embeddings"},
}
CONTROLS = ("SPT, QK frozen at random", "SPT on shuffled sequences", "labels, 4 x the steps")
BASES = ("labels", "SPT")
ARMS = (*BASES, *TRANSPLANTS, *CONTROLS)


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes and the controls, then what takes a transplant from the SPT runs."""
    tasks, of_seed = TASKS[lab.scale], list(SEEDS[lab.scale])
    first: dict[tuple[str, str, int], TrainConfig] = {}
    for task, sizes in tasks.items():
        for seed in of_seed:
            labels, spt = setting(task, "labels", seed, **sizes), setting(task, "spt", seed, **sizes)
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
    variables = {
        **found,
        **shares(xr.Dataset(found, axes)["test_accuracy"], *BASES),
        "chance": variable(("task",), [1 / source_of(t).data.classes for t in tasks], "accuracy of guessing", "1"),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {})


def transplanted(donor: Run, **named: Any) -> TrainConfig:
    """Return the configuration of a fresh network with parts of an SPT run's at the end of self-pretraining."""
    config = donor.config
    return dataclasses.replace(
        config,
        recipe="labels",
        steps=config.steps - config.pretrain_steps,
        pretrain_steps=0,
        init_seed=config.seed + FRESH,
        init_from=str(donor.path_of(config.pretrain_steps)),
        **named,
    )


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    given, rest, frozen = "QK + positions", "all but QK", "SPT, QK frozen at random"
    tasks, parts = [str(task) for task in result["task"].values], []
    found = {(task, arm): at(result, "share", task=task, arm=arm) for task in tasks for arm in (given, rest, frozen)}
    for task in tasks:
        held = found[task, given][1] > 0.5 and found[task, rest][2] < 0.5 and found[task, frozen][2] < 0.5
        words = ", ".join(f"{arm} {said_share(*found[task, arm])}" for arm in (given, rest, frozen))
        parts.append(Part(f"It is the query-key maps on {task}", held, f"shares of the gap: {words}"))
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
            axis.set(title=task, xlabel="accuracy", xlim=(0, 1.04))
        axes[0].set_yticks(range(len(ARMS)), ARMS)
        axes[0].invert_yaxis()
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy of networks that are given parts of a self-pretrained one (triangles: trained on the labels for "
        "the steps that SPT spends on them, from weights of another seed) and of controls (diamonds), beside labels "
        f"alone and SPT. Small dots are {result.sizes['seed']} seeds, marks their means with 95 % Student intervals; "
        "black bars are mean training accuracies, the dotted line is chance, grey lines are the means of labels alone "
        "and SPT. QK: query and key maps."
    )
