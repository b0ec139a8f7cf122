"""``attnprobe demo``."""

import dataclasses
from pathlib import Path

import attnprobe as ap
from attnprobe.cli.parse import parse


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train both recipes on pairs (generated) and digits-canvas (real) and compare what their scores learned."""

    out: Path = Path("runs/demo")
    """Folder for runs and figures; finished runs in it are reused."""
    quick: bool = False
    """Only pairs and one seed: under a minute."""
    seeds: int | None = None
    """Number of seeds per task and recipe; 3 by default, 1 with --quick."""
    workers: int = 2
    """Number of concurrent runs, one thread each."""


def run(arguments: list[str]) -> None:
    """Run the demonstration."""
    flags = parse(Demo, "demo", arguments)
    seeds = flags.seeds if flags.seeds is not None else 1 if flags.quick else 3
    ap.demo.demo(flags.out, seeds, flags.workers, flags.quick)
