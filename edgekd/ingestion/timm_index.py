"""Which of timm's models have weights of such shapes, whatever their names: looked up, without building one.

The file beside this one is written by docs/studies/teachers/timm_shapes.py. A model that timm has gained since is not
found by it; one that timm has changed is found, and then compared.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from importlib.resources import files

from edgekd.models.shapes import Shapes

FILE = "timm_shapes.json"


def models_like(shapes: Shapes) -> tuple[str, ...]:
    """Return the names of timm's models with weights of these shapes, whatever their classes and channels of images."""
    convolutions = [name for name, shape in shapes.items() if len(shape) == 4]
    if convolutions and not any(shapes[name][1] == 3 for name in convolutions):
        first = convolutions[0]
        shapes = {**shapes, first: (shapes[first][0], 3, *shapes[first][2:])}
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    # The classifier comes last, unless names are sorted.
    layers = dict.fromkeys(name.rpartition(".")[0] for name in reversed(matrices))
    return next((tuple(found) for layer in layers if (found := _models().get(digest(shapes, layer)))), ())


def digest(shapes: Shapes, classifier: str) -> str:
    """Return what tells networks of other shapes apart: their shapes but the classifier's, in no order."""
    kept = Counter(tuple(shape) for name, shape in shapes.items() if name.rpartition(".")[0] != classifier)
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:16]


@cache
def _models() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(files("edgekd.ingestion").joinpath(FILE).read_text(encoding="utf-8"))
    return found
