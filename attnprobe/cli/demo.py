"""``attnprobe demo``."""

import dataclasses
from pathlib import Path

import attnprobe as ap
from attnprobe.cli.parse import parse


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train both recipes on pairs (generated) and digits (real) and compare what their scores learned."""

    out: Path = Path("runs/demo")
    """Folder for runs and figures; finished runs in it are reused."""
    seeds: int = 3
    """Number of seeds per task and recipe."""
    workers: int = 2
    """Number of concurrent runs, one thread each."""


def run(arguments: list[str]) -> None:
    """Run the demonstration."""
    flags = parse(Demo, "demo", arguments)
    ap.demo.demo(flags.out, flags.seeds, flags.workers)
