"""Long Range Arena at published sizes: does self-pretraining help?

Claim: a Transformer that is pretrained on the training sequences of its own task reaches a higher test accuracy than
one that spends the same number of steps on supervised training. Source: Amos et al. 2024 (arXiv:2310.02980), with the
networks, lengths and learning rates of the presets ``amos-image`` (n = 1,024), ``amos-pathfinder`` (n = 1,024) and
``amos-listops`` (n = 2,048).

Design: each task and seed is one comparison of two runs with the same data, initial weights and batches, with three
arms:

- ``spt``: self-pretraining, then supervised training;
- ``supervised``: supervised training for the same total number of steps (equal compute);
- ``supervised short``: supervised training for the number of steps of SPT's second stage, the length of the published
  training from scratch. The learning rate is constant after the warm-up and batches are a function of seed and step, so
  that this arm is bit by bit the ``supervised`` run at that step, and costs nothing.

Accuracies are measured on the test and validation sequences and on the first 2,000 training sequences, at the end and
at the lowest validation loss among the evaluations (20, evenly spaced, and one at each checkpoint).

Rule, fixed before any run: the effect is the final test accuracy of ``spt`` minus that of ``supervised``. SPT helps on
a task if the 95 % t-interval over paired seeds is above 0. With one seed there is no interval, and the task is
undecided. The claim holds if SPT helps on all three tasks with all published steps, and in part if it helps on at least
one task. Otherwise it does not hold here, or it is undecided if no task has two seeds.

Command, on one GPU, in pieces of any length. Each piece resumes where the last one stopped; a killed piece loses at
most two minutes:

    python analyses/full_lra.py --minutes 9 --device cuda
    python analyses/full_lra.py --status --device cuda

With ``--steps-share 0.05``, both stages and their warm-ups have a twentieth of the published steps: a shorter but
complete comparison, which the result records. The file has one such fraction per task: a complete comparison replaces
the previous results of its task and keeps the other tasks.

Cost for one seed (two runs): Image 2 x 225,000 steps of 50 sequences (45,000 of them masked), Pathfinder 2 x 1,250,000
of 32 (250,000), ListOps 2 x 600,000 of 32 (300,000). At 6 operations per weight and token and 12 n d_model per layer
and token these are 6.7e16, 7.1e17 and 1.5e19 operations, hence the order of the tasks. The number of GPU hours is not
known yet. Every piece prints the measured steps per second of each run (including evaluations, excluding data
generation) and the hours that its remaining steps take at that rate. The first minutes of a task on a GPU therefore
give its cost.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lab as shared
import numpy as np
import pandas as pd
import torch
import tyro
import xarray as xr
from conclusion import Conclusion, Part, verdict
from lab import Lab
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attnprobe import tasks
from attnprobe.config import Recipe, TrainConfig
from attnprobe.errors import UsageError
from attnprobe.figures.style import COLOURS, WIDTH, Page, paper
from attnprobe.files import write_atomic
from attnprobe.results import dataset, open_result, save, variable
from attnprobe.statistics.seeds import mean_interval
from attnprobe.sweeps.cells import took
from attnprobe.sweeps.plan import run_folder
from attnprobe.tasks.folder import data_folder
from attnprobe.tasks.image import ARCHIVE
from attnprobe.training.loop import resume, train
from attnprobe.training.metrics import best
from attnprobe.training.run import Run

TITLE = "SPT beats supervised training on the Long Range Arena, at the sizes of Amos et al. 2024"
RESULT = shared.FOLDER / "results" / "full_lra.nc"

Precision = Literal["float32", "bf16"]
Name = Literal["image", "pathfinder", "listops"]
NAMES: dict[Name, str] = {"image": "Image", "pathfinder": "Pathfinder", "listops": "ListOps"}
"""Figure names of the tasks, cheapest task first."""
RECIPES: tuple[Recipe, ...] = ("spt", "supervised")
ARMS = {"spt": "SPT, then\nsupervised", "supervised": "supervised,\nas long", "supervised short": "supervised,\nshort"}
SPLITS = ("test", "validation", "train")
EVALUATIONS = 20
"""Number of evenly spaced evaluations of a run, an integer in each stage."""
SEEDS = {"quick": (11, 12), "default": (11, 12, 13), "full": (11, 12, 13)}
QUICK_SHARE = 5e-5

_TINY: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "mlp_ratio": 1, "batch_size": 4, "checkpoints": 1}
_FEW = {"train_size": 60, "validation_size": 20, "test_size": 20}
_SHORT = {"n": 64, "min_length": 10, "max_length": 64, "max_depth": 5, "max_args": 5}
QUICK: dict[Name, dict[str, Any]] = {
    "image": {**_TINY, "task_options": {"train_size": 20, "test_size": 8}, "validation_size": 8},
    "pathfinder": {**_TINY, "task_options": {**_FEW, "side": 16, "contour_length": 5}},
    "listops": {**_TINY, "task_options": {**_FEW, **_SHORT}},
}
"""Settings with which a complete comparison takes seconds."""

PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("image", "supervised short"): {"published_accuracy": 0.4244, "published_train_accuracy": 0.6945},
    ("pathfinder", "supervised short"): {"published_accuracy": 0.7140},
    ("listops", "supervised short"): {"published_accuracy": 0.3637},
}
_SOURCE = "Transformer from scratch, Tay et al. 2021 (arXiv:2011.04006), table 1; NaN: no published number"
_SHARE = "fraction of sequences"
_WHEN = {"": "at the end", "_at_lowest": "at the lowest validation loss"}

BY_ARM: dict[str, tuple[str, ...]] = {
    **{
        f"{split}_accuracy{key}": (f"{split} accuracy {when}", _SHARE)
        for key, when in _WHEN.items()
        for split in SPLITS
    },
    "steps": ("training steps", "steps"),
    "step_of_lowest": ("step of the lowest validation loss", "steps"),
    "steps_per_second": ("steps per second", "1/s", "including evaluations, excluding data generation"),
    "seconds": ("time of all pieces", "s", "supervised short: its fraction of the supervised run"),
    "hardware": ("training hardware", ""),
}
BY_PUBLICATION = {
    "published_accuracy": ("published test accuracy", _SHARE, _SOURCE),
    "published_train_accuracy": ("published train accuracy", _SHARE, _SOURCE),
}
BY_SEED = {
    "constant_accuracy": ("test accuracy of the best constant answer", _SHARE),
    "n": ("sequence length", "tokens"),
    "fingerprint": ("fingerprint of the data", ""),
}
BY_TASK = {"steps_share": ("fraction of the published steps", "1"), "precision": ("training precision", "")}
"""Variables of a result, grouped by axes: long name, units, and method."""
EMPTY = {
    name: "" if name in ("hardware", "fingerprint", "precision") else math.nan
    for name in (*BY_ARM, *BY_PUBLICATION, *BY_SEED, *BY_TASK)
}
"""Fill values for incomplete comparisons."""


@dataclass(frozen=True)
class Plan:
    """Requested runs, in training order: by seed, then by task, then by recipe."""

    tasks: tuple[Name, ...]
    seeds: tuple[int, ...]
    share: float = 1.0
    """Fraction of the published steps, in both stages and their warm-ups."""
    device: str = "cpu"
    precision: Precision = "float32"
    sizes: Mapping[Name, Mapping[str, Any]] = field(default_factory=dict)
    """Overrides of the published settings."""

    def __post_init__(self) -> None:
        """Validate the fraction of steps."""
        if not 0 < self.share <= 1:
            raise UsageError(f"steps_share={self.share}: must be above 0 and at most 1")

    @property
    def comparisons(self) -> list[tuple[Name, int]]:
        """Task and seed of each comparison."""
        return [(task, seed) for seed in self.seeds for task in self.tasks]

    def config(self, task: Name, recipe: Recipe, seed: int) -> TrainConfig:
        """Return the configuration of a run; without overrides and with all steps it is the preset's."""
        preset = tasks.PRESETS[f"amos-{task}"]
        steps = EVALUATIONS * max(1, round(self.share * preset["steps"] / EVALUATIONS))
        overrides = {
            "steps": steps,
            "pretrain_steps": steps * preset["pretrain_steps"] // preset["steps"],
            "warmup_steps": round(self.share * preset["warmup_steps"]),
            "evaluations": EVALUATIONS,
            "device": self.device,
            "precision": self.precision,
        }
        return tasks.configure(preset=f"amos-{task}", recipe=recipe, seed=seed, **overrides, **self.sizes.get(task, {}))

    def run(self, task: Name, recipe: Recipe, seed: int) -> Run:
        """Return the run, which may not have started."""
        return Run(run_folder(shared.RUNS, self.config(task, recipe, seed)))

    @property
    def complete(self) -> list[tuple[Name, int]]:
        """Comparisons whose runs have all finished."""
        return [
            (task, seed)
            for task, seed in self.comparisons
            if all(self.run(task, recipe, seed).finished for recipe in RECIPES)
        ]


