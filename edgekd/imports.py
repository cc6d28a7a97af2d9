"""Imports of the user's own code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def from_here() -> Iterator[None]:
    """Let imports see the working directory, as `python -m` does and an installed command does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code that was imported may have removed it
            sys.path.remove(here)
