from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.agent.device.environment import this_machine
from edgekd.agent.kernels import PROVIDERS, Kind, Runtime
from edgekd.agent.measurement import Activity, Comparison, Job, Measurement, Round, Settings, Skipped
from edgekd.bench.rows import Row, SkippedRow, from_json, rows

QUIET = Activity(0.0, 1.0, 0.0, 0.0, None, 0)
KEYS = {
    *("artefact", "runtime", "provider", "batch", "threads", "n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms"),
    *("p99_ms", "max_ms", "std_ms", "throughput_per_s", "size_bytes", "load_ms", "first_inference_ms"),
    *("peak_memory_bytes", "stable", "p50_low_ms", "p50_high_ms"),
}


def measured(
    name: str, kind: Kind, times_ms: list[float], integer_nodes: int = 0, runtime: Runtime = "ort-cpu"
) -> Measurement:
    return Measurement(
        job=Job(name, Path(name), kind, runtime),
        provider=PROVIDERS[runtime],
        runtime_version="1.0",
        sha256="0" * 64,
        size_bytes=10,
        load_ms=1.0,
        first_inference_ms=2.0,
        baseline_memory_bytes=3,
        peak_memory_bytes=4,
        integer_nodes=integer_nodes,
        compute_nodes=10,
        stable=True,
        warm_up_ms=(1.0, 1.0),
        rounds=tuple(Round((time, time, time), QUIET) for time in times_ms),
    )


def compared(*results: Measurement | Skipped) -> list[Row | SkippedRow]:
    return rows(Comparison("local", this_machine(), Settings(batch=4, threads=2), QUIET, results, ()))


def measured_rows(*results: Measurement) -> list[Row]:
    return [row for row in compared(*results) if isinstance(row, Row)]


def test_row_has_the_keys_of_the_command_line() -> None:
    (row,) = measured_rows(measured("net", "fp32", [2.0, 3.0, 4.0]))
    written = json.loads(json.dumps(row.to_json()))
    assert set(written) >= KEYS
    assert (written["n"], written["batch"], written["threads"]) == (9, 4, 2)
    assert (written["p50_ms"], written["throughput_per_s"]) == (3.0, pytest.approx(4000 / 3))
    assert 2.0 <= written["p50_low_ms"] <= 3.0 <= written["p50_high_ms"] <= 4.0
    assert written["speedup"] is None
    assert from_json(written) == row


def test_speedup_is_against_the_fp32_row_wherever_it_stands() -> None:
    int8, fp32 = measured_rows(measured("int8", "int8-cpu-x86", [1.0] * 3, 10), measured("fp32", "fp32", [2.4] * 3))
    assert (int8.reference, int8.speedup) == ("fp32", pytest.approx(2.4))
    assert (fp32.reference, fp32.speedup) == (None, None)


def test_first_row_is_the_reference_without_fp32() -> None:
    first, second = measured_rows(measured("one", "any", [2.0] * 3), measured("two", "any", [4.0] * 3))
    assert first.reference is None
    assert (second.reference, second.speedup) == ("one", pytest.approx(0.5))


def test_rows_are_compared_within_their_runtime() -> None:
    cpu, cuda, half = measured_rows(
        measured("cpu", "fp32", [8.0] * 3),
        measured("cuda", "fp32", [2.0] * 3, runtime="ort-cuda"),
        measured("half", "fp16", [1.0] * 3, runtime="ort-cuda"),
    )
    assert (cpu.reference, cuda.reference, half.reference) == (None, None, "cuda")
    assert half.speedup == pytest.approx(2.0)


def test_int8_that_runs_in_float_says_so() -> None:
    _, pretended = measured_rows(measured("f", "fp32", [1.0] * 3), measured("q", "int8-cpu-x86", [1.0] * 3, 8))
    assert pretended.not_really_int8
    assert pretended.to_json()["note"] == "not really INT8: 80% of the compute nodes"
    _, real = measured_rows(measured("f", "fp32", [1.0] * 3), measured("q", "int8-cpu-x86", [1.0] * 3, 9))
    assert real.to_json()["note"] is None


def test_skipped_row_keeps_its_place_and_reason() -> None:
    job = Job("half", Path("half"), "fp16")
    first, second = compared(Skipped(job, "n/a: no kernels"), measured("f", "fp32", [1.0] * 3))
    assert isinstance(first, SkippedRow)
    assert first.to_json() == {
        "artefact": "half",
        "kind": "fp16",
        "runtime": "ort-cpu",
        "provider": "CPUExecutionProvider",
        "batch": 4,
        "threads": 2,
        "skipped": "n/a: no kernels",
        "integer_share": None,
    }
    assert from_json(json.loads(json.dumps(first.to_json()))) == first
    assert isinstance(second, Row)
