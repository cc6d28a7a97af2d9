"""Looking into a network's forward passes: hooks hand in tensors, and are heard only within `watched`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Watcher:
    """Collects the tensors its hooks see while somebody watches."""

    def __init__(self) -> None:
        self._seen: list[Tensor] | None = None

    @property
    def listens(self) -> bool:
        """Whether a tensor handed in now is kept."""
        return self._seen is not None

    def see(self, tensor: Tensor) -> None:
        """Keep a tensor, if somebody watches."""
        if self._seen is not None:
            self._seen.append(tensor)

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """Collect into the list that is given out."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[list[Tensor]]:
    """Collect what a watcher sees; nothing without one."""
    if watcher is None:
        yield []
    else:
        with watcher.collecting() as seen:
            yield seen
