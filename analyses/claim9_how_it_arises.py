"""Claim 9: on real images, masked reconstruction of sequences in order gains, through query-key maps and positions.

Source: claims 2, 3 and 7 of arXiv:2605.21070 (abstract), on the task and with the recipes of claim 8.

Design. `digits-canvas`, with 2 layers, width 64 and the settings of claim 8, unless said. The arms are:

- depth: both recipes with 1 and 3 layers, with the learning rate that `canvas_search` chose there;
- controls of self-pretraining, each followed by the same training on the labels: on shuffled sequences; *autoencoding*
  (reconstruction of every token without masks, for the same number of steps); with query-key maps and positions frozen
  at random. They have the settings of SPT;
- transplants: a fresh network receives parts of a self-pretrained one, and is trained on the labels for the steps that
  SPT spends on them; *readout alone* trains only the classification head on the whole self-pretrained network;
- course: training on the labels from checkpoints along self-pretraining;
- encodings without absolute positions, under supervised training: rotary positions, with which it was better than SPT
  with learned ones (claim 8); relative positions (a learned bias by offset along the sequence), and a fixed bias alone
  (-distance / 2 in two dimensions). The last two add a function of the offset to scores between contents.

Rule, written before the reported runs: parts 1 to 5 as a part of claim 8 (from which it was split for its length,
before any run), part 6 after the result of claim 8. Each part is decided by its 95 % interval over paired seeds.
*Accuracy* in parts 1 to 4 and 6 is both that after the last step and that at the evaluation with the highest validation
accuracy. The claim holds if every decided part does, and in part if some do.

1. SPT has a higher accuracy than supervised training with 1 layer, and 2. with 3 layers.
3. SPT has a higher accuracy than autoencoding, and 4. than SPT on shuffled sequences.
5. Transferring query-key maps and positions closes more than half of the gap between nothing transferred and SPT,
   everything else less than half, SPT with both frozen at random less than half.
6. It is not the absence of absolute positions that helps supervised training: rotary positions are better than
   relative positions, and than a fixed bias alone.

The course, and the ablation of the function of the offset by depth, have no rule.

Command: python analyses/run.py claim9_how_it_arises
Cost: see the table; two and a half hours on two cores.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import xarray as xr
from canvas import (
    ABLATED,
    BOTH,
    EDITED,
    EDITS,
    ENDINGS,
    LAYERS,
    SCALES,
    SPT,
    Arm,
    above_zero,
    both,
    course_steps,
    draw_null,
    draw_rows,
    edited,
    gained,
    stopped,
    trained,
    with_stopped,
)
from conclusion import Conclusion, Part, above, concluded, every, said, said_share
from drawing import course, seeds
from lab import Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from settings import SEEDS
from tables import BOUNDS, accuracies, at, effect, shares

from attnprobe.config import TrainConfig
from attnprobe.figures.style import WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.training.run import Run

TITLE = "On real images, masked reconstruction of sequences in order gains, through query-key maps and positions"

AUTOENCODING, SHUFFLED, FROZEN = "autoencoding", "SPT, shuffled", "SPT, QK + positions frozen"
ROTARY, RELATIVE, ALONE = "supervised, rotary", "supervised, relative", "supervised, fixed bias alone"
ARMS = {
    **BOTH,
    **both("1 layer", "1 layer"),
    AUTOENCODING: Arm("spt", {"pretrain_objective": "autoencoding"}),
    SHUFFLED: Arm("spt", {"pretrain_order": "shuffled"}),
    FROZEN: Arm("spt", {"freeze": ("qk", "positions")}),
    ROTARY: Arm("supervised", {"position": "rotary"}),
    RELATIVE: Arm("supervised", {"position": "relative"}),
    ALONE: Arm("supervised", {"position": "none", "score_bias": "fixed"}),
    **both("3 layers", "3 layers"),
}
ALL_BUT_HEAD = ("embeddings", "positions", "qk", "vo", "mlp", "norms")
NOTHING = "nothing transferred"
TRANSPLANTS: dict[str, dict[str, Any]] = {
    NOTHING: {"init_from": None},
    "QK": {"transfer": "qk"},
    "positions": {"transfer": "positions"},
    "QK + positions": {"transfer": "qk+positions"},
    "OV": {"transfer": "vo"},
    "MLP": {"transfer": "mlp"},
    "embeddings": {"transfer": "embeddings"},
    "all but QK + positions": {"transfer": "all-but-qk+positions"},
    "readout alone": {"transfer": "all", "freeze": ALL_BUT_HEAD},
}
CARRIERS = (*TRANSPLANTS, FROZEN, SPT)
"""Arms whose fraction of the gap between nothing transferred and SPT is computed."""
FRESH = 1000
"""Added to the seed for the initial weights of a receiving network."""
EDITED_ARMS = ("SPT, 1 layer", SPT, "SPT, 3 layers")


def study(lab: Lab) -> xr.Dataset:
    """Train all arms, transplants and the course; edit scores; compare by paired seeds."""
    sizes, seed_numbers = SCALES[lab.scale], list(SEEDS[lab.scale])
    runs: dict[Any, Run] = lab.train(
        {(name, seed): trained(arm, seed, sizes) for name, arm in ARMS.items() for seed in seed_numbers}
    )
    spt = {seed: runs[SPT, seed] for seed in seed_numbers}
    steps = course_steps(spt[seed_numbers[0]].config)
    grown = lab.train(
        {
            **{
                (name, seed): continued(spt[seed], spt[seed].config.pretrain_steps, init_seed=seed + FRESH, **options)
                for name, options in TRANSPLANTS.items()
                for seed in seed_numbers
            },
            **{(step, seed): continued(spt[seed], step) for step in steps for seed in seed_numbers},
        }
    )
    axes = {"arm": list(ARMS), "seed": seed_numbers}
    variables = accuracies(runs, axes) | stopped(runs, axes)
    variables |= _effects(xr.Dataset(variables, axes))
    variables |= _carriers(runs, grown, seed_numbers)
    variables |= _along(spt, grown, steps, seed_numbers)
    variables |= edited(lab, runs, EDITED_ARMS, seed_numbers)
    variables |= effect("edit", xr.DataArray(variables["edited"]), "change of accuracy")
    coordinates = {
        **axes,
        "bound": BOUNDS,
        "step": steps,
        "carrier": list(CARRIERS),
        "edited_arm": list(EDITED_ARMS),
        "intervention": list(EDITS),
        "layer": LAYERS,
    }
    return dataset(variables, coordinates, {"edited_images": EDITED})


def continued(source: Run, step: int, **options: Any) -> TrainConfig:
    """Return the configuration of training on the labels, for as long as in SPT, from a checkpoint of an SPT run."""
    config = source.config
    settings = {"init_from": str(source.path_of(step)), "checkpoints": 1, **options}
    length = config.steps - config.pretrain_steps
    return dataclasses.replace(config, recipe="supervised", steps=length, pretrain_steps=0, **settings)


def _effects(result: xr.Dataset) -> dict[str, xr.Variable]:
    """Return the paired differences that the rule needs."""
    variables: dict[str, xr.Variable] = {}
    for (ending, late), accuracy in zip(
        ENDINGS.items(), (result["test_accuracy"], result["stopped_accuracy"]), strict=True
    ):
        spt, rotary = (accuracy.sel(arm=arm, drop=True) for arm in (SPT, ROTARY))
        for name, values, words in (
            ("gain_1_layer", gained(accuracy, "1 layer"), "gain"),
            ("gain_3_layers", gained(accuracy, "3 layers"), "gain"),
            ("over_autoencoding", spt - accuracy.sel(arm=AUTOENCODING, drop=True), "SPT minus autoencoding"),
            ("over_shuffled", spt - accuracy.sel(arm=SHUFFLED, drop=True), "SPT minus SPT on shuffled sequences"),
            ("over_relative", rotary - accuracy.sel(arm=RELATIVE, drop=True), "rotary minus relative"),
            ("over_alone", rotary - accuracy.sel(arm=ALONE, drop=True), "rotary minus fixed bias alone"),
        ):
            variables |= effect(f"{name}{ending}", values, f"{words}{late}")
    return variables


def _carriers(runs: Mapping[Any, Run], grown: Mapping[Any, Run], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the accuracies of the transplants, and the fractions of the gap that they recover."""
    axes = {"arm": list(CARRIERS), "seed": seed_numbers}
    accuracy = xr.Dataset(accuracies({**grown, **runs}, axes), axes)
    fractions = xr.Dataset(shares(accuracy["test_accuracy"].expand_dims("task"), NOTHING, SPT)).isel(task=0)
    carried = xr.merge([accuracy.rename({name: f"carried_{name}" for name in accuracy.data_vars}), fractions])
    return {str(name): value.variable for name, value in carried.rename(arm="carrier").data_vars.items()}


