"""What --fresh moves aside comes back, or is deleted, as its marker says; nothing else is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.errors import InputFileError, MachineError, RunBusyError, UsageError
from edgekd.pipeline import fresh_start
from edgekd.pipeline.fresh_start import ASIDE, FreshStart
from edgekd.run.cards.ledger import ImagesReadPart
from edgekd.run.directory import RecordFields, RunDir
from edgekd.run.files import write_json
from edgekd.run.ownership import CONTENT
from edgekd.stages.catalog import STAGES

FIELDS: RecordFields = {"stage": "x", "version": 1, "key": "", "recipe_slice": {}, "inputs": {}}
STAGE_FOLDERS = ("teacher", "select", "export", "bench/local", "report")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.pt"
    path.write_text("teacher")
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with everything in it, as far as names go, and a file of the user's."""
    run = RunDir(tmp_path / "run")
    with run.lock():
        run.note_command(["edgekd", "distill"])
        read_images(run, "photos", 3)
        fill(run, "old")
    (run.path / "notes.md").write_text("mine")
    return run


def read_images(run: RunDir, folder: str, count: int) -> None:
    ledger = run.ledger()
    ledger.with_fields(
        real_images_read=ledger.real_images_read + count,
        real_images=[*ledger.real_images, ImagesReadPart(folder=folder, images=count)],
        files_read={**ledger.files_read, folder: "hash"},
    ).write(run.path)


def fill(run: RunDir, text: str, names: tuple[str, ...] = STAGE_FOLDERS) -> None:
    """Let a run hold published stages, a recipe and events."""
    for name in names:
        publish(run, name, text)
    run.recipe_file.write_text(text)
    run.events_file.write_text(text)
    run.stage("eval").mkdir(exist_ok=True)
    write_json(run.stage("eval") / "photos.json", {"run": text, "accuracy": {}, "artefacts_sha256": {}})
    if names == STAGE_FOLDERS:
        checkpoint(run, text)


def publish(run: RunDir, name: str, text: str) -> None:
    with run.publish(name) as (folder, record):
        (folder / "file").write_text(text)
        record |= FIELDS


def checkpoint(run: RunDir, text: str) -> None:
    publish(run, "distill/checkpoints/step-00000000", text)


def content(run: RunDir) -> dict[str, str]:
    files = (path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run.path)): path.read_text() for path in files}


def _socket(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFSOCK)


def aside(run: RunDir) -> bool:
    return (run.path / ASIDE).exists()


def test_every_stage_has_a_name_that_is_edgekds() -> None:
    assert {Path(stage.folder).parts[0] for stage in STAGES} | {"eval", "report"} <= set(CONTENT)
    assert CONTENT[-1] == "distill"


def test_what_failed_before_training_comes_back_and_what_it_made_goes(run: RunDir, teacher: Path) -> None:
    before = content(run)
    with run.lock():
        FreshStart(run).begin(teacher)
        assert sorted(p.name for p in run.path.iterdir()) == [ASIDE, ".lock", "notes.md", "run.json"]
        assert run.ledger().real_images_read == 0
        fill(run, "new", ("teacher", "init", "select"))
        (run.stage("distill") / "checkpoints" / ".tmp-step-00000000").mkdir(parents=True)
        FreshStart(run).settle()
    assert content(run) == before
    assert not aside(run)


@pytest.mark.parametrize("training", [True, False])
def test_the_old_run_goes_once_there_is_a_new_one(training: bool, run: RunDir, teacher: Path) -> None:
    with run.lock():
        FreshStart(run).begin(teacher)
        publish(run, "teacher", "new")
        if training:
            checkpoint(run, "new")
        FreshStart(run).settle(succeeded=not training)
    names = {".lock", "run.json", "notes.md", "teacher"} | ({"distill"} if training else set())
    assert {path.name for path in run.path.iterdir()} == names
    assert "old" not in content(run).values()


def test_real_images_that_a_refused_beginning_read_stay_in_the_ledger(run: RunDir, teacher: Path) -> None:
    with run.lock():
        FreshStart(run).begin(teacher)
        read_images(run, "others", 5)
        FreshStart(run).settle()
    ledger = run.ledger()
    assert ledger.real_images_read == 8
    assert [reading.folder for reading in ledger.real_images] == ["photos", "others"]
    assert set(ledger.files_read) == {"photos", "others"}


STRANGERS = [
    "export/student.engine",
    "teacher/notes.md",
    "bench/jetson.txt",
    "bench/mine/a.json",
    "eval/plot.png",
    "eval/my-notes.json",
    "distill/checkpoints/best-step-12/a.pt",
]


@pytest.mark.parametrize("name", [*STRANGERS, "distill/plot.py", "distill/checkpoints/mine.pt", "report/figures/a.svg"])
def test_files_of_the_user_in_the_folders_of_a_run_are_not_replaced(name: str, run: RunDir, teacher: Path) -> None:
    (run.path / name).parent.mkdir(exist_ok=True, parents=True)
    (run.path / name).write_text("mine")
    before = content(run)
    with run.lock(), pytest.raises(UsageError, match="which edgekd did not write; move it away first"):
        FreshStart(run).begin(teacher)
    assert content(run) == before


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _socket], ids=["pipe", "empty folder", "socket"])
def test_nor_is_what_is_no_file(make: Callable[[Path], None], run: RunDir, teacher: Path) -> None:
    make(run.stage("export") / "mine")
    with run.lock(), pytest.raises(UsageError, match=r"export/mine, which edgekd did not write"):
        FreshStart(run).begin(teacher)
    assert (run.stage("export") / "mine").exists()


