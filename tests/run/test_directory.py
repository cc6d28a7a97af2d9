"""What is published is whole, what is damaged is noticed, and one process at a time works on a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError, MachineError, RunBusyError, UsageError
from edgekd.run import files
from edgekd.run.cards.ledger import EnvironmentDifference, LedgerCard
from edgekd.run.cards.record import Record
from edgekd.run.directory import RecordFields, RunDir
from edgekd.run.files import read_json
from edgekd.run.ownership import is_run, refuse_foreign

FIELDS: RecordFields = {"stage": "select", "version": 1, "key": "k", "recipe_slice": {"a": 1}, "inputs": {"x": "y"}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    return run


def publish(run: RunDir, name: str = "select", **texts: str) -> Path:
    with run.publish(name) as (folder, record):
        for file, text in texts.items():
            (folder / file).write_text(text)
        record |= FIELDS
    return run.stage(name)


def hidden(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.path.rglob(".*") if p.name != ".lock")


# Publishing


def test_a_published_folder_has_the_files_and_a_record_of_their_hashes(run: RunDir) -> None:
    folder = publish(run, a="one", b="two")
    record = Record.read(folder)
    assert record is not None
    assert record.outputs == {name: sha256_of(folder / name) for name in ("a", "b")}
    assert (record.stage, record.key, record.inputs, record.pruned) == ("select", "k", {"x": "y"}, [])
    assert record.damaged_output(folder) is None
    assert hidden(run) == []


def test_files_in_subfolders_are_hashed_too(run: RunDir) -> None:
    with run.publish("bench/local") as (folder, record):
        (folder / "deep").mkdir()
        (folder / "deep" / "x.json").write_text("{}")
        record |= FIELDS
    found = Record.read(run.stage("bench/local"))
    assert found is not None
    assert list(found.outputs) == ["deep/x.json"]


def test_publishing_again_replaces_the_whole_folder(run: RunDir) -> None:
    publish(run, a="one", b="two")
    folder = publish(run, a="three")
    assert {p.name: p.read_text() for p in folder.iterdir() if p.name != "record.json"} == {"a": "three"}
    assert hidden(run) == []


def test_files_of_the_user_go_over_into_the_new_folder_and_are_in_no_record(run: RunDir) -> None:
    folder = publish(run, a="one")
    (folder / "deep").mkdir()
    for name in ("mine.engine", "deep/notes.md"):
        (folder / name).write_text("mine")
    (folder / "link").symlink_to("nowhere")
    for text in ("two", "three"):
        publish(run, a=text)
        record = Record.read(folder)
        assert record is not None
        assert list(record.outputs) == ["a"]
        assert [(folder / name).read_text() for name in ("a", "mine.engine", "deep/notes.md")] == [text, "mine", "mine"]
        assert (folder / "link").is_symlink()


@pytest.mark.parametrize("before", [True, False])
def test_an_error_inside_publishes_nothing_and_keeps_what_was_there(before: bool, run: RunDir) -> None:
    if before:
        publish(run, a="old")

    def fail() -> None:
        with run.publish("select") as (folder, _):
            (folder / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert run.stage("select").exists() is before
    if before:
        assert (run.stage("select") / "a").read_text() == "old"
        assert Record.read(run.stage("select")) is not None
    assert hidden(run) == []


@pytest.mark.parametrize("name", ["select", "bench/local", "distill/checkpoints/step-00000004"])
@pytest.mark.parametrize("there", [True, False])
def test_leftovers_of_a_killed_process_are_cleaned_under_the_lock(there: bool, name: str, run: RunDir) -> None:
    place = run.path / name
    if there:
        place.mkdir(parents=True)
        (place / "results.json").write_text("new")
    for prefix, text in ((".old-", "old"), (".tmp-", "half")):
        leftover = place.with_name(prefix + place.name)
        leftover.mkdir(parents=True)
        (leftover / "results.json").write_text(text)
    (run.path / ".tmp-recipe.toml").write_text("half")
    with run.lock():
        assert (place / "results.json").read_text() == ("new" if there else "old")
        assert hidden(run) == []


@pytest.mark.parametrize("name", ["eval/.tmp-photos.json", "select/.tmp-record.json", "distill/.tmp-record.json"])
def test_leftovers_inside_the_folders_of_a_run_are_cleaned_too(name: str, run: RunDir) -> None:
    (run.path / name).parent.mkdir()
    (run.path / name).write_text("half")
    with run.lock():
        assert hidden(run) == []


def test_what_is_not_edgekds_is_never_cleaned(run: RunDir) -> None:
    for name in (".tmp-notes", ".old-code"):
        (run.path / name).mkdir()
    with run.lock():
        assert hidden(run) == [".old-code", ".tmp-notes"]


USERS = (
    *("bench/.old-numbers/a.csv", "bench/.tmp-x", "select/.tmp-mine", "distill/.old-notes/a"),
    *("eval/.tmp-notes.txt", "eval/.old-a.json", "distill/checkpoints/.tmp-best/a"),
)


def test_nor_is_what_the_user_hid_in_the_folders_of_a_run(run: RunDir) -> None:
    for name in USERS:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).touch()
    with run.lock():
        assert [name for name in USERS if not (run.path / name).is_file()] == []


def test_nothing_is_cleaned_behind_a_link(run: RunDir, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".tmp-photos.json").touch()
    (run.path / "eval").symlink_to(elsewhere)
    with run.lock():
        assert (elsewhere / ".tmp-photos.json").is_file()


# Records


@pytest.mark.parametrize("text", [None, "", "{", "[]", '"x"', "{}", '{"stage": "select"}', '{"unknown": 1}', "\udc00"])
def test_a_record_that_does_not_parse_is_no_record(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "record.json").write_bytes(text.encode(errors="surrogateescape") if text != "\udc00" else b"\xff")
    assert Record.read(tmp_path) is None


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "stage": "export",
        "version": 3,
        "key": "k",
        "recipe_slice": {"a": [1]},
        "inputs": {"i": "h"},
    }
    record = Record(**made, outputs={"o": "h"}, pruned=["o"], notes={"note": "ü"})
    record.write(tmp_path)
    assert Record.read(tmp_path) == record


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "a is missing"),
        (lambda path: path.write_text("onf"), "a does not hash as recorded"),
        (lambda path: path.write_text(""), "a does not hash as recorded"),
    ],
)
def test_damage_is_found_unless_the_output_was_pruned(damage: Any, reason: str, run: RunDir) -> None:
    folder = publish(run, a="one", b="two")
    damage(folder / "a")
    record = Record.read(folder)
    assert record is not None
    assert record.damaged_output(folder) == reason
    facts: dict[str, Any] = {**FIELDS, "outputs": record.outputs, "pruned": ["a"]}
    pruned = Record(**facts)
    assert pruned.damaged_output(folder) is None
    (folder / "b").unlink()
    assert pruned.damaged_output(folder) == "b is missing"


# Text and JSON


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    files.write_text(path, "ünew")
    assert path.read_bytes() == "ünew".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@contextmanager
def full_disk() -> Iterator[None]:
    """Let every file grow by not one byte: the closest to a full disk that one process can have to itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_text_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with (
        full_disk(),
        pytest.raises(MachineError, match=r"File too large\): could not write .*x\.txt"),
    ):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_full_disk_while_logging_is_one_clear_error(run: RunDir) -> None:
    with full_disk(), pytest.raises(MachineError, match="size of files is reached"):
        run.append_event({"kind": "train"})


