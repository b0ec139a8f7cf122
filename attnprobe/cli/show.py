"""``attnprobe show``."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from attnprobe.cli.parse import parse
from attnprobe.cli.printing import print_json, print_line, print_table
from attnprobe.errors import UsageError
from attnprobe.tables import OBJECTIVES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


@dataclasses.dataclass(frozen=True)
class Show:
    """Show the contents of a checkpoint, or list the checkpoints of a run."""

    path: tyro.conf.Positional[Path]
    """Checkpoint or run folder."""
    step: int | None = None
    """Step of a checkpoint of the run to show."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> None:
    """Print the description of a checkpoint, or the tables of a run's checkpoints."""
    flags = parse(Show, "show", arguments)
    if flags.step is not None and not flags.path.is_dir():
        raise UsageError(f"--step {flags.step}: is for run folders, not {flags.path}")
    if flags.path.is_dir() and flags.step is None:
        _print_run(Run.open(flags.path), flags.json)
        return
    checkpoint = load(flags.path) if flags.step is None else Run.open(flags.path).at(flags.step)
    description = checkpoint.describe()
    if flags.json:
        print_json(description)
        return
    for section, facts in description.items():
        print_line(section)
        for name, value in facts.items():
            print_line(f"  {name:<20} {f'{value:.6g}' if isinstance(value, float) else value}")


def _print_run(run: Run, json: bool) -> None:
    """Print one row per checkpoint, in one table per objective: their accuracies and losses mean different things."""
    checkpoints = run.checkpoints
    if json:
        print_json([{"checkpoint": checkpoint.path, **checkpoint.last_metrics} for checkpoint in checkpoints])
        return
    for objective in dict.fromkeys(checkpoint.last_metrics.get("objective") for checkpoint in checkpoints):
        rows = [{"step": checkpoint.step, **checkpoint.last_metrics} for checkpoint in checkpoints]
        rows = [_row(row) for row in rows if row.get("objective") == objective]
        print_line("no metrics" if objective is None else f"{objective}: {OBJECTIVES[objective].noun} accuracy")
        print_table(rows)
        print()
    print_line(f"attnprobe show {run.folder} --step STEP: settings and provenance of a checkpoint")


def _row(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics without the objective, and without the numbers of each class and channel."""
    return {name: x for name, x in metrics.items() if name != "objective" and not isinstance(x, list)}
