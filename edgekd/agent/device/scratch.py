"""Temporary folders that outlive no process for long: what a SIGKILL leaves, the next process of the user removes.

Whoever made one holds a lock on it, which ends with the process however that ends; a folder without is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "edgekd-scratch-"
_NAME = re.compile(PREFIX + "[a-z0-9_]{8}")
_swept: set[str] = set()
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a new folder in the temporary place, which is removed at the end."""
    place = tempfile.gettempdir()
    if place not in _swept:
        _swept.add(place)
        sweep()
    path, held = _made()
    try:
        yield path
    finally:
        shutil.rmtree(str(path), ignore_errors=True)  # what resists is left to the next sweep
        os.close(held)


def sweep() -> None:
    """Remove the folders of this user in the temporary place that no living process holds."""
    with suppress(OSError):  # a place that cannot be listed
        for path in Path(tempfile.gettempdir()).iterdir():
            if _NAME.fullmatch(path.name):
                _remove_if_dead(str(path))


def _made() -> tuple[Path, int]:
    """A new folder and the descriptor whose lock says that it is in use."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # a sweep came in between, here and below
            held = os.open(str(path), _OPEN)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                continue
            except OSError:  # a file system without locks: no sweep gets one either
                return path, held
            if path.exists():
                return path, held
            os.close(held)


def _remove_if_dead(path: str) -> None:
    with suppress(OSError):  # gone, a link, somebody else's, or in use
        held = os.open(path, _OPEN)
        try:
            if os.fstat(held).st_uid == os.geteuid():
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(held)
