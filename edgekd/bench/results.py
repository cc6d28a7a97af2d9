"""The JSON files of bench/<target>/: what they may hold, checked before they are published and when they are read."""

from __future__ import annotations

import reprlib
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent import answers
from edgekd.agent.answers import KIND, MS, NAME, REASON, RUNTIME, SIZE
from edgekd.agent.bundle import FORMAT
from edgekd.agent.files import open_regular
from edgekd.agent.schema import SchemaError, either, flag, many, maybe, number, record, table, text, whole
from edgekd.errors import InputFileError, MachineError
from edgekd.run.files import write_json

if TYPE_CHECKING:
    from edgekd.agent.schema import Check

_MOST_BYTES = 2**28
_RATIO = number(0, 1e20)
_SHAPED = {
    "artefact": NAME,
    "kind": KIND,
    "runtime": RUNTIME,
    "provider": text(),
    "batch": whole(1, 10**6),
    "threads": whole(1, 10**5),
}
_SHARE = maybe(number(0, 1))
_TIMES = ("min_ms", "mean_ms", "p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
_ROW = record(
    {
        **_SHAPED,
        "runtime_version": text(),
        "n": whole(1, 10**9),
        **dict.fromkeys(_TIMES, MS),
        "std_ms": number(0, 1e9),
        "throughput_per_s": number(1e-12, 1e20),
        "size_bytes": SIZE,
        "load_ms": maybe(number(0, 1e9)),
        "first_inference_ms": maybe(number(0, 1e9)),
        "peak_memory_bytes": maybe(SIZE),
        "baseline_memory_bytes": maybe(SIZE),
        "stable": flag,
        "integer_share": _SHARE,
        "sha256": answers.SHA256,
        "reference": maybe(NAME),
        **dict.fromkeys(("speedup", "speedup_low", "speedup_high"), maybe(_RATIO)),
    },
    {"build_s": maybe(answers.SECONDS), "commands": answers.COMMANDS, "note": maybe(text())},
)
_SKIPPED = record({**_SHAPED, "skipped": REASON}, {"integer_share": _SHARE})
_RESULTS = record(
    {
        "target": maybe(answers.TARGET),
        "results": many(either("skipped", _SKIPPED, _ROW), 10_000),
        "verdicts": table(REASON, 10_000),
        "warnings": many(REASON, 10_000),
    },
    {
        "data_free": flag,
        "numerics": many(answers.checked, 1000),
        "energy": many(answers.ENERGY, 1000),
        "energy_note": REASON,
    },
)


def _results(value: Any, place: str) -> None:
    """Accept rows whose references are there, and whose speedups are whole: what a verdict is made from."""
    _RESULTS(value, place)
    rows = value["results"]
    place_of = itemgetter("runtime", "batch", "threads")
    timed = {(row["artefact"], *place_of(row)) for row in rows if "skipped" not in row}
    for index, row in enumerate(rows):
        if "skipped" in row:
            continue
        compared = [row[name] is not None for name in ("reference", "speedup", "speedup_low", "speedup_high")]
        if any(compared) != all(compared):
            raise SchemaError(f"{place}results[{index}].speedup", row["speedup"], "there with its interval, or absent")
        if all(compared) and (row["reference"], *place_of(row)) not in timed:
            raise SchemaError(f"{place}results[{index}].reference", row["reference"], "a timed row")


_SAMPLES = many(
    record(
        {
            "settings": answers.SETTINGS,
            "samples_ms": table(many(answers.SAMPLES, 10**5, 1)),
        }
    ),
    10_000,
)
_FILES: dict[str, Check] = {
    "results.json": _results,
    "samples.json": _SAMPLES,
    "environment.json": answers.MACHINE,
    "jetson.json": many(record(dict.fromkeys(("jetson_before", "jetson_after"), maybe(answers.JETSON))), 10_000),
}


def require(name: str, value: Any) -> None:
    """Raise `MachineError` unless a value may be published as the file of this name: a measurement made it."""
    try:
        _FILES[name](value, "")
    except SchemaError as error:
        raise MachineError(f"what was measured makes no sense, and nothing is published: {name}: {error}.") from error


def write(file: Path, value: Any) -> None:
    """Write one of these files, once it is known to hold what belongs there."""
    require(file.name, value)
    write_json(file, value)


def read(file: Path) -> Any:
    """Read one of these files.

    Raises:
        InputFileError: it cannot be read, or does not hold what belongs there.
    """
    try:
        value = _parsed(file)
        _FILES[file.name](value, "")
    except ValueError as error:
        raise InputFileError(
            f"{file} does not hold what belongs there ({error}); delete {file.parent} and measure again."
        ) from error
    return value


def read_bundle(file: Path) -> dict[str, Any]:
    """Read the results.json of a student.pyz.

    Raises:
        InputFileError: it is none, or of another version.
    """
    try:
        value: dict[str, Any] = _parsed(file)
        if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
            raise InputFileError(f"{file} has format {reprlib.repr(value['format'])}; this edgekd reads {FORMAT}.")
        answers.BUNDLE(value, "")
        for index, one in enumerate(value["comparisons"]):
            for job in (result["job"] for result in one["comparison"]["results"]):
                if job["artefact"].partition(" --")[0] != job["model"]:
                    place = f"comparisons[{index}].comparison.results.job.artefact"
                    raise SchemaError(place, job["artefact"], f"an artefact of {job['model']}")
    except ValueError as error:
        raise InputFileError(f"{file} is no results.json of a student.pyz ({error}).") from error
    return value


def _parsed(file: Path) -> Any:
    try:
        with open_regular(file) as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputFileError(f"{file} cannot be read ({error.strerror}).") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
    return answers.parsed(data)
