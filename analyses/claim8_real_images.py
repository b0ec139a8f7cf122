"""Claim 8: the paper's account holds on real images whose place tells nothing: gain, proximity and its cause.

Source: claims 1 to 4 and 6 of arXiv:2605.21070 (abstract). The task was chosen because a pilot, with one seed per arm,
other code and other images in its test split, had shown a gain in test accuracy and an effect of ablating the function
of the offset in layer 0.

Design. `digits-canvas`: real handwritten digits, each at a random place of a 12 x 12 canvas. A network of 2 layers and
width 64 is trained with both recipes and with controls. Settings are those that `canvas_search` chose for each recipe
on validation images of a seed that is not reported; for 1 and 3 layers, with the learning rate chosen there. Encodings
and controls have the settings of their recipe. A seed determines places, split, weights, batches and masks, and is
shared by all arms. Seeds split the same 1,797 images, so that intervals are conditional on this data set. The arms are:

- supervised training with the settings of SPT as well;
- both recipes with a fixed proximity bias in two dimensions;
- both recipes with rotary instead of learned positions;
- depth: both recipes with 1 and 3 layers;
- controls of self-pretraining, each followed by the same training on the labels: on shuffled sequences; *autoencoding*
  (reconstruction of every token without masks, for the same number of steps); with query-key maps and positions frozen
  at random;
- SPT with permuted pixels: neighbours in the sequence are not neighbours in the image. With learned positions only the
  names of the positions change, so that this checks the measure;
- transplants: a fresh network receives parts of a self-pretrained one, and is trained on the labels for the steps that
  SPT spends on them; *readout alone* trains only the classification head on the whole self-pretrained network;
- course: training on the labels from checkpoints along self-pretraining.

Contrasts are those of the head with the largest one, in two dimensions, on test images whose pixels are shuffled, each
in its own way: near pixels of real images are alike, which gives scores between similar contents a contrast without
any position. Those of intact images are reported. Edits change the scores of all heads of a layer of trained networks;
their nulls have the same size, with offsets or positions permuted.

Rule, written before the reported runs (a review before them added the controls of parts 4, 7 and 8, and the shuffled
images; arms with relative positions, with permuted pixels under supervised training and rotary positions, and with only
the query-key maps frozen were cut for their cost, before any run). Each part is decided by its 95 % interval over
paired seeds. *Accuracy* in parts 1 to 6, 9 and 11 is both that after the last step and that at the evaluation with the
highest validation accuracy; *gain* is SPT minus supervised training. The claim does not hold if part 1, 4 or 8 does
not; else it holds if all decided parts do, and in part if not.

1. The gain is above 0, in accuracy, in logit, and over supervised training with SPT's settings.
2. The gain is above 0 with 1 layer, and 3. with 3 layers.
4. Proximity explains the gain: it is smaller if both recipes have a fixed proximity bias, also in logit, in which a
   high accuracy of supervised training leaves room for a gain. Undecided if that accuracy is above 0.9 on average.
5. SPT has a higher accuracy than autoencoding, and 6. than SPT on shuffled sequences.
7. SPT has a larger contrast than supervised training, than before training, and than its permutation null.
8. Ablating the function of the 2-D offset from layer 0 costs SPT accuracy, more than its null, and more than it costs
   supervised training.
9. Proximity suffices: supervised training gains from a fixed proximity bias.
10. Transferring query-key maps and positions closes more than half of the gap between nothing transferred and SPT,
    everything else less than half, SPT with both frozen at random less than half.
11. The gain is smaller with rotary than with learned positions, also in logit; undecided as in part 4.

Command: python analyses/run.py claim8_real_images
Cost: see the table; about three and a half hours on two cores.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import contrast
import numpy as np
import xarray as xr
from canvas_search import chosen, configured
from conclusion import Conclusion, Part, above, concluded, every, said, said_share
from drawing import RECIPES, course, mark, seeds
from lab import Asked, Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from settings import SEEDS
from tables import BOUNDS, accuracies, at, effect, logit, shares

from attnprobe.config import TrainConfig
from attnprobe.figures.style import PERMUTED, WIDTH, Page, paper
from attnprobe.results import dataset, variable
from attnprobe.training.loop import checkpoint_steps
from attnprobe.training.run import Run

TITLE = "On real images at random places, SPT gains, becomes proximal, and needs its proximity"

SCALES: dict[str, dict[str, Any]] = {
    "quick": {"steps": 16, "pretrain_steps": 12, "evaluations": 1, "checkpoints": 2, "eval_size": 50},
    "default": {},
    "full": {},
}
SUPERVISED, SPT = "supervised", "SPT"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    SUPERVISED: ("supervised", {}),
    SPT: ("spt", {}),
    **{
        f"{name}, {what}": (recipe, options)
        for what, options in {
            "fixed bias": {"score_bias": "fixed"},
            "rotary": {"position": "rotary"},
            "1 layer": {},
            "3 layers": {},
        }.items()
        for name, recipe in ((SUPERVISED, "supervised"), (SPT, "spt"))
    },
    "supervised, settings of SPT": ("supervised", {}),
    "autoencoding": ("spt", {"pretrain_objective": "autoencoding"}),
    "SPT, shuffled": ("spt", {"pretrain_order": "shuffled"}),
    "SPT, QK + positions frozen": ("spt", {"freeze": ("qk", "positions")}),
    "SPT, permuted pixels": ("spt", {"task_options": {"pixel_permuted": True}}),
}
"""Recipe, and settings other than the chosen ones."""
CHOSEN_FOR = {
    "supervised, settings of SPT": ("spt", ""),
    "supervised, 1 layer": ("supervised", "1 layer"),
    "SPT, 1 layer": ("spt", "1 layer"),
    "supervised, 3 layers": ("supervised", "3 layers"),
    "SPT, 3 layers": ("spt", "3 layers"),
}
"""Recipe and size for which the settings of an arm were chosen, if not its recipe and 2 layers."""
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
CARRIERS = (*TRANSPLANTS, "SPT, QK + positions frozen", SPT)
"""Arms whose fraction of the gap between nothing transferred and SPT is computed."""
FRESH = 1000
"""Added to the seed for the initial weights of a receiving network."""
EDITS = (
    *("ablate_toeplitz", "keep_toeplitz"),
    *("ablate_position", "ablate_position_content", "ablate_content_position", "ablate_content"),
)
EDITED_ARMS = (SPT, SUPERVISED, "SPT, rotary", "SPT, 1 layer", "SPT, 3 layers")
EDITED = 256
"""Number of test images whose scores are edited."""
EDITS_OPTIONS = {"sequences": EDITED, "nulls": 8, "edits": EDITS}
QUICK_EDITS = {"sequences": 16, "nulls": 1, "edits": EDITS}
MOST_LAYERS = 3
TESTED = 600
"""Number of test images."""
NEEDED = (0, 3, 7)
"""Parts without which the claim does not hold: gain, explained by proximity, which the network needs."""
CEILING = 0.9
"""Mean accuracy of supervised training above which a smaller gain tells nothing."""


def study(lab: Lab) -> xr.Dataset:
    """Train all arms, transplants and the course; measure contrasts and edits; compare by paired seeds."""
    sizes, seed_numbers = SCALES[lab.scale], list(SEEDS[lab.scale])
    runs: dict[Any, Run] = lab.train({(arm, seed): trained(arm, seed, sizes) for arm in ARMS for seed in seed_numbers})
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
    intact = contrast.at_the_end(lab, runs, axes)
    variables = accuracies(runs, axes) | stopped(runs, axes) | contrast.at_the_end(lab, runs, axes, shuffled=True)
    variables |= {f"intact_{name}": value for name, value in intact.items()}
    variables |= _before(lab, runs, seed_numbers)
    variables |= _effects(xr.Dataset(variables, axes))
    variables |= _carriers(runs, grown, seed_numbers)
    variables |= _along(lab, spt, grown, steps, seed_numbers)
    variables |= _edited(lab, runs, seed_numbers, QUICK_EDITS if lab.scale == "quick" else EDITS_OPTIONS)
    coordinates = {
        **axes,
        "bound": BOUNDS,
        "step": steps,
        "carrier": list(CARRIERS),
        "edited_arm": list(EDITED_ARMS),
        "intervention": list(EDITS),
        "layer": list(range(MOST_LAYERS)),
    }
    return dataset(variables, coordinates, {"edited_images": EDITED})


def trained(arm: str, seed: int, sizes: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of an arm."""
    recipe, options = ARMS[arm]
    settings = (recipe, *chosen(*CHOSEN_FOR.get(arm, (recipe,)))[1:])
    options = {**sizes, **options, "task_options": {**sizes.get("task_options", {}), **options.get("task_options", {})}}
    return configured(settings, seed, **{"checkpoints": 6, "evaluations": 8, **options})


