"""``attnprobe report``."""

import dataclasses
from pathlib import Path

import tyro

from attnprobe import report
from attnprobe.cli.parse import ReadsData, parse


@dataclasses.dataclass(frozen=True)
class Report(ReadsData):
    """Run every measure and write its figures and one HTML page, report.html."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """Checkpoint, or run folder: measures every checkpoint."""
    out: Path | None = None
    """Output folder; default: figures/NAME in the run or next to the checkpoint."""


def run(arguments: list[str]) -> None:
    """Write the report and print its path."""
    flags = parse(Report, "report", arguments)
    print(report.page.write_report(flags.path, flags.out or report.write.default_folder(flags.path)))
