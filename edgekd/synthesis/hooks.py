"""Looking into a network's forward passes: hooks hand in what they see, and it is kept only within `recording`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Recorded = TypeVar("Recorded")


class HookRecorder(Generic[Recorded]):
    """Where hooks hand in what they see."""

    recorded: list[Recorded] | None = None
    """None outside `recording`."""


@contextmanager
def recording(recorder: HookRecorder[Recorded] | None) -> Iterator[list[Recorded]]:
    """Collect what a recorder's hooks hand in; nothing without a recorder."""
    recorded: list[Recorded] = []
    if recorder is None:
        yield recorded
        return
    recorder.recorded = recorded
    try:
        yield recorded
    finally:
        recorder.recorded = None
