"""The slow copy of the generator replays what the generator has moved away from (MAD, arXiv 2209.10359)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.machine import Precision
from edgekd.rng import KeyedDraws
from edgekd.synthesis.replay.base import Replay, module_bytes

if TYPE_CHECKING:
    from edgekd.synthesis.state import State
    from edgekd.synthesis.steps import StepContext


class EmaGeneratorReplay(Replay):
    """The slow copy of the generator, which the algorithm keeps anyway."""

    ready = True

    @classmethod
    def build(cls, context: StepContext, state: State) -> EmaGeneratorReplay:
        """Replay from the average that the state keeps."""
        return cls(state.generator_ema, context.recipe.method.generator.latent, state.generator_autocast)

    def __init__(self, generator_ema: nn.Module, latent: int, precision: Precision) -> None:
        self.generator_ema, self.latent, self.precision = generator_ema, latent, precision

    @torch.no_grad()
    def sample(self, step: int, count: int, draws: KeyedDraws) -> Tensor:
        """Return images of the slow copy."""
        with self.precision():
            images: Tensor = self.generator_ema(draws.normal(step, "replay", count, self.latent))
        return images

    def size_bytes(self) -> int:
        """Return the bytes of the slow copy's weights."""
        return module_bytes(self.generator_ema)
