"""From the arguments of one command to a dataclass of its flags."""

import contextlib
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import docstring_parser
import tyro

from attnprobe.errors import UsageError
from attnprobe.tasks.folder import VARIABLE

Flags = TypeVar("Flags")


@dataclasses.dataclass(frozen=True)
class ReadsData:
    """What the commands share that need the data of a task."""

    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Data folder: archives are read there and data made once are kept there; ATTNPROBE_DATA, or your cache folder."""


def parse(kind: type[Flags], command: str, arguments: list[str], pairs: bool = False) -> Flags:
    """Return the flags of a command; raise `UsageError` with one line for bad ones, ``SystemExit`` after ``--help``.

    With ``pairs`` every truth value has a flag for either, --NAME and --no-NAME.
    """
    # tyro reports a bad flag in a box of many lines and exits; that text is caught and told in one.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = tyro.cli(
                cast(Any, kind),
                prog=f"attnprobe {command}",
                args=arguments,
                config=() if pairs else (tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue())) from None
    if getattr(flags, "data", None) is not None:
        os.environ[VARIABLE] = str(flags.data)  # for worker processes as well
    return flags


def _one_line(boxed: str) -> str:
    """Return what tyro says in its box: without frame and title, up to the part that repeats the help."""
    inside = [line.strip("│| \n") for line in boxed.splitlines()[1:]]
    text = " ".join(line for line in inside if re.search(r"\w", line))
    text = re.split(r" *(?:For full helptext|Argument helptext|Perhaps you meant|in attnprobe )", text)[0]
    return text or "the arguments cannot be read"


def flag(name: str, kind: Any, help: str | None, default: Any) -> tuple[str, Any, Any]:
    """Return a field of a dataclass of flags, for ``dataclasses.make_dataclass``."""
    if isinstance(default, dict):
        values = dict(default)
        return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default_factory=lambda: values)
    return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default=default)


def helps(documented: Any) -> dict[str, str | None]:
    """Return what a function or a dataclass says of its arguments or fields."""
    parsed = docstring_parser.parse_from_object(documented)
    return {one.arg_name: " ".join((one.description or "").split()) or None for one in parsed.params}
