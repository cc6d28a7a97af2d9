from __future__ import annotations

import json
from pathlib import Path

import pytest
from latencies import compared
from latencies import measured as measured_job

from edgekd.agent.kernels import Kind, Runtime
from edgekd.agent.measurement import BenchJob, BenchSettings, Measurement, Skipped
from edgekd.bench.rows import ROW, Row, SkippedRow, rows_of_comparison
from edgekd.schema import to_json

KEYS = {
    *("artefact", "runtime", "provider", "batch", "threads", "n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms"),
    *("p99_ms", "max_ms", "std_ms", "throughput_per_s", "size_bytes", "load_ms", "first_inference_ms"),
    *("peak_memory_bytes", "stable", "p50_low_ms", "p50_high_ms"),
}


def measured(
    name: str, kind: Kind, times_ms: list[float], integer_nodes: int = 0, runtime: Runtime = "ort-cpu"
) -> Measurement:
    return measured_job(BenchJob(name, Path(name), kind, runtime), times_ms, integer_nodes=integer_nodes)


def rows_of(*results: Measurement | Skipped) -> list[Row | SkippedRow]:
    return rows_of_comparison(compared(*results, settings=BenchSettings(batch=4, threads=2)))


def measured_rows(*results: Measurement) -> list[Row]:
    return [row for row in rows_of(*results) if isinstance(row, Row)]


def test_row_has_the_keys_of_the_command_line() -> None:
    (row,) = measured_rows(measured("net", "fp32", [2.0, 3.0, 4.0]))
    found = json.loads(json.dumps(to_json(row)))
    assert set(found) >= KEYS
    assert (found["n"], found["batch"], found["threads"]) == (9, 4, 2)
    assert (found["p50_ms"], found["throughput_per_s"]) == (3.0, pytest.approx(4000 / 3))
    assert 2.0 <= found["p50_low_ms"] <= 3.0 <= found["p50_high_ms"] <= 4.0
    assert found["speedup"] is None
    assert ROW(found, "") == row


def test_speedup_is_against_the_fp32_row_wherever_it_stands() -> None:
    int8, fp32 = measured_rows(measured("int8", "int8-cpu-x86", [1.0] * 3, 10), measured("fp32", "fp32", [2.4] * 3))
    assert int8.reference == "fp32"
    assert int8.speedup == pytest.approx(2.4)
    assert (fp32.reference, fp32.speedup) == (None, None)


def test_first_row_is_the_reference_without_fp32() -> None:
    first, second = measured_rows(measured("one", "any", [2.0] * 3), measured("two", "any", [4.0] * 3))
    assert first.reference is None
    assert second.reference == "one"
    assert second.speedup == pytest.approx(0.5)


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
    assert pretended.int8_in_name_only
    assert pretended.note == "not really INT8: only 80% of the compute nodes ran in integers"
    _, real = measured_rows(measured("f", "fp32", [1.0] * 3), measured("q", "int8-cpu-x86", [1.0] * 3, 9))
    assert real.note is None


def test_skipped_row_keeps_its_place_and_reason() -> None:
    job = BenchJob("half", Path("half"), "fp16")
    first, second = rows_of(Skipped(job, "n/a: no kernels"), measured("f", "fp32", [1.0] * 3))
    assert isinstance(first, SkippedRow)
    assert to_json(first) == {
        "artefact": "half",
        "kind": "fp16",
        "runtime": "ort-cpu",
        "provider": "CPUExecutionProvider",
        "batch": 4,
        "threads": 2,
        "skipped": "n/a: no kernels",
        "integer_share": None,
    }
    assert ROW(json.loads(json.dumps(to_json(first))), "") == first
    assert isinstance(second, Row)
