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
    """Return the names of timm's models that have weights of these shapes; the last matrix is taken for the classifier."""
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    found = _models().get(digest(shapes, matrices[-1].rpartition(".")[0])) if matrices else None
    return tuple(found or ())


def digest(shapes: Shapes, classifier: str) -> str:
    """Return what tells networks of other shapes apart: neither names, order, classes nor channels of images count."""
    stem = next((name for name, shape in shapes.items() if len(shape) == 4), None)
    kept = (
        (shape[0], 0, *shape[2:]) if name == stem else tuple(shape)
        for name, shape in shapes.items()
        if name.rpartition(".")[0] != classifier
    )
    counted = sorted(Counter(kept).items())
    return hashlib.sha256(repr(counted).encode()).hexdigest()[:16]


@cache
def _models() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(files("edgekd.ingestion").joinpath(FILE).read_text(encoding="utf-8"))
    return found
