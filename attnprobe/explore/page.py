"""Self-contained pages: the charts of runs and results in one HTML file that opens without a network."""

import base64
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from attnprobe.errors import listed, printable
from attnprobe.explore import charts
from attnprobe.explore.cubes import Cube, cubes, label_of, scope
from attnprobe.results import main_number

METRIC = re.compile(r"(train|validation|test)_(loss|accuracy)")
BASIC = ("task", "stages", "seed", "model.n_layers", "model.n_heads", "model.d_model", "model.position")
"""Settings that are shown also if they do not differ."""


@dataclass(frozen=True)
class Subject:
    """A run, or a checkpoint, and what was measured of it."""

    name: str
    settings: Mapping[str, Any]
    """Nested settings; those that differ between subjects are shown."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics, with ``step`` and ``objective``."""
    results: Mapping[str, xr.Dataset] = field(default_factory=dict)
    """Results by measure, at one checkpoint or over steps."""
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Measures that do not apply, and why."""
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Files to download, by name."""


def page(title: str, subtitle: str, subjects: Sequence[Subject], summaries: Mapping[str, str], origin: str) -> str:
    """Return the page as HTML.

    Args:
        title: Heading.
        subtitle: Line below it.
        subjects: Runs or checkpoints, shown side by side.
        summaries: What each measure measures; measures have sections in this sequence.
        origin: Provenance, shown at the end.
    """
    builder = Builder([subject.name for subject in subjects])
    builder.stage_ends = sorted({step for subject in subjects for step in _stage_ends(subject.metrics)})
    sections = [_runs(subjects), _training(builder, subjects)]
    sections += [_measure(builder, name, summary, subjects) for name, summary in summaries.items()]
    lines = map(printable, origin.split("\n"))
    sections.append({"id": "provenance", "name": "provenance", "code": "\n".join(lines)})
    return render(title, subtitle, [section for section in sections if section], builder)


def render(
    title: str, subtitle: str, sections: Sequence[Mapping[str, Any]], builder: "Builder", names: Sequence[str] = ()
) -> str:
    """Return the page of sections whose charts a builder has collected; ``names`` are those of the queries."""
    axes = {axis: builder.coordinates(axis) for axis in ("step", "layer", "head")}
    data = {
        "runs": [printable(name) for name in builder.runs],
        "steps": axes["step"] or [0],
        "start": {
            "layer": 0,
            "head": 0,
            **builder.start,
            "step": max(len(axes["step"]) - 1, 0),
            "labels": builder.defaults,
        },
        "cubes": [_plain(cube) for cube in builder.cubes],
        "charts": builder.charts,
        "tables": builder.tables,
        "names": list(names),
    }
    return _template().render(
        title=printable(title),
        subtitle=printable(subtitle),
        sections=sections,
        data=data,
        layers=axes["layer"] or [0],
        heads=axes["head"] or [0],
        library=_library(),
        script=_source("page.js"),
    )


