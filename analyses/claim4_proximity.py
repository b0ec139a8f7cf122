"""Claim 4: what SPT learns there is proximity, and it causes the gain.

Source: arXiv:2605.21070 (its abstract): SPT turns absolute position encodings into proximity-biased scores.

Design. On `pairs` (generated) and `digits` (real), and beside them with the best settings that begin with small
weights, which decide nothing (added when claim 3 had shown how much initial weights do):

- (a) The proximity contrast of the scores (near minus far keys, in std of the score; in pixels on images) at every
  checkpoint of both recipes, of the head with the largest one; beside it the largest one of the same scores with
  positions permuted, so that picking a head costs the null as much; and the part of it that is position-position.
- (b) Over all tasks of claim 1 and all seeds: the contrast at the end of self-pretraining, minus its null, against the
  gain.
- (c) The function of the offset is taken out of the scores of the trained SPT network (null: as large a change with its
  offsets permuted), or everything but it.
- (d) Labels alone are given proximity from no data: a fixed bias -distance / 2, query and key maps that score near keys
  high, and mimetic ones (Trockman & Kolter 2023), which know no positions.

Rule, four parts on each of the two tasks, each by its 95 % interval over paired seeds: the contrast at the end of
training is larger under SPT than under labels; at the end of self-pretraining it exceeds both that of the permuted null
and what the network had before training; taking out the function of the offset costs accuracy, and more than its null;
labels with a fixed bias gain over labels without. The claim holds where all eight do, and in part where some do. The
correlation over tasks (b) is reported and decides nothing: eight tasks are few.

Command: python analyses/run.py claim4_proximity
Cost: 160 runs, most of them those of claim 1, and 700 measures, about 30 minutes on two cores beyond claim 1.
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

TITLE = "What SPT learns there is proximity, and it causes the gain"

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"pairs": {"steps": 400}},
    "default": {"pairs": {}, "pairs, small weights": {}, "digits": {}, "digits, small weights": {}},
    "full": dict.fromkeys(("pairs", "digits", "image-16"), LARGE),
}
SIZES: dict[str, dict[str, Any]] = {"quick": {}, "default": {}, "full": LARGE}
"""Of the tasks that are trained for (b) alone."""
OVER_TASKS = {"quick": ("pairs",), "default": tuple(settings.TASKS), "full": tuple(settings.TASKS)}
GIVEN: dict[str, dict[str, Any]] = {
    "supervised": {},
    "supervised, fixed bias": {"score_bias": "fixed"},
    "supervised, proximity maps": {"init_qk": "proximity"},
    "supervised, mimetic maps": {"init_qk": "mimetic"},
}
EDITS = ("ablate_toeplitz", "keep_toeplitz", "ablate_position", "impose_proximity")
EDITED = 256
"""Test sequences whose scores are edited."""
Key = tuple[str, str, int]


def study(lab: Lab) -> xr.Dataset:
    """Train, and measure checkpoints; what is compared is paired by seed."""
    tasks, of_seed, recipes = TASKS[lab.scale], list(SEEDS[lab.scale]), list(RECIPES)
    everywhere = list(OVER_TASKS[lab.scale])
    runs = lab.train(
        {
            (task, recipe, seed): setting(task, cast(Recipe, recipe), seed, **tasks.get(task, SIZES[lab.scale]))
            for task in dict.fromkeys([*tasks, *everywhere])
            for recipe in recipes
            for seed in of_seed
        }
    )
    given = lab.train(
        {
            (task, arm, seed): setting(task, "supervised", seed, **tasks[task], **named)
            for task in tasks
            for arm, named in GIVEN.items()
            for seed in of_seed
        }
    )
    axes = {"task": list(tasks), "seed": of_seed}
    found = _through_training(lab, runs, axes) | _edited(lab, runs, axes) | _over_tasks(lab, runs, everywhere, of_seed)
    arms = accuracies(given, {"task": list(tasks), "arm": list(GIVEN), "seed": of_seed})
    accuracy = xr.DataArray(arms["test_accuracy"], coords={"arm": list(GIVEN)})
    found |= arms | effect(
        "given", accuracy - accuracy.sel(arm="supervised", drop=True), "gain of labels given proximity"
    )
    coordinates = {
        **axes,
        "recipe": recipes,
        "arm": list(GIVEN),
        "intervention": list(EDITS),
        "checkpoint": np.arange(found["contrast"].shape[2]),
        "other_task": everywhere,
        "bound": BOUNDS,
    }
    return dataset(found, coordinates, {"sequences": contrast.SEQUENCES})


def _through_training(lab: Lab, runs: Mapping[Key, Run], axes: Mapping[str, Any]) -> dict[str, xr.Variable]:
    """Return the contrast at every checkpoint: the largest over heads, and its share in position-position terms."""
    steps = {
        (task, recipe): checkpoint_steps(runs[task, recipe, axes["seed"][0]].config)
        for task in axes["task"]
        for recipe in RECIPES
    }
    keys = [(*key, seed, step) for key, of_run in steps.items() for seed in axes["seed"] for step in of_run]
    measured = lab.measure({key: contrast.asked(runs[key[:3]], key[3]) for key in keys})
    terms_of = {"measure": "positions", "options": {"sequences": contrast.SEQUENCES, "nulls": 0}}
    split = lab.measure({key: replace(contrast.asked(runs[key[:3]], key[3]), **terms_of) for key in keys})
    shape = (len(axes["task"]), len(RECIPES), max(map(len, steps.values())), len(axes["seed"]))
    size, null, position, step_of = (np.full(shape, np.nan) for _ in range(4))
    for place in np.ndindex(shape):
        task, recipe, seed = axes["task"][place[0]], list(RECIPES)[place[1]], axes["seed"][place[3]]
        if place[2] < len(steps[task, recipe]):
            step = steps[task, recipe][place[2]]
            one, terms = measured[task, recipe, seed, step], split[task, recipe, seed, step]
            size[place], null[place] = contrast.largest(one)
            own = terms[f"{own_prefix(one)}proximity_contrast"].isel(most_proximal(one))
            position[place], step_of[place] = float(own.sel(term="position-position")), step
    over, about = ("task", "recipe", "checkpoint", "seed"), "proximity contrast of the most proximal head"
    ended = ("task", "recipe", "checkpoint")
    made = {
        "contrast": variable(over, size, about, contrast.UNITS, f"{contrast.SEQUENCES} test sequences"),
        "contrast_null": variable(over, null, f"{about}, positions permuted", contrast.UNITS, "mean over draws"),
        "contrast_position": variable(over, position, "its part in the position-position term", contrast.UNITS),
        "step_of": variable(ended, step_of[..., 0], "training step of the checkpoint", "steps"),
    }
    spt = size[:, list(RECIPES).index("spt")]
    last = np.stack([_last(size[:, place]) for place in range(len(RECIPES))], axis=1)
    middle = [
        steps[task, "spt"].index(runs[task, "spt", axes["seed"][0]].config.pretrain_steps) for task in axes["task"]
    ]
    pretrained = np.stack([spt[i, m] for i, m in enumerate(middle)])
    of_null = np.stack([null[i, list(RECIPES).index("spt"), m] for i, m in enumerate(middle)])
    differences = {
        "contrast_gain": (last[:, 1] - last[:, 0], "contrast at the end, SPT minus labels"),
        "contrast_excess": (pretrained - of_null, "contrast at the end of self-pretraining, minus null"),
        "contrast_grown": (pretrained - spt[:, 0], "contrast at the end of self-pretraining, minus that before it"),
    }
    for name, (values, long_name) in differences.items():
        made |= effect(name, xr.DataArray(values, dims=("task", "seed")), long_name, contrast.UNITS)
    return made


def _last(values: np.ndarray) -> np.ndarray:
    """Return the values at the last checkpoint of each task, of [task, checkpoint, seed]."""
    count = np.isfinite(values[..., 0]).sum(axis=1)
    return values[np.arange(len(values)), count - 1]


def _edited(lab: Lab, runs: Mapping[Key, Run], axes: Mapping[str, Any]) -> dict[str, xr.Variable]:
    """Return what edits of all scores do to the accuracy of the trained SPT networks, and as large ones elsewhere."""
    keys = [(task, "spt", seed) for task in axes["task"] for seed in axes["seed"]]
    options = {"sequences": EDITED, "nulls": contrast.NULLS}
    wanted = ("all_accuracy_change", "all_accuracy_change_null")
    found = lab.measure(
        {key: Asked(runs[key], runs[key].config.steps, "interventions", wanted, options) for key in keys}
    )
    shape = (len(EDITS), len(axes["task"]), len(axes["seed"]))
    change, null = (
        np.array([[one.sel(intervention=edit) for edit in EDITS] for one in values]).T.reshape(shape)
        for values in (
            [found[key]["all_accuracy_change"] for key in keys],
            [found[key]["all_accuracy_change_null"].mean("draw").isel(null=0) for key in keys],
        )
    )
    over = ("intervention", "task", "seed")
    made = {
        "edited": variable(over, change, "change of the test accuracy", "1", f"{EDITED} test sequences"),
        "edited_null": variable(over, null, "the same with offsets or positions permuted", "1", "mean over draws"),
    }
    for name, values in {"edit": change, "edit_excess": change - null}.items():
        what = "change of accuracy" + (" beyond its null" if name == "edit_excess" else "")
        made |= effect(name, xr.DataArray(values, dims=over), what)
    return made


def _over_tasks(lab: Lab, runs: Mapping[Key, Run], tasks: list[str], of_seed: list[int]) -> dict[str, xr.Variable]:
    """Return contrast at the end of self-pretraining and gain, by task and seed, and their rank correlation."""
    keys = [(task, "spt", seed) for task in tasks for seed in of_seed]
    measured = lab.measure({key: contrast.asked(runs[key], runs[key].config.pretrain_steps) for key in keys})
    shape = (len(tasks), len(of_seed))
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
    made = {
        "contrast_by_task": variable(over, excess, "contrast after self-pretraining, minus null", contrast.UNITS),
        "gain_by_task": variable(over, gain, "gain of SPT in test accuracy", "1"),
    }
    if len(tasks) > 2:
        found = scipy.stats.spearmanr(excess.mean(axis=1), gain.mean(axis=1))
        made |= {
            "correlation": variable((), found.statistic, "rank correlation of contrast and gain over tasks", "1"),
            "correlation_p": variable((), found.pvalue, "its p value", "1", "two-sided"),
        }
    return made


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts, tasks = [], [str(task) for task in result["task"].values]
    for task in tasks:
        more = at(result, "contrast_gain", task=task)
        excess, grown = (at(result, f"contrast_{name}", task=task) for name in ("excess", "grown"))
        place = {"task": task, "intervention": "ablate_toeplitz"}
        edit, beyond = at(result, "edit", **place), at(result, "edit_excess", **place)
        given = at(result, "given", task=task, arm="supervised, fixed bias")
        found = (
            ("more proximity under SPT than under labels", more[1] > 0, f"{said(*more)} std"),
            (
                "self-pretraining brings proximity",
                min(excess[1], grown[1]) > 0,
                f"{said(*grown)} std, minus its null {said(*excess)} std",
            ),
            (
                "SPT loses accuracy without its function of the offset",
                max(edit[2], beyond[2]) < 0,
                f"{said(*edit)}, minus its null {said(*beyond)}",
            ),
            ("labels gain from a fixed proximity bias", given[1] > 0, said(*given)),
        )
        parts += [Part(f"{task}: {one[0]}", *one[1:], decides=not task.endswith(SMALL)) for one in found]
    removed = at(result, "edit", task=tasks[0], intervention="ablate_toeplitz")
    effect = (
        f"{tasks[0]}: contrast of SPT minus labels {said(*at(result, 'contrast_gain', task=tasks[0]))} std, accuracy "
        f"without the function of the offset {said(*removed)}"
    )
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw contrast through training, contrast against gain, edits, and labels that are given proximity."""
    tasks = [str(task) for task in result["task"].values]
    numbers = {str(task): number for number, task in enumerate(result["other_task"].values)}
    with paper():
        figure = Page(figsize=(WIDTH, 5.0), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
        _draw_training(top, result, tasks)
        axes = bottom.subplots(1, 3)
        for task, number in numbers.items():
            one = result.sel(other_task=task)
            drawn = mark(number) | {"s": 12, "linewidths": 0, "alpha": 0.8}
            axes[0].scatter(one["contrast_by_task"], one["gain_by_task"], label=task, **drawn)
        axes[0].axhline(0, color="black", linewidth=0.5)
        axes[0].set(xlabel="contrast after self-pretraining\nminus null (std of score)", ylabel="gain in test accuracy")
        axes[1].axvline(0, color="black", linewidth=0.5)
        _draw_rows(axes[1], result["edited"], tasks, numbers, null=result["edited_null"])
        axes[1].set(xlabel="change of accuracy (SPT)")
        _draw_rows(axes[2], result["test_accuracy"], tasks, numbers)
        axes[2].set(xlabel="test accuracy")
        for axis, letter in zip(axes, "bcd", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
        every = [axis.get_legend_handles_labels() for axis in axes[:2]]
        shown = {
            name: handle for handles, names in reversed(every) for handle, name in zip(handles, names, strict=True)
        }
        names = [*numbers, *(task for task in tasks if task not in numbers)]
        bottom.legend([shown[name] for name in names], names, loc="outside lower center", ncols=5)
    return figure


def _draw_rows(
    axis: Axes, values: xr.DataArray, tasks: list[str], numbers: Mapping[str, int], null: xr.DataArray | None = None
) -> None:
    """Draw values of every intervention or arm in a row, the tasks beneath one another; small weights are open."""
    (kind,) = set(values.dims) - {"task", "seed"}
    names = [str(name) for name in values[kind].values]
    for row, name in enumerate(names):
        for line, task in enumerate(tasks):
            one, place = {kind: name, "task": task}, row + 0.2 * (line - (len(tasks) - 1) / 2)
            if null is not None:
                axis.plot(float(null.sel(one).mean()), place, "|", color="black", markersize=5)
            small = task.endswith(SMALL)
            number, label = numbers[task.removesuffix(SMALL)], None if row else task
            seeds(axis, place, values.sel(one), number, upright=False, label=label, filled=not small)
        if row:
            axis.axhline(row - 0.5, color="#9A9A9A", linewidth=0.4)
    axis.set_yticks(range(len(names)), [name.replace(", ", ",\n").replace(" ", "\n", 1) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)


def _draw_training(part: SubFigure, result: xr.Dataset, tasks: list[str]) -> None:
    axes = np.atleast_1d(part.subplots(1, len(tasks), sharey=True))
    for axis, task in zip(axes, tasks, strict=True):
        for number, (recipe, name) in enumerate(RECIPES.items()):
            one = result.sel(task=task, recipe=recipe)
            steps = one["step_of"].values
            known = np.isfinite(steps)
            course(axis, steps[known], one["contrast"][known], number, name)
            null = one["contrast_null"].mean("seed")[known]
            label = "positions permuted" if number else None
            axis.plot(steps[known], null, color=PERMUTED, linewidth=1.2, linestyle=(0, (1, 1)), label=label)
            if recipe == "spt":
                position = one["contrast_position"].mean("seed")[known]
                drawn = {"color": "black", "linewidth": 0.8, "linestyle": (0, (3, 2))}
                axis.plot(steps[known], position, label="of it position-position", **drawn)
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
        "(a) Proximity contrast (score of near minus far keys, in std of the score) of the head with the largest one "
        f"through training: means over {result.sizes['seed']} seeds with 95 % Student intervals; dashed, its part in "
        "the position-position term; dotted, the largest one over heads of the same scores with positions permuted. "
        f"(b) That contrast at the end of self-pretraining, minus its null, against the gain of SPT, a dot a "
        f"seed{correlation}. (c) Change of the accuracy of SPT networks on {EDITED} test sequences when all "
        "scores lose or keep their mean function of the offset, lose their position-position term, or get a bias "
        "-distance / 2; black bars: the same edits with offsets or positions permuted; open marks: small initial "
        "weights. (d) Labels alone from random weights, and given proximity without data."
    )
