"""The bench stage: every file of export measured side by side, raw samples kept."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import latencies
import pytest

from edgekd.bench import comparing, measuring
from edgekd.errors import Interrupted, StoppedEarly
from edgekd.recipe import BenchTable
from edgekd.run.cards.record import Record
from edgekd.stopping import Stop


def read(finished: Any, name: str) -> Any:
    return json.loads((finished.run.stage("bench/local") / name).read_text())


def test_every_exported_file_has_a_row_and_raw_samples(finished: Any) -> None:
    results, samples = read(finished, "results.json"), read(finished, "samples.json")
    files = {p.name for p in finished.run.stage("export").glob("*.onnx")}
    assert {row["artefact"] for row in results["results"]} == files
    measured = [row for row in results["results"] if not row.get("skipped")]
    assert {row["artefact"] for row in measured} == set(samples[0]["samples_ms"])
    assert "student.fp32.onnx" in samples[0]["samples_ms"]
    for row in measured:
        flat = [t for round_ in samples[0]["samples_ms"][row["artefact"]] for t in round_]
        assert len(flat) >= 20
        assert min(flat) <= row["p50_ms"] <= max(flat)
        assert len(samples[0]["samples_ms"][row["artefact"]]) == 2
    assert list(results["verdicts"]) == ["batch 1, threads 1"]
    assert samples[0]["settings"]["rounds"] == 2


def test_the_record_depends_on_the_exported_files(finished: Any) -> None:
    record = Record.read(finished.run.stage("bench/local"))
    exported = Record.read(finished.run.stage("export"))
    assert record is not None
    assert exported is not None
    made_from = {f"export/{name}": value for name, value in exported.outputs.items()}
    assert {k: v for k, v in record.inputs.items() if k != "machine"} == made_from
    assert len(record.inputs["machine"]) == 64, "a latency belongs to a machine"
    assert set(record.outputs) == {"environment.json", "samples.json", "results.json"}


def test_agreements_come_from_the_export_chain(finished: Any, ingested: Any) -> None:
    chain = json.loads((finished.run.stage("export") / "agreement.json").read_text())["chain"]
    found = comparing.agreements(finished.run)
    assert found is not None
    assert found["student.fp16.onnx"] == chain["student -> student.fp16.onnx"]["share"]
    assert any("int8" in name for name in found)
    assert all(name.endswith(".onnx") for name in found)
    assert comparing.agreements(ingested) is None


def test_each_batch_and_thread_count_is_measured(finished: Any) -> None:
    file = finished.run.stage("export") / "student.fp32.onnx"
    table = BenchTable(batch=(1, 4), threads=(1,), rounds=2, min_runs=10, min_seconds=0.01)
    results, comparisons = measuring.measure_side_by_side(measuring.jobs_of([file], table.runtime), table, Stop())
    assert [(row.batch, row.threads) for row in results.results] == [(1, 1), (4, 1)]
    assert list(results.verdicts) == ["batch 1, threads 1", "batch 4, threads 1"]
    assert len(comparisons) == 2


def test_times_of_a_mode_that_saturates_are_not_those_of_the_accuracy_beside_them(finished: Any) -> None:
    names = ("student.fp32.onnx", "student.int8-cpu-x86.onnx")
    table = BenchTable(batch=(1,), threads=(1,), rounds=2, min_runs=10, min_seconds=0.01)
    files = [finished.run.stage("export") / name for name in names]
    _, (comparison,) = measuring.measure_side_by_side(measuring.jobs_of(files, table.runtime), table, Stop())
    if len(comparison.measurements) < 2:
        pytest.skip("this is no x86 machine: the file for x86 is not timed")
    for flags, expected in ((("avx2",), 1), (("avx2", "avx_vnni"), 0)):
        here = replace(comparison, environment=replace(comparison.environment, cpu_flags=flags))
        said = comparing.results_of([here, here], files[0].parent, None).warnings
        assert sum("session.x64quantprecision=1" in warning for warning in said) == expected
        alone = replace(here, results=here.results[:1])
        assert not any("VNNI" in warning for warning in comparing.results_of([alone], files[0].parent, None).warnings)


def test_a_stop_is_heard_before_measuring(finished: Any) -> None:
    late, jobs = (
        Stop(max_seconds=0),
        measuring.jobs_of([finished.run.stage("export") / "student.fp32.onnx"], ("ort-cpu",)),
    )
    with pytest.raises(StoppedEarly, match="bench reached --max-seconds"):
        measuring.measure_side_by_side(jobs, BenchTable(), late)


def test_a_stop_is_heard_while_a_child_measures(finished: Any) -> None:
    stop, jobs = Stop(), measuring.jobs_of([finished.run.stage("export") / "student.fp32.onnx"], ("ort-cpu",))
    begin = time.monotonic()
    timer = threading.Timer(1.5, stop._on_signal, (signal.SIGINT, None))
    timer.start()
    with pytest.raises(Interrupted, match="bench was stopped by SIGINT"):
        measuring.measure_side_by_side(jobs, BenchTable(rounds=2, min_seconds=60.0), stop)
    timer.join()
    assert time.monotonic() - begin < 10, "a round alone takes half a minute"


def test_an_arm_file_is_judged_by_the_rules_of_arm(finished: Any) -> None:
    rows = {row["artefact"]: row for row in read(finished, "results.json")["results"]}
    row = rows["student.int8-cpu-arm.onnx"]
    if not row.get("skipped"):
        pytest.skip("this is an ARM machine: the file itself was timed")
    assert "integer share by ARM rules: 100%" in row["skipped"]
    assert row["integer_share"] == 1.0


def test_accuracy_stands_in_the_verdict_once_it_is_known(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, fp32 = "student.int8-cpu-x86.onnx", latencies.row()
    clear: dict[str, Any] = {"reference": fp32.artefact, "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
    int8 = latencies.row(name, kind="int8-cpu-x86", integer_share=1.0, **clear)
    rows = [fp32, int8]
    (before,) = comparing.verdicts(rows, finished.run).values()
    assert "on synthetic samples" in before
    known = {"student.fp32.onnx": 0.9, name: 0.88}
    monkeypatch.setattr(comparing, "accuracies", lambda _run: known)
    (after,) = comparing.verdicts(rows, finished.run).values()
    assert "INT8 is 2.0× faster than FP32 at p50, 2.0 points less accurate" in after
    (alone,) = comparing.verdicts(rows, None).values()
    assert "accurate" not in alone
