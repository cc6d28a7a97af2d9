"""Reading on past what cannot be read: it is named once, and left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edgekd import console
from edgekd.errors import InputFileError
from edgekd.run.directory import canonical_json, read_json
from edgekd.text import first_line

T = TypeVar("T")


def read_whole(path: Path, kind: type[T]) -> T:
    """Read a JSON file of a run that holds a value of this kind, which can be written again: finite, whole characters.

    Raises:
        InputFileError: it does not.
    """
    value = read_json(path)
    try:
        canonical_json(value).encode()
    except ValueError as error:
        raise InputFileError(f"{path} does not hold what belongs there ({first_line(error)}).") from error
    if not isinstance(value, kind):
        raise InputFileError(f"{path} does not hold what belongs there (it is no {kind.__name__}).")
    return value


class LeftOut:
    """What could not be read, each said once: one damaged file takes nothing else with it."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def unless(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `read` returns, None where it finds something else in a file than belongs there."""
        try:
            return read(*arguments)
        except InputFileError as error:
            reason = str(error)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            reason = f"{read.__name__.strip('_')} ({type(error).__name__}: {first_line(error)})."
        sentence = f"left out: {reason}"
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            console.warn(sentence)
        return None
