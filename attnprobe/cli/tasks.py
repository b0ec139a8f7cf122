"""``attnprobe tasks``."""

import dataclasses
import inspect
from typing import Annotated, Any

import tyro

from attnprobe import tasks
from attnprobe.cli.help import wrapped
from attnprobe.cli.parse import ReadsData, given, parse, with_fields
from attnprobe.cli.printing import print_json, print_line, print_table
from attnprobe.errors import UsageError, abridged
from attnprobe.tasks.facts import facts
from attnprobe.tasks.reading import Reading

SHOWN = 8
"""Items of a tuple that are printed."""
HEADINGS = {"vocabulary": "ids", "validation": "valid"}
"""Shorter headings of the table."""
BELOW = {"balance", "licence"}
"""Facts that are printed below the table."""
LEGEND = """chance: accuracy of always predicting the most frequent class
best: accuracy of the best possible classifier"""
MOST_CLASSES = 12
"""Number of classes whose shares are printed."""


@dataclasses.dataclass(frozen=True)
class Tasks(ReadsData):
    """List the tasks with their sizes, chance level and origin, or build one task and report its statistics."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TASK]")] = None
    """Task to build, or a file or folder of your own; lists all tasks if omitted."""
    task_options: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    """Task parameters that override the defaults, as NAME VALUE pairs (n 64 train_size 1000)."""
    json: bool = False
    """Print JSON."""


def with_reading() -> type[Tasks]:
    """Return the dataclass of all flags: those of the command, and those of reading your own data."""
    return with_fields(Tasks, Reading)


def run(arguments: list[str]) -> None:
    """Print the list of tasks, or the statistics of one task."""
    flags = parse(with_reading(), "tasks", arguments)
    options = flags.task_options | given(flags, Reading)
    if flags.name is not None:
        return _print_task(flags.name, options, flags.json)
    if options:
        raise UsageError("options of a task require its name: attnprobe tasks NAME ...")
    summaries = [_summary(name) for name in tasks.TASKS]
    rows, notes = [row for row, _ in summaries], [note for _, note in summaries]
    if flags.json:
        print_json([{**row, **note} for row, note in zip(rows, notes, strict=True)])
        return
    print_table([{HEADINGS.get(name, name): row[name] for name in row if name not in BELOW} for row in rows])
    for row, note in zip(rows, notes, strict=True):
        print()
        print(wrapped(f"{row['task']}: {note['what']}"))
        for name, fact in (
            ("from", note["origin"]),
            ("licence", "" if row["licence"] == "generated" else row["licence"]),
            ("shares of the classes", "" if row["balance"] == "equal" else row["balance"]),
            ("presets", ", ".join(note["presets"])),
        ):
            if fact:
                print(wrapped(f"  {name}: {fact}", indent="    "))
    print()
    print(LEGEND)


def _summary(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a task in the table, and its notes below the table."""
    kind = tasks.TASKS[name]
    source = kind()
    data, sizes = source.data, source.sizes
    size = {"n": data.n, "inputs": data.inputs, "vocabulary": data.vocabulary, "classes": data.classes}
    best = "unknown" if source.best_accuracy is None else f"{source.best_accuracy:.3f}"
    split = {"train": sizes["train"], "validation": sizes.get("validation", 0), "test": sizes["test"]}
    shares = "equal" if source.balance is None else f"{min(source.balance):.2f} ... {max(source.balance):.2f}"
    details = {"balance": shares, "chance": tasks.chance(source), "best": best, **split, "licence": source.licence}
    presets = [preset for preset, settings in tasks.PRESETS.items() if settings["task"] == name]
    description = (inspect.getdoc(kind) or "").split("\n")[0]
    return {"task": name, **size, **details}, {"what": description, "origin": source.origin, "presets": presets}


def _print_task(name: str, options: dict[str, Any], json: bool) -> None:
    source = tasks.source(name, options)
    task_facts = facts(source, source.build(0))
    if json:
        print_json(task_facts)
        return
    splits, notes = task_facts.pop("splits"), task_facts.pop("notes")
    task_facts |= {"best": task_facts["best"] or "unknown"}
    task_facts |= {"majority": f"{task_facts['majority']:.4g}, the share of the largest class in the test split"}
    for fact, value in task_facts.items():
        if value is not None:
            print_line(f"{fact:<12} {f'{value:.4g}' if isinstance(value, float) else _shown(value)}")
    for note in notes:
        print_line(note)
    print()
    print_table([_abridged(split) for split in splits])


def _abridged(split: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a split with the range of the class shares instead of the shares if there are many classes."""
    shares = {name: value for name, value in split.items() if name.startswith("class_")}
    if len(shares) <= MOST_CLASSES:
        return split
    rest = {name: value for name, value in split.items() if name not in shares}
    return {**rest, "smallest class": min(shares.values()), "largest class": max(shares.values())}


def _shown(value: Any) -> Any:
    """Return the first items of a long tuple."""
    if not isinstance(value, tuple):
        return value
    items = [f"{item:.4g}" if isinstance(item, float) else abridged(str(item)) for item in value[:SHOWN]]
    return ", ".join(items) + (f" ... ({len(value):,})" if len(value) > SHOWN else "")
