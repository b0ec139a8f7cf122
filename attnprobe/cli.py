"""The command line: parsing and printing only.

Commands import what they need when they run, so that ``--help`` costs no torch. What the user can mend ends in one line
on standard error and exit status 2.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import json
import math
import operator
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import docstring_parser
import tyro

from attnprobe import tasks
from attnprobe.config import TrainConfig, read_settings
from attnprobe.errors import UsageError
from attnprobe.measures import MEASURES
from attnprobe.tasks.folder import VARIABLE
from attnprobe.trackers import Log

PROG = "attnprobe"
ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")
BESIDE_RESUME = ("--log", "--minutes", "--help", "-h")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; raise ``SystemExit`` with status 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except UsageError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever read the output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str) -> None:
    print(f"{PROG}: {message}", file=sys.stderr)
    raise SystemExit(2)


def _dispatch(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(importlib.metadata.version(PROG))
        return
    begun = _preset(arguments)
    commands = {
        "demo": (Demo, None),
        # Beside options that are there already tyro would take no others.
        "train": (Train, Train(settings=dataclasses.replace(begun, task_options={}))),
        "sweep": (Sweep, None),
        "tasks": (Tasks, None),
        "show": (Show, None),
        "report": (Report, None),
        **{name: (_measure_command(name), None) for name in MEASURES},
    }
    subcommands = tuple(
        Annotated[kind, tyro.conf.subcommand(name, **({} if default is None else {"default": default}))]
        for name, (kind, default) in commands.items()
    )
    # tyro reports a bad flag in a box of many lines and exits; that text is caught and told in one.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Any = tyro.cli(
                cast(Any, functools.reduce(operator.or_, subcommands)),
                prog=PROG,
                description="What did the query-key scores learn?",
                args=arguments or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _fail(_one_line(said.getvalue()))
    else:
        if isinstance(command, Train):  # a flag names single options of the task; the others stay
            options = {**begun.task_options, **command.settings.task_options}
            settings = dataclasses.replace(command.settings, task_options=options)
            command = dataclasses.replace(command, settings=settings)
        if getattr(command, "data", None) is not None:
            os.environ[VARIABLE] = str(command.data)  # for worker processes as well
        command.run()


def _one_line(boxed: str) -> str:
    """Return what tyro says in its box: without frame and title, up to the part that repeats the help."""
    inside = [line.strip("│| \n") for line in boxed.splitlines()[1:]]
    text = " ".join(line for line in inside if re.search(r"\w", line))
    text = re.split(r" *(?:For full helptext|Argument helptext|Perhaps you meant|in attnprobe )", text)[0]
    # What a settings dataclass says of itself needs no word of where in the parser it stands.
    return re.sub(r"^Error parsing [\w.-]*settings[\w.]*: ", "", text) or "the arguments cannot be read"


@dataclass(frozen=True)
class Demo:
    """Train both recipes on pairs (generated) and digits (real), and show what their scores learned."""

    out: Path = Path("runs/demo")
    """Folder for the runs and figures; finished runs in it are taken as they are."""
    seeds: int = 3
    """Seeds of each task and recipe."""
    workers: int = 2
    """Runs at a time, one thread each."""

    def run(self) -> None:
        """Run the demonstration."""
        from attnprobe.demo import demo

        demo(self.out, self.seeds, self.workers)


@dataclass(frozen=True)
class ReadsData:
    """What the commands share that need the data of a task."""

    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Data folder: archives are read there and data made once are kept there; ATTNPROBE_DATA, or your cache folder."""


@dataclass(frozen=True)
class Train(ReadsData):
    """Train a network with one of the two recipes; every setting is a flag."""

    settings: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)
    out: Path | None = None
    """Run folder; runs/TASK-RECIPE-SEED where none is named."""
    preset: str | None = None
    """Settings to start from, under a name: amos-image, small-listops, ...; `attnprobe tasks` lists them."""
    config: Path | None = None
    """TOML or YAML file with the same settings, and perhaps a preset; flags win over it."""
    resume: Path | None = None
    """Continue the run in this folder, with its own settings; a finished one is left alone."""
    log: tuple[Log, ...] = ()
    """Trackers that get the metrics too, in the run folder (wandb: WANDB_MODE=offline needs no account)."""
    minutes: float | None = None
    """Save the state and stop after so many minutes of training; --resume goes on."""

    def run(self) -> None:
        """Train, and say where the run is."""
        from attnprobe import training
        from attnprobe.processes import writes_here

        if self.resume is None:
            run = training.train(self.settings, self.out, log=self.log, minutes=self.minutes)
        else:
            run = training.resume(self.resume, log=self.log, minutes=self.minutes)
        if not writes_here():
            return
        if not run.finished:
            print(f"{run.folder}: stopped after {self.minutes:g} minutes\nnext: {PROG} train --resume {run.folder}")
            return
        last = run.metrics[-1]
        shown = ", ".join(
            f"{name.replace('_', ' ')} {last[name]:.3f}" for name in ACCURACIES if last.get(name) is not None
        )
        print(f"{run.folder}: {last['objective']} {shown}\nnext: {PROG} proximity {run.folder}")


