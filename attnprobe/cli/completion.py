"""``attnprobe completion``.

The script that is printed holds all names, so that completing them does not start Python.
"""

import dataclasses
import shlex
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import tyro

from attnprobe.cli import COMMANDS, animate, demo, measure, report, show, sweep, tasks, train
from attnprobe.cli.parse import parse
from attnprobe.tables import EDITS, MEASURES, OBJECTIVES, TASKS
from attnprobe.tasks.presets import PRESETS

NAMES: dict[str, Iterable[str]] = {
    "task": TASKS,
    "preset": PRESETS,
    "device": ("cpu", "cuda", "mps"),
    "edits": EDITS,
    "objectives": OBJECTIVES,
    "measure": MEASURES,
}
"""Values of flags that are any text for their types."""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
"""What makes zsh read scripts of bash."""
SCRIPT = """\
_attnprobe() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    elif [ "${{current#-}}" != "$current" ]; then
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
    else
        case "${{COMP_WORDS[1]}} $previous" in
{values}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _attnprobe attnprobe
"""
"""Without a match, the shell completes names of files."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """Print a script that completes commands, flags, tasks, presets and other names in a shell.

    Write it to a file and read that in ~/.bashrc or ~/.zshrc with the line: source FILE
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Shell that is to read the script."""


def run(arguments: list[str]) -> None:
    """Print the script."""
    flags = parse(Completion, "completion", arguments)
    print((ZSH if flags.shell == "zsh" else "") + script(), end="")


def script() -> str:
    """Return the script for bash."""
    kinds = {
        "demo": demo.Demo,
        "train": train.with_settings(),
        "sweep": sweep.Sweep,
        "tasks": tasks.with_reading(),
        "show": show.Show,
        "report": report.Report,
        "animate": animate.Animate,
        "completion": Completion,
        **{name: measure.flags_of(name) for name in MEASURES},
    }
    flags, values = [], [_case("tasks tasks", TASKS), _case("completion completion", ("bash", "zsh"))]
    for command, kind in kinds.items():
        types = typing.get_type_hints(kind, include_extras=True)
        named = {name: found for name, found in types.items() if tyro.conf.Positional not in typing.get_args(found)}
        names = {name: f"--{name.replace('_', '-')}" for name in named}
        opposite = [
            f"--no-{name[2:]}" for field, name in names.items() if command == "train" and _is_bool(named[field])
        ]
        flags.append(_case(command, [*names.values(), *opposite, "--help"]))
        for name, found in named.items():
            if choices := list(NAMES.get(name, ())) or _choices(found):
                values.append(_case(f"{command} {names[name]}", choices))
    return SCRIPT.format(
        commands=_quoted([*COMMANDS, *MEASURES, "--help", "--version"]),
        flags="\n".join(flags),
        values="\n".join(values),
    )


def _is_bool(kind: Any) -> bool:
    return kind is bool or (typing.get_origin(kind) is Annotated and typing.get_args(kind)[0] is bool)


def _case(pattern: str, words: Iterable[str]) -> str:
    return f"            {shlex.quote(pattern)}) words={_quoted(words)} ;;"


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _choices(kind: Any) -> list[str]:
    """Return the values of a type that is a choice, or a tuple of choices, or optional."""
    if typing.get_origin(kind) is Literal:
        return [str(value) for value in typing.get_args(kind)]
    return [choice for part in typing.get_args(kind) for choice in _choices(part)]
