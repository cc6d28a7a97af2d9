"""Validate untrusted JSON: types, ranges, lengths and keys.

A reader is a function (value, place). It returns the validated value, or raises `SchemaError`. `place` is the value's
path within the JSON, such as `results[0].job`, for the error message; it is empty at the root. Numbers are finite, and
all sizes are bounded.

A JSON object is read into a dataclass with a field for each key. The field's metadata holds the reader of its value and
says when the key may be absent: `required`, `with_default` or `omitted_if_none`. `object_of` reads such an object,
`to_json` writes it. This file travels to devices.
"""

from __future__ import annotations

import json
import re
import reprlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
U = TypeVar("U")
MAX_DEPTH = 64
"""Levels of nested lists and objects that are accepted."""
if TYPE_CHECKING:
    Reader = Callable[[Any, str], T]


class SchemaError(ValueError):
    """A value is invalid, or its key is missing; the message names the place and shows an excerpt of the value."""

    def __init__(self, place: str, value: object = None, expected: str = "") -> None:
        place = place or "it"
        super().__init__(f"{place} is {reprlib.repr(value)}, not {expected}" if expected else f"{place} is missing")


def number(low: float, high: float) -> Reader[float]:
    """Accept a finite number from `low` to `high`."""

    def read(value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise SchemaError(place, value, f"a number from {low:g} to {high:g}")
        return value

    return read


def integer(low: int, high: int) -> Reader[int]:
    """Accept an integer from `low` to `high`."""

    def read(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SchemaError(place, value, f"a whole number from {low} to {high:g}")
        return value

    return read


def boolean(value: Any, place: str) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise SchemaError(place, value, "true or false")
    return value


def text(at_most: int = 1000, pattern: str = "") -> Reader[str]:
    """Accept a string of at most `at_most` characters; a `pattern`, if given, must match all of it."""

    def read(value: Any, place: str) -> str:
        if not isinstance(value, str) or len(value) > at_most or any("\ud800" <= c <= "\udfff" for c in value):
            raise SchemaError(place, value, f"a text of at most {at_most} characters")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            raise SchemaError(place, value, f"written like {pattern}")
        return value

    return read


def one_of(*values: T) -> Reader[T]:
    """Accept one of these strings or numbers."""

    def read(value: Any, place: str) -> T:
        for candidate in values:
            if type(value) is type(candidate) and value == candidate:
                return candidate
        raise SchemaError(place, value, f"one of {', '.join(map(str, values))}")

    return read


def optional(read_value: Reader[T]) -> Reader[T | None]:
    """Accept null, or what `read_value` accepts."""

    def read(value: Any, place: str) -> T | None:
        return None if value is None else read_value(value, place)

    return read


def list_of(item: Reader[T], at_most: int, at_least: int = 0) -> Reader[tuple[T, ...]]:
    """Accept a list of `at_least` to `at_most` items, each of which `item` accepts."""

    def read(value: Any, place: str) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} items")
        return tuple(item(element, f"{place}[{index}]") for index, element in enumerate(value))

    return read


def list_of_numbers(low: float, high: float, at_most: int, at_least: int = 0) -> Reader[tuple[float, ...]]:
    """Accept a list of `at_least` to `at_most` finite numbers from `low` to `high`; fast enough for millions."""

    def read(value: Any, place: str) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} numbers")
        for element in value:
            if type(element) not in (float, int) or not low <= element <= high:
                raise SchemaError(f"a number of {place}", element, f"from {low:g} to {high:g}")
        return tuple(value)

    return read


def mapping_of(item: Reader[T], at_most: int = 200) -> Reader[dict[str, T]]:
    """Accept an object with any keys, whose values `item` accepts."""
    name = text(300)

    def read(value: Any, place: str) -> dict[str, T]:
        if not isinstance(value, dict) or len(value) > at_most:
            raise SchemaError(place, value, f"an object with at most {at_most} keys")
        return {name(key, f"a key of {place}"): item(element, f"{place}.{key}") for key, element in value.items()}

    return read


def value_or_reason(read_value: Reader[T]) -> Reader[T | str]:
    """Accept what `read_value` accepts, or a string that says why there is no value."""
    sentence = text(2000)

    def read(value: Any, place: str) -> T | str:
        return sentence(value, place) if isinstance(value, str) else read_value(value, place)

    return read


def either(key: str, with_key: Reader[T], without_key: Reader[U]) -> Reader[T | U]:
    """Read an object that has the key by `with_key`, and any other value by `without_key`."""

    def read(value: Any, place: str) -> T | U:
        return with_key(value, place) if isinstance(value, dict) and key in value else without_key(value, place)

    return read


_READER_AND_PRESENCE = "reader and presence"
"""The key of a field's metadata."""
_REQUIRED, _WITH_DEFAULT, _OMITTED_IF_NONE = "required", "with default", "omitted if None"


