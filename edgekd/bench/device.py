"""Measure on another machine: over ssh, or with a bundle that is carried there and its results carried back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd import console
from edgekd.agent.bundle import FORMAT, Golden, Manifest
from edgekd.agent.device import scratch
from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import sha256_with
from edgekd.agent.device.power import Energy, NoEnergy
from edgekd.agent.device.workplace import FileFacts
from edgekd.agent.kernels import Runtime, kind_of
from edgekd.agent.measure import measure_jobs, require_some
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison
from edgekd.agent.numerics import LogitsCheck
from edgekd.agent.runners import tensorrt_rules
from edgekd.agent.runners.tensorrt import MISSING
from edgekd.agent.runners.tensorrt_rules import OLDEST_WITH_WORDS
from edgekd.agent.session import BoardStates, DeviceComparison, DeviceResults
from edgekd.bench import comparing, golden, measuring, pack, remote
from edgekd.bench.results import (
    ENVIRONMENT,
    JETSON,
    RESULTS,
    SAMPLES,
    Results,
    read_bundle,
    require_publishable,
    write_results,
)
from edgekd.bench.sized_students import Measurer
from edgekd.errors import GateError, InputFileError, MachineError, UsageError
from edgekd.export.ort_session import PRECISION
from edgekd.recipe import BenchTable
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.files import digest
from edgekd.schema import to_json
from edgekd.stopping import Stop

if TYPE_CHECKING:
    from edgekd.agent.measure import OnProgress


def on_device(
    host: remote.Host,
    files: Sequence[Path],
    table: BenchTable,
    stop: Stop,
    *,
    runtimes: Sequence[Runtime] = (),
    image_shape: tuple[int, ...] | None = None,
    energy: bool = True,
    run: RunDir | None = None,
) -> Results:
    """Measure files on a device and publish bench/<target>/ of the run, if there is one; return results.json.

    Without `runtimes` it uses what is there: TensorRT, else ONNX Runtime on the CPU.

    Raises:
        MachineError: the device cannot be reached or runs none of the files, or the connection was cut.
        RunBusyError: another bench is under way there.
    """
    key = digest(sorted(sha256_with(file, golden.weights_of(file)) for file in files))
    asks_tensorrt = not runtimes or "tensorrt" in runtimes  # one that is broken is in nobody's way otherwise
    asked = partial(stop.raise_if_requested, "bench")
    with (
        host.session(key, console.say, tensorrt=asks_tensorrt, while_waiting=asked) as session,
        scratch.folder() as place,
    ):
        chosen = runtimes or (runtime_of(session.environment, host),)
        jobs = [golden.described(job) for job in measuring.jobs_of(files, chosen, image_shape=image_shape)]
        expected = golden.write_files(jobs, place)
        weights = [job.model.with_name(name) for job in jobs for name in job.weights]
        session.put([*files, *dict.fromkeys(weights), *dict.fromkeys(file for file, _ in expected.values())])
        comparisons: list[DeviceComparison] = []
        numerics: list[LogitsCheck] = []
        powers: list[Energy | NoEnergy] = []
        for settings in comparing.settings_of(table):
            stop.raise_if_requested("bench")
            with measuring.shown(jobs, settings, stop, f" on {host.address}") as show:
                comparisons.append(session.measure(jobs, settings, show))
        first = comparisons[0].comparison
        require_some(first.results)
        for measurement in first.measurements:
            stop.raise_if_requested("bench")
            images, logits = next(value for file, value in expected.items() if file.name == measurement.job.model.name)
            numerics.append(session.check(measurement.job, first.settings, images.name, logits))
            if energy:
                powers.append(session.energy(measurement.job, first.settings))
        device_results = DeviceResults(tuple(comparisons), tuple(powers), tuple(numerics))
        results = published(run, host.address, files[0].parent, device_results)
        session.complete()
    return results


def runtime_of(environment: Environment, host: remote.Host) -> Runtime:
    """Return what a device has: a TensorRT whose flags are known before ONNX Runtime."""
    tensorrt = environment.tensorrt
    if tensorrt_rules.known(tensorrt):
        return "tensorrt"
    if environment.runtime_packages and environment.numpy:
        return "ort-cpu"
    why = MISSING if tensorrt is None else f"TensorRT {tensorrt.version} is installed; {OLDEST_WITH_WORDS}"
    raise MachineError(
        f"{host.address} has nothing to run a model with: {why}; or, for ONNX Runtime on its CPU: "
        f"{environment.executable} -m pip install numpy onnxruntime"
    )


def published(run: RunDir | None, target: str, folder: Path, device_results: DeviceResults) -> Results:
    """Write what was measured on a device into bench/<target>/ of a run, if there is one; return results.json."""
    comparisons = [compared.comparison for compared in device_results.comparisons]
    results = comparing.results_of(comparisons, folder, run)
    absent = sorted({reading.energy for reading in device_results.energy if isinstance(reading, NoEnergy)})
    results = replace(
        results,
        target=target,
        numerics=device_results.numerics,
        energy=tuple(reading for reading in device_results.energy if isinstance(reading, Energy)),
        energy_note="; ".join(absent),
        warnings=(*results.warnings, *(_sentence(check) for check in device_results.numerics if not check.passed)),
    )
    require_publishable(RESULTS, results)
    if run is None:
        return results
    with run.publish(comparing.folder_of(target)) as (place, record):
        if comparisons:
            write_results(place / ENVIRONMENT, comparisons[0].environment)
        write_results(place / SAMPLES, [comparing.samples_of(comparison) for comparison in comparisons])
        states = [BoardStates(compared.jetson_before, compared.jetson_after) for compared in device_results.comparisons]
        write_results(place / JETSON, states)
        write_results(place / RESULTS, results)
        exported, names = Record.read(run.stage("export")), _measured_files(device_results)
        outputs = {} if exported is None else exported.outputs
        inputs = {f"export/{name}": outputs[name] for name in sorted(names & outputs.keys())}
        key = digest([target, to_json(results)])
        record |= {"stage": "bench", "version": 1, "key": key, "inputs": inputs, "recipe_slice": {}}
    return results


def _measured_files(device_results: DeviceResults) -> set[str]:
    """The names of the files that were timed or checked; the name of an engine's row begins with its file's."""
    timed = {
        measurement.job.model.name
        for made in device_results.comparisons
        for measurement in made.comparison.measurements
    }
    named = [item.artefact for item in (*device_results.numerics, *device_results.energy) if item.artefact is not None]
    return timed | {name.partition(" --")[0] for name in named}


def _sentence(check: LogitsCheck) -> str:
    difference = "are not finite" if check.max_difference is None else f"differ by {check.max_difference:.2g}"
    saturates = kind_of(check.artefact) == "int8-cpu-x86"
    return (
        f"{check.artefact} does not compute there what it computes here: its logits {difference} of the range "
        f"({check.precision}: {check.tolerance:g} allowed), {check.wrong_answers} of {check.clear} clear answers."
        + (f" A CPU without VNNI needs {PRECISION}=1 for this file (docs/export.md)." if saturates else "")
    )


def refuse_wrong_numbers(numerics: Sequence[LogitsCheck]) -> None:
    """Raise `GateError` when an artefact computes something else on the device."""
    wrong = [_sentence(check) for check in numerics if not check.passed]
    if wrong:
        raise GateError(" ".join(wrong) + " The latencies are published; do not ship that file to this device.")


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written."""

    file: str
    size_bytes: int
    sha256: str


