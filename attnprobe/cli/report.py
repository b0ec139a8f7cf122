"""``attnprobe report``."""

import dataclasses
from pathlib import Path

import tyro

from attnprobe import report
from attnprobe.cli.parse import ReadsData, parse


@dataclasses.dataclass(frozen=True)
class Report(ReadsData):
    """Write every measure with its figures, and one page (report.html) with a section for each."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """A checkpoint, or a run folder: then every checkpoint."""
    out: Path | None = None
    """Folder for it all; figures/NAME beside the checkpoint, or in the run."""


def run(arguments: list[str]) -> None:
    """Write it."""
    flags = parse(Report, "report", arguments)
    print(report.page.write_report(flags.path, flags.out or report.write.default_folder(flags.path)))
