"""Tables and JSON on the terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as columns, right-aligned, with three decimals; rows may lack some columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(name, row.get(name, math.nan)) for name in columns] for row in rows]
    widths = [max(len(one) for one in column) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print(" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.1e}" if name == "learning_rate" else f"{value:.3f}"
    return str(value)


def print_json(content: Any) -> None:
    """Print JSON, which has no NaN: null takes its place."""
    print(json.dumps(_without_nan(content), indent=1, default=str, allow_nan=False))


def _without_nan(content: Any) -> Any:
    """Return the content with null for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
