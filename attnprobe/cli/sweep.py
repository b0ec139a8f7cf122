"""``attnprobe sweep``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

import attnprobe as ap
from attnprobe.cli.parse import ReadsData, parse
from attnprobe.cli.printing import print_table
from attnprobe.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sweep(ReadsData):
    """Train every combination of the settings in a file, each once, into one table; exit status 1 if some failed."""

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """TOML or YAML file: [base], the settings that all runs share, and [grid], lists of those that vary."""
    out: Path | None = None
    """Folder of the runs, sweep.json and sweep.csv; else the one that the file names, or runs/NAME-OF-THE-FILE."""
    workers: int | None = None
    """Runs at a time on this machine, one thread each; 1 by default."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run on the Ray cluster at this address (auto finds it on its own nodes), which shares the folder."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/K")] = None
    """Only every K-th run from run I on (0 ... K-1), as in the job arrays of SLURM."""
    status: bool = False
    """Only say how far the runs are."""


def run(arguments: list[str]) -> None:
    """Train what is missing, and say what came of it."""
    flags, sweeps = parse(Sweep, "sweep", arguments), ap.sweeps
    if flags.ray is not None and flags.workers is not None:
        raise UsageError(f"workers={flags.workers}: on a Ray cluster its CPUs say how many run at a time")
    plan = sweeps.read_sweep(flags.file, flags.out)
    cells = plan.shard(flags.shard)
    if not flags.status:
        sweeps.run_sweep(plan, cells, 1 if flags.workers is None else flags.workers, flags.ray)
    table = sweeps.look_at(cells)
    if flags.status:
        print_table(table[["folder", "status", "step", "steps"]].to_dict("records"))
    failed = table[table["status"] == "failed"]
    for folder, reason in zip(failed["folder"], failed["reason"], strict=True):
        print(f"failed: {folder}: {reason}")
    print(f"{plan.out}: {sweeps.summary(table)}")
    if not flags.status:
        print(f"table: {plan.out / 'sweep.csv'}, or attnprobe.open_sweep({str(plan.out)!r})")
        if len(failed):
            raise SystemExit(1)
