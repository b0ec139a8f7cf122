"""Help texts of the flags of a command, in as many columns as the terminal has."""

import contextlib
import dataclasses
import io
import re
import shutil
import sys
import textwrap
import typing
from typing import Annotated, Any, Literal, TypeVar, cast

import docstring_parser
import tyro

Flags = TypeVar("Flags")


class Output(io.StringIO):
    """Text that is going to be written to the standard output."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Encoding of the standard output, which decides on the frames."""
        return getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether colours can be used."""
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def wrapped(text: str, indent: str = "") -> str:
    """Return text with lines that are longer than the terminal wrapped, to 80 columns outside of a terminal."""
    width = shutil.get_terminal_size().columns
    wrap = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    visible = (re.sub("\x1b\\[[0-9;]*m", "", line) for line in text.split("\n"))
    pairs = zip(text.split("\n"), visible, strict=True)
    return "\n".join(line if len(shown) <= width else wrap.fill(line) for line, shown in pairs)


def explained(kind: type[Flags]) -> type[Flags]:
    """Return a dataclass of flags with help texts without line breaks, and only values and defaults that inform."""
    types = typing.get_type_hints(kind, include_extras=True)
    texts: dict[str, str | None] = {}
    for base in kind.__mro__:
        with contextlib.suppress(OSError, TypeError):  # made by make_dataclass, which has no source
            texts = helps(base) | texts
    fields = []
    for field in dataclasses.fields(cast(Any, kind)):
        annotated = types[field.name]
        inner, *metadata = typing.get_args(annotated) if typing.get_origin(annotated) is Annotated else [annotated]
        given = {name: value for part in metadata for name, value in getattr(part, "__dict__", {}).items() if value}
        text = given.get("help") or texts.get(field.name)
        if text and "help_behavior_hint" not in given:
            optional = type(None) in typing.get_args(inner) and tyro.conf.Positional not in metadata
            metavar = given.get("metavar") or (values(inner) if optional else None)
            required = field.default is field.default_factory is dataclasses.MISSING
            annotated = Annotated[annotated, _help(text, metavar, required)]
        default = {name: getattr(field, name) for name in ("default", "default_factory", "kw_only")}
        fields.append((field.name, annotated, dataclasses.field(**cast(Any, default))))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)


def _help(text: str, metavar: str | None, required: bool) -> Any:
    """Return the help of a flag, without a default that goes without saying."""
    if required:  # tyro says so, except for tuples, which it takes for empty by default
        return tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint="")
    # The hint gets the last word: tyro puts a space before it, which can begin an empty line.
    rest, _, last = text.rpartition(" ")

    def hint(default: str) -> str:
        return last if default in ("", "None", "False") else f"{last} (default: {default})"

    return tyro.conf.arg(help=rest, metavar=metavar, help_behavior_hint=hint)


def values(kind: Any) -> str:
    """Return the values of a flag for help texts: {a,b}, INT, STR ..., without the None that means absent."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, parts))}}}"
    if typing.get_origin(kind) is tuple:
        return " ".join(map(values, parts))
    return values(parts[0]) if parts else kind.__name__.upper()


def helps(documented: Any) -> dict[str, str | None]:
    """Return the description of each argument of a function or field of a dataclass, from its docstrings."""
    parsed = docstring_parser.parse_from_object(documented)
    return {param.arg_name: " ".join((param.description or "").split()) or None for param in parsed.params}
