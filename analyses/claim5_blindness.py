"""Claim 5: label supervision is locally blind to score directions that masked reconstruction detects.

Source: arXiv:2605.21070 (fourth claim of the abstract). The algebra is tested in tests/test_theory.py.

Design, in five parts.

- Cases. With one attention map at zero scores, mean pooling and no per-token nonlinearity, the gradient of any label
  loss is the same in every row, and has no component along circulant directions (functions of the offset modulo n). The
  same holds without a residual stream, in the first of two linear layers, and at a circulant score of any size. The
  query-key weights receive a gradient only through the mean token. Each of these cases is a float64 network of the
  package on random tokens. So is each exception, which drops one assumption: pooling, bidirectional attention,
  per-token linearity, zero content scores, pooled padding, or the softmax.
- Profiles. A function of the offset that is not circulant is visible through the ends of the sequence: its fraction of
  energy in column sums is computed for 32 to 512 tokens, with the slope of its logarithm on the logarithm of n.
- Uniform attention. Networks with the shared settings before training, with all scores set to 0, and with value weights
  and readout fitted for each objective: the signal-to-noise ratio (SNR: mean over standard deviation across sequences)
  of each objective's gradient along unit directions, and its energy in circulant functions and in functions of the key.
  The masked objective has one masked token in each sequence, so that both objectives have one prediction per sequence;
  it is also measured with the fraction of masked tokens of the training, whose average over several predictions has a
  larger SNR along any direction. Token counts reveal the class of `bigrams` (the contaminated case: values separate the
  classes before any score moves), not of `pairs`. `digits` is real data, with directions in pixels.
- Training. The SNR along proximity of the objective being trained, at the checkpoints of supervised training and of
  SPT, at their own scores and with their own readouts.
- Kernel. The autocovariance of the data by distance, and the position-position term of the score by distance at the end
  of each stage, in the head where this term has the largest share of the score variance.

These networks depart from the theory by LayerNorm and an MLP, through which labels detect a little, and during training
by content scores. The claim about them is therefore one of more or less signal, not of zero. The masked gradient raises
proximity only if the readout is aligned with the values, which an untrained readout is not. For this reason the readout
is fitted. SNRs are root mean squares over heads; their sign is a part of the rule of its own. In the networks,
proximity is the circulant exponential of length 2, without offset 0.

Rule. (1) In every blind case and seed, less than 1e-10 of the gradient's energy is where the theory predicts none, and
a circulant score of std 1 changes the loss by less than 1e-10 of its value. In every exception, more than 1e-10 of the
energy is there. (2) On each task, at uniform attention and with one masked token per sequence, the masked objective has
a higher SNR along proximity than the labels, by a larger factor than along a function of the key and than along a
random direction, and its descent raises proximity in more than half of the heads. The 95 % t-intervals over paired
seeds of the difference, of the logarithms of the two ratios of factors, and of the fraction of heads minus one half are
above 0. The claim holds if (1) holds and (2) holds on every task, and in part if (1) holds and (2) holds on some tasks.
Otherwise it does not hold, since (1) alone is algebra.

Changed after the first results, before the present ones: the masked objective masked 30 % of the tokens, and the random
direction and the sign did not count; the claim held in part, on `bigrams` and `digits`. The agreement of the kernel
with the autocovariance is reported without counting.

Command: python analyses/run.py claim5_blindness
Cost: 30 runs, shared with other claims, and 345 measures, which take 15 minutes on two cores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import xarray as xr
from autocovariance import autocovariance, correlation
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
from attnprobe.config import Recipe, TrainConfig
from attnprobe.figures.style import COLOURS, PERMUTED, WIDTH, Page, line, paper
from attnprobe.results import dataset, variable
from attnprobe.statistics.directions import SUBSPACES
from attnprobe.statistics.seeds import mean_interval
from attnprobe.tasks import source
from attnprobe.training.run import Run

TITLE = "Label supervision is locally blind to score directions that masked reconstruction detects"

BLIND = 1e-10
"""Threshold of blindness, as a fraction; float64 rounding leaves 1e-30 of an energy and 1e-16 of a loss."""
LOSSES = ("labels", "one masked", "masked")
"""Objectives at uniform attention; *one masked*: one masked token in each sequence, as many predictions as labels."""
DIRECTIONS = ("circulant band", PROXIMITY, "circulant linear", "toeplitz linear", "offset 0", "column", "random")
STAGES = ("supervised", "SPT: masked", "SPT: labels")
DISTANCES = tuple(range(1, 13))
"""Distances of the autocovariance and of the kernel."""


@dataclass(frozen=True)
class Size:
    """Amount of work at a scale."""

    tasks: Mapping[str, dict[str, Any]]
    """Overrides of the shared settings for each task."""
    sequences: int
    """Number of test sequences of every measure."""
    fit_steps: int
    """Number of steps for fitting readouts at uniform attention."""
    every: int = 1
    """Interval between measured checkpoints of a stage."""


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
    """Compute cases and visible fractions, then train and measure."""
    size, seed_numbers = SIZES[lab.scale], SEEDS[lab.scale]
    configs = {
        (task, recipe, seed): setting(task, recipe, seed, **size.tasks[task])
        for task in size.tasks
        for recipe in get_args(Recipe)
        for seed in seed_numbers
    }
    runs = lab.train(configs)
    measured = lab.measure(at_uniform(size, runs) | in_training(size, runs))
    kernels = lab.measure(at_the_ends(size, runs))
    variables = {**of_cases(seed_numbers), **of_profiles(), **of_uniform(measured), **of_training(measured)}
    variables |= of_kernels(configs, kernels)
    coordinates = {
        "case": list(CASES),
        "profile": list(PROFILES),
        "length": list(LENGTHS),
        "task": list(size.tasks),
        "seed": list(seed_numbers),
        "loss": list(LOSSES),
        "direction": list(DIRECTIONS),
        "subspace": list(SUBSPACES),
        "stage": list(STAGES),
        "distance": list(DISTANCES),
    }
    return dataset(
        variables, coordinates, {"fit_steps": size.fit_steps, "proximity": PROXIMITY, "length_scale": LENGTH}
    )


# Networks


Key = tuple[str, str, int, int]
"""Task, stage (or one of `UNIFORM`), step of the stage and seed."""
UNIFORM = {"uniform": ("labels", "masked"), "uniform, one masked": ("masked",)}
"""Requests at uniform attention, and their objectives."""
BEFORE = "before training"
NULLS = 2
"""Number of draws of the null at uniform attention, each on all sequences."""
WANTED = tuple(
    f"{view}{name}"
    for view in ("", "grid_")
    for name in ("snr", "snr_null", "positive_share", "energy_share", "energy_share_of_noise")
)


def at_uniform(size: Size, runs: Mapping[tuple[str, str, int], Run]) -> dict[Key, Asked]:
    """Return the requests for untrained networks at uniform attention."""
    options = {
        "at": "uniform",
        "fit_steps": size.fit_steps,
        "sequences": size.sequences,
        "length_scale": LENGTH,
        "nulls": NULLS,
    }
    return {
        (task, name, 0, seed): Asked(
            run, 0, "gradients", WANTED, options | {"objectives": objectives}, one_masked="one" in name
        )
        for (task, recipe, seed), run in runs.items()
        for name, objectives in UNIFORM.items()
        if recipe == "supervised"
    }


def in_training(size: Size, runs: Mapping[tuple[str, str, int], Run]) -> dict[Key, Asked]:
    """Return the requests for checkpoints: the gradient of the objective being trained."""
    requests = {}
    for (task, _, seed), run in runs.items():
        for stage, (start, steps) in stages(run).items():
            objectives = ("masked",) if stage == "SPT: masked" else ("labels",)
            options = {"sequences": size.sequences, "length_scale": LENGTH, "objectives": objectives, "nulls": 0}
            for step in steps[:: size.every]:
                requests[task, stage, step - start, seed] = Asked(run, step, "gradients", WANTED, options)
    return requests


def stages(run: Run) -> dict[str, tuple[int, list[int]]]:
    """Map each stage of a run to the step after which it starts and the steps of its checkpoints."""
    steps = [int(path.stem.removeprefix("step-")) for path in run.checkpoint_paths]
    if run.config.recipe == "supervised":
        return {STAGES[0]: (0, steps)}
    switch = run.config.pretrain_steps
    return {
        STAGES[1]: (0, [step for step in steps if step <= switch]),
        STAGES[2]: (switch, [step for step in steps if step > switch]),
    }


def of_uniform(measured: Mapping[Key, xr.Dataset]) -> dict[str, xr.Variable]:
    """Return signals and energies of both objectives' gradients in untrained networks at uniform attention."""
    pairs = dict.fromkeys((task, seed) for task, stage, _, seed in measured if stage in UNIFORM)
    by_seed = {(task, seed): _joined(*(measured[task, stage, 0, seed] for stage in UNIFORM)) for task, seed in pairs}
    tasks, seed_numbers = (list(dict.fromkeys(column)) for column in zip(*by_seed, strict=True))
    first = [by_seed[task, seed_numbers[0]] for task in tasks]

    def over(read: Callable[[xr.Dataset], xr.DataArray], kind: str, long_name: str, method: str) -> xr.Variable:
        axes = ("loss", kind)
        values = [[read(by_seed[task, seed]).transpose(*axes).values for seed in seed_numbers] for task in tasks]
        return variable(("task", "seed", *axes), values, long_name, "1", method)

    raised_fraction, fraction = (
        "fraction of sequences whose descent raises the direction",
        "fraction of the gradient's energy",
    )
    root_mean_square, mean = "root mean square over heads", "mean over heads"
    noise = [_own(result, "energy_share_of_noise").values for result in first]
    return {
        "snr": over(signal, "direction", "SNR of the gradient", root_mean_square),
        "raised": over(
            raised, "direction", "fraction of heads in which descent raises the direction", "mean over heads"
        ),
        "snr_permuted": over(permuted_signal, "direction", "SNR, positions permuted", root_mean_square),
        "snr_of_noise": variable(
            ("task",),
            [result.attrs["sequences"] ** -0.5 for result in first],
            "SNR of noise",
            "1",
            "1 / sqrt(number of sequences)",
        ),
        "positive_share": over(
            lambda result: _own(result, "positive_share").mean(HEADS), "direction", raised_fraction, mean
        ),
        "energy_share": over(lambda result: _own(result, "energy_share").mean(HEADS), "subspace", fraction, mean),
        "energy_share_of_noise": variable(("task", "subspace"), noise, "energy fraction of noise", "1", "dimensions"),
    }