def write_bundle(run_name: str, files: Sequence[Path], table: BenchTable, output: Path) -> WrittenBundle:
    """Write student.pyz: the files, the agent, golden inputs (seeded noise) and this machine's logits for them."""
    jobs = [golden.described(job) for job in measuring.jobs_of(files, ("ort-cpu",))]
    signature = golden.signature(files[0])
    images = golden.images(signature)
    content = {file.name: file.read_bytes() for file in files} | {"golden.npy": golden.to_npy(images)}
    settings = comparing.settings_of(table)[0]
    manifest = Manifest(
        format=FORMAT,
        run=run_name,
        jobs=tuple(jobs),
        settings=settings,
        files=tuple(
            FileFacts(name, hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for name, data in content.items()
        ),
        golden=Golden(
            "golden.npy", {file.name: tuple(map(tuple, golden.reference_logits(file, images))) for file in files}
        ),
    )
    data = pack.bundle_zip(manifest, content)
    if output.exists() and not pack.is_bundle(output):
        raise UsageError(f"{output} is no bundle of edgekd and is not overwritten; choose another --output.")
    temporary = output.with_name(f".tmp-{output.name}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o755)
        temporary.rename(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MachineError(
            f"{output} cannot be written ({error.strerror}); choose another place with --output."
        ) from error
    return WrittenBundle(str(output), len(data), hashlib.sha256(data).hexdigest())


def import_results(run: RunDir, file: Path) -> Results:
    """Bring the results.json of a bundle into a run, provided that it measured this run's files.

    Raises:
        InputFileError: it is no such file, or of other files than the run's.
    """
    device_results = read_bundle(file)
    exported = Record.read(run.stage("export"))
    here = {} if exported is None else exported.outputs
    measured = [measurement for made in device_results.comparisons for measurement in made.comparison.measurements]
    timed = [(measurement.job.model.name, measurement.sha256) for measurement in measured]
    checked = [(name, device_results.files.get(name)) for name in sorted(_measured_files(device_results))]
    other = [name for name, sha256 in [*timed, *checked] if sha256 is None or here.get(name) != sha256]
    if other:
        raise InputFileError(
            f"{file} measured another {other[0]} than run {run.path} holds; name its run, or make a new bundle."
        )
    checked_only = "" if device_results.comparisons else "-check"  # beside what bench may have measured before
    return published(run, f"{device_results.target}{checked_only}", run.stage("export"), device_results)


@contextmanager
def measurer_on(host: remote.Host | None, stop: Stop) -> Iterator[tuple[Measurer, Runtime]]:
    """Yield a way to measure jobs one after the other, and the runtime to measure them in: there, or here."""
    asked = partial(stop.raise_if_interrupted, "measuring students")  # what is cut off would be measured from the start
    if host is None:
        yield partial(measure_jobs, while_waiting=asked), "ort-cpu"
        return
    with host.session("students", console.say, while_waiting=asked) as session:

        def there(
            jobs: Sequence[BenchJob], settings: BenchSettings, on_progress: OnProgress | None = None
        ) -> Comparison:
            descriptions = [golden.described(job) for job in jobs]
            session.put([job.model for job in descriptions])
            return session.compare(descriptions, settings, on_progress)

        yield there, runtime_of(session.environment, host)
        session.complete()