UNFLUSHABLE = pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)


@UNFLUSHABLE
def test_a_file_system_that_cannot_flush_folders_is_warned_of_once(
    code: int, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files._warn_of_power_cuts.cache_clear()
    files.write_text(run.path / "x.txt", "x")
    publish(run, a="b")
    assert capsys.readouterr().err.count("cannot flush") == 1
    assert (run.path / "select" / "a").read_text() == "b"


def test_a_disk_that_fails_while_flushing_is_no_success(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_text(run.path / "x.txt", "x")
    assert hidden(run) == []


def test_a_link_never_leads_a_write_out_of_the_run(run: RunDir, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (run.path / ".tmp-run.json").symlink_to(mine)
    files.write_json(run.ledger_file, {})
    run.events_file.symlink_to(mine)
    changes: tuple[Callable[[], object], ...] = (
        lambda: run.append_event({"kind": "train"}),
        lambda: run.truncate_events(0),
    )
    for change in changes:
        with pytest.raises(InputFileError, match=r"events\.jsonl is a link"):
            change()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").touch()
    for name in (".tmp-select", ".old-select", ".old-gone", ".tmp-file"):
        (run.path / name).symlink_to(folder)
    publish(run, a="b")
    with run.lock():
        pass
    assert (mine.read_text(), [p.name for p in folder.iterdir()]) == ("mine", ["kept"])


def test_a_full_disk_while_publishing_keeps_the_old_folder(run: RunDir) -> None:
    publish(run, a="old")

    def fill() -> None:
        with run.publish("select") as (folder, _):
            (folder / "a").symlink_to("/dev/full")
            (folder / "a").write_text("new")

    with pytest.raises(MachineError, match="what was published before is intact"):
        fill()
    assert (run.stage("select") / "a").read_text() == "old"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_missing_permission_is_one_clear_error(number: int, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no permission to write"), files.disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_system_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), files.disk_errors(tmp_path):
        raise IsADirectoryError(errno.EISDIR, "is a directory")


def test_equal_values_make_equal_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"b": 1, "a": {"d": 2, "c": "ü"}})
    files.write_json(tmp_path / "b", {"a": {"c": "ü", "d": 2}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(tmp_path / "a") == {"a": {"c": "ü", "d": 2}, "b": 1}
    assert files.digest({"b": 1, "a": 2}) == files.digest({"a": 2, "b": 1}) != files.digest({"a": 1, "b": 2})


def test_json_knows_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_unreadable_json_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputFileError, match=r"x\.json cannot be read as JSON"):
        files.read_json(tmp_path / "x.json")


# The lock

HOLDER = """
import sys, time
from pathlib import Path
from edgekd.run.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_learns_who_holds_the_run_and_a_sigkill_frees_it(run: RunDir) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match=rf"in use by process {holder.pid};"), run.lock():
            pytest.fail("the lock was given twice")
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with run.lock():
        assert (run.path / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_freed_by_an_error_and_taken_by_one_at_a_time(run: RunDir) -> None:
    def fail() -> None:
        with run.lock():
            with pytest.raises(RunBusyError, match=f"process {os.getpid()};"), run.lock():
                pytest.fail("the lock was given twice")
            raise KeyError("inside")

    for _ in range(2):
        with pytest.raises(KeyError, match="inside"):
            fail()


def test_a_link_in_the_place_of_the_lock_is_not_written_to(run: RunDir, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (run.path / ".lock").symlink_to(mine)
    with pytest.raises(InputFileError, match=r"\.lock is a link or a special file"), run.lock():
        pytest.fail("the lock was given")
    assert mine.read_text() == "mine"


def test_without_locks_the_run_goes_on_with_a_warning(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run.lock():
        publish(run, a="b")
    assert "has no locks (No locks available)" in capsys.readouterr().err
    assert (run.path / "select" / "a").is_file()


def test_the_lock_makes_the_folder(tmp_path: Path) -> None:
    with RunDir(tmp_path / "deep" / "run").lock():
        assert (tmp_path / "deep" / "run").is_dir()


# Events


def test_events_come_back_in_order_and_by_kind(run: RunDir) -> None:
    assert run.events() == []
    events: list[dict[str, Any]] = [
        {"kind": "train", "step": 1},
        {"kind": "reinit", "step": 1, "reason": "ü"},
        {"kind": "train", "step": 2},
    ]
    for event in events:
        run.append_event(event)
    assert run.events() == events
    assert [event["step"] for event in run.events("train")] == [1, 2]


@pytest.mark.parametrize("torn", ['{"kind": "tr', '{"kind": "train", "step": 9}', "\x00\x00"])
def test_a_torn_last_line_is_ignored(torn: str, run: RunDir) -> None:
    run.append_event({"kind": "train"})
    with run.events_file.open("a") as stream:
        stream.write(torn)
    assert run.events() == [{"kind": "train"}]


def test_a_damaged_line_in_between_is_an_error(run: RunDir) -> None:
    run.events_file.write_text('{"kind": "a"}\ngarbage\n{"kind": "b"}\n')
    with pytest.raises(InputFileError, match="damaged line: 'garbage'"):
        run.events()


def test_truncating_forgets_what_came_after_and_never_grows_the_file(run: RunDir) -> None:
    run.truncate_events(0)
    assert run.events_bytes() == 0
    run.append_event({"step": 1})
    size = run.events_bytes()
    run.append_event({"step": 2})
    assert run.truncate_events(size) is None
    assert run.events() == [{"step": 1}]
    assert run.events_bytes() == size
    assert "is shorter than" in (run.truncate_events(10**6) or "")
    assert run.events_bytes() == 0
    assert (run.path / "events.jsonl.damaged").stat().st_size == size


def test_what_was_logged_after_the_checkpoint_may_be_damaged(run: RunDir) -> None:
    run.append_event({"step": 1})
    size = run.events_bytes()
    with run.events_file.open("ab") as stream:
        stream.write(bytes(100) + b"\n")  # what a power cut may leave
    assert run.truncate_events(size) is None
    assert run.events() == [{"step": 1}]


# The ledger


def test_the_ledger_collects_files_commands_and_differences(run: RunDir) -> None:
    assert run.ledger() == LedgerCard.blank()
    run.note_file(Path("teacher.pt"), "abc")
    run.note_difference(4, {"threads": [1, 2]})
    for command in (["edgekd", "distill"], ["edgekd", "distill"], ["edgekd", "export"], ["edgekd", "distill"]):
        run.note_command(command, threads=2)
    ledger = run.ledger()
    assert ledger.files_read == {"teacher.pt": "abc"}
    assert ledger.commands == [["edgekd", "distill"], ["edgekd", "export"], ["edgekd", "distill"]]
    assert ledger.not_bit_identical == [EnvironmentDifference(step=4, changed={"threads": [1, 2]})]
    assert ledger.data_free is True
    assert ledger.threads == 2
    assert {"edgekd", "python", "torch", "onnx", "onnxruntime", "numpy"} <= set(ledger.versions)
    assert json.loads(run.ledger_file.read_text()) == ledger.to_json()


def test_an_error_of_a_descriptor_names_the_path(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        files.write_text(run.path / "x.txt", "x")
    assert caught.value.filename == str(run.path / "x.txt")


def test_publishing_takes_no_name_from_a_file_of_the_user(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    folder = publish(run, a="one")
    (folder / "b").write_text("mine")
    (folder / "c").mkdir()
    (folder / "c" / "d").write_text("mine, too")
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    publish(run, a="two", b="ours", c="ours")
    assert (folder / "a").read_text() == "two"
    assert (folder / "b").read_text() == (folder / "c").read_text() == "ours"
    assert (folder / "b.yours1").read_text() == "mine"
    assert (folder / "c.yours1" / "d").read_text() == "mine, too"
    assert (folder / "pipe").is_fifo()
    assert (folder / "empty").is_dir()
    assert "yours is now" in capsys.readouterr().err
    publish(run, a="three", b="ours")
    assert (folder / "b.yours1").read_text() == "mine"


def test_without_hard_links_a_file_of_the_user_is_copied(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    folder = publish(run, a="one")
    (folder / "mine").write_text("mine")
    (folder / "link").symlink_to("nowhere")
    monkeypatch.setattr(os, "link", refuse)
    publish(run, a="two")
    assert (folder / "mine").read_text() == "mine"
    assert (folder / "link").is_symlink()


def test_a_name_that_is_no_utf_8_is_refused_before_anything_is_written(run: RunDir) -> None:
    with pytest.raises(UsageError, match=r"^a\\udcff is not UTF-8, which run.json is written in"):
        run.note_command(["edgekd", "distill", "--run", "a\udcff", "--steps", "3"])
    assert list(run.path.iterdir()) == []


DEEP = "[" * 5000 + "]" * 5000
DAMAGED_JSON = [DEEP, f'{{"a": {DEEP}}}', "[" * 80 + "]" * 80, "9" * 5000, "{", "\udc80"]


@pytest.mark.parametrize("text", DAMAGED_JSON, ids=range(len(DAMAGED_JSON)))
def test_json_out_of_all_reason_is_an_input_file_error(text: str, run: RunDir) -> None:
    raw = text.encode(errors="surrogateescape")
    run.path.mkdir(exist_ok=True)
    (run.path / "x.json").write_bytes(raw)
    run.events_file.write_bytes(raw + b"\n")
    (run.path / "record.json").write_bytes(raw)
    with pytest.raises(InputFileError):
        read_json(run.path / "x.json")
    with pytest.raises(InputFileError):
        run.events()
    assert Record.read(run.path) is None
    assert not is_run(run.path)


@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "events.jsonl", "select/record.json"])
def test_a_device_in_place_of_a_file_is_not_read_without_end(name: str, run: RunDir) -> None:
    publish(run, a="one")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to("/dev/zero")
    assert not is_run(run.path)
    assert run.events() == []
    assert (Record.read(run.stage("select")) is None) == (name == "select/record.json")
    with pytest.raises(InputFileError, match="not a regular file"):
        read_json(run.path / name)


@pytest.mark.parametrize("record", [None, "{"])
@pytest.mark.parametrize("name", ["export/trt.engine", "report/notes.md", "bench/local/notes.md", "teacher/sub/a.json"])
def test_publishing_where_no_record_tells_keeps_what_is_not_named_like_outputs(
    name: str, record: str | None, run: RunDir
) -> None:
    stage = "bench/local" if name.startswith("bench") else name.split("/")[0]
    (run.path / name).parent.mkdir(parents=True)
    (run.path / name).write_text("mine")
    (run.stage(stage) / "report.json").write_text("old")
    if record is not None:
        (run.stage(stage) / "record.json").write_text(record)
    publish(run, stage, a="new")
    assert (run.path / name).read_text() == "mine"
    assert (run.stage(stage) / "report.json").exists() == (stage != "report")


def test_where_the_new_folder_cannot_be_put_in_place_the_old_one_comes_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = publish(run, a="old"), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == ".tmp-select":
            raise PermissionError(errno.EACCES, "a reader holds it", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(MachineError, match="a reader holds it"):
        publish(run, a="new")
    assert (folder / "a").read_text() == "old"
    assert sorted(path.name for path in run.path.iterdir()) == ["select"]


def test_a_file_of_the_user_is_copied_where_modes_and_times_cannot_be(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not on exFAT")

    folder = publish(run, a="one")
    (folder / "mine").write_text("mine")
    for call in ("link", "utime", "chmod"):
        monkeypatch.setattr(os, call, refuse)
    publish(run, a="two")
    assert (folder / "mine").read_text() == "mine"


@pytest.mark.parametrize("fate", ["removed", "moved", "replaced"])
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_run_that_goes_away_is_not_begun_again(fate: str, when: str, run: RunDir) -> None:
    def go() -> None:
        if fate == "removed":
            shutil.rmtree(run.path)
        else:
            run.path.rename(run.path.with_name("archive"))
        if fate == "replaced":
            shutil.copytree(run.path.with_name("archive"), run.path, ignore=shutil.ignore_patterns("select", ".tmp-*"))

    def work() -> None:
        if when == "before":
            go()
        with run.publish("select") as (folder, record):
            (folder / "a").write_text("new")
            record |= FIELDS
            record["notes"] = {}
            if when == "within":
                go()

    run.note_command(["edgekd"])
    with run.lock(), pytest.raises(MachineError, match="was moved away or removed"):
        work()
    assert not run.stage("select").exists()
    assert run.path.exists() == (fate == "replaced")


def test_what_is_replaced_and_cannot_be_deleted_is_told_and_in_nobodys_way(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of another user who shares the run."""
    rmtree = shutil.rmtree

    def refuse(path: Path, *_: object, **options: Any) -> None:
        if Path(path).name == ".old-select":
            raise PermissionError(errno.EACCES, "Permission denied", "a")
        rmtree(path, **options)

    publish(run, a="old")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    folder = publish(run, a="new")
    assert (folder / "a").read_text() == "new"
    assert ".old-select is of no use any more and cannot be deleted (Permission denied)" in capsys.readouterr().err
    with run.lock():
        publish(run, "export", b="x")
    assert ".old-select is of no use any more" in capsys.readouterr().err
    with pytest.raises(MachineError, match=r"a below .*\.old-select \(Permission denied\)"):
        publish(run, a="newer")
    assert (folder / "a").read_text() == "new"


def test_a_folder_that_the_user_closed_is_opened_before_it_is_deleted(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def as_a_user_would_hear(path: Path, *_: object, **options: Any) -> None:
        there = [place for place in (Path(path), *Path(path).rglob("*")) if place.exists()]
        if any(stat.S_IMODE(place.stat().st_mode) == 0o555 for place in there):
            raise PermissionError(errno.EACCES, "Permission denied", "a")
        rmtree(path, **options)

    folder = publish(run, a="old")
    (folder / "sub").mkdir()
    for closed in (folder / "sub", folder):
        closed.chmod(0o555)
    monkeypatch.setattr(shutil, "rmtree", as_a_user_would_hear)
    publish(run, a="new")
    assert sorted(path.name for path in run.path.iterdir()) == ["select"]


def test_a_ledger_that_may_not_be_read_is_no_damaged_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.note_command(["edgekd"])
    open_ = os.open

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if str(path) == str(run.ledger_file):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*run.json"):
        refuse_foreign(run.path)
