from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from edgekd.agent.measure import measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, Measurement, MeasurementProgress, Skipped
from edgekd.agent.protocol import Local
from edgekd.bench.rows import Row, rows_of_comparison
from edgekd.bench.verdict import verdict
from edgekd.errors import InputFileError, MachineError, UsageError
from tiny_onnx import conv_net

QUICK = BenchSettings(rounds=4, min_runs=40, min_seconds=0.2, warm_up_seconds=1.0)


@pytest.fixture(scope="module")
def progress() -> list[MeasurementProgress]:
    return []


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, progress: list[MeasurementProgress]) -> Comparison:
    folder = tmp_path_factory.mktemp("models")
    shape = ("N", 3, 32, 32)
    jobs = [
        BenchJob("fp32", conv_net(folder / "a.onnx", width=8, depth=2, shape=shape), "fp32"),
        BenchJob("fp16", conv_net(folder / "b.onnx"), "int8-trt"),
        BenchJob("wide", conv_net(folder / "c.onnx", width=64, depth=3, shape=shape)),
        BenchJob("narrow", conv_net(folder / "d.onnx", width=4, depth=1, shape=("N", 3, 8, 8))),
    ]
    return measure_jobs(jobs, QUICK, progress.append)


def test_one_artefact_computes_at_a_time_and_all_take_turns(comparison: Comparison) -> None:
    turns = sorted(
        (one.activity.start_s, one.activity.end_s, measurement.job.artefact)
        for measurement in comparison.measurements
        for one in measurement.rounds
    )
    forth = ["fp32", "wide", "narrow"]
    assert [name for _, _, name in turns] == (forth + forth[::-1]) * 2
    assert all(this[1] <= following[0] for this, following in pairwise(turns))


def test_results_keep_the_order_of_the_jobs_and_every_sample(comparison: Comparison) -> None:
    assert [result.job.artefact for result in comparison.results] == ["fp32", "fp16", "wide", "narrow"]
    for measurement in comparison.measurements:
        assert len(measurement.rounds) == QUICK.rounds
        assert all(len(one.samples_ms) >= 10 for one in measurement.rounds)
        assert sum(sum(one.samples_ms) for one in measurement.rounds) > 1000 * QUICK.min_seconds * 0.5
        assert len(measurement.warm_up_ms) >= 2
        assert measurement.compute_nodes == {"fp32": 2, "wide": 3, "narrow": 1}[measurement.job.artefact]
    assert len({measurement.sha256 for measurement in comparison.measurements}) == 3


def test_what_the_runtime_cannot_execute_is_not_timed(
    comparison: Comparison, progress: list[MeasurementProgress]
) -> None:
    skipped = comparison.results[1]
    assert isinstance(skipped, Skipped)
    assert skipped.reason.startswith("n/a: made for TensorRT")
    assert "fp16" not in {step.artefact for step in progress}


def test_progress_counts_every_step(comparison: Comparison, progress: list[MeasurementProgress]) -> None:
    assert comparison.measurements
    assert [step.done for step in progress] == list(range(1, 19))
    assert {step.total for step in progress} == {3 * (2 + QUICK.rounds)}
    assert [step.step for step in progress[:6]] == ["load"] * 3 + ["warm-up"] * 3


def test_slower_model_is_reported_slower(comparison: Comparison) -> None:
    table = {row.artefact: row for row in rows_of_comparison(comparison)}
    wide, narrow, fp32 = table["wide"], table["narrow"], table["fp32"]
    assert isinstance(wide, Row)
    assert isinstance(narrow, Row)
    assert isinstance(fp32, Row)
    assert wide.speedup_high is not None
    assert wide.speedup_high < 1
    assert narrow.speedup_low is not None
    assert narrow.speedup_low > 1
    assert "wide is slower here" in verdict([fp32, wide])
    assert "ship FP32" in verdict([fp32, wide])
    assert "narrow is " in verdict([fp32, narrow])
    assert "faster than FP32 at p50" in verdict([fp32, narrow])


