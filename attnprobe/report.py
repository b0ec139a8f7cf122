"""From a checkpoint or a run to files: each result as netCDF, each figure as PNG and PDF."""

import html
import inspect
import itertools
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
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


KINDS = ("within", "term", "loss", "other_loss", "direction", "subspace", "intervention")
"""Axes along which one head has several numbers."""


def head_rows(result: xr.Dataset, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return every number that a head has one or a few of, a dictionary a head (and step), for tables and programs.

    Beside ``NAME`` stand ``NAME_interval``, ``NAME_null_permuted`` and so on: the two ends of each range. Where there
    are several the kind ends the name: ``near_mass_1``, ``variance_share_content-content``.
    """
    chosen = [str(name) for name in result if names is None or name in names]
    return _rows(result, [axis for axis in ("step", "layer", "head") if axis in result.dims], chosen)


def shown_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return the rows of the numbers that the measure names for its table; all where it names none."""
    names = result.attrs.get("table", "").split()
    return head_rows(result, names or None)


def whole_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return the same for numbers of the whole network that have an interval, a dictionary a step."""
    names = [str(name) for name in result if f"{name}_interval" in result]
    rows = _rows(result, [axis for axis in ("step",) if axis in result.dims], names)
    return [row for row in rows if set(row) - {"step"}]


def _rows(result: xr.Dataset, axes: list[str], names: list[str]) -> list[dict[str, Any]]:
    numbers = {}
    for name in names:
        kinds = [axis for axis in KINDS if axis in result[name].dims]
        if set(result[name].dims) == {*axes, *kinds}:
            for chosen in itertools.product(*(result[axis].values.tolist() for axis in kinds)):
                numbers["_".join(map(str, [name, *chosen]))] = name, dict(zip(kinds, chosen, strict=True))
    rows = []
    for place in itertools.product(*(range(result.sizes[axis]) for axis in axes)):
        at = dict(zip(axes, place, strict=True))
        row: dict[str, Any] = {axis: result[axis].values[index].item() for axis, index in at.items()}
        for label, (name, chosen) in numbers.items():
            row[label] = result[name].isel(at).sel(chosen).item()
            if f"{name}_interval" in result:
                row[f"{label}_interval"] = result[f"{name}_interval"].isel(at).sel(chosen).values.tolist()
            if f"{name}_null" in result:
                for null in result["null"].values.tolist():
                    draws = result[f"{name}_null"].isel(at).sel(chosen).sel(null=null)
                    row[f"{label}_null_{null}"] = [draws.min().item(), draws.max().item()]
        rows.append(row)
    return rows


def table(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the lines of a table of one row's numbers: each with its interval and the ranges of its nulls."""
    columns = {"interval": "95 % interval", "null_permuted": "permuted", "null_initial": "at initialisation"}
    lines = []
    for name, value in row.items():
        if isinstance(value, float) and math.isfinite(value):
            beside = {head: row.get(f"{name}_{key}") for key, head in columns.items()}
            ends = {head: f"{a[0]:.3f} … {a[1]:.3f}" if a and math.isfinite(a[0]) else "" for head, a in beside.items()}
            lines.append({"": name, "value": f"{value:.3f}", **ends})
    return lines


def write_report(path: Path, folder: Path, progress: bool = True) -> Path:
    """Write every measure of a run or a checkpoint, and one page, report.html, with a section for each.

    A measure that makes no sense there has its reason in the place of its figures.
    """
    run = Run.open(path) if path.is_dir() else None
    checkpoint = run.checkpoints[-1] if run is not None else load(path)
    prepare(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, measure in MEASURES.items():
        said = (inspect.getdoc(measure) or "").split("\n")[0]
        try:
            if run is not None:
                result = write_run(name, run, folder, progress=progress).isel(step=-1)
                pages = [f"{name}_over_steps", f"{run.checkpoint_paths[-1].stem}/{name}"]
            else:
                result, pages = write_checkpoint(name, checkpoint, folder), [name]
        except UsageError as error:
            sections.append(f"<h2>{name}</h2><p>{html.escape(said)}</p><p>Not measured: {html.escape(str(error))}</p>")
            continue
        images = "".join(f'<p><a href="{page}.pdf"><img src="{page}.png" alt="{page}"></a></p>' for page in pages)
        numbers = ""
        for row in whole_rows(result) + shown_rows(result):
            if lines := table(row):
                about = f"layer {row['layer']}, head {row['head']}" if "layer" in row else "whole network"
                text = pd.DataFrame(lines).to_html(index=False, border=0)
                numbers += f"<details><summary>{about}</summary>{text}</details>"
        sections.append(f"<h2>{name}</h2><p>{html.escape(said)}</p>{images}{numbers}")
    page = folder / "report.html"
    part = page.with_name("report.html.part")
    part.write_text(PAGE.format(title=html.escape(checkpoint.title), body="".join(sections)))
    os.replace(part, page)
    return page


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.45 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
img{{max-width:44em;width:100%}}table{{border-collapse:collapse;font-size:13px}}
td,th{{padding:.15em .8em .15em 0;text-align:left}}</style>
<h1>{title}</h1>{body}</html>
"""


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