@dataclass
class Clock:
    """Counter of the steps of a piece and of the seconds between the first and the last step."""

    steps: int = -1
    began: float = 0.0
    seconds: float = 0.0

    def __call__(self, step: int) -> None:
        """Count a completed step."""
        now = time.monotonic()
        self.began = now if self.steps < 0 else self.began
        self.steps, self.seconds = self.steps + 1, now - self.began


def study(lab: Lab) -> xr.Dataset:
    """Train missing runs, without a time limit, and return the result."""
    quick = lab.scale == "quick"
    available = tuple(
        task for task in NAMES if task != "image" or not quick or (data_folder() / ARCHIVE.file).is_file()
    )
    share, sizes = (QUICK_SHARE, QUICK) if quick else (1.0, {})
    plan = Plan(available, SEEDS[lab.scale], share, lab.device, sizes=sizes)
    for task, seed in plan.comparisons:
        advance(lab, plan, task, seed)
    return gather(plan)


def advance(lab: Lab, plan: Plan, task: Name, seed: int, until: float = math.inf) -> bool:
    """Train both runs of a comparison, one after the other, up to a time; return whether both have finished."""
    return all(go_on(lab, plan.config(task, recipe, seed), until) for recipe in RECIPES)


def go_on(lab: Lab, config: TrainConfig, until: float) -> bool:
    """Train a run up to a time of the monotonic clock; return whether it has finished."""
    run = Run(run_folder(shared.RUNS, config))
    if run.finished is None:
        began, clock = time.monotonic(), Clock()
        if began >= until:
            return False
        tasks.build(config)  # data is generated once, before the remaining minutes are counted
        run_training = partial(resume, run.folder) if run.exists else partial(train, config, run.folder)
        try:
            run_training(on_step=clock, minutes=max(0.0, until - time.monotonic()) / 60)
        finally:
            if run.exists:
                note(run.folder, clock, time.monotonic() - began, hardware(config.device))
    if run.finished:
        lab.used[run.folder] = config
    return run.finished is not None


