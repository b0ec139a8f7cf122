"""Arms, measures and drawing that claims 8 to 10 share."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import canvas_search
import numpy as np
import xarray as xr
from canvas_search import chosen, configured
from conclusion import Part, said
from drawing import RECIPES, mark, seeds
from lab import Asked, Lab
from matplotlib.axes import Axes
from tables import at, effect

from attnprobe.config import Recipe, TrainConfig
from attnprobe.figures.style import PERMUTED
from attnprobe.results import variable
from attnprobe.training.loop import checkpoint_steps
from attnprobe.training.run import Run

SCALES: dict[str, dict[str, Any]] = {
    "quick": {"steps": 16, "pretrain_steps": 12, "evaluations": 1, "checkpoints": 2, "eval_size": 50},
    "default": {},
    "full": {},
}
ABLATED = "ablate_toeplitz"
EDITS = (
    *(ABLATED, "keep_toeplitz"),
    *("ablate_position", "ablate_position_content", "ablate_content_position", "ablate_content"),
)
EDITED = 256
"""Number of test images whose scores are edited."""
LAYERS = [0, 1, 2]
ABLATION: dict[str, Any] = {"intervention": ABLATED, "layer": 0}
ENDINGS = {"": "", "_stopped": " with early stopping"}
"""Endings of effects on the accuracy after the last step, and on that with early stopping; and what they mean."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """Recipe, settings other than those of the search, and the recipe and size for which these were chosen."""

    recipe: Recipe
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: str = ""
    settings_of: Recipe | None = None
    """Recipe whose settings are used, if not its own."""


SUPERVISED, SPT = "supervised", "SPT"
ABLATION_OF_SPT = {**ABLATION, "edited_arm": SPT}
BOTH = {SUPERVISED: Arm("supervised"), SPT: Arm("spt")}


def both(what: str, size: str = "", **options: Any) -> dict[str, Arm]:
    """Return an arm of each recipe with other settings or another size of the network."""
    return {f"{name}, {what}": dataclasses.replace(arm, options=options, size=size) for name, arm in BOTH.items()}


def trained(arm: Arm, seed: int, sizes: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of an arm."""
    settings = (arm.recipe, *chosen(arm.settings_of or arm.recipe, arm.size)[1:])
    return configured(settings, seed, **{"checkpoints": 6, "evaluations": 8, **sizes, **arm.options})


def course_steps(config: TrainConfig) -> list[int]:
    """Return the checkpoints of self-pretraining from a hundredth of its steps on."""
    first, last = config.pretrain_steps / 100, config.pretrain_steps
    return [step for step in checkpoint_steps(config) if first <= step <= last]


def stopped(runs: Mapping[Any, Run], axes: Mapping[str, list[Any]]) -> dict[str, xr.Variable]:
    """Return the test accuracy at the evaluation on the labels with the highest validation accuracy."""
    values = [[canvas_search.stopped(runs[arm, seed])["test_accuracy"] for seed in axes["seed"]] for arm in axes["arm"]]
    method = "at the evaluation with the highest validation accuracy"
    return {"stopped_accuracy": variable(tuple(axes), values, "test accuracy with early stopping", "1", method)}


def gained(accuracy: xr.DataArray, what: str = "") -> xr.DataArray:
    """Return SPT minus supervised training, of the arms of this name."""
    ending = f", {what}" if what else ""
    return accuracy.sel(arm=f"{SPT}{ending}", drop=True) - accuracy.sel(arm=f"{SUPERVISED}{ending}", drop=True)


