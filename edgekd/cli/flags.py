"""Flags of the command line as changes of the recipe; a flag that is not given changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekd import recipe as recipe_module
from edgekd.agent.kernels import RUNTIMES
from edgekd.errors import UsageError, did_you_mean
from edgekd.models import trust

Changes = dict[str, Any]


def combine(*parts: Changes) -> Changes:
    """Lay the changes of several groups of flags over one another."""
    combined: Changes = {}
    for part in parts:
        combined = recipe_module.merge(combined, part)
    return combined


def approve_typed(flags: Changes) -> None:
    """Take the code that the command line names, in flags of its own or by --set, as approved of by the user."""
    teacher, student = (
        table if isinstance(table := flags.get(name), Mapping) else {} for name in ("teacher", "student")
    )
    typed = (teacher.get("arch"), student.get("name"))
    trust.confirm([name for name in typed if isinstance(name, str)], pickles=teacher.get("trust_pickle") is True)


def _given(**values: Any) -> Changes:
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != "" and value != ()
    }


def _table(name: str, values: Changes) -> Changes:
    return {name: values} if values else {}


def teacher_flags(arch: str, input_shape: str, accept_mapping: bool, trust_pickle: bool) -> Changes:
    """Return the recipe changes of the teacher's flags."""
    given = _given(arch=arch, input=input_shape, accept_mapping=accept_mapping, trust_pickle=trust_pickle)
    return _table("teacher", given)


def pixel_flags(normalize: str, mean: str, std: str, classes: str) -> Changes:
    """Return the recipe changes of the normalisation's flags."""
    values = _given(normalize=normalize, mean=_numbers("--mean", mean), std=_numbers("--std", std), classes=classes)
    if normalize and (mean or std):
        raise UsageError("--normalize and --mean with --std both name the teacher's normalisation: give one of them.")
    if normalize:  # what earlier commands gave has had its day
        values = {"mean": (), "std": (), **values}
    return _table("pixels", values)


def student_flags(name: str, budget_ms: float | None, weights: str, on: str = "") -> Changes:
    """Return the recipe changes of the student's flags; a student by name ends a choice by latency."""
    budget = 0.0 if name and name != recipe_module.AUTO and budget_ms is None else budget_ms
    values = _given(name=name, auto_budget_ms=budget, weights=weights)
    return _table("student", {**values, "auto_on": on} if name else values)


def distill_flags(
    steps: int | None,
    minutes: float | None,
    method: str,
    seed: int | None,
    device: str,
    threads: int | None,
) -> Changes:
    """Return the recipe changes of distillation's flags."""
    return combine(
        _given(seed=seed),
        _table("method", _given(preset=method, steps=steps, minutes=minutes)),
        _table("machine", _given(device=device, threads=threads)),
    )


def export_flags(
    int8: bool | None, target: str, uint8_input: bool | None, qat: bool | None, calibrate_on_real: str
) -> Changes:
    """Return the recipe changes of export's flags; a flag not given keeps its value."""
    switches = {"int8": int8, "uint8_input": uint8_input, "qat": qat}
    values = _given(target=target, calibrate_on_real=calibrate_on_real)
    return _table("export", values | {name: value for name, value in switches.items() if value is not None})


def bench_flags(runtime: str, batch: str, threads: str, seconds: float | None) -> Changes:
    """Return the recipe changes of bench's flags."""
    batches, counts = _numbers("--batch", batch, int), _numbers("--threads", threads, int)
    runtimes = tuple(name.strip() for name in runtime.split(",")) if runtime else ()
    for name in runtimes:
        if name not in RUNTIMES:
            raise UsageError(
                f"there is no runtime {name!r} (known: {', '.join(RUNTIMES)}).{did_you_mean(name, RUNTIMES)}"
            )
    return _table("bench", _given(runtime=runtimes, batch=batches, threads=counts, min_seconds=seconds))


def set_flags(assignments: list[str] | None) -> Changes:
    """Return the recipe changes of all --set flags."""
    return combine(*(recipe_module.assignment(text) for text in assignments or ()))


def _numbers(flag: str, text: str, kind: type[int] | type[float] = float) -> tuple[float, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{flag} takes {'whole ' if kind is int else ''}numbers separated by commas, not {text!r}.")
    return numbers
