"""What a JSON value from elsewhere may be, and what is made of it: types, ranges, lengths, known keys.

A reader is a function of a value and of its place: it returns what the value means, or raises `SchemaError` with the
place. Numbers are finite, all sizes bounded. An object of JSON is a dataclass: each field says what its key `holds`, so
that every key is written once, for `record`, which reads it, and for `to_json`. Travels to devices.
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
DEEPEST = 64
"""Levels of lists and tables within one another that anybody needs."""
if TYPE_CHECKING:
    Read = Callable[[Any, str], T]


class SchemaError(ValueError):
    """A value is not what belongs in its place; the message names both, and shows little of it."""

    def __init__(self, place: str, value: object = None, expected: str = "") -> None:
        place = place or "it"
        super().__init__(f"{place} is {reprlib.repr(value)}, not {expected}" if expected else f"{place} is missing")


def number(low: float, high: float) -> Read[float]:
    """Accept a finite number from `low` to `high`."""

    def read(value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise SchemaError(place, value, f"a number from {low:g} to {high:g}")
        return value

    return read


def integer(low: int, high: int) -> Read[int]:
    """Accept an integer from `low` to `high`."""

    def read(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SchemaError(place, value, f"a whole number from {low} to {high:g}")
        return value

    return read


def flag(value: Any, place: str) -> bool:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise SchemaError(place, value, "true or false")
    return value


def text(at_most: int = 1000, pattern: str = "") -> Read[str]:
    """Accept a string of so many characters that is written like `pattern`, if one is given."""

    def read(value: Any, place: str) -> str:
        if not isinstance(value, str) or len(value) > at_most or any("\ud800" <= c <= "\udfff" for c in value):
            raise SchemaError(place, value, f"a text of at most {at_most} characters")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            raise SchemaError(place, value, f"written like {pattern}")
        return value

    return read


def one_of(*values: T) -> Read[T]:
    """Accept one of a few strings or numbers."""

    def read(value: Any, place: str) -> T:
        for candidate in values:
            if type(value) is type(candidate) and value == candidate:
                return candidate
        raise SchemaError(place, value, f"one of {', '.join(map(str, values))}")

    return read


def optional(read_value: Read[T]) -> Read[T | None]:
    """Accept null too."""

    def read(value: Any, place: str) -> T | None:
        return None if value is None else read_value(value, place)

    return read


def list_of(item: Read[T], at_most: int, at_least: int = 0) -> Read[tuple[T, ...]]:
    """Accept a list of so many items."""

    def read(value: Any, place: str) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} items")
        return tuple(item(element, f"{place}[{index}]") for index, element in enumerate(value))

    return read


def list_of_numbers(low: float, high: float, at_most: int, at_least: int = 0) -> Read[tuple[float, ...]]:
    """Accept a list of so many finite numbers from `low` to `high`; there may be millions."""

    def read(value: Any, place: str) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} numbers")
        for element in value:
            if type(element) not in (float, int) or not low <= element <= high:
                raise SchemaError(f"a number of {place}", element, f"from {low:g} to {high:g}")
        return tuple(value)

    return read


def mapping_of(item: Read[T], at_most: int = 200) -> Read[dict[str, T]]:
    """Accept an object with names of its own."""
    name = text(300)

    def read(value: Any, place: str) -> dict[str, T]:
        if not isinstance(value, dict) or len(value) > at_most:
            raise SchemaError(place, value, f"an object with at most {at_most} keys")
        return {name(key, f"a key of {place}"): item(element, f"{place}.{key}") for key, element in value.items()}

    return read


def value_or_reason(read_value: Read[T]) -> Read[T | str]:
    """Accept, in the place of a value, the sentence that says why there is none."""
    sentence = text(2000)

    def read(value: Any, place: str) -> T | str:
        return sentence(value, place) if isinstance(value, str) else read_value(value, place)

    return read


def either(key: str, there: Read[T], absent: Read[U]) -> Read[T | U]:
    """Accept what `there` accepts of an object with this key, and what `absent` accepts of any other."""

    def read(value: Any, place: str) -> T | U:
        return there(value, place) if isinstance(value, dict) and key in value else absent(value, place)

    return read


_HELD, _REQUIRED, _ADDED, _SOMETIMES = "held", "required", "added", "sometimes"


def holds(read: Read[Any]) -> Mapping[str, tuple[Read[Any], str]]:
    """Return the metadata of a field whose key is always there."""
    return {_HELD: (read, _REQUIRED)}


def added(read: Read[Any]) -> Mapping[str, tuple[Read[Any], str]]:
    """Return the metadata of a field with a default, whose key is written but may be missing in older JSON."""
    return {_HELD: (read, _ADDED)}


def sometimes(read: Read[Any]) -> Mapping[str, tuple[Read[Any], str]]:
    """Return the metadata of a field whose key is there only with a value; without, the field is None."""
    return {_HELD: (read, _SOMETIMES)}


def record(cls: type[T]) -> Read[T]:
    """Accept an object with the keys that the fields of a dataclass hold and no others; return one of the class.

    What no single key shows a class may check by `require_consistent(self, place)`.
    """
    held = {member.name: member.metadata[_HELD] for member in fields(cls)}  # type: ignore[arg-type]
    rule = getattr(cls, "require_consistent", None)

    def read(value: Any, place: str) -> T:
        if not isinstance(value, dict):
            raise SchemaError(place, value, "an object")
        for key, (_, presence) in held.items():
            if presence == _REQUIRED and key not in value:
                raise SchemaError(f"{place}.{key}".lstrip("."))
        arguments = {}
        for key, element in value.items():
            if key not in held:
                raise SchemaError(f"a key of {place or 'it'}", key, f"known (of {', '.join(sorted(held))})")
            arguments[key] = held[key][0](element, f"{place}.{key}".lstrip("."))
        instance = cls(**arguments)
        if rule is not None:
            rule(instance, place)
        return instance

    return read


def to_json(value: Any) -> Any:
    """Return the JSON value of what a reader returned: dataclasses as objects, a file by its name."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_dataclass(value):
        pairs = ((member, getattr(value, member.name)) for member in fields(value))
        return {
            member.name: to_json(item)
            for member, item in pairs
            if item is not None or member.metadata[_HELD][1] != _SOMETIMES
        }
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value.name if isinstance(value, Path) else [to_json(item) for item in value]


