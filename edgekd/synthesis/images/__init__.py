"""Sources of images: a trained generator, procedural ones, and pictures that the user has and may use."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from edgekd.rng import KeyedDraws


class ImageSource(Protocol):
    """Whatever makes images in the teacher's normalised input space."""

    def batch(self, draws: KeyedDraws, purpose: str, index: int, size: int) -> Tensor:
        """Return batch number `index` of a purpose, (size, C, H, W) in float32."""
        ...
