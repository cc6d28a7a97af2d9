from __future__ import annotations

import os
from pathlib import Path

from edgekd import text


def test_names_are_shortened_and_counted() -> None:
    assert text.listed(["a", "b"]) == "a, b"
    assert text.listed(list("abcde")) == "a, b, c and 2 more"
    assert text.listed(list("abcde"), 5) == "a, b, c, d, e"
    assert text.listed(["x\n" + "y" * 100]) == "x\\n" + "y" * 78


def test_a_name_may_hold_bytes_that_utf_8_does_not_have() -> None:
    assert text.is_utf8("größe")
    assert not text.is_utf8(os.fsdecode(b"gr\xf6\xdfe"))


def test_a_file_is_typed_so_that_it_is_no_flag() -> None:
    typed = [text.path_argument(name) for name in ("-rf.pt", "a b.pt", Path("x.pt"), "~x")]
    assert typed == ["./-rf.pt", "'a b.pt'", "x.pt", "'~x'"]


def test_a_shape_is_written_with_crosses() -> None:
    assert (text.sizes((3, 32, 32)), text.sizes(())) == ("3x32x32", "a single number")


def test_of_an_error_its_first_line_is_told() -> None:
    assert text.first_line(ValueError("\nno such layer.\nStack:")) == "no such layer"
    assert text.first_line(ValueError("  ")) == "ValueError"
    assert text.first_line(ValueError("x" * 300)) == "x" * 200 + "…"