@dataclass(frozen=True)
class Sweep(ReadsData):
    """Train every combination of the settings in a file, each once, into one table; exit status 1 where some failed."""

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """TOML or YAML file: [base], the settings that all runs share, and [grid], lists of those that vary."""
    out: Path | None = None
    """Folder of the runs, sweep.json and sweep.csv; else the one that the file names, or runs/NAME-OF-THE-FILE."""
    workers: int | None = None
    """Runs at a time on this machine, one thread each; 1 where nothing is named."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run on the Ray cluster at this address (auto finds it on its own nodes), which shares the folder."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/K")] = None
    """Only every K-th run from run I on (0 ... K-1), as in the job arrays of SLURM."""
    status: bool = False
    """Only say how far the runs are."""

    def run(self) -> None:
        """Train what is missing, and say what came of it."""
        from attnprobe import sweeps

        if self.ray is not None and self.workers is not None:
            raise UsageError(f"workers={self.workers}: on a Ray cluster its CPUs say how many run at a time")
        plan = sweeps.read_sweep(self.file, self.out)
        cells = plan.shard(self.shard)
        if not self.status:
            sweeps.run_sweep(plan, cells, 1 if self.workers is None else self.workers, self.ray)
        table = sweeps.look_at(cells)
        if self.status:
            print(table[["folder", "status", "step", "steps"]].to_string(index=False))
        failed = table[table["status"] == "failed"]
        for folder, reason in zip(failed["folder"], failed["reason"], strict=True):
            print(f"failed: {folder}: {reason}")
        print(f"{plan.out}: {sweeps.summary(table)}")
        if not self.status:
            print(f"table: {plan.out / 'sweep.csv'}, or attnprobe.open_sweep({str(plan.out)!r})")
            if len(failed):
                raise SystemExit(1)


def _preset(arguments: list[str]) -> TrainConfig:
    """Return what the training flags start from: the settings of the task or preset, and over them those of a file."""
    if arguments[:1] != ["train"]:
        return TrainConfig()
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--task")
    early.add_argument("--config")
    early.add_argument("--preset")
    early.add_argument("--recipe")
    early.add_argument("--steps")
    early.add_argument("--resume")
    early.add_argument("--data")
    try:
        found, rest = early.parse_known_args(arguments[1:])
    except argparse.ArgumentError:  # tyro will say what is wrong
        return TrainConfig()
    if found.data:
        os.environ[VARIABLE] = found.data  # the file of the task may be there
    if found.resume:
        named = ("task", "config", "preset", "recipe", "steps")
        flags = [f"--{name}" for name in named if getattr(found, name)]
        flags += [flag for one in rest if (flag := one.split("=")[0]).startswith("-") and flag not in BESIDE_RESUME]
        if flags:
            raise UsageError(f"--resume continues a run with its own settings: {flags[0]} cannot be given beside it")
    named = read_settings(found.config) if found.config else {}
    flags = {name: getattr(found, name) for name in ("task", "preset", "recipe") if getattr(found, name)}
    if (found.steps or "").isdigit():  # else tyro will say what is wrong
        flags["steps"] = int(found.steps)
    return tasks.configure(**{**named, **flags})


@dataclass(frozen=True)
class Tasks(ReadsData):
    """List the tasks with what a reader needs to judge a number; or build one and count what is in it."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TASK]")] = None
    """A task, or a file of your own (.npz): it is built, and the facts are measured."""
    task_options: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    """Parameters of the task that differ from its own, as NAME VALUE pairs (n 64 train_size 1000)."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print the list, or the facts of one task."""
        if self.name is not None:
            return self._one(self.name)
        if self.task_options:
            raise UsageError("--task-options belong to one task: name it")
        rows, notes = [], []
        for name, kind in tasks.TASKS.items():
            source = kind()
            data, sizes = source.data, source.sizes
            size = {"n": data.n, "inputs": data.inputs, "vocabulary": data.vocabulary, "classes": data.classes}
            best = "unknown" if source.best_accuracy is None else f"{source.best_accuracy:.3f}"
            split = {"train": sizes["train"], "validation": sizes.get("validation", 0), "test": sizes["test"]}
            shares = "equal" if source.balance is None else f"{min(source.balance):.2f} ... {max(source.balance):.2f}"
            facts = {
                "balance": shares,
                "chance": tasks.chance(source),
                "best": best,
                **split,
                "licence": source.licence,
            }
            rows.append({"task": name, **size, **facts})
            presets = [preset for preset, named in tasks.PRESETS.items() if named["task"] == name]
            what = (inspect.getdoc(kind) or "").split("\n")[0]
            notes.append({"what": what, "origin": source.origin, "presets": presets})
        if self.json:
            _print_json([{**row, **note} for row, note in zip(rows, notes, strict=True)])
            return
        _print_table(rows)
        for row, note in zip(rows, notes, strict=True):
            print(f"\n{row['task']}: {note['what']}\n  from: {note['origin']}")
            if note["presets"]:
                print(f"  presets: {', '.join(note['presets'])}")

    def _one(self, name: str) -> None:
        from attnprobe.tasks.facts import facts

        source = tasks.source(name, self.task_options)
        found = facts(source, source.build(0))
        if self.json:
            _print_json(found)
            return
        splits = found.pop("splits")
        for fact, value in {**found, "best": found["best"] or "unknown"}.items():
            if value is not None:
                print(f"{fact:<12} {value}")
        print()
        _print_table(splits)


