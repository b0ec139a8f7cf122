"""Claim 5: label supervision is locally blind to score directions that masked reconstruction detects.

Source: arXiv:2605.21070 (the fourth claim of its abstract); the algebra is tested in tests/test_theory.py.

Design, in four parts.

- Cases. With one attention map at zero scores, mean pooling and nothing nonlinear per token, the gradient of any label
  loss is the same in every row, and nothing of it lies in circulant directions (functions of the offset modulo n). The
  same holds without a residual stream, in the first of two linear layers, and at a circulant score of any size; and the
  query-key weights learn nothing but what the mean token asks. Each of these is a float64 network of the package on
  random tokens; so is each exception, in which one assumption is dropped: pooling, bidirectional attention, per-token
  linearity, zero content scores, pooled padding, the softmax.
- Kernels. A function of the offset that is not circulant is seen through the ends of the sequence: its share of energy
  in column sums, for 32 to 512 tokens, and the slope of its logarithm on that of n.
- Uniform attention. Networks of the shared settings before training, all scores set to 0, value weights and the
  readout fitted for each objective: the signal-to-noise ratio (SNR: mean over standard deviation of a sequence) of each
  objective's gradient along unit directions, and its energy in circulant functions and in functions of the key. `pairs`
  cannot be told from its token counts, `bigrams` can (the contaminated case: values tell the classes apart before any
  score moves), `digits` is real, with directions in pixels.
- Training. The SNR along proximity of the objective that is being trained, at the checkpoints of labels alone and of
  SPT, at their own scores and with their own readouts.

These networks depart from the theory by LayerNorm and an MLP, through which labels see a little, and in training by
content scores; so here the claim is one of more or less signal, not of zero. The masked gradient raises proximity only
where the readout is aligned with the values, which a readout that nobody has trained is not: therefore the fit, and
therefore SNRs of either sign count alike, as root mean square over heads. In the networks proximity is the circulant
exponential of length 2, without offset 0. A masked loss averages over several predictions, so that its SNR is larger
along any direction; what counts is how much larger it is along proximity than along a function of the key, which labels
can see.

Rule. (1) In every blind case and seed less than 1e-10 of the gradient's energy lies where the theory has none and a
circulant score of std 1 changes the loss by less than 1e-10 of it; and in every exception more than 1e-10 of the energy
lies there. (2) On each task, at uniform attention, the SNR along proximity of the masked objective exceeds that of the
labels, and by a larger factor than along the function of the key: the 95 % Student intervals of the difference and of
the logarithm of the ratio of both factors, paired by seed, are above 0. The claim holds if (1) holds and (2) on every
task, in part if (1) holds and (2) on some, and else not: (1) alone is algebra. The comparison with the function of the
key was added to the rule on the advice of a review, before this analysis had been run at its default size. It turned
out to correct little: that function is drawn, and no objective has more signal along it than noise. The sign, reported
with each part, was asked for by a second review and decides nothing.

Command: python analyses/run.py claim5_blindness
Cost: 30 runs, shared with other claims, and 270 measures: 10 minutes on two cores for these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import xarray as xr
from blind_cases import CASES, LENGTH, LENGTHS, PROFILES, PROXIMITY, of_cases, of_profiles
from conclusion import Conclusion, Part, concluded, said
from drawing import MARKS, course, seeds
from lab import Asked, Lab
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from settings import LARGE, SEEDS, setting

from attnprobe.axes import label
from attnprobe.config import Recipe
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import dataset, variable
from attnprobe.statistics.directions import SUBSPACES
from attnprobe.statistics.seeds import mean_interval
from attnprobe.training.run import Run

TITLE = "Labels are locally blind to score directions that masked reconstruction detects"

BLIND = 1e-10
"""Below this share nothing is seen; rounding in float64 leaves 1e-30 of an energy and 1e-16 of a loss."""
LOSSES = ("labels", "masked")
DIRECTIONS = ("circulant band", PROXIMITY, "circulant linear", "toeplitz linear", "offset 0", "column", "random")
STAGES = ("supervised", "SPT: masked", "SPT: labels")


@dataclass(frozen=True)
class Size:
    """How much is done at a scale."""

    tasks: Mapping[str, dict[str, Any]]
    """What departs from the shared settings on each task."""
    sequences: int
    """Test sequences of every measure."""
    fit_steps: int
    """Steps for which readouts are fitted at uniform attention."""
    every: int = 1
    """Every so many checkpoints of a stage are measured."""


SIZES = {
    "quick": Size({"pairs": {"steps": 300}, "digits": {"steps": 100}}, sequences=32, fit_steps=10, every=5),
    "default": Size({"pairs": {}, "bigrams": {}, "digits": {}}, sequences=128, fit_steps=200),
    "full": Size(
        dict.fromkeys(("pairs", "planted", "bigrams", "digits", "image-16", "text"), LARGE),
        sequences=512,
        fit_steps=200,
    ),
}


def study(lab: Lab) -> xr.Dataset:
    """Compute the cases and the visible shares, then train and measure."""
    size, numbers = SIZES[lab.scale], SEEDS[lab.scale]
    configs = {
        (task, recipe, seed): setting(task, recipe, seed, **size.tasks[task])
        for task in size.tasks
        for recipe in get_args(Recipe)
        for seed in numbers
    }
    runs = lab.train(configs)
    measured = lab.measure(at_uniform(size, runs) | in_training(size, runs))
    variables = {**of_cases(numbers), **of_profiles(), **of_uniform(measured), **of_training(measured)}
    coordinates = {
        "case": list(CASES),
        "profile": list(PROFILES),
        "length": list(LENGTHS),
        "task": list(size.tasks),
        "seed": list(numbers),
        "loss": list(LOSSES),
        "direction": list(DIRECTIONS),
        "subspace": list(SUBSPACES),
        "stage": list(STAGES),
    }
    return dataset(
        variables, coordinates, {"fit_steps": size.fit_steps, "proximity": PROXIMITY, "length_scale": LENGTH}
    )


# Networks


Key = tuple[str, str, int, int]
"""Task, stage (or `UNIFORM`), step of the stage and seed."""
UNIFORM = "uniform"
NULLS = 2
"""Draws of the null at uniform attention, each on all sequences."""
WANTED = tuple(
    f"{view}{name}"
    for view in ("", "grid_")
    for name in ("snr", "snr_null", "positive_share", "energy_share", "energy_share_of_noise")
)


def at_uniform(size: Size, runs: Mapping[tuple[str, str, int], Run]) -> dict[Key, Asked]:
    """Return what is asked of the untrained networks, at uniform attention."""
    options = {
        "at": "uniform",
        "fit_steps": size.fit_steps,
        "sequences": size.sequences,
        "length_scale": LENGTH,
        "objectives": LOSSES,
        "nulls": NULLS,
    }
    return {
        (task, UNIFORM, 0, seed): Asked(run, 0, "gradients", WANTED, options)
        for (task, recipe, seed), run in runs.items()
        if recipe == "supervised"
    }


def in_training(size: Size, runs: Mapping[tuple[str, str, int], Run]) -> dict[Key, Asked]:
    """Return what is asked of the checkpoints: the gradient of the objective that is being trained."""
    asked = {}
    for (task, _, seed), run in runs.items():
        for stage, (begun, steps) in stages(run).items():
            objectives = ("masked",) if stage == "SPT: masked" else ("labels",)
            options = {"sequences": size.sequences, "length_scale": LENGTH, "objectives": objectives, "nulls": 0}
            for step in steps[:: size.every]:
                asked[task, stage, step - begun, seed] = Asked(run, step, "gradients", WANTED, options)
    return asked


def stages(run: Run) -> dict[str, tuple[int, list[int]]]:
    """Return the stages of a run: after which step each begins, and the steps of its checkpoints."""
    steps = [int(path.stem.removeprefix("step-")) for path in run.checkpoint_paths]
    if run.config.recipe == "supervised":
        return {STAGES[0]: (0, steps)}
    switch = run.config.pretrain_steps
    return {
        STAGES[1]: (0, [step for step in steps if step <= switch]),
        STAGES[2]: (switch, [step for step in steps if step > switch]),
    }


def of_uniform(measured: Mapping[Key, xr.Dataset]) -> dict[str, xr.Variable]:
    """Return what both objectives ask of the scores of untrained networks, at uniform attention."""
    found = {(task, seed): one for (task, stage, _, seed), one in measured.items() if stage == UNIFORM}
    tasks, numbers = (list(dict.fromkeys(column)) for column in zip(*found, strict=True))
    first = [found[task, numbers[0]] for task in tasks]

    def over(read: Callable[[xr.Dataset], xr.DataArray], kind: str, long_name: str, method: str) -> xr.Variable:
        rest = ("loss", kind)
        values = [[read(found[task, seed]).transpose(*rest).values for seed in numbers] for task in tasks]
        return variable(("task", "seed", *rest), values, long_name, "1", method)

    positive_share, share = "share of sequences whose descent raises the direction", "share of the gradient's energy"
    root, mean = "root mean square over heads", "mean over heads"
    noise = [_own(one, "energy_share_of_noise").values for one in first]
    return {
        "snr": over(signal, "direction", "SNR of the gradient", root),
        "raised": over(raised, "direction", "share of heads in which descent raises the direction", "mean over heads"),
        "snr_permuted": over(permuted_signal, "direction", "SNR, positions permuted", root),
        "snr_of_noise": variable(
            ("task",), [one.attrs["sequences"] ** -0.5 for one in first], "SNR of noise", "1", "1 / root of sequences"
        ),
        "positive_share": over(lambda one: _own(one, "positive_share").mean(HEADS), "direction", positive_share, mean),
        "energy_share": over(lambda one: _own(one, "energy_share").mean(HEADS), "subspace", share, mean),
        "energy_share_of_noise": variable(("task", "subspace"), noise, "energy share of noise", "1", "dimensions"),
    }


HEADS = ("layer", "head")


def _own(measured: xr.Dataset, name: str) -> xr.DataArray:
    """Return a variable in the data's own geometry, along the directions that are asked for."""
    own = measured[f"grid_{name}" if f"grid_{name}" in measured else name]
    return own.sel(direction=list(DIRECTIONS)) if "direction" in own.dims else own


