"""What flags change in the recipe; a flag that is not given changes nothing. Those of one verb stand in its file."""

from __future__ import annotations

import math
from typing import Any

from edgekd.errors import UsageError
from edgekd.recipe import assignment, merge

Changes = dict[str, Any]


def combine(*parts: Changes) -> Changes:
    """Lay the changes of several groups of flags over one another."""
    combined: Changes = {}
    for part in parts:
        combined = merge(combined, part)
    return combined


def only_given(**values: Any) -> Changes:
    """Keep the values of the flags that were given."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != "" and value != ()
    }


def in_table(name: str, values: Changes) -> Changes:
    """Put changes into a table of the recipe, if there are any."""
    return {name: values} if values else {}


def parse_numbers(flag: str, text: str, kind: type[int] | type[float] = float) -> tuple[float, ...]:
    """Read the numbers of a flag that takes several, separated by commas."""
    try:
        values = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{flag} takes {'whole ' if kind is int else ''}numbers separated by commas, not {text!r}.")
    return values


def of_teacher(arch: str, input_shape: str, accept_mapping: bool, trust_pickle: bool) -> Changes:
    """Change how the teacher is read."""
    values = only_given(arch=arch, input=input_shape, accept_mapping=accept_mapping, trust_pickle=trust_pickle)
    return in_table("teacher", values)


def of_pixels(normalize: str, mean: str, std: str, classes: str) -> Changes:
    """Change what is known of real pixels and of the classes."""
    values = only_given(
        normalize=normalize, mean=parse_numbers("--mean", mean), std=parse_numbers("--std", std), classes=classes
    )
    if normalize and (mean or std):
        raise UsageError("--normalize and --mean with --std both name the teacher's normalisation: give one of them.")
    if normalize:  # what earlier commands gave has had its day
        values = {"mean": (), "std": (), **values}
    return in_table("pixels", values)


def of_machine(device: str, threads: int | None) -> Changes:
    """Change where distillation runs."""
    return in_table("machine", only_given(device=device, threads=threads))


def of_set(assignments: list[str] | None) -> Changes:
    """Change any keys: what all --set flags say."""
    return combine(*(assignment(text) for text in assignments or ()))
