"""A trained generator as a source of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.rng import KeyedDraws


@dataclass(frozen=True)
class GeneratedImages:
    """Images G(z) of a generator that learns no more."""

    generator: nn.Module
    latent: int

    @torch.no_grad()
    def batch(self, draws: KeyedDraws, purpose: str, index: int, size: int) -> Tensor:
        """Return G(z) for codes drawn for this batch alone."""
        images: Tensor = self.generator(draws.normal(index, purpose, size, self.latent))
        return images
