"""Claim 6, a control: SPT's gain is smaller where the position encoding already says how near a key is.

Source: the explanation of arXiv:2605.21070, that SPT turns *absolute* positions into proximity, says so; and
Miralles-Gonzalez et al. 2025 (arXiv:2501.14850) reach the top of the Long Range Arena from scratch with rotary
positions and good training.

Design. On `pairs` (generated) and `digits` (real) labels alone and SPT under six encodings: none, learned and
sinusoidal vectors (absolute), rotary, ALiBi and a free bias for each bucket of offsets (relative). All else is what the
search of claim 1 chose for each recipe under learned positions, so that the others are not tuned.

Rule. On a task and for each of the three relative encodings: the gain of SPT is smaller than under learned positions,
by the 95 % interval over paired seeds; it cannot be told where the gain under learned positions is not above 0 itself.
The claim holds where all differences that can be told are above 0, and in part where some are.

Command: python analyses/run.py claim6_encodings
Cost: 120 runs, 20 of them those of claim 1, about 25 minutes on two cores.
"""

from typing import Any, cast, get_args

import numpy as np
import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, mark, seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import LARGE, SEEDS, setting
from tables import BOUNDS, accuracies, at, chances, effect

from attnprobe.config import Position, Recipe
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset

TITLE = "SPT gains less where positions are relative from the start"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 200}},
    "default": {"pairs": {}, "digits": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16", "listops"), LARGE),
}
ENCODINGS: tuple[str, ...] = get_args(Position)
RELATIVE = ("rotary", "alibi", "relative")


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes under every encoding."""
    tasks, of_seed = TASKS[lab.scale], list(SEEDS[lab.scale])
    runs = lab.train(
        {
            (task, encoding, recipe, seed): setting(task, cast(Recipe, recipe), seed, position=encoding, **sizes)
            for task, sizes in tasks.items()
            for encoding in ENCODINGS
            for recipe in RECIPES
            for seed in of_seed
        }
    )
    axes = {"task": list(tasks), "encoding": list(ENCODINGS), "recipe": list(RECIPES), "seed": of_seed}
    found = accuracies(runs, axes)
    accuracy = xr.DataArray(found["test_accuracy"], coords={name: axes[name] for name in ("encoding", "recipe")})
    gain = accuracy.sel(recipe="spt", drop=True) - accuracy.sel(recipe="labels", drop=True)
    less = gain.sel(encoding="learned", drop=True) - gain
    variables = {
        **found,
        **effect("gain", gain, "gain of SPT in test accuracy"),
        **effect("less", less, "gain under learned positions minus gain here"),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {})


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts, tasks = [], [str(task) for task in result["task"].values]
    for task in tasks:
        gained = at(result, "gain", task=task, encoding="learned")[1] > 0
        for encoding in RELATIVE:
            less, gain = (said(*at(result, name, task=task, encoding=encoding)) for name in ("less", "gain"))
            held = at(result, "less", task=task, encoding=encoding)[1] > 0 if gained else None
            parts.append(
                Part(f"SPT gains less with {encoding} positions on {task}", held, f"by {less}: it gains {gain}")
            )
    words = (f"{one} {said(*at(result, 'gain', task=tasks[0], encoding=one))}" for one in ("learned", *RELATIVE))
    return concluded(parts, f"gain of SPT on {tasks[0]}: {', '.join(words)}", result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw the test accuracy of both recipes under every encoding, a panel for each task."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 1.9), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axis, task in zip(axes, tasks, strict=True):
            for place, encoding in enumerate(map(str, result["encoding"].values)):
                for number, (recipe, name) in enumerate(RECIPES.items()):
                    one = result.sel(task=task, encoding=encoding, recipe=recipe)
                    where = place + (-0.15, 0.15)[number]
                    seeds(axis, where, one["test_accuracy"], number, label=None if place else name)
                    trained = float(one["train_accuracy"].mean())
                    axis.plot(where, trained, marker="_", markersize=5, color=mark(number)["color"])
            axis.axhline(float(result["chance"].sel(task=task)), color="black", linewidth=0.6, linestyle=":")
            axis.axvline(2.5, color="#9A9A9A", linewidth=0.4)
            axis.set_xticks(range(len(ENCODINGS)), ENCODINGS, fontsize=6, rotation=20)
            axis.set(title=task, ylim=(0, 1.04))
        axes[0].set_ylabel("accuracy")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy of labels alone and of SPT followed by labels under six position encodings: none and absolute "
        f"ones on the left of the line, relative ones on its right. Small dots are {result.sizes['seed']} seeds, marks "
        "their means with 95 % Student intervals; horizontal bars are mean training accuracies, dotted lines chance. "
        "Learning rate and initial weights were chosen under learned positions."
    )
