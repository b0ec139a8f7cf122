"""The command line: one module a command, and only the one that was typed is built.

User errors print one line and exit with status 2.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from attnprobe.errors import UsageError, listed
from attnprobe.tables import MEASURES

PROG = "attnprobe"
COMMANDS = {
    "demo": "Train both recipes on two tasks, and show what their scores learned.",
    "train": "Train a network with one of the two recipes; every setting is a flag.",
    "sweep": "Train every combination of the settings in a file, each once, into one table.",
    "tasks": "List the tasks, or build one and count what is in it.",
    "show": "Show what a checkpoint holds, or which checkpoints a run has.",
    "report": "Write every measure with its figures, and one page with a section for each.",
}
"""Commands besides the measures; each is a module of this package with a function ``run``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; raise ``SystemExit`` with status 2 for a user error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except UsageError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of the output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _dispatch(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from importlib.metadata import version  # a tenth of this command's time

        print(version(PROG))
    elif name in COMMANDS:
        import_module(f"{__name__}.{name}").run(rest)
    elif name in MEASURES:
        import_module(f"{__name__}.measure").run(name, rest)
    else:
        raise UsageError(f"{name!r} is no command; valid: {listed([*COMMANDS, *MEASURES])}")


def _help() -> str:
    width = max(map(len, [*COMMANDS, *MEASURES])) + 2
    commands = [f"  {name:<{width}}{said}" for name, said in COMMANDS.items()]
    measures = [f"  {name:<{width}}{MEASURES.summary(name)}" for name in MEASURES]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND ...",
            "",
            "What did the query-key scores learn?",
            "",
            "commands:",
            *commands,
            "",
            "measures, of a checkpoint or of every checkpoint of a run:",
            *measures,
            "",
            f"{PROG} COMMAND --help says what a command takes; {PROG} --version says which version this is.",
        ]
    )
