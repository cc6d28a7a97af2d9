from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from latencies import QUIET, measured

from edgekd.agent.device.disturbance import warnings
from edgekd.agent.device.environment import this_machine
from edgekd.agent.device.machine import Activity
from edgekd.agent.measurement import BenchJob, BenchSettings

JOB = BenchJob("net", Path("net.onnx"))
MACHINE = replace(this_machine(), cpus=4, usable_cpus=4.0, load_average=0.1)


def found(
    before: Activity = QUIET,
    during: Activity | list[Activity] = QUIET,
    times_ms: tuple[float, ...] = (1.0,) * 6,
    stable: bool = True,
    threads: int = 1,
) -> tuple[str, ...]:
    measurement = measured(JOB, times_ms, during, stable=stable)
    return warnings(MACHINE, BenchSettings(threads=threads), before, [measurement])


def test_quiet_machine_gives_no_warning() -> None:
    assert found() == ()
    assert found(times_ms=(1.0, 1.02, 0.99, 1.01, 1.0, 1.03)) == ()
    assert warnings(MACHINE, BenchSettings(), QUIET, []) == ()


@pytest.mark.parametrize(
    ("disturbed", "sentence"),
    [
        ({"before": replace(QUIET, other_cpus=1.5)}, "Other processes kept 1.5 of 4 CPUs busy before"),
        ({"during": replace(QUIET, other_cpus=0.5)}, "Other processes kept 0.5 of 4 CPUs busy during"),
        ({"during": replace(QUIET, stolen_cpus=0.2)}, "The hypervisor took 0.20 CPUs away"),
        ({"during": replace(QUIET, throttle_events=2)}, "throttled by heat 12 times"),
        (
            {"during": [QUIET] * 5 + [replace(QUIET, clock_mhz=1500.0)]},
            "The CPU clock went between 1500 and 3000 MHz",
        ),
        (
            {"during": [replace(QUIET, gpu_clock_mhz=mhz) for mhz in (918.0, 918.0, 918.0, 624.0, 624.0, 624.0)]},
            "The GPU clock went between 624 and 918 MHz",
        ),
        ({"times_ms": (1.0, 1.0, 1.0, 1.05, 1.1, 1.1)}, "net took 10% longer in its last rounds"),
        ({"times_ms": (1.0, 1.0, 1.0, 0.95, 0.9, 0.9)}, "net took 10% less in its last rounds"),
        ({"stable": False}, "net had not settled after 10 s of warm-up"),
        ({"threads": 8}, "8 threads share 4 usable CPUs"),
    ],
)
def test_each_disturbance_has_its_sentence(disturbed: dict[str, Any], sentence: str) -> None:
    (only,) = found(**disturbed)
    assert sentence in only
    assert only.endswith(".")


def test_a_quota_below_one_cpu_stops_even_one_thread() -> None:
    container = replace(MACHINE, usable_cpus=0.5)
    (only,) = warnings(container, BenchSettings(), QUIET, [measured(JOB, [1.0] * 6)])
    assert only.startswith("1 thread has 0.5 usable CPUs")


def test_load_average_stands_in_where_cpu_use_is_unknown() -> None:
    blind = replace(QUIET, other_cpus=None, stolen_cpus=None, clock_mhz=None)
    assert found(before=blind, during=blind) == ()
    busy = replace(MACHINE, load_average=3.2)
    (only,) = warnings(busy, BenchSettings(), blind, [measured(JOB, [1.0] * 6, blind)])
    assert only.startswith("The load average was 3.2 on 4 CPUs")
