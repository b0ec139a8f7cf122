"""Claim 4: SPT learns proximity, and proximity causes the gain.

Source: arXiv:2605.21070 (abstract): SPT turns absolute position encodings into proximity-biased scores.

Design. The tasks are `pairs` (generated) and `digits` (real data). Both are repeated with the best settings that have
small initial weights; these do not count (added after claim 3 had shown how much initial weights matter).

- (a) The proximity contrast of the scores (near minus far keys, in std of the score; in pixels on images) at every
  checkpoint of both recipes, of the head with the largest contrast. The null is the largest contrast of the same scores
  with positions permuted, so that both include the selection of a head. The position-position part of the contrast is
  shown as well.
- (b) Over all tasks of claim 1 and all seeds: the contrast at the end of self-pretraining, minus its null, against the
  gain.
- (c) Either the function of the offset or everything except it is ablated from the scores of the trained SPT network
  (null: an equally large change with the offsets permuted).
- (d) Supervised training is given proximity without data: a fixed bias -distance / 2, query and key maps that give near
  keys high scores, and mimetic ones (Trockman & Kolter 2023), which do not depend on positions.

Rule: four parts on each of the two tasks, each decided by its 95 % interval over paired seeds. The contrast at the end
of training is larger for SPT than for supervised training. At the end of self-pretraining, it exceeds both its
permutation null and the contrast before training. Ablating the function of the offset costs accuracy, and more than its
null. Supervised training with a fixed bias gains over supervised training without. The claim holds if all eight parts
do, and in part if some do. The correlation over tasks (b) is reported but does not count: eight tasks are few.

Command: python analyses/run.py claim4_proximity
Cost: 160 runs, most of them shared with claim 1, and 700 measures, about 30 minutes on two cores beyond claim 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import contrast
import numpy as np
import scipy.stats
import settings
import xarray as xr
from conclusion import Conclusion, Part, concluded, said
from drawing import RECIPES, course, mark, seeds
from lab import Asked, Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from settings import LARGE, SEEDS, SMALL, setting
from tables import BOUNDS, accuracies, at, effect

from attnprobe.config import Recipe
from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset, most_proximal, own_prefix, variable
from attnprobe.training.loop import checkpoint_steps
from attnprobe.training.run import Run

TITLE = "SPT learns proximity, and proximity causes the gain"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 400}},
    "default": {"pairs": {}, "pairs, small weights": {}, "digits": {}, "digits, small weights": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16"), LARGE),
}
SIZES: dict[str, dict[str, Any]] = {"quick": {}, "default": {}, "full": LARGE}
"""Settings of the tasks that are trained only for (b)."""
OVER_TASKS = {"quick": ("pairs",), "default": tuple(settings.TASKS), "full": tuple(settings.TASKS)}
GIVEN: dict[str, dict[str, Any]] = {
    "supervised": {},
    "supervised, fixed bias": {"score_bias": "fixed"},
    "supervised, proximity maps": {"init_qk": "proximity"},
    "supervised, mimetic maps": {"init_qk": "mimetic"},
}
EDITS = ("ablate_toeplitz", "keep_toeplitz", "ablate_position", "impose_proximity")
EDITED = 256
"""Number of test sequences whose scores are edited."""
Key = tuple[str, str, int]


def study(lab: Lab) -> xr.Dataset:
    """Train, and measure checkpoints; comparisons are paired by seed."""
    tasks, seed_numbers, recipes = TASKS[lab.scale], list(SEEDS[lab.scale]), list(RECIPES)
    everywhere = list(OVER_TASKS[lab.scale])
    runs = lab.train(
        {
            (task, recipe, seed): setting(task, cast(Recipe, recipe), seed, **tasks.get(task, SIZES[lab.scale]))
            for task in dict.fromkeys([*tasks, *everywhere])
            for recipe in recipes
            for seed in seed_numbers
        }
    )
    given = lab.train(
        {
            (task, arm, seed): setting(task, "supervised", seed, **tasks[task], **options)
            for task in tasks
            for arm, options in GIVEN.items()
            for seed in seed_numbers
        }
    )
    axes = {"task": list(tasks), "seed": seed_numbers}
    variables = (
        _through_training(lab, runs, axes) | _edited(lab, runs, axes) | _over_tasks(lab, runs, everywhere, seed_numbers)
    )
    arm_accuracies = accuracies(given, {"task": list(tasks), "arm": list(GIVEN), "seed": seed_numbers})
    accuracy = xr.DataArray(arm_accuracies["test_accuracy"], coords={"arm": list(GIVEN)})
    variables |= arm_accuracies | effect(
        "given", accuracy - accuracy.sel(arm="supervised", drop=True), "gain of supervised training given proximity"
    )
    coordinates = {
        **axes,
        "recipe": recipes,
        "arm": list(GIVEN),
        "intervention": list(EDITS),
        "checkpoint": np.arange(variables["contrast"].shape[2]),
        "other_task": everywhere,
        "bound": BOUNDS,
    }
    return dataset(variables, coordinates, {"sequences": contrast.SEQUENCES})


def _through_training(lab: Lab, runs: Mapping[Key, Run], axes: Mapping[str, Any]) -> dict[str, xr.Variable]:
    """Return the largest contrast over heads at every checkpoint, its null and its position-position part."""
    steps = {
        (task, recipe): checkpoint_steps(runs[task, recipe, axes["seed"][0]].config)
        for task in axes["task"]
        for recipe in RECIPES
    }
    keys = [(*key, seed, step) for key, checkpoints in steps.items() for seed in axes["seed"] for step in checkpoints]
    measured = lab.measure({key: contrast.asked(runs[key[:3]], key[3]) for key in keys})
    terms_request = {"measure": "positions", "options": {"sequences": contrast.SEQUENCES, "nulls": 0}}
    split = lab.measure({key: replace(contrast.asked(runs[key[:3]], key[3]), **terms_request) for key in keys})
    shape = (len(axes["task"]), len(RECIPES), max(map(len, steps.values())), len(axes["seed"]))
    size, null, position, step_of = (np.full(shape, np.nan) for _ in range(4))
    for index in np.ndindex(shape):
        task, recipe, seed = axes["task"][index[0]], list(RECIPES)[index[1]], axes["seed"][index[3]]
        if index[2] < len(steps[task, recipe]):
            step = steps[task, recipe][index[2]]
            proximity, terms = measured[task, recipe, seed, step], split[task, recipe, seed, step]
            size[index], null[index] = contrast.largest(proximity)
            contrast_by_term = terms[f"{own_prefix(proximity)}proximity_contrast"].isel(most_proximal(proximity))
            position[index], step_of[index] = float(contrast_by_term.sel(term="position-position")), step
    over, description = ("task", "recipe", "checkpoint", "seed"), "proximity contrast of the most proximal head"
    step_axes = ("task", "recipe", "checkpoint")
    variables = {
        "contrast": variable(over, size, description, contrast.UNITS, f"{contrast.SEQUENCES} test sequences"),
        "contrast_null": variable(over, null, f"{description}, positions permuted", contrast.UNITS, "mean over draws"),
        "contrast_position": variable(over, position, "position-position part of the contrast", contrast.UNITS),
        "step_of": variable(step_axes, step_of[..., 0], "training step of the checkpoint", "steps"),
    }
    spt = size[:, list(RECIPES).index("spt")]
    last = np.stack([_last(size[:, index]) for index in range(len(RECIPES))], axis=1)
    switch = [
        steps[task, "spt"].index(runs[task, "spt", axes["seed"][0]].config.pretrain_steps) for task in axes["task"]
    ]
    pretrained = np.stack([spt[i, m] for i, m in enumerate(switch)])
    null_pretrained = np.stack([null[i, list(RECIPES).index("spt"), m] for i, m in enumerate(switch)])
    differences = {
        "contrast_gain": (last[:, 1] - last[:, 0], "contrast at the end, SPT minus supervised"),
        "contrast_excess": (pretrained - null_pretrained, "contrast at the end of self-pretraining, minus null"),
        "contrast_grown": (
            pretrained - spt[:, 0],
            "contrast at the end of self-pretraining, minus contrast before training",
        ),
    }
    for name, (values, long_name) in differences.items():
        variables |= effect(name, xr.DataArray(values, dims=("task", "seed")), long_name, contrast.UNITS)
    return variables


def _last(values: np.ndarray) -> np.ndarray:
    """Return the last finite checkpoint of each task, from values [task, checkpoint, seed]."""
    count = np.isfinite(values[..., 0]).sum(axis=1)
    return values[np.arange(len(values)), count - 1]


def _edited(lab: Lab, runs: Mapping[Key, Run], axes: Mapping[str, Any]) -> dict[str, xr.Variable]:
    """Return the accuracy change of trained SPT networks under edits of all scores, and under their nulls."""
    keys = [(task, "spt", seed) for task in axes["task"] for seed in axes["seed"]]
    options = {"sequences": EDITED, "nulls": contrast.NULLS}
    names = ("all_accuracy_change", "all_accuracy_change_null")
    measured = lab.measure(
        {key: Asked(runs[key], runs[key].config.steps, "interventions", names, options) for key in keys}
    )
    shape = (len(EDITS), len(axes["task"]), len(axes["seed"]))
    change, null = (
        np.array([[row.sel(intervention=edit) for edit in EDITS] for row in values]).T.reshape(shape)
        for values in (
            [measured[key]["all_accuracy_change"] for key in keys],
            [measured[key]["all_accuracy_change_null"].mean("draw").isel(null=0) for key in keys],
        )
    )
    over = ("intervention", "task", "seed")
    variables = {
        "edited": variable(over, change, "change of the test accuracy", "1", f"{EDITED} test sequences"),
        "edited_null": variable(
            over, null, "change of the test accuracy, offsets or positions permuted", "1", "mean over draws"
        ),
    }
    for name, values in {"edit": change, "edit_excess": change - null}.items():
        long_name = "change of accuracy" + (" beyond its null" if name == "edit_excess" else "")
        variables |= effect(name, xr.DataArray(values, dims=over), long_name)
    return variables


def _over_tasks(lab: Lab, runs: Mapping[Key, Run], tasks: list[str], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the contrast at the end of self-pretraining and the gain, by task and seed, and their rank correlation."""
    keys = [(task, "spt", seed) for task in tasks for seed in seed_numbers]
    measured = lab.measure({key: contrast.asked(runs[key], runs[key].config.pretrain_steps) for key in keys})
    shape = (len(tasks), len(seed_numbers))
    largest = np.array([contrast.largest(measured[key]) for key in keys])
    excess = (largest[:, 0] - largest[:, 1]).reshape(shape)
    gain = np.array(
        [
            runs[task, "spt", seed].metrics[-1]["test_accuracy"]
            - runs[task, "supervised", seed].metrics[-1]["test_accuracy"]
            for task, _, seed in keys
        ]
    ).reshape(shape)
    over = ("other_task", "seed")
    variables = {
        "contrast_by_task": variable(over, excess, "contrast after self-pretraining, minus null", contrast.UNITS),
        "gain_by_task": variable(over, gain, "gain of SPT in test accuracy", "1"),
    }
    if len(tasks) > 2:
        correlation = scipy.stats.spearmanr(excess.mean(axis=1), gain.mean(axis=1))
        variables |= {
            "correlation": variable((), correlation.statistic, "rank correlation of contrast and gain over tasks", "1"),
            "correlation_p": variable((), correlation.pvalue, "p-value of the rank correlation", "1", "two-sided"),
        }
    return variables


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts, tasks = [], [str(task) for task in result["task"].values]
    for task in tasks:
        gain = at(result, "contrast_gain", task=task)
        excess, grown = (at(result, f"contrast_{name}", task=task) for name in ("excess", "grown"))
        selection = {"task": task, "intervention": "ablate_toeplitz"}
        edit, beyond = at(result, "edit", **selection), at(result, "edit_excess", **selection)
        biased = at(result, "given", task=task, arm="supervised, fixed bias")
        answers = (
            ("more proximity with SPT than with supervised training", gain[1] > 0, f"{said(*gain)} std"),
            (
                "self-pretraining increases proximity",
                min(excess[1], grown[1]) > 0,
                f"{said(*grown)} std, contrast minus its null {said(*excess)} std",
            ),
            (
                "ablating the function of the offset costs SPT accuracy",
                max(edit[2], beyond[2]) < 0,
                f"{said(*edit)}, minus its null {said(*beyond)}",
            ),
            ("supervised training gains from a fixed proximity bias", biased[1] > 0, said(*biased)),
        )
        parts += [Part(f"{task}: {answer[0]}", *answer[1:], decides=not task.endswith(SMALL)) for answer in answers]
    ablated = at(result, "edit", task=tasks[0], intervention="ablate_toeplitz")
    effect = (
        f"{tasks[0]}: contrast of SPT minus supervised {said(*at(result, 'contrast_gain', task=tasks[0]))} std, "
        f"change of accuracy when the function of the offset is ablated {said(*ablated)}"
    )
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw contrast during training, gain against contrast, edits, and supervised training given proximity."""
    tasks = [str(task) for task in result["task"].values]
    numbers = {str(task): number for number, task in enumerate(result["other_task"].values)}
    with paper():
        figure = Page(figsize=(WIDTH, 5.0))
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
        _draw_training(top, result, tasks)
        axes = bottom.subplots(1, 3)
        for task, number in numbers.items():
            selected = result.sel(other_task=task)
            style = mark(number) | {"s": 12, "linewidths": 0, "alpha": 0.8}
            axes[0].scatter(selected["contrast_by_task"], selected["gain_by_task"], label=task, **style)
        axes[0].axhline(0, color="black", linewidth=0.5)
        axes[0].set(xlabel="contrast after self-pretraining\nminus null (std of score)", ylabel="gain in test accuracy")
        axes[1].axvline(0, color="black", linewidth=0.5)
        _draw_rows(axes[1], result["edited"], tasks, numbers, null=result["edited_null"])
        axes[1].set(xlabel="change of accuracy (SPT)")
        _draw_rows(axes[2], result["test_accuracy"], tasks, numbers)
        axes[2].set(xlabel="test accuracy")
        for axis, letter in zip(axes, "bcd", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
        legends = [axis.get_legend_handles_labels() for axis in axes[:2]]
        handle_of = {
            name: handle for handles, names in reversed(legends) for handle, name in zip(handles, names, strict=True)
        }
        names = [*numbers, *(task for task in tasks if task not in numbers)]
        bottom.legend([handle_of[name] for name in names], names, loc="outside lower center", ncols=5)
    return figure


def _draw_rows(
    axis: Axes, values: xr.DataArray, tasks: list[str], numbers: Mapping[str, int], null: xr.DataArray | None = None
) -> None:
    """Draw one row per intervention or arm, with one line per task; open markers for small weights."""
    (kind,) = set(values.dims) - {"task", "seed"}
    names = [str(name) for name in values[kind].values]
    for row, name in enumerate(names):
        for line, task in enumerate(tasks):
            selection, height = {kind: name, "task": task}, row + 0.2 * (line - (len(tasks) - 1) / 2)
            if null is not None:
                axis.plot(float(null.sel(selection).mean()), height, "|", color="black", markersize=5)
            small = task.endswith(SMALL)
            number, label = numbers[task.removesuffix(SMALL)], None if row else task
            seeds(axis, height, values.sel(selection), number, upright=False, label=label, filled=not small)
        if row:
            axis.axhline(row - 0.5, color="#9A9A9A", linewidth=0.4)
    axis.set_yticks(range(len(names)), [name.replace(", ", ",\n").replace(" ", "\n", 1) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)


def _draw_training(part: SubFigure, result: xr.Dataset, tasks: list[str]) -> None:
    axes = np.atleast_1d(part.subplots(1, len(tasks), sharey=True))
    for axis, task in zip(axes, tasks, strict=True):
        for number, (recipe, name) in enumerate(RECIPES.items()):
            selected = result.sel(task=task, recipe=recipe)
            steps = selected["step_of"].values
            finite = np.isfinite(steps)
            course(axis, steps[finite], selected["contrast"][finite], number, name)
            null = selected["contrast_null"].mean("seed")[finite]
            label = "positions permuted" if number else None
            axis.plot(steps[finite], null, color=PERMUTED, linewidth=1.2, linestyle=(0, (1, 1)), label=label)
            if recipe == "spt":
                position = selected["contrast_position"].mean("seed")[finite]
                style = {"color": "black", "linewidth": 0.8, "linestyle": (0, (3, 2))}
                axis.plot(steps[finite], position, label="position-position part", **style)
        axis.set(title=task.replace(", ", ",\n"), xlabel="training step")
        axis.set_xscale("symlog", linthresh=10)
    axes[0].set_title("a", loc="left", fontweight="bold")
    axes[0].set_ylabel("proximity contrast (std of score)")
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    correlation = ""
    if "correlation" in result:
        value, p = float(result["correlation"]), float(result["correlation_p"])
        correlation = f" (rank correlation of the means over tasks {value:.2f}, p = {p:.2f})"
    return (
        "(a) Proximity contrast (mean score of near minus far keys, in std of the score) of the head with the largest "
        f"contrast, during training: means over {result.sizes['seed']} seeds with 95 % t-intervals. Dashed: its "
        "position-position part. Dotted: the largest contrast over heads with positions permuted. "
        f"(b) Gain of SPT against this contrast at the end of self-pretraining, minus its null, one dot per "
        f"seed{correlation}. (c) Change of the accuracy of SPT networks on {EDITED} test sequences when the mean "
        "function of the offset is ablated from all scores (ablate_toeplitz), when only it is kept (keep_toeplitz), "
        "when the position-position term is ablated (ablate_position), and when the scores get a bias -distance / 2 "
        "(impose_proximity). Black bars: the same edits with offsets or positions permuted. Open markers: small "
        "initial weights. (d) Test accuracy of supervised training from random weights, and with proximity built in "
        "without data."
    )
