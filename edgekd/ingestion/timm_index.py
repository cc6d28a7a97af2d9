"""Which of timm's models have weights of such shapes, whatever their names: looked up, without building one.

The file beside this one is written by docs/studies/teachers/timm_shapes.py for one version of timm. Models that a later
one has gained are not found by it; one that it has changed is found, and then compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
from collections import Counter
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

from edgekd.models.shapes import Shapes

FILE = "timm_shapes.json"


def is_complete() -> bool:
    """Return whether the index holds every model of the timm that is installed."""
    return bool(importlib.metadata.version("timm") == _index()["timm"])


def models_like(shapes: Shapes) -> tuple[str, ...]:
    """Return the names of timm's models with weights of these shapes, whatever their classes and channels of images."""
    convolutions = [name for name, shape in shapes.items() if len(shape) == 4]
    if convolutions and not any(shapes[name][1] == 3 for name in convolutions):
        first = convolutions[0]
        shapes = {**shapes, first: (shapes[first][0], 3, *shapes[first][2:])}
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    # The classifier comes last, unless names are sorted; distilled transformers have two.
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in reversed(matrices)))
    tried = ((layer,) for layer in layers), (tuple(layers[:2]),)
    models = _index()["models"]
    return next((tuple(found) for one in itertools.chain(*tried) if (found := models.get(digest(shapes, one)))), ())


def digest(shapes: Shapes, classifier: Collection[str]) -> str:
    """Return what tells networks of other shapes apart: all shapes but those of the classifier, in no order."""
    kept = Counter(tuple(shape) for name, shape in shapes.items() if name.rpartition(".")[0] not in classifier)
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:16]


@cache
def _index() -> Any:
    return json.loads(files("edgekd.ingestion").joinpath(FILE).read_text(encoding="utf-8"))