def _joined(trained: xr.Dataset, one: xr.Dataset) -> xr.Dataset:
    """Return the measurements of both requests at uniform attention with the loss axis `LOSSES`."""
    joined = xr.concat([trained, one.assign_coords(loss=["one masked"])], "loss", data_vars="minimal")
    return joined.sel(loss=list(LOSSES)).assign_attrs(trained.attrs)


HEADS = ("layer", "head")


def _own(measured: xr.Dataset, name: str) -> xr.DataArray:
    """Return a variable in the data's own geometry, along `DIRECTIONS`."""
    own = measured[f"grid_{name}" if f"grid_{name}" in measured else name]
    return own.sel(direction=list(DIRECTIONS)) if "direction" in own.dims else own


def signal(measured: xr.Dataset) -> xr.DataArray:
    """Return the unsigned SNR, as root mean square over heads."""
    return np.sqrt(np.square(_own(measured, "snr")).mean(HEADS))


def raised(measured: xr.Dataset) -> xr.DataArray:
    """Return the fraction of heads in which the mean descent raises a direction."""
    return (_own(measured, "snr") > 0).mean(HEADS)


def permuted_signal(measured: xr.Dataset) -> xr.DataArray:
    """Return `signal` with positions permuted, as root mean square over heads and draws."""
    return np.sqrt(np.square(_own(measured, "snr_null").sel(null="permuted")).mean(("draw", *HEADS)))


