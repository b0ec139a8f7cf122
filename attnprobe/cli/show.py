"""``attnprobe show``."""

import dataclasses
from pathlib import Path

import tyro

from attnprobe.cli.parse import parse
from attnprobe.cli.printing import print_json, print_line, print_table
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


@dataclasses.dataclass(frozen=True)
class Show:
    """Show the contents of a checkpoint, or list the checkpoints of a run."""

    path: tyro.conf.Positional[Path]
    """Checkpoint or run folder."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> None:
    """Print the description of a checkpoint, or the table of a run's checkpoints."""
    flags = parse(Show, "show", arguments)
    if flags.path.is_dir():
        rows = [
            {"checkpoint": checkpoint.path, **checkpoint.last_metrics}
            for checkpoint in Run.open(flags.path).checkpoints
        ]
        if flags.json:
            print_json(rows)
        else:  # without the numbers of each class and channel
            print_table([{name: x for name, x in row.items() if not isinstance(x, list)} for row in rows])
        return
    description = load(flags.path).describe()
    if flags.json:
        print_json(description)
        return
    for section, facts in description.items():
        print_line(section)
        for name, value in facts.items():
            print_line(f"  {name:<20} {value}")
