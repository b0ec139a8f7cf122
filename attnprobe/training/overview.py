"""HTML overview of a run, for Jupyter."""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attnprobe.config import changed
from attnprobe.errors import UsageError, listed

if TYPE_CHECKING:
    from attnprobe.training.run import Run

MAIN = ("task", "recipe", "seed")
"""Settings that are always shown; others are if they differ from the defaults."""


def run_html(run: "Run") -> str:
    """Return status, settings, last metrics by objective, steps of the checkpoints and the next call to make.

    A run with damaged files has the message of the `UsageError` instead.
    """
    try:
        status, following = _status(run)
        config = run.config
        settings = {**changed(config), **changed(config.model)}
        rest = [f"{name}={value!r}" for name, value in settings.items() if name not in (*MAIN, "model")]
        facts = {
            "status": status,
            **{name: getattr(config, name) for name in MAIN},
            "other settings": listed(rest) or "the defaults",
            "checkpoints at steps": listed(run.steps),
            "next": following,
        }
        body = _rows(facts.items()) + _metrics(run.metrics)
    except UsageError as error:
        body = _rows([("status", str(error))])
    return f"<div><b>attnprobe.Run</b> {html.escape(str(run.folder))}{body}</div>"


def _status(run: "Run") -> tuple[str, str]:
    """Return whether the run is finished, and the next call to make."""
    folder = str(run.folder)
    if (finished := run.finished) is None:
        steps = run.config.total_steps
        reached = max([row["step"] for row in run.metrics], default=0)
        return f"unfinished, evaluated up to step {reached} of {steps}", f"attnprobe.resume({folder!r})"
    reason = finished["why"]
    return f"finished at step {finished['step']} ({reason})", f"attnprobe.proximity(run.at({finished['step']}))"


def _metrics(rows: Sequence[dict[str, Any]]) -> str:
    """Return the last row of each objective as a table."""
    last = {row["objective"]: row for row in rows}
    names = [name for name in dict.fromkeys(name for row in last.values() for name in row) if name != "objective"]
    shown = [name for name in names if not any(isinstance(row.get(name), list) for row in last.values())]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["objective", *shown])
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in [name, *map(row.get, shown)]) + "</tr>"
        for name, row in last.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>" if last else ""


def _rows(facts: Iterable[tuple[str, Any]]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{_cell(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text)
