"""One process at a time holds a lock, whatever happens to the file and its folder meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from edgekd import locking


def test_the_lock_is_made_with_its_folder_and_signed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    descriptor, unlocked = locking.take(path)
    assert (unlocked, path.read_text()) == (None, str(os.getpid()))
    with pytest.raises(locking.HeldError) as held:
        locking.take(path)
    assert held.value.pid == str(os.getpid())
    os.close(descriptor)
    os.close(locking.take(path)[0])


@pytest.mark.parametrize("again", [True, False])
def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes his folder and another begins in its place, between this process's open and its flock."""
    path = tmp_path / "run" / "lock"
    flock, others = fcntl.flock, []

    def race(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.rmtree(path.parent)
        if again:
            others.append(locking.take(path)[0])
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", race)
    if again:
        with pytest.raises(locking.HeldError):
            locking.take(path)
        os.close(others[0])
    else:
        descriptor, _ = locking.take(path)
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        os.close(descriptor)


def test_where_files_are_gone_as_soon_as_they_are_made_there_is_an_end(tmp_path: Path) -> None:
    """A folder of /proc lets nobody make a file, and says of it that it is not there."""
    folder = Path("/proc/self/task")
    with pytest.raises(OSError, match=r"No such file|gone again"):
        locking.take(folder / ".lock")


def test_a_file_that_is_another_in_its_place_each_time_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems number a file anew whenever it is looked at."""
    monkeypatch.setattr(locking, "in_place", lambda *_: False)
    with pytest.raises(OSError, match="gone again as soon as it is made"):
        locking.take(tmp_path / ".lock")


def test_a_link_a_pipe_and_a_folder_are_no_locks_and_stay_as_they_are(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        with pytest.raises(locking.NotALockError):
            locking.take(tmp_path / name)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("code", locking.NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_says_why(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    descriptor, unlocked = locking.take(tmp_path / "lock")
    os.close(descriptor)
    assert unlocked == os.strerror(code)


def test_another_failure_of_flock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="Input/output error"):
        locking.take(tmp_path / "lock")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_full_disk_does_not_keep_anybody_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    descriptor, unlocked = locking.take(tmp_path / "lock")
    os.close(descriptor)
    assert unlocked is None


def test_a_lock_with_a_second_name_is_left_to_that_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "lock").hardlink_to(mine)
    descriptor, _ = locking.take(tmp_path / "lock")
    os.close(descriptor)
    assert (mine.read_text(), (tmp_path / "lock").read_text()) == ("mine", str(os.getpid()))
    other = os.open(mine, os.O_RDWR)
    (tmp_path / "held").hardlink_to(mine)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(locking.HeldError):
        locking.take(tmp_path / "held")
    os.close(other)
    assert mine.read_text() == "mine"


def test_no_folder_is_left_where_no_lock_could_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        locking.take(tmp_path / "runs" / "one" / "lock")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_no_begun_folder_is_left_where_the_lock_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        locking.take(tmp_path / "runs" / "one" / "lock")
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_says_when_a_lock_is_given_back_is_of_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and Lustre tell at close that there was no room for the number of the process."""
    descriptor, _ = locking.take(tmp_path / ".lock")
    close = os.close

    def full(number: int) -> None:
        close(number)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", full)
    locking.release(descriptor)
    monkeypatch.undo()
    locking.release(locking.take(tmp_path / ".lock")[0])


def test_a_lock_that_another_user_made_is_locked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ".lock"
    place.write_text("123")
    open_ = os.open

    def others(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_(path, flags, *mode)

    monkeypatch.setattr(os, "open", others)
    descriptor, unlocked = locking.take(place)
    assert unlocked is None
    with pytest.raises(locking.HeldError, match="123"):
        locking.take(place)
    locking.release(descriptor)
    assert place.read_text() == "123"
    place.unlink()
    with pytest.raises(PermissionError, match="Permission denied"):
        locking.take(place)
