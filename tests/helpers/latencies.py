"""Measurements and rows of latency, whole but for what a test is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.agent.device.environment import this_machine
from edgekd.agent.device.machine import Activity
from edgekd.agent.kernels import PROVIDERS
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, Measurement, Round, Skipped
from edgekd.bench.rows import Row, rows_of_comparison

SETTINGS = BenchSettings()
QUIET = Activity(0.0, 1.0, 0.05, 0.0, 3000.0, 0)


def measured(
    job: BenchJob, times_ms: Sequence[float], activities: Activity | Sequence[Activity] = QUIET, **facts: Any
) -> Measurement:
    """Return a measurement with a round of three equal samples for each of the times."""
    seen = [activities] * len(times_ms) if isinstance(activities, Activity) else activities
    known: dict[str, Any] = {
        "provider": PROVIDERS[job.runtime],
        "runtime_version": "1.0",
        "sha256": "0" * 64,
        "size_bytes": 10,
        "build_s": None,
        "commands": (),
        "load_ms": 1.0,
        "first_inference_ms": 2.0,
        "baseline_memory_bytes": 3,
        "peak_memory_bytes": 4,
        "integer_nodes": 0,
        "compute_nodes": 10,
        "stable": True,
        "warm_up_ms": (1.0, 1.0),
    }
    rounds = tuple(Round((time,) * 3, activity) for time, activity in zip(times_ms, seen, strict=True))
    return Measurement(job=job, rounds=rounds, **{**known, **facts})


def compared(*results: Measurement | Skipped, settings: BenchSettings = SETTINGS) -> Comparison:
    """Return what was measured side by side on this machine."""
    return Comparison("local", this_machine(), settings, QUIET, results, ())


def row(artefact: str = "student.fp32.onnx", p50_ms: float = 2.4, **facts: Any) -> Row:
    """Return the row of an FP32 artefact, changed by the facts."""
    (found,) = rows_of_comparison(compared(measured(BenchJob(artefact, Path(artefact), "fp32"), [p50_ms] * 3)))
    assert isinstance(found, Row)
    return replace(found, **facts)
