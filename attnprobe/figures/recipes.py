"""The figure of the demonstration: the recipes side by side, accuracy and attention."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, paper

NAMES = {"labels": "labels alone", "spt": "SPT, then labels"}


def recipes(results: Mapping[str, xr.Dataset]) -> Figure:
    """Draw, for each task, the accuracies of both recipes and the attention of their most proximal heads by offset.

    Takes final results joined along ``recipe`` and ``seed``. A dot is a seed; filled is test, open is training. A line
    is the head with the largest contrast of one run; the band is the envelope of the permuted null over all of them.
    """
    with paper():
        figure = Figure(figsize=(WIDTH, 0.45 + 1.55 * len(results)), layout="constrained")
        axes = figure.subplots(len(results), 2, width_ratios=[1, 2.2], squeeze=False)
        for (left, right), (task, result) in zip(axes, results.items(), strict=True):
            _accuracies(left, result)
            _attention(right, result)
            left.set_ylabel(f"{task}\naccuracy")
        axes[-1, 1].set_xlabel(label("offset"))
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _accuracies(axis: Axes, result: xr.Dataset) -> None:
    for place, recipe in enumerate(NAMES):
        one, colour = result.sel(recipe=recipe), COLOURS[place]
        spread = [place + 0.12 * (seed - (result.sizes["seed"] - 1) / 2) for seed in range(result.sizes["seed"])]
        axis.scatter(spread, one["train_accuracy"], s=14, facecolors="none", edgecolors=colour, linewidths=0.8)
        axis.scatter(spread, one["test_accuracy"], s=14, color=colour, linewidths=0.8)
    chance = 1 / result.attrs["classes"]
    axis.axhline(chance, color="black", linewidth=0.5, linestyle=(0, (3, 2)))
    axis.text(1.48, chance, "chance", fontsize=5.8, va="bottom", ha="right")
    axis.set(xlim=(-0.5, 1.5), ylim=(0, 1.05))
    axis.set_xticks([0, 1], ["labels\nalone", "SPT, then\nlabels"])


def _attention(axis: Axes, result: xr.Dataset) -> None:
    prefix = "grid_" if "grid_proximity_contrast" in result else ""
    best = result[f"{prefix}proximity_contrast"].argmax(("layer", "head"))
    shown = result.where(abs(result["offset"]) <= result.attrs["n"] // 2, drop=True)
    uniform = shown["uniform_pattern_by_offset"].isel(recipe=0, seed=0, missing_dims="ignore")
    null = shown["pattern_by_offset_null"].sel(null="permuted").isel(best) / uniform
    ends = null.min(("draw", "recipe", "seed")), null.max(("draw", "recipe", "seed"))
    axis.fill_between(shown["offset"], *ends, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    ratio = shown["pattern_by_offset"].isel(best) / uniform
    for place, (recipe, name) in enumerate(NAMES.items()):
        for seed in range(result.sizes["seed"]):
            drawn = {"color": COLOURS[place], "linestyle": ["-", (0, (4, 1))][place == 0], "linewidth": 0.9}
            axis.plot(
                shown["offset"], ratio.sel(recipe=recipe).isel(seed=seed), label=name if seed == 0 else None, **drawn
            )
    axis.axhline(1, color="black", linewidth=0.5)
    axis.set_ylabel("attention / uniform")
    axis.margins(x=0)
    axis.xaxis.set_major_locator(MaxNLocator(9, integer=True))
