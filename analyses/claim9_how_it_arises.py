"""Claim 9: at random places, SPT gains with 1 and 3 layers and, with 2, beats autoencoding and shuffled SPT.

Source: claims 2, 3 and 7 of arXiv:2605.21070 (abstract), on the task and with the recipes of claim 8.

Design. `digits-canvas`, with 2 layers, width 64 and the settings of claim 8, unless said. The arms are:

- depth: both recipes with 1 and 3 layers, with the learning rate that `canvas_search` chose there;
- controls of self-pretraining, each followed by the same training on the labels: on shuffled sequences (the pixels of
  each image have their own order, so that no arrangement is common to all); *autoencoding* (reconstruction of every
  token without masks, for the same number of steps). They have the settings of SPT;
- SPT with query-key maps and positions frozen at large random values, through both stages, or through
  self-pretraining only; and training on the labels alone with the same parts frozen;
- transplants: a fresh network receives parts of a self-pretrained one, and is trained on the labels for the steps that
  SPT spends on them; *readout alone* trains only the classification head on the whole self-pretrained network;
- course: training on the labels from checkpoints along self-pretraining;
- encodings without absolute positions, under supervised training: rotary positions, with which it was better than SPT
  with learned ones (claim 8); a fixed bias alone (-distance / 2 in two dimensions, in all heads), which cannot tell
  directions: without other positions, an image and its mirror image are the same; and a bias trained by head and
  two-dimensional offset, from -distance / 2 or from 0.

Rule, written before the reported runs: parts 1 to 5 as a part of claim 8 (from which it was split for its length,
before any run). Each part is decided by its 95 % interval over paired seeds. *Accuracy* in parts 1 to 4 is both that
after the last step and that at the evaluation with the highest validation accuracy; if one interval includes 0, the
part does not hold, which means that it is not shown. Part 5 is undecided if the gap is not above 0 or an interval of a
fraction includes 0.5, unless another is on the wrong side. The claim holds if every decided part does, and in part if
some do. Parts 6 to 8 were added after the result of claim 8, parts 9 and 10 when the accuracy of the trained bias was
known, and do not count. Part 6 counted when it was added; a review, before its runs, made it uncounted.

1. SPT has a higher accuracy than supervised training with 1 layer, and 2. with 3 layers.
3. SPT has a higher accuracy than autoencoding, and 4. than SPT on shuffled sequences.
5. Transferring query-key maps and positions closes more than half of the gap between nothing transferred and SPT,
   everything else less than half, SPT with both frozen at random less than half.
6. Rotary positions are better than the fixed and than the trained bias alone, so that the absence of absolute
   positions does not account for all that they add. 7. The fixed bias alone, and 8. the trained bias alone are better
   than learned positions, and 9. also if it is trained from 0. 10. Labels then make it proximal: the contrast of the
   most proximal head on shuffled images is larger than its permutation null.

The course, single parts, and the ablation of the function of the offset by depth, have no rule. A review after a third
of the runs, of which no accuracy on the labels had been looked at, added the training of the labels with frozen parts,
and replaced relative positions (buckets of offsets along the rows, none of which is the pixel below) by the trained
bias. The results changed the title, which had been "SPT needs masks and a common arrangement, and works through
query-key maps and positions" (part 5, undecided), but no rule.

Command: python analyses/run.py claim9_how_it_arises
Cost: see the table; four hours on two cores.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import contrast
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
    SUPERVISED,
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

TITLE = "At random places, SPT gains with 1 and 3 layers and, with 2, beats autoencoding and shuffled SPT"

CARRYING = ("qk", "positions")
AUTOENCODING, SHUFFLED, FROZEN = "autoencoding", "SPT, shuffled", "SPT, QK + positions frozen"
ROTARY, FIXED, TRAINED = "supervised, rotary", "supervised, fixed bias alone", "supervised, trained bias alone"
FROM_0 = "supervised, bias trained from 0"
FLAT = 1e6
"""Length scale of a bias that is 0 everywhere."""
ARMS = {
    **BOTH,
    **both("1 layer", "1 layer"),
    AUTOENCODING: Arm("spt", {"pretrain_objective": "autoencoding"}),
    SHUFFLED: Arm("spt", {"pretrain_order": "shuffled"}),
    FROZEN: Arm("spt", {"freeze": CARRYING}),
    ROTARY: Arm("supervised", {"position": "rotary"}),
    FIXED: Arm("supervised", {"position": "none", "score_bias": "fixed"}),
    TRAINED: Arm("supervised", {"position": "none", "score_bias": "learned"}),
    FROM_0: Arm("supervised", {"position": "none", "score_bias": "learned", "length_scale": FLAT}),
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
    "nothing, QK + positions frozen": {"init_from": None, "freeze": CARRYING},
}
THAWED = "all of SPT, QK + positions frozen"
"""Training on the labels, with nothing frozen, after self-pretraining with frozen query-key maps and positions."""
GROWN = (*TRANSPLANTS, THAWED)
CARRIERS = (*GROWN, FROZEN, AUTOENCODING, SHUFFLED, SPT)
"""Arms whose fraction of the gap between nothing transferred and SPT is computed."""
FRESH = 1000
"""Added to the seed for the initial weights of a receiving network."""
CONTRASTED = (SUPERVISED, SPT, ROTARY, FIXED, TRAINED, FROM_0)
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
            **{
                (THAWED, seed): continued(runs[FROZEN, seed], spt[seed].config.pretrain_steps, freeze=())
                for seed in seed_numbers
            },
            **{(step, seed): continued(spt[seed], step) for step in steps for seed in seed_numbers},
        }
    )
    axes = {"arm": list(ARMS), "seed": seed_numbers}
    ended = {(name, seed): runs[name, seed] for name in CONTRASTED for seed in seed_numbers}
    variables = accuracies(runs, axes) | stopped(runs, axes) | contrast.at_the_end(lab, ended, axes, shuffled=True)
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
        arms = {str(arm.item()): accuracy.sel(arm=arm, drop=True) for arm in result["arm"]}
        for name, values, words in (
            ("gain_1_layer", gained(accuracy, "1 layer"), "gain"),
            ("gain_3_layers", gained(accuracy, "3 layers"), "gain"),
            ("over_autoencoding", arms[SPT] - arms[AUTOENCODING], "SPT minus autoencoding"),
            ("over_shuffled", arms[SPT] - arms[SHUFFLED], "SPT minus SPT on shuffled sequences"),
            ("over_fixed", arms[ROTARY] - arms[FIXED], "rotary minus fixed bias alone"),
            ("over_trained", arms[ROTARY] - arms[TRAINED], "rotary minus trained bias alone"),
            ("fixed", arms[FIXED] - arms[SUPERVISED], "fixed bias alone minus learned positions"),
            ("trained", arms[TRAINED] - arms[SUPERVISED], "trained bias alone minus learned positions"),
            ("from_0", arms[FROM_0] - arms[SUPERVISED], "bias trained from 0 minus learned positions"),
        ):
            variables |= effect(f"{name}{ending}", values, f"{words}{late}")
    nearer = (result["contrast"] - result["contrast_null"]).sel(arm=FROM_0, drop=True)
    return variables | effect("nearer", nearer, "contrast minus its null", contrast.UNITS)


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
    found = ", ".join(
        f"{name} {said_share(*at(result, 'share', carrier=name))}" for name in (*bases, "QK", "positions")
    )
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
    ]
    later = {
        "rotary positions help supervised training more than a bias alone": ("over_fixed", "over_trained"),
        "the fixed bias alone helps supervised training more than learned positions": ("fixed",),
        "the trained bias alone helps supervised training more than learned positions": ("trained",),
        "a bias trained from 0 helps supervised training more than learned positions": ("from_0",),
    }
    added = [above_zero(result, asked, with_stopped(*names)) for asked, names in later.items()]
    added.append(above_zero(result, "labels make the bias trained from 0 proximal", ["nearer"]))
    parts += [dataclasses.replace(part, decides=False) for part in added]
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
    ("rotary positions", {0: ROTARY}),
    ("fixed bias alone", {0: FIXED}),
    ("trained bias alone", {0: TRAINED}),
    ("bias trained from 0", {0: FROM_0}),
)
"""Label of each row of the figure, and its arms by number of colour and marker."""


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracy of arms and transplants, the course of self-pretraining, and the ablation by depth."""
    with paper():
        figure = Page(figsize=(WIDTH, 4.8))
        left, right = cast(list[SubFigure], figure.subfigures(1, 2, width_ratios=[1.35, 1]))
        arms = left.subplots()
        _draw_arms(arms, result)
        left.legend(loc="outside upper center", ncols=2, fontsize=6)
        upper, lower = np.ravel(right.subplots(2, 1))
        steps = result["step"].values
        masked = result["course_masked_accuracy"]
        course(upper, steps, masked, 5, "masked pixels")
        course(upper, steps, result["course_accuracy"], 1, "class, trained from here")
        upper.axhline(float(masked[0].mean()), color="black", linewidth=0.6, linestyle=":")
        upper.set(xscale="log", ylim=(0, 1), xlabel="step of self-pretraining", ylabel="test accuracy")
        upper.legend(fontsize=6)
        _draw_ablation(lower, result.sel(intervention=ABLATED))
        for axis, letter in zip((arms, upper, lower), "abc", strict=True):
            axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_arms(axis: Axes, result: xr.Dataset) -> None:
    """Draw a row per pair of arms, control and transplant."""
    names = ["train_accuracy", "test_accuracy"]
    transplants = result[[f"carried_{name}" for name in names]].sel(carrier=list(GROWN))
    transplants = transplants.rename(carrier="arm", **{f"carried_{name}": name for name in names})
    rows = (*ROWS, *((name, {2: name}) for name in GROWN))
    drawn = xr.concat([result[names], transplants], "arm")
    draw_rows(axis, drawn, rows, "parts of SPT, then supervised", "controls of SPT")
    for end in (3, 6, len(ROWS)):
        axis.axhline(end - 0.5, color="#9A9A9A", linewidth=0.4)


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
        "Handwritten digits at random places of a 12 x 12 canvas; 2 layers of width 64 unless said; small dots: "
        f"{result.sizes['seed']} seeds; markers and bands: means with 95 % t-intervals. "
        "(a) Test accuracy; ticks: mean training accuracy; dotted line: guessing. From the top: both recipes by depth; "
        "controls of SPT: reconstruction without masks (autoencoding), each image with an order of its own (shuffled "
        "sequences), query-key maps and positions frozen at random in both stages; supervised training without "
        "absolute positions: rotary, a bias -distance / 2 in all heads (fixed), or a bias by head and two-dimensional "
        "offset that starts there (trained) or at 0; networks that receive parts of a self-pretrained one, trained on "
        "the labels as long as in SPT (readout alone: only the classification head is trained; nothing, QK + positions "
        "frozen: at random; all of SPT, QK + positions frozen: during self-pretraining only). (b) Accuracy on masked "
        "pixels along self-pretraining (dotted: its first value, when networks answer that every pixel is empty), and "
        "class accuracy of networks trained on the labels from there. (c) Change of the accuracy of SPT networks on "
        f"{EDITED} test images when the function of the offset is taken away from the scores of one layer (0 of 3: the "
        "first of three layers); grey bars: edits of the same size with offsets permuted."
    )
