"""Claim 6, a control: SPT gains less if the position encoding already provides the distance to a key.

Source: implied by the explanation of arXiv:2605.21070, that SPT turns *absolute* positions into proximity.
Miralles-Gonzalez et al. 2025 (arXiv:2501.14850) reach the top of the Long Range Arena from scratch with rotary
positions and good training.

Design. On `pairs`, supervised training and SPT are compared under six encodings: none; learned and sinusoidal position
embeddings (absolute); rotary, ALiBi and a free bias for each bucket of offsets (relative). Supervised training with
relative encodings is near 1 with the chosen steps, where there is nothing left to gain, so that it is also compared
with a fifth and a quarter of the steps. Fewer sequences do not help: with so few that relative encodings fail, SPT
gains nothing under learned positions either. All other settings are those that the search of claim 1 chose for each
recipe under learned positions, so that the other encodings are not tuned. At the end of training the proximity contrast
is measured (as in claim 4), which shows whether supervised training learns proximity if an encoding allows it. Claim 8
compares learned with rotary positions on real images.

Rule, for each number of steps and each of the three relative encodings: the gain of SPT is smaller than under learned
positions, by the 95 % interval over paired seeds. This is undecided without headroom: if the gain under learned
positions is not itself above 0, or is larger than what supervised training with the relative encoding leaves to gain
(1 minus its mean accuracy), since the gain is then smaller whatever SPT does. The claim holds if all decided
differences are above 0, and in part if some are, provided that every encoding has one; otherwise it is undecided.

Changed after the first results, which had the chosen steps, and `digits` as well: a difference became undecided if
there is no gain to lose. `digits` was left out, since it has no gain to lose (claim 1). As first written, the claim
required all six differences, and held in part; then it held, with three of three decided differences, all of them at a
ceiling. Fewer steps were added for headroom: 400 and 500, at which supervised training with some relative encodings is
below 0.9 and SPT with learned positions gains, on validation sequences of the seed of the search. Headroom was first
defined as an accuracy below 0.9; the claim then held in part (ALiBi), and a review found this to be a ceiling too. The
contrast does not count.

Command: python analyses/run.py claim6_encodings
Cost: 180 runs, some of them shared with claims 1 and 2, and 180 measures, about 15 minutes on two cores.
"""

import dataclasses
from typing import cast

import contrast
import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, mark, seeds
from lab import Lab
from matplotlib.figure import Figure
from settings import LARGE, SEEDS, setting, source_of
from tables import BOUNDS, accuracies, at, effect, gained

from attnprobe.config import Recipe
from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.tables import POSITIONS
from attnprobe.tasks import chance

TITLE = "SPT gains less with relative position encodings"

