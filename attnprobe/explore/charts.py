"""Charts of the pages, as Vega-Lite specifications without data.

The rows that a chart draws come from the page (``page.js``), under the name ``rows``: one row per point, with the axes
and columns of a cube (`attnprobe.explore.cubes`) and the ``run`` that it belongs to.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

ROWS = alt.NamedData(name="rows")
NULLS = {"permuted": "#8a8a8a", "initial": "#c9a227"}
"""Colours of the ranges of the nulls."""
LIMITS = [alt.param(name=name, value=value) for name, value in (("lowest", 0), ("highest", 1), ("scheme", "viridis"))]
"""Parameters of the colours of maps, which the page sets: symmetric about a neutral 0 if values have both signs."""
COLOURS = alt.Scale(scheme=alt.ExprRef("scheme"), domain=[alt.ExprRef("lowest"), alt.ExprRef("highest")])
NUMBER = ".4~g"
WIDTH = 230
"""Width of an image, in pixels."""


def overview(layers: int) -> dict[str, Any]:
    """Return the chart of one number in all layers and heads of a run; a click chooses a head.

    Values that are not outside the range of all draws of both nulls have a dot.
    """
    cells = alt.Chart(ROWS).mark_rect(strokeWidth=3, cursor="pointer")
    inside = alt.Chart(ROWS).transform_filter("datum.inside").mark_circle(color="black", size=30, cursor="pointer")
    chart = cells.encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
        color=alt.Color("value:Q", title=None, scale=COLOURS, legend=alt.Legend(format=NUMBER, gradientLength=90)),
        stroke=alt.condition("datum.chosen", alt.value("#d62728"), alt.value("transparent")),
        tooltip=_tooltip("layer", "head", *_ends()),
    )
    dots = inside.encode(x="head:O", y="layer:O", tooltip=_tooltip("layer", "head", *_ends()))
    return _spec((chart + dots).add_params(*LIMITS), height=max(40, 22 * layers))


def over_steps(legend: bool, stage_ends: Sequence[int] = ()) -> dict[str, Any]:
    """Return the chart of one number of the chosen head over the steps of all runs.

    Args:
        legend: Whether there is a legend of the runs.
        stage_ends: Steps at which a stage of training ends, marked by lines.
    """
    chosen = alt.Chart(ROWS).transform_filter("datum.chosen").mark_rule(strokeDash=[3, 3], opacity=0.5)
    rule = chosen.encode(x=alt.X("step:Q"))
    x = alt.X("step:Q", title="training step", axis=alt.Axis(format="~s"))
    ends = alt.Chart(alt.InlineData([{"end": step} for step in stage_ends])).mark_rule(opacity=0.5)
    marks = [ends.encode(x=alt.X("end:Q"))] if stage_ends else []
    return _spec(alt.layer(_lines(x, "step", legend), rule, *marks))


def profile(title: str, symmetric: bool, legend: bool) -> dict[str, Any]:
    """Return the chart of profiles of the chosen head of all runs.

    Args:
        title: Title of the horizontal axis.
        symmetric: Whether its numbers may be negative and span orders of magnitude, as offsets do.
        legend: Whether there is a legend of the runs.
    """
    scale = alt.Scale(type="symlog", constant=32, nice=False) if symmetric else alt.Scale(nice=False)
    return _spec(_lines(alt.X("x:Q", title=title, scale=scale), "x", legend))


def heat_map(
    title_x: str, title_y: str, names: list[str] | None = None, sides: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the chart of one map of the chosen head of a run.

    Args:
        title_x: Title of the horizontal axis.
        title_y: Title of the vertical axis.
        names: Text at each place of both axes, instead of numbers.
        sides: Rows and columns of an image, whose pixels are drawn as squares.
    """
    # A text is looked up by its place, so that equal tokens stay apart.
    text: dict[str, Any] = {"format": NUMBER}
    if names is not None:
        text = {"labelExpr": "names[datum.value]", "labelLimit": 90}
    chart = alt.Chart(ROWS).mark_rect()
    chart = chart.encode(
        x=alt.X("x:O", title=title_x, axis=alt.Axis(labelOverlap=True, labelAngle=0 if names is None else -90, **text)),
        y=alt.Y("y:O", title=title_y, axis=alt.Axis(labelOverlap=True, **text)),
        color=alt.Color("value:Q", title=None, scale=COLOURS, legend=alt.Legend(format=NUMBER, gradientLength=120)),
        tooltip=_tooltip("x", "y", *_ends()),
    )
    if sides is not None:
        return _spec(chart.add_params(*LIMITS), width=WIDTH, height=min(2 * WIDTH, WIDTH * sides[0] / sides[1]))
    if names is None:
        return _spec(chart.add_params(*LIMITS), height=260)
    tokens = [alt.Tooltip("query_name:N", title="query"), alt.Tooltip("key_name:N", title="key"), *_tooltip("value")]
    chart = chart.transform_calculate(query_name="names[datum.y]", key_name="names[datum.x]").encode(tooltip=tokens)
    return _spec(chart.add_params(*LIMITS, alt.param(name="names", value=names)), height=340)


