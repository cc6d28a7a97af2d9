"""Init: a student that starts from given weights, the file they came from, and a run that no longer needs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from edgekd import pipeline, recipe, state_dict
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError, RecipeError
from edgekd.models import artefacts, registry
from edgekd.recipe import Recipe
from edgekd.run import checkpoint
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json
from edgekd.stages.catalog import BENCH, DISTILL, EXPORT, INGEST, SELECT, STAGES

WHOLE = ("ingest", "init", "distill", "select")
ran: list[str] = []


class Trap:
    """What a hostile pickle does: code that runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ran.append, ("boom",)


def write_weights(path: Path, *, classes: int = toy.CLASSES, channels: int = 1, seed: int = 77) -> Path:
    shape = (channels, *toy.SHAPE[1:])
    network = registry.build(toy.STUDENT, input_shape=shape, classes=classes, seed=seed)
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    return path


def starting_from(path: Path, teacher: Path, **changes: Any) -> Recipe:
    return recipe.with_changes(toy.toy_recipe(teacher, **changes), {"student": {"weights": str(path)}})


def student_at(run: RunDir, step: int, network: str = "student") -> dict[str, Tensor]:
    file = run.stage("distill") / f"checkpoints/step-{step:08d}/state.safetensors"
    return state_dict.tensors_of(state_dict.unflatten(checkpoint.load_tensors(file), {}), network)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "pretrained.pth")


@pytest.fixture(scope="module")
def done(file: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    wanted = starting_from(file, teacher_file, method={"steps": 4}, checkpoint_period=4)
    return toy.advance(tmp_path_factory.mktemp("done") / "toy", wanted, WHOLE)


@pytest.fixture
def run(done: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(done.path, tmp_path / "toy")))


def test_the_student_and_its_average_start_from_the_files_weights(done: RunDir, file: Path) -> None:
    given = {k.removeprefix("module."): v for k, v in torch.load(file)["model"].items()}
    for network in ("student", "student_ema"):
        start = student_at(done, 0, network)
        assert set(start) == set(given)
        assert all(torch.equal(start[name], value) for name, value in given.items())
    assert not torch.equal(student_at(done, 4)["conv1.weight"], given["conv1.weight"]), "and it is trained from there"


def test_the_file_is_recorded_with_its_hash(done: RunDir, file: Path) -> None:
    record, distilled = Record.read(done.stage("init")), Record.read(done.stage("distill"))
    assert record is not None
    assert distilled is not None
    assert record.inputs["file"] == sha256_of(file)
    assert set(record.outputs) == {"student.safetensors", "init.json"}
    assert distilled.inputs["init/student.safetensors"] == record.outputs["student.safetensors"]
    assert done.ledger().files_read[str(file)] == sha256_of(file)


