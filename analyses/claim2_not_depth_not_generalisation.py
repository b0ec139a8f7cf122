"""Claim 2: the bottleneck of supervised training is neither depth nor generalisation alone.

Source: arXiv:2605.21070 (abstract). Amos et al. 2024 (arXiv:2310.02980) call the gain of SPT a gain in generalisation.
Both can be right: the number of training sequences determines which effect shows.

Design. On `pairs`, supervised training and SPT are compared at depths 1 to 6, with 125 to 8,000 training sequences, and
for a quarter of the steps to four times the steps. The last comparison uses 8,000 sequences, too many to memorise. On
`digits` (real data) they are compared with 100 to all training images. Training accuracy is reported next to test
accuracy: supervised training that fits but does not generalise has a high and a low one; if it does not fit, both are
low. Settings are those that the search of claim 1 chose for each recipe at depth 1. At the largest depth, supervised
training is searched again in the same way and trained with the new choice. SPT is not, since it has nothing left to
gain.

Rule. *Not depth*: on `pairs`, SPT gains at every depth with those settings. *Not generalisation alone*: on `pairs` with
the most sequences, supervised training also has a lower training accuracy than SPT. Both are decided by the 95 %
interval over paired seeds. The claim holds if both hold, and in part if one does. Added after the first results: depths
2, 4 and 5 (the verdict is the same with and without them) and, without counting, the search at depth 6 and the 500
sequences of claim 1.

Command: python analyses/run.py claim2_not_depth_not_generalisation
Cost: 153 runs, about 70 minutes on two cores, half of it for depth.
"""

import json
from typing import Any, cast

import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, course, mark, seeds
from lab import Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from settings import SEARCHED, SEEDS, candidates, setting
from settings import TASKS as TASK_SETTINGS
from tables import BOUNDS, accuracies, at, effect, gained, outcome

from attnprobe.axes import label
from attnprobe.config import Recipe
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.tasks import chance, source

TITLE = "The bottleneck of supervised training is neither depth nor generalisation alone"

Varied = dict[str, tuple[str, dict[float, dict[str, Any]]]]
"""Maps each axis to its task and to the settings of each of its values."""


def sized(task: str, *sizes: int) -> dict[float, dict[str, Any]]:
    """Return the settings for numbers of training sequences, excluding the validation split."""
    validation_size = TASK_SETTINGS[task]["validation_size"]
    return {size: {"task_options": {"train_size": size + validation_size}} for size in sizes}


def of_digits(*sizes: int) -> dict[float, dict[str, Any]]:
    """Return the settings for numbers of training images: the rest of the non-test images is held out."""
    return {size: {"validation_size": 1197 - size} for size in sizes}


def lasting(*times: float) -> dict[float, dict[str, Any]]:
    """Return the settings for multiples of the number of steps, with the most training sequences."""
    steps = TASK_SETTINGS["pairs"]["steps"]
    return {multiple: {**sized("pairs", 8000)[8000], "steps": round(multiple * steps)} for multiple in times}


VARIED: dict[str, Varied] = {
    "quick": {
        "depth": ("pairs", {depth: {"n_layers": depth, "steps": 300} for depth in (1, 2)}),
        "size": ("pairs", {size: {**options, "steps": 300} for size, options in sized("pairs", 100, 1000).items()}),
    },
    "default": {
        "depth": ("pairs", {depth: {"n_layers": depth} for depth in range(1, 7)}),
        "size": ("pairs", sized("pairs", 125, 500, 1000, 8000)),
        "times": ("pairs", lasting(0.25, 1, 4)),
        "images": ("digits", of_digits(100, 300, 997)),
    },
    "full": {
        "depth": ("pairs", {depth: {"n_layers": depth, "d_model": 128} for depth in range(1, 7)}),
        "size": ("pairs", sized("pairs", 125, 500, 2000, 8000, 32000, 128000)),
        "times": ("pairs", lasting(0.25, 0.5, 1, 2, 4, 8)),
        "images": ("digits", of_digits(50, 100, 200, 400, 997)),
    },
}


def study(lab: Lab) -> xr.Dataset:
    """Train both recipes for every value of every axis."""
    seed_numbers, varied = list(SEEDS[lab.scale]), VARIED[lab.scale]
    runs = lab.train(
        {
            (axis, recipe, value, seed): setting(task, cast(Recipe, recipe), seed, **overrides)
            for axis, (task, values) in varied.items()
            for recipe in RECIPES
            for value, overrides in values.items()
            for seed in seed_numbers
        }
    )
    variables: dict[str, xr.Variable] = {}
    coordinates: dict[str, Any] = {"recipe": list(RECIPES), "seed": seed_numbers, "bound": BOUNDS}
    for axis, (task, values) in varied.items():
        coordinates[axis] = list(values)
        axes = {"recipe": list(RECIPES), axis: list(values), "seed": seed_numbers}
        axis_accuracies = accuracies({key[1:]: run for key, run in runs.items() if key[0] == axis}, axes)
        variables |= {f"{axis}_{name}": values for name, values in axis_accuracies.items()}
        for split in ("train", "test"):
            by_recipe = xr.DataArray(axis_accuracies[f"{split}_accuracy"], coords={"recipe": list(RECIPES)})
            variables |= effect(f"{axis}_{split}_gain", gained(by_recipe), f"gain of SPT in {split} accuracy")
        variables[f"{axis}_chance"] = variable((), chance(source(task)), f"accuracy of guessing ({task})", "1")
    variables |= searched(lab, varied["depth"], seed_numbers, variables["depth_test_accuracy"])
    return dataset(variables, coordinates, {"tasks": {axis: task for axis, (task, _) in varied.items()}})


