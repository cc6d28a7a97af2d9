"""Which run is meant, what to type for it, and what a refused command leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import toy
from edgekd.commands.common import Options, at_work, named_run, typed
from edgekd.errors import InputFileError, UsageError
from edgekd.ledger import Reading
from edgekd.realdata import RealImages, open_unlabelled
from edgekd.rundir import RunDir


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["runs/one", "elsewhere/one", "/other/place/x", "runs/a b", "..", "./here"])
def test_what_is_typed_names_the_same_run(here: Path, path: str) -> None:
    run = RunDir(Path(path))
    words = typed(run).strip("'")
    assert named_run(words).path.resolve() == run.path.resolve()
    assert words == (run.name if path.startswith("runs/") else path)


def test_a_run_in_the_current_folder_hides_its_namesake_below_runs(here: Path) -> None:
    (here / "one").mkdir()
    (here / "one" / "recipe.toml").write_text("")
    assert typed(RunDir(Path("runs/one"))) == "runs/one"
    assert typed(RunDir(Path("one"))) == "one"
    assert named_run("one").path == Path("one")


def test_a_name_that_no_folder_can_have_is_wrong_usage(here: Path) -> None:
    with pytest.raises(UsageError, match="no name for a run"):
        named_run("x" * 5000)


def publish(run: RunDir) -> None:
    """Publish an empty teacher/."""
    with run.publish("teacher") as (_, record):
        record |= {"stage": "ingest", "version": 1, "key": "", "recipe_slice": {}, "inputs": {}}


def refused(run: RunDir, error: BaseException, work: Callable[[], object]) -> None:
    """Let a command do some work in a run and end with an error."""
    with at_work(run, Options()):
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
        open_unlabelled(folder),
        (1, 8, 8),
        mean=(0.5,),
        std=(0.5,),
        reading=Reading(run, open_unlabelled(folder), "eval"),
    )
    with images:
        for file in images.folder.files[:count]:
            images.normalised(file)


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
    assert (ledger["real_images_read"], ledger["real_images"][0]["images"]) == (7, 7)
    assert run.recipe_file.read_bytes() == recipe


@pytest.mark.parametrize("end", [UsageError("no"), ZeroDivisionError(), KeyboardInterrupt()])
def test_images_read_by_a_fresh_beginning_stay_when_it_is_taken_back(
    end: BaseException, here: Path, teacher_file: Path, photos: Path
) -> None:
    run = toy.advance(Path("runs/one"), toy.toy_recipe(teacher_file), ("ingest",))
    read(run, photos, 3)

    def begin_and_fail(count: int) -> None:
        with at_work(run, Options(fresh=True), teacher=teacher_file):
            read(run, photos, count)
            raise end

    for count in (7, 2):
        with pytest.raises(type(end)):
            begin_and_fail(count)
    ledger = run.ledger()
    assert [one["images"] for one in ledger["real_images"]] == [3, 7, 2]
    assert ledger["real_images_read"] == 12


def test_fresh_never_replaces_a_folder_that_is_no_run(here: Path, teacher_file: Path) -> None:
    (here / "home" / "photos").mkdir(parents=True)
    fresh = at_work(named_run("./home"), Options(fresh=True), teacher=teacher_file)
    with pytest.raises(UsageError, match="home is none, and holds photos"), fresh:
        pytest.fail("it began")
    assert (here / "home" / "photos").is_dir()
    (here / "home" / "photos").rmdir()
    with at_work(named_run("./home"), Options(fresh=True), teacher=teacher_file):
        pass
