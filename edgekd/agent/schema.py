"""What a JSON value from elsewhere may be: types, ranges, lengths, known keys. Numbers are finite, all sizes bounded.

A check is a function of a value and of its place; it raises `SchemaError` with the place, or returns nothing.
"""

from __future__ import annotations

import re
import reprlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any, str], None]


class SchemaError(ValueError):
    """A value is not what belongs in its place; the message names both, and shows little of it."""

    def __init__(self, place: str, value: Any = None, wanted: str = "") -> None:
        place = place or "it"
        super().__init__(f"{place} is {reprlib.repr(value)}, not {wanted}" if wanted else f"{place} is missing")


def number(low: float, high: float) -> Check:
    """Accept a finite number from `low` to `high`."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise SchemaError(place, value, f"a number from {low:g} to {high:g}")

    return check


def whole(low: int, high: int) -> Check:
    """Accept an integer from `low` to `high`."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SchemaError(place, value, f"a whole number from {low} to {high:g}")

    return check


def flag(value: Any, place: str) -> None:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise SchemaError(place, value, "true or false")


def text(at_most: int = 1000, pattern: str = "") -> Check:
    """Accept a string of so many characters that is written like `pattern`, if one is given."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > at_most or any("\ud800" <= c <= "\udfff" for c in value):
            raise SchemaError(place, value, f"a text of at most {at_most} characters")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            raise SchemaError(place, value, f"written like {pattern}")

    return check


def one_of(*values: Any) -> Check:
    """Accept one of a few strings or numbers."""

    def check(value: Any, place: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            raise SchemaError(place, value, f"one of {', '.join(map(str, values))}")

    return check


def maybe(known: Check) -> Check:
    """Accept null too."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            known(value, place)

    return check


def many(item: Check, at_most: int, at_least: int = 0) -> Check:
    """Accept a list of so many items."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} items")
        for index, one in enumerate(value):
            item(one, f"{place}[{index}]")

    return check


def numbers(low: float, high: float, at_most: int, at_least: int = 0) -> Check:
    """Accept a list of so many finite numbers from `low` to `high`; there may be millions."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, (list, tuple)) or not at_least <= len(value) <= at_most:
            raise SchemaError(place, value, f"a list of {at_least} to {at_most} numbers")
        for one in value:
            if type(one) not in (float, int) or not low <= one <= high:
                raise SchemaError(f"a number of {place}", one, f"from {low:g} to {high:g}")

    return check


def table(item: Check, at_most: int = 200) -> Check:
    """Accept an object with names of its own."""
    name = text(300)

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict) or len(value) > at_most:
            raise SchemaError(place, value, f"an object with at most {at_most} keys")
        for key, one in value.items():
            name(key, f"a key of {place}")
            item(one, f"{place}.{key}")

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Accept an object that has all required keys, and besides them only optional ones."""
    known = {**required, **(optional or {})}

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(place, value, "an object")
        for key in required:
            if key not in value:
                raise SchemaError(f"{place}.{key}".lstrip("."))
        for key, one in value.items():
            if key not in known:
                raise SchemaError(f"a key of {place or 'it'}", key, f"known (of {', '.join(sorted(known))})")
            known[key](one, f"{place}.{key}".lstrip("."))

    return check


def told(known: Check) -> Check:
    """Accept, in the place of a value, the sentence that says why there is none."""
    sentence = text(2000)

    def check(value: Any, place: str) -> None:
        (sentence if isinstance(value, str) else known)(value, place)

    return check


def either(key: str, there: Check, absent: Check) -> Check:
    """Accept what `there` accepts of an object with this key, and what `absent` accepts of any other."""

    def check(value: Any, place: str) -> None:
        (there if isinstance(value, dict) and key in value else absent)(value, place)

    return check