def edited(lab: Lab, runs: Mapping[Any, Run], arms: Sequence[str], seed_numbers: list[int]) -> dict[str, xr.Variable]:
    """Return the accuracy changes under edits of all heads of a layer, with nulls; NaN where they do not apply."""
    names = ("layer_accuracy_change", "layer_accuracy_change_null")
    extent = {"sequences": 16, "nulls": 1} if lab.scale == "quick" else {"sequences": EDITED, "nulls": 8}
    measured = lab.measure(
        {
            (arm, seed): Asked(
                runs[arm, seed], runs[arm, seed].config.steps, "interventions", names, {**extent, "edits": EDITS}
            )
            for arm in arms
            for seed in seed_numbers
        }
    )
    change, null = (np.full((len(arms), len(EDITS), len(LAYERS), len(seed_numbers)), np.nan) for _ in range(2))
    for (i, arm), (j, edit), (k, seed) in (
        (a, b, c) for a in enumerate(arms) for b in enumerate(EDITS) for c in enumerate(seed_numbers)
    ):
        result = measured[arm, seed].sel(intervention=edit)
        layers = result.sizes["layer"]
        change[i, j, :layers, k] = result["layer_accuracy_change"]
        null[i, j, :layers, k] = result["layer_accuracy_change_null"].isel(null=0).mean("draw")
    over, description = ("edited_arm", "intervention", "layer", "seed"), "change of the test accuracy"
    return {
        "edited": variable(over, change, description, "1", f"{EDITED} test images"),
        "edited_null": variable(over, null, f"{description}, offsets or positions permuted", "1", "mean over draws"),
    }


def edit_effects(changes: Mapping[str, xr.Variable], arms: Sequence[str]) -> dict[str, xr.Variable]:
    """Return the effects of edits on the accuracy, against their nulls and against supervised training."""
    change, null = (xr.DataArray(changes[name]) for name in ("edited", "edited_null"))
    spt, supervised = (change.isel(edited_arm=list(arms).index(arm)) for arm in (SPT, SUPERVISED))
    words = "change of accuracy"
    return {
        **effect("edit", change, words),
        **effect("edit_excess", change - null, f"{words} minus its null"),
        **effect("edit_more", spt - supervised, f"{words} minus supervised training"),
    }


def needs_offsets(result: xr.Dataset) -> Part:
    """Return the part of a rule that asks whether ablating the function of the offset in layer 0 costs SPT accuracy.

    It must cost more than its null, and more than it costs supervised training.
    """
    place = {"edit": ABLATION_OF_SPT, "edit_excess": ABLATION_OF_SPT, "edit_more": ABLATION}
    costs = {name: at(result, name, **where) for name, where in place.items()}
    words = ", ".join(f"{result[name].attrs['long_name']} {said(*cost)}" for name, cost in costs.items())
    held = all(high < 0 for _, _, high in costs.values())
    return Part("SPT needs the function of the offset in layer 0", held, words)


def above_zero(result: xr.Dataset, asked: str, names: Iterable[str], decided: bool = True) -> Part:
    """Return the part of a rule that asks whether all these effects are above 0."""
    found = {name: at(result, name) for name in names}
    words = ", ".join(f"{result[name].attrs['long_name']} {said(*values)}" for name, values in found.items())
    return Part(asked, all(low > 0 for _, low, _ in found.values()) if decided else None, words)


def with_stopped(*names: str) -> list[str]:
    """Return names of effects on accuracy, each followed by that with early stopping."""
    return [f"{name}{ending}" for name in names for ending in ENDINGS]


def row_places(rows: Sequence[tuple[str, Mapping[int, str]]]) -> Iterator[tuple[float, int, str]]:
    """Yield height, number and name of every arm: the rows are one apart, and two arms of a row lie side by side."""
    for row, (_, arms) in enumerate(rows):
        for line, (number, arm) in enumerate(arms.items()):
            yield row + (0.3 * (line - 0.5) if len(arms) > 1 else 0), number, arm


def draw_rows(axis: Axes, result: xr.Dataset, rows: Sequence[tuple[str, Mapping[int, str]]], *names: str) -> None:
    """Draw rows of accuracies: the label of each row, and its arms by number of colour and marker.

    Names are those of the numbers after the two recipes, for the legend.
    """
    labels = dict(enumerate((RECIPES["supervised"], RECIPES["spt"], *names)))
    for height, number, arm in row_places(rows):
        test, train = (result[f"{split}_accuracy"].sel(arm=arm) for split in ("test", "train"))
        seeds(axis, height, test, number, upright=False, label=labels.pop(number, None))
        axis.plot(float(train.mean()), height, "|", color=mark(number)["color"], markersize=4)
    axis.vlines(0.1, -0.5, len(rows) - 0.5, color="black", linewidth=0.6, linestyle=":")
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set(xlim=(0, 1.04), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy")


def draw_null(axis: Axes, place: float, values: xr.DataArray) -> None:
    """Draw the mean of a null as a grey bar."""
    axis.plot(place, float(values.mean()), "_", color=PERMUTED, markersize=7)
