"""Print tables and JSON, to any terminal."""

import codecs
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from attnprobe.errors import abridged, printable

WIDEST = 60
"""Largest number of characters of a column's name or of a text in a table."""
PLAIN = {"…": "...", "±": "+-", "×": "x", "–": "-", "−": "-", "’": "'"}
"""What is written instead of a character that the terminal lacks; others are escaped."""


def write_plain() -> None:
    """Let the standard output replace the characters that its encoding lacks, instead of failing after the work."""
    codecs.register_error("attnprobe", _plain)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="attnprobe")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(x) or x.encode("ascii", "backslashreplace").decode() for x in lacking), error.end


def print_line(*parts: Any) -> None:
    """Print texts from files or of results as one line, without control characters."""
    print(" ".join(map(printable, parts)))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a right-aligned table with three decimals; columns missing from a row are NaN.

    Names that are wider than their cells continue on the next line after each underscore.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(name, row.get(name, math.nan)) for name in columns] for row in rows]
    names = [abridged(printable(name), WIDEST) for name in columns]
    widest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    heads = [name.split("_") if len(name) > width else [name] for name, width in zip(names, widest, strict=True)]
    height = max(map(len, heads), default=0)
    heads = [[""] * (height - len(head)) + head for head in heads]
    widths = [max(width, *map(len, head)) for head, width in zip(heads, widest, strict=True)]
    for line in [*zip(*heads, strict=True), *cells]:
        print(" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return printable(value)
    if math.isnan(value):
        return "NaN"
    return f"{value:.1e}" if name == "learning_rate" else f"{value:.3f}"


def print_json(content: Any) -> None:
    """Print content as JSON, with null instead of NaN and infinity."""
    print(json.dumps(_without_nan(content), indent=1, default=str, allow_nan=False))


def _without_nan(content: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
