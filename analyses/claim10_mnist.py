"""Claim 10: what SPT and labels do on digits at random places, they do on MNIST.

Source: claims 8 and 9, which tried five seeds of one data set of 1,797 images. This repeats on another one what they
found, including what they found without a rule: that supervised training is more accurate than SPT if the scores can
depend on the offset without learned positions.

Design. `mnist-canvas`: 5,000 images of MNIST at half their size, each at a random place of a 14 x 14 canvas; 3,800 are
for training. Networks, settings and numbers of steps are those of claim 8, which were searched on `digits-canvas`:
nothing was searched on MNIST, and no network was trained on this task before the rule was written. With four times
the images, each is seen a quarter as often. Seeds determine places, split, weights, batches and masks. The arms are:

- both recipes with learned positions;
- supervised training with the settings of SPT as well;
- supervised training with rotary instead of learned positions;
- supervised training without positions, but with a score bias by head and two-dimensional offset, trained from 0.

Rule, written before any run. Each part is decided by its 95 % interval over paired seeds; *accuracy* is both that
after the last step and that at the evaluation with the highest validation accuracy. The claim holds if every part
does, and in part if some do.

1. SPT has a higher accuracy than supervised training, also in logit, and with SPT's settings.
2. SPT has a larger contrast (as in claim 8: of the most proximal head, on images with shuffled pixels) than supervised
   training and than its permutation null.
3. Ablating the function of the 2-D offset from layer 0 costs SPT accuracy, more than its null, and more than it costs
   supervised training.
4. Supervised training has a higher accuracy with rotary positions than SPT with learned ones.
5. Supervised training has a higher accuracy with the bias trained from 0 than SPT with learned positions.

Command: python analyses/run.py claim10_mnist
Needs the extra `mnist`. Cost: see the table; two hours on two cores.
"""

import dataclasses

import contrast
import numpy as np
import xarray as xr
from canvas import (
    ABLATED,
    ABLATION_OF_SPT,
    EDITED,
    EDITS,
    ENDINGS,
    LAYERS,
    SCALES,
    SPT,
    SUPERVISED,
    above_zero,
    draw_null,
    draw_rows,
    edit_effects,
    edited,
    gained,
    needs_offsets,
    row_places,
    stopped,
    trained,
    with_stopped,
)
from claim8_real_images import ARMS as ARMS_8
from claim8_real_images import SETTINGS_OF_SPT
from claim9_how_it_arises import ARMS as ARMS_9
from claim9_how_it_arises import FROM_0, ROTARY
from conclusion import Conclusion, concluded, said
from drawing import seeds
from lab import Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from settings import SEEDS
from tables import BOUNDS, accuracies, at, effect, logit

from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset

TITLE = "What SPT and labels do on digits at random places, they do on MNIST"

ARMS = {
    name: dataclasses.replace(arm, options={**arm.options, "task": "mnist-canvas"})
    for name, arm in {**ARMS_8, **ARMS_9}.items()
    if name in (SUPERVISED, SPT, SETTINGS_OF_SPT, ROTARY, FROM_0)
}
EDITED_ARMS = (SPT, SUPERVISED)
TESTED = 1000
"""Number of test images."""


def study(lab: Lab) -> xr.Dataset:
    """Train all arms, measure contrasts and edits, and compare by paired seeds."""
    sizes, seed_numbers = SCALES[lab.scale], list(SEEDS[lab.scale])
    runs = lab.train({(name, seed): trained(arm, seed, sizes) for name, arm in ARMS.items() for seed in seed_numbers})
    axes = {"arm": list(ARMS), "seed": seed_numbers}
    variables = accuracies(runs, axes) | stopped(runs, axes) | contrast.at_the_end(lab, runs, axes, shuffled=True)
    variables |= _effects(xr.Dataset(variables, axes))
    variables |= edited(lab, runs, EDITED_ARMS, seed_numbers)
    variables |= edit_effects(variables, EDITED_ARMS)
    coordinates = {
        **axes,
        "bound": BOUNDS,
        "edited_arm": list(EDITED_ARMS),
        "intervention": list(EDITS),
        "layer": LAYERS,
    }
    return dataset(variables, coordinates, {"edited_images": EDITED})


