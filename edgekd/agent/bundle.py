"""`student.pyz` on a device, offline: `check` compares logits, `bench` measures too; both write results.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekd.agent import session
from edgekd.agent.device import files, power, scratch
from edgekd.agent.device.machine import publish
from edgekd.agent.device.workplace import FileFacts, Workplace
from edgekd.agent.kernels import RUNTIMES, Runtime
from edgekd.agent.measure import Tools, require_some
from edgekd.agent.measurement import BenchJob, BenchSettings, MeasurementProgress
from edgekd.agent.messages import LOGITS
from edgekd.agent.numerics import LogitsCheck
from edgekd.agent.protocol import ERRORS, entry_point
from edgekd.agent.refusal import RefusedError, refusal_of
from edgekd.agent.runners.tensorrt import find_tensorrt
from edgekd.agent.runners.tensorrt_rules import known
from edgekd.agent.session import DeviceComparison, DeviceResults
from edgekd.errors import EdgekdError, MachineError
from edgekd.schema import (
    NAME,
    SHA256,
    TARGET,
    SchemaError,
    integer,
    list_of,
    mapping_of,
    object_of,
    parse_json,
    required,
    to_json,
)
from edgekd.text import path_argument, visible

MANIFEST, FORMAT = "manifest.json", 1
EXIT_CODES = {kind: error.exit_code for kind, error in ERRORS.items()}


@dataclass(frozen=True)
class Golden:
    """The file of golden inputs, and the logits that the host computed for them, by the file of the model."""

    images: str = field(metadata=required(NAME))
    logits: dict[str, tuple[tuple[float, ...], ...]] = field(metadata=required(mapping_of(LOGITS)))


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a student.pyz: what it holds and how it is measured."""

    format: int = field(metadata=required(integer(1, 10**6)))
    run: str = field(metadata=required(NAME))
    jobs: tuple[BenchJob, ...] = field(metadata=required(list_of(object_of(BenchJob), 1000)))
    settings: BenchSettings = field(metadata=required(object_of(BenchSettings)))
    files: tuple[FileFacts, ...] = field(metadata=required(list_of(object_of(FileFacts), 1000)))
    golden: Golden = field(metadata=required(object_of(Golden)))


@dataclass(frozen=True)
class BundleResults(DeviceResults):
    """results.json of a student.pyz."""

    format: int = field(metadata=required(integer(1, 10**6)))
    run: str = field(metadata=required(NAME))
    target: str = field(metadata=required(TARGET))
    manifest_sha256: str = field(metadata=required(SHA256))
    files: dict[str, str] = field(metadata=required(mapping_of(SHA256, 1000)))


def format_of(value: Any) -> Any:
    """Return the format that a manifest or a results.json claims, whatever else is in it."""
    return value.get("format", FORMAT) if isinstance(value, dict) else FORMAT


def is_one() -> bool:
    """Return whether this code runs from a bundle."""
    entry = entry_point()
    return entry.is_file() and MANIFEST in zipfile.ZipFile(str(entry)).namelist()


def main(arguments: list[str]) -> int:
    """Run `check` or `bench`; the exit code is that of edgekd for the same failure."""
    asked = _parser().parse_args(arguments)
    try:
        results = _recorded(asked)
    except EdgekdError as error:
        _say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        _say(f"error: {error.filename or 'a file'} cannot be written or read ({error.strerror})")
        return 6
    except Exception as error:  # noqa: BLE001 - whoever runs a bundle can do nothing with a traceback
        refused = refusal_of(error)
        _say(f"error: {refused}")
        return EXIT_CODES[refused.kind]
    failed = [check for check in results.numerics if not check.passed]
    name = path_argument(Path(asked.output).name)
    _say(f"wrote {asked.output}; on the machine with the run: edgekd bench --import {name}")
    return 5 if failed else 0


def _recorded(asked: argparse.Namespace) -> BundleResults:
    """Do what was asked and write the results; that they can be written is known before minutes of measuring."""
    output = Path(asked.output)
    if output.exists() and not _is_results(output):
        raise RefusedError(
            "usage", f"{output} holds no results of edgekd and is not overwritten; choose another --output"
        )
    temporary = output.with_name(f".tmp-{output.name}")  # the name of every run: what a killed one left goes, too
    try:
        if os.path.lexists(str(temporary)):
            temporary.unlink()
        temporary.open("x").close()
        results = _Bundle(asked).run()
        temporary.write_text(json.dumps(to_json(results), indent=1) + "\n", encoding="utf-8")
        publish(temporary, output)
    finally:
        if temporary.exists():
            temporary.unlink()
    return results


