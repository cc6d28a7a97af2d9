"""Stopping without losing anything: signals and `--max-seconds` end the current step, then the state is saved."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from edgekd import console
from edgekd.errors import Interrupted, StoppedEarly

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, and the end of the terminal or of the connection to it."""


class Stop:
    """A request to stop, made by a signal or by a deadline, and asked for by long loops."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._signal = 0

    @property
    def requested(self) -> bool:
        """Whether the loop should save its state and call `raise_if_requested`."""
        return bool(self._signal) or (self._deadline is not None and time.monotonic() >= self._deadline)

    @property
    def interrupted(self) -> bool:
        """Whether a signal asked for it, and not only the deadline."""
        return bool(self._signal)

    def raise_if_interrupted(self, what: str) -> None:
        """Raise `Interrupted` when a signal asked for it; the deadline waits for what cannot be continued."""
        if self._signal:
            raise _interrupted(what, self._signal)

    def raise_if_requested(self, what: str = "the run") -> None:
        """Raise `Interrupted` or `StoppedEarly` when a stop was asked for."""
        self.raise_if_interrupted(what)
        if self.requested:
            raise StoppedEarly(f"{what} reached --max-seconds; the same command continues it.")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._signal and number == signal.SIGHUP:
            return  # a shell that ends and its terminal both send it: no second thought of the user's
        if self._signal:  # the second signal means now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number


@contextmanager
def graceful(max_seconds: float | None = None) -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests for as long as the context is open."""
    stop = Stop(max_seconds)
    with _handled(stop._on_signal):
        yield stop


@contextmanager
def at_once() -> Iterator[None]:
    """Let the same signals raise `Interrupted` at once, while the user is asked and nothing is at stake."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise _interrupted("the question", number)

    with _handled(end):
        yield


def _interrupted(what: str, number: int) -> Interrupted:
    name = signal.Signals(number).name
    return Interrupted(f"{what} was stopped by {name}; the same command continues it.", number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals in this way; a SIGHUP that nohup has told to ignore stays ignored."""
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _leave_terminal() -> None:
    """Send what is printed to nowhere where the terminal is gone: a message that fails would end the run unsaved."""
    for descriptor in console.descriptors():
        watch = select.poll()
        watch.register(descriptor, 0)
        if any(seen & select.POLLHUP for _, seen in watch.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
