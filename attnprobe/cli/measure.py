"""Commands of the measures: flags come from a measure's keyword arguments, help from its docstring."""

import dataclasses
import functools
import inspect
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import tyro
import xarray as xr

from attnprobe import report
from attnprobe.cli.heads import print_heads
from attnprobe.cli.help import helps
from attnprobe.cli.parse import ReadsData, ShowsProgress, flag, parse
from attnprobe.cli.printing import print_json, print_line
from attnprobe.errors import UsageError, listed
from attnprobe.former_names import KEYWORDS, refuse_former_flags
from attnprobe.networks import hugging_face
from attnprobe.networks.hugging_face import PREFIX
from attnprobe.progress import silenced
from attnprobe.report import rows
from attnprobe.tables import MEASURES
from attnprobe.training.checkpoint import load
from attnprobe.training.run import Run

INPUTS = ("text", "tokens", "images", "task", "site", "leave_out")
"""Flags of Hugging Face models."""


@dataclasses.dataclass(frozen=True)
class Measure(ReadsData, ShowsProgress):
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
    step: int | None = None
    """Step of the checkpoint of a run to measure, or of checkpoint-STEP in a Hugging Face folder; all by default."""
    all: bool = False
    """Print all numbers of each head, instead of the main number of each head in one line."""
    json: bool = False
    """Print all numbers as JSON."""


def run(name: str, arguments: list[str]) -> None:
    """Run a measure, write its result and figure, and print its table."""
    refuse_former_flags(arguments, KEYWORDS.get(name, {}))
    flags: Any = parse(flags_of(name), name, arguments)
    options = {keyword: getattr(flags, keyword) for keyword in _keywords(name)}
    with silenced(flags.quiet):
        if str(flags.path).startswith(PREFIX):
            result, folder = _of_hugging_face(name, flags, options)
        else:
            result, folder = _of_ours(name, flags, options)
    if flags.json:
        _print_json(result)
        return
    last = result.isel(step=-1) if "step" in result.dims else result
    print_line(last.attrs.get("title", last.attrs.get("run_title")))
    print_heads(last, complete=flags.all)
    print()
    print_line(f"figures and results: {folder}")


def _of_ours(name: str, flags: Any, options: dict[str, Any]) -> tuple[xr.Dataset, Path]:
    """Measure a checkpoint or a run, and return the result and the folder of the files."""
    path = flags.path
    given = [field for field in ("text", "tokens", "images", "task", "site") if getattr(flags, field) is not None]
    if given:
        raise UsageError(f"--{given[0]} is for Hugging Face models ({PREFIX}FOLDER, {PREFIX}OWNER/NAME), not {path}")
    if not path.is_dir():
        if flags.step is not None:
            raise UsageError(f"--step {flags.step}: is for run folders, not {path}")
        folder = flags.out or report.write.default_folder(path)
        return report.write.write_checkpoint(name, load(path), folder, options), folder
    run = Run.open(path)
    if flags.step is not None:
        checkpoint = run.at(flags.step)
        folder = flags.out or report.write.default_folder(run.path_of(flags.step))
        return report.write.write_checkpoint(name, checkpoint, folder, options), folder
    folder = flags.out or report.write.default_folder(run.folder)
    return report.write.write_run(name, run, folder, options, progress=_has_bars(flags)), folder


def _of_hugging_face(name: str, flags: Any, options: dict[str, Any]) -> tuple[xr.Dataset, Path]:
    """Measure a Hugging Face model or a series of them, and return the result and the folder of the files."""
    model = str(flags.path).removeprefix(PREFIX)
    inputs = {field: getattr(flags, field) for field in INPUTS}
    load_model = functools.partial(hugging_face.load, rows=options["sequences"], **inputs)
    folder, steps = flags.out or Path("figures") / Path(model).name, hugging_face.series(model)
    if flags.step is not None:
        if flags.step not in steps:
            valid = f"valid: {listed(steps)}" if steps else "it has no folders checkpoint-STEP"
            raise UsageError(f"{flags.path}: has no checkpoint at step {flags.step}; {valid}")
        folder = flags.out or folder / f"step-{flags.step:06d}"
        probe = load_model(steps[flags.step], step=flags.step)
        return report.write.write_checkpoint(name, probe, folder, options), folder
    if not steps:
        return report.write.write_checkpoint(name, load_model(model), folder, options), folder
    subjects = {f"step-{step:06d}": functools.partial(load_model, path, step=step) for step, path in steps.items()}
    return report.write.write_series(name, subjects, folder, options, progress=_has_bars(flags)), folder


def _has_bars(flags: Any) -> bool:
    """Return whether a bar over checkpoints is drawn, above the progress of each measure."""
    return not (flags.json or flags.quiet) and sys.stderr.isatty()


def _print_json(result: xr.Dataset) -> None:
    """Print a dictionary for the whole network, for each layer and for each head, with reasons of undefined values."""
    why = rows.why(result)
    pairs = [(of(result), of(why)) for of in (rows.network_rows, rows.layer_rows, rows.head_rows)]
    print_json(
        [
            row | {f"{name}_undefined": text for name, text in rows.undefined(row, texts).items()}
            for both in pairs
            for row, texts in zip(*both, strict=True)
        ]
    )


def _keywords(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(MEASURES[name]).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def flags_of(name: str) -> type[Measure]:
    """Return the dataclass of the flags of a measure: the shared ones, and one per keyword argument."""
    measure, keywords = MEASURES[name], _keywords(name)
    texts, types = helps(measure), typing.get_type_hints(inspect.unwrap(measure), include_extras=True)
    fields = [
        flag(key, types.get(key, keyword.annotation), texts.get(key), keyword.default)
        for key, keyword in keywords.items()
    ]
    flags = dataclasses.make_dataclass(name, fields, bases=(Measure,), frozen=True)
    flags.__doc__ = (inspect.getdoc(measure) or "").split("\n")[0]
    return flags
