"""``attnprobe show``."""

import dataclasses
from pathlib import Path

import tyro

from attnprobe.cli.parse import parse
from attnprobe.cli.printing import print_json, print_table
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


@dataclasses.dataclass(frozen=True)
class Show:
    """Show what a checkpoint holds, or which checkpoints a run has."""

    path: tyro.conf.Positional[Path]
    """A checkpoint or a run folder."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> None:
    """Print it."""
    flags = parse(Show, "show", arguments)
    if flags.path.is_dir():
        rows = [{"checkpoint": one.path, **one.last_metrics} for one in Run.open(flags.path).checkpoints]
        (print_json if flags.json else print_table)(rows)
        return
    described = load(flags.path).describe()
    if flags.json:
        print_json(described)
        return
    for section, facts in described.items():
        print(section)
        for name, value in facts.items():
            print(f"  {name:<20} {value}")
