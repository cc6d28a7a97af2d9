"""What every source of replay offers to the student's step; the class itself replays nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekd.recipe.method import MethodTable
from edgekd.rng import KeyedDraws
from edgekd.state_dict import StateDict
from edgekd.synthesis.teacher import TeacherOutputs

if TYPE_CHECKING:
    from edgekd.synthesis.state import State
    from edgekd.synthesis.steps import StepContext


class Replay:
    """No replay; also the interface of the other sources."""

    ready = False
    """Whether `sample` has anything worth replaying."""
    waits_for = ""
    """Why it is not ready, for the user; empty where it never will be."""

    @classmethod
    def build(cls, context: StepContext, state: State) -> Replay:
        """Build the source for a distillation whose networks stand in `state`."""
        return cls()

    @staticmethod
    def sampler_state(replay: StateDict, method: MethodTable) -> StateDict:
        """Return what a `Sampler` needs of this source's state: a decoder and the moments of its codes, or nothing."""
        return {}

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that this source trains, by name."""
        return {}

    def assume_ready(self) -> None:
        """Make `sample` usable at once, for timing a step whose result is thrown away."""

    def sample(self, step: int, count: int, draws: KeyedDraws) -> Tensor:
        """Return `count` replayed images without a graph."""
        raise NotImplementedError

    def learns_at(self, place: int) -> bool:
        """Return whether it learns at this place (from 0) of a generator period."""
        return True

    def learn(self, step: int, novel: Tensor, seen: TeacherOutputs, draws: KeyedDraws) -> dict[str, Tensor]:
        """Take in the novel images of this step and what the teacher saw in them; return the losses of doing so."""
        return {}

    def size_bytes(self) -> int:
        """Return what remembering costs in memory."""
        return 0

    def state_dict(self) -> StateDict:
        """Return everything the next step depends on."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