def _effects(result: xr.Dataset) -> dict[str, xr.Variable]:
    """Return the paired differences that the rule needs."""
    near, null = (result[name].sel(arm=SPT, drop=True) for name in ("contrast", "contrast_null"))
    words = "contrast of SPT minus"
    variables = effect("nearer", gained(result["contrast"]), f"{words} supervised training", contrast.UNITS)
    variables |= effect("nearer_null", near - null, f"{words} its null", contrast.UNITS)
    for (ending, late), accuracy in zip(
        ENDINGS.items(), (result["test_accuracy"], result["stopped_accuracy"]), strict=True
    ):
        spt = accuracy.sel(arm=SPT, drop=True)
        for name, values, words in (
            ("gain", gained(accuracy), "gain"),
            ("gain_logit", gained(logit(accuracy, TESTED)), "gain in logit"),
            ("over_settings", spt - accuracy.sel(arm=SETTINGS_OF_SPT, drop=True), "over SPT's settings"),
            ("rotary", accuracy.sel(arm=ROTARY, drop=True) - spt, "supervised, rotary minus SPT"),
            ("from_0", accuracy.sel(arm=FROM_0, drop=True) - spt, "supervised, bias trained from 0 minus SPT"),
        ):
            variables |= effect(f"{name}{ending}", values, f"{words}{late}")
    return variables


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    parts = [
        above_zero(result, "SPT gains", with_stopped("gain", "gain_logit", "over_settings")),
        above_zero(result, "SPT learns proximity", ("nearer", "nearer_null")),
        needs_offsets(result),
        above_zero(result, "labels do better than SPT with rotary positions", with_stopped("rotary")),
        above_zero(result, "labels do better than SPT with a bias trained from 0", with_stopped("from_0")),
    ]
    means = {arm: float(value) for arm, value in zip(ARMS, result["test_accuracy"].mean("seed"), strict=True)}
    effect_words = (
        f"test accuracy of SPT {means[SPT]:.2f}, supervised {means[SUPERVISED]:.2f}, gain "
        f"{said(*at(result, 'gain'))}; supervised with rotary positions {means[ROTARY]:.2f}, with a bias trained from "
        f"0 {means[FROM_0]:.2f}; without the function of the offset in layer 0 of SPT "
        f"{said(*at(result, 'edit', **ABLATION_OF_SPT))}"
    )
    return concluded(parts, effect_words, result.sizes["seed"])


ROWS = (
    ("learned positions", {0: SUPERVISED, 1: SPT}),
    ("settings of SPT", {0: SETTINGS_OF_SPT}),
    ("rotary positions", {0: ROTARY}),
    ("bias trained from 0", {0: FROM_0}),
)
"""Label of each row of the figure, and its arms by number of colour and marker."""


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracy and the contrast of all arms, and the ablation by layer."""
    with paper():
        figure = Page(figsize=(WIDTH, 1.9))
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1, 0.8])
        draw_rows(left, result, ROWS)
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=2, fontsize=6)
        _draw_contrasts(middle, result)
        _draw_ablation(right, result.sel(intervention=ABLATED))
        for axis, letter in zip((left, middle, right), "abc", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_contrasts(axis: Axes, result: xr.Dataset) -> None:
    """Draw the contrast of all arms in the rows of the accuracies, and its null."""
    for height, number, arm in row_places(ROWS):
        seeds(axis, height, result["contrast"].sel(arm=arm), number, upright=False)
        axis.plot(float(result["contrast_null"].sel(arm=arm).mean()), height, "|", color=PERMUTED, markersize=5)
    axis.axvline(0, color="black", linewidth=0.5)
    axis.set_yticks([])
    axis.set(ylim=(len(ROWS) - 0.5, -0.5), xlabel="proximity contrast\n(std of score)")


def _draw_ablation(axis: Axes, result: xr.Dataset) -> None:
    """Draw the change of accuracy when the function of the offset is ablated, by layer of both recipes."""
    for number, arm in enumerate((SUPERVISED, SPT)):
        for layer in range(2):
            place, selected = layer + (-0.15, 0.15)[number], result.sel(edited_arm=arm, layer=layer)
            seeds(axis, place, selected["edited"], number)
            draw_null(axis, place, selected["edited_null"])
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xticks(np.arange(2), ["layer 0", "layer 1"])
    axis.set(xlim=(-0.5, 1.5), ylabel="change of\ntest accuracy")


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        f"Digits of MNIST at random places of a 14 x 14 canvas; 2 layers; small dots: {result.sizes['seed']} seeds; "
        "markers: means with 95 % t-intervals. (a) Test accuracy; ticks: mean training accuracy; dotted: guessing. "
        "Settings of SPT: supervised training with the settings of SPT. (b) Proximity contrast of the most proximal "
        "head of the same networks in two dimensions, on images with shuffled pixels; grey: the largest of any head "
        f"with positions permuted. (c) Change of the accuracy on {EDITED} test images when the function of the offset "
        "is taken away from the scores of a layer; grey bars: edits of the same size with offsets permuted."
    )
