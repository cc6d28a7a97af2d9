"""What a model is fed: seeded noise that is the same on every machine, in the shape the model takes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.agent.device.machine import ram
from edgekd.agent.refusal import RefusedError

_PIECE_BYTES = 2**20
"""A multiple of the four bytes that the generator draws at a time, so that pieces are the whole."""


def input_shape(path: Path, declared: Sequence[Any] | None, batch: int, image: Sequence[int] | None) -> tuple[int, ...]:
    """Return the declared shape with its open dimensions filled: the batch first, then those of `image`."""
    if not declared:
        raise RefusedError("usage", f"the input of {path.name} is a single number; it must have a batch")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in declared]
    if sizes[0] not in (None, batch):
        message = f"{path.name} was exported with a fixed batch of {sizes[0]}; batch {batch} cannot be measured"
        raise RefusedError("usage", f"{message}, give --batch {sizes[0]}")
    given = None if image is None else list(image)
    rest = given if given is not None and len(given) == len(sizes) - 1 else sizes[1:]
    clash = any(isinstance(want, int) and want != have for want, have in zip(sizes[1:], rest))  # noqa: B905
    if clash or (given is not None and rest is not given):
        raise RefusedError("usage", f"the input of {path.name} is {sizes}; {given} does not fit it")
    fixed_sides = [size for size in rest if isinstance(size, int)]
    if len(fixed_sides) < len(rest):
        message = f"the input of {path.name} is {sizes}; give the size of an image, for example 3x224x224"
        raise RefusedError("usage", message)
    return (batch, *fixed_sides)


def random_bytes(seed: int, length: int) -> bytes:
    """Return seeded bytes; drawn in pieces, since Python draws no more than 256 MiB as one number.

    Raises MemoryError for more than this machine holds: a file may name any size, and drawing it would have no end.
    """
    free = ram()[1]
    if free is not None and 2 * length > free:  # the pieces, and the whole that is made of them
        raise MemoryError(f"an input is drawn from {length:,} bytes, {free:,} are free; is its size meant?")
    draw, pieces = random.Random(seed), range(0, length, _PIECE_BYTES)
    sizes = (min(_PIECE_BYTES, length - first) for first in pieces)
    return b"".join(draw.getrandbits(8 * size).to_bytes(size, "little") for size in sizes)


def noise(numpy: Any, shape: Sequence[int], dtype: str, seed: int) -> Any:
    """Return noise that is the same on every machine: bytes, or for floats sums of four, mean 0, variance 1."""
    count = math.prod(shape)
    summands = 1 if dtype == "uint8" else 4
    drawn = random_bytes(seed, count * summands)
    values = numpy.frombuffer(drawn, dtype=numpy.uint8).reshape(summands, *shape)
    if dtype == "uint8":
        return values[0].copy()
    spread = math.sqrt(4 * (256**2 - 1) / 12)
    return ((values.sum(axis=0, dtype=numpy.float32) - 510) / spread).astype(dtype)
