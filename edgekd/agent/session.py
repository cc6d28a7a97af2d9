"""What is done on a device besides timing: numerics, energy, and a Jetson's state before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent import numerics
from edgekd.agent.device import jetson, power
from edgekd.agent.device.jetson import Jetson
from edgekd.agent.measure import LOAD_TIMEOUT_S, Tools, load_request, measure_jobs, plan, require_some
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison
from edgekd.agent.messages import Hello, Logits, Sustain, Sustained
from edgekd.agent.numerics import LogitsCheck
from edgekd.agent.protocol import AgentProcess, Local
from edgekd.agent.runners.npy import logits_in
from edgekd.schema import list_of, object_of, optional, required

if TYPE_CHECKING:
    from edgekd.agent.device.power import Energy, NoEnergy
    from edgekd.agent.measure import OnProgress


@dataclass(frozen=True)
class BoardStates:
    """What a Jetson said before and after a comparison; None where there is none."""

    jetson_before: Jetson | None = field(metadata=required(optional(object_of(Jetson))))
    jetson_after: Jetson | None = field(metadata=required(optional(object_of(Jetson))))


@dataclass(frozen=True)
class DeviceComparison(BoardStates):
    """A comparison as it was made on a device."""

    comparison: Comparison = field(metadata=required(object_of(Comparison)))


@dataclass(frozen=True)
class DeviceResults:
    """All that was measured on a device."""

    comparisons: tuple[DeviceComparison, ...] = field(metadata=required(list_of(object_of(DeviceComparison), 1000)))
    energy: tuple[Energy | NoEnergy, ...] = field(metadata=required(list_of(power.POWER, 1000)))
    numerics: tuple[LogitsCheck, ...] = field(metadata=required(list_of(object_of(LogitsCheck), 1000)))


def compare_on_device(
    jobs: Sequence[BenchJob], settings: BenchSettings, tools: Tools, on_progress: OnProgress
) -> DeviceComparison:
    """Return one comparison, with what a Jetson says before and after it."""
    before = jetson.facts()
    comparison = measure_jobs(jobs, settings, on_progress, tools=tools)
    after = jetson.facts()
    warnings = (*comparison.warnings, *jetson.changes(before, after))
    return DeviceComparison(before, after, replace(comparison, warnings=warnings))


def plan_on_device(jobs: Sequence[BenchJob], settings: BenchSettings, tools: Tools) -> list[BenchJob]:
    """Return the jobs that this device runs: those of `compare_on_device`, without timing them.

    Raises:
        MachineError: there are none; with the reasons.
    """
    wants_tensorrt = any(job.runtime == "tensorrt" for job in jobs)
    with AgentProcess("device", Local().argv(), settings.reply_timeout_s) as scout:
        environment = scout.ask(Hello(wants_tensorrt, tools.trtexec)).machine
    plans = plan(jobs, environment)
    require_some(plans)
    return [item for item in plans if isinstance(item, BenchJob)]


def check_on_device(
    job: BenchJob, settings: BenchSettings, tools: Tools, images: Path, expected: Sequence[Sequence[float]]
) -> LogitsCheck:
    """Compare the logits of one artefact with the host's."""
    with _loaded(job, settings, tools) as agent:
        logits = logits_in(agent.ask(Logits(str(images)), timeout_s=LOAD_TIMEOUT_S))
    return numerics.compare_with_host(job, expected, logits)


def energy_on_device(
    job: BenchJob,
    settings: BenchSettings,
    tools: Tools,
    source: power.PowerReader,
    idle_s: float = power.IDLE_S,
    busy_s: float = power.BUSY_S,
) -> Energy | NoEnergy:
    """Return the energy of one artefact, in a run of its own."""
    with _loaded(job, settings, tools, spin_wait=False) as agent:

        def run(seconds: float) -> Sustained:
            return agent.ask(Sustain(seconds), timeout_s=LOAD_TIMEOUT_S)

        return power.energy_per_run(job, settings.batch, source, run, idle_s, busy_s)


@contextmanager
def _loaded(job: BenchJob, settings: BenchSettings, tools: Tools, *, spin_wait: bool = True) -> Iterator[AgentProcess]:
    """Yield an agent with a loaded artefact."""
    transport = Local()
    with AgentProcess(job.label, transport.argv(), settings.reply_timeout_s) as agent:
        agent.ask(load_request(job, settings, transport, tools, spin_wait=spin_wait), timeout_s=LOAD_TIMEOUT_S)
        yield agent