class Builder:
    """Cubes, charts and tables of a page under construction."""

    def __init__(self, runs: Sequence[str]) -> None:
        """Begin a page of runs without charts."""
        self.runs, self.cubes, self.charts, self.tables = list(runs), [], [], []
        self.start: dict[str, Any] = {}
        self.defaults: dict[str, str] = {}
        self.stage_ends: list[int] = []

    def add_cubes(self, found: Sequence[Cube]) -> list[int]:
        """Add cubes, and return their indices."""
        self.cubes += found
        return list(range(len(self.cubes) - len(found), len(self.cubes)))

    def coordinates(self, axis: str) -> list[int | float]:
        """Return all coordinates of an axis, in ascending order."""
        return sorted({value for cube in self.cubes for value in cube.axes.get(axis, [])})

    def figure(
        self,
        caption: str,
        spec: Mapping[str, Any],
        places: Sequence[tuple[int, int]],
        choice: str,
        free: Sequence[str] = (),
        clickable: bool = False,
        choose: bool = True,
    ) -> dict[str, Any]:
        """Add a chart, and return its figure for the template.

        Args:
            caption: Caption.
            spec: Specification.
            places: Pairs of run and cube; of the cubes with the chosen label, the rows of every run are drawn.
            choice: Name of the choice among labels; charts with the same one show the same label.
            free: Shared axes along which the chart draws all coordinates.
            clickable: Whether a click chooses the head.
            choose: Whether the figure has the list of labels, or the only one in its caption.
        """
        by_label: dict[str, list[dict[str, int]]] = {}
        for run, index in places:
            by_label.setdefault(self.cubes[index].label, []).append({"run": run, "cube": index})
        identifier = f"chart-{len(self.charts)}"
        default = self.defaults.setdefault(choice, next(iter(by_label)))
        self.charts.append(
            {
                "id": identifier,
                "spec": spec,
                "cubes": by_label,
                "choice": choice,
                "free": list(free),
                "clickable": clickable,
            }
        )
        groups: dict[str, list[str]] = {}
        for label in by_label if choose else ():
            groups.setdefault(label.split(",")[0], []).append(label)
        choices = groups if len(by_label) > 1 else {}
        only = f"{default} " if choose and not choices else ""
        return {
            "id": identifier,
            "caption": printable(only + caption),
            "choice": choice,
            "choices": choices,
            "default": default,
        }

    def plain_figure(self, caption: str, spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Add a chart of given rows, and return its figure for the template."""
        identifier = f"chart-{len(self.charts)}"
        self.charts.append({"id": identifier, "spec": spec, "rows": list(rows), "choice": "", "free": []})
        return {"id": identifier, "caption": printable(caption), "choices": {}}


# --- sections


def _runs(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the table of the runs: settings that differ, and the last metrics of every objective."""
    flat = [dict(flattened(subject.settings)) for subject in subjects]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    differing = [name for name in names if len({str(settings.get(name)) for settings in flat}) > 1]
    shown = [name for name in names if name in BASIC or name in differing]
    rows = []
    for subject, settings in zip(subjects, flat, strict=True):
        row = {"run": subject.name, **{name: settings.get(name, "") for name in shown}}
        last = {metrics["objective"]: metrics for metrics in subject.metrics}  # the last row of each objective counts
        for objective, metrics in last.items():
            for split in ("train", "test"):
                value = metrics.get(f"{split}_accuracy")
                row[f"{objective}: {split} accuracy"] = "" if value is None else f"{value:.3f}"
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = "Settings that differ between runs, and accuracy at the end of each objective."
    if len(subjects) == 1:
        text = "Main settings, and accuracy at the end of each objective."
    cells = [{printable(name): printable(row.get(name, "")) for name in columns} for row in rows]
    return {"id": "runs", "name": "runs", "text": text, "rows": cells}


def flattened(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as pairs of a name with dots and a value."""
    found = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        found += flattened(value, f"{prefix}{name}.") if nested else [(prefix + name, value)]
    return found


def _training(builder: Builder, subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the section of the training curves: one chart per objective and metric."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for subject in subjects:
        for metrics in subject.metrics:
            for name, value in metrics.items():
                match = METRIC.fullmatch(name)
                if match and value is not None:
                    split, metric = match.groups()
                    row = {"run": printable(subject.name), "split": split, "step": metrics["step"], "value": value}
                    rows.setdefault((metrics["objective"], metric), []).append(row)
    figures = [
        builder.plain_figure(f"{objective}: {metric}", charts.curves(metric, len(subjects) > 1), of_metric)
        for (objective, metric), of_metric in rows.items()
    ]
    return {"id": "training", "name": "training", "groups": [figures]} if figures else None


def _measure(builder: Builder, name: str, summary: str, subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the section of a measure."""
    measured = [(run, subject.results[name]) for run, subject in enumerate(subjects) if name in subject.results]
    notes = {f"{subject.name}: {subject.not_measured[name]}" for subject in subjects if name in subject.not_measured}
    if not measured:
        text = f"{summary} Not measured: {'; '.join(sorted(notes))}" if notes else ""
        return {"id": name, "name": name, "text": printable(text)} if text else None
    places: dict[str, list[tuple[int, int]]] = {"number": [], "profile": [], "map": []}
    for run, result in measured:
        for index in builder.add_cubes(cubes(result)):
            places[builder.cubes[index].kind].append((run, index))
    groups = [
        _numbers(builder, name, measured, places["number"]),
        *_profiles(builder, name, places["profile"]),
        *_maps(builder, name, places["map"]),
    ]
    table = f"table-{name}"
    builder.tables.append({"id": table, "cubes": [{"run": run, "cube": index} for run, index in places["number"]]})
    facts = scope(measured[-1][1])
    links = [
        {
            "name": printable(f"{subject.name} {file}".replace("/", " ") if len(subjects) > 1 else file),
            "href": f"data:application/pdf;base64,{base64.b64encode(content).decode()}",
        }
        for subject in subjects
        for file, content in subject.figures.items()
        if file in (f"{name}.pdf", f"{name}_over_steps.pdf")
    ]
    left_out = {f"{what}: {why}" for _, result in measured for what, why in scope(result)["left_out"].items()}
    text = f"{summary} {facts['sequences']} test sequences, {facts['nulls']} draws of each null."
    kept, steps = (
        {step for _, index in places[kind] for step in builder.cubes[index].axes["step"]}
        for kind in ("profile", "number")
    )
    if kept and kept != steps:
        text += f" To keep the page small, profiles and maps are of steps {listed(map(int, sorted(kept)))} only."
    if note := measured[-1][1].attrs.get("note"):
        text += f" {note}"
    return {
        "id": name,
        "name": name,
        "text": printable(text),
        "groups": [group for group in groups if group],
        "table": table,
        "csv": name,
        "legend": facts["interval"],
        "nulls": facts["nulls"],
        "downloads": links,
        "notes": [printable(note) for note in sorted(left_out | notes)],
    }


def _numbers(
    builder: Builder, name: str, measured: Sequence[tuple[int, xr.Dataset]], places: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the figures of one number of all heads, for every run, and of the chosen head over steps."""
    by_head = [(run, index) for run, index in places if {"layer", "head"} <= set(builder.cubes[index].axes)]
    if not by_head:
        return []
    result, choice = measured[0][1], f"number of {name}"
    labels = [builder.cubes[index].label for _, index in by_head]
    main = main_number(result)
    label = labels[0] if main is None else label_of(*main)
    builder.defaults[choice] = label if label in labels else labels[0]
    if not builder.start:
        first = (builder.cubes[index] for _, index in by_head)
        builder.start |= _extreme_head(next(cube for cube in first if cube.label == builder.defaults[choice]))
    figures = []
    for order, run in enumerate(dict.fromkeys(run for run, _ in by_head)):
        of_run = [place for place in by_head if place[0] == run]
        caption = f"of all heads: {builder.runs[run]}" if len(builder.runs) > 1 else "of all heads"
        layers = max(len(builder.cubes[index].axes["layer"]) for _, index in of_run)
        spec, free = charts.overview(layers), ("layer", "head")
        figures.append(builder.figure(caption, spec, of_run, choice, free, clickable=True, choose=order == 0))
    if any(len(builder.cubes[index].axes.get("step", [])) > 1 for _, index in by_head):
        caption = "over the training steps, of the chosen head"
        if builder.stage_ends:
            caption += " (solid: end of a stage of training)"
        spec = charts.over_steps(len(builder.runs) > 1, builder.stage_ends)
        figures.append(builder.figure(caption, spec, by_head, choice, ("step",), choose=False))
    return figures


def _stage_ends(metrics: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the last step of each stage of training but the last stage."""
    return [int(one["step"]) for one, following in pairwise(metrics) if one["objective"] != following["objective"]]


def _extreme_head(cube: Cube) -> dict[str, int | float]:
    """Return the layer and head of the largest absolute value at the last step."""
    values = np.array(cube.columns["value"], dtype=float).reshape([len(cube.axes[axis]) for axis in cube.axes])
    last = np.nan_to_num(np.abs(values[-1]))
    layer, head = np.unravel_index(last.argmax(), last.shape)
    return {"layer": cube.axes["layer"][layer], "head": cube.axes["head"][head]}


def _profiles(builder: Builder, name: str, places: Sequence[tuple[int, int]]) -> list[list[dict[str, Any]]]:
    """Return the figures of the profiles, one per axis."""
    by_axis: dict[str, list[tuple[int, int]]] = {}
    for run, index in places:
        by_axis.setdefault(list(builder.cubes[index].titles)[0], []).append((run, index))
    figures = []
    for axis, of_axis in by_axis.items():
        title = builder.cubes[of_axis[0][1]].titles[axis]
        longest = max(len(builder.cubes[index].axes[axis]) for _, index in of_axis)
        spec = charts.profile(title, axis == "offset" and longest > 200, len(builder.runs) > 1)
        figures.append(builder.figure(_whose(builder, of_axis), spec, of_axis, f"{axis} of {name}"))
    return [figures] if figures else []


def _whose(builder: Builder, places: Sequence[tuple[int, int]]) -> str:
    """Return whose values a chart has: those of a head or, without heads, of a layer."""
    heads = any("head" in builder.cubes[index].axes for _, index in places)
    return f"of the chosen {'head' if heads else 'layer'}"


def _maps(builder: Builder, name: str, places: Sequence[tuple[int, int]]) -> list[list[dict[str, Any]]]:
    """Return the figures of the maps, one per pair of axes and run."""
    by_axes: dict[tuple[str, ...], dict[int, list[tuple[int, int]]]] = {}
    for run, index in places:
        by_axes.setdefault(tuple(builder.cubes[index].titles), {}).setdefault(run, []).append((run, index))
    figures = []
    for axes, by_run in by_axes.items():
        for order, (run, of_run) in enumerate(by_run.items()):
            first = builder.cubes[of_run[0][1]]
            sides = (len(first.axes[axes[0]]), len(first.axes[axes[1]])) if axes[0] == "row_offset" else None
            spec = charts.heat_map(first.titles[axes[1]], first.titles[axes[0]], sides=sides)
            whose = _whose(builder, of_run)
            caption = f"{whose}: {builder.runs[run]}" if len(builder.runs) > 1 else whose
            figures.append(builder.figure(caption, spec, of_run, f"{'/'.join(axes)} of {name}", choose=order == 0))
    return [figures] if figures else []


# --- parts of the page


def _plain(cube: Cube) -> dict[str, Any]:
    """Return a cube for the page, with the axes that its charts draw as x and y."""
    content = {name: value for name, value in asdict(cube).items() if name != "titles"}
    drawn = list(cube.titles)[::-1]  # the last axis goes from left to right
    return content | dict(zip(("x", "y"), drawn, strict=False))


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}  # axes are in sequence
    return environment.from_string(_source("page.html"))


def _source(name: str) -> str:
    return files("attnprobe.explore").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that sets ``vegaEmbed``."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def provenance_text(results: Sequence[xr.Dataset], command: str) -> str:
    """Return the command and the provenance of the first result as text."""
    found = json.loads(results[0].attrs.get("provenance", "{}")) if results else {}
    return "\n".join([command, *(f"{name}: {value}" for name, value in found.items() if value not in ("", None))])
