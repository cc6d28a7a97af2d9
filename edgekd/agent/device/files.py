"""Reading files that anybody may have put in their place: a device or a pipe would be read without end, or never."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Iterator  # noqa: UP035 - a device may have Python 3.8

LARGEST_BYTES = 2**28
"""Nothing that is read whole is longer: JSON, TOML, names."""


def real(path: Path) -> Path:
    """Return a path without links; where they lead in a circle `Path.resolve` would raise RuntimeError."""
    return Path(os.path.realpath(str(path)))


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading, through links too, without waiting for it.

    Raises OSError for anything else, and what goes wrong while it is read names it as well.
    """
    try:
        with _opened(path) as stream:
            yield stream
    except OSError as error:
        if error.filename is None:  # of a descriptor
            error.filename = str(path)
        raise


def _opened(path: Path) -> BufferedReader:
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, *, limit: int = LARGEST_BYTES) -> bytes:
    """Read a regular file whole; raise OSError for anything else, and for one longer than `limit` bytes."""
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, "it is longer than {:,} bytes".format(limit), str(path))  # noqa: UP032
    return data


def read_text(path: Path, *, limit: int = LARGEST_BYTES) -> str:
    """Read a regular file as UTF-8; raise OSError as `read_bytes` does, and for what is in another encoding.

    Windows begins a text with a mark of its encoding, which is not part of it, and may write UTF-16.
    """
    data = read_bytes(path, limit=limit)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, encoding = data.count(b"\n", 0, error.start) + 1, "UTF-16" if wide else "UTF-8"
        reason = f"line {line} is not in {encoding}; save it as UTF-8"
        raise OSError(errno.EILSEQ, reason, str(path)) from error
