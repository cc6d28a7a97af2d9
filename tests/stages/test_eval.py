"""Accuracy on real images of whatever a run holds: right numbers, in no key, and in the ledger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from edgekd import pipeline
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError, UsageError
from edgekd.export import ort_session
from edgekd.models import artefacts
from edgekd.models import images as images_of
from edgekd.run.cards.evaluation import EvaluationCard
from edgekd.run.directory import RunDir
from edgekd.stages import eval as evaluation
from edgekd.stages.catalog import SELECT
from edgekd.stopping import Stop


def copied(finished: Any, teacher_file: Path, folder: Path, *stages: str) -> RunDir:
    """Return a copy of the finished run whose pixels are known."""
    shutil.copytree(finished.run.path, folder)
    for stage in ("select", "export", "bench"):
        if stage not in stages:
            shutil.rmtree(folder / stage)
    wanted = toy.toy_recipe(teacher_file, export={"int8": True}, pixels={"mean": [0.5], "std": [0.25]})
    return toy.advance(folder, wanted, ("ingest",))


def accuracy(network: torch.nn.Module, images: Any) -> float:
    with torch.no_grad():
        hits = sum(int((network.eval()(x).argmax(1) == labels).sum()) for x, labels in images.batches())
    return hits / len(images)


def test_every_artefact_is_measured(finished: Any, photos: Path, teacher_file: Path, tmp_path: Path) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy", "select", "export")
    recipe = pipeline.open_recipe(run)
    found = evaluation.evaluate(run, recipe, photos, Stop())
    exported = sorted(p.name for p in run.stage("export").glob("*.onnx"))
    assert set(found.accuracy) == {"teacher", "student", *exported}
    assert list(found.accuracy)[:4] == ["teacher", "student", "student.fp32.onnx", "student.fp16.onnx"]
    images = images_of.labeled(run, photos, purpose="eval")
    assert found.accuracy["teacher"] == accuracy(artefacts.teacher_network(run, artefacts.description_of(run)), images)
    student = accuracy(artefacts.student_network(run), images)
    assert found.accuracy["student"] == found.accuracy["student.fp32.onnx"] == student
    assert found.artefacts_sha256["student.fp32.onnx"] == sha256_of(run.stage("export") / "student.fp32.onnx")
    assert (found.images, found.data, found.images_sha256) == (20, "photos", images.folder.sha256())
    assert EvaluationCard.load_file(run.stage("eval") / "photos.json").to_json() == found.to_json()
    ledger = run.ledger()
    assert ledger.real_images_read == 40, "both readings are counted"
    assert ledger.files_read[str(photos)] == images.folder.sha256()
    assert ledger.data_free is True
    for name in ("ingest", "distill", "select"):
        assert pipeline.RunStatus(run, recipe).reason_to_run(toy.STAGES[name]) is None


@pytest.mark.parametrize("saturates", [True, False])
def test_what_a_cpu_without_vnni_makes_of_the_x86_file_by_default_is_said(
    saturates: bool,
    finished: Any,
    photos: Path,
    teacher_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ort_session, "saturates", lambda: saturates)
    run = copied(finished, teacher_file, tmp_path / "toy", "select", "export")
    found = evaluation.evaluate(run, pipeline.open_recipe(run), photos, Stop())
    file = "student.int8-cpu-x86.onnx"
    assert set(found.accuracy_default_mode) == ({file} if saturates else set())
    assert capfd.readouterr().err.count(f"{file}: a CPU without VNNI") == saturates


@pytest.mark.parametrize(
    "name", ["teacher/teacher.safetensors", "select/student.safetensors", "export/student.fp32.onnx"]
)
def test_a_damaged_artefact_is_named_and_not_measured(
    name: str, finished: Any, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy", "select", "export")
    data = bytearray((run.path / name).read_bytes())
    data[len(data) * 7 // 10] ^= 0x40
    (run.path / name).write_bytes(data)
    with pytest.raises(InputFileError, match=f"{name} is damaged: it does not hash"):
        evaluation.evaluate(run, pipeline.open_recipe(run), photos, Stop())


def test_what_was_measured_and_what_speaks_against_it_is_printed_and_kept(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The toy teacher is untrained, so it is told to be no better than chance."""
    run = copied(finished, teacher_file, tmp_path / "toy")
    data = Path(shutil.copytree(photos, tmp_path / "photos"))
    next((data / "class3").iterdir()).rename(data / "class0" / "more.png")
    (data / "class1" / "labels.txt").write_text("x")
    (data / "class1" / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((data / "class1").glob("*.png")), data / "class1" / ".ipynb_checkpoints" / "0-checkpoint.png")
    found = evaluation.evaluate(run, pipeline.open_recipe(run), data, Stop())
    card = EvaluationCard.load_file(run.stage("eval") / "photos.json")
    assert card.to_json() == found.to_json()
    assert [(part.name, part.images) for part in card.classes] == [
        *(("class0", 6), ("class1", 5), ("class2", 5), ("class3", 4))
    ]
    assert (card.class_order, card.passed_over) == ("text", "1 .txt, 1 of hidden or system names")
    assert any("chance" in warning for warning in card.warnings)
    said = capfd.readouterr().err
    assert "images   20 of 4 classes, class0 6, class1 5, class2 5, class3 4; passed over: 1 .txt, 1 of hidden" in said
    order = "assumed  order of the classes = text: class0, class1, class2, class3"
    assert f"{order} (change it with edgekd ingest --run {run.path} --classes FILE)" in said, "it lies not in runs/"
    assert all(f"warning: {warning}" in said for warning in card.warnings)


