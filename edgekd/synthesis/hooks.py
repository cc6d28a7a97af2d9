"""Looking into a network's forward passes: hooks hand in what they see, and it is kept only within `recording`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Seen = TypeVar("Seen")


class HookRecorder(Generic[Seen]):
    """Where hooks hand in what they see."""

    seen: list[Seen] | None = None
    """None while nobody watches."""


@contextmanager
def recording(watcher: HookRecorder[Seen] | None) -> Iterator[list[Seen]]:
    """Collect what a watcher sees; nothing without one."""
    seen: list[Seen] = []
    if watcher is None:
        yield seen
        return
    watcher.seen = seen
    try:
        yield seen
    finally:
        watcher.seen = None
