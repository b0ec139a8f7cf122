"""Comparisons: a measure of several runs on one page, with the spread over seeds."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.errors import UsageError, listed
from attnprobe.explore.page import Subject, flattened, page, provenance_text
from attnprobe.explore.view import View
from attnprobe.results import open_result
from attnprobe.statistics import Moments
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


def compare(subjects: Sequence[Any] | Mapping[str, Any], measure: str = "proximity", **options: Any) -> View:
    """Show a measure of several runs side by side; runs that differ in their seed only are averaged.

    For runs of several seeds, values are means over seeds, and intervals are t-intervals over them; nulls have the
    draws of all seeds. Otherwise intervals are over sequences, as in the results.

    Args:
        subjects: Runs (of which the last checkpoint is measured), checkpoints, results, or paths of these; as a
            mapping, with the name of each, else named by the settings that differ.
        measure: Measure, if subjects are not results.
        options: Arguments of the measure.

    Returns:
        A page that Jupyter displays, with ``save(path)``.

    Raises:
        UsageError: If there are fewer than two subjects, the measure is unknown, or results are of several measures.

    Example:
        >>> import attnprobe as ap
        >>> ap.compare({"SPT": "runs/spt", "supervised": "runs/supervised"}, nulls=2)  # doctest: +SKIP
    """
    measured = MEASURES[measure]
    named = isinstance(subjects, Mapping)
    found = list(subjects.values()) if isinstance(subjects, Mapping) else list(subjects)
    if len(found) < 2:
        raise UsageError(f"compare: {len(found)} subjects; must be at least 2")
    results = [_result(subject, measured, options) for subject in found]
    kinds = sorted({str(result.attrs.get("measure")) for result in results})
    if len(kinds) > 1:
        raise UsageError(f"compare: results of several measures ({listed(kinds)}); must be of one")
    groups: dict[str, list[xr.Dataset]] = {}
    names = list(map(str, subjects)) if named else _names([_settings(result) for result in results])
    for name, result in zip(names, results, strict=True):
        groups.setdefault(name, []).append(result)
    shown = [
        Subject(
            f"{name} ({len(group)} seeds)" if len(group) > 1 else name,
            _settings(group[0]),
            (),
            {kinds[0]: over_seeds(group)},
        )
        for name, group in groups.items()
    ]
    summary = (inspect.getdoc(MEASURES[kinds[0]]) or "").split("\n")[0]
    if any(len(group) > 1 for group in groups.values()):
        summary += " Means and intervals are over seeds."
    origin = provenance_text(results, f"attnprobe.compare of {len(results)} results")
    return View(page(kinds[0], listed(groups), shown, {kinds[0]: summary}, origin))


def over_seeds(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the means of results over seeds, with t-intervals over them, and the null draws of all of them.

    A single result is returned unchanged.

    Raises:
        UsageError: If variables have different sizes.
    """
    first = results[0]
    if len(results) == 1:
        return first
    averaged = {}
    for key, array in first.items():
        name = str(key)
        if array.dtype.kind != "f" or name.endswith("_std"):
            continue
        sizes = sorted({str(dict(result[name].sizes)) if name in result else "absent" for result in results})
        if len(sizes) > 1:
            raise UsageError(f"{name}: differs between seeds ({listed(sizes)})")
        if name.endswith("_null"):
            averaged[name] = xr.concat([result[name].drop_vars("draw", errors="ignore") for result in results], "draw")
            continue
        if name.endswith("_interval"):
            continue
        moments = Moments()
        moments.add(np.stack([result[name].values for result in results]))
        averaged[name] = array.copy(data=moments.mean)
        interval = moments.interval(float(first.attrs.get("ci_prob", 0.95)))
        ends = xr.DataArray(interval, dims=(*array.dims, "bound"), coords={"bound": ["lower", "upper"]})
        averaged[f"{name}_interval"] = ends
    return xr.Dataset(averaged, attrs=first.attrs)


def _result(subject: Any, measure: Any, options: Mapping[str, Any]) -> xr.Dataset:
    """Return the result of a subject at one checkpoint."""
    if isinstance(subject, str | Path):
        path = Path(subject)
        subject = open_result(path) if path.suffix == ".nc" else Run.open(path) if path.is_dir() else path
    if isinstance(subject, Run):
        subject = subject.checkpoint_paths[-1]
    if isinstance(subject, Path):
        subject = load(subject)
    return subject if isinstance(subject, xr.Dataset) else measure(subject, **options)


def _settings(result: xr.Dataset) -> dict[str, Any]:
    """Return the settings of the run that a result is of, without the seed."""
    settings = json.loads(result.attrs.get("config", "{}"))
    return {name: value for name, value in settings.items() if name != "seed"}


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each subject: the settings that differ."""
    flat = [dict(flattened(one)) for one in settings]
    differing = [name for name in flat[0] if len({str(one.get(name)) for one in flat}) > 1]
    return [", ".join(f"{name}={one.get(name)}" for name in differing) or "all" for one in flat]