def course_steps(config: TrainConfig) -> list[int]:
    """Return the checkpoints of self-pretraining from which training on the labels is started."""
    first, last = config.pretrain_steps / 100, config.pretrain_steps
    return [step for step in checkpoint_steps(config) if first <= step <= last]


def continued(source: Run, step: int, **options: Any) -> TrainConfig:
    """Return the configuration of training on the labels, for as long as in SPT, from a checkpoint of an SPT run."""
    config = source.config
    settings = {"init_from": str(source.path_of(step)), "checkpoints": 1, **options}
    length = config.steps - config.pretrain_steps
    return dataclasses.replace(config, recipe="supervised", steps=length, pretrain_steps=0, **settings)


def stopped(runs: Mapping[tuple[str, int], Run], axes: Mapping[str, list[Any]]) -> dict[str, xr.Variable]:
    """Return the test accuracy at the evaluation on the labels with the highest validation accuracy."""

    def accuracy(run: Run) -> float:
        rows = [row for row in run.metrics if row["objective"] == "labels"]
        return max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["test_accuracy"]

    values = [[accuracy(runs[arm, seed]) for seed in axes["seed"]] for arm in axes["arm"]]
    method = "at the evaluation with the highest validation accuracy"
    return {"stopped_accuracy": variable(tuple(axes), values, "test accuracy with early stopping", "1", method)}


