"""Measure artefacts side by side: one child process each, rounds interleaved, one child computing at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from edgekd.deploy.agent import sha256_of
from edgekd.deploy.disturbance import warnings
from edgekd.deploy.environment import from_facts
from edgekd.deploy.kernels import PROVIDERS, skip_reason
from edgekd.deploy.measurement import Activity, Comparison, Job, Measurement, Round, Settings, Skipped
from edgekd.deploy.protocol import AgentProcess, Local, Transport
from edgekd.errors import InputFileError, UsageError
from edgekd.rng import keyed_seed

_OBSERVED_S = 0.5


@dataclass(frozen=True)
class Progress:
    """One finished step of a measurement: `done` of `total`."""

    step: str  # load, warm-up or round
    artefact: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


def measure(
    jobs: Sequence[Job],
    settings: Settings,
    on_progress: OnProgress | None = None,
    transport: Transport | None = None,
) -> Comparison:
    """Measure all jobs by the protocol; those the runtime has no kernels for are skipped with the reason.

    Raises:
        InputFileError: a file is missing, changed on its way, or no model with one image input.
        UsageError: two jobs share a name, or a file does not take this batch.
        MachineError: the machine lacks a runtime, or an agent died or hung.
    """
    _check(jobs)
    transport = transport or Local()
    with AgentProcess(transport.target, transport.argv(), settings.reply_timeout_s) as scout:
        environment = from_facts(scout.hello())
        before = _activity(scout.ask("observe", seconds=_OBSERVED_S))
    skipped = {job.artefact: skip_reason(job.kind, job.runtime, environment) for job in jobs}
    timed = [job for job in jobs if skipped[job.artefact] is None]
    measured = {one.job.artefact: one for one in _measure(timed, settings, on_progress, transport)}
    results = tuple(measured.get(job.artefact) or Skipped(job, str(skipped[job.artefact])) for job in jobs)
    found = warnings(environment, settings, before, list(measured.values()))
    return Comparison(transport.target, environment, settings, before, results, found)


def _check(jobs: Sequence[Job]) -> None:
    names = [job.artefact for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is to be measured twice; give each artefact its own name.")
    for job in jobs:
        if not job.model.is_file():
            raise InputFileError(f"{job.model} is not a file; nothing was measured.")


def _measure(
    jobs: Sequence[Job], settings: Settings, on_progress: OnProgress | None, transport: Transport
) -> list[Measurement]:
    total, done = len(jobs) * (2 + settings.rounds), 0

    def report(step: str, job: Job) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress(step, job.artefact, done, total))

    with ExitStack() as stack:
        subjects: list[_Subject] = []
        for job in jobs:
            process = AgentProcess(job.artefact, transport.argv(), settings.reply_timeout_s)
            subjects.append(_Subject(job, settings, stack.enter_context(process), transport))
            report("load", job)
        for subject in subjects:
            subject.warm_up()
            report("warm-up", subject.job)
        for number in range(settings.rounds):
            # Every other round runs backwards (A B C, C B A), so that a steady drift weighs on all alike.
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                subject.round()
                report("round", subject.job)
        return [subject.measurement() for subject in subjects]


class _Subject:
    """One artefact in its own process, from loading to the last round."""

    def __init__(self, job: Job, settings: Settings, agent: AgentProcess, transport: Transport) -> None:
        self.job, self._settings, self._agent = job, settings, agent
        self._rounds: list[Round] = []
        self._warm_up: dict[str, Any] = {}
        self._load = agent.ask(
            "load",
            model=transport.place(job.model),
            sha256=sha256_of(job.model),
            provider=PROVIDERS[job.runtime],
            threads=settings.threads,
            batch=settings.batch,
            image_shape=job.image_shape,
            seed=keyed_seed(settings.seed, "bench", "input"),
        )

    def warm_up(self) -> None:
        self._warm_up = self._agent.ask(
            "warm_up",
            window=self._settings.warm_up_window,
            agreement=self._settings.warm_up_agreement,
            most_seconds=self._settings.warm_up_seconds,
        )

    def round(self) -> None:
        reply = self._agent.ask(
            "round",
            runs=math.ceil(self._settings.min_runs / self._settings.rounds),
            seconds=self._settings.min_seconds / self._settings.rounds,
            settle_runs=self._settings.settle_runs,
        )
        self._rounds.append(Round(tuple(reply["samples_ms"]), _activity(reply)))

    def measurement(self) -> Measurement:
        memory = self._agent.ask("memory")  # before the profiled run, which opens a second session
        executed = self._agent.ask("executed")
        return Measurement(
            job=self.job,
            provider=self._load["providers"][0],
            runtime_version=self._load["runtime_version"],
            sha256=self._load["sha256"],
            size_bytes=self._load["size_bytes"],
            load_ms=self._load["load_ms"],
            first_inference_ms=self._load["first_inference_ms"],
            baseline_memory_bytes=memory["baseline_memory_bytes"],
            peak_memory_bytes=memory["peak_memory_bytes"],
            integer_nodes=executed["integer_nodes"],
            compute_nodes=executed["compute_nodes"],
            stable=self._warm_up["stable"],
            warm_up_ms=tuple(self._warm_up["medians_ms"]),
            rounds=tuple(self._rounds),
        )


def _activity(reply: dict[str, Any]) -> Activity:
    return Activity(
        start_s=reply["start_s"],
        end_s=reply["end_s"],
        other_cpus=reply["other_cpus"],
        stolen_cpus=reply["stolen_cpus"],
        clock_mhz=reply["clock_mhz"],
        throttle_events=reply["throttle_events"],
    )
