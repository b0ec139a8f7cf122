"""Claim 8: proximity explains the gain of SPT on real images at random places.

Source: claims 1, 4 and 6 of arXiv:2605.21070 (abstract). The task was chosen because a pilot, with one seed per arm and
other code, had shown a gain in test accuracy and an effect of ablating the function of the offset in layer 0: parts 1
and 4 replicate it.

Design. `digits-canvas`: real handwritten digits, each at a random place of a 12 x 12 canvas. A network of 2 layers and
width 64 is trained with both recipes, with the settings that `canvas_search` chose for each on validation images of a
seed that is not reported. A seed determines places, split, weights, batches and masks, and is shared by all arms. Seeds
split the same 1,797 images, so that intervals are conditional on this data set, and a tenth of each test set are
validation images of the search, at other places. The other arms, with the settings of their recipe, are:

- supervised training with the settings of SPT as well;
- both recipes with a fixed proximity bias, -distance / 2 in two dimensions, in all heads, beside the learned positions;
- both recipes with rotary instead of learned positions;
- SPT with permuted pixels: neighbours in the sequence are not neighbours in the image. With learned positions only the
  names of the positions change, so that this checks the measure.

Contrasts are those of the head with the largest one, in two dimensions, on test images whose pixels are shuffled, each
in its own way: near pixels of real images are alike, which gives scores between similar contents a contrast without
any position. Those of intact images are reported. Edits change the scores of all heads of a layer of trained networks;
their nulls have the same size, with offsets or positions permuted. Ablating the function of the offset takes away
preferences for far keys and directions as well as proximity, and no network was trained without it.

Rule, written before the reported runs (a review before them added SPT's settings, the shuffled images and early
stopping; then arms with relative positions were cut for their cost, and depth, controls and transplants became claim 9;
a review of the results changed the title, which had named the parts that hold, but no rule). Each part is decided by
its 95 % interval over paired seeds. *Accuracy* in parts 1, 2, 5 and 6 is both that after the last step and that at the
evaluation with the highest validation accuracy; *gain* is SPT minus supervised training. The claim does not hold if
part 1, 2 or 4 does not; else it holds if all decided parts do, and in part if not.

1. The gain is above 0, in accuracy, in logit, and over supervised training with SPT's settings.
2. Proximity explains the gain: it is smaller if both recipes have a fixed proximity bias, also in logit, in which a
   high accuracy of supervised training leaves room for a gain. Undecided if that accuracy is above 0.9 on average.
3. SPT has a larger contrast than supervised training, than before training, and than its permutation null.
4. Ablating the function of the 2-D offset from layer 0 costs SPT accuracy, more than its null, and more than it costs
   supervised training.
5. Proximity suffices: supervised training gains from a fixed proximity bias.
6. The gain is smaller with rotary than with learned positions, also in logit; undecided as in part 2.

Command: python analyses/canvas_search.py, once; then python analyses/run.py claim8_real_images
Cost: see the table; two hours on two cores.
"""

import dataclasses
from collections.abc import Mapping
from typing import cast

import contrast
import numpy as np
import xarray as xr
from canvas import (
    ABLATED,
    ABLATION_OF_SPT,
    BOTH,
    EDITED,
    EDITS,
    ENDINGS,
    LAYERS,
    SCALES,
    SPT,
    SUPERVISED,
    Arm,
    above_zero,
    both,
    course_steps,
    draw_null,
    draw_rows,
    edit_effects,
    edited,
    gained,
    needs_offsets,
    stopped,
    trained,
    with_stopped,
)
from conclusion import Conclusion, Part, concluded, said
from drawing import course, seeds
from lab import Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from settings import SEEDS
from tables import BOUNDS, accuracies, at, effect, logit

from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.training.run import Run

TITLE = "Proximity explains the gain of SPT on real images at random places"

