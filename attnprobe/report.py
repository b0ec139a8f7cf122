"""From a checkpoint or a run to files: each result as netCDF, each figure as PNG and PDF."""

import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from attnprobe.checkpoint import Checkpoint, load
from attnprobe.errors import UsageError
from attnprobe.figures import FIGURES, OVER_STEPS
from attnprobe.figures.style import paper
from attnprobe.measures import MEASURES
from attnprobe.results import over_steps, save
from attnprobe.run import Run


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
    _write(result, FIGURES[measure](result), folder / measure)
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
    _write(joined, OVER_STEPS[measure](joined), folder / f"{measure}_over_steps")
    return joined


def head_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return every number that a head has one of, a dictionary a head (and step), for tables and other programs.

    Beside ``NAME`` stand ``NAME_interval``, ``NAME_null_permuted`` and so on: the two ends of each range. Where there
    is a number for several distances the distance ends the name: ``near_mass_1``.
    """
    axes = [axis for axis in ("step", "layer", "head") if axis in result.dims]
    numbers = {}
    for name, one in result.items():
        if set(one.dims) == set(axes):
            numbers[name] = one, name
        elif set(one.dims) == {*axes, "within"}:
            numbers |= {f"{name}_{within}": (one.sel(within=within), name) for within in one["within"].values.tolist()}
    rows = []
    for place in itertools.product(*(range(result.sizes[axis]) for axis in axes)):
        at = dict(zip(axes, place, strict=True))
        row: dict[str, Any] = {axis: result[axis].values[index].item() for axis, index in at.items()}
        for label, (one, name) in numbers.items():
            chosen = {"within": one["within"]} if "within" in one.coords else {}
            row[label] = one.isel(at).item()
            if f"{name}_interval" in result:
                row[f"{label}_interval"] = result[f"{name}_interval"].isel(at).sel(chosen).values.tolist()
            if f"{name}_null" in result:
                for null in result["null"].values.tolist():
                    draws = result[f"{name}_null"].isel(at).sel(chosen).sel(null=null)
                    row[f"{label}_null_{null}"] = [draws.min().item(), draws.max().item()]
        rows.append(row)
    return rows


def prepare(folder: Path) -> None:
    """See that files can be written into a folder, there already or not, before the work starts; make nothing yet."""
    try:
        with tempfile.TemporaryFile(dir=next(one for one in (folder, *folder.absolute().parents) if one.exists())):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def write_figure(figure: Figure, stem: Path, title: str) -> None:
    """Write a figure as STEM.png and STEM.pdf, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with paper():
        for suffix, maker in ((".pdf", "Creator"), (".png", "Software")):
            part = stem.with_name(f"{stem.name}.part{suffix}")
            figure.savefig(part, metadata={maker: "attnprobe", "Title": title})
            os.replace(part, stem.with_suffix(suffix))


def _write(result: xr.Dataset, figure: Figure, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    save(result, stem.with_suffix(".nc"))
    write_figure(figure, stem, f"{stem.name}: {result.attrs.get('title', result.attrs.get('run_title'))}")
