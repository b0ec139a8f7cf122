"""``attnprobe demo``."""

import dataclasses
from pathlib import Path

import attnprobe as ap
from attnprobe.cli.parse import parse


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train both recipes on pairs (generated) and digits (real), and show what their scores learned."""

    out: Path = Path("runs/demo")
    """Folder for the runs and figures; finished runs in it are taken as they are."""
    seeds: int = 3
    """Seeds of each task and recipe."""
    workers: int = 2
    """Runs at a time, one thread each."""


def run(arguments: list[str]) -> None:
    """Run the demonstration."""
    flags = parse(Demo, "demo", arguments)
    ap.demo.demo(flags.out, flags.seeds, flags.workers)
