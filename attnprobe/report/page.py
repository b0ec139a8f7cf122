"""Measure runs and checkpoints with every measure, and write the page report.html."""

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from attnprobe.errors import UsageError, listed
from attnprobe.explore.page import Subject, page, provenance_text
from attnprobe.figures import draw_over_steps, pages
from attnprobe.files import Unwritable, write_atomic, writing
from attnprobe.progress import bar
from attnprobe.report.write import default_folder, joined_over_steps, prepare, write_figure
from attnprobe.results import save
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.run import Run


def write_report(
    paths: Path | Sequence[Path], folder: Path | None = None, progress: bool = True, **options: Any
) -> Path:
    """Run every measure on runs or checkpoints, and write results, figures and the page report.html.

    The page shows them side by side, and needs neither other files nor a network. Written beside it: the results
    (MEASURE.nc, for a run MEASURE_over_steps.nc) and their figures (.png, .pdf). If a measure does not apply to a
    network, its section has the reason.

    Args:
        paths: Run folders, of which every checkpoint is measured, or checkpoint files.
        folder: Folder for all files, created if it does not exist; for several paths, each has a subfolder with its
            name. By default `default_folder` of each path, with the page in that of the first.
        progress: Show a progress bar over all measures of all checkpoints.
        options: Keyword arguments of all measures, such as ``sequences`` and ``nulls``.

    Returns:
        Path of report.html.

    Raises:
        UsageError: If there is no path, or a file cannot be read or written.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    if not paths:
        raise UsageError("report: needs at least one run or checkpoint")
    opened = [_open(path) for path in paths]
    paths = [path if run is None else run.folder for path, (run, _) in zip(paths, opened, strict=True)]
    names = _names(paths)
    folders = [_folder(path, name, folder, len(paths)) for path, name in zip(paths, names, strict=True)]
    place = folders[0] if folder is None else folder
    for one in (place, *folders):
        prepare(one)
    for one in (place, *folders):
        with writing(one):
            one.mkdir(parents=True, exist_ok=True)
    total = len(MEASURES) * sum(len(checkpoints) for _, checkpoints in opened)
    subjects = []
    with bar(total, "report", "measure", shown=progress, leave=False, delay=2) as done:
        for name, (run, checkpoints), own_folder in zip(names, opened, folders, strict=True):
            subjects.append(_subject(name, run, checkpoints, own_folder, done.update, options))
    results = [result for subject in subjects for result in subject.results.values()]
    command = shlex.join(["attnprobe", "report", *map(str, paths)])
    content = page(
        ", ".join(names),
        f"{len(paths)} runs or checkpoints, all measures" if len(paths) > 1 else "all measures",
        subjects,
        {name: (inspect.getdoc(measure) or "").split("\n")[0] for name, measure in MEASURES.items()},
        provenance_text(results, command),
    )
    path = place / "report.html"
    with writing(path):
        write_atomic(path, content)
    return path


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: its last part, with as many of the parts before as tell the paths apart."""
    parts = [path.absolute().with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UsageError(f"report: the same path twice in {listed(paths)}")
    candidates = (["/".join(one[-length:]) for one in parts] for length in range(1, max(map(len, parts)) + 1))
    return next(names for names in candidates if len(set(names)) == len(names))


def _folder(path: Path, name: str, folder: Path | None, count: int) -> Path:
    if folder is None:
        return default_folder(path)
    return folder / name if count > 1 else folder


def _open(path: Path) -> tuple[Run | None, list[Callable[[], Checkpoint]]]:
    """Return the run, if the path is one, and functions that load its checkpoints, or the one of the path."""
    if path.is_dir():
        run = Run.open(path)
        return run, [functools.partial(load, one) for one in run.checkpoint_paths]
    checkpoint = load(path)
    return None, [lambda: checkpoint]


def _subject(
    name: str,
    run: Run | None,
    checkpoints: Sequence[Callable[[], Checkpoint]],
    folder: Path,
    advance: Callable[[], Any],
    options: Mapping[str, Any],
) -> Subject:
    """Measure the checkpoints, write results and figures, and return what the page shows."""
    results, not_measured, figures = {}, {}, {}
    for measure in MEASURES:
        try:
            of_steps = list(_measured(measure, checkpoints, advance, options))
        except Unwritable:
            raise
        except UsageError as error:
            not_measured[measure] = str(error)
            continue
        joined = joined_over_steps(of_steps) if run is not None else of_steps[-1]
        results[measure] = joined
        figures |= _write(measure, joined, of_steps[-1], folder, run is not None)
    last = checkpoints[-1]()
    metrics = last.metrics if run is None else run.metrics
    return Subject(name, dataclasses.asdict(last.config), metrics, results, not_measured, figures)


def _measured(
    measure: str,
    checkpoints: Sequence[Callable[[], Checkpoint]],
    advance: Callable[[], Any],
    options: Mapping[str, Any],
) -> Iterator[xr.Dataset]:
    for open_checkpoint in checkpoints:
        yield MEASURES[measure](open_checkpoint(), **options)
        advance()


def _write(measure: str, joined: xr.Dataset, last: xr.Dataset, folder: Path, is_run: bool) -> Mapping[str, bytes]:
    """Write a result with its figures, and return the PDF files by name."""
    drawn: list[tuple[str, xr.Dataset, Figure | list[Figure]]] = [(measure, last, pages(last))]
    if is_run:
        drawn.append((f"{measure}_over_steps", joined, draw_over_steps(joined)))
    files = {}
    for stem, result, figure in drawn:
        path = folder / stem
        save(result, path.with_suffix(".nc"))
        write_figure(figure, path, f"{stem}: {last.attrs['title']}")
        files[f"{stem}.pdf"] = path.with_suffix(".pdf").read_bytes()
    return files
