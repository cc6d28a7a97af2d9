"""What a refused command leaves behind, and whose folders are never touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import toy
from edgekd.cli.session import locked_run
from edgekd.cli.targets import named_run
from edgekd.errors import InputFileError, MachineError, UsageError
from edgekd.run.directory import RunDir
from edgekd.run.image_folder import open_unlabeled
from edgekd.run.ledger import ImageAccount
from edgekd.run.realdata import RealImages


def publish(run: RunDir) -> None:
    """Publish an empty teacher/."""
    with run.publish("teacher") as (_, record):
        record |= {"stage": "ingest", "version": 1, "key": "", "recipe_slice": {}, "inputs": {}}


def refused(run: RunDir, error: BaseException, work: Callable[[], object]) -> None:
    """Let a command do some work in a run and end with an error."""
    with locked_run(run):
        work()
        raise error


def test_a_refused_command_leaves_no_new_folder(here: Path) -> None:
    run = named_run("one")
    with pytest.raises(InputFileError):
        refused(run, InputFileError("no"), lambda: run.recipe_file.write_text("half"))
    assert list(here.iterdir()) == []


def test_a_fault_keeps_what_there_is(here: Path) -> None:
    run = named_run("one")
    with pytest.raises(ZeroDivisionError):
        refused(run, ZeroDivisionError(), list)
    assert run.ledger_file.is_file()


def test_a_refused_command_leaves_a_run_as_it_was(here: Path, teacher_file: Path) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))
    run.note_command(["edgekd"])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UsageError):
        refused(run, UsageError("no"), lambda: run.recipe_file.write_text("half"))
    assert {path: path.read_bytes() for path in before} == before


def test_what_was_published_before_the_refusal_stays(here: Path) -> None:
    run = named_run("one")
    with pytest.raises(UsageError):
        refused(run, UsageError("no"), lambda: publish(run))
    assert run.stage("teacher").is_dir()


def read(run: RunDir, folder: Path, count: int) -> None:
    """Read so many images of a folder for a run."""
    images = RealImages(
        open_unlabeled(folder),
        (1, 8, 8),
        mean=(0.5,),
        std=(0.5,),
        reading=ImageAccount(run, open_unlabeled(folder), "eval"),
    )
    with images:
        for file in images.folder.files[:count]:
            images.normalized(file)


def test_images_that_were_read_before_the_refusal_stay_in_the_ledger(
    here: Path, teacher_file: Path, photos: Path
) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))
    recipe = run.recipe_file.read_bytes()

    def work() -> None:
        run.recipe_file.write_text("half")
        read(run, photos, 7)

    with pytest.raises(UsageError):
        refused(run, UsageError("no"), work)
    ledger = run.ledger()
    assert (ledger.real_images_read, ledger.real_images[0].images) == (7, 7)
    assert run.recipe_file.read_bytes() == recipe


@pytest.mark.parametrize("end", [UsageError("no"), ZeroDivisionError(), KeyboardInterrupt()])
def test_images_read_by_a_fresh_beginning_stay_when_it_is_taken_back(
    end: BaseException, here: Path, teacher_file: Path, photos: Path
) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))
    read(run, photos, 3)

    def begin_and_fail(count: int) -> None:
        with locked_run(run, fresh=True, teacher=teacher_file):
            read(run, photos, count)
            raise end

    for count in (7, 2):
        with pytest.raises(type(end)):
            begin_and_fail(count)
    ledger = run.ledger()
    assert [one.images for one in ledger.real_images] == [3, 7, 2]
    assert ledger.real_images_read == 12


FOREIGN = {
    "with notes": {"notes.md": "mine"},
    "with a recipe": {"recipe.toml": "name = 'digits'", "digits.py": "code"},
    "of another program": {"run.json": '{"id": 7}', "recipe.toml": ""},
    "with a damaged ledger": {"run.json": "{", "teacher/record.json": "{}"},
    "named like a stage": {"export/student.onnx": "mine"},
    "hidden": {".git/HEAD": "main"},
}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_that_edgekd_did_not_make_is_refused_and_never_touched(
    files: dict[str, str], fresh: bool, here: Path, teacher_file: Path
) -> None:
    for name, text in files.items():
        (here / "digits" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "digits" / name).write_text(text)
    before = {path: path.stat().st_mtime_ns for path in (here, *here.rglob("*"))}
    with (
        pytest.raises(UsageError, match="digits is left as it is"),
        locked_run(named_run("./digits"), fresh=fresh, teacher=teacher_file),
    ):
        pytest.fail("it began")
    assert {path: path.stat().st_mtime_ns for path in (here, *here.rglob("*"))} == before


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".tmp-run.json")])
def test_a_folder_that_a_killed_beginning_left_is_taken_over(left: tuple[str, ...], here: Path) -> None:
    run = named_run("one")
    run.path.mkdir(parents=True)
    for name in left:
        (run.path / name).touch()
    with locked_run(run):
        assert run.ledger_file.is_file()
    assert {path.name for path in run.path.iterdir()} == {".lock", "run.json"}


def test_fresh_needs_a_teacher_that_it_does_not_replace(here: Path, teacher_file: Path) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    inside = run.stage("teacher") / "teacher.safetensors"
    cases = {inside: "would replace .*teacher.safetensors, the teacher", here / "gone.pt": "gone.pt is not there"}
    for teacher, message in cases.items():
        with (
            pytest.raises((UsageError, InputFileError), match=message),
            locked_run(run, fresh=True, teacher=teacher),
        ):
            pytest.fail("it began")
        assert {path: path.read_bytes() for path in before} == before


def test_a_refusal_after_a_checkpoint_keeps_the_recipe_that_it_was_made_with(here: Path, teacher_file: Path) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))

    def begin() -> None:
        run.recipe_file.write_text("of the checkpoint")
        with run.publish("distill/checkpoints/step-00000000") as (_, record):
            record |= {"stage": "checkpoint", "version": 1, "key": "", "recipe_slice": {}, "inputs": {}}

    with pytest.raises(MachineError):
        refused(run, MachineError("the disk is full"), begin)
    assert run.recipe_file.read_text() == "of the checkpoint"


def test_a_refused_command_deletes_only_what_is_edgekds(here: Path) -> None:
    run = named_run("one")
    with pytest.raises(UsageError):
        refused(run, UsageError("no"), lambda: (run.path / "notes.md").write_text("mine"))
    assert [path.name for path in run.path.iterdir()] == ["notes.md"]