def _along(
    spt: Mapping[int, Run], grown: Mapping[Any, Run], steps: list[int], seed_numbers: list[int]
) -> dict[str, xr.Variable]:
    """Return accuracies on masked pixels, and on classes after training on the labels, along self-pretraining."""
    masked = [
        [next(row["test_accuracy"] for row in spt[seed].metrics if row["step"] == step) for seed in seed_numbers]
        for step in steps
    ]
    over = ("step", "seed")
    after = accuracies(grown, {"step": steps, "seed": seed_numbers})["test_accuracy"]
    return {
        "course_masked_accuracy": variable(over, masked, "masked-pixel test accuracy", "1"),
        "course_accuracy": variable(over, after.values, "test accuracy after training on the labels from here", "1"),
    }


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    bases = {"QK + positions": True, "all but QK + positions": False, FROZEN: False}
    fraction = {name: at(result, "share", carrier=name) for name in bases}
    more = {name: above(0.5, fraction[name]) for name in bases}
    carried = every(answer if bases[name] or answer is None else not answer for name, answer in more.items())
    found = ", ".join(f"{name} {said_share(*fraction[name])}" for name in bases)
    parts = [
        above_zero(result, "SPT gains with 1 layer", with_stopped("gain_1_layer")),
        above_zero(result, "SPT gains with 3 layers", with_stopped("gain_3_layers")),
        above_zero(result, "SPT is better than autoencoding", with_stopped("over_autoencoding")),
        above_zero(result, "SPT is better than SPT on shuffled sequences", with_stopped("over_shuffled")),
        Part(
            "query-key maps and positions carry what self-pretraining adds to training on the labels alone",
            carried if at(result, "gap")[1] > 0 else None,
            found,
        ),
        above_zero(
            result,
            "rotary positions help supervised training more than other encodings without absolute positions",
            with_stopped("over_relative", "over_alone"),
        ),
    ]
    effect_words = (
        f"gain {said(*at(result, 'gain_1_layer'))} with 1 layer, {said(*at(result, 'gain_3_layers'))} with 3; over "
        f"autoencoding {said(*at(result, 'over_autoencoding'))}; fraction of the gap recovered: {found}"
    )
    return concluded(parts, effect_words, result.sizes["seed"])


