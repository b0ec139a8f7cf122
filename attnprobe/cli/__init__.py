"""Command line: one module per command, imported only if the command is used.

User errors print one line and exit with status 2.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from attnprobe.errors import DataWarning, UsageError, abridged, choices, printable
from attnprobe.interrupts import Interrupted, terminating
from attnprobe.tables import MEASURES
from attnprobe.training.metrics import DamageWarning
from attnprobe.training.rank import is_main_process

PROG = "attnprobe"
COMMANDS = {
    "demo": "Train both recipes on two tasks and compare what their scores learned.",
    "train": "Train a network with one of the two recipes; every setting is a flag.",
    "sweep": "Train every combination of the settings in a file once, and collect the results in one table.",
    "tasks": "List the tasks, or build one task and report its statistics.",
    "show": "Show the contents of a checkpoint, or list the checkpoints of a run.",
    "report": "Run every measure and write its figures and one HTML page.",
    "animate": "Measure every checkpoint of a run, and write the figures as a GIF or MP4.",
    "completion": "Print a script that completes commands, flags and names in bash or zsh.",
}
"""Commands other than measures; each is a module of this package with a function ``run``."""
NARROWEST = 20
"""Smallest number of columns of a summary."""
MOST_REASON = 300
"""Largest number of characters of the reason in a message about memory."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: Command and its arguments; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: With status 2 for a user error, 130 after SIGINT and 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with terminating(), _warnings_in_one_line():
            _dispatch(arguments)
    except UsageError as error:
        print(f"{PROG}: {_with_flags(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        reason = printable(abridged(str(error).strip().split("\n")[0], MOST_REASON))
        print(f"{PROG}: not enough memory ({reason})", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of the output has exited, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        reason = error.strerror or f"{type(error).__name__}: {error}"
        print(f"{PROG}: {UsageError(f'{where}{reason}')}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        interrupted = stop if isinstance(stop, Interrupted) else Interrupted(signal.SIGINT, "interrupted")
        if is_main_process():
            print(f"{PROG}: {interrupted}", file=sys.stderr)
        raise SystemExit(interrupted.status) from None


def _with_flags(message: str) -> str:
    """Return a message in which options of the user's data are flags instead of keywords."""
    message = re.sub(r"\b(unlabelled|empty|kind|tokens|standardise)='(\w+)'", r"--\1 \2", message)
    return re.sub(r"\bn=(\d+) (cuts|keeps)", r"--n \1 \2", message)


def _dispatch(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from importlib.metadata import version  # slow, so only if needed

        print(version(PROG))
    elif name in COMMANDS:
        import_module(f"{__name__}.{name}").run(rest)
    elif name in MEASURES:
        import_module(f"{__name__}.measure").run(name, rest)
    else:
        raise UsageError(f"unknown command {name!r}; {choices(name, [*COMMANDS, *MEASURES])}")


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings about files and data without the line of code that found the reason."""
    default = warnings.formatwarning

    def formatted(message: Any, category: Any, *rest: Any, **named: Any) -> str:
        is_ours = issubclass(category, DamageWarning | DataWarning)
        return f"{PROG}: {message}\n" if is_ours else default(message, category, *rest, **named)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = default


def _help() -> str:
    width, indent = shutil.get_terminal_size().columns, max(map(len, [*COMMANDS, *MEASURES])) + 4

    def line(name: str, summary: str) -> str:
        columns = max(width, indent + NARROWEST)
        return textwrap.fill(f"{f'  {name}':<{indent}}{summary}", columns, subsequent_indent=" " * indent)

    commands = [line(name, summary) for name, summary in COMMANDS.items()]
    measures = [line(name, MEASURES.summary(name)) for name in MEASURES]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND ...",
            "",
            textwrap.fill("Train small Transformers and measure what their query-key scores learn.", width),
            "",
            "commands:",
            *commands,
            "",
            "measures, of a checkpoint or of every checkpoint of a run:",
            *measures,
            "",
            f"{PROG} COMMAND --help lists the arguments of a command.",
            f"{PROG} --version prints the version.",
        ]
    )