def of_training(measured: Mapping[Key, xr.Dataset]) -> dict[str, xr.Variable]:
    """Return the SNR along proximity of the objective being trained, at every checkpoint of its stage."""
    checkpoints = {key: result for key, result in measured.items() if key[1] not in UNIFORM}
    tasks, _, _, seed_numbers = (list(dict.fromkeys(column)) for column in zip(*checkpoints, strict=True))
    steps = {
        (task, stage): sorted(
            {step for its_task, its_stage, step, _ in checkpoints if (its_task, its_stage) == (task, stage)}
        )
        for task in tasks
        for stage in STAGES
    }
    shape = (len(tasks), len(STAGES), max(map(len, steps.values())))
    reached, snr = np.full(shape, np.nan), np.full((*shape, len(seed_numbers)), np.nan)
    for (task, stage, step, seed), result in checkpoints.items():
        index = tasks.index(task), STAGES.index(stage), steps[task, stage].index(step)
        reached[index] = step
        snr[index][seed_numbers.index(seed)] = signal(result).sel(direction=PROXIMITY).item()
    axes = ("task", "stage", "checkpoint")
    return {
        "training_step": variable(axes, reached, "step of the stage", ""),
        "training_snr": variable((*axes, "seed"), snr, "SNR along proximity", "1", "root mean square over heads"),
    }