SETTINGS_OF_SPT, PERMUTED_PIXELS = "supervised, settings of SPT", "SPT, permuted pixels"
FIXED, ROTARY = "fixed bias", "rotary"
ARMS = {
    **BOTH,
    SETTINGS_OF_SPT: Arm("supervised", settings_of="spt"),
    **both(FIXED, score_bias="fixed"),
    **both(ROTARY, position="rotary"),
    PERMUTED_PIXELS: Arm("spt", {"task_options": {"pixel_permuted": True}}),
}
COURSES = {"course": SPT, "permuted_course": PERMUTED_PIXELS}
"""Arms whose contrast is measured along training, by the first part of the variable."""
EDITED_ARMS = (SPT, SUPERVISED, f"SPT, {ROTARY}")
TESTED = 600
"""Number of test images."""
NEEDED = (0, 1, 3)
"""Parts without which the claim does not hold: gain, explained by proximity, which the network needs."""
CEILING = 0.9
"""Mean accuracy of supervised training above which a smaller gain tells nothing."""


def study(lab: Lab) -> xr.Dataset:
    """Train all arms, measure contrasts and edits, and compare by paired seeds."""
    sizes, seed_numbers = SCALES[lab.scale], list(SEEDS[lab.scale])
    runs = lab.train({(name, seed): trained(arm, seed, sizes) for name, arm in ARMS.items() for seed in seed_numbers})
    config = runs[SPT, seed_numbers[0]].config
    steps = [*course_steps(config), config.steps]
    axes = {"arm": list(ARMS), "seed": seed_numbers}
    intact = contrast.at_the_end(lab, runs, axes)
    variables = accuracies(runs, axes) | stopped(runs, axes) | contrast.at_the_end(lab, runs, axes, shuffled=True)
    variables |= {f"intact_{name}": value for name, value in intact.items()}
    variables |= _before(lab, runs, seed_numbers)
    variables |= _effects(xr.Dataset(variables, axes))
    variables |= _along(lab, runs, steps, seed_numbers)
    variables |= edited(lab, runs, EDITED_ARMS, seed_numbers)
    variables |= edit_effects(variables, EDITED_ARMS)
    coordinates = {
        **axes,
        "bound": BOUNDS,
        "step": steps,
        "edited_arm": list(EDITED_ARMS),
        "intervention": list(EDITS),
        "layer": LAYERS,
    }
    return dataset(variables, coordinates, {"edited_images": EDITED, "pretrain_steps": config.pretrain_steps})


def _effects(result: xr.Dataset) -> dict[str, xr.Variable]:
    """Return the paired differences that the rule needs."""
    near = result["contrast"]
    spt = near.sel(arm=SPT, drop=True)
    found = {
        "nearer": (gained(near), "contrast of SPT minus supervised training"),
        "nearer_before": (spt - result["contrast_before"], "contrast of SPT minus that before training"),
        "nearer_null": (spt - result["contrast_null"].sel(arm=SPT, drop=True), "contrast of SPT minus its null"),
        "nearer_permuted": (
            spt - near.sel(arm=PERMUTED_PIXELS, drop=True),
            "contrast of SPT minus SPT with permuted pixels",
        ),
    }
    for (ending, late), accuracy in zip(
        ENDINGS.items(), (result["test_accuracy"], result["stopped_accuracy"]), strict=True
    ):
        supervised = accuracy.sel(arm=SUPERVISED, drop=True)
        for scale, of in (("", accuracy), ("_logit", logit(accuracy, TESTED))):
            unit = " in logit" if scale else ""
            found[f"gain{scale}{ending}"] = gained(of), f"gain{unit}{late}"
            for what in (FIXED, ROTARY):
                name = f"less_{what.replace(' ', '_')}{scale}{ending}"
                found[name] = gained(of) - gained(of, what), f"difference of gains{unit}{late}"
        found[f"over_settings{ending}"] = (
            accuracy.sel(arm=SPT, drop=True) - accuracy.sel(arm=SETTINGS_OF_SPT, drop=True),
            f"over SPT's settings{late}",
        )
        found[f"biased{ending}"] = (
            accuracy.sel(arm=f"{SUPERVISED}, {FIXED}", drop=True) - supervised,
            f"supervised training with minus without a fixed bias{late}",
        )
    variables: dict[str, xr.Variable] = {}
    for name, (values, words) in found.items():
        variables |= effect(name, values, words, contrast.UNITS if name.startswith("nearer") else "1")
    return variables


