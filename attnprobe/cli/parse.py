"""Parse the arguments of a command into a dataclass of flags."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro

from attnprobe.cli.help import Output, explained, helps, values, wrapped
from attnprobe.cli.printing import write_plain
from attnprobe.errors import UsageError, choices, suggestion
from attnprobe.tasks.folder import VARIABLE

Flags = TypeVar("Flags")
NARROWEST = 40
"""Smallest number of columns to which the help is wrapped; tyro takes minutes for 1 column."""


@dataclasses.dataclass(frozen=True)
class ReadsData:
    """Flags of all commands that read the data of a task."""

    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of archives and generated data; by default ATTNPROBE_DATA or the user cache folder."""


@dataclasses.dataclass(frozen=True)
class ShowsProgress:
    """Flags of all commands that show their progress."""

    quiet: bool = False
    """Show no progress."""


def parse(kind: type[Flags], command: str, arguments: list[str], pairs: bool = False) -> Flags:
    """Parse the arguments of a command.

    Args:
        kind: Dataclass of the flags.
        command: Name of the command, for the usage message.
        arguments: Arguments after the command.
        pairs: Give every boolean the two flags --NAME and --no-NAME, instead of --NAME only.

    Returns:
        Instance of ``kind``.

    Raises:
        UsageError: With a one-line message if an argument is invalid.
        SystemExit: After ``--help``.
    """
    write_plain()
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    # tyro prints a multi-line box for an invalid flag and exits: capture the box and raise a one-line error.
    # It does not wrap the description either.
    stdout, stderr = Output(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            flags = tyro.cli(
                cast(Any, explained(kind)),
                prog=f"attnprobe {command}",
                description=inspect.getdoc(kind),
                args=arguments,
                config=() if pairs else (tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            print(wrapped(stdout.getvalue()), end="")
            raise
        raise UsageError(_with_choices(_one_line(stderr.getvalue()), kind)) from None
    if getattr(flags, "data", None) is not None:
        os.environ[VARIABLE] = str(flags.data)  # for worker processes as well
    return flags


def _one_line(box: str) -> str:
    """Return the message in tyro's box, without frame, title and repeated help."""
    lines = [line.strip("│| \n") for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if re.search(r"\w", line))
    text = re.split(r" *(?:For full helptext|Argument helptext|Perhaps you meant|in attnprobe )", text)[0]
    return text or "invalid arguments"


def _with_choices(message: str, kind: type[Any]) -> str:
    """Return tyro's message about an unknown flag or value with the most similar valid one."""
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.", message):
        value, argument, valid = choice.groups()
        names = re.findall("'([^']*)'", valid)
        return f"{argument} {value} is unknown; {choices(value, names)}"
    if unknown := re.match(r"Unrecognized options: (--[^\s,=]+)", message):
        flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(kind)]
        return f"{message}; {suggestion(unknown[1], flags)}".rstrip("; ")
    return message


def flag(name: str, kind: Any, help: str | None, default: Any) -> tuple[str, Any, Any]:
    """Return the field of a flag for ``dataclasses.make_dataclass``."""
    if isinstance(default, dict):
        values = dict(default)
        return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default_factory=lambda: values)
    return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default=default)


def with_fields(flags: type[Flags], kind: type[Any]) -> type[Flags]:
    """Return a dataclass of flags with the fields of a settings class as further flags, None by default."""
    types, texts = typing.get_type_hints(kind, include_extras=True), helps(kind)
    fields = []
    for field in dataclasses.fields(kind):
        hint = "(optional)" if field.default is None else f"(default: {field.default})"
        argument = tyro.conf.arg(help=texts[field.name], help_behavior_hint=hint, metavar=values(types[field.name]))
        fields.append((field.name, Annotated[types[field.name] | None, argument], dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(flags.__name__, fields, bases=(flags,), frozen=True)
    made.__doc__ = flags.__doc__
    return made


def given(flags: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the flags of a settings class (`with_fields`) that were given."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value is not None}