def test_what_the_user_put_into_an_unfinished_beginning_is_kept(run: RunDir, teacher: Path) -> None:
    """A --fresh died with everything aside; the user works on in the folder before the next command recovers it."""
    mine = ["export/student.engine", "init/notes.md", "bench/my-notes/n.txt", "teacher/file"]
    with run.lock():
        FreshStart(run).begin(teacher)
    publish(run, "export", "new")
    for name in mine:
        (run.path / name).parent.mkdir(exist_ok=True, parents=True)
        (run.path / name).write_text("mine")
    with run.lock():
        recovery = FreshStart(run)  # which dies, too
        marker = recovery._read()
        assert marker is not None
        recovery._bring_back(recovery._write(marker.model_copy(update={"direction": "back"})))
    (run.path / "init").mkdir()  # the recovery has set the first aside
    (run.path / "init" / "more.md").write_text("mine")
    with run.lock():
        FreshStart(run).settle()
    kept = content(run)
    assert {name: kept.get(name) for name in mine[:3]} == dict.fromkeys(mine[:3], "mine")
    assert (kept["init/more.md"], kept["teacher/file"], kept["teacher.yours1/file"]) == ("mine", "old", "mine")
    assert kept["export/file"] == "old"
    assert not aside(run)


def test_nor_are_other_files_that_the_command_reads(run: RunDir, teacher: Path) -> None:
    before = content(run)
    with run.lock(), pytest.raises(UsageError, match=r"--fresh would replace .*/select/file, which this command reads"):
        FreshStart(run).begin(teacher, Path("elsewhere"), run.stage("select") / "file")
    assert content(run) == before


def test_where_the_ledger_cannot_be_replaced_nothing_is_begun(
    run: RunDir, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sticky folder of another user lets anybody add files, and nobody replace his."""

    def refuse(_source: Path, place: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(place))

    before = content(run)
    monkeypatch.setattr(os, "replace", refuse)
    with run.lock(), pytest.raises(MachineError, match=r"no permission to write .*run.json"):
        FreshStart(run).begin(teacher)
    assert content(run) == before
    assert not aside(run)


def test_a_link_is_moved_and_deleted_as_a_link(run: RunDir, teacher: Path, tmp_path: Path) -> None:
    run.stage("export").rename(tmp_path / "elsewhere")
    run.stage("export").symlink_to(tmp_path / "elsewhere")
    with run.lock():
        FreshStart(run).begin(teacher)
        checkpoint(run, "new")
        FreshStart(run).settle()
    assert not aside(run)
    assert (tmp_path / "elsewhere" / "file").read_text() == "old"


@pytest.mark.parametrize("text", ["{", "[]", '{"direction": "back"}'])
def test_with_a_damaged_marker_nothing_is_deleted(text: str, run: RunDir, teacher: Path) -> None:
    with run.lock():
        FreshStart(run).begin(teacher)
    (run.path / ASIDE / "marker.json").write_text(text)
    before = content(run)
    with pytest.raises(InputFileError, match=r"marker.json is damaged .* move it back"):
        fresh_start.recover(run)
    assert content(run) == before


# Readers


def test_a_reader_settles_what_a_dead_process_left(run: RunDir, teacher: Path) -> None:
    before = content(run)
    with run.lock():
        FreshStart(run).begin(teacher)
    fresh_start.recover(run)
    assert content(run) == before


def test_a_reader_sees_a_folder_that_died_between_two_renames(run: RunDir) -> None:
    before = content(run)
    run.stage("export").rename(run.path / ".old-export")
    fresh_start.recover(run)
    assert content(run) == before


def test_a_reader_never_writes_where_no_run_is(tmp_path: Path) -> None:
    (tmp_path / ".old-export").mkdir()
    (tmp_path / ASIDE).mkdir()
    fresh_start.recover(RunDir(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [ASIDE, ".old-export"]


def test_a_reader_of_a_living_beginning_learns_what_is_going_on(
    run: RunDir, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.lock():
        FreshStart(run).begin(teacher)
        with pytest.raises(RunBusyError, match=r"being started anew with --fresh; what it held is aside .* Ask again"):
            fresh_start.recover(run)
        run.recipe_file.write_text("new")
        fresh_start.recover(run)
        assert "being started anew" in capsys.readouterr().err
        checkpoint(run, "new")
        fresh_start.recover(run)
        assert capsys.readouterr().err == ""
        assert json.loads((run.path / ASIDE / "marker.json").read_text())["direction"] == "open"


@pytest.mark.parametrize("name", ["export/trt.engine", "init/w.txt", "report/notes.md"])
def test_nor_are_they_where_nothing_was_published(name: str, run: RunDir, teacher: Path) -> None:
    shutil.rmtree(run.stage(name.split("/")[0]), ignore_errors=True)
    (run.path / name).parent.mkdir()
    (run.path / name).write_text("mine")
    with run.lock(), pytest.raises(UsageError, match="which edgekd did not write"):
        FreshStart(run).begin(teacher)
    assert (run.path / name).read_text() == "mine"


def test_a_strange_file_beside_what_is_aside_stops_nothing(
    run: RunDir, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / ASIDE).mkdir()
    (run.path / ASIDE / ".DS_Store").touch()
    with run.lock():
        FreshStart(run).settle()
        FreshStart(run).begin(teacher)
        FreshStart(run).settle()
    assert ".DS_Store, which edgekd did not write" in " ".join(capsys.readouterr().err.split())
    assert run.stage("select").is_dir()
    shutil.rmtree(run.path / ASIDE)
    (run.path / ASIDE).touch()
    with run.lock(), pytest.raises(InputFileError, match="is a link or a file"):
        FreshStart(run).settle()
