"""Reading files that anybody may have put in their place: a device or a pipe would be read without end, or never."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, Iterable, TypeVar  # noqa: UP035 - a device may have Python 3.8

_T = TypeVar("_T")

LARGEST_BYTES = 2**28
"""Nothing that is read whole is longer: JSON, TOML, names."""
DEEPEST = 64
"""Levels of lists and tables within one another that anybody needs."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, through links too; raise OSError for anything else, without waiting for it."""
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
    """Read a regular file as UTF-8; raise OSError as `read_bytes` does, and UnicodeDecodeError."""
    return read_bytes(path, limit=limit).decode("utf-8")


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text; raise ValueError for anything that is none, or is nested out of all reason."""
    try:
        return shallow(json.loads(data))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shallow(value: _T) -> _T:
    """Return a value of plain lists and dicts; raise ValueError where it is nested so deeply that writing it fails."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [part for item in level for part in _parts(item) if isinstance(part, (dict, list))]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _parts(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
