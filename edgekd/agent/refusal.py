"""The one exception of the device's side: a request that cannot be served."""

from __future__ import annotations

import os
import re

from edgekd.errors import lacks_memory
from edgekd.text import first_line, shortened

_DECORATION = (
    (r"\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    (r"Load model from .*? failed:", ""),  # the caller has named the file
    (r"Fatal error: |This is an invalid model\. ", ""),
    (r"Non-zero status code returned while running (\S+) node\. Name:'' Status Message: ", r"\1: "),
    (r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ", r"\1 (\2): "),
    # A source file, the function there, and the check that failed.
    (r"/\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ .*?\)(?: const)?(?: \[with .*?\])? (?:[^.]*? was false\. )?", ""),
)
"""What ONNX Runtime writes around its reason, and what takes its place."""


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
    return RefusedError(kind, f"{what}: {runtime_reason(error)}")


def runtime_reason(error: BaseException, at_most: int = 1000) -> str:
    """Return why a runtime refused, in one line, without the codes and C++ sources ONNX Runtime writes around it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for pattern, instead in _DECORATION:
        reason = re.sub(pattern, instead, reason)
    return shortened(reason, at_most)