def signal(measured: xr.Dataset) -> xr.DataArray:
    """Return the SNR without its sign, as root mean square over heads."""
    return np.sqrt(np.square(_own(measured, "snr")).mean(HEADS))


def raised(measured: xr.Dataset) -> xr.DataArray:
    """Return the share of heads in which the mean descent raises a direction."""
    return (_own(measured, "snr") > 0).mean(HEADS)


def permuted_signal(measured: xr.Dataset) -> xr.DataArray:
    """Return what `signal` is with positions permuted, root mean square over draws too."""
    return np.sqrt(np.square(_own(measured, "snr_null").sel(null="permuted")).mean(("draw", *HEADS)))


def of_training(measured: Mapping[Key, xr.Dataset]) -> dict[str, xr.Variable]:
    """Return the SNR along proximity of the objective that is trained, over its stage."""
    found = {key: one for key, one in measured.items() if key[1] != UNIFORM}
    tasks, _, _, numbers = (list(dict.fromkeys(column)) for column in zip(*found, strict=True))
    steps = {
        (task, stage): sorted({step for one, other, step, _ in found if (one, other) == (task, stage)})
        for task in tasks
        for stage in STAGES
    }
    shape = (len(tasks), len(STAGES), max(map(len, steps.values())))
    reached, snr = np.full(shape, np.nan), np.full((*shape, len(numbers)), np.nan)
    for (task, stage, step, seed), one in found.items():
        place = tasks.index(task), STAGES.index(stage), steps[task, stage].index(step)
        reached[place] = step
        snr[place][numbers.index(seed)] = signal(one).sel(direction=PROXIMITY).item()
    axes = ("task", "stage", "checkpoint")
    return {
        "training_step": variable(axes, reached, "step of the stage", ""),
        "training_snr": variable((*axes, "seed"), snr, "SNR along proximity", "1", "root mean square over heads"),
    }


