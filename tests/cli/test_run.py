"""A whole chain made by `edgekd run`, and the verbs that go on with it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from command import Result

import toy
from edgekd.export import ort_session
from edgekd.run.directory import RunDir


def test_run_prints_every_artefact_and_eval_counts_images(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0
    summary = result.json()
    names = {row["artefact"] for row in summary["artefacts"]}
    assert {"teacher", "student", "student.fp32.onnx", "student.fp16.onnx", "student.int8-cpu-x86.onnx"} <= names
    assert summary["real_images_read"] == 3 * toy.CLASSES
    ledger = RunDir(folder / "runs" / "toy").ledger()
    assert ledger.data_free is True
    (reading,) = ledger.real_images
    assert reading.purpose == "eval"
    assert {"teacher", "distill", "select", "export"} <= set(reading.stages_done), "no image was read before eval"
    assert any(name.endswith("teacher.pt") for name in ledger.files_read)


def test_eval_and_bench_json_have_the_promised_form(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    found = Result("eval", "toy", "--data", "images", "--json").json()
    assert set(found) == {
        *("run", "data_free", "images", "classes", "class_order", "accuracy", "accuracy_default_mode"),
        *("teacher_claim", "warnings"),
    }
    assert ort_session.saturates() or found["accuracy_default_mode"] == {}, "nothing to tell where nothing saturates"
    assert found["images"] == 3 * toy.CLASSES
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert {"teacher", "student", "student.fp32.onnx"} <= set(found["accuracy"])
    measured = Result("bench", "toy", "--json").json()
    assert {"run", "target", "results"} <= set(measured)
    row = next(row for row in measured["results"] if row["artefact"] == "student.fp32.onnx")
    times = ("min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
    assert [row[name] for name in times] == sorted(row[name] for name in times)
    assert {"runtime", "provider", "batch", "threads", "n", "mean_ms", "std_ms", "throughput_per_s"} <= set(row)
    assert row["size_bytes"] == (folder / "runs/toy/export/student.fp32.onnx").stat().st_size


def test_status_report_and_select_work_on_the_newest_run(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    status = Result("status", "--json").json()
    assert {entry["stage"]: entry["state"] for entry in status["stages"]} == dict.fromkeys(
        ("ingest", "distill", "select", "export", "bench"), "done"
    )
    report = Result("report", "toy")
    assert report.exit_code == 0
    page = (folder / "runs/toy/report/report.html").read_text()
    assert "no real image" in page
    assert "<svg" in page
    assert "already done" in Result("select", "toy").stderr


def test_the_normalization_can_be_set_later_without_distilling(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/pixels"], check=True)
    assert Result("ingest", "--run", "pixels", "--mean", "0.5", "--std", "0.25").exit_code == 0
    states = {s["stage"]: s["state"] for s in Result("status", "pixels", "--json").json()["stages"]}
    assert (states["distill"], states["select"], states["export"]) == ("done", "done", "stale")


def test_an_exported_run_does_not_ask_for_its_teacher(
    finished: tuple[Path, Result], teacher_file: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/old"], check=True)
    retrained = folder / "teacher.pt"
    retrained.write_bytes(b"another teacher under the old name")
    resolved = Path("runs/old/recipe.toml")
    resolved.write_text(resolved.read_text().replace(str(teacher_file), str(retrained)))
    assert Result("export", "old", "--no-int8").exit_code == 0
    table = {row["artefact"]: row for row in Result("report", "old", "--json").json()["artefacts"]}
    assert table["student.fp32.onnx"]["p50_ms"] is None, "the latency is of the files exported before"
    assert table["student"]["accuracy"] is not None


def test_next_lines_name_the_run_as_it_has_to_be_typed(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    elsewhere = folder / "else where" / "toy"
    (folder / "else where").mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", "runs/toy", elsewhere], check=True)
    for run, words in (("toy", "toy"), ("runs/toy", "toy"), (elsewhere, shlex.quote(str(elsewhere)))):
        for verb in (("select",), ("export",), ("bench",), ("report",), ("status",), ("eval", "--data", "images")):
            result = Result(verb[0], run, *verb[1:])
            assert result.exit_code == 0
            following = result.stderr.splitlines()[-1]
            assert following.startswith("next ")
            assert words in following, f"{verb} {run}: {following}"
            if words == "toy":
                assert "/toy" not in following


def test_the_words_of_a_command_are_not_looked_for_in_names(here: Path, teacher_file: Path) -> None:
    teacher = here / "NAME OF FILE.pt"
    shutil.copy(teacher_file, teacher)
    assert Result("ingest", teacher, "--run", "-x y/toy", "--input", "1x8x8").exit_code == 0
    following = Result("status", "./-x y/toy").stderr.splitlines()[-1]
    assert following.endswith(f"edgekd distill '{teacher}' --student mobilenetv2 --run './-x y/toy'")


def test_status_names_the_command_that_goes_on_with_this_run(here: Path, teacher_file: Path) -> None:
    ingested = Result("ingest", teacher_file, "--run", "elsewhere/toy", "--input", "1x8x8")
    assert ingested.stderr.splitlines()[-1].endswith(f"edgekd distill {teacher_file} --run elsewhere/toy")
    following = Result("status", "elsewhere/toy").stderr.splitlines()[-1]
    assert following.endswith(f"edgekd distill {teacher_file} --student mobilenetv2 --run elsewhere/toy")