def test_loaded_machine_is_noticed(tmp_path: Path) -> None:
    if not Path("/proc/stat").is_file():
        pytest.skip("no /proc/stat on this system")
    crowd = 2 + (os.cpu_count() or 1) // 5
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(crowd)]
    try:
        time.sleep(0.2)
        settings = BenchSettings(rounds=2, min_runs=10, min_seconds=0.5, warm_up_seconds=0.2)
        found = measure_jobs([BenchJob("net", conv_net(tmp_path / "net.onnx"))], settings)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found.before.other_cpus is not None
    assert found.before.other_cpus > 0.4
    assert any("CPUs busy before the measurement" in sentence for sentence in found.warnings)
    assert any("CPUs busy during the measurement" in sentence for sentence in found.warnings)


def test_names_must_differ_and_files_exist(tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="net is to be measured twice"):
        measure_jobs([BenchJob("net", model), BenchJob("net", model)], QUICK)
    with pytest.raises(InputFileError, match=r"absent\.onnx is not a file"):
        measure_jobs([BenchJob("net", model), BenchJob("absent", tmp_path / "absent.onnx")], QUICK)


def test_file_that_is_no_model_fails_before_any_round(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    seen: list[MeasurementProgress] = []
    with pytest.raises(InputFileError, match=r"bad: bad\.onnx cannot be loaded"):
        measure_jobs([BenchJob("net", conv_net(tmp_path / "net.onnx")), BenchJob("bad", bad)], QUICK, seen.append)
    assert [step.step for step in seen] == ["load"]


def test_file_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    class Corrupting:
        target = "elsewhere"

        def argv(self) -> list[str]:
            return Local().argv()

        def place(self, file: Path) -> str:
            copy = file.with_suffix(".copy")
            copy.write_bytes(file.read_bytes()[:-1])
            return str(copy)

    with pytest.raises(InputFileError, match="changed or copied in part"):
        measure_jobs([BenchJob("net", conv_net(tmp_path / "net.onnx"))], QUICK, transport=Corrupting())


def test_machine_without_python_is_a_machine_error(tmp_path: Path) -> None:
    class Nowhere:
        target = "nowhere"

        def argv(self) -> list[str]:
            return ["/nowhere/python3", "agent.py"]

        def place(self, file: Path) -> str:
            return str(file)

    with pytest.raises(MachineError, match="nowhere: the agent cannot be started"):
        measure_jobs([BenchJob("net", conv_net(tmp_path / "net.onnx"))], QUICK, transport=Nowhere())


@pytest.mark.parametrize("wrong", [{"rounds": 1}, {"batch": 0}, {"threads": 0}, {"min_seconds": 0.0}])
def test_settings_that_measure_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
        BenchSettings(**wrong)


def test_every_measurement_is_one(comparison: Comparison) -> None:
    assert all(isinstance(measurement, Measurement) for measurement in comparison.measurements)
    for measurement in comparison.measurements:
        assert measurement.peak_memory_bytes is not None
        assert measurement.baseline_memory_bytes is not None
        assert measurement.peak_memory_bytes > measurement.baseline_memory_bytes > 0
    assert comparison.target == "local"


class Lying:
    """This machine, whose agents answer all but one request as they should."""

    target = "local"

    def __init__(self, op: str, **lie: object) -> None:
        self.code = f"""import json
from edgekd.agent import worker
told = worker.serve_request
def answer(*asked):
    reply = told(*asked)
    return {{**reply, **json.loads({json.dumps(json.dumps(lie))})}} if reply.get("op") == {op!r} else reply
worker.serve_request = answer
worker.main()"""

    def argv(self) -> list[str]:
        return [sys.executable, "-c", self.code]

    def place(self, file: Path) -> str:
        return str(file)


@pytest.mark.parametrize(
    ("op", "lie"),
    [
        ("hello", {"machine": {}}),
        ("observe", {"other_cpus": -1}),
        ("load", {"sha256": "x"}),
        ("warm_up", {"medians_ms": [0.0]}),
        ("round", {"samples_ms": [1.0, float("nan")]}),
        ("round", {"samples_ms": []}),
        ("memory", {"peak_memory_bytes": 1e30}),
        ("executed", {"integer_nodes": 7, "compute_nodes": 3}),
    ],
)
def test_an_agent_here_is_believed_no_more_than_one_there(op: str, lie: dict[str, object], tmp_path: Path) -> None:
    quick = BenchSettings(rounds=2, min_runs=2, min_seconds=0.01, warm_up_seconds=0.1)
    with pytest.raises(MachineError, match=f'its answer to "{op}" is not what an agent'):
        measure_jobs([BenchJob("net.onnx", conv_net(tmp_path / "net.onnx"))], quick, transport=Lying(op, **lie))
