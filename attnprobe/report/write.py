"""From a checkpoint or a run to files: each result as netCDF, each figure as PNG and PDF."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from attnprobe.errors import UsageError
from attnprobe.figures import draw, draw_over_steps
from attnprobe.figures.style import paper
from attnprobe.results import over_steps, save
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import Checkpoint, load
from attnprobe.training.run import Run


def default_folder(path: Path) -> Path:
    """Return where figures go: for a run its ``figures``; for a checkpoint a folder of its name in there.

    A checkpoint that lies in no run has ``figures`` beside it.
    """
    if path.is_dir():
        return path / "figures"
    inside_run = path.parent.name == "checkpoints" and (path.parent.parent / "config.json").exists()
    return (path.parent.parent if inside_run else path.parent) / "figures" / path.stem


def write_checkpoint(
    measure: str, checkpoint: Checkpoint, folder: Path, options: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Measure a checkpoint, write MEASURE.nc, .png and .pdf into the folder, and return the result."""
    prepare(folder)
    result = MEASURES[measure](checkpoint, **(options or {}))
    _write(result, draw(result), folder / measure)
    return result


def write_run(
    measure: str, run: Run, folder: Path, options: Mapping[str, Any] | None = None, progress: bool = True
) -> xr.Dataset:
    """Measure every checkpoint of a run, and join the results along the steps.

    Writes each checkpoint's files into a folder of its name, MEASURE_over_steps.nc, .png and .pdf beside them, and
    returns the joined result.
    """
    prepare(folder)
    results = []
    for path in tqdm(run.checkpoint_paths, desc=measure, unit="checkpoint", disable=not progress, dynamic_ncols=True):
        results.append(write_checkpoint(measure, load(path), folder / path.stem, options))
    joined = over_steps(results)
    joined.attrs["run_title"] = str(results[-1].attrs["title"])
    _write(joined, draw_over_steps(joined), folder / f"{measure}_over_steps")
    return joined


def prepare(folder: Path) -> None:
    """See that files can be written into a folder, there already or not, before the work starts; make nothing yet."""
    try:
        with tempfile.TemporaryFile(dir=next(one for one in (folder, *folder.absolute().parents) if one.exists())):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def write_figure(figure: Figure, stem: Path, title: str) -> None:
    """Write a figure as STEM.png and STEM.pdf, each whole or not at all, and the same bytes for the same figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    made_by = {".pdf": {"Creator": "attnprobe", "CreationDate": None}, ".png": {"Software": "attnprobe"}}
    with paper():
        for suffix, maker in made_by.items():
            part = stem.with_name(f"{stem.name}.part{suffix}")
            figure.savefig(part, metadata={**maker, "Title": title})
            os.replace(part, stem.with_suffix(suffix))


def _write(result: xr.Dataset, figure: Figure, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    save(result, stem.with_suffix(".nc"))
    write_figure(figure, stem, f"{stem.name}: {result.attrs.get('title', result.attrs.get('run_title'))}")
