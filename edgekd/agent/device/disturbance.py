"""Notice a loaded, throttled or drifting machine, and say so in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, median

from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import Activity
from edgekd.agent.measurement import BenchSettings, Measurement

BUSY_SHARE = 0.1  # of all CPUs
BUSY_CPUS = 0.2  # and at least this many: a desktop's own background stays below
STOLEN_CPUS = 0.05
CLOCK_DROP = 0.85
DRIFT = 0.05


def warnings(
    environment: Environment, settings: BenchSettings, before: Activity, measurements: Sequence[Measurement]
) -> tuple[str, ...]:
    """Return one sentence for each reason not to trust the measurements; empty on a quiet machine."""
    during = [timed_round.activity for measurement in measurements for timed_round in measurement.rounds]
    return tuple(
        chain(
            _threads(environment, settings),
            _load(environment, before, during),
            _clock(during),
            *(_course(measurement, settings) for measurement in measurements),
        )
    )


def _threads(environment: Environment, settings: BenchSettings) -> Iterable[str]:
    if settings.threads > environment.usable_cpus:
        if settings.threads == 1:
            yield f"1 thread has {environment.usable_cpus:g} usable CPUs: the quota stops it in between."
        else:
            yield f"{settings.threads} threads share {environment.usable_cpus:g} usable CPUs and wait for each other."


def _load(environment: Environment, before: Activity, during: Sequence[Activity]) -> Iterable[str]:
    cpus = environment.cpus
    limit = max(BUSY_CPUS, BUSY_SHARE * cpus)
    if before.other_cpus is None:
        load = environment.load_average
        if load is not None and load > limit:
            yield f"The load average was {load:.1f} on {cpus} CPUs before the measurement; stop other work."
    elif before.other_cpus > limit:
        yield f"Other processes kept {before.other_cpus:.1f} of {cpus} CPUs busy before the measurement."
    busy = [activity.other_cpus for activity in during if activity.other_cpus is not None]
    if busy and fmean(busy) > limit:
        yield f"Other processes kept {fmean(busy):.1f} of {cpus} CPUs busy during the measurement."
    stolen = [activity.stolen_cpus for activity in during if activity.stolen_cpus is not None]
    if stolen and fmean(stolen) > STOLEN_CPUS:
        yield f"The hypervisor took {fmean(stolen):.2f} CPUs away during the measurement."


def _clock(during: Sequence[Activity]) -> Iterable[str]:
    seen = (
        ("CPU", [activity.clock_mhz for activity in during]),
        ("GPU", [activity.gpu_clock_mhz for activity in during]),
    )
    for name, readings in seen:
        clocks = [clock for clock in readings if clock is not None]
        if clocks and min(clocks) < CLOCK_DROP * max(clocks):
            yield (
                f"The {name} clock went between {min(clocks):.0f} and {max(clocks):.0f} MHz during the measurement; "
                "fix the governor or cool the machine."
            )
    throttled = sum(activity.throttle_events for activity in during)
    if throttled:
        yield f"The CPU was throttled by heat {throttled} times during the measurement."


def _course(measurement: Measurement, settings: BenchSettings) -> Iterable[str]:
    name = measurement.job.label
    if not measurement.stable:
        yield (
            f"{name} had not settled after {settings.warm_up_seconds:g} s of warm-up: "
            f"its windows still differed by more than {settings.warm_up_agreement:.0%}."
        )
    third = max(1, len(measurement.rounds) // 3)
    first = median(chain.from_iterable(timed_round.samples_ms for timed_round in measurement.rounds[:third]))
    last = median(chain.from_iterable(timed_round.samples_ms for timed_round in measurement.rounds[-third:]))
    if abs(last / first - 1) > DRIFT:
        word = "longer" if last > first else "less"
        yield f"{name} took {abs(last / first - 1):.0%} {word} in its last rounds than in its first."