def searched(
    lab: Lab, depth: tuple[str, dict[float, dict[str, Any]]], seed_numbers: list[int], depth_accuracy: xr.Variable
) -> dict[str, xr.Variable]:
    """Return supervised accuracies of the deepest networks with settings searched there, and SPT's gain over them."""
    task, (*_, deepest) = depth[0], depth[1].values()
    tried = candidates("supervised")[-2 if lab.scale == "quick" else 0 :]
    by_choice = lab.train({choice: setting(task, "supervised", SEARCHED, choice, **deepest) for choice in tried})
    chosen = max(tried, key=lambda choice: outcome(by_choice[choice]))
    runs = lab.train({(seed,): setting(task, "supervised", seed, chosen, **deepest) for seed in seed_numbers})
    searched_accuracy = accuracies(runs, {"seed": seed_numbers})
    spt = depth_accuracy[list(RECIPES).index("spt"), -1]
    gain = xr.DataArray(spt - searched_accuracy["test_accuracy"])
    return {
        **{f"searched_{name}": values for name, values in searched_accuracy.items()},
        **effect(
            "searched_gain",
            gain,
            "gain of SPT over supervised training searched at the largest depth, in test accuracy",
        ),
        "searched_choice": variable(
            (), str(chosen), "choice of that search: learning rate, initial weights, split", ""
        ),
    }


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    depths, most = [int(depth) for depth in result["depth"].values], int(result["size"][-1])
    gains = {depth: at(result, "depth_test_gain", depth=depth) for depth in depths}
    trained = at(result, "size_train_gain", size=most)
    gains_by_depth = ", ".join(f"{said(*gain)} at depth {depth}" for depth, gain in gains.items())
    parts = [
        Part(
            "Not depth: on pairs, SPT gains at every depth",
            all(low > 0 for _, low, _ in gains.values()),
            gains_by_depth,
        ),
        Part(
            f"Not generalisation alone: with {most:,} sequences of pairs, SPT also has a higher training accuracy",
            trained[1] > 0,
            said(*trained),
        ),
        Part(
            f"Not depth: SPT gains over supervised training with settings searched at depth {depths[-1]}",
            at(result, "searched_gain")[1] > 0,
            f"{said(*at(result, 'searched_gain'))}, chosen: {result['searched_choice'].item()}",
            decides=False,
        ),
    ]
    effect = (
        f"pairs: gain {said(*gains[depths[-1]])} at depth {depths[-1]}; with {most:,} sequences, gain in training "
        f"accuracy {said(*trained)}"
    )
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw training and test accuracy of both recipes along every axis."""
    tasks = json.loads(result.attrs["tasks"])
    shown = [axis for axis in ("depth", "size", "times", "images") if axis in result.dims]
    with paper():
        figure = Page(figsize=(WIDTH, 1.95))
        axes = figure.subplots(1, len(shown), sharey=True)
        for column, (axis, name) in enumerate(zip(axes, shown, strict=True)):
            _panel(axis, result, name)
            axis.set_title("abcd"[column], loc="left", fontweight="bold")
            axis.set_title(tasks[name])
        axes[0].set(ylabel="accuracy", ylim=(0, 1.04))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _panel(axis: Axes, result: xr.Dataset, name: str) -> None:
    positions = result[name].values.astype(float)
    for number, (recipe, recipe_label) in enumerate(RECIPES.items()):
        selected = result.sel(recipe=recipe)
        course(axis, positions, selected[f"{name}_test_accuracy"], number, f"{recipe_label}, test", linestyle="-")
        trained = selected[f"{name}_train_accuracy"].mean("seed")
        style = {"color": mark(number)["color"], "marker": mark(number)["marker"], "markerfacecolor": "none"}
        axis.plot(
            positions, trained, linestyle=":", linewidth=0.9, markersize=3, label=f"{recipe_label}, training", **style
        )
    axis.axhline(float(result[f"{name}_chance"]), color="black", linewidth=0.6, linestyle=":")
    if name == "depth":
        seeds(axis, positions[-1], result["searched_test_accuracy"], 2)
    else:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(
        positions, [f"{position / 1000:g}k" if position > 999 else f"{position:g}" for position in positions]
    )
    axis.set(xlabel=label(name))


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Test accuracy (filled, with 95 % t-intervals) and training accuracy (open) of supervised training and of SPT "
        f"followed by supervised training, means over {result.sizes['seed']} paired seeds. (a) pairs, by depth "
        "(triangle: supervised training with settings searched at that depth). (b) pairs, by number of training "
        "sequences. (c) pairs with 8,000 training sequences, by number of steps as a multiple of the chosen one. (d) "
        "digits, by number of training images. Training accuracy is measured on the first 2,000 sequences. Black "
        "dotted line: chance."
    )
