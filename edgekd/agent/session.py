"""What is done on a device besides timing: numerics, energy, and a Jetson's state before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent import numerics
from edgekd.agent.device import jetson, power
from edgekd.agent.device.environment import from_facts
from edgekd.agent.measure import LOAD_TIMEOUT_S, Tools, load_request, measure, plan, require_some
from edgekd.agent.measurement import Job, Settings, to_json
from edgekd.agent.protocol import AgentProcess, Local
from edgekd.agent.runners.npy import logits_in

if TYPE_CHECKING:
    from edgekd.agent.measure import OnProgress


def compare(jobs: Sequence[Job], settings: Settings, tools: Tools, on_progress: OnProgress) -> dict[str, Any]:
    """Return one comparison as JSON, with what a Jetson says before and after it."""
    before = jetson.facts()
    comparison = to_json(measure(jobs, settings, on_progress, tools=tools))
    after = jetson.facts()
    comparison["warnings"] = [*comparison["warnings"], *jetson.changes(before, after)]
    return {"comparison": comparison, "jetson_before": before, "jetson_after": after}


def planned(jobs: Sequence[Job], settings: Settings, tools: Tools) -> list[Job]:
    """Return the jobs that this device runs: those of `compare`, without timing them.

    Raises:
        MachineError: there are none; with the reasons.
    """
    transport = Local()
    wants_tensorrt = any(job.runtime == "tensorrt" for job in jobs)
    with AgentProcess("device", transport.argv(), settings.reply_timeout_s) as scout:
        environment = from_facts(scout.hello(tensorrt=wants_tensorrt, **tools.to_request()))
    found = plan(jobs, environment)
    require_some(found)
    return [one for one in found if isinstance(one, Job)]


def check(job: Job, settings: Settings, tools: Tools, images: Path, expected: list[list[float]]) -> dict[str, Any]:
    """Compare the logits of one artefact with the host's."""
    with _loaded(job, settings, tools) as agent:
        found = logits_in(agent.ask("logits", input=str(images), timeout_s=LOAD_TIMEOUT_S))
    precision = numerics.precision_of(job)
    names = {"artefact": job.artefact, "runtime": job.runtime}
    return {**names, **numerics.compare(expected, found, precision)}


def energy(
    job: Job,
    settings: Settings,
    tools: Tools,
    source: power.Source,
    idle_s: float = power.IDLE_S,
    busy_s: float = power.BUSY_S,
) -> dict[str, Any]:
    """Return the energy of one artefact, in a run of its own."""
    with _loaded(job, settings, tools, spin_wait=False) as agent:

        def run(seconds: float) -> dict[str, Any]:
            return agent.ask("sustain", seconds=seconds, timeout_s=LOAD_TIMEOUT_S)

        found = power.energy(source, run, settings.batch, idle_s, busy_s)
    return {"artefact": job.artefact, "runtime": job.runtime, **found}


@contextmanager
def _loaded(job: Job, settings: Settings, tools: Tools, *, spin_wait: bool = True) -> Iterator[AgentProcess]:
    """Yield an agent with a loaded artefact."""
    transport = Local()
    with AgentProcess(job.label, transport.argv(), settings.reply_timeout_s) as agent:
        request = load_request(job, settings, transport, tools.to_request(), spin_wait=spin_wait)
        agent.ask("load", timeout_s=LOAD_TIMEOUT_S, **request)
        yield agent
