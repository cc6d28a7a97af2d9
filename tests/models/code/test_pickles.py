"""What a pickle names is what the unpickler would use, whatever a hostile file does to hide it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from edgekd.models.code import pickles


def named(tmp_path: Path, content: bytes) -> list[str]:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    return pickles.code_named(path, zipped=False)


def test_layers_of_torch_come_last(tmp_path: Path) -> None:
    layers = b"".join(b"ctorch.nn.modules.a\nLayer%02d\n0" % index for index in range(30))
    found = named(tmp_path, b"\x80\x02" + layers + b"cposix\nsystem\n.")
    assert found[0] == "posix.system"
    assert len(found) == 31


POSIX, SYSTEM, TORCH, SIZE = b"\x8c\x05posix", b"\x8c\x06system", b"\x8c\x05torch", b"\x8c\x04Size"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (POSIX + SYSTEM + b"\x93.", "posix.system"),
        (POSIX + SYSTEM + TORCH + SIZE + b"00\x93.", "posix.system"),
        (POSIX + SYSTEM + b"(" + TORCH + SIZE + b"1\x93.", "posix.system"),
        (POSIX + b"\x940" + TORCH + b"0h\x00" + SYSTEM + b"\x93.", "posix.system"),
        (POSIX + b"q\x070h\x07" + SYSTEM + b"\x93.", "posix.system"),
        (SYSTEM + b"0" + POSIX + b"2X\x06\x00\x00\x00system\x93.", "posix.system"),
        (b"(" + TORCH + SIZE + b"t" + SYSTEM + b"\x93.", "code that cannot be named"),
        (b"\x93.", "code that cannot be named"),
        (b"c__builtin__\neval\n.", "builtins.eval"),
    ],
)
def test_names_are_taken_from_the_stack_as_the_unpickler_takes_them(
    program: bytes, expected: str, tmp_path: Path
) -> None:
    assert named(tmp_path, b"\x80\x04" + program) == [expected]


def test_plain_values_name_nothing(tmp_path: Path) -> None:
    values = {"a": 1, "b": [np.float32(2), np.arange(3)], "c": Path("data"), "d": {1, 2}}
    assert named(tmp_path, pickle.dumps(values, protocol=2)) == []


def test_numbers_come_back_and_nothing_else_is_made() -> None:
    def scalar(code: str, data: bytes) -> object:
        by_name = {name: made for made, name in (one for one in pickles.stand_ins() if isinstance(one, tuple))}
        return by_name["numpy._core.multiarray.scalar"](by_name["numpy.dtype"](code, False, True), data)

    assert scalar("f8", np.float64(0.5).tobytes()) == 0.5
    assert scalar("b1", b"\x01") is np.True_
    assert scalar("O8", b"A" * 8) is None
    assert scalar("U3", b"A" * 12) is None
    for wrong in (b"", b"A" * 4, b"A" * 16):
        with pytest.raises(ValueError, match=r"."):
            scalar("f8", wrong)
