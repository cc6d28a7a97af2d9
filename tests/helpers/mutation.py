"""Damage as a bad disk or a bad intention does it, one place at a time."""

from __future__ import annotations

import random


def damage(data: bytearray, at: int, chance: random.Random) -> None:
    """Flip a bit at a place, replace the byte, delete some from there on, or insert some."""
    how = chance.randrange(4)
    if how == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif how == 1:
        data[at] = chance.randrange(256)
    elif how == 2:
        del data[at : at + chance.randrange(1, 20)]
    else:
        data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
