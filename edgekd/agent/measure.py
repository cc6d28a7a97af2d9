"""Measure artefacts side by side: one child process each, rounds interleaved, one child computing at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from edgekd.agent.device.disturbance import warnings
from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import Activity, sha256_with
from edgekd.agent.kernels import skip_reason
from edgekd.agent.measurement import (
    BenchJob,
    BenchSettings,
    Comparison,
    LoadedFacts,
    Measurement,
    MeasurementProgress,
    MemoryUse,
    NodeCounts,
    Round,
    Skipped,
)
from edgekd.agent.messages import CountNodes, Hello, Load, Memory, Observe, TimeRound, WarmedUp, WarmUp
from edgekd.agent.protocol import AgentProcess, Local, Transport
from edgekd.agent.runners.tensorrt import MISSING
from edgekd.agent.runners.tensorrt_rules import uses_of
from edgekd.errors import InputFileError, MachineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    OnProgress = Callable[[MeasurementProgress], None]

_OBSERVED_S = 0.5
LOAD_TIMEOUT_S = 3600.0
"""An engine of TensorRT takes minutes to build, on a small board many."""


@dataclass(frozen=True)
class Tools:
    """Where a device keeps its own: trtexec, and the engines that are built there."""

    trtexec: str | None = None
    engines: str | None = None
    engines_since_s: float | None = None
    """The Unix time from which on engines that were used stay: when the work began."""


def measure_jobs(
    jobs: Sequence[BenchJob],
    settings: BenchSettings,
    on_progress: OnProgress | None = None,
    transport: Transport | None = None,
    tools: Tools = Tools(),
    while_waiting: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measure all jobs by the protocol; what the runtime has no kernels for or cannot build is skipped with the reason.

    `while_waiting` is called twice a second while an agent works, and may raise.

    Raises:
        InputFileError: a file is missing, changed on its way, or no model with one image input.
        UsageError: two jobs share a name, or a file does not take this batch.
        MachineError: the machine lacks a runtime, or an agent died or hung.
    """
    _check(jobs)
    transport = transport or Local()
    tools = replace(tools, engines_since_s=tools.engines_since_s or time.time())

    def agent(name: str) -> AgentProcess:
        return AgentProcess(name, transport.argv(), settings.reply_timeout_s, while_waiting=while_waiting)

    with agent(transport.target) as scout:
        wants_tensorrt = any(job.runtime == "tensorrt" for job in jobs)
        environment = scout.ask(Hello(wants_tensorrt, tools.trtexec)).machine
        before = scout.ask(Observe(_OBSERVED_S))
    planned = plan(jobs, environment)
    timed = [item for item in planned if isinstance(item, BenchJob)]
    measurements = {item.job: item for item in _measure(timed, settings, on_progress, transport, tools, agent)}
    results = tuple(measurements[item] if isinstance(item, BenchJob) else item for item in planned)
    measured = [item for item in results if isinstance(item, Measurement)]
    doubts = warnings(environment, settings, before, measured)
    return Comparison(transport.target, environment, settings, before, results, doubts)


def require_some(results: Sequence[BenchJob | Measurement | Skipped]) -> None:
    """Raise `MachineError` with the reasons when nothing of it runs on this machine."""
    reasons = [f"{item.job.label}: {item.reason}" for item in results if isinstance(item, Skipped)]
    if len(reasons) == len(results):
        raise MachineError(f"nothing could be run: {'; '.join(dict.fromkeys(reasons))}.")


def plan(jobs: Sequence[BenchJob], environment: Environment) -> list[BenchJob | Skipped]:
    """Return what is timed on this machine, one job for each engine of TensorRT, and what is not, with the reason."""
    planned: list[BenchJob | Skipped] = []
    for job in jobs:
        reason = skip_reason(job.kind, job.runtime, environment)
        if reason is not None:
            planned.append(Skipped(job, reason))
        elif job.runtime == "tensorrt":
            planned += _engines(job, environment)
        else:
            planned.append(job)
    return planned


def _engines(job: BenchJob, environment: Environment) -> list[BenchJob | Skipped]:
    if environment.tensorrt is None:
        raise MachineError(MISSING)
    uses = uses_of(job.kind, environment.tensorrt.version)
    if isinstance(uses, str):
        return [Skipped(job, uses)]
    options = uses[:1] if job.first_engine else uses
    return [replace(job, artefact=job.artefact + use.suffix, kind=use.kind, flags=use.flags) for use in options]


