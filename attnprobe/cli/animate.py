"""``attnprobe animate``."""

import dataclasses
import sys
from pathlib import Path

import tyro

from attnprobe import report
from attnprobe.cli.parse import ReadsData, ShowsProgress, parse
from attnprobe.errors import UsageError, choices
from attnprobe.figures.animation import animate, check
from attnprobe.figures.style import WIDTH
from attnprobe.progress import bar, silenced
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


@dataclasses.dataclass(frozen=True)
class Animate(ReadsData, ShowsProgress):
    """Measure every checkpoint of a run and write its figures as an animation over the steps."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """Run folder."""
    measure: str = "proximity"
    """Measure to draw."""
    out: Path | None = None
    """File to write, .gif or .mp4 (which needs ffmpeg); default: figures/MEASURE.gif in the run folder."""
    seconds: float = 0.5
    """Seconds per checkpoint; the last one stays four times as long."""
    width: float = WIDTH
    """Width in inches."""
    sequences: int = 256
    """Number of test sequences."""
    nulls: int = 8
    """Number of draws of each null; fewer are faster."""


def run(arguments: list[str]) -> None:
    """Write the animation and print its path."""
    flags = parse(Animate, "animate", arguments)
    if flags.measure not in MEASURES:
        raise UsageError(f"--measure {flags.measure} is unknown; {choices(flags.measure, MEASURES)}")
    run = Run.open(flags.path)
    path = flags.out or report.write.default_folder(run.folder) / f"{flags.measure}.gif"
    check(path, flags.seconds)
    report.write.prepare(path.parent)
    results, options = [], {"sequences": flags.sequences, "nulls": flags.nulls}
    paths, shown = run.checkpoint_paths, sys.stderr.isatty()  # else each measure prints its progress alone
    with silenced(flags.quiet), bar(len(paths), flags.measure, "checkpoint", shown=shown) as done:
        for checkpoint in paths:
            results.append(MEASURES[flags.measure](load(checkpoint), **options))
            done.update()
    print(animate(results, path, width=flags.width, seconds=flags.seconds))
