"""Write results as netCDF and figures as PNG and PDF."""

import functools
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from attnprobe.figures import draw, draw_over_steps, pages
from attnprobe.figures.style import paper
from attnprobe.files import atomic_path, writing
from attnprobe.networks import Probe
from attnprobe.progress import bar
from attnprobe.results import over_steps, save
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.run import Run


def default_folder(path: Path) -> Path:
    """Return the default output folder: ``figures`` of a run, or ``figures/NAME`` for a checkpoint.

    The ``figures`` of a checkpoint is in its run folder or, if it belongs to no run, next to the checkpoint.
    """
    if path.is_dir():
        return path / "figures"
    inside_run = path.parent.name == "checkpoints" and (path.parent.parent / "config.json").exists()
    return (path.parent.parent if inside_run else path.parent) / "figures" / path.stem


def write_checkpoint(
    measure: str, checkpoint: Checkpoint | Probe, folder: Path, options: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Measure a checkpoint, and write the result and its figure: all pages as PDF, the first one as PNG.

    Args:
        measure: Name of the measure.
        checkpoint: Checkpoint, or probe, to measure.
        folder: Folder for MEASURE.nc, .png and .pdf; created if it does not exist.
        options: Keyword arguments of the measure.

    Returns:
        Result of the measure.
    """
    prepare(folder)
    result = MEASURES[measure](checkpoint, **(options or {}))
    _write(result, pages(result), folder / measure)
    return result


def write_run(
    measure: str, run: Run, folder: Path, options: Mapping[str, Any] | None = None, progress: bool = True
) -> xr.Dataset:
    """Measure every checkpoint of a run, and write the results and figures (first pages) of each and of the run.

    Args:
        measure: Name of the measure.
        run: Run to measure.
        folder: Folder for MEASURE_over_steps.nc, .png and .pdf, with a subfolder for each checkpoint.
        options: Keyword arguments of the measure.
        progress: Show a progress bar.

    Returns:
        The results, joined along ``step``.
    """
    checkpoints = {path.stem: functools.partial(load, path) for path in run.checkpoint_paths}
    return write_series(measure, checkpoints, folder, options, progress)


def write_series(
    measure: str,
    subjects: Mapping[str, Callable[[], Checkpoint | Probe]],
    folder: Path,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Do the same for checkpoints or probes by name, in order of their steps; each is loaded when it is measured."""
    prepare(folder)
    results = []
    with bar(len(subjects), measure, "checkpoint", shown=progress) as done:
        for name, open_subject in subjects.items():
            prepare(folder / name)
            result = MEASURES[measure](open_subject(), **(options or {}))
            _write(result, [draw(result)], folder / name / measure)
            results.append(result)
            done.update()
    joined = joined_over_steps(results)
    _write(joined, [draw_over_steps(joined)], folder / f"{measure}_over_steps")
    return joined


def joined_over_steps(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the results of a run's checkpoints joined along ``step``, with the title of the last one."""
    joined = over_steps(results)
    joined.attrs["run_title"] = str(results[-1].attrs["title"])
    return joined


def prepare(folder: Path) -> None:
    """Raise `UsageError` if the folder, which may not exist yet, is not writable; create nothing."""
    with writing(folder):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass


def write_figure(figure: Figure | Sequence[Figure], stem: Path, title: str) -> None:
    """Write a figure atomically and reproducibly (the same figure gives the same bytes).

    Args:
        figure: Figure, or the pages of one.
        stem: Path without suffix: STEM.pdf has all pages, STEM.png the first one.
        title: Title in the metadata of the files.

    Raises:
        UsageError: If a file cannot be written.
    """
    sheets = [figure] if isinstance(figure, Figure) else figure
    # In memory first: matplotlib hides the error of a full disk behind an AttributeError.
    contents = {".png": io.BytesIO(), ".pdf": io.BytesIO()}
    with paper():
        sheets[0].savefig(contents[".png"], format="png", metadata={"Software": "attnprobe", "Title": title})
        metadata = {"Creator": "attnprobe", "CreationDate": None, "Title": title}
        with PdfPages(contents[".pdf"], metadata=metadata) as file:
            for sheet in sheets:
                file.savefig(sheet)
        for suffix, content in contents.items():
            path = stem.with_suffix(suffix)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as part:
                    part.write_bytes(content.getbuffer())


def _write(result: xr.Dataset, figures: Sequence[Figure], stem: Path) -> None:
    with writing(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
    save(result, stem.with_suffix(".nc"))
    write_figure(figures, stem, f"{stem.name}: {result.attrs.get('title', result.attrs.get('run_title'))}")