ROWS = (
    ("1 layer", {0: "supervised, 1 layer", 1: "SPT, 1 layer"}),
    ("2 layers", {0: "supervised", 1: "SPT"}),
    ("3 layers", {0: "supervised, 3 layers", 1: "SPT, 3 layers"}),
    ("autoencoding", {3: AUTOENCODING}),
    ("shuffled sequences", {3: SHUFFLED}),
    ("QK + positions frozen", {3: FROZEN}),
    ("rotary", {0: ROTARY}),
    ("relative", {0: RELATIVE}),
    ("fixed bias alone", {0: ALONE}),
)
"""Label of each row of the figure, and its arms by number of colour and marker."""


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracy of arms and transplants, the course of self-pretraining, and the ablation by depth."""
    with paper():
        figure = Page(figsize=(WIDTH, 4.8))
        left, right = cast(list[SubFigure], figure.subfigures(1, 2, width_ratios=[1.2, 1]))
        arms = left.subplots()
        _draw_arms(arms, result)
        upper, lower = np.ravel(right.subplots(2, 1))
        steps = result["step"].values
        course(upper, steps, result["course_masked_accuracy"], 2, "masked pixels")
        course(upper, steps, result["course_accuracy"], 1, "class, trained from here")
        upper.set(xscale="log", ylim=(0, 1), xlabel="step of self-pretraining", ylabel="test accuracy")
        upper.legend(fontsize=6)
        _draw_ablation(lower, result.sel(intervention=ABLATED))
        for axis, letter in zip((arms, upper, lower), "abc", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_arms(axis: Axes, result: xr.Dataset) -> None:
    """Draw a row per pair of arms, control and transplant."""
    names = ["train_accuracy", "test_accuracy"]
    transplants = result[[f"carried_{name}" for name in names]].sel(carrier=list(TRANSPLANTS))
    transplants = transplants.rename(carrier="arm", **{f"carried_{name}": name for name in names})
    rows = (*ROWS, *((name, {2: name}) for name in TRANSPLANTS))
    draw_rows(axis, xr.concat([result[names], transplants], "arm"), rows)
    for end in (3, 6, len(ROWS)):
        axis.axhline(end - 0.5, color="#9A9A9A", linewidth=0.4)
    axis.legend(loc="lower right", fontsize=6)


def _draw_ablation(axis: Axes, result: xr.Dataset) -> None:
    """Draw the change of accuracy when the function of the offset is ablated, by layer of each network."""
    places, labels = [], []
    for depth, arm in enumerate(EDITED_ARMS, start=1):
        for layer in range(depth):
            place = len(places) + depth
            selected = result.sel(edited_arm=arm, layer=layer)
            seeds(axis, place, selected["edited"], 4)
            draw_null(axis, place, selected["edited_null"])
            places.append(place)
            labels.append(f"{layer}\nof {depth}")
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xticks(places, labels, fontsize=6)
    axis.set(xlabel="ablated layer", ylabel="change of\ntest accuracy")


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        f"Handwritten digits at random places of a 12 x 12 canvas; small dots: {result.sizes['seed']} seeds; markers: "
        "means with 95 % t-intervals. "
        "(a) Test accuracy; ticks: mean training accuracy; dotted line: guessing. Top: both recipes by depth. "
        "Middle: controls of self-pretraining, each followed by training on the labels: reconstruction without masks "
        "(autoencoding), shuffled sequences, query-key maps and positions frozen at random; and supervised training "
        "without absolute positions. Bottom: fresh networks that receive parts of a self-pretrained one, trained on "
        "the labels as long as in SPT. (b) Accuracy on masked pixels along self-pretraining, and class accuracy of "
        "networks trained on the labels from there. (c) Change of the accuracy of SPT networks on "
        f"{EDITED} test images when the function of the offset is taken away from the scores of one layer; grey bars: "
        "edits of the same size with offsets permuted."
    )
