"""Claim 6, a control: SPT's gain is smaller where the position encoding already says how near a key is.

Source: the explanation of arXiv:2605.21070, that SPT turns *absolute* positions into proximity, says so; and
Miralles-Gonzalez et al. 2025 (arXiv:2501.14850) reach the top of the Long Range Arena from scratch with rotary
positions and good training.

Design. On `pairs` (generated) and `digits` (real) labels alone and SPT under six encodings: none, learned and
sinusoidal vectors (absolute), rotary, ALiBi and a free bias for each bucket of offsets (relative). All else is what the
search of claim 1 chose for each recipe under learned positions, so that the others are not tuned.

On `digits` the relative ones and ALiBi count distances along the rows that are read one after the other, not between
pixels. At the end of training the proximity contrast is measured (as in claim 4), which says whether labels learn
proximity where an encoding lets them.

Rule. On a task and for each of the three relative encodings: the gain of SPT is smaller than under learned positions,
by the 95 % interval over paired seeds; it cannot be told where the gain under learned positions is not above 0 itself.
The claim holds where all differences that can be told are above 0, and in part where some are.

Changed after first results: that a difference cannot be told where there is no gain to lose came with the result of
claim 1, which has none on `digits`. As first written the claim asked for all six differences, and would hold in part.
The contrast was added last and decides nothing.

Command: python analyses/run.py claim6_encodings
Cost: 120 runs, 20 of them those of claim 1, and 120 measures, about 30 minutes on two cores.
"""

from typing import Any, cast

import contrast
import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, mark, seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import LARGE, SEEDS, setting
from tables import BOUNDS, accuracies, at, chances, effect, gained

from attnprobe.config import Recipe
from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset
from attnprobe.tables import POSITIONS

TITLE = "SPT gains less where positions are relative from the start"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 200}},
    "default": {"pairs": {}, "digits": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16", "listops"), LARGE),
}
ENCODINGS = tuple(POSITIONS)
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
    gain = gained(accuracy)
    less = gain.sel(encoding="learned", drop=True) - gain
    variables = {
        **found,
        **contrast.at_the_end(lab, runs, axes),
        **effect("gain", gain, "gain of SPT in test accuracy"),
        **effect("less", less, "gain under learned positions minus gain here"),
        **chances(tasks),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {})


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts, tasks = [], [str(task) for task in result["task"].values]
    for task in tasks:
        there = at(result, "gain", task=task, encoding="learned")[1] > 0
        for encoding in RELATIVE:
            less, gain = (said(*at(result, name, task=task, encoding=encoding)) for name in ("less", "gain"))
            held = at(result, "less", task=task, encoding=encoding)[1] > 0 if there else None
            parts.append(
                Part(f"SPT gains less with {encoding} positions on {task}", held, f"by {less}: it gains {gain}")
            )
    words = (f"{one} {said(*at(result, 'gain', task=tasks[0], encoding=one))}" for one in ("learned", *RELATIVE))
    return concluded(parts, f"gain of SPT on {tasks[0]}: {', '.join(words)}", result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw test accuracy and contrast of both recipes under every encoding, a column for each task."""
    tasks = [str(task) for task in result["task"].values]
    with paper():
        figure = Page(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots(2, len(tasks), sharex=True, sharey="row", squeeze=False)
        for (upper, lower), task in zip(axes.T, tasks, strict=True):
            for place, encoding in enumerate(map(str, result["encoding"].values)):
                for number, (recipe, name) in enumerate(RECIPES.items()):
                    one = result.sel(task=task, encoding=encoding, recipe=recipe)
                    where, bar = place + (-0.15, 0.15)[number], {"marker": "_", "markersize": 5}
                    seeds(upper, where, one["test_accuracy"], number, label=None if place else name)
                    upper.plot(where, float(one["train_accuracy"].mean()), color=mark(number)["color"], **bar)
                    seeds(lower, where, one["contrast"], number)
                    lower.plot(where, float(one["contrast_null"].mean()), color=PERMUTED, **bar)
            upper.axhline(float(result["chance"].sel(task=task)), color="black", linewidth=0.6, linestyle=":")
            lower.axhline(0, color="black", linewidth=0.5)
            for axis in (upper, lower):
                axis.axvline(2.5, color="#9A9A9A", linewidth=0.4)
            upper.set(title=task, ylim=(0, 1.04))
            lower.set_xticks(range(len(ENCODINGS)), ENCODINGS, fontsize=6, rotation=20)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("proximity contrast\n(std of score)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy (above) of labels alone and of SPT followed by labels under six position encodings: none and "
        "absolute ones on the left of the line, relative ones on its right. Below: the proximity contrast of their "
        f"scores, of the head with the largest one. Small dots are {result.sizes['seed']} seeds, marks their means "
        "with 95 % Student intervals; horizontal bars are mean training accuracies above, and below the contrast with "
        "positions permuted; dotted lines are chance. Learning rate and initial weights were chosen under learned "
        "positions. On digits relative positions and ALiBi count along the rows, contrasts are in pixels."
    )
