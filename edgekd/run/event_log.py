"""Reading events.jsonl, however long it is: line by line, or from its end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from edgekd.agent.device.files import open_regular
from edgekd.errors import InputFileError
from edgekd.run.cards.events import Event
from edgekd.schema import parse_json

E = TypeVar("E", bound=Event)
_LONGEST_LINE = 2**20
_BLOCK = 2**16


def events(file: Path, kind: str | None = None) -> Iterator[dict[str, JsonValue]]:
    """Yield the events of one kind (or all) in their order; a torn last line, left by a kill, is ignored.

    Raises InputFileError where a line is damaged; within a line of another kind nothing is looked at.
    """
    return _of_kind(file, _lines(file), kind)


def logged(file: Path, kind: type[E]) -> Iterator[E]:
    """Yield the events of one kind as what they are; `InputFileError` where one is something else."""
    return _typed(file, events(file, kind.kind), kind)


def last_logged(file: Path, kind: type[E]) -> E | None:
    """Return the last event of one kind, looked for from the end of the file; None where there is none."""
    return next(_typed(file, _of_kind(file, _lines_from_the_end(file), kind.kind), kind), None)


def digest(file: Path, size_bytes: int) -> tuple[int, str]:
    """Return the length and the SHA-256 of the file, or of no more than its first bytes."""
    sha256, left = hashlib.sha256(), size_bytes
    with open_regular(file) as stream:
        while block := stream.read(min(_BLOCK, left)):
            sha256.update(block)
            left -= len(block)
    return size_bytes - left, sha256.hexdigest()


def damage(file: Path, size_bytes: int) -> str | None:
    """Say what is wrong with the first bytes of the file, as many as a checkpoint recorded; None where nothing is."""
    if not file.is_file() or file.stat().st_size < size_bytes:
        return f"{file} is shorter than when the last checkpoint was written."
    try:
        with open_regular(file) as stream:
            stream.seek(size_bytes - 1)
            if stream.read(1) != b"\n":
                return f"{file} is not what it was when the last checkpoint was written."
        for _ in _of_kind(file, _within(_lines(file), size_bytes), None):
            pass
    except InputFileError as error:
        return str(error)
    return None


def _typed(file: Path, found: Iterable[dict[str, JsonValue]], kind: type[E]) -> Iterator[E]:
    for event in found:
        try:
            yield kind.model_validate(event)
        except ValidationError as error:
            raise _damaged(file, str(event)) from error


def _of_kind(file: Path, lines: Iterable[bytes], kind: str | None) -> Iterator[dict[str, JsonValue]]:
    word = b"" if kind is None else f'"{kind}"'.encode()
    for line in lines:
        if line[:1] == b"{" and line[-1:] == b"}" and word not in line and b"\\" not in line:
            continue  # to parse a million lines takes seconds
        text = line.decode(errors="replace")
        try:
            event = parse_json(text)
        except ValueError as error:
            raise _damaged(file, text) from error
        if not isinstance(event, dict):
            raise _damaged(file, text)
        if kind is None or event.get("kind") == kind:
            yield event


def _lines(file: Path) -> Iterator[bytes]:
    """Yield each whole line without its end."""
    with open_regular(file) as stream:
        while line := stream.readline(_LONGEST_LINE):
            if line[-1:] == b"\n":
                yield line[:-1]
            elif len(line) == _LONGEST_LINE:
                raise _damaged(file, line.decode(errors="replace"))


def _within(lines: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Yield the lines that begin within the first bytes of a file."""
    place = 0
    for line in lines:
        if place >= size_bytes:
            return
        yield line
        place += len(line) + 1


def _lines_from_the_end(file: Path) -> Iterator[bytes]:
    """Yield each whole line without its end, the last one first."""
    with open_regular(file) as stream:
        rest, torn = b"", True
        for block in _blocks_from_the_end(stream):
            rest, *lines = (block + rest).split(b"\n")
            if torn and lines:  # what follows the last newline is a torn line or nothing
                lines.pop()
                torn = False
            yield from reversed(lines)
            if len(rest) > _LONGEST_LINE:
                raise _damaged(file, rest.decode(errors="replace"))
        if not torn:
            yield rest


def _blocks_from_the_end(stream: BufferedReader) -> Iterator[bytes]:
    place = stream.seek(0, os.SEEK_END)
    while place > 0:
        size = min(_BLOCK, place)
        place -= size
        stream.seek(place)
        yield stream.read(size)


def _damaged(file: Path, line: str) -> InputFileError:
    return InputFileError(
        f"{file} holds a damaged line: {line[:80]!r}. Only the curves depend on it: move it away, and all else goes on."
    )