TASK = "pairs"
STEPS = {"quick": (100, 200), "default": (400, 500, 2000), "full": (400, 500, 2000)}
"""Numbers of training steps: a fifth, a quarter and all of the chosen ones."""
ENCODINGS = tuple(POSITIONS)
RELATIVE = ("rotary", "alibi", "relative")


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes under every encoding."""
    numbers, seed_numbers = list(STEPS[lab.scale]), list(SEEDS[lab.scale])
    size = LARGE if lab.scale == "full" else {}
    runs = lab.train(
        {
            (steps, encoding, recipe, seed): setting(
                TASK, cast(Recipe, recipe), seed, position=encoding, steps=steps, **size
            )
            for steps in numbers
            for encoding in ENCODINGS
            for recipe in RECIPES
            for seed in seed_numbers
        }
    )
    axes = {"step": numbers, "encoding": list(ENCODINGS), "recipe": list(RECIPES), "seed": seed_numbers}
    accuracy_variables = accuracies(runs, axes)
    accuracy = xr.DataArray(
        accuracy_variables["test_accuracy"], coords={name: axes[name] for name in ("encoding", "recipe")}
    )
    gain = gained(accuracy)
    less = gain.sel(encoding="learned", drop=True) - gain
    variables = {
        **accuracy_variables,
        **contrast.at_the_end(lab, runs, axes),
        **effect("gain", gain, "gain of SPT in test accuracy"),
        **effect("less", less, "gain under learned positions minus gain under this encoding"),
        "chance": variable((), chance(source_of(TASK)), "accuracy of guessing", "1"),
    }
    return dataset(variables, {**axes, "bound": BOUNDS}, {"task": TASK})


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    answers: dict[str, list[bool | None]] = {encoding: [] for encoding in RELATIVE}
    parts = []
    for steps in map(int, result["step"].values):
        learned, above_zero, _ = at(result, "gain", step=steps, encoding="learned")
        for encoding in RELATIVE:
            place = {"step": steps, "encoding": encoding}
            less, gain = (said(*at(result, name, **place)) for name in ("less", "gain"))
            supervised = float(result["test_accuracy"].sel(place).sel(recipe="supervised").mean())
            told = above_zero > 0 and 1 - supervised >= learned
            held = at(result, "less", **place)[1] > 0 if told else None
            answers[encoding].append(held)
            words = f"difference {less}, gain {gain}, supervised {supervised:.2f}"
            parts.append(Part(f"SPT gains less with {encoding} positions after {steps:,} steps on {TASK}", held, words))
    first = int(result["step"][0])
    gains = (f"{name} {said(*at(result, 'gain', step=first, encoding=name))}" for name in ("learned", *RELATIVE))
    effect = f"gain of SPT on {TASK} after {first} steps: {', '.join(gains)}"
    conclusion = concluded(parts, effect, result.sizes["seed"])
    told = all(set(of_encoding) != {None} for of_encoding in answers.values())
    return conclusion if told else dataclasses.replace(conclusion, verdict="undecided")


def draw(result: xr.Dataset) -> Figure:
    """Draw test accuracy and contrast of both recipes under every encoding, one column per number of steps."""
    numbers = result["step"].values
    with paper():
        figure = Page(figsize=(WIDTH, 3.2))
        axes = figure.subplots(2, len(numbers), sharex=True, sharey="row", squeeze=False)
        for (upper, lower), steps in zip(axes.T, numbers, strict=True):
            for column, encoding in enumerate(map(str, result["encoding"].values)):
                for number, (recipe, name) in enumerate(RECIPES.items()):
                    selected = result.sel(step=steps, encoding=encoding, recipe=recipe)
                    position, bar = column + (-0.15, 0.15)[number], {"marker": "_", "markersize": 5}
                    seeds(upper, position, selected["test_accuracy"], number, label=None if column else name)
                    upper.plot(position, float(selected["train_accuracy"].mean()), color=mark(number)["color"], **bar)
                    seeds(lower, position, selected["contrast"], number)
                    lower.plot(position, float(selected["contrast_null"].mean()), color=PERMUTED, **bar)
            upper.axhline(float(result["chance"]), color="black", linewidth=0.6, linestyle=":")
            lower.axhline(0, color="black", linewidth=0.5)
            for axis in (upper, lower):
                axis.axvline(2.5, color="#9A9A9A", linewidth=0.4)
            upper.set(title=f"{steps:,} steps", ylim=(0, 1.04))
            lower.set_xticks(
                range(len(ENCODINGS)), ENCODINGS, fontsize=6, rotation=40, ha="right", rotation_mode="anchor"
            )
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("proximity contrast\n(std of score)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        f"{TASK}, by number of training steps. Top: test accuracy of supervised training and of SPT followed by "
        "supervised training under six position encodings: none and absolute left of the vertical line, relative right "
        "of it. Bottom: proximity contrast of the head with the largest contrast. Small dots: "
        f"{result.sizes['seed']} seeds. Markers: means with 95 % t-intervals. Horizontal bars: mean training accuracy "
        "(top) and contrast with positions permuted (bottom). "
        "Dotted lines: chance. Learning rate and initial weights were chosen under learned positions, with 2,000 steps."
    )
