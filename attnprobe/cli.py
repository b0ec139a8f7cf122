"""The command line: parsing and printing only.

Commands import what they need when they run, so that ``--help`` costs no torch. What the user can mend ends in one line
on standard error and exit status 2.
"""

import argparse
import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attnprobe import tasks
from attnprobe.config import TrainConfig, read_settings
from attnprobe.errors import UsageError
from attnprobe.measures import MEASURES

if TYPE_CHECKING:
    import xarray as xr

PROG = "attnprobe"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; raise ``SystemExit`` with status 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except UsageError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str) -> None:
    print(f"{PROG}: {message}", file=sys.stderr)
    raise SystemExit(2)


def _dispatch(arguments: list[str]) -> None:
    commands: dict[str, Callable[..., Any]] = {
        "demo": demo,
        "train": _train_command(arguments),
        "tasks": list_tasks,
        "show": show,
        **{name: _measure_command(name) for name in MEASURES},
    }
    # tyro reports a bad flag in a box of many lines and exits; that text is caught and told in one.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog=PROG,
                description="What did the query-key scores learn?",
                args=arguments or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _fail(_one_line(said.getvalue()))
    else:
        call()


def _deferred(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Return the command as a function of the same signature that hands back the call, to be made after parsing."""

    def parsed(*values: Any, **named: Any) -> Callable[[], Any]:
        return lambda: command(*values, **named)

    parsed.__signature__ = inspect.signature(command)  # pyright: ignore[reportFunctionMemberAccess]
    parsed.__annotations__ = {**command.__annotations__, "return": Any}
    parsed.__doc__, parsed.__name__ = command.__doc__, command.__name__
    return parsed


def _one_line(boxed: str) -> str:
    lines = [line.strip("│╭╮╰╯─ \n") for line in boxed.splitlines()[1:]]
    return " ".join(line for line in lines if line) or "the arguments cannot be read"


def demo(out: Path = Path("runs/demo"), seeds: int = 3, workers: int = 2) -> None:
    """Train both recipes on pairs (generated) and digits (real), and show what their scores learned.

    Args:
        out: Folder for the runs and figures; finished runs in it are taken as they are.
        seeds: Seeds of each task and recipe.
        workers: Runs at a time, one thread each.
    """
    from attnprobe.demo import demo as run_demo

    run_demo(out, seeds, workers)


def list_tasks(json: bool = False) -> None:  # noqa: A002
    """List the tasks with what a reader needs to judge a number.

    Args:
        json: Print JSON.
    """
    rows, notes = [], []
    for name, kind in tasks.TASKS.items():
        source = kind()
        data, (train, test) = source.data, source.sizes
        facts = {"task": name, "n": data.n, "inputs": data.inputs, "vocabulary": data.vocabulary, "classes": data.classes}
        rows.append({**facts, "chance": 1 / data.classes, "train": train, "test": test, "licence": source.licence})
        notes.append({"what": (inspect.getdoc(kind) or "").split("\n")[0], "origin": source.origin})
    if json:
        _print_json([{**row, **note} for row, note in zip(rows, notes, strict=True)])
        return
    _print_rows(rows, json)
    for row, note in zip(rows, notes, strict=True):
        print(f"\n{row['task']}: {note['what']}\n  from: {note['origin']}")


def show(path: tyro.conf.Positional[Path], json: bool = False) -> None:  # noqa: A002
    """Show what a checkpoint holds, or which checkpoints a run has.

    Args:
        path: A checkpoint or a run folder.
        json: Print JSON.
    """
    from attnprobe.checkpoint import load
    from attnprobe.run import Run

    if path.is_dir():
        rows = [{"checkpoint": one.path, **one.last_metrics} for one in Run.open(path).checkpoints]
        _print_rows(rows, json)
        return
    described = load(path).describe()
    if json:
        _print_json(described)
        return
    for section, facts in described.items():
        print(section)
        for name, value in facts.items():
            print(f"  {name:<20} {value}")


def _train_command(arguments: list[str]) -> Callable[..., Any]:
    """Return the training command, its flags preset from the task's own settings and from ``--config``."""
    preset = TrainConfig()
    if arguments[:1] == ["train"]:
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        early.add_argument("--task")
        early.add_argument("--config")
        with contextlib.suppress(argparse.ArgumentError):  # tyro will say what is wrong
            found, _ = early.parse_known_args(arguments[1:])
            named = read_settings(found.config) if found.config else {}
            named |= {"task": found.task} if found.task else {}
            task = named.pop("task", preset.task)
            preset = tasks.configure(task, **named)

    def train(
        settings: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = preset,
        out: Path | None = None,
        config: Path | None = None,
    ) -> None:
        """Train a network with one of the two recipes; every setting is a flag.

        Args:
            settings: Task, recipe, network and optimisation.
            out: Run folder; runs/TASK-RECIPE-SEED where none is named.
            config: TOML or YAML file with the same settings; flags win over it.
        """
        from attnprobe.training import train as run_training

        # Flags of task parameters were checked by type only; this checks them against the task.
        tasks.source(settings.task, settings.task_options)
        run = run_training(settings, out)
        last = run.metrics[-1]
        print(f"{run.folder}: train accuracy {last['train_accuracy']}, test accuracy {last['test_accuracy']}")
        print(f"next: {PROG} proximity {run.folder}")

    return train


def _measure_command(name: str) -> Callable[..., Any]:
    """Return the command of a measure: path and output flags, and the measure's own keywords as flags."""
    measure = MEASURES[name]
    options = [
        parameter for parameter in inspect.signature(measure).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY
    ]

    def command(path: Path, out: Path | None = None, json: bool = False, **named: Any) -> None:  # noqa: A002
        from attnprobe import report
        from attnprobe.checkpoint import load
        from attnprobe.run import Run

        folder = out or report.default_folder(path)
        if path.is_dir():
            result = report.write_run(name, Run.open(path), folder, named, progress=not json)
            last = result.isel(step=-1)
        else:
            result = last = report.write_checkpoint(name, load(path), folder, named)
        if json:
            _print_json(_head_rows(result))
            return
        print(last.attrs.get("title", last.attrs.get("run_title")))
        _print_rows(_head_rows(last), json)
        print(f"figures and results: {folder}")

    own = {parameter.name: parameter.annotation for parameter in options}
    command.__name__ = name
    command.__doc__ = _command_help(measure)
    command.__annotations__ = {
        "path": tyro.conf.Positional[Path],
        "out": Path | None,
        "json": bool,
        **own,
    }
    common = [
        parameter.replace(annotation=command.__annotations__[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "named"
    ]
    command.__signature__ = inspect.Signature([*common, *options])  # pyright: ignore[reportFunctionMemberAccess]
    return command


def _command_help(measure: Callable[..., Any]) -> str:
    """Return the help of a measure's command: its first line, the common arguments and its own."""
    said = inspect.getdoc(measure) or ""
    own = said.partition("Args:\n")[2].splitlines()[1:]  # without the checkpoint, whose place the path takes
    common = [
        "    path: A checkpoint, or a run folder: then every checkpoint, and the evolution over steps.",
        "    out: Folder for the result (.nc) and the figures (.png, .pdf); figures/NAME beside the checkpoint, or in the run.",
        "    json: Print the table as JSON.",
    ]
    return "\n".join([said.splitlines()[0], "", "Args:", *common, *own])


def _head_rows(result: "xr.Dataset") -> list[dict[str, Any]]:
    """Return one row a head (and step) of every number that a head has one of."""
    flat_axes = {"step", "layer", "head"}
    numbers = [name for name, one in result.items() if {"layer", "head"} <= set(one.dims) <= flat_axes]
    table = result[numbers].to_dataframe().reset_index()
    for name in ("near_mass", "grid_near_mass"):
        if name in result:
            for within in result["within"].values.tolist():
                table[f"{name}_{within}"] = result[name].sel(within=within).to_series().reset_index(drop=True)
    return table.drop(columns=["within"], errors="ignore").to_dict("records")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    import pandas as pd

    table = pd.DataFrame(rows)
    if len(table.columns) > 12:  # one column a row reads better than a line that wraps
        print(table.T.to_string(header=False, float_format=lambda number: f"{number:.3f}"))
    else:
        print(table.to_string(index=False, float_format=lambda number: f"{number:.3f}"))


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1, default=str))
