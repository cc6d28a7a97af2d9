"""Which of timm's models have weights of such shapes, whatever their names: looked up, without building one.

The file beside this one is written by docs/studies/teachers/timm_shapes.py for one version of timm. Models that a later
one has gained are not found by it; one that it has changed is found, and then compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from edgekd.models.shapes import Shapes

FILE = "timm_shapes.json"
_MODULUS = 2**64


def is_complete() -> bool:
    """Return whether the index holds every model of the timm that is installed."""
    return bool(importlib.metadata.version("timm") == _index()["timm"])


def models_like(shapes: Shapes) -> tuple[str, ...]:
    """Return the names of timm's models with weights of these shapes, whatever their classes and channels of images."""
    convolutions = [name for name, shape in shapes.items() if len(shape) == 4]
    if convolutions and not any(shapes[name][1] == 3 for name in convolutions):
        first = convolutions[0]
        shapes = {**shapes, first: (shapes[first][0], 3, *shapes[first][2:])}
    layers: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in reversed(list(shapes.items())):
        layers.setdefault(name.rpartition(".")[0], []).append(shape)
    sums = [digest(held) for held in layers.values() if any(len(shape) >= 2 for shape in held)]
    # The classifier comes last, unless names are sorted; distilled transformers have two.
    whole, models = digest(shapes.values()), _index()["models"]
    without = (f"{(whole - left) % _MODULUS:016x}" for left in (*sums, sum(sums[:2])))
    return next((tuple(models[rest]) for rest in without if rest in models), ())


def digest(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return a sum that tells shapes apart, in no order; what is left out is subtracted."""
    return sum(map(_number, shapes)) % _MODULUS


@lru_cache(maxsize=2**16)
def _number(shape: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(tuple(shape)).encode()).digest()[:8], "big")


@cache
def _index() -> Any:
    return json.loads(files("edgekd.ingestion").joinpath(FILE).read_text(encoding="utf-8"))