def at_the_ends(size: Size, runs: Mapping[tuple[str, str, int], Run]) -> dict[tuple[str, str, int], Asked]:
    """Return the requests for the terms of the score before training and at the end of each stage."""
    options = {"sequences": size.sequences, "nulls": 0}
    requests = {}
    for (task, recipe, seed), run in runs.items():
        ends = {stage: steps[-1] for stage, (_, steps) in stages(run).items()}
        for stage, step in (ends if recipe == "supervised" else {BEFORE: 0, **ends}).items():
            requests[task, stage, seed] = Asked(run, step, "positions", ("score_by_offset", "variance_share"), options)
    return requests


def of_kernels(
    configs: Mapping[tuple[str, str, int], TrainConfig], measured: Mapping[tuple[str, str, int], xr.Dataset]
) -> dict[str, xr.Variable]:
    """Return the autocovariance of the training sequences, and position-position scores by distance."""
    tasks, _, seed_numbers = (list(dict.fromkeys(column)) for column in zip(*configs, strict=True))

    def of_data(task: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        config = configs[task, "spt", seed]
        return autocovariance(source(config.task, config.task_options).build(seed).train, len(DISTANCES))

    def profiles(stage: str) -> np.ndarray:
        return np.array([[kernel(measured[task, stage, seed]) for seed in seed_numbers] for task in tasks])

    data = np.array([[of_data(task, seed) for seed in seed_numbers] for task in tasks])
    size, null, kernels = data[:, :, 0], data[:, :, 1], np.stack([profiles(stage) for stage in STAGES], axis=1)
    over, staged, description = ("task", "seed", "distance"), ("task", "stage", "seed"), "size of the autocovariance"
    words, method = "correlation of kernel and autocovariance", f"over distances 1 to {DISTANCES[-1]}"
    before = correlation(profiles(BEFORE), size)
    return {
        "autocovariance": variable(over, size, description, "1", "one-hot training tokens, Frobenius norm"),
        "autocovariance_null": variable(over, null, f"{description}, of different sequences", "1"),
        "kernel": variable((*staged, "distance"), kernels, "position-position score by distance", "1"),
        "agreement": variable(staged, correlation(kernels, size[:, None]), words, "1", method),
        "agreement_before": variable(over[:2], before, f"{words}, before training", "1", method),
    }


def kernel(measured: xr.Dataset) -> np.ndarray:
    """Return the position-position score by distance, in the head where it has the largest variance share."""
    positions = measured.sel(term="position-position")
    head = positions["variance_share"].argmax(HEADS)
    both = [positions["score_by_offset"].isel(head).sel(offset=[sign * d for d in DISTANCES]) for sign in (1, -1)]
    return np.mean(both, axis=0)


# Conclusion


def cases_hold(result: xr.Dataset) -> bool:
    """Return whether labels are blind in every blind case and not blind in every exception (part 1 of the rule)."""
    share, change, blind = result["invisible_share"], result["loss_change"], result["blind"].astype(bool)
    nothing = (share < BLIND) & ((change < BLIND) | change.isnull())
    return bool(nothing.where(blind, share > BLIND).all())


Interval = tuple[float, float, float]
CONTROLS = {"column": "a function of the key", "random": "a random direction"}


@dataclass(frozen=True)
class Lead:
    """How much more signal masked reconstruction has along proximity than labels, with one prediction per sequence."""

    difference: Interval
    """Difference of the SNRs along proximity."""
    beyond: Mapping[str, Interval]
    """Logarithm of the ratio of the SNRs along proximity minus that along each control."""
    raising: Interval
    """Fraction of heads in which descent of the masked loss raises proximity, minus one half."""

    @property
    def held(self) -> bool:
        """Whether all intervals are above 0."""
        return all(low > 0 for _, low, _ in (self.difference, *self.beyond.values(), self.raising))


def leads(result: xr.Dataset) -> dict[str, Lead]:
    """Return the lead of masked reconstruction on each task."""
    masked, labels = (result["snr"].sel(loss=loss) for loss in ("one masked", "labels"))
    along, factor = result.attrs["proximity"], np.log(masked / labels)
    found = {}
    for task in map(str, result["task"].values):
        by_direction = factor.sel(task=task)
        found[task] = Lead(
            mean_interval((masked - labels).sel(task=task, direction=along)),
            {
                words: mean_interval(by_direction.sel(direction=along) - by_direction.sel(direction=control))
                for control, words in CONTROLS.items()
            },
            mean_interval(result["raised"].sel(task=task, loss="one masked", direction=along) - 0.5),
        )
    return found


def agreement_of(of_task: xr.Dataset) -> str:
    """Format the agreement of the kernel with the autocovariance after each first stage, and before training."""
    supervised, masked = (of_task["agreement"].sel(stage=stage) for stage in STAGES[:2])
    found = {"self-pretraining": masked, "supervised training": supervised}
    words = ", ".join(f"after {stage} {said(*of_correlations(values))}" for stage, values in found.items())
    before = said(*of_correlations(of_task["agreement_before"]))
    decay = np.exp(-of_task["distance"] / 2)
    kernels = of_task["kernel"].sel(stage=STAGES[1]).transpose("seed", "distance")
    plain = of_correlations(xr.DataArray(correlation(kernels.values, decay.values), dims="seed"))
    return (
        f"correlation of the kernel with the autocovariance of the data {words}, before training {before}; with an "
        f"exponential of length 2 after self-pretraining {said(*plain)}"
    )


def of_correlations(values: xr.DataArray) -> Interval:
    """Return the mean of correlations over seeds and its t-interval, both on Fisher's scale and transformed back."""
    mean, low, high = np.tanh(mean_interval(np.arctanh(np.clip(values, -1 + 1e-9, 1 - 1e-9))))
    return float(mean), float(low), float(high)


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule."""
    lead_of = leads(result)
    blind = result["blind"].astype(bool)
    most = float(result["invisible_share"].where(blind).max())
    least = float(result["invisible_share"].where(~blind).min())
    cases = (
        f"label energy where the theory predicts none: at most {most:.0e} in blind cases, at least {least:.0e} in "
        "exceptions"
    )
    held = cases_hold(result)
    parts = [
        Part(
            "precondition of the other parts: labels are blind exactly in the cases covered by the theory",
            held,
            cases,
            decides=False,
        ),
        *(
            Part(
                f"masked reconstruction has more signal along proximity than labels on {task}, and towards it",
                held and lead.held,
                f"SNR difference {said(*lead.difference)}; log SNR ratio minus that along "
                + ", along ".join(f"{words} {said(*beyond)}" for words, beyond in lead.beyond.items())
                + "; fraction of heads that masked reconstruction makes more proximal minus one half "
                f"{said(*lead.raising)}; {agreement_of(result.sel(task=task))}",
            )
            for task, lead in lead_of.items()
        ),
    ]
    leads_by_task = ", ".join(f"{task} {said(*lead.difference)}" for task, lead in lead_of.items())
    effect = f"SNR along proximity at uniform attention, one masked token minus labels: {leads_by_task}"
    return concluded(parts, effect, result.sizes["seed"])


def draw(result: xr.Dataset) -> Figure:
    """Draw cases and profiles, signals and energies at uniform attention, and signals during training."""
    rows = -(-result.sizes["task"] // COLUMNS)
    heights = [0.145 * result.sizes["case"] + 0.7]
    heights += [per_row * rows + rest for per_row, rest in ((2.2, 0.5), (0.95, 0.35), (1.25, 0.5), (1.25, 0.5))]
    with paper():
        figure = Page(figsize=(WIDTH, sum(heights)))
        parts = figure.subfigures(5, 1, height_ratios=heights)
        left, right = parts[0].subplots(1, 2, width_ratios=[1.15, 1])
        draw_cases(left, result)
        draw_profiles(right, result)
        draw_signals(parts[1], result)
        draw_energies(parts[2], result)
        draw_training(parts[3], result)
        draw_kernels(parts[4], result)
    return figure


COLUMNS = 3
"""Number of panels per row."""


def draw_cases(axis: Axes, result: xr.Dataset) -> None:
    """Draw, for each case, what labels detect where the theory predicts nothing."""
    blind = result["blind"].values.astype(bool)
    heights = np.arange(len(blind)) + 0.7 * ~blind
    for name, marker in (("invisible_share", "o"), ("loss_change", "^")):
        values = np.maximum(result[name].values, FLOOR)
        for height, by_seed, colour in zip(heights, values, np.where(blind, *COLOURS[:2]), strict=True):
            shared = {"s": 9, "marker": marker, "edgecolors": colour, "linewidths": 0.6}
            fill = colour if marker == "o" else "none"
            axis.scatter(by_seed, np.full(len(by_seed), height), facecolors=fill, **shared)
    axis.scatter(result["invisible_share_of_noise"], heights, s=26, marker="|", color="black", linewidths=0.9)
    axis.axvline(BLIND, **DASHED)
    axis.set_xscale("log")
    axis.set_xticks([1e-30, 1e-20, 1e-10, 1])
    axis.minorticks_off()
    axis.set(xlim=(FLOOR / 10, 100), xlabel="fraction of energy or of loss")
    axis.set_yticks(heights, result["case"].values.tolist())
    axis.invert_yaxis()
    axis.set_title("a  blind cases and exceptions", loc="left")
    marks = {"energy": ("o", "full"), "loss": ("^", "none"), "noise": ("|", "full")}
    handles = [
        Line2D([], [], color="black", marker=marker, markersize=3.5, linestyle="none", fillstyle=style, label=name)
        for name, (marker, style) in marks.items()
    ]
    axis.legend(handles=handles, loc="lower left", handletextpad=0.2)


FLOOR = 1e-36
"""Value at which the figure shows exact zeros."""
DASHED = {"color": "black", "linewidth": 0.5, "linestyle": (0, (3, 2))}


def draw_profiles(axis: Axes, result: xr.Dataset) -> None:
    """Draw the visible energy fraction of each profile against the sequence length."""
    for number, profile in enumerate(result["profile"].values):
        selected = result.sel(profile=profile)
        name = f"{profile}: $n^{{{selected['visible_power'].item():.2f}}}$"
        style = line(number) | {"marker": MARKS[number], "markersize": 3}
        axis.plot(result["length"], selected["visible_share"], label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(result["length"], [str(n) for n in result["length"].values])
    axis.minorticks_off()
    axis.set(xlabel=label("length"), ylabel="energy fraction visible to labels")
    axis.set_ylim(bottom=float(result["visible_share"].min()) / 300)  # room for the legend
    axis.set_title("b  non-circulant profiles", loc="left")
    axis.legend(loc="lower left")


def panels(part: SubFigure, result: xr.Dataset, title: str) -> list[Axes]:
    """Return one panel per task, under a common title."""
    tasks = result["task"].values
    part.suptitle(title, x=0.01, ha="left", fontsize=7.5)
    columns = min(len(tasks), COLUMNS)
    grid = part.subplots(-(-len(tasks) // columns), columns, sharey=True, sharex=True, squeeze=False).flatten()
    for axis in grid[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(grid, tasks, strict=False):
        axis.set_title(str(task))
    return grid[: len(tasks)].tolist()


LOSS_LABELS = {"labels": "labels", "one masked": "one masked token", "masked": "masked tokens as in training"}


def by_loss(axis: Axes, values: xr.DataArray, null: xr.DataArray) -> None:
    """Draw one row per direction or subspace: seeds, means and intervals of the objectives, over their nulls."""
    (kind,) = set(values.dims) - {"loss", "seed"}
    for row, name in enumerate(values[kind].values):
        for number, loss in enumerate(LOSSES):
            height, selection = row + (-0.27, 0, 0.27)[number], {kind: name, "loss": loss}
            axis.plot([null.sel(selection)] * 2, [height - 0.13, height + 0.13], color=PERMUTED, linewidth=2.2)
            words = LOSS_LABELS[loss] if row == 0 else None
            seeds(axis, height, values.sel(selection), number, upright=False, label=words)
    axis.set_yticks(range(values.sizes[kind]), values[kind].values.tolist())
    axis.set_ylim(values.sizes[kind] - 0.5, -0.5)
    axis.set_xscale("log")
    plain(axis.xaxis, (1,))


def plain(axis: Axis, times: tuple[int, ...]) -> None:
    """Label a logarithmic axis at these multiples of powers of ten, even if the axis is short."""
    axis.set_major_locator(LogLocator(subs=times))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def draw_signals(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the SNR of both objectives along each direction at uniform attention."""
    axes = panels(part, result, "c  signal-to-noise ratio along directions, at uniform attention")
    for number, axis in enumerate(axes):
        selected = result.isel(task=number)
        by_loss(axis, selected["snr"], selected["snr_permuted"].mean("seed"))
        axis.axvline(float(selected["snr_of_noise"]), **DASHED)
        axis.set_xlabel("|SNR|")
    axes[0].set_xlim(float(result["snr"].min()) / 2, 2 * float(result["snr"].max()))
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_energies(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the energy in subspaces at uniform attention, relative to noise."""
    axes = panels(part, result, "d  energy in subspaces relative to noise, at uniform attention")
    ratio = (result["energy_share"] / result["energy_share_of_noise"]).sel(subspace=["circulant", "column"])
    for number, axis in enumerate(axes):
        values = ratio.isel(task=number)
        by_loss(axis, values, xr.ones_like(values.mean("seed")))
        axis.set_xlabel("energy / energy of noise")
    axes[0].set_xlim(float(ratio.min()) / 2, 2 * float(ratio.max()))


def draw_training(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the SNR along proximity of the objective being trained, over the steps of its stage."""
    axes = panels(part, result, "e  signal-to-noise ratio along proximity, during training")
    for panel, axis in enumerate(axes):
        selected = result.isel(task=panel)
        for number, stage in enumerate(result["stage"].values):
            checkpoints = selected.sel(stage=stage).dropna("checkpoint", subset=["training_step"])
            values = checkpoints["training_snr"].transpose("checkpoint", "seed")
            course(axis, checkpoints["training_step"].values, values, number, str(stage))
        axis.axhline(float(selected["snr_of_noise"]), **DASHED)
        axis.set_xscale("symlog", linthresh=3, linscale=0.4)
        axis.set_xticks([0, 10, 100, 1000])
        axis.set_yscale("log")
        plain(axis.yaxis, (1, 3))
        axis.set_xlabel("step of the stage")
    snr = result["training_snr"]
    axes[0].set(ylabel="|SNR|", ylim=(float(snr.min()) / 2, 2 * float(snr.max())))
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def draw_kernels(part: SubFigure, result: xr.Dataset) -> None:
    """Draw the data's autocovariance and the learned scores by distance, each as standard scores over distances."""
    axes = panels(part, result, "f  autocovariance of the data, and position-position scores after each stage")

    def standard(values: xr.DataArray) -> xr.DataArray:
        return (values - values.mean("distance")) / values.std("distance")

    for panel, axis in enumerate(axes):
        selected, distances = result.isel(task=panel), result["distance"].values
        data = standard(selected["autocovariance"]).mean("seed")
        axis.bar(distances, data - data.min(), 0.8, data.min(), color=PERMUTED, alpha=0.5, label="autocovariance")
        for number, stage in enumerate(STAGES):
            values = standard(selected["kernel"].sel(stage=stage)).transpose("distance", "seed")
            course(axis, distances, values, number, stage)
        axis.set_xticks([1, 4, 8, 12])
        axis.set_xlabel(label("distance"))
    axes[0].set(ylabel="standard score", ylim=(-2.5, 3.8))
    part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption."""
    fraction = result["positive_share"].sel(direction=PROXIMITY, loss="one masked").mean("seed")
    raised = ", ".join(f"{task} {fraction.sel(task=task):.0%}" for task in result["task"].values)
    count = result.sizes["seed"]
    return (
        "(a) What labels detect where the theory predicts nothing, in float64; one marker for each of "
        f"{count} seeds of weights and tokens. Filled: fraction of the label gradient's energy in circulant directions "
        "(or in differences of rows, or in the gradient of the query-key weights that does not read the mean token, if "
        "named so). Open: relative change of the loss by a circulant proximity score of std 1. Bars: pure noise. "
        f"Dashed: {BLIND:.0e}, below which a case counts as blind. Blue: blind by the theory; orange: exceptions. (b) "
        "Fraction of the energy of non-circulant profiles in their column sums, which is all that labels detect of "
        "them at zero scores, with the fitted power of n: exponential of length 4, band of the nearest keys, negative "
        "distance and negative logarithm of distance. (c) Unsigned signal-to-noise ratio (mean over standard deviation "
        "across sequences of the gradient, root mean square over heads) along unit directions, in untrained networks "
        "at uniform attention, with value weights and the objective's readout fitted for "
        f"{result.attrs['fit_steps']} steps; masked reconstruction with one masked token in each sequence, and with "
        f"the fraction of the training. Proximity has length {result.attrs['length_scale']}, in pixels on images, "
        "without offset 0; column and random are random directions. Dashed: expected for noise with the same number "
        "of sequences. Grey: positions permuted, mean over seeds. (d) Energy fraction of the same gradients in all "
        "circulant functions and in all functions of the key, relative to noise (grey). (e) As (c), along the "
        f"{result.attrs['proximity']} direction, for the objective being trained, with the checkpoints' own scores and "
        "readouts, over the steps of the stage. (f) Size of the covariance of one-hot tokens of the training sequences "
        "by distance (grey; mean over seeds), and position-position term of the score by distance at the end of each "
        "stage, in the head where the term has the largest share of the score variance, each as standard scores over "
        f"these distances. Small dots in (c) and (d): {count} seeds. Markers and lines: means. "
        "Bars and bands: 95 % t-intervals over seeds. These networks have LayerNorm and an MLP, and content scores "
        "once they train, so that labels are not exactly blind there. With the fitted readout, the masked gradient "
        f"raises proximity in {raised} of sequences (50 %: no direction; less: it lowers proximity). Without the fit, "
        "the sign would be meaningless."
    )
