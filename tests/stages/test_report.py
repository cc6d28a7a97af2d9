"""The report gathers what is there, changes nothing, and needs nothing from outside its file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import toy
from edgekd.agent.device.machine import sha256_of
from edgekd.bench import comparing, tables
from edgekd.bench.results import Results
from edgekd.bench.rows import SkippedRow
from edgekd.run.cards.evaluation import EvaluationCard
from edgekd.run.cards.report import ReportCard
from edgekd.run.directory import RunDir
from edgekd.run.files import write_json
from edgekd.schema import object_of
from edgekd.stages import report


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(finished.run.path, tmp_path / "toy <b>")))


def hashes(run: RunDir) -> dict[str, str]:
    return {str(p): sha256_of(p) for p in run.path.rglob("*") if p.is_file() and "report" not in p.parts}


def test_the_report_holds_the_numbers_of_the_files(run: RunDir) -> None:
    before = hashes(run)
    card = report.write_report(run)
    assert hashes(run) == before
    summary = json.loads((run.stage("report") / "report.json").read_text())
    assert ReportCard.load(run.stage("report")).to_json() == card.to_json() == summary
    assert (summary["data_free"], summary["real_images_read"]) == (True, 0)
    for name, size in summary["size_bytes"].items():
        assert size == (run.stage("export") / name).stat().st_size
    rows = {row["artefact"]: row for row in summary["artefacts"]}
    assert list(rows)[:2] == ["teacher", "student"]
    chain = json.loads((run.stage("export") / "agreement.json").read_text())["chain"]
    assert rows["student"]["synthetic_agreement"] == chain["teacher -> student"]["share"]
    latency = {row["artefact"]: row for row in summary["latency"]}
    assert rows["student.fp32.onnx"]["p50_ms"] == latency["student.fp32.onnx"]["p50_ms"] > 0
    assert rows["teacher"]["accuracy"] is None
    assert summary["distillation"]["steps"] == 12


def test_the_page_is_self_contained_and_names_its_sources(run: RunDir) -> None:
    summary = report.write_report(run)
    page = (run.stage("report") / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<h1>toy &lt;b&gt;</h1>" in page
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:", "")), "nothing is loaded from elsewhere"
    assert "Made from no real image" in page
    for source in ("events.jsonl", "bench/local/samples.json", "export/agreement.json", "run.json"):
        assert f"<code>{source}</code>" in page
    assert page.count("<svg") == 2, "losses and latency; there is no accuracy curve"
    for row in report.artefact_rows(summary):
        assert all(f"<td>{cell}</td>" in page for cell in row if cell != "–" and "<" not in cell and "'" not in cell)
    assert summary.selection is not None
    assert summary.selection.chosen in page


def test_the_same_run_makes_the_same_page(run: RunDir) -> None:
    report.write_report(run)
    first = (run.stage("report") / "report.html").read_bytes()
    report.write_report(run)
    assert (run.stage("report") / "report.html").read_bytes() == first


def test_real_images_in_the_making_are_shouted(run: RunDir) -> None:
    page = report.page(run, report.collect(run).model_copy(update={"data_free": False}))
    assert "Made from REAL IMAGES" in page


def test_a_run_that_only_began_has_a_report(ingested: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(ingested.path, tmp_path / "toy")))
    summary = report.write_report(run)
    assert (summary.distillation, summary.selection, summary.latency, summary.artefacts) == (
        None,
        None,
        None,
        [],
    )
    assert (run.stage("report") / "report.html").read_text().count("<svg") == 0


def test_accuracy_stands_beside_its_artefact(run: RunDir) -> None:
    accuracy = {"teacher": 0.915, "student": 0.5, "student.fp32.onnx": 0.25}
    files = {"teacher": "teacher/teacher.safetensors", "student.fp32.onnx": "export/student.fp32.onnx"}
    hashes = {name: sha256_of(run.path / file) for name, file in files.items()} | {"student": "of another student"}
    run.stage("eval").mkdir()
    found = {"run": "toy", "accuracy": accuracy, "artefacts_sha256": hashes}
    (run.stage("eval") / "photos.json").write_text(json.dumps(found))
    rows = {row[0]: row for row in report.artefact_rows(report.collect(run))}
    assert rows["teacher"][1] == "91.50 %"
    assert rows["student"][1] == "–", "what was measured is no longer there"
    assert rows["student.fp32.onnx"][1] == "25.00 %"
    assert rows["student.fp16.onnx"][1] == "–"


def test_a_record_of_accuracy_that_is_still_being_written_is_not_read(run: RunDir) -> None:
    run.stage("eval").mkdir()
    (run.stage("eval") / ".tmp-photos.json").write_text('{"half')
    assert report.write_report(run).evaluations == {}


DIGIT = re.compile(r"(?<=\d\.\d)\d")


def test_what_accuracies_were_measured_on_and_what_speaks_against_them_is_shown(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = [{"name": name, "images": images} for name, images in (("cat", 7), ("dog", 0), ("owl", 0))]
    teacher = sha256_of(run.stage("teacher") / "teacher.safetensors")
    told = {"classes": classes, "images": 7, "data": "photos/val", "warnings": ["the order <b> is doubtful"]}
    card = {"run": "toy", "accuracy": {"teacher": 1.0}, "artefacts_sha256": {"teacher": teacher}, **told}
    run.stage("eval").mkdir()
    write_json(run.stage("eval") / "photos.json", EvaluationCard.model_validate(card).to_json())
    report.print_summary(report.write_report(run))
    page = (run.stage("report") / "report.html").read_text()
    said = capsys.readouterr().err
    assert "accuracy is on 7 images of 1 of 3 classes in photos/val" in said
    assert "warning: the order <b> is doubtful" in said
    assert "The accuracy is on 7 images of 1 of 3 classes in photos/val." in page
    assert "Warning: the order &lt;b&gt; is doubtful" in page


@pytest.mark.parametrize("how", ["emptied", "flipped"])
@pytest.mark.parametrize("name", ["events.jsonl", "eval/photos.json", "select/selection.json", "export/parity.json"])
def test_a_file_that_was_emptied_or_in_which_a_digit_fell_over_is_named(name: str, how: str, run: RunDir) -> None:
    run.stage("eval").mkdir()
    card = EvaluationCard(run="toy", accuracy={"teacher": 0.915}, artefacts_sha256={})
    write_json(run.stage("eval") / "photos.json", card.to_json())
    assert report.collect(run).left_out == []
    text = (run.path / name).read_text()
    digit = DIGIT.search(text)
    assert digit is not None
    changed = text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :]
    (run.path / name).write_text(changed if how == "flipped" else "")
    (sentence,) = report.collect(run).left_out
    assert sentence.startswith(f"left out: {run.path / name}")


def test_events_may_grow_after_the_end(run: RunDir) -> None:
    run.append_event({"kind": "accuracy", "step": 12, "raw": 0.5, "ema": 0.5})
    assert report.collect(run).left_out == []


def test_tables_are_printed_whole(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    summary = report.collect(run)
    report.print_summary(summary)
    skipped = SkippedRow("x.onnx", "any", "ort-cpu", "", 1, 1, "n/a: no kernels")
    tables.print_latency([*comparing.rows_of(summary.latency or []), skipped])
    printed = capsys.readouterr().out
    for name in summary.size_bytes:
        assert printed.count(name) == 2
    assert "n/a: no kernels" in printed
    assert toy.CLASSES == 4


def test_some_energy_does_not_hide_why_the_rest_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    watts = {"gross_w": 5.0, "idle_w": 3.0, "net_w": 2.0, "gross_mj_per_run": 50.0, "net_mj_per_run": 20.0}
    facts = {
        "rails": "VDD_IN",
        "source": "hwmon",
        "period_s": 0.1,
        "batch": 1,
        "runs": 9,
        "seconds": 1.0,
        "rails_w": {},
    }
    known = [{"artefact": "a.onnx", "runtime": "ort-cpu", **watts, **facts, "rails_w": {}}]
    rest = {"results": [], "verdicts": {}, "warnings": [], "energy_note": "n/a: too few readings"}
    tables.print_numerics_and_energy(object_of(Results)({"target": None, **rest, "energy": known}, ""))
    said = "".join(capsys.readouterr())
    assert "VDD_IN" in said
    assert "energy   n/a: too few readings" in said