def _effects(result: xr.Dataset) -> dict[str, xr.Variable]:
    """Return the paired differences that the rule needs."""

    def gain(of: xr.DataArray, what: str = "") -> xr.DataArray:
        return of.sel(arm=f"{SPT}{what}", drop=True) - of.sel(arm=f"{SUPERVISED}{what}", drop=True)

    near = result["contrast"]
    spt = near.sel(arm=SPT, drop=True)
    found = {
        "nearer": (gain(near), "contrast of SPT minus supervised training"),
        "nearer_before": (spt - result["contrast_before"], "contrast of SPT minus that before training"),
        "nearer_null": (spt - result["contrast_null"].sel(arm=SPT, drop=True), "contrast of SPT minus its null"),
        "nearer_permuted": (
            near.sel(arm=SPT) - near.sel(arm="SPT, permuted pixels"),
            "contrast of SPT minus SPT with permuted pixels",
        ),
    }
    for ending, accuracy in (("", result["test_accuracy"]), ("_stopped", result["stopped_accuracy"])):
        spt = accuracy.sel(arm=SPT, drop=True)
        late = " with early stopping" if ending else ""
        for scale, of in (("", accuracy), ("_logit", logit(accuracy, TESTED))):
            unit = " in logit" if scale else ""
            found[f"gain{scale}{ending}"] = gain(of), f"gain{unit}{late}"
            for arm in ("fixed bias", "rotary"):
                less = gain(of) - gain(of, f", {arm}")
                found[f"less_{arm.replace(' ', '_')}{scale}{ending}"] = less, f"difference of gains{unit}{late}"
        found |= {
            f"{name}{ending}": (values, f"{words}{late}")
            for name, values, words in (
                ("over_settings", spt - accuracy.sel(arm="supervised, settings of SPT"), "over SPT's settings"),
                ("gain_1_layer", gain(accuracy, ", 1 layer"), "gain"),
                ("gain_3_layers", gain(accuracy, ", 3 layers"), "gain"),
                ("over_autoencoding", spt - accuracy.sel(arm="autoencoding"), "SPT minus autoencoding"),
                ("over_shuffled", spt - accuracy.sel(arm="SPT, shuffled"), "SPT minus SPT on shuffled sequences"),
                (
                    "biased",
                    accuracy.sel(arm="supervised, fixed bias") - accuracy.sel(arm=SUPERVISED),
                    "supervised training with minus without a fixed bias",
                ),
            )
        }
    variables: dict[str, xr.Variable] = {}
    for name, (values, words) in found.items():
        units = contrast.UNITS if name.startswith("nearer") else "1"
        variables |= effect(name, values.drop_vars("arm", errors="ignore"), words, units)
    return variables


