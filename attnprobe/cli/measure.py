"""Commands of the measures: flags come from a measure's keyword arguments, help from its docstring."""

import dataclasses
import functools
import inspect
import typing
from pathlib import Path
from typing import Any, Literal

import tyro

from attnprobe import report
from attnprobe.cli.parse import ReadsData, flag, helps, parse
from attnprobe.cli.printing import print_json, print_line, print_table
from attnprobe.errors import UsageError
from attnprobe.former_names import KEYWORDS, refuse_former_flags
from attnprobe.networks import hugging_face
from attnprobe.networks.hugging_face import PREFIX
from attnprobe.report import rows
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run

INPUTS = ("text", "tokens", "images", "task", "site", "leave_out")
"""Flags of Hugging Face models."""


@dataclasses.dataclass(frozen=True)
class Measure(ReadsData):
    """Arguments shared by the commands of all measures; each measure adds its keyword arguments as fields."""

    path: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """Checkpoint; run folder: measures every checkpoint and the evolution over steps; or hf:FOLDER, hf:OWNER/NAME: a
    Hugging Face model, or a folder of its checkpoint-STEP, with --text, --tokens, --images or --task."""
    text: Path | None = None
    """Text file for a Hugging Face model; every line is a sequence."""
    tokens: Path | None = None
    """An .npz file with inputs of a Hugging Face model (input_ids ..., optionally labels)."""
    images: Path | None = None
    """Folder of images for a Hugging Face model."""
    task: str | None = None
    """Task whose test sequences a Hugging Face model is measured on."""
    site: str | None = None
    """Pattern of the attention modules to measure in a Hugging Face model, such as 'encoder.*'."""
    leave_out: Literal["special", "none"] = "special"
    """Tokens of a Hugging Face model that attend but are not measured."""
    out: Path | None = None
    """Folder for the result (.nc) and figure (.png, .pdf); default: figures/STEP in the run folder, or
    figures/NAME for a Hugging Face model."""
    json: bool = False
    """Print the table as JSON."""


def run(name: str, arguments: list[str]) -> None:
    """Run a measure, write its result and figure, and print its table."""
    refuse_former_flags(arguments, KEYWORDS.get(name, {}))
    keywords = _keywords(name)
    flags: Any = parse(_flags(name, keywords), name, arguments)
    options = {keyword: getattr(flags, keyword) for keyword in keywords}
    foreign = str(flags.path).startswith(PREFIX)
    name_or_folder = str(flags.path).removeprefix(PREFIX)
    own_folder = Path("figures") / Path(name_or_folder).name if foreign else report.write.default_folder(flags.path)
    folder = flags.out or own_folder
    if foreign:
        inputs = {field: getattr(flags, field) for field in INPUTS}
        load_model = functools.partial(hugging_face.load, rows=options["sequences"], **inputs)
        if steps := hugging_face.series(name_or_folder):
            subjects = {
                f"step-{step:06d}": functools.partial(load_model, path, step=step) for step, path in steps.items()
            }
            result = report.write.write_series(name, subjects, folder, options, progress=not flags.json)
            last = result.isel(step=-1)
        else:
            result = last = report.write.write_checkpoint(name, load_model(name_or_folder), folder, options)
    elif given := [
        f"--{field}" for field in ("text", "tokens", "images", "task", "site") if getattr(flags, field) is not None
    ]:
        raise UsageError(
            f"{given[0]} is for Hugging Face models ({PREFIX}FOLDER, {PREFIX}OWNER/NAME), not {flags.path}"
        )
    elif flags.path.is_dir():
        result = report.write.write_run(name, Run.open(flags.path), folder, options, progress=not flags.json)
        last = result.isel(step=-1)
    else:
        result = last = report.write.write_checkpoint(name, load(flags.path), folder, options)
    if flags.json:
        why = rows.why(result)
        pairs = [(rows.network_rows(result), rows.network_rows(why)), (rows.head_rows(result), rows.head_rows(why))]
        print_json(
            [
                row | {f"{name}_undefined": text for name, text in rows.undefined(row, texts).items()}
                for both in pairs
                for row, texts in zip(*both, strict=True)
            ]
        )
        return
    print_line(last.attrs.get("title", last.attrs.get("run_title")))
    _print_numbers(last)
    print()
    print_line(f"figures and results: {folder}")


def _keywords(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(MEASURES[name]).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def _flags(name: str, keywords: dict[str, inspect.Parameter]) -> type[Measure]:
    measure = MEASURES[name]
    texts, types = helps(measure), typing.get_type_hints(inspect.unwrap(measure), include_extras=True)
    fields = [
        flag(key, types.get(key, keyword.annotation), texts.get(key), keyword.default)
        for key, keyword in keywords.items()
    ]
    flags = dataclasses.make_dataclass(name, fields, bases=(Measure,), frozen=True)
    flags.__doc__ = (inspect.getdoc(measure) or "").split("\n")[0]
    return flags


def _print_numbers(result: Any) -> None:
    """Print one table for the whole network and one per head, with intervals and the ranges of the nulls."""
    level, why = result.attrs["ci_prob"], rows.why(result)
    for row, texts in zip(rows.network_rows(result), rows.network_rows(why), strict=True):
        if rows.table(row, level) or rows.undefined(row, texts):
            print("\nwhole network")
            _print_row(row, texts, level)
    for row, texts in zip(rows.shown_rows(result), rows.shown_rows(why), strict=True):
        print(f"\nlayer {row['layer']}, head {row['head']}")
        _print_row(row, texts, level)
        printed = ["", *rows.undefined(row, texts).values()]
        notes = [
            f"{name.replace('_', ' ')}: {value}"
            for name, value in row.items()
            if isinstance(value, str) and value not in printed
        ]
        for note in notes:
            print_line(note)


def _print_row(row: dict[str, Any], texts: dict[str, Any], level: float) -> None:
    """Print the values of a row as a table, and below it the values that are undefined, with their reasons."""
    if lines := rows.table(row, level):
        print_table(lines)
    missing = rows.undefined(row, texts)
    width = max(map(len, missing), default=0)
    for name, text in missing.items():
        print_line(f"{name.rjust(width)} undefined: {text}")