def _check(jobs: Sequence[BenchJob]) -> None:
    names = [job.label for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is to be measured twice; give each artefact its own name.")
    for job in jobs:
        if not job.model.is_file():
            raise InputFileError(f"{job.model} is not a file; nothing was measured.")


def _measure(
    jobs: Sequence[BenchJob],
    settings: BenchSettings,
    on_progress: OnProgress | None,
    transport: Transport,
    tools: Tools,
    agent: Callable[[str], AgentProcess],
) -> list[Measurement | Skipped]:
    total, done = len(jobs) * (2 + settings.rounds), 0

    def report(step: str, job: BenchJob) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(MeasurementProgress(step, job.label, done, total))

    with ExitStack() as stack:
        subjects: list[_Subject] = []
        skipped: list[Measurement | Skipped] = []
        for job in jobs:
            process = stack.enter_context(agent(job.label))
            with _or_skipped(job, skipped):
                subjects.append(_Subject(job, settings, process, transport, tools))
            report("load", job)
        for subject in subjects:
            with _or_skipped(subject.job, skipped):
                subject.warm_up()
            report("warm-up", subject.job)
        subjects = [subject for subject in subjects if subject.job not in [other.job for other in skipped]]
        for number in range(settings.rounds):
            # Every other round runs backwards (A B C, C B A), so that a steady drift weighs on all alike.
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                subject.round()
                report("round", subject.job)
        return [*skipped, *(subject.measurement() for subject in subjects)]


@contextmanager
def _or_skipped(job: BenchJob, skipped: list[Measurement | Skipped]) -> Iterator[None]:
    """Note why an engine cannot be built or started: the others are measured all the same."""
    try:
        yield
    except (MachineError, InputFileError) as error:
        if job.runtime != "tensorrt":
            raise
        skipped.append(Skipped(job, "n/a: " + " | ".join(str(error).rstrip(".").splitlines())))


def load_request(
    job: BenchJob, settings: BenchSettings, transport: Transport, tools: Tools, *, spin_wait: bool = True
) -> Load:
    """Return the request that loads an artefact on its machine; threads that wait may spin, but not for energy."""
    return Load(
        model=transport.place(job.model),
        sha256=sha256_with(job.model, job.weights),
        weights=job.weights,
        runtime=job.runtime,
        threads=settings.threads,
        batch=settings.batch,
        image_shape=job.image_shape,
        input_name=job.input_name,
        declared=job.declared,
        flags=job.flags,
        seed=settings.seed,
        spin_wait=spin_wait,
        trtexec=tools.trtexec,
        engines=tools.engines,
        engines_since_s=tools.engines_since_s,
    )


class _Subject:
    """One artefact in its own process, from loading to the last round."""

    def __init__(
        self, job: BenchJob, settings: BenchSettings, agent: AgentProcess, transport: Transport, tools: Tools
    ) -> None:
        self.job, self._settings, self._agent = job, settings, agent
        self._rounds: list[Round] = []
        self._warm: WarmedUp
        request = load_request(job, settings, transport, tools)
        builds = LOAD_TIMEOUT_S if job.runtime == "tensorrt" else 0.0
        self._loaded = agent.ask(request, timeout_s=max(builds, settings.reply_timeout_s))

    def warm_up(self) -> None:
        settings = self._settings
        self._warm = self._agent.ask(
            WarmUp(settings.warm_up_window, settings.warm_up_agreement, settings.warm_up_seconds)
        )

    def round(self) -> None:
        settings = self._settings
        timed = self._agent.ask(
            TimeRound(
                runs=math.ceil(settings.min_runs / settings.rounds),
                seconds=settings.min_seconds / settings.rounds,
                settle_runs=settings.settle_runs,
            )
        )
        self._rounds.append(Round(timed.samples_ms, Activity(**_facts(Activity, timed))))

    def measurement(self) -> Measurement:
        memory = self._agent.ask(Memory())  # before the profiled run, which opens a second session
        executed = self._agent.ask(CountNodes())
        return Measurement(
            job=self.job,
            stable=self._warm.stable,
            warm_up_ms=self._warm.medians_ms,
            rounds=tuple(self._rounds),
            **_facts(LoadedFacts, self._loaded),
            **_facts(MemoryUse, memory),
            **_facts(NodeCounts, executed),
        )


def _facts(cls: type[Any], answer: object) -> dict[str, Any]:
    """What an answer says of the fields of a class that it extends."""
    return {member.name: getattr(answer, member.name) for member in fields(cls)}
