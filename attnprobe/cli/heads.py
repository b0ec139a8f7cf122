"""Tables of a result: the main number of each head in one line, or all numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import xarray as xr

from attnprobe.cli.help import wrapped
from attnprobe.cli.printing import print_line, print_table
from attnprobe.report import rows
from attnprobe.results import main_number


def print_heads(result: xr.Dataset, complete: bool) -> None:
    """Print the numbers of the whole network, and those of each head.

    Args:
        result: Result at one checkpoint.
        complete: Print all numbers of each head instead of the main one.
    """
    why = rows.why(result)
    selected = _selected(result)
    numbers, texts = rows.head_rows(result, selected), rows.head_rows(why, selected)
    _print_network(result, why, complete)
    _print_layers(result, why, complete)
    if complete:
        for row, reasons in zip(numbers, texts, strict=True):
            print(f"\nlayer {row['layer']}, head {row['head']}")
            _print_row(row, reasons, result.attrs["ci_prob"])
    elif columns := _numbers(numbers[:1]):
        _print_ranked(result[selected], numbers, texts, columns)


def _selected(result: xr.Dataset) -> list[str]:
    """Return the variables that the measure selects for its table, or else all; without standard deviations."""
    names = [name for name in result.attrs.get("table", "").split() if name in result] or list(map(str, result))
    return [name for name in names if not (name.endswith("_std") and name.removesuffix("_std") in result)]


def _numbers(table: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the numbers in rows."""
    return list(dict.fromkeys(name for row in table for name, value in row.items() if isinstance(value, float)))


def _print_network(result: xr.Dataset, why: xr.Dataset, complete: bool) -> None:
    """Print the numbers of the whole network, without those under edits that the measure does not select."""
    selected = tuple(f"all_{name}" for name in result.attrs.get("table", "").split())
    for row, reasons in zip(rows.network_rows(result), rows.network_rows(why), strict=True):
        shown = {
            name: value
            for name, value in row.items()
            if complete or not name.startswith("all_") or name.startswith(selected)
        }
        if rows.table(shown, result.attrs["ci_prob"]) or rows.undefined(shown, reasons):
            print("\nwhole network")
            _print_row(shown, reasons, result.attrs["ci_prob"])


def _print_layers(result: xr.Dataset, why: xr.Dataset, complete: bool) -> None:
    """Print the numbers of each layer that the measure selects, or all that have no counterpart per head."""
    by_head = {str(name) for name in result if "head" in result[name].dims}
    own = [str(name) for name in result if str(name).removeprefix("layer_") not in by_head]
    names = own if complete else [name for name in own if name in result.attrs.get("table", "").split()]
    for row, reasons in zip(rows.layer_rows(result, names), rows.layer_rows(why, names), strict=True):
        print(f"\nlayer {row['layer']}")
        _print_row(row, reasons, result.attrs["ci_prob"])


def _print_ranked(
    result: xr.Dataset, numbers: list[dict[str, Any]], texts: list[dict[str, Any]], columns: list[str]
) -> None:
    """Print one line per head with the main number, its interval and the ranges of its nulls."""
    name, categories = main_number(result) or (columns[0], {})
    main = "_".join(map(str, [name, *categories.values()]))
    ranked = sorted(numbers, key=lambda row: -abs(row[main]) if row[main] == row[main] else 1.0)
    print()
    meaning = result[name].attrs.get("long_name", "")
    print(wrapped(f"{main} of each head, largest absolute value first{': ' if meaning else ''}{meaning}"))
    level = result.attrs["ci_prob"]
    lines = []
    for row in ranked:
        cells = rows.table({key: value for key, value in row.items() if key.startswith(main)}, level)
        where = {"layer": str(row["layer"]), "head": str(row["head"])}
        lines += [where | {key: cell for key, cell in line.items() if key} for line in cells if line[""] == main]
    print_table(_without_empty(lines))
    reasons = Counter(text[main] for row, text in zip(numbers, texts, strict=True) if main in rows.undefined(row, text))
    for reason, count in reasons.items():
        print_line(f"undefined in {count} {'head' if count == 1 else 'heads'}: {reason}")
    if len(columns) > 1:
        print(f"\n--all prints {len(columns)} numbers of each head")


def _without_empty(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the lines of a table without the columns, such as nulls that were not drawn, in which all are empty."""
    return [{key: cell for key, cell in line.items() if any(other[key] for other in lines)} for line in lines]


def _print_row(row: dict[str, Any], texts: dict[str, Any], level: float) -> None:
    """Print the values of a row as a table, below it the undefined ones with their reasons, and texts."""
    if lines := rows.table(row, level):
        print_table(_without_empty(lines))
    missing = rows.undefined(row, texts)
    width = max(map(len, missing), default=0)
    for name, text in missing.items():
        print_line(f"{name.rjust(width)} undefined: {text}")
    for name, value in row.items():
        if isinstance(value, str) and value and value not in missing.values():
            print_line(f"{name.replace('_', ' ')}: {value}")
