"""What is known of a teacher besides its weights, as every stage needs it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekd.models.stems import Shape


@dataclass(frozen=True)
class Description:
    """What is known of a teacher besides its weights, and every stage needs."""

    arch: str
    input_shape: Shape
    classes: int
    head: str
    undo: str
    batchnorm: bool

    @property
    def pixels(self) -> int:
        """Height times width."""
        return math.prod(self.input_shape[1:])


@dataclass(frozen=True)
class Pixels:
    """How real pixels in [0, 1] become the teacher's input; unknown when mean or std is None."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None