@dataclass(frozen=True)
class Show:
    """Show what a checkpoint holds, or which checkpoints a run has."""

    path: tyro.conf.Positional[Path]
    """A checkpoint or a run folder."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print it."""
        from attnprobe.checkpoint import load
        from attnprobe.run import Run

        if self.path.is_dir():
            rows = [{"checkpoint": one.path, **one.last_metrics} for one in Run.open(self.path).checkpoints]
            (_print_json if self.json else _print_table)(rows)
            return
        described = load(self.path).describe()
        if self.json:
            _print_json(described)
            return
        for section, facts in described.items():
            print(section)
            for name, value in facts.items():
                print(f"  {name:<20} {value}")


@dataclass(frozen=True)
class Report(ReadsData):
    """Write every measure with its figures, and one page (report.html) with a section for each."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """A checkpoint, or a run folder: then every checkpoint."""
    out: Path | None = None
    """Folder for it all; figures/NAME beside the checkpoint, or in the run."""

    def run(self) -> None:
        """Write it."""
        from attnprobe import report

        print(report.write_report(self.path, self.out or report.default_folder(self.path)))


@dataclass(frozen=True)
class Measure(ReadsData):
    """What the commands of all measures share; each adds its measure's keywords as fields."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """A checkpoint; or a run folder: then every checkpoint, and the evolution over steps."""
    out: Path | None = None
    """Folder for the result (.nc) and the figures (.png, .pdf); figures/NAME beside the checkpoint, or in the run."""
    json: bool = False
    """Print the table as JSON."""

    def measure(self, name: str) -> None:
        """Measure, write and print."""
        from attnprobe import report
        from attnprobe.checkpoint import load
        from attnprobe.run import Run

        common = {one.name for one in dataclasses.fields(Measure)}
        options = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name not in common}
        folder = self.out or report.default_folder(self.path)
        if self.path.is_dir():
            result = report.write_run(name, Run.open(self.path), folder, options, progress=not self.json)
            last = result.isel(step=-1)
        else:
            result = last = report.write_checkpoint(name, load(self.path), folder, options)
        if self.json:
            _print_json(report.whole_rows(result) + report.head_rows(result))
            return
        print(last.attrs.get("title", last.attrs.get("run_title")))
        _print_numbers(last)
        print(f"\nfigures and results: {folder}")


def _measure_command(name: str) -> type[Measure]:
    """Return the command of a measure: its keywords are the flags, its docstring their help."""
    measure = MEASURES[name]
    said = docstring_parser.parse(measure.__doc__ or "")
    helps = {one.arg_name: one.description for one in said.params}
    fields = [
        (
            one.name,
            Annotated[one.annotation, tyro.conf.arg(help=helps[one.name])],
            dataclasses.field(default=one.default),
        )
        for one in inspect.signature(measure).parameters.values()
        if one.kind is one.KEYWORD_ONLY
    ]
    command = dataclasses.make_dataclass(
        name, fields, bases=(Measure,), namespace={"run": lambda self: self.measure(name)}, frozen=True
    )
    command.__doc__ = said.short_description
    return command


def _print_numbers(result: Any) -> None:
    """Print the numbers of the whole network, and a table a head: with intervals and the ranges of the nulls."""
    from attnprobe import report

    for row in report.whole_rows(result):
        if lines := report.table(row):
            print("\nwhole network")
            _print_table(lines)
    for row in report.shown_rows(result):
        print(f"\nlayer {row['layer']}, head {row['head']}")
        _print_table(report.table(row))
        notes = [
            f"{name.replace('_', ' ')}: {value}" for name, value in row.items() if isinstance(value, str) and value
        ]
        print(*notes, sep="\n", end="\n" if notes else "")


def _print_table(rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    shown = {"float_format": "{:.3f}".format, "formatters": {"rate": "{:.1e}".format}}
    print(pd.DataFrame(rows).to_string(index=False, **shown))


def _print_json(content: Any) -> None:
    print(json.dumps(_without_nan(content), indent=1, default=str, allow_nan=False))


def _without_nan(content: Any) -> Any:
    """Return the content with null for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
