"""Stored images, as the baseline of the literature has them; they are in its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekd.recipe.method import ReplayTable
from edgekd.rng import KeyedDraws
from edgekd.state_dict import StateDict, number_of, tensor_of
from edgekd.synthesis.replay.base import Replay
from edgekd.synthesis.teacher import TeacherOutputs

if TYPE_CHECKING:
    from edgekd.synthesis.state import State
    from edgekd.synthesis.steps import StepContext


class BankReplay(Replay):
    """Stored images, the oldest overwritten first."""

    waits_for = "the bank holds less than one batch (method.replay.bank_period)"

    @classmethod
    def build(cls, context: StepContext, state: State) -> BankReplay:
        """Build an empty bank."""
        return cls(context.recipe.method.replay, context.description.input_shape, context.draws.device)

    def __init__(self, table: ReplayTable, shape: tuple[int, int, int], device: torch.device) -> None:
        self.table = table
        self.images = torch.zeros(table.bank_size, *shape, device=device)
        self.stored = 0

    @property
    def ready(self) -> bool:  # type: ignore[override]
        """Whether the bank holds at least one replay batch."""
        return self.stored >= self.table.batch_size

    def assume_ready(self) -> None:
        """Treat the empty bank as full."""
        self.stored = len(self.images)

    def sample(self, step: int, count: int, draws: KeyedDraws) -> Tensor:
        """Return stored images drawn with replacement."""
        filled = min(self.stored, len(self.images))
        return self.images[draws.integers(step, "bank", filled, count)]

    def learn(self, step: int, novel: Tensor, seen: TeacherOutputs, draws: KeyedDraws) -> dict[str, Tensor]:
        """Store the first images of the batch when a deposit is due."""
        if step % self.table.bank_period == 0:
            count = min(self.table.batch_size, len(novel))
            places = (torch.arange(count, device=novel.device) + self.stored) % len(self.images)
            self.images[places] = novel[:count]
            self.stored += count
        return {}

    def size_bytes(self) -> int:
        """Return the bytes of the bank."""
        return self.images.nbytes

    def state_dict(self) -> StateDict:
        """Return the images and how many were ever stored."""
        return {"images": self.images, "stored": self.stored}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the bank."""
        self.images.copy_(tensor_of(state, "images"))
        self.stored = int(number_of(state, "stored"))