def test_after_ingest_alone_the_teacher_is_measured(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy")
    assert set(evaluation.evaluate(run, pipeline.open_recipe(run), photos, Stop()).accuracy) == {"teacher"}


def test_an_unknown_normalization_is_refused_and_reads_nothing(finished: Any, photos: Path) -> None:
    with pytest.raises(UsageError, match="--normalize"):
        evaluation.evaluate(finished.run, finished.recipe, photos, Stop())
    assert finished.run.ledger().real_images_read == 0
    assert not (finished.run.path / "eval").exists()


def test_a_folder_of_other_classes_is_refused(finished: Any, photos: Path, teacher_file: Path, tmp_path: Path) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy")
    with pytest.raises(InputFileError, match="class folders, but the teacher has 4"):
        images_of.labeled(run, photos / "class0", purpose="eval")


def test_folders_of_one_name_keep_their_own_records(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy")
    recipe = pipeline.open_recipe(run)
    one, other = (tmp_path / name / "val" for name in ("a", "b"))
    shutil.copytree(photos, one)
    shutil.copytree(photos, other)
    next(other.rglob("*.png")).unlink()
    first, second = (evaluation.evaluate(run, recipe, folder, Stop()) for folder in (one, other))
    assert (first.data, first.images_folder, first.images) == ("val", str(one), 20)
    assert second.data.startswith("val-")
    assert (second.images_folder, second.images) == (str(other), 19)
    kept = {path.name for path in run.stage("eval").iterdir()}
    assert kept == {"val.json", f"{second.data}.json"}
    next(one.rglob("*.png")).unlink()  # other images, the same folder
    for folder, name in ((one, "val"), (other, second.data), (one, "val")):
        assert evaluation.evaluate(run, recipe, folder, Stop()).data == name
    (run.stage("eval") / "val.json").unlink()
    assert evaluation.evaluate(run, recipe, other, Stop()).data == second.data, "a name once given stays"


def test_a_damaged_record_of_its_name_is_told_and_kept(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whose it is nobody knows, and what was measured is not lost."""
    run = copied(finished, teacher_file, tmp_path / "toy")
    run.stage("eval").mkdir()
    (run.stage("eval") / "photos.json").write_text('{"run": ')
    found = evaluation.evaluate(run, pipeline.open_recipe(run), photos, Stop())
    assert found.data == f"photos-{found.folder_id}"
    assert "left out: " in capfd.readouterr().err
    assert (run.stage("eval") / "photos.json").read_text() == '{"run": '


def test_a_folder_may_have_the_longest_name_there_is(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy")
    data = Path(shutil.copytree(photos, tmp_path / ("ü" * 127 + "n")))
    found = evaluation.evaluate(run, pipeline.open_recipe(run), data, Stop())
    assert (run.stage("eval") / f"{'ü' * 100}.json").is_file()
    assert found.images_folder == str(data)


def test_the_same_images_elsewhere_replace_their_record(
    finished: Any, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = copied(finished, teacher_file, tmp_path / "toy")
    shutil.copytree(photos, tmp_path / "moved" / photos.name)
    for folder in (photos, tmp_path / "moved" / photos.name):
        found = evaluation.evaluate(run, pipeline.open_recipe(run), folder, Stop())
        assert (found.data, found.images_folder) == ("photos", str(folder))
    assert [path.name for path in run.stage("eval").iterdir()] == ["photos.json"]


def test_a_network_can_be_measured_while_distilling(photos: Path, teacher_file: Path, tmp_path: Path) -> None:
    """Artefacts are bit-identical with and without images; the curve is the only difference."""
    wanted = toy.toy_recipe(teacher_file, pixels={"normalize": "none"})
    stages = ("ingest", "distill", "select")
    plain = toy.advance(tmp_path / "plain" / "toy", wanted, stages)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    images = images_of.labeled(run, photos, purpose="eval")
    toy.advance(tmp_path / "toy", wanted, stages, accuracy=images.network_accuracy)
    points: list[dict[str, Any]] = run.events("accuracy")
    assert [point["step"] for point in points] == list(range(13))
    assert all(0 <= point["raw"] <= 1 and 0 <= point["ema"] <= 1 for point in points)
    with_images, without = toy.fingerprint(run), toy.fingerprint(plain)
    assert {k: v for k, v in with_images.items() if k != "events"} == {
        k: v for k, v in without.items() if k != "events"
    }
    distilled = [pipeline.RunStatus(r, wanted).inputs(SELECT) for r in (run, plain)]
    assert distilled[0] == distilled[1]
