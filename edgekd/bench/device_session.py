"""A device that is held: files there, answers back; nothing of an answer is taken before it fits what was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import sha256_of, sha256_with
from edgekd.agent.device.power import POWER, Energy, NoEnergy
from edgekd.agent.device.workplace import FileFacts
from edgekd.agent.kernels import TOLERANCES
from edgekd.agent.measure import LOAD_TIMEOUT_S
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, Measurement
from edgekd.agent.messages import Check, Close, Hello, Measure, MeasureEnergy, Open, ResumableRequest, Verify
from edgekd.agent.numerics import LogitsCheck, precision_of
from edgekd.agent.protocol import AgentProcess, arriving
from edgekd.agent.session import DeviceComparison
from edgekd.errors import MachineError
from edgekd.schema import SchemaError, object_of, parse_untrusted_json

if TYPE_CHECKING:
    from edgekd.agent.measure import OnProgress
    from edgekd.bench.remote import Host
    from edgekd.schema import Reader

T = TypeVar("T")
_HELLO_TIMEOUT_S = 180.0
_FAREWELL_TIMEOUT_S = 60.0
Say = Callable[[str], None]


class DeviceSession:
    """A device that is held, and its work folder."""

    def __init__(
        self, host: Host, process: AgentProcess, key: str, folder: str, say: Say, while_waiting: Callable[[], None]
    ) -> None:
        self._host, self._process, self._key, self._folder, self._say = host, process, key, folder, say
        self._while_waiting = while_waiting
        self.environment: Environment

    def begin(self, agent_sha256: str, *, tensorrt: bool) -> None:
        """Make sure that the agent there is ours, learn what the machine is, and hold it."""
        hello = self._process.ask(Hello(tensorrt, self._trtexec), timeout_s=_HELLO_TIMEOUT_S)
        if hello.agent_sha256 != agent_sha256:
            raise MachineError(f"the agent on {self._host.address} is not the one that was copied; try again.")
        self.environment = hello.machine
        self._process.ask(Open(self._key, ()))

    @property
    def _trtexec(self) -> str | None:
        return self._host.trtexec or None

    def put(self, files: Sequence[Path]) -> None:
        """Bring files there whose content is not there yet; each is hashed at both ends."""
        by_name = {file.name: file for file in files}
        facts = tuple(FileFacts(name, sha256_of(file), file.stat().st_size) for name, file in by_name.items())
        missing = self._process.ask(Open(self._key, facts)).missing
        self._require_wanted("open", "missing", missing, facts)
        hashes = {fact.name: fact.sha256 for fact in facts}
        for number, name in enumerate(missing, 1):
            size = by_name[name].stat().st_size
            self._say(f"copy     {number}/{len(missing)} {name} ({size / 1000:.0f} kB) to {self._host.address}")
            self._host.copy(by_name[name], f"{self._folder}/{arriving(hashes[name])}", self._while_waiting)
        damaged = self._process.ask(Verify(facts)).damaged
        self._require_wanted("verify", "damaged", damaged, facts)
        if damaged:
            raise MachineError(
                f"{damaged[0]} did not arrive whole on {self._host.address}; give the same command again."
            )

    def _require_wanted(self, op: str, key: str, names: Sequence[str], expected: Sequence[FileFacts]) -> None:
        """Refuse an answer that names other files than those that were asked for."""
        strange = set(names) - {fact.name for fact in expected}
        if strange:
            raise self._process.unfit(op, SchemaError(key, strange.pop(), "a file that was asked for"))

    def measure(
        self, jobs: Sequence[BenchJob], settings: BenchSettings, on_progress: OnProgress | None = None
    ) -> DeviceComparison:
        """Return one comparison as it was made there, with a Jetson's state before and after."""
        read = object_of(DeviceComparison)

        def asked(value: object, place: str) -> DeviceComparison:
            compared = read(value, place)
            _require_asked(compared.comparison, jobs, settings)
            return compared

        compared = self._part(Measure(tuple(jobs), settings, self._trtexec), asked, on_progress or (lambda _: None))
        hashes = {job.model.name: sha256_with(job.model, job.weights) for job in jobs}
        for result in compared.comparison.results:
            name = result.job.model.name
            if isinstance(result, Measurement) and result.sha256 != hashes[name]:
                raise MachineError(f"{self._host.address} measured another {name} than this one.")
        return replace(compared, comparison=replace(compared.comparison, target=self._host.address))

    def compare(
        self, jobs: Sequence[BenchJob], settings: BenchSettings, on_progress: OnProgress | None = None
    ) -> Comparison:
        """Return one comparison, as `measure` does here."""
        return self.measure(jobs, settings, on_progress).comparison

    def check(
        self, job: BenchJob, settings: BenchSettings, images: str, expected: Sequence[Sequence[float]]
    ) -> LogitsCheck:
        """Return how the logits there differ from those of here."""
        read, precision = object_of(LogitsCheck), precision_of(job)

        def asked(value: object, place: str) -> LogitsCheck:
            check = read(value, place)
            _require_equal("artefact", check.artefact, job.artefact)
            _require_equal("runtime", check.runtime, job.runtime)
            _require_equal("images", check.images, len(expected))
            _require_equal("precision", check.precision, precision)
            _require_equal("tolerance", check.tolerance, TOLERANCES[precision])
            return check

        rows = tuple(tuple(row) for row in expected)
        return self._part(Check((job,), settings, self._trtexec, images, rows), asked)

    def energy(self, job: BenchJob, settings: BenchSettings) -> Energy | NoEnergy:
        """Return the energy of one artefact there, or why there is none."""

        def asked(value: object, place: str) -> Energy | NoEnergy:
            energy = POWER(value, place)
            for name, named, expected in (
                ("artefact", energy.artefact, job.artefact),
                ("runtime", energy.runtime, job.runtime),
            ):
                if named is not None:
                    _require_equal(name, named, expected)
            return energy

        return self._part(MeasureEnergy((job,), settings, self._trtexec), asked)

    def complete(self) -> None:
        """Remove the work folder there; engines stay."""
        self._process.ask(Close(complete=True), timeout_s=_FAREWELL_TIMEOUT_S)

    def _part(self, request: ResumableRequest, read: Reader[T], on_progress: OnProgress | None = None) -> T:
        sealed = self._process.ask(request, timeout_s=LOAD_TIMEOUT_S, on_progress=on_progress)
        if hashlib.sha256(sealed.text.encode()).hexdigest() != sealed.sha256:
            raise MachineError(f"a result of {self._host.address} did not arrive whole; give the same command again.")
        try:
            content = read(parse_untrusted_json(sealed.text), "")
        except ValueError as error:
            raise self._process.unfit(request.op, error) from error
        if sealed.kept:
            labels = ", ".join(job.label for job in request.jobs)
            self._say(f"kept     {request.op} of {labels}: measured before the connection was cut")
        return content


def _require_equal(name: str, answer: object, expected: object) -> None:
    if answer != expected:
        raise SchemaError(name, answer, f"{expected}, as it was asked for")


def _require_asked(comparison: Comparison, jobs: Sequence[BenchJob], settings: BenchSettings) -> None:
    """Raise `SchemaError` unless a comparison is of these jobs, each once or, in TensorRT, once an engine."""
    _require_equal("settings", comparison.settings, settings)
    asked = [replace(job, model=Path(job.model.name)) for job in jobs]
    for job in (result.job for result in comparison.results):
        if not any(
            job in (job_asked, _engine_of(job_asked, job)) and job.artefact.startswith(job_asked.artefact)
            for job_asked in asked
        ):
            raise SchemaError("a job", job.artefact, "one of those that were asked for")
    answered = {result.job.model.name for result in comparison.results}
    absent = [job for job in jobs if job.model.name not in answered]
    if absent:
        raise SchemaError(f"the result of {absent[0].label}")


def _engine_of(asked: BenchJob, measured: BenchJob) -> BenchJob:
    """What a job is called once TensorRT has made an engine of it."""
    if measured.runtime != "tensorrt":
        return asked
    return replace(asked, artefact=measured.artefact, kind=measured.kind, flags=measured.flags)