def required(reader: Reader[Any]) -> Mapping[str, tuple[Reader[Any], str]]:
    """Make the metadata of a field whose key must be present."""
    return {_READER_AND_PRESENCE: (reader, _REQUIRED)}


def with_default(reader: Reader[Any]) -> Mapping[str, tuple[Reader[Any], str]]:
    """Make the metadata of a field with a default: its key is always written, and may be absent from older JSON."""
    return {_READER_AND_PRESENCE: (reader, _WITH_DEFAULT)}


def omitted_if_none(reader: Reader[Any]) -> Mapping[str, tuple[Reader[Any], str]]:
    """Make the metadata of a field that defaults to None: its key is not written then."""
    return {_READER_AND_PRESENCE: (reader, _OMITTED_IF_NONE)}


def object_of(cls: type[T]) -> Reader[T]:
    """Accept an object whose keys are the fields of the dataclass `cls`, and no others; read it into a `cls`.

    A class may check fields against each other in a method `require_consistent(self, place)`, which raises
    `SchemaError`.
    """
    readers = {member.name: member.metadata[_READER_AND_PRESENCE] for member in fields(cls)}  # type: ignore[arg-type]
    require_consistent = getattr(cls, "require_consistent", None)

    def read(value: Any, place: str) -> T:
        if not isinstance(value, dict):
            raise SchemaError(place, value, "an object")
        for key, (_, presence) in readers.items():
            if presence == _REQUIRED and key not in value:
                raise SchemaError(f"{place}.{key}".lstrip("."))
        arguments = {}
        for key, element in value.items():
            if key not in readers:
                raise SchemaError(f"a key of {place or 'it'}", key, f"known (of {', '.join(sorted(readers))})")
            reader, _ = readers[key]
            arguments[key] = reader(element, f"{place}.{key}".lstrip("."))
        instance = cls(**arguments)
        if require_consistent is not None:
            require_consistent(instance, place)
        return instance

    return read


def to_json(value: Any) -> Any:
    """Convert what a reader returned to plain JSON values: a dataclass to an object, a `Path` to its file name."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_dataclass(value):
        pairs = ((member, getattr(value, member.name)) for member in fields(value))
        return {
            member.name: to_json(item)
            for member, item in pairs
            if item is not None or member.metadata[_READER_AND_PRESENCE][1] != _OMITTED_IF_NONE
        }
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value.name if isinstance(value, Path) else [to_json(item) for item in value]


def parse_untrusted_json(data: bytes | str) -> Any:
    """Parse JSON from another machine: bounded in nesting and number of parts, so that it cannot fill the memory.

    Raises:
        ValueError: it is no JSON, is nested deeper than `MAX_DEPTH`, has too many parts, or holds NaN or Infinity.
    """
    raw = data.encode() if isinstance(data, str) else data
    if sum(raw.count(part) for part in (b"[", b"{", b'"')) > _MAX_PARTS:
        raise ValueError(f"it has more than {_MAX_PARTS:,} parts")
    return parse_json(raw, parse_constant=_refuse_constant)


def parse_json(data: bytes | str, **options: Any) -> Any:
    """Parse JSON; raise ValueError where it is malformed or nested deeper than `MAX_DEPTH`."""
    try:
        return require_shallow(json.loads(data, **options))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_shallow(value: T) -> T:
    """Raise ValueError where plain lists and dicts are nested deeper than `MAX_DEPTH`; else return the value."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [part for item in level for part in _parts(item) if isinstance(part, (dict, list))]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _parts(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_MAX_PARTS = 2_000_000
"""Lists, objects and string quotes that untrusted JSON may have."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


# Readers shared by several messages and files.
NAME, TARGET, REASON = text(300), text(200), text(20_000)
SHA256 = text(64, "[0-9a-f]{64}")
SIZE_BYTES, COUNT, BATCH, THREADS = integer(0, 10**16), integer(0, 10**9), integer(1, 10**6), integer(1, 10**5)
RUNS = integer(1, 10**9)
"""Inferences in a measurement."""
SHAPE = list_of(integer(1, 10**6), 8)
DECLARED_SHAPE = list_of(optional(integer(1, 10**6)), 8)
"""A shape as an ONNX file declares it: null for a dynamic dimension."""
FLAGS = list_of(NAME, 20)
NONNEGATIVE_S, POSITIVE_S = number(0, 1e12), number(1e-9, 1e7)
NONNEGATIVE_MS, POSITIVE_MS = number(0, 1e9), number(1e-9, 1e9)
MHZ, CPUS = number(0, 1e7), number(0, 1e6)
SAMPLES_MS, WINDOWS_MS = list_of_numbers(1e-9, 1e9, 10**8, 1), list_of_numbers(1e-9, 1e9, 10**6)
COMMANDS = list_of(text(100_000), 100)
SHARE = number(0, 1)