def _before(lab: Lab, runs: Mapping[tuple[str, int], Run], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the contrast of SPT networks before training, on shuffled images."""
    measured = lab.measure({seed: contrast.asked(runs[SPT, seed], 0, shuffled=True) for seed in seed_numbers})
    values = [contrast.largest(measured[seed])[0] for seed in seed_numbers]
    return {"contrast_before": variable(("seed",), values, "proximity contrast before training", contrast.UNITS)}


def _along(
    lab: Lab, runs: Mapping[tuple[str, int], Run], steps: list[int], seed_numbers: list[int]
) -> dict[str, xr.Variable]:
    """Return the contrast on shuffled images along training, and its null."""
    keys = [(arm, step, seed) for arm in COURSES.values() for step in steps for seed in seed_numbers]
    measured = lab.measure({(a, k, s): contrast.asked(runs[a, s], k, shuffled=True) for a, k, s in keys})
    found = np.array([contrast.largest(measured[key]) for key in keys]).reshape(len(COURSES), len(steps), -1, 2)
    variables = {}
    for (name, arm), size, null in zip(COURSES.items(), found[..., 0], found[..., 1], strict=True):
        words, method = f"proximity contrast of {arm} during training", f"{contrast.SEQUENCES} test images"
        variables[f"{name}_contrast"] = variable(("step", "seed"), size, words, contrast.UNITS, method)
        words = f"{words}, positions permuted"
        variables[f"{name}_contrast_null"] = variable(("step", "seed"), null, words, contrast.UNITS, method)
    return variables


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""

    def less(asked: str, what: str) -> Part:
        name = f"less_{what.replace(' ', '_')}"
        room = float(result["test_accuracy"].sel(arm=f"{SUPERVISED}, {what}").mean()) <= CEILING
        return above_zero(result, asked, with_stopped(name, f"{name}_logit"), decided=room)

    parts = [
        above_zero(result, "SPT gains", with_stopped("gain", "gain_logit", "over_settings")),
        less("SPT gains less with a fixed proximity bias", FIXED),
        above_zero(result, "SPT learns proximity", ("nearer", "nearer_before", "nearer_null")),
        needs_offsets(result),
        above_zero(result, "supervised training gains from a fixed proximity bias", with_stopped("biased")),
        less("SPT gains less with rotary positions", ROTARY),
    ]
    means = result["test_accuracy"].mean("seed")
    effect_words = (
        f"test accuracy {float(means.sel(arm=SPT)):.2f} against {float(means.sel(arm=SUPERVISED)):.2f}, gain "
        f"{said(*at(result, 'gain'))}, reduced by a fixed bias by {said(*at(result, 'less_fixed_bias'))}; without "
        f"the function of the offset in layer 0 {said(*at(result, 'edit', **ABLATION_OF_SPT))}"
    )
    conclusion = concluded(parts, effect_words, result.sizes["seed"])
    needed = [parts[number].held for number in NEEDED]
    if all(needed):
        return conclusion
    return dataclasses.replace(conclusion, verdict="does not hold here" if False in needed else "undecided")


ROWS = (
    ("learned positions", {0: SUPERVISED, 1: SPT}),
    ("learned, fixed bias", {0: f"{SUPERVISED}, {FIXED}", 1: f"{SPT}, {FIXED}"}),
    ("rotary", {0: f"{SUPERVISED}, {ROTARY}", 1: f"{SPT}, {ROTARY}"}),
    ("settings of SPT", {0: SETTINGS_OF_SPT}),
    ("permuted pixels", {1: PERMUTED_PIXELS}),
)
"""Label of each row of the figure, and its arms by number of colour and marker."""
EDIT_LABELS = {
    ABLATED: "function of\nthe offset",
    "keep_toeplitz": "all but the\nfunction",
    "ablate_position": "position-\nposition",
    "ablate_position_content": "position-\ncontent",
    "ablate_content_position": "content-\nposition",
    "ablate_content": "content-\ncontent",
}
"""What is taken away from the scores."""


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracy of all arms, the contrast along training, and the edits by layer."""
    with paper():
        figure = Page(figsize=(WIDTH, 3.6))
        upper, lower = cast(list[SubFigure], figure.subfigures(2, 1))
        left, right = upper.subplots(1, 2, width_ratios=[1, 1])
        draw_rows(left, result, ROWS)
        left.set_ylim(len(ROWS) + 0.4, -0.5)  # room for the legend
        left.legend(loc="lower right", ncols=2, fontsize=6, columnspacing=1, handlelength=1, handletextpad=0.3)
        _draw_course(right, result)
        bottom = lower.subplots()
        _draw_edits(bottom, result.sel(edited_arm=SPT))
        for axis, letter in zip((left, right, bottom), "abc", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_course(axis: Axes, result: xr.Dataset) -> None:
    """Draw the contrast of SPT along training, with intact and with permuted pixels, and the null."""
    steps = result["step"].values
    for number, (name, arm) in zip((1, 3), COURSES.items(), strict=True):
        course(axis, steps, result[f"{name}_contrast"], number, arm)
    seeds(axis, steps[-1], result["contrast"].sel(arm=SUPERVISED), 0, label="supervised, at the end")
    null = result["course_contrast_null"].mean("seed")
    axis.plot(steps, null, color=PERMUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="positions permuted")
    begin = result.attrs["pretrain_steps"]
    axis.axvline(begin, color="#9A9A9A", linewidth=0.6)
    axis.text(begin, 1, "labels ", fontsize=5.8, ha="right", va="top", transform=axis.get_xaxis_transform())
    highest = float(result["course_contrast"].max())
    axis.set(xscale="log", ylim=(None, 1.8 * highest), xlabel="training step")
    axis.set_ylabel("proximity contrast\n(std of score)")
    axis.legend(loc="upper left", fontsize=6)


def _draw_edits(axis: Axes, result: xr.Dataset) -> None:
    """Draw the change of accuracy under each edit of each layer, and its null."""
    for column, edit in enumerate(EDIT_LABELS):
        for layer in range(2):
            place, selected = column + (-0.15, 0.15)[layer], result.sel(intervention=edit, layer=layer)
            seeds(axis, place, selected["edited"], 4 + layer, label=None if column else f"layer {layer}")
            draw_null(axis, place, selected["edited_null"])
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xticks(range(len(EDIT_LABELS)), list(EDIT_LABELS.values()), fontsize=6)
    axis.set_ylabel("change of\ntest accuracy")
    axis.legend(fontsize=6)


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        f"Handwritten digits at random places of a 12 x 12 canvas; 2 layers; small dots: {result.sizes['seed']} seeds; "
        "markers: means with 95 % t-intervals. "
        "(a) Test accuracy; ticks on the right: mean training accuracy; dotted line: guessing. "
        "Settings of SPT: supervised training with the settings chosen for SPT. Permuted pixels: SPT on images with "
        "the same permutation of their pixels. "
        "(b) Proximity contrast of the most proximal head in two dimensions during training (bands: intervals; grey "
        "line: start of training on the labels), on images with shuffled pixels; dotted: the largest of any head with "
        "positions permuted. "
        f"(c) Change of the accuracy of SPT networks on {EDITED} test images when parts of the scores of a layer are "
        "taken away; grey bars: edits of the same size with offsets or positions permuted (none for terms that "
        "involve content)."
    )
