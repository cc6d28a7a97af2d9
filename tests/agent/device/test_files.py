"""Only regular files are read, and only as much of them as is meant to be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd import schema
from edgekd.agent.device import files


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_an_error_at_once(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match="not a regular file") as caught:
        files.read_bytes(tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_a_file_is_read_through_a_link_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("größe")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert files.read_text(tmp_path / "y", limit=7) == "größe"
    with pytest.raises(OSError, match="longer than 6 bytes"):
        files.read_bytes(tmp_path / "y", limit=6)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_may_begin_with_the_mark_that_windows_puts_there(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("größe\r\n".encode(encoding))
    assert files.read_text(tmp_path / "x") == "größe\r\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("# plain\nname = 'größe'".encode("latin-1"), "line 2 is not in UTF-8; save it as UTF-8"),
        ("größe".encode("utf-16")[:-1], "line 1 is not in UTF-16; save it as UTF-8"),
    ],
)
def test_a_text_in_another_encoding_says_where_and_what_helps(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(OSError, match=words) as caught:
        files.read_text(tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_json_is_as_deep_as_anybody_needs() -> None:
    deepest = "[" * schema.MAX_DEPTH + "]" * schema.MAX_DEPTH
    assert schema.parse_json(deepest) == schema.require_shallow(schema.parse_json(deepest.encode()))
    for text in (f"[{deepest}]", "[" * 10**5, "9" * 5000, "{"):
        with pytest.raises(ValueError, match=r"."):
            schema.parse_json(text)


def test_what_goes_wrong_while_a_file_is_read_names_it(tmp_path: Path) -> None:
    """A bad sector, or a mount that has gone: of a descriptor the system names no path."""
    (tmp_path / "x").write_text("x")
    with pytest.raises(OSError, match="Input/output error") as caught, files.open_regular(tmp_path / "x"):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.filename == str(tmp_path / "x")