# What came of it


def cases_hold(result: xr.Dataset) -> bool:
    """Say whether labels see nothing in every blind case and something in every exception, by the rule."""
    share, change, blind = result["invisible_share"], result["loss_change"], result["blind"].astype(bool)
    nothing = (share < BLIND) & ((change < BLIND) | change.isnull())
    return bool(nothing.where(blind, share > BLIND).all())


Interval = tuple[float, float, float]


def leads(result: xr.Dataset) -> dict[str, tuple[Interval, Interval]]:
    """Return for each task how much larger the SNR along proximity is for masked tokens than for labels.

    First the difference; then the ratio, over that along a function of the key, as a logarithm; with their intervals.
    """
    masked, labels = (result["snr"].sel(loss=loss) for loss in ("masked", "labels"))
    factor, along = np.log(masked / labels), result.attrs["proximity"]
    compared = (masked - labels).sel(direction=along), factor.sel(direction=along) - factor.sel(direction="column")
    return {
        str(task): (mean_interval(compared[0].sel(task=task)), mean_interval(compared[1].sel(task=task)))
        for task in result["task"].values
    }


def towards(result: xr.Dataset, task: str, loss: str) -> float:
    """Return the share of heads, over all seeds, in which descent raises proximity."""
    return float(result["raised"].sel(task=task, loss=loss, direction=result.attrs["proximity"]).mean())


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    found = leads(result)
    blind = result["blind"].astype(bool)
    most = float(result["invisible_share"].where(blind).max())
    least = float(result["invisible_share"].where(~blind).min())
    cases = f"energy that labels have there: at most {most:.0e} in the blind cases, at least {least:.0e} in exceptions"
    held = cases_hold(result)
    parts = [
        Part(
            "a precondition of the others: labels are blind exactly where the theory says", held, cases, decides=False
        ),
        *(
            Part(
                f"masked reconstruction has more signal along proximity on {task}",
                held and lead[1] > 0 and beyond[1] > 0,
                f"SNR {said(*lead)}, logarithm of its ratio over that along a function of the key {said(*beyond)}; "
                f"it raises proximity in {towards(result, task, 'masked'):.0%} of heads, labels in "
                f"{towards(result, task, 'labels'):.0%}",
            )
            for task, (lead, beyond) in found.items()
        ),
    ]
    words = ", ".join(f"{task} {said(*lead)}" for task, (lead, _) in found.items())
    effect = f"SNR along proximity at uniform attention, masked minus labels: {words}"
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw cases and profiles, signals and energies at uniform attention, and signals in training."""
    rows = -(-result.sizes["task"] // COLUMNS)
    heights = [0.145 * result.sizes["case"] + 0.7, 1.95 * rows + 0.5, 0.85 * rows + 0.35, 1.25 * rows + 0.5]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(4, 1, height_ratios=heights)
        left, right = parts[0].subplots(1, 2, width_ratios=[1.15, 1])
        draw_cases(left, result)
        draw_profiles(right, result)
        draw_signals(parts[1], result)
        draw_energies(parts[2], result)
        draw_training(parts[3], result)
    return figure


COLUMNS = 3
"""Tasks beside one another."""


def draw_cases(axis: Axes, result: xr.Dataset) -> None:
    """Draw for each case what labels see where they should see nothing."""
    blind = result["blind"].values.astype(bool)
    places = np.arange(len(blind)) + 0.7 * ~blind
    for name, marker in (("invisible_share", "o"), ("loss_change", "^")):
        values = np.maximum(result[name].values, FLOOR)
        for place, of_seeds, colour in zip(places, values, np.where(blind, *COLOURS[:2]), strict=True):
            drawn = {"s": 9, "marker": marker, "edgecolors": colour, "linewidths": 0.6}
            face = colour if marker == "o" else "none"
            axis.scatter(of_seeds, np.full(len(of_seeds), place), facecolors=face, **drawn)
    axis.scatter(result["invisible_share_of_noise"], places, s=26, marker="|", color="black", linewidths=0.9)
    axis.axvline(BLIND, **DASHED)
    axis.set_xscale("log")
    axis.set_xticks([1e-30, 1e-20, 1e-10, 1])
    axis.minorticks_off()
    axis.set(xlim=(FLOOR / 10, 100), xlabel="share of the energy, or of the loss")
    axis.set_yticks(places, result["case"].values.tolist())
    axis.invert_yaxis()
    axis.set_title("a  blind cases and exceptions", loc="left")
    marks = {"energy": ("o", "full"), "loss": ("^", "none"), "noise": ("|", "full")}
    handles = [
        Line2D([], [], color="black", marker=marker, markersize=3.5, linestyle="none", fillstyle=style, label=name)
        for name, (marker, style) in marks.items()
    ]
    axis.legend(handles=handles, loc="lower left", handletextpad=0.2)


FLOOR = 1e-36
"""Where the figure shows exact zeros."""
DASHED = {"color": "black", "linewidth": 0.5, "linestyle": (0, (3, 2))}


def draw_profiles(axis: Axes, result: xr.Dataset) -> None:
    """Draw how the visible share of profiles falls with the length."""
    for number, profile in enumerate(result["profile"].values):
        one = result.sel(profile=profile)
        name = f"{profile}: $n^{{{one['visible_power'].item():.2f}}}$"
        drawn = line(number) | {"marker": MARKS[number], "markersize": 3}
        axis.plot(result["length"], one["visible_share"], label=name, **drawn)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(result["length"], [str(n) for n in result["length"].values])
    axis.minorticks_off()
    axis.set(xlabel=label("length"), ylabel="share of energy that labels see")
    axis.set_ylim(bottom=float(result["visible_share"].min()) / 300)  # room for the legend
    axis.set_title("b  profiles that fall off", loc="left")
    axis.legend(loc="lower left")


def panels(part: SubFigure, result: xr.Dataset, title: str) -> list[Axes]:
    """Return one panel a task, under a title for all."""
    tasks = result["task"].values
    part.suptitle(title, x=0.01, ha="left", fontsize=7.5)
    columns = min(len(tasks), COLUMNS)
    grid = part.subplots(-(-len(tasks) // columns), columns, sharey=True, sharex=True, squeeze=False).flatten()
    for axis in grid[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(grid, tasks, strict=False):
        axis.set_title(str(task))
    return grid[: len(tasks)].tolist()


def by_loss(axis: Axes, values: xr.DataArray, null: xr.DataArray) -> None:
    """Draw numbers of both objectives in rows, seeds, means and intervals, in front of their nulls."""
    (kind,) = set(values.dims) - {"loss", "seed"}
    for row, name in enumerate(values[kind].values):
        for number, loss in enumerate(LOSSES):
            place, chosen = row + (-0.2, 0.2)[number], {kind: name, "loss": loss}
            axis.plot([null.sel(chosen)] * 2, [place - 0.19, place + 0.19], color=PERMUTED, linewidth=2.2)
            seeds(axis, place, values.sel(chosen), number, upright=False, label=loss if row == 0 else None)
    axis.set_yticks(range(values.sizes[kind]), values[kind].values.tolist())
    axis.set_ylim(values.sizes[kind] - 0.5, -0.5)
    axis.set_xscale("log")
    plain(axis.xaxis, (1,))


def plain(axis: Axis, times: tuple[int, ...]) -> None:
    """Label a logarithmic axis at these multiples of powers of ten, however short it is."""
    axis.set_major_locator(LogLocator(subs=times))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def draw_signals(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the SNR along each direction at uniform attention, of both objectives."""
    shown = panels(part, result, "c  signal-to-noise ratio along directions, at uniform attention")
    for number, axis in enumerate(shown):
        one = result.isel(task=number)
        by_loss(axis, one["snr"], one["snr_permuted"].mean("seed"))
        axis.axvline(float(one["snr_of_noise"]), **DASHED)
        axis.set_xlabel("|SNR|")
    shown[0].set_xlim(float(result["snr"].min()) / 2, 2 * float(result["snr"].max()))
    part.legend(*shown[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_energies(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the energy in subspaces at uniform attention, over that of noise."""
    shown = panels(part, result, "d  energy in subspaces, over that of noise")
    ratio = (result["energy_share"] / result["energy_share_of_noise"]).sel(subspace=["circulant", "column"])
    for number, axis in enumerate(shown):
        values = ratio.isel(task=number)
        by_loss(axis, values, xr.ones_like(values.mean("seed")))
        axis.set_xlabel("share / share of noise")
    shown[0].set_xlim(float(ratio.min()) / 2, 2 * float(ratio.max()))


def draw_training(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the SNR along proximity of the objective that is trained, over the steps of its stage."""
    shown = panels(part, result, "e  signal-to-noise ratio along proximity, in training")
    for panel, axis in enumerate(shown):
        one = result.isel(task=panel)
        for number, stage in enumerate(result["stage"].values):
            of_stage = one.sel(stage=stage).dropna("checkpoint", subset=["training_step"])
            values = of_stage["training_snr"].transpose("checkpoint", "seed")
            course(axis, of_stage["training_step"].values, values, number, str(stage))
        axis.axhline(float(one["snr_of_noise"]), **DASHED)
        axis.set_xscale("symlog", linthresh=3, linscale=0.4)
        axis.set_xticks([0, 10, 100, 1000])
        axis.set_yscale("log")
        plain(axis.yaxis, (1, 3))
        axis.set_xlabel("step of the stage")
    found = result["training_snr"]
    shown[0].set(ylabel="|SNR|", ylim=(float(found.min()) / 2, 2 * float(found.max())))
    part.legend(*shown[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    positive_share = result["positive_share"].sel(direction=PROXIMITY, loss="masked").mean("seed")
    raised = ", ".join(f"{task} {positive_share.sel(task=task):.0%}" for task in result["task"].values)
    count = result.sizes["seed"]
    return (
        "(a) What labels see where the theory leaves them nothing, in float64; a mark for each of "
        f"{count} seeds of weights and tokens. Filled: share of the label gradient's energy in circulant directions "
        "(in differences of rows, or in what does not read the mean token, where so named); open: relative change of "
        f"the loss by a circulant proximity score of std 1; bars: pure noise; dashed: {BLIND:.0e}, below which a case "
        "counts as blind; blue: blind by the theory, orange: exceptions. (b) Share of the energy of profiles that do "
        "not go around in their column sums, which is all that labels see of them at zero scores, with the fitted "
        "power of n: exponential of length 4, band of the nearest keys, minus the distance and minus its logarithm. "
        "(c) Size of the signal-to-noise ratio (mean over standard deviation of a sequence's gradient, "
        "root mean square over heads) along unit directions, in untrained networks at uniform attention, value weights "
        f"and the objective's readout fitted for {result.attrs['fit_steps']} steps; proximity has length "
        f"{result.attrs['length_scale']}, in pixels on images, and leaves out offset 0; column and random are drawn. "
        "Dashed: "
        "what noise has with as many sequences; grey: positions permuted, mean over seeds. (d) Share of the same "
        "gradients' energy in all circulant functions and in all functions of the key, over that of noise (grey). (e) "
        f"As (c), along the {result.attrs['proximity']} direction, for the objective that is being trained, at the "
        "checkpoints' own scores and readouts, over the steps of the stage. Small dots in (c) and (d) are "
        f"{count} seeds; marks and lines are their means, bars and bands 95 % Student intervals over seeds. These "
        "networks have LayerNorm and an MLP, and content scores once they train, so that labels are not exactly blind "
        f"there. With its fitted readout the masked gradient raises proximity in {raised} of sequences (one half: no "
        "direction, less: it lowers it); without the fit its sign would mean nothing."
    )
