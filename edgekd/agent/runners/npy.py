"""Read .npy files and arrays of logits without numpy: a device with trtexec alone has none."""

from __future__ import annotations

import ast
import base64
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.agent.messages import LogitsArray
from edgekd.agent.refusal import RefusedError

ITEM_BYTES = {"<f4": 4, "<f2": 2, "|u1": 1}
_LETTERS = {"<f2": "e", "<f4": "f", "<f8": "d", "<i4": "i", "<i8": "q"}


def read_npy(path: Path) -> tuple[str, tuple[int, ...], bytes]:
    """Return type, shape and the C-ordered bytes of an .npy file (format versions 1 and 2)."""
    raw = path.read_bytes()
    if raw[:6] != b"\x93NUMPY" or raw[6] not in (1, 2):
        raise RefusedError("file", f"{path} is no .npy file")
    start = 10 if raw[6] == 1 else 12
    (length,) = struct.unpack("<H" if raw[6] == 1 else "<I", raw[8:start])
    header = ast.literal_eval(raw[start : start + length].decode("latin-1"))
    dtype, shape = str(header["descr"]), tuple(int(size) for size in header["shape"])
    data = raw[start + length :]
    count = 1
    for size in shape:
        count *= size
    if header["fortran_order"] or dtype not in ITEM_BYTES or len(data) != count * ITEM_BYTES[dtype]:
        raise RefusedError("file", f"{path} is damaged, or no C-ordered float or uint8 array")
    return dtype, shape, data


def logits_in(array: LogitsArray) -> list[list[float]]:
    """Return the rows of logits, N x K whatever follows the batch."""
    data = base64.b64decode(array.base64, validate=True)
    if array.dtype not in _LETTERS or not array.shape or not data:
        message = f"the first output is {array.dtype} {list(array.shape)}, not a row of numbers for each image"
        raise RefusedError("file", message)
    columns = math.prod(array.shape[1:])
    return [[float(value) for value in row] for row in struct.iter_unpack(f"<{columns}{_LETTERS[array.dtype]}", data)]


def array_of_rows(rows: list[list[float]]) -> LogitsArray:
    """Return float32 rows as they travel."""
    data = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
    return array_of("<f4", [len(rows), len(rows[0])], data)


def array_of(dtype: str, shape: Sequence[int], data: bytes) -> LogitsArray:
    """Return the bytes of a C-ordered array as they travel."""
    return LogitsArray(dtype, tuple(shape), base64.b64encode(data).decode("ascii"))


def full_batches(data: bytes, image_bytes: int, batch: int) -> Iterator[tuple[bytes, int]]:
    """Yield the images of an array in whole batches, each with how many of it count: the last image fills the last."""
    images = [data[first : first + image_bytes] for first in range(0, len(data), image_bytes)]
    for first in range(0, len(images), batch):
        chunk = images[first : first + batch]
        yield b"".join(chunk + [chunk[-1]] * (batch - len(chunk))), len(chunk)
