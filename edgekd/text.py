"""Pieces of messages: names, shapes, and what a library had to say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath


def visible(text: str) -> str:
    """Return a text with every character written out that is not to be seen, and may command a terminal: `\\x1b`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_utf8(name: object) -> bool:
    """Return whether UTF-8 has bytes for a name; Linux takes any bytes for one, and so do file systems."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def path_argument(path: PurePath | str) -> str:
    """Return what to type for a file, or for a run by its path: quoted, and never taken for a flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text[:1] == "-" else text)


def listed(names: Iterable[str], at_most: int = 3) -> str:
    """Return the first names and how many more there are."""
    every = list(names)
    shown = ", ".join(visible(name[:80]) for name in every[:at_most])
    return shown + (f" and {len(every) - at_most} more" if len(every) > at_most else "")


def sizes(shape: Sequence[int]) -> str:
    """Return a shape as `3x32x32`."""
    return "x".join(map(str, shape)) or "a single number"


def first_line(error: BaseException, at_most: int = 200) -> str:
    """Return the first line of an error's message, shortened, without its full stop; its type if it has none."""
    return shortened((str(error).strip().splitlines() or [""])[0].strip() or type(error).__name__, at_most)


def shortened(line: str, at_most: int) -> str:
    """Return a line without its full stop, or its beginning."""
    return line.rstrip(".") if len(line) <= at_most else f"{line[:at_most]}…"


def counted(number: int, what: str) -> str:
    """Write a number of things: `no layers`, `1 layer`, `2 layers`."""
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
