"""Reading on past what cannot be read: it is named once, and left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from edgekd import console
from edgekd.errors import InputFileError
from edgekd.text import first_line

T = TypeVar("T")


class UnreadableFiles:
    """What could not be read, each said once: one damaged file takes nothing else with it."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def unless(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `read` returns, None where it finds something else in a file than belongs there."""
        try:
            return read(*arguments)
        except InputFileError as error:
            reason = str(error)
        except OSError as error:
            reason = f"{error.filename or 'a file'} cannot be read ({error.strerror})."
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            reason = f"{read.__name__.strip('_')} ({type(error).__name__}: {first_line(error)})."
        sentence = f"left out: {reason}"
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            console.warn(sentence)
        return None
