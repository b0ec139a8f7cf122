"""Figure of the demonstration: accuracy and attention of both recipes, side by side."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from attnprobe.axes import label
from attnprobe.figures.panels import colour_bar, draw_grid_pattern
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, Page, paper
from attnprobe.results import distance_unit, most_proximal, own_prefix

NAMES = {"supervised": "supervised only", "spt": "SPT, then supervised"}


def recipes(results: Mapping[str, xr.Dataset]) -> Figure:
    """Draw, for each task, the accuracies of both recipes and the attention of their most proximal heads.

    Left: one dot per seed, filled for test and open for training accuracy. Right: attention over uniform attention of
    the head with the largest proximity contrast. For sequences, one line per run by offset; the grey band is the range
    of the permuted null over these heads. For images, one map per recipe, averaged over seeds.

    Args:
        results: Maps each task to its results of `attnprobe.proximity` at the last checkpoints, joined along ``recipe``
            and ``seed``.
    """
    with paper():
        figure = Page(figsize=(WIDTH, 1.8 * len(results)))
        rows = figure.subfigures(len(results), 2, width_ratios=[1, 2.2], squeeze=False)
        for (left, right), (task, result) in zip(rows, results.items(), strict=True):
            axis = left.add_subplot()
            _accuracies(axis, result)
            axis.set_ylabel(f"{task}\naccuracy")
            (_maps if own_prefix(result) else _lines)(right, result)
    return figure


def _accuracies(axis: Axes, result: xr.Dataset) -> None:
    for number, recipe in enumerate(NAMES):
        runs, colour = result.sel(recipe=recipe), COLOURS[number]
        x = [number + 0.12 * (seed - (result.sizes["seed"] - 1) / 2) for seed in range(result.sizes["seed"])]
        axis.scatter(x, runs["train_accuracy"], s=14, facecolors="none", edgecolors=colour, linewidths=0.8)
        axis.scatter(x, runs["test_accuracy"], s=14, color=colour, linewidths=0.8)
    chance = 1 / result.attrs["classes"]
    axis.axhline(chance, color="black", linewidth=0.5, linestyle=(0, (3, 2)))
    axis.text(1.48, chance, "chance", fontsize=5.8, va="bottom", ha="right")
    axis.set(xlim=(-0.5, 1.5), ylim=(0, 1.05))
    axis.set_xticks([0, 1], ["supervised\nonly", "SPT, then\nsupervised"])


def _lines(part: SubFigure, result: xr.Dataset) -> None:
    axis = part.add_subplot()
    head = most_proximal(result)
    shown = result.where(abs(result["offset"]) <= int(result.attrs["n"]) // 2, drop=True)
    uniform = shown["uniform_pattern_by_offset"].isel(recipe=0, seed=0, missing_dims="ignore")
    null = shown["pattern_by_offset_null"].sel(null="permuted").isel(head) / uniform
    band = null.min(("draw", "recipe", "seed")), null.max(("draw", "recipe", "seed"))
    axis.fill_between(shown["offset"], *band, color=PERMUTED, alpha=0.35, linewidth=0, label="positions permuted")
    ratio = shown["pattern_by_offset"].isel(head) / uniform
    for number, (recipe, name) in enumerate(NAMES.items()):
        for seed in range(result.sizes["seed"]):
            style = {"color": COLOURS[number], "linestyle": ["-", (0, (4, 1))][number == 0], "linewidth": 0.9}
            of_run = ratio.sel(recipe=recipe).isel(seed=seed)
            axis.plot(shown["offset"], of_run, label=name if seed == 0 else None, **style)
    axis.axhline(1, color="black", linewidth=0.5)
    axis.set(xlabel=label("offset"), ylabel="attention / uniform")
    axis.margins(x=0)
    axis.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axis.legend(loc="best")


def _maps(part: SubFigure, result: xr.Dataset) -> None:
    head = most_proximal(result)
    ratio = (result["grid_pattern_by_offset"] / result["grid_uniform_pattern_by_offset"]).isel(head).mean("seed")
    axes = part.subplots(1, len(NAMES), sharey=True)
    image = None
    for axis, (recipe, name) in zip(axes, NAMES.items(), strict=True):
        image = draw_grid_pattern(axis, ratio.sel(recipe=recipe))
        axis.set(title=name, xlabel=f"column offset ({distance_unit(result)})")
    axes[0].set_ylabel(f"row offset ({distance_unit(result)})")
    assert image is not None
    colour_bar(part, image, axes.tolist())
