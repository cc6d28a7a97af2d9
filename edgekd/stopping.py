"""Stopping without losing anything: signals and `--max-seconds` end the current step, then the state is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgekd.errors import Interrupted, StoppedEarly


class Stop:
    """A request to stop, made by a signal or by a deadline, and asked for by long loops."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._signal = 0

    @property
    def requested(self) -> bool:
        """Whether the loop should save its state and call `raise_if_requested`."""
        return bool(self._signal) or (self._deadline is not None and time.monotonic() >= self._deadline)

    def raise_if_requested(self, what: str = "the run") -> None:
        """Raise `Interrupted` or `StoppedEarly` when a stop was asked for."""
        if self._signal:
            name = signal.Signals(self._signal).name
            raise Interrupted(f"{what} was stopped by {name}; the same command continues it.", self._signal)
        if self.requested:
            raise StoppedEarly(f"{what} reached --max-seconds; the same command continues it.")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:  # the second signal means now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number


@contextmanager
def graceful(max_seconds: float | None = None) -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into requests for as long as the context is open."""
    stop = Stop(max_seconds)
    previous = {number: signal.signal(number, stop._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