def _before(lab: Lab, runs: Mapping[tuple[str, int], Run], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the contrast of SPT networks before training, on shuffled images."""
    measured = lab.measure({seed: contrast.asked(runs[SPT, seed], 0, shuffled=True) for seed in seed_numbers})
    values = [contrast.largest(measured[seed])[0] for seed in seed_numbers]
    return {"contrast_before": variable(("seed",), values, "proximity contrast before training", contrast.UNITS)}


def _carriers(runs: Mapping[Any, Run], grown: Mapping[Any, Run], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the accuracies of the transplants, and the fractions of the gap that they recover."""
    axes = {"arm": list(CARRIERS), "seed": seed_numbers}
    accuracy = xr.Dataset(accuracies({**grown, **runs}, axes), axes)
    fractions = xr.Dataset(shares(accuracy["test_accuracy"].expand_dims("task"), NOTHING, SPT)).isel(task=0)
    carried = xr.merge([accuracy.rename({name: f"carried_{name}" for name in accuracy.data_vars}), fractions])
    return {str(name): value.variable for name, value in carried.rename(arm="carrier").data_vars.items()}


def _along(
    lab: Lab, spt: Mapping[int, Run], grown: Mapping[Any, Run], steps: list[int], seed_numbers: list[int]
) -> dict[str, xr.Variable]:
    """Return contrast on shuffled images, and accuracies on masked pixels and classes, along self-pretraining."""
    keys = [(step, seed) for step in steps for seed in seed_numbers]
    measured = lab.measure({key: contrast.asked(spt[key[1]], key[0], shuffled=True) for key in keys})
    size, null, masked = (np.empty((len(steps), len(seed_numbers))) for _ in range(3))
    for index, (step, seed) in zip(np.ndindex(size.shape), keys, strict=True):
        size[index], null[index] = contrast.largest(measured[step, seed])
        masked[index] = next(row["test_accuracy"] for row in spt[seed].metrics if row["step"] == step)
    over, description = ("step", "seed"), "proximity contrast during self-pretraining"
    after = accuracies(grown, {"step": steps, "seed": seed_numbers})["test_accuracy"]
    return {
        "course_contrast": variable(over, size, description, contrast.UNITS, f"{contrast.SEQUENCES} test images"),
        "course_contrast_null": variable(over, null, f"{description}, positions permuted", contrast.UNITS),
        "course_masked_accuracy": variable(over, masked, "masked-pixel test accuracy", "1"),
        "course_accuracy": variable(over, after.values, "test accuracy after training on the labels from here", "1"),
    }


def _edited(
    lab: Lab, runs: Mapping[tuple[str, int], Run], seed_numbers: list[int], options: Mapping[str, Any]
) -> dict[str, xr.Variable]:
    """Return the accuracy changes under edits of all heads of a layer, with nulls; NaN where they do not apply."""
    names = ("layer_accuracy_change", "layer_accuracy_change_null")
    measured = lab.measure(
        {
            (arm, seed): Asked(runs[arm, seed], runs[arm, seed].config.steps, "interventions", names, options)
            for arm in EDITED_ARMS
            for seed in seed_numbers
        }
    )
    change, null = (np.full((len(EDITED_ARMS), len(EDITS), MOST_LAYERS, len(seed_numbers)), np.nan) for _ in range(2))
    for (i, arm), (j, edit), (k, seed) in (
        (a, b, c) for a in enumerate(EDITED_ARMS) for b in enumerate(EDITS) for c in enumerate(seed_numbers)
    ):
        result = measured[arm, seed].sel(intervention=edit)
        layers = result.sizes["layer"]
        change[i, j, :layers, k] = result["layer_accuracy_change"]
        null[i, j, :layers, k] = result["layer_accuracy_change_null"].isel(null=0).mean("draw")
    over, description = ("edited_arm", "intervention", "layer", "seed"), "change of the test accuracy"
    variables = {
        "edited": variable(over, change, description, "1", f"{EDITED} test images"),
        "edited_null": variable(over, null, f"{description}, offsets or positions permuted", "1", "mean over draws"),
    }
    spt, supervised = (change[EDITED_ARMS.index(arm)] for arm in (SPT, SUPERVISED))
    for name, values, axes, words in (
        ("edit", change, over, description),
        ("edit_excess", change - null, over, f"{description} beyond its null"),
        ("edit_more", spt - supervised, over[1:], f"{description}, SPT minus supervised training"),
    ):
        variables |= effect(name, xr.DataArray(values, dims=axes), words)
    return variables


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""

    def part(asked: str, *names: str, decided: bool = True) -> Part:
        found = [at(result, name) for name in names]
        words = ", ".join(
            f"{result[name].attrs['long_name']} {said(*values)}" for name, values in zip(names, found, strict=True)
        )
        return Part(asked, all(low > 0 for _, low, _ in found) if decided else None, words)

    def both(*names: str) -> list[str]:
        return [f"{name}{ending}" for name in names for ending in ("", "_stopped")]

    def less(asked: str, arm: str) -> Part:
        name = f"less_{arm.replace(' ', '_')}"
        headroom = float(result["test_accuracy"].sel(arm=f"{SUPERVISED}, {arm}").mean()) <= CEILING
        return part(asked, *both(name, f"{name}_logit"), decided=headroom)

    place = {"intervention": "ablate_toeplitz", "layer": 0}
    costs = [
        at(result, "edit", edited_arm=SPT, **place),
        at(result, "edit_excess", edited_arm=SPT, **place),
        at(result, "edit_more", **place),
    ]
    bases = {"QK + positions": True, "all but QK + positions": False, "SPT, QK + positions frozen": False}
    fraction = {name: at(result, "share", carrier=name) for name in bases}
    more = {name: above(0.5, fraction[name]) for name in bases}
    carried = every(answer if bases[name] or answer is None else not answer for name, answer in more.items())
    words = ("change of accuracy", "minus its null", "minus supervised training")
    parts = [
        part("SPT gains", *both("gain", "gain_logit", "over_settings")),
        part("SPT gains with 1 layer", *both("gain_1_layer")),
        part("SPT gains with 3 layers", *both("gain_3_layers")),
        less("SPT gains less with a fixed proximity bias", "fixed bias"),
        part("SPT is better than autoencoding", *both("over_autoencoding")),
        part("SPT is better than SPT on shuffled sequences", *both("over_shuffled")),
        part("SPT learns proximity", "nearer", "nearer_before", "nearer_null"),
        Part(
            "SPT needs the function of the offset in layer 0",
            all(high < 0 for _, _, high in costs),
            ", ".join(f"{what} {said(*cost)}" for what, cost in zip(words, costs, strict=True)),
        ),
        part("supervised training gains from a fixed proximity bias", *both("biased")),
        Part(
            "query-key maps and positions carry what self-pretraining adds to training on the labels alone",
            carried if at(result, "gap")[1] > 0 else None,
            ", ".join(f"{name} {said_share(*fraction[name])}" for name in bases),
        ),
        less("SPT gains less with rotary positions", "rotary"),
    ]
    needed = [parts[number].held for number in NEEDED]
    means = result["test_accuracy"].mean("seed")
    effect_words = (
        f"test accuracy {float(means.sel(arm=SPT)):.2f} against {float(means.sel(arm=SUPERVISED)):.2f}, gain "
        f"{said(*at(result, 'gain'))}; without the function of the offset in layer 0 {said(*costs[0])}"
    )
    conclusion = concluded(parts, effect_words, result.sizes["seed"])
    if all(needed):
        return conclusion
    return dataclasses.replace(conclusion, verdict="does not hold here" if False in needed else "undecided")


PAIRED = {
    "learned": "",
    "learned, fixed bias": ", fixed bias",
    "rotary": ", rotary",
    "learned, 1 layer": ", 1 layer",
    "learned, 3 layers": ", 3 layers",
}
"""Rows of the figure with both recipes, and the endings of their arms."""
SINGLE = (
    *("supervised, settings of SPT", "autoencoding", "SPT, shuffled"),
    *("SPT, QK + positions frozen", "SPT, permuted pixels"),
)
EDIT_LABELS = {
    "ablate_toeplitz": "function of the offset",
    "keep_toeplitz": "all but this function",
    "ablate_position": "position-position",
    "ablate_position_content": "position-content",
    "ablate_content_position": "content-position",
    "ablate_content": "content-content",
}
"""What is taken away from the scores."""


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracy of all arms and transplants, the course of self-pretraining, and the edits by layer."""
    with paper():
        figure = Page(figsize=(WIDTH, 5.6))
        left, right = cast(list[SubFigure], figure.subfigures(1, 2, width_ratios=[1.2, 1]))
        _draw_arms(left.subplots(), result)
        upper, middle, lower = np.ravel(right.subplots(3, 1, height_ratios=[1, 1, 1.2]))
        steps = result["step"].values
        course(upper, steps, result["course_masked_accuracy"], 2, "masked pixels")
        course(upper, steps, result["course_accuracy"], 1, "class, trained from here")
        course(middle, steps, result["course_contrast"], 1, "SPT")
        null = result["course_contrast_null"].mean("seed")
        middle.plot(steps, null, color=PERMUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="positions permuted")
        for axis, label in ((upper, "test accuracy"), (middle, "proximity contrast\n(std of score)")):
            axis.set(xscale="log", ylabel=label, xlabel="step of self-pretraining" if axis is middle else None)
            axis.legend(fontsize=6)
        upper.set_ylim(0, 1)
        _draw_edits(lower, result.sel(edited_arm=SPT))
        for axis, letter in zip((upper, middle, lower), "bcd", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_arms(axis: Axes, result: xr.Dataset) -> None:
    """Draw one row per pair of arms, single arm and transplant."""
    arms = {name: [f"{recipe}{ending}" for recipe in (SUPERVISED, SPT)] for name, ending in PAIRED.items()}
    rows = [*arms, *SINGLE, *TRANSPLANTS]
    for row, name in enumerate(rows):
        if name in TRANSPLANTS:
            drawn = [(2, *(result[f"carried_{split}_accuracy"].sel(carrier=name) for split in ("test", "train")))]
        else:
            drawn = [
                (number, *(result[f"{split}_accuracy"].sel(arm=arm) for split in ("test", "train")))
                for number, arm in (enumerate(arms[name]) if name in arms else [(3, name)])
            ]
        for line, (number, test, train) in enumerate(drawn):
            height = row + (0.3 * (line - 0.5) if len(drawn) > 1 else 0)
            label = (RECIPES["supervised"], RECIPES["spt"])[number] if row == 0 else None
            seeds(axis, height, test, number, upright=False, label=label)
            axis.plot(float(train.mean()), height, "|", color=mark(number)["color"], markersize=4)
    for end in (len(arms), len(arms) + len(SINGLE)):
        axis.axhline(end - 0.5, color="#9A9A9A", linewidth=0.4)
    axis.axvline(0.1, color="black", linewidth=0.6, linestyle=":")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlim=(0, 1.04), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy")
    axis.set_title("a", loc="left", fontweight="bold")
    axis.legend(loc="lower right", fontsize=6)


def _draw_edits(axis: Axes, result: xr.Dataset) -> None:
    """Draw the change of accuracy under each edit of each layer, and its null."""
    for column, edit in enumerate(EDIT_LABELS):
        for layer in range(2):
            place, selected = column + (-0.15, 0.15)[layer], result.sel(intervention=edit, layer=layer)
            seeds(axis, place, selected["edited"], 4 + layer, label=None if column else f"layer {layer}")
            axis.plot(place, float(selected["edited_null"].mean()), "_", color=PERMUTED, markersize=7)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xticks(range(len(EDIT_LABELS)), list(EDIT_LABELS.values()), fontsize=6, rotation=30, ha="right")
    axis.set_ylabel("change of\ntest accuracy")
    axis.legend(fontsize=6)


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    return (
        "Handwritten digits at random places of a 12 x 12 canvas; small dots: "
        f"{result.sizes['seed']} seeds; markers: means with 95 % t-intervals. "
        "(a) Test accuracy; vertical bars: mean training accuracy; dotted line: guessing. Top: "
        "supervised training and SPT by position encoding and by depth (2 layers unless said). Middle: supervised "
        "training with the settings of SPT, and controls of self-pretraining, each followed by training on the "
        "labels: reconstruction without masks (autoencoding), shuffled sequences, query-key maps and positions "
        "frozen at random; and SPT on images with permuted pixels. Bottom: fresh networks that receive parts of a "
        "self-pretrained one, trained on the labels as long as in SPT. (b) Accuracy on masked pixels along "
        "self-pretraining, and class accuracy of networks trained on the labels from there. (c) Proximity contrast of "
        "the most proximal head in two dimensions on images with shuffled pixels, and the largest of any head with "
        "positions permuted. "
        f"(d) Change of the accuracy of SPT networks on {EDITED} test images when parts of the scores of a layer are "
        "taken away; grey bars: edits of the same size with offsets or positions permuted."
    )
