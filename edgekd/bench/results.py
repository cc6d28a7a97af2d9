"""The JSON files of bench/<target>/: what they may hold, checked before they are published and when they are read."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekd import schema
from edgekd.agent.bundle import FORMAT, BundleResults, format_of
from edgekd.agent.device.environment import Environment
from edgekd.agent.device.files import open_regular
from edgekd.agent.device.power import Energy
from edgekd.agent.measurement import BenchSettings
from edgekd.agent.numerics import LogitsCheck
from edgekd.agent.session import BoardStates
from edgekd.bench.rows import ROW, Row, SkippedRow
from edgekd.errors import InputFileError, MachineError
from edgekd.run.files import write_json
from edgekd.schema import (
    SchemaError,
    boolean,
    integer,
    list_of,
    mapping_of,
    object_of,
    omitted_if_none,
    optional,
    parse_untrusted_json,
    required,
    to_json,
    with_default,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.schema import Reader

SCHEMA = 1
"""Of results.json; a file without a number has this one."""
_MOST_BYTES = 2**28
T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """results.json: rows, verdicts and warnings, and what else is known of a device."""

    target: str | None = field(metadata=required(optional(schema.TARGET)))
    results: tuple[Row | SkippedRow, ...] = field(metadata=required(list_of(ROW, 10_000)))
    verdicts: dict[str, str] = field(metadata=required(mapping_of(schema.REASON, 10_000)))
    warnings: tuple[str, ...] = field(metadata=required(list_of(schema.REASON, 10_000)))
    data_free: bool | None = field(default=None, metadata=omitted_if_none(boolean))
    """None where there is no run to ask."""
    numerics: tuple[LogitsCheck, ...] | None = field(
        default=None, metadata=omitted_if_none(list_of(object_of(LogitsCheck), 1000))
    )
    energy: tuple[Energy, ...] | None = field(default=None, metadata=omitted_if_none(list_of(object_of(Energy), 1000)))
    energy_note: str | None = field(default=None, metadata=omitted_if_none(schema.REASON))
    """Why there is no energy, of some artefacts or of all."""
    schema: int = field(default=SCHEMA, metadata=with_default(integer(1, SCHEMA)))

    def require_consistent(self, place: str) -> None:
        """Raise `SchemaError` unless references are there and speedups whole: what a verdict is made from."""
        rows = [(index, row) for index, row in enumerate(self.results) if isinstance(row, Row)]
        timed = {(row.artefact, row.runtime, row.batch, row.threads) for _, row in rows}
        for index, row in rows:
            here = f"{place}.results[{index}]".lstrip(".")
            compared = [
                value_given is not None
                for value_given in (row.reference, row.speedup, row.speedup_low, row.speedup_high)
            ]
            if any(compared) != all(compared):
                raise SchemaError(f"{here}.speedup", row.speedup, "there with its interval, or absent")
            if all(compared) and (row.reference, row.runtime, row.batch, row.threads) not in timed:
                raise SchemaError(f"{here}.reference", row.reference, "a timed row")


@dataclass(frozen=True)
class LatencySamples:
    """Every sample of a comparison, by artefact and round: one item of samples.json."""

    settings: BenchSettings = field(metadata=required(object_of(BenchSettings)))
    samples_ms: dict[str, tuple[tuple[float, ...], ...]] = field(
        metadata=required(mapping_of(list_of(schema.SAMPLES_MS, 10**5, 1)))
    )


RESULTS, SAMPLES, ENVIRONMENT, JETSON = "results.json", "samples.json", "environment.json", "jetson.json"
_FILES: dict[str, Reader[Any]] = {
    RESULTS: object_of(Results),
    SAMPLES: list_of(object_of(LatencySamples), 10_000),
    ENVIRONMENT: object_of(Environment),
    JETSON: list_of(object_of(BoardStates), 10_000),
}


def require_publishable(name: str, value: Any) -> None:
    """Raise `MachineError` unless a value may be published as the file of this name: a measurement made it."""
    try:
        _FILES[name](to_json(value), "")
    except SchemaError as error:
        raise MachineError(f"what was measured makes no sense, and nothing is published: {name}: {error}.") from error


def write_results(file: Path, value: object) -> None:
    """Write one of these files, once it is known to hold what belongs there."""
    require_publishable(file.name, value)
    write_json(file, to_json(value))


def read_results(file: Path) -> Results:
    """Read a results.json.

    Raises:
        InputFileError: it cannot be read, does not hold what belongs there, or is of a newer edgekd.
    """
    return _read(file, _results)


def read_samples(file: Path) -> Sequence[LatencySamples]:
    """Read a samples.json."""
    return _read(file, list_of(object_of(LatencySamples), 10_000))


def read_environment(file: Path) -> Environment:
    """Read an environment.json."""
    return _read(file, object_of(Environment))


def _results(value: Any, place: str) -> Results:
    schema = value.get("schema", SCHEMA) if isinstance(value, dict) else SCHEMA
    if isinstance(schema, int) and schema > SCHEMA:
        raise _NewerError(f"was written by a newer edgekd (schema {reprlib.repr(schema)}; this one reads {SCHEMA})")
    return object_of(Results)(value, place)


class _NewerError(ValueError):
    """A file has a schema that this edgekd does not know yet."""


def _read(file: Path, read: Reader[T]) -> T:
    try:
        return read(_parsed(file), "")
    except _NewerError as error:
        raise InputFileError(f"{file} {error}; use that one.") from error
    except ValueError as error:
        raise InputFileError(
            f"{file} does not hold what belongs there ({error}); delete {file.parent} and measure again."
        ) from error


def read_bundle(file: Path) -> BundleResults:
    """Read the results.json of a student.pyz.

    Raises:
        InputFileError: it is none, or of another version.
    """
    try:
        value = _parsed(file)
        if format_of(value) != FORMAT:
            raise InputFileError(f"{file} has format {reprlib.repr(format_of(value))}; this edgekd reads {FORMAT}.")
        results = object_of(BundleResults)(value, "")
        for index, compared in enumerate(results.comparisons):
            for job in (result.job for result in compared.comparison.results):
                if job.artefact.partition(" --")[0] != job.model.name:
                    place = f"comparisons[{index}].comparison.results.job.artefact"
                    raise SchemaError(place, job.artefact, f"an artefact of {job.model}")
    except ValueError as error:
        raise InputFileError(f"{file} is no results.json of a student.pyz ({error}).") from error
    return results


def _parsed(file: Path) -> Any:
    try:
        with open_regular(file) as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputFileError(f"{file} cannot be read ({error.strerror}).") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
    return parse_untrusted_json(data)