def test_other_sets_of_weights_in_the_file_are_named(
    file: Path, teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = torch.load(file)
    torch.save({**given, "model_ema": {**given["model"]}}, tmp_path / "both.pth")
    run = toy.advance(tmp_path / "toy", starting_from(tmp_path / "both.pth", teacher_file), ("ingest", "init"))
    assert "init     weights = model, not model_ema\n" in capsys.readouterr().err
    assert checkpoint.load_tensors(run.stage("init") / "student.safetensors").keys() >= {"conv1.weight"}


def test_another_head_and_stem_stay_as_the_seed_drew_them(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_weights(tmp_path / "imagenet.pth", classes=1000, channels=3)
    wanted = starting_from(file, teacher_file, method={"steps": 1})
    run = toy.advance(tmp_path / "toy", wanted, ("ingest", "init", "distill"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("init")]
    assert lines == [
        "init     left random: linear (1000 classes in the file, 4 here), conv1 (3 channels in the file, 1 here)"
    ]
    assert len(read_json(run.stage("init") / "init.json")["left_random"]) == 2
    drawn = artefacts.build_student(wanted, artefacts.description_of(run)).state_dict()
    given, start = torch.load(file)["model"], student_at(run, 0)
    for name in ("conv1.weight", "linear.weight", "linear.bias"):
        assert torch.equal(start[name], drawn[name])
    assert torch.equal(start["layer2.0.conv1.weight"], given["module.layer2.0.conv1.weight"])


def test_a_run_without_given_weights_has_no_such_stage_and_the_key_it_had_before(
    teacher_file: Path, tmp_path: Path
) -> None:
    wanted = toy.toy_recipe(teacher_file)
    assert [stage for stage in STAGES if stage.wanted(wanted)] == [INGEST, DISTILL, SELECT, EXPORT, BENCH]
    assert DISTILL.slice(wanted)["student"] == {"name": toy.STUDENT}
    run = toy.advance(tmp_path / "toy", wanted, ("ingest", "init"))
    assert not run.stage("init").exists()
    assert set(pipeline.RunStatus(run, wanted).inputs(DISTILL)) == {
        "ingest/teacher.safetensors",
        "ingest/teacher.json",
    }


def test_a_file_that_moved_away_undoes_nothing(run: RunDir, teacher_file: Path, tmp_path: Path) -> None:
    moved = recipe.with_changes(pipeline.open_recipe(run), {"student": {"weights": str(tmp_path / "gone.pth")}})
    before = toy.fingerprint(run)
    toy.advance(run.path, moved, WHOLE)
    assert toy.fingerprint(run) == before
    standing = pipeline.RunStatus(run, moved)
    assert {standing.reason_to_run(stage) for stage in standing.stages[:4]} == {None}


@pytest.mark.slow
def test_a_killed_run_goes_on_without_the_file_as_if_untouched(
    done: RunDir, file: Path, teacher_file: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(file, tmp_path / "copy.pth"))
    wanted = starting_from(copy, teacher_file, method={"steps": 4}, checkpoint_period=4)
    assert toy.killed(tmp_path / "toy", wanted, WHOLE, "distill.step@3")
    copy.unlink()
    assert toy.fingerprint(toy.advance(tmp_path / "toy", wanted, WHOLE)) == toy.fingerprint(done)


def test_other_weights_under_a_run_are_refused(run: RunDir, tmp_path: Path) -> None:
    other = write_weights(tmp_path / "other.pth", seed=78)
    kept = pipeline.open_recipe(run)
    with pytest.raises(RecipeError, match=r"student\.weights: .* -> .*other\.pth', with another content"):
        pipeline.adopt(run, recipe.with_changes(kept, {"student": {"weights": str(other)}}))
    with pytest.raises(RecipeError, match=r"student\.weights: 'from a file' -> None"):
        pipeline.adopt(run, recipe.with_changes(kept, {"student": {"weights": ""}}))
    export = pipeline.adopt(run, recipe.with_changes(kept, {"student": {"weights": str(other)}}), reads_teacher=False)
    assert export.student.weights == str(other), "export reads neither teacher nor weights"


def test_weights_may_be_exchanged_until_training_begins(file: Path, teacher_file: Path, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", starting_from(file, teacher_file), ("ingest", "init"))
    first = sha256_of(run.stage("init") / "student.safetensors")
    other = starting_from(write_weights(tmp_path / "other.pth", seed=78), teacher_file)
    toy.advance(run.path, other, ("ingest", "init"))
    assert sha256_of(run.stage("init") / "student.safetensors") != first
    toy.advance(run.path, toy.toy_recipe(teacher_file, method={"steps": 1}), ("ingest", "init", "distill"))
    distilled = Record.read(run.stage("distill"))
    assert distilled is not None
    assert "init/student.safetensors" not in distilled.inputs, "what a dropped choice left behind is not read"


def test_a_file_that_does_not_fit_is_refused_and_nothing_is_published(teacher_file: Path, tmp_path: Path) -> None:
    network = registry.build("resnet8@0.5", input_shape=toy.SHAPE, classes=toy.CLASSES, seed=0)
    torch.save(network.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        InputFileError, match=r"wide\.pth cannot start resnet8@0\.25: .*conv1\.weight is 8x1x3x3"
    ) as caught:
        toy.advance(tmp_path / "toy", starting_from(tmp_path / "wide.pth", teacher_file), ("ingest", "init"))
    assert "--student-weights" in str(caught.value)
    assert not (tmp_path / "toy" / "init").exists()


def test_a_hostile_file_runs_nothing_and_gets_no_way_round(teacher_file: Path, tmp_path: Path, approve: Any) -> None:
    approve(pickles=True)
    torch.save({"weights": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    trusting = {"teacher": {"trust_pickle": True}}
    for name, message in (
        ("trap.pth", "is a pickle that would run"),
        ("empty.pth", "is empty"),
        ("no.pth", "not exist"),
    ):
        wanted = recipe.with_changes(starting_from(tmp_path / name, teacher_file), trusting)
        with pytest.raises(InputFileError, match=message) as caught:
            toy.advance(tmp_path / "toy", wanted, ("ingest", "init"))
        assert "--trust-pickle" not in str(caught.value), "it is for the teacher's file"
    assert ran == []
    assert not (tmp_path / "toy" / "init").exists()
