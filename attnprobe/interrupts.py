"""Signals that stop training: the current step ends, the state is saved, and only then the signal takes effect."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN_AFTER = 0.5
"""Seconds after which a further signal stops at once; launchers pass on a signal that the process received as well."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work; the message says what is saved and how to go on."""

    def __init__(self, number: int, reason: str) -> None:
        """Make the exception of a signal."""
        super().__init__(reason)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status by the convention of shells: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def terminate(number: int, frame: FrameType | None) -> None:
    """Signal handler: raise `Interrupted`, so that SIGTERM cleans up as SIGINT does."""
    raise Interrupted(number, "terminated" if number == signal.SIGTERM else "interrupted")


class Signals:
    """Context in which SIGINT and SIGTERM are noted instead of taking effect; a second signal takes effect at once.

    Only handlers of Python and of attnprobe are replaced, only in the main thread, and they are restored on exit: a
    signal that the program handles itself, or ignores, is not touched.
    """

    def __init__(self) -> None:
        """Make a context that has received nothing."""
        self.received: int | None = None
        self._at = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Replace the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.getsignal(number)
                if former in (signal.default_int_handler, signal.SIG_DFL, terminate):
                    self._former[number] = former
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers."""
        for number, former in self._former.items():
            signal.signal(number, former)

    def deliver(self, reason: str) -> None:
        """Let the noted signal take effect, after the context: raise `Interrupted`, or end as SIGTERM does by default.

        A process that stops because another one of the same training received a signal counts as terminated.
        """
        if self.received is not None and self._former[self.received] is signal.SIG_DFL:
            signal.raise_signal(self.received)
        raise Interrupted(self.received or signal.SIGTERM, reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > AGAIN_AFTER:
            self.__exit__()
            signal.raise_signal(number)


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Handle SIGTERM by `terminate`, in the main thread and unless the program handles it itself."""
    replaced = threading.current_thread() is threading.main_thread()
    replaced = replaced and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if replaced:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