def loads(data: bytes | str) -> Any:
    """Return the value of JSON that does not make much of little: nested in reason, few texts, finite numbers.

    Raises:
        ValueError: it is no such JSON.
    """
    raw = data.encode() if isinstance(data, str) else data
    if sum(raw.count(part) for part in (b"[", b"{", b'"')) > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS:,} parts")
    return parse_json(raw, parse_constant=_refuse_constant)


def parse_json(data: bytes | str, **options: Any) -> Any:
    """Return the value of a JSON text; raise ValueError for what is none, or is nested out of all reason."""
    try:
        return shallow(json.loads(data, **options))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shallow(value: T) -> T:
    """Return a value of plain lists and dicts; raise ValueError where it is nested so deeply that writing it fails."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [part for item in level for part in _parts(item) if isinstance(part, (dict, list))]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _parts(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_MOST_PARTS = 2_000_000


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


NAME, TARGET, REASON = text(300), text(200), text(20_000)
SHA256 = text(64, "[0-9a-f]{64}")
SIZE_BYTES, COUNT, BATCH, THREADS = integer(0, 10**16), integer(0, 10**9), integer(1, 10**6), integer(1, 10**5)
RUNS = integer(1, 10**9)
SHAPE, DECLARED, FLAGS = list_of(integer(1, 10**6), 8), list_of(optional(integer(1, 10**6)), 8), list_of(NAME, 20)
SECONDS, DURATION_S = number(0, 1e12), number(1e-9, 1e7)
MS, LOADING_MS = number(1e-9, 1e9), number(0, 1e9)
MHZ, CPUS = number(0, 1e7), number(0, 1e6)
SAMPLES_MS, WINDOWS_MS = list_of_numbers(1e-9, 1e9, 10**8, 1), list_of_numbers(1e-9, 1e9, 10**6)
COMMANDS = list_of(text(100_000), 100)
SHARE = number(0, 1)
