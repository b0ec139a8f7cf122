"""Progress on standard error: a bar in a terminal or notebook, otherwise one line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
"""Smallest time between two lines, in a file or the log of a cluster job."""
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} elapsed, {remaining} left{postfix}"

_silent = ContextVar("silent", default=False)


class Bar(tqdm):
    """Progress bar that can move between updates of its count."""

    def note(self, text: str) -> None:
        """Set the description, and redraw the bar if this was not done just now."""
        self.set_description_str(text, refresh=False)
        if self.disable:
            return
        now = time.time()
        if now - self.last_print_t >= self.mininterval and now >= self.start_t + self.delay:
            self.last_print_t = now
            self.refresh()


class Lines(Bar):
    """The same without carriage returns: every refresh is a line."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state as a line."""
        print(str(self) if msg is None else msg, file=self.fp, flush=True)

    def close(self) -> None:
        """Print the last line."""
        if self.disable:
            return
        self.disable = True
        if self.leave:
            self.display()


def bar(total: int, text: str, unit: str, *, shown: bool = True, **options: Any) -> Bar:
    """Return the progress of ``total`` units of work, as a context manager with ``update(count)`` and ``note(text)``.

    Args:
        total: Number of units.
        text: Description.
        unit: Noun for one unit.
        shown: Whether to print anything.
        **options: ``initial``, ``delay`` and ``leave`` of ``tqdm``.
    """
    disable = not shown or _silent.get()
    common = {"total": total, "desc": text, "unit": unit, "disable": disable, **options}
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return Bar(dynamic_ncols=True, **common)
    return Lines(mininterval=SECONDS, maxinterval=SECONDS, miniters=1, bar_format=LINE, **common)


@contextlib.contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """Print no progress within the ``with`` block."""
    token = _silent.set(silent)
    try:
        yield
    finally:
        _silent.reset(token)
