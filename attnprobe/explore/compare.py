"""Comparisons: a measure of several runs on one page, with the spread over seeds."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from attnprobe.errors import UsageError, listed
from attnprobe.explore.page import Subject, flattened, page, provenance_text
from attnprobe.explore.view import View
from attnprobe.figures.selection import over_repeats
from attnprobe.results import main_number, open_result, over_seeds
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


def compare(subjects: Sequence[Any] | Mapping[str, Any], measure: str = "proximity", **options: Any) -> View:
    """Show a measure of several runs side by side; runs that differ in their seed only are averaged.

    For runs of several seeds, values are means over seeds, and intervals are t-intervals over them; heads are ranks
    within their layer, since those of different networks do not correspond. Otherwise intervals are over sequences, as
    in the results.

    Args:
        subjects: Runs (of which the last checkpoint is measured), checkpoints, results, or paths of these. As a
            mapping, with the name of each, or of a list of runs of several seeds; else the settings that differ name
            them.
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
    found: list[tuple[str | None, Any]] = []
    for name, subject in subjects.items() if isinstance(subjects, Mapping) else ((None, one) for one in subjects):
        found += [(name, one) for one in (subject if isinstance(subject, list | tuple) else [subject])]
    if len(found) < 2:
        raise UsageError(f"compare: {len(found)} subjects; must be at least 2")
    results = [_result(subject, measured, options) for _, subject in found]
    kinds = sorted({str(result.attrs.get("measure")) for result in results})
    if len(kinds) > 1:
        raise UsageError(f"compare: results of several measures ({listed(kinds)}); must be of one")
    groups: dict[str, list[xr.Dataset]] = {}
    for (name, _), other, result in zip(found, _names(results), results, strict=True):
        groups.setdefault(other if name is None else str(name), []).append(result)
    shown = [
        Subject(
            f"{name} ({len(group)} seeds)" if len(group) > 1 else name,
            _settings(group[0]),
            results={kinds[0]: _over_seeds(group)},
        )
        for name, group in groups.items()
    ]
    summary = (inspect.getdoc(MEASURES[kinds[0]]) or "").split("\n")[0]
    if any(len(group) > 1 for group in groups.values()):
        summary += (
            " Means and intervals are over seeds. Heads of different networks do not correspond, so those of each "
            "layer are sorted by the main number (in the nulls too): head is a rank."
        )
    origin = provenance_text(results, f"attnprobe.compare of {len(results)} results")
    return View(page(kinds[0], listed(groups), shown, {kinds[0]: summary}, origin))


def _over_seeds(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the means of results over seeds, with t-intervals over them; a single result is returned unchanged."""
    if len(results) == 1:
        return results[0]
    joined = over_seeds(results)
    if (main := main_number(joined)) is None:
        raise UsageError(
            f"compare: {joined.attrs['measure']} has no number of heads, by which those of seeds are sorted"
        )
    name, categories = main
    null = joined[f"{name}_null"].sel(categories) if f"{name}_null" in joined else None
    return over_repeats(joined, joined[name].sel(categories), null)


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
    """Return the settings of the run that a result is of, without the seeds."""
    settings = json.loads(result.attrs.get("config", "{}"))
    return {name: value for name, value in settings.items() if name not in ("seed", "init_seed")}


def _names(results: Sequence[xr.Dataset]) -> list[str]:
    """Return a name for each result: the settings that differ, or title and number for models of other origin."""
    flat = [dict(flattened(_settings(result))) for result in results]
    differing = [name for name in flat[0] if len({str(one.get(name)) for one in flat}) > 1]
    return [
        (", ".join(f"{name}={one.get(name)}" for name in differing) or "all")
        if one
        else f"{number}. {result.attrs.get('title') or 'model'}"
        for number, (one, result) in enumerate(zip(flat, results, strict=True), 1)
    ]
