"""A lock file held by flock: the kernel frees it when its process dies, however it dies. Travels to devices."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import List, Optional, Tuple  # noqa: UP035 - a device may have Python 3.8

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without flock answer (Lustre, some NFS and FUSE mounts)."""
_ROUNDS = 100
"""Others may remove the folder so many times before it is said that no file can be made there."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class HeldError(Exception):
    """Another living process holds the lock; `pid` is its number, or `unknown`."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class NotALockError(Exception):
    """What lies in the lock's place is a link or another thing that no lock may be written to."""


def take(path: Path) -> Tuple[int, Optional[str]]:  # noqa: UP006, UP045
    """Lock a file, made with its folder if need be; return its descriptor, which holds the lock until it is closed.

    The second value says why nothing is locked where the file system cannot lock. Raises HeldError, NotALockError
    and OSError. Who was refused may remove the folder that he had made, so a file that is no longer in its place
    when it is locked was somebody else's, and the next one is taken.
    """
    for _ in range(_ROUNDS):
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _opened(path)
        except FileNotFoundError as error:  # its folder was removed just now
            refusal = error
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise NotALockError(str(path)) from None
            _undo(path, missing)
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotALockError(str(path))
            unlocked = _lock(descriptor)
            if in_place(descriptor, path):
                if os.fstat(descriptor).st_nlink == 1:
                    _sign(descriptor)
                    return descriptor, unlocked
                path.unlink()  # a hard link: what it holds belongs to another name, too
        except BaseException as error:
            release(descriptor)
            if not isinstance(error, HeldError):
                _undo(path, missing)
            raise
        release(descriptor)
        refusal = FileNotFoundError(errno.ENOENT, "it is gone again as soon as it is made", str(path))
    raise refusal


def release(descriptor: int) -> None:
    """Give a lock back; that the disk had no room for its few bytes is told when a file is closed, and of no weight."""
    with suppress(OSError):
        os.close(descriptor)


def _opened(path: Path) -> int:
    """Open a lock file; one that another user has made can be locked all the same, though not signed."""
    try:
        return os.open(str(path), _FLAGS, 0o644)
    except PermissionError as error:
        try:
            return os.open(str(path), _FLAGS & ~(os.O_RDWR | os.O_CREAT))
        except OSError:
            raise error from None


def _undo(path: Path, made: List[Path]) -> None:  # noqa: UP006
    """Remove a lock file with the folders that were made for it; where none was, somebody had begun there before."""
    with suppress(OSError):  # somebody else put something there
        if made:
            path.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


def _lock(descriptor: int) -> Optional[str]:  # noqa: UP045
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HeldError(os.read(descriptor, 32).decode(errors="replace").strip() or "unknown") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return error.strerror
    return None


def in_place(descriptor: int, path: Path) -> bool:
    """Return whether a lock file that is open still is the one in its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(str(path)))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Leave this process's number for whoever finds the lock held; on a full disk the lock holds without it."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
