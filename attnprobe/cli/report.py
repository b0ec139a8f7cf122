"""``attnprobe report``."""

import dataclasses
from pathlib import Path

import tyro

from attnprobe import report
from attnprobe.cli.parse import ReadsData, parse


@dataclasses.dataclass(frozen=True)
class Report(ReadsData):
    """Run every measure on runs or checkpoints, and write one interactive page, report.html, with results and figures.

    The page opens without a network and shows several runs side by side.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]] = dataclasses.field(kw_only=True)
    """Run folders (every checkpoint is measured) or checkpoints."""
    out: Path | None = None
    """Output folder; default: figures/NAME in the run or next to the checkpoint."""
    sequences: int = 256
    """Number of test sequences of every measure."""
    nulls: int = 8
    """Number of draws of each null of every measure; fewer are faster."""


def run(arguments: list[str]) -> None:
    """Write the report and print its path."""
    flags = parse(Report, "report", arguments)
    options = {"sequences": flags.sequences, "nulls": flags.nulls}
    print(report.page.write_report(flags.paths, flags.out, **options))
