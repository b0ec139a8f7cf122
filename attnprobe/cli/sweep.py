"""``attnprobe sweep``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

import attnprobe as ap
from attnprobe.cli.parse import ReadsData, ShowsProgress, parse
from attnprobe.cli.printing import print_table
from attnprobe.errors import UsageError
from attnprobe.progress import silenced


@dataclasses.dataclass(frozen=True)
class Sweep(ReadsData, ShowsProgress):
    """Train every combination of the settings in a file once, and collect the results; exit status 1 if a run fails."""

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """TOML or YAML file with the shared settings in [base] and lists of the varied settings in [grid]."""
    out: Path | None = None
    """Folder of the runs, sweep.json and sweep.csv; by default that of the file, or runs/FILE-NAME."""
    workers: int | None = None
    """Number of concurrent runs on this machine, one thread each; 1 by default."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run on the Ray cluster at this address (auto on a node of the cluster); it must share the folder."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/K")] = None
    """Train only every K-th run, starting at run I (0 ... K-1), for instance in a SLURM job array."""
    status: bool = False
    """Only print the progress of the runs."""


def run(arguments: list[str]) -> None:
    """Train the missing runs and print a summary."""
    flags, sweeps = parse(Sweep, "sweep", arguments), ap.sweeps
    if flags.ray is not None and flags.workers is not None:
        raise UsageError(f"workers={flags.workers}: on a Ray cluster, its CPUs set the number of concurrent runs")
    plan = sweeps.read_sweep(flags.file, flags.out)
    cells = plan.shard(flags.shard)
    if not flags.status:
        with silenced(flags.quiet):
            sweeps.run_sweep(plan, cells, 1 if flags.workers is None else flags.workers, flags.ray)
    table = sweeps.sweep_table(cells)
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
