"""Which run is meant, what to type for it, and what a refused command leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import toy
from edgekd.commands.common import Options, at_work, named_run, typed
from edgekd.errors import InputFileError, UsageError
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


def test_what_was_published_or_read_before_the_refusal_stays(here: Path, teacher_file: Path) -> None:
    run = named_run("one")
    with pytest.raises(UsageError):
        refused(run, UsageError("no"), lambda: publish(run))
    assert run.stage("teacher").is_dir()
    with pytest.raises(UsageError):
        refused(run, UsageError("no"), lambda: run.note_images(Path("photos"), 20, "hash", purpose="eval"))
    assert run.ledger()["real_images_read"] == 20


def test_fresh_never_replaces_a_folder_that_is_no_run(here: Path, teacher_file: Path) -> None:
    (here / "home" / "photos").mkdir(parents=True)
    fresh = at_work(named_run("./home"), Options(fresh=True), teacher=teacher_file)
    with pytest.raises(UsageError, match="home is none, and holds photos"), fresh:
        pytest.fail("it began")
    assert (here / "home" / "photos").is_dir()
    (here / "home" / "photos").rmdir()
    with at_work(named_run("./home"), Options(fresh=True), teacher=teacher_file):
        pass