def _is_results(path: Path) -> bool:
    try:
        content = parse_json(files.read_bytes(path))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "manifest_sha256" in content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="student.pyz", description="Check and measure a student on this device.")
    parser.add_argument("action", choices=("check", "bench"), help="compare logits; or that, and measure latency")
    parser.add_argument(
        "--runtime", choices=[runtime for runtime in RUNTIMES if runtime != "torch"], help="[what is there]"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trtexec", metavar="PATH", help="[JetPack's, else that on PATH]")
    parser.add_argument("--no-energy", action="store_true", help="leave out the runs that measure power")
    parser.add_argument("--output", default="results.json", metavar="FILE")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def _manifest(text: bytes) -> Manifest:
    value = json.loads(text)
    if format_of(value) != FORMAT:
        raise RefusedError("file", f"the manifest has format {format_of(value)}, not {FORMAT}")
    try:
        return object_of(Manifest)(value, "")
    except SchemaError as error:
        raise RefusedError("file", f"the manifest is none of this edgekd ({error})") from error


class _Bundle:
    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.archive = asked, zipfile.ZipFile(str(entry_point()))
        text = self.archive.read(MANIFEST)
        self.manifest, self.manifest_sha256 = _manifest(text), hashlib.sha256(text).hexdigest()
        self.settings = replace(self.manifest.settings, batch=asked.batch, threads=asked.threads)

    def run(self) -> BundleResults:
        """Do what was asked; return the results."""
        place = Workplace()
        tools = Tools(self.asked.trtexec, str(place.engines), time.time())
        with scratch.folder() as folder:
            self._unpack(folder)
            runtime: Runtime = self.asked.runtime or (
                "tensorrt" if known(find_tensorrt(self.asked.trtexec)) else "ort-cpu"
            )
            bench = self.asked.action == "bench"
            if bench or runtime == "tensorrt":  # answers alone need no lock and no cache
                place.hold()
            jobs = [replace(job, model=folder / job.model, runtime=runtime) for job in self.manifest.jobs]
            comparisons = (session.compare_on_device(jobs, self.settings, tools, _report),) if bench else ()
            ready = self._ready(jobs, tools, comparisons)
            return BundleResults(
                format=FORMAT,
                run=self.manifest.run,
                target=platform.node() or "device",
                manifest_sha256=self.manifest_sha256,
                files={file.name: file.sha256 for file in self.manifest.files},
                comparisons=comparisons,
                numerics=self._numerics(ready, tools, folder),
                energy=self._energy(ready, tools) if bench and not self.asked.no_energy else (),
            )

    def _ready(self, jobs: list[BenchJob], tools: Tools, comparisons: Sequence[DeviceComparison]) -> list[BenchJob]:
        """The jobs that run here: those that were timed, if any were."""
        if not comparisons:
            return session.plan_on_device(jobs, self.settings, tools)
        compared = comparisons[0].comparison
        require_some(compared.results)
        for warning in compared.warnings:
            _say(f"warning: {warning}")
        return [measurement.job for measurement in compared.measurements]

    def _unpack(self, folder: Path) -> None:
        """Write the files where a runtime can read them, each with the hash of the manifest."""
        for file in self.manifest.files:
            data = self.archive.read(f"files/{file.name}")
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise RefusedError("file", f"{file.name} in {entry_point()} is damaged; copy the bundle again")
            (folder / file.name).write_bytes(data)

    def _numerics(self, jobs: list[BenchJob], tools: Tools, folder: Path) -> tuple[LogitsCheck, ...]:
        """Check what can be built here; what cannot is told, and an error only where nothing else can."""
        checks: list[LogitsCheck] = []
        failures: list[MachineError] = []
        for job in jobs:
            try:
                checks.append(self._checked(job, tools, folder))
            except MachineError as error:
                _say(f"check    {job.label}: n/a: {error}")
                failures.append(error)
        if not checks:
            raise failures[0]
        return tuple(checks)

    def _checked(self, job: BenchJob, tools: Tools, folder: Path) -> LogitsCheck:
        golden = self.manifest.golden
        check = session.check_on_device(
            job, self.settings, tools, folder / golden.images, golden.logits[job.model.name]
        )
        word = "as on the host" if check.passed else "NOT as on the host"
        difference = "not finite" if check.max_difference is None else f"{check.max_difference:.2g}"
        _say(
            f"check    {job.label}: {word}: largest difference {difference} of the range "
            f"({check.precision}: {check.tolerance:g} allowed), {check.wrong_answers} of {check.clear} "
            "clear answers differ"
        )
        return check

    def _energy(self, jobs: list[BenchJob], tools: Tools) -> tuple[power.Energy | power.NoEnergy, ...]:
        source = power.find_power_reader()
        if isinstance(source, str):
            return (power.NoEnergy(source),)
        try:
            return tuple(session.energy_on_device(job, self.settings, tools, source) for job in jobs)
        finally:
            source.close()


def _report(progress: MeasurementProgress) -> None:
    _say(f"bench    {progress.done}/{progress.total} {progress.step} {progress.artefact}")