def note(folder: Path, clock: Clock, seconds: float, name: str) -> None:
    """Add the time and steps of a piece to the run's record."""
    before = noted(folder)
    after = {
        "seconds": took(folder) + seconds,
        "steps": before["steps"] + max(clock.steps, 0),
        "stepping": before["stepping"] + clock.seconds,
        "hardware": sorted({*before["hardware"], name}),
    }
    write_atomic(folder / "took.json", json.dumps(after) + "\n")


def noted(folder: Path) -> dict[str, Any]:
    """Return the record of a run's pieces: total seconds, steps, seconds of stepping, and hardware names."""
    path = folder / "took.json"
    nothing = {"seconds": math.nan, "steps": 0, "stepping": 0.0, "hardware": []}
    return nothing | (json.loads(path.read_text()) if path.exists() else {})


def hardware(device: str) -> str:
    """Return the name of the training hardware."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def rate(takings: list[dict[str, Any]]) -> float:
    """Return the steps per second over several runs; NaN if none was measured."""
    seconds = sum(record["stepping"] for record in takings)
    return sum(record["steps"] for record in takings) / seconds if seconds else math.nan


def gather(plan: Plan) -> xr.Dataset:
    """Return the numbers of every complete comparison of a plan; raise `UsageError` if there is none."""
    complete = plan.complete
    if not complete:
        raise UsageError("no comparison is complete")
    order = {
        "task": [task for task in plan.tasks if any(task == other for other, _ in complete)],
        "arm": list(ARMS),
        "seed": [seed for seed in plan.seeds if any(seed == other for _, other in complete)],
    }
    by_arm = [numbers(plan, task, seed, arm) for task, seed in complete for arm in ARMS]
    by_seed = [facts(plan, task, seed) for task, seed in complete]
    by_task = [{"task": task, "steps_share": plan.share, "precision": plan.precision} for task in order["task"]]
    published = [{"task": task, "arm": arm, **PUBLISHED.get((task, arm), {})} for task in order["task"] for arm in ARMS]
    variables = {
        **_variables(by_arm, order, ("task", "arm", "seed"), BY_ARM),
        **_variables(published, order, ("task", "arm"), BY_PUBLICATION),
        **_variables(by_seed, order, ("task", "seed"), BY_SEED),
        **_variables(by_task, order, ("task",), BY_TASK),
    }
    cost = {
        "runs": len(RECIPES) * len(complete),
        "core_minutes": sum(row["seconds"] for row in by_arm if row["arm"] in RECIPES) / 60,
        "device": plan.device,
    }
    presets = [f"amos-{task}" for task in order["task"]]
    return dataset(variables, order, {"title": TITLE, "presets": presets, **cost})


def _variables(
    rows: list[dict[str, Any]],
    order: Mapping[str, Any],
    axes: tuple[str, ...],
    descriptions: Mapping[str, tuple[str, ...]],
) -> dict[str, xr.Variable]:
    """Return variables over axes from rows that contain their coordinates; missing rows become `EMPTY`."""
    table = pd.DataFrame(rows, columns=[*axes, *descriptions]).set_index(list(axes)).to_xarray()
    table = table.reindex({axis: order[axis] for axis in axes}, fill_value={name: EMPTY[name] for name in descriptions})
    return {name: variable(axes, table[name].values, *description) for name, description in descriptions.items()}


def numbers(plan: Plan, task: Name, seed: int, arm: str) -> dict[str, Any]:
    """Return the row of one arm of a complete comparison."""
    recipe: Recipe = "spt" if arm == "spt" else "supervised"
    config, run = plan.config(task, recipe, seed), plan.run(task, recipe, seed)
    steps = config.steps - config.pretrain_steps if arm == "supervised short" else config.steps
    rows = [row for row in run.metrics if row["step"] <= steps]
    lowest = best(rows)
    assert rows[-1]["step"] == steps and lowest is not None, "a run must be evaluated at the end of each stage"
    record = noted(run.folder)
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        **{f"{split}_accuracy": rows[-1][f"{split}_accuracy"] for split in SPLITS},
        **{f"{split}_accuracy_at_lowest": lowest[f"{split}_accuracy"] for split in SPLITS},
        "steps": steps,
        "step_of_lowest": lowest["step"],
        "steps_per_second": rate([record]),
        "seconds": record["seconds"] * steps / config.steps,
        "hardware": ", ".join(record["hardware"]),
    }


def facts(plan: Plan, task: Name, seed: int) -> dict[str, Any]:
    """Return the row with facts about the data of a complete comparison."""
    last = plan.run(task, "supervised", seed).last
    labels = last.task.test.labels
    return {
        "task": task,
        "seed": seed,
        "constant_accuracy": np.bincount(labels).max() / len(labels),
        "n": last.data.n,
        "fingerprint": last.fingerprint,
    }


def keep(result: xr.Dataset, path: Path) -> None:
    """Write a result; tasks that exist only in the file are kept."""
    if path.exists():
        before = open_result(path)
        others = [task for task in before["task"].values if task not in result["task"]]
        if others:
            parts = [result, before.sel(task=others)]
            result = xr.concat(parts, "task", join="outer", fill_value=EMPTY, combine_attrs="override")
    path.parent.mkdir(exist_ok=True)
    save(result, path)


def gains(result: xr.Dataset) -> dict[str, tuple[float, float, float, int]]:
    """Return, for each task, SPT minus supervised at equal steps, the ends of its interval, and the number of seeds."""
    gain_of = {}
    difference = result["test_accuracy"].sel(arm="spt") - result["test_accuracy"].sel(arm="supervised")
    for task in NAMES:
        if task in result["task"]:
            pairs = difference.sel(task=task).dropna("seed").values
            gain_of[task] = (*mean_interval(pairs), len(pairs))
    return gain_of


def conclude(result: xr.Dataset) -> Conclusion:
    """Apply the rule of the module's docstring."""
    gain_of = gains(result)
    helps = {task: low > 0 if seeds > 1 else None for task, (_, low, _, seeds) in gain_of.items()}
    seeds = min(gain[-1] for gain in gain_of.values())
    complete = set(gain_of) == set(NAMES) and seeds > 1 and bool((result["steps_share"] == 1).all())
    gain_texts = [
        f"{NAMES[task]} {100 * mean:+.1f}{_interval(low, high)}" for task, (mean, low, high, _) in gain_of.items()
    ]
    shares = {f"{100 * share:.3g} %" for share in result["steps_share"].values if share < 1}
    notes = [
        *(["one seed: no interval"] if seeds == 1 else []),
        *([f"{', '.join(sorted(shares))} of the published steps"] if shares else []),
        *[f"{NAMES[task]} left out" for task in NAMES if task not in gain_of],
    ]
    effect = f"SPT minus supervised, percentage points of test accuracy: {'; '.join(gain_texts)}" + (
        f" ({'; '.join(notes)})" if notes else ""
    )
    parts = tuple(
        Part(f"SPT helps on {NAMES[task]}", helps[task], text) for task, text in zip(gain_of, gain_texts, strict=True)
    )
    decision = verdict(list(helps.values()))
    return Conclusion("holds in part" if decision == "holds" and not complete else decision, effect, seeds, parts)


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"


