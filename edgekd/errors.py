"""The exceptions of edgekd, each with its exit code.

    EdgekdError            1   a fault of edgekd itself
    ├── UsageError         2   wrong usage of the command line
    ├── RecipeError        3   the recipe is invalid, or changed under an existing run
    ├── InputFileError     4   a file from outside is unusable
    ├── GateError          5   parity, agreement or health failed
    ├── MachineError       6   the machine or the device lacks something
    ├── RunBusyError       7   another process works on the run
    └── StoppedEarly       8   stopped at a deadline, resumable
        └── Interrupted  130   stopped by a signal (143 for SIGTERM, 129 for SIGHUP), resumable

A message is one sentence of what happened, which file or key, and how to mend it.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class EdgekdError(Exception):
    """A fault of edgekd; the base of every error it raises on purpose."""

    exit_code: int = 1


class UsageError(EdgekdError):
    """The command line asks for something that does not exist or fit."""

    exit_code = 2


class RecipeError(EdgekdError):
    """The recipe is invalid, or differs from the one its run was started with."""

    exit_code = 3


class InputFileError(EdgekdError):
    """A file from outside cannot be used: damaged, hostile, or not what it should be."""

    exit_code = 4


class GateError(EdgekdError):
    """A measured gate failed: parity, agreement, or the health of a distillation."""

    exit_code = 5


class MachineError(EdgekdError):
    """This machine or the device lacks what was asked for."""

    exit_code = 6


class RunBusyError(EdgekdError):
    """Another living process holds the lock of this run."""

    exit_code = 7


class StoppedEarly(EdgekdError):  # noqa: N818 - a way to end, not a fault
    """The work stopped at its deadline; the same command continues it."""

    exit_code = 8


class Interrupted(StoppedEarly):
    """A signal asked the work to stop; state is saved, the same command continues it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


_NO_MEMORY = (
    "not enough memory",
    "out of memory",
    "allocate memory",
    "bad allocation",
    "bad_alloc",
    "storage size calculation overflowed",
)


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is short; of PyTorch and ONNX Runtime only its words tell."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def broken_import(error: BaseException) -> str | None:
    """Return the name of a package from elsewhere whose import raised an error, None where none did."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>")
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    if isinstance(error, ImportError) and error.name:
        modules.append(error.name)
    packages = (module.partition(".")[0] for module in modules)
    return next((package for package in packages if package not in ("edgekd", "__main__")), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.55)
    return f' Did you mean "{close[0]}"?' if close else ""
