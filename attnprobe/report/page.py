"""HTML report with a section for every measure."""

import html
import inspect
from pathlib import Path
from typing import Any

import pandas as pd

from attnprobe.errors import UsageError, printable
from attnprobe.files import Unwritable, write_atomic, writing
from attnprobe.report.rows import network_rows, shown_rows, table, undefined, why
from attnprobe.report.write import prepare, write_checkpoint, write_run
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run


def write_report(path: Path, folder: Path, progress: bool = True) -> Path:
    """Run every measure on a checkpoint or a run, and write all results, figures and the page report.html.

    If a measure does not apply to the network, its section has the reason instead of figures.

    Args:
        path: Checkpoint file or run folder. For a run, every checkpoint is measured.
        folder: Folder for all files; created if it does not exist.
        progress: Show progress bars.

    Returns:
        Path of report.html.

    Raises:
        UsageError: If a file cannot be written.
    """
    run = Run.open(path) if path.is_dir() else None
    checkpoint = run.checkpoints[-1] if run is not None else load(path)
    prepare(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, measure in MEASURES.items():
        summary = (inspect.getdoc(measure) or "").split("\n")[0]
        try:
            if run is not None:
                result = write_run(name, run, folder, progress=progress).isel(step=-1)
                stems = [f"{name}_over_steps", f"{run.checkpoint_paths[-1].stem}/{name}"]
            else:
                result, stems = write_checkpoint(name, checkpoint, folder), [name]
        except Unwritable:
            raise
        except UsageError as error:
            sections.append(f"<h2>{_text(name)}</h2><p>{_text(summary)}</p><p>Not measured: {_text(error)}</p>")
            continue
        images = "".join(
            f'<p><a href="{stem}.pdf"><img src="{stem}.png" alt="{stem}"></a></p>' for stem in map(_text, stems)
        )
        tables = ""
        texts = why(result)
        rows = [*network_rows(result), *shown_rows(result)]
        for row, row_texts in zip(rows, [*network_rows(texts), *shown_rows(texts)], strict=True):
            tables += _details(row, undefined(row, row_texts), result.attrs["ci_prob"])
        sections.append(f"<h2>{_text(name)}</h2><p>{_text(summary)}</p>{images}{tables}")
    page = folder / "report.html"
    content = PAGE.format(title=_text(checkpoint.title), body="".join(sections))
    # Entities instead of characters that the encoding of files here may lack.
    with writing(page):
        write_atomic(page, content.encode("ascii", "xmlcharrefreplace").decode())
    return page


def _details(row: dict[str, Any], missing: dict[str, str], level: float) -> str:
    """Return a row as a table that opens on a click, and below it the undefined values with their reasons."""
    lines = table(row, level)
    if not lines and not missing:
        return ""
    heading = _text(f"layer {row['layer']}, head {row['head']}" if "layer" in row else "whole network")
    plain = [{name: printable(cell) for name, cell in line.items()} for line in lines]
    content = pd.DataFrame(plain).to_html(index=False, border=0) if plain else ""
    notes = "".join(f"<p>{_text(name)} undefined: {_text(reason)}</p>" for name, reason in missing.items())
    return f"<details><summary>{heading}</summary>{content}{notes}</details>"


def _text(value: object) -> str:
    """Return text for the page: without control characters, and escaped."""
    return html.escape(printable(value))


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.45 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
img{{max-width:44em;width:100%}}table{{border-collapse:collapse;font-size:13px}}
td,th{{padding:.15em .8em .15em 0;text-align:left}}details p{{font-size:13px;margin:.15em 0}}</style>
<h1>{title}</h1>{body}</html>
"""