def draw(result: xr.Dataset) -> Figure:
    """Draw the accuracies of the arms, one panel per task and one dot per seed."""
    drawn_tasks = [task for task in NAMES if task in result["task"]]
    with paper():
        figure = Page(figsize=(WIDTH, 2.3))
        axes = figure.subplots(1, len(drawn_tasks), sharey=True, squeeze=False)[0]
        for axis, task in zip(axes, drawn_tasks, strict=True):
            _panel(axis, result.sel(task=task))
            axis.set_title(f"{NAMES[task]}, n = {int(result['n'].sel(task=task).max()):,}")
        axes[0].set_ylabel("accuracy")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=5, handletextpad=0.5, columnspacing=1.4)
    return figure


_CHANCE = {"color": "black", "linewidth": 0.6, "linestyle": (0, (3, 2))}
_TICK = {"color": "black", "linewidth": 1.6}
_TRAIN_TICK = {"color": "black", "linewidth": 1.0, "linestyle": (0, (1, 1))}


def _panel(axis: Axes, result: xr.Dataset) -> None:
    seeds = result.sizes["seed"]
    axis.axhline(float(result["constant_accuracy"].mean()), zorder=0, **_CHANCE)
    for column, arm in enumerate(ARMS):
        selected, colour = result.sel(arm=arm), COLOURS[column]
        spread = [column + 0.12 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
        axis.scatter(spread, selected["train_accuracy"], s=16, facecolors="none", edgecolors=colour, linewidths=0.9)
        axis.scatter(spread, selected["test_accuracy"], s=16, color=colour, linewidths=0.9)
        for name, style in (("published_accuracy", _TICK), ("published_train_accuracy", _TRAIN_TICK)):
            axis.plot([column - 0.33, column + 0.33], [float(selected[name])] * 2, zorder=0.5, **style)
    axis.set(xlim=(-0.5, len(ARMS) - 0.5), ylim=(0, 1.04))
    axis.set_xticks(range(len(ARMS)), list(ARMS.values()))


def _legend() -> list[Line2D]:
    dot = {"marker": "o", "markersize": 4, "linestyle": "none", "color": "#555555"}
    return [
        Line2D([], [], label="test", **dot),
        Line2D([], [], label="train", markerfacecolor="none", **dot),
        Line2D([], [], label="published, test", **_TICK),
        Line2D([], [], label="published, train", **_TRAIN_TICK),
        Line2D([], [], label="best constant answer", **_CHANCE),
    ]


def caption(result: xr.Dataset) -> str:
    """Return the figure's caption, with steps, seeds, precision, hardware and missing tasks."""
    parts = []
    for task in (task for task in NAMES if task in result["task"]):
        selected = result.sel(task=task)
        long, short = (int(selected["steps"].sel(arm=arm).max()) for arm in ("supervised", "supervised short"))
        seeds = int(selected["test_accuracy"].sel(arm="spt").notnull().sum())
        parts.append(
            f"{NAMES[task]}: {long:,} and {short:,} steps "
            f"({100 * float(selected['steps_share']):.3g} % of the published steps), "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {selected['precision'].item()}, {_machines(selected)}"
        )
    absent = [NAMES[task] for task in NAMES if task not in result["task"]]
    missing = f" Left out: {', '.join(absent)}." if absent else ""
    return (
        "Accuracy at the end of training with SPT, with supervised training for the same number of steps, and with "
        "supervised training for the steps of SPT's second stage only. Filled: test. Open: training. One dot per seed. "
        "Published numbers: training from scratch, Tay et al. 2021. "
        f"{'; '.join(parts)}."
        f"{missing}"
    )


def _machines(result: xr.Dataset) -> str:
    return ", ".join(sorted({name for name in result["hardware"].values.ravel() if name}))


def progress(plan: Plan) -> pd.DataFrame:
    """Return the progress of each run, its steps per second, and the hours left at the rate of its task."""
    runs = {(task, seed, recipe): plan.run(task, recipe, seed) for task, seed in plan.comparisons for recipe in RECIPES}
    rows = []
    for (task, seed, recipe), run in runs.items():
        steps, state = plan.config(task, recipe, seed).steps, None if run.finished else run.latest
        done = steps if run.finished else state.step if state else 0
        usual = rate([noted(other.folder) for (name, _, _), other in runs.items() if name == task])
        rows.append(
            {
                "task": task,
                "seed": seed,
                "recipe": recipe,
                "step": done,
                "of": steps,
                "steps per second": rate([noted(run.folder)]),
                "hours left": (steps - done) / usual / 3600 if steps > done else 0.0,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Piece:
    """Train for some minutes, and write the result of all complete comparisons."""

    minutes: float | None = None
    """Minutes to train, over all runs; by default, train to the end."""
    device: str = "cpu"
    """Device to train on: cpu or cuda."""
    precision: Precision = "float32"
    """bf16 uses bfloat16 autocast."""
    steps_share: float = 1.0
    """Fraction of the published steps, in both stages and their warm-ups."""
    tasks: tuple[Name, ...] = tuple(NAMES)
    """Tasks, in this order."""
    seeds: tuple[int, ...] = SEEDS["default"]
    """Seeds; all tasks of one seed are trained before the next seed."""
    status: bool = False
    """Only print the progress of the runs."""

    def run(self) -> None:
        """Train, write and print; a failed run does not stop other comparisons and is reported at the end."""
        plan = Plan(self.tasks, self.seeds, self.steps_share, self.device, self.precision)
        failures = [] if self.status else self.train(plan)
        print(progress(plan).to_string(index=False, float_format="{:.3g}".format, na_rep="not measured"))
        if failures:
            raise UsageError("; ".join(failures))

    def train(self, plan: Plan) -> list[str]:
        """Train the comparisons in order, write the result after each, and return the failures."""
        lab, failures = Lab(device=self.device), []
        until = time.monotonic() + 60 * (math.inf if self.minutes is None else self.minutes)
        before = plan.complete
        if before:  # a killed piece may not have written its result
            keep(gather(plan), RESULT)
        for task, seed in [comparison for comparison in plan.comparisons if comparison not in before]:
            try:
                if advance(lab, plan, task, seed, until):
                    keep(gather(plan), RESULT)
            except UsageError as error:
                failures.append(str(error))
        return failures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; user errors print one line and exit with status 2."""
    try:
        tyro.cli(Piece, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)).run()
    except UsageError as error:
        print(f"full_lra: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
