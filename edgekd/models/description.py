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
    output_transform: str
    batchnorm: bool

    @property
    def pixels(self) -> int:
        """Height times width."""
        return math.prod(self.input_shape[1:])
