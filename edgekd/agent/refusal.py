"""The one exception of the device's side: a request that cannot be served."""

from __future__ import annotations

import os

from edgekd.errors import lacks_memory
from edgekd.text import first_line


class RefusedError(Exception):
    """A request that cannot be served; `kind` says who has to act: file, usage, machine, busy, protocol or fault."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def refusal_of(error: Exception) -> RefusedError:
    """Return what was raised as a refusal; nobody who asked gets a traceback, unless EDGEKD_DEBUG=1 asks for it."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, OSError):
        return RefusedError("machine", f"{error.strerror or error} ({error.filename or 'no file'})")
    if lacks_memory(error):
        return RefusedError("machine", f"there is too little memory for it ({first_line(error)})")
    if os.environ.get("EDGEKD_DEBUG") == "1":
        raise error
    return RefusedError("fault", f"a fault of edgekd: {type(error).__name__}: {first_line(error, 1000)}")


def refusal_by_runtime(what: str, error: BaseException) -> RefusedError:
    """Return what a runtime raised of a file as a refusal."""
    kind = "machine" if lacks_memory(error) else "file"
    return RefusedError(kind, f"{what}: {first_line(error, 1000)}")
