"""``attnprobe tasks``."""

import dataclasses
import inspect
from typing import Annotated, Any

import tyro

from attnprobe import tasks
from attnprobe.cli.parse import ReadsData, parse
from attnprobe.cli.printing import print_json, print_table
from attnprobe.errors import UsageError
from attnprobe.tasks.facts import facts


@dataclasses.dataclass(frozen=True)
class Tasks(ReadsData):
    """List the tasks with what a reader needs to judge a number; or build one and count what is in it."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TASK]")] = None
    """A task, or a file of your own (.npz): it is built, and the facts are measured."""
    task_options: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    """Parameters of the task that differ from its own, as NAME VALUE pairs (n 64 train_size 1000)."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> None:
    """Print the list, or the facts of one task."""
    flags = parse(Tasks, "tasks", arguments)
    if flags.name is not None:
        return _one(flags.name, flags.task_options, flags.json)
    if flags.task_options:
        raise UsageError("--task-options belong to one task: name it")
    rows, notes = zip(*(_listed(name) for name in tasks.TASKS), strict=True)
    if flags.json:
        print_json([{**row, **note} for row, note in zip(rows, notes, strict=True)])
        return
    print_table(rows)
    for row, note in zip(rows, notes, strict=True):
        print(f"\n{row['task']}: {note['what']}\n  from: {note['origin']}")
        if note["presets"]:
            print(f"  presets: {', '.join(note['presets'])}")


def _listed(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a task, and what is said of it below the table."""
    kind = tasks.TASKS[name]
    source = kind()
    data, sizes = source.data, source.sizes
    size = {"n": data.n, "inputs": data.inputs, "vocabulary": data.vocabulary, "classes": data.classes}
    best = "unknown" if source.best_accuracy is None else f"{source.best_accuracy:.3f}"
    split = {"train": sizes["train"], "validation": sizes.get("validation", 0), "test": sizes["test"]}
    shares = "equal" if source.balance is None else f"{min(source.balance):.2f} ... {max(source.balance):.2f}"
    known = {"balance": shares, "chance": tasks.chance(source), "best": best, **split, "licence": source.licence}
    presets = [preset for preset, named in tasks.PRESETS.items() if named["task"] == name]
    what = (inspect.getdoc(kind) or "").split("\n")[0]
    return {"task": name, **size, **known}, {"what": what, "origin": source.origin, "presets": presets}


def _one(name: str, options: dict[str, Any], json: bool) -> None:
    source = tasks.source(name, options)
    found = facts(source, source.build(0))
    if json:
        print_json(found)
        return
    splits = found.pop("splits")
    for fact, value in {**found, "best": found["best"] or "unknown"}.items():
        if value is not None:
            print(f"{fact:<12} {value}")
    print()
    print_table(splits)