def tiles(layers: int, heads: int, tile: int) -> dict[str, Any]:
    """Return the chart of the patterns of all heads: ``tile`` x ``tile`` bins for each layer and head."""
    step = tile + 1
    ticks = [
        alt.Axis(
            values=[index * step + tile / 2 for index in range(count)],
            labelExpr=f"round((datum.value - {tile / 2}) / {step})",
            grid=False,
            ticks=False,
            domain=False,
        )
        for count in (heads, layers)
    ]
    chart = alt.Chart(ROWS).mark_rect(cursor="pointer")
    chart = chart.encode(
        x=alt.X("x:Q", title="head", scale=alt.Scale(domain=[0, heads * step], nice=False), axis=ticks[0]),
        y=alt.Y("y:Q", title="layer", scale=alt.Scale(domain=[layers * step, 0], nice=False), axis=ticks[1]),
        x2="x2:Q",
        y2="y2:Q",
        color=alt.Color("value:Q", legend=None, scale=alt.Scale(scheme="viridis", type="sqrt")),
        tooltip=_tooltip("layer", "head"),
    )
    return _spec(chart, height=min(600, max(110, 900 * layers // heads)))


def curves(title: str, legend: bool) -> dict[str, Any]:
    """Return the chart of one metric over the steps of training, for every split, with a legend of the runs."""
    base = alt.Chart(ROWS).encode(
        x=alt.X("step:Q", title="training step", axis=alt.Axis(format="~s")),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
        color=_by_run(legend),
    )
    dashes = alt.Legend(orient="top", symbolType="stroke", symbolSize=300, symbolStrokeColor="gray")
    line = base.mark_line().encode(strokeDash=alt.StrokeDash("split:N", title=None, legend=dashes))
    points = base.mark_circle(size=20).encode(detail="split:N", tooltip=_tooltip("run", "split", "step", "value"))
    return _spec(line + points)


def _by_run(legend: bool) -> alt.Color:
    shown = alt.Legend(orient="top", columns=2, labelLimit=300) if legend else None
    return alt.Color("run:N", title=None, legend=shown)


def _lines(x: alt.X, name: str, legend: bool) -> Any:
    """Return lines of all runs with their intervals, above the ranges of the nulls."""
    base = alt.Chart(ROWS).encode(x=x, detail="run:N")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=NUMBER))
    color = _by_run(legend)
    areas = [
        base.mark_area(opacity=0.3, color=shade).encode(
            y=alt.Y(f"{null}_low_drawn:Q", title=None), y2=alt.Y2(f"{null}_high_drawn:Q")
        )
        for null, shade in NULLS.items()
    ]
    interval = base.mark_area(opacity=0.3).encode(y=alt.Y("low_drawn:Q", title=None), y2="high_drawn:Q", color=color)
    line = base.mark_line(strokeWidth=1.5).encode(y=y, color=color)
    points = base.mark_circle(size=24).encode(y=y, color=color, tooltip=_tooltip("run", name, *_ends()))
    return alt.layer(*areas, interval, line, points)


def _ends() -> tuple[str, ...]:
    return ("value", "low", "high", *(f"{null}_{end}" for null in NULLS for end in ("low", "high")))


def _tooltip(*names: str) -> list[alt.Tooltip]:
    """Return the fields of a tooltip; numbers have the digits of the page."""
    texts = ("run", "split")
    return [
        alt.Tooltip(f"{name}:N", title=name)
        if name in texts
        else alt.Tooltip(f"{name}:Q", title=name.replace("_", " "))
        for name in names
    ]


def _spec(chart: Any, height: int | float = 220, width: Any = "container") -> dict[str, Any]:
    """Return the specification of a chart; by default it fills the width of its place."""
    config = alt.Config(
        background="transparent", font="system-ui, sans-serif", view=alt.ViewConfig(stroke=None), axis=_axis()
    )
    sized = chart.properties(
        width=width,
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x" if width == "container" else "pad", contains="padding"),
    )
    return sized.properties(config=config).to_dict()


def _axis() -> alt.AxisConfig:
    return alt.AxisConfig(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridOpacity=0.4)
