"""Files that survive a SIGKILL at any instant: written beside their place, flushed, put there by one rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from edgekd import console
from edgekd.agent.device.files import read_bytes
from edgekd.errors import InputFileError, MachineError, UsageError
from edgekd.run.failpoints import failpoint
from edgekd.schema import parse_json
from edgekd.text import visible


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    # Names that are no UTF-8 have a hash, too; whoever writes them to a file is told.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()


def require_image_folder(path: Path, *, by_class: bool) -> None:
    """Raise InputFileError unless a folder of images is a folder: one subfolder per class, or no labels."""
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputFileError(f"{path} cannot be read ({error.strerror}).") from error
    if not is_folder:
        raise InputFileError(f"{path} is not a folder of images{' with one subfolder per class' if by_class else ''}.")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear `MachineError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            what = "a limit on the size of files is reached" if error.errno == errno.EFBIG else "the disk is full"
            raise MachineError(
                f"{what} ({error.strerror}): could not write {path}. Free some space and give the same command again; "
                "what was published before is intact."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise MachineError(
                f"no permission to write {error.filename or path} ({error.strerror}); mend that, or work in another "
                "folder with --run."
            ) from error
        if error.errno == errno.EXDEV:
            raise MachineError(
                f"{path} cannot be replaced: it belongs to a lower layer of an overlay file system (a container's "
                "image). Copy the run to a folder outside of it and go on there with --run."
            ) from error
        if error.filename is None:  # of a descriptor: the message names the path all the same
            error.filename = str(path)
        raise


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk; some network file systems cannot flush folders and say EINVAL."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _warn_of_power_cuts()
    finally:
        os.close(descriptor)


@cache
def _warn_of_power_cuts() -> None:
    console.warn("this file system cannot flush a folder to disk: after a power cut the newest files may be missing.")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and durably: temporary sibling, fsync, rename, fsync of the folder.

    Raises `UsageError` for text that UTF-8 has no bytes for: Linux takes any bytes for a name.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.end].rpartition("\n")[2].strip(' "') + text[error.end :].partition("\n")[0].rstrip(' ",')
        raise UsageError(f"{visible(line)} is not UTF-8, which {path.name} is written in; give another name.") from None
    temporary = path.with_name(f".tmp-{path.name}")
    with disk_errors(path):
        try:
            remove(temporary)  # a link that lies there must not lead the text elsewhere
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint(f"write.{path.name}")
            os.replace(temporary, path)  # noqa: PTH105 - the one atomic replace, spelled as the system call
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Return JSON as it stands in a run's files."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; a damaged one is an `InputFileError` that names it."""
    try:
        return parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path} cannot be read as JSON ({error}).") from error


def remove(path: Path) -> None:
    """Delete a file, a folder with what it holds, or a link (never what it leads to).

    Folders that this user has closed for writing are opened first: files are protected so, not their deletion.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        try:
            shutil.rmtree(path)
        except PermissionError:
            for folder, _, _ in os.walk(path):
                Path(folder).chmod(0o700)
            shutil.rmtree(path)
    except OSError as error:
        if error.filename and os.sep not in str(error.filename):  # the entry's name alone, of which there are many
            error.filename = f"{error.filename} below {path}"
        raise


def discard(path: Path) -> None:
    """Delete what nobody needs any more; where that fails the user is told, and the work goes on."""
    try:
        remove(path)
    except OSError as error:
        console.warn(f"{path} is of no use any more and cannot be deleted ({error.strerror}); delete it.")
