"""Print tables and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a right-aligned table with three decimals; columns missing from a row are NaN."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(name, row.get(name, math.nan)) for name in columns] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print(" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.1e}" if name == "learning_rate" else f"{value:.3f}"
    return str(value)


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
