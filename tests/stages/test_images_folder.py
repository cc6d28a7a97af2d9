"""Distilling on pictures that the user has: what it changes, and that everything says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from command import Result

import toy
from edgekd import pipeline
from edgekd.errors import RecipeError, StoppedEarly
from edgekd.export.graph import metadata
from edgekd.recipe import with_changes
from edgekd.run.cards.record import Record
from edgekd.stages.catalog import DISTILL

PIXELS = {"mean": [0.5], "std": [0.25]}


def test_a_student_learns_on_pictures_of_the_user_and_everything_says_so(
    teacher_file: Path, photos: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    method = {"procedural": {"share": [0.5, 0.5]}}
    wanted = toy.toy_recipe(
        teacher_file, method=method, images={"folder": str(mine)}, pixels=PIXELS, checkpoint_period=2
    )
    untouched = toy.advance(tmp_path / "untouched" / "toy", wanted, toy.CHAIN)
    assert untouched.events("generator") == [], "there is none"
    assert not any("agreement_procedural" in event for event in untouched.events("train")), "nor procedural images"
    ledger = untouched.ledger()
    purposes = [entry.purpose for entry in ledger.real_images]
    assert purposes == ["distillation", "choosing the student", "samples for export"]
    assert (ledger.data_free, ledger.real_images[0].images) == (False, 5 * toy.CLASSES)
    assert metadata(onnx.load(untouched.stage("export") / "student.fp32.onnx"))["edgekd.data_free"] == "false"
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    with run.lock(), pytest.raises(StoppedEarly):
        pipeline.advance(run, pipeline.adopt(run, wanted), DISTILL, stop=toy.StopAt(6))
    assert run.data_free() is False, "from the first step on"
    toy.advance(run.path, wanted, ("ingest", "distill"))
    ended, resumed = Record.read(untouched.stage("distill")), Record.read(run.stage("distill"))
    assert ended is not None
    assert resumed is not None
    assert resumed.outputs == ended.outputs, "bit for bit"
    status = pipeline.RunStatus(untouched, pipeline.open_recipe(untouched))
    assert status.reason_to_run(DISTILL) is None
    (run.path / "recipe.toml").write_text("not a recipe")
    assert run.data_free() is False, "its records tell, too"
    (mine / "class0" / "0.png").write_bytes((mine / "class1" / "1.png").read_bytes())
    status = pipeline.RunStatus(untouched, pipeline.open_recipe(untouched))
    assert "images" in str(status.reason_to_run(DISTILL))


def test_pictures_cannot_be_exchanged_in_a_run_nor_normalised_otherwise(
    teacher_file: Path, photos: Path, tmp_path: Path
) -> None:
    wanted = toy.toy_recipe(teacher_file, images={"folder": str(photos)}, pixels=PIXELS)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest", "distill"))
    for changes in ({"images": {"folder": ""}}, {"pixels": {"mean": [0.4], "std": [0.25]}}):
        with pytest.raises(RecipeError, match="started with another recipe: images"):
            pipeline.adopt(run, with_changes(wanted, changes))


def test_a_folder_that_does_not_do_is_refused_before_the_first_step(
    teacher_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copytree(photos, tmp_path / "damaged")
    (tmp_path / "damaged" / "class3" / "4.png").write_bytes(b"no picture")
    flags = ("--input", "1x8x8", "--student", toy.STUDENT, "--steps", "4", "--normalize", "none")
    for folder, code, message in (
        ("missing", 4, "is not a folder of images"),
        ("empty", 4, "holds no images"),
        ("damaged", 4, "4.png cannot be decoded"),
    ):
        refused = Result("distill", teacher_file, *flags, "--images", folder)
        assert (refused.exit_code, message in refused.stderr) == (code, True), refused.stderr
        assert list(tmp_path.glob("runs/*/distill/checkpoints/step-0*")) == []


def test_the_old_names_go_on_working_and_name_the_new_ones(teacher_file: Path, photos: Path, tmp_path: Path) -> None:
    both = Result("export", "toy", "--images", photos, "--calibrate-on-real", photos)
    assert (both.exit_code, "--images alone" in both.stderr) == (2, True)
    assert "is now called --images" in Result("export", "toy", "--int8", "--calibrate-on-real", photos).stderr
    recipe = toy.toy_recipe(teacher_file, export={"int8": True, "calibrate_on_real": "photos"})
    assert recipe.export.images == "photos"
    with pytest.raises(RecipeError, match="keep images"):
        toy.toy_recipe(teacher_file, export={"images": "a", "calibrate_on_real": "b"})
