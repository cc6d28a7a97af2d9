"""Everything one step of distillation hands to the next, in one object with one state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from edgekd.machine import Precision
from edgekd.recipe.method import GeneratorTable, StudentUpdateTable
from edgekd.state_dict import (
    StateDict,
    branch,
    flatten,
    number_of,
    optimizer_state,
    restore_optimizer,
    tensors_of,
)
from edgekd.synthesis.answered import AnsweredViews
from edgekd.synthesis.hints import Hints
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.replay import Replay
from edgekd.synthesis.revival import ReluInputMaxima


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move parameters and float buffers of `average` towards `network`; other buffers are copied."""
    mine, theirs = average.state_dict(), network.state_dict()
    floats = [name for name, value in mine.items() if value.is_floating_point()]
    torch._foreach_lerp_([mine[n] for n in floats], [theirs[n] for n in floats], 1.0 - decay)
    for name in mine.keys() - set(floats):
        mine[name].copy_(theirs[name])


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode that takes no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@dataclass
class State:
    """Networks, averages, optimisers, replay and counters of a distillation."""

    student: nn.Module
    generator: Generator
    replay: Replay
    student_optimizer: torch.optim.Optimizer
    generator_optimizer: torch.optim.Optimizer
    student_autocast: Precision
    generator_autocast: Precision
    relu_input_maxima: ReluInputMaxima | None = None
    """Records of the student where its dead channels are to be revived."""
    hints: Hints | None = None
    """The feature maps that the student learns from the teacher's, where the method has any."""
    inherited: tuple[str, ...] = ()
    """Names of the student's tensors that began as the teacher's."""
    answered: AnsweredViews | None = None
    """What the student learns from at present; never saved, since a checkpoint lies between two of them."""
    student_ema: nn.Module = field(init=False)
    generator_ema: nn.Module = field(init=False)
    step: int = 0
    generator_updates: int = 0
    updates_since_init: int = 0
    reinits: int = 0
    rescues: int = 0
    """Re-initialisations that answered a collapse, not the schedule."""
    health: list[dict[str, float]] = field(default_factory=list)
    macs: int = 0
    """Multiply-accumulates that were executed so far, of all networks, forward and backward."""

    def __post_init__(self) -> None:
        self.student_ema = frozen_copy(self.student)
        self.generator_ema = frozen_copy(self.generator)

    def state_dict(self) -> StateDict:
        """Return nested tensors and plain values: all the next step depends on."""
        return {
            "student": self.student.state_dict(),
            "student_ema": self.student_ema.state_dict(),
            "generator": self.generator.state_dict(),
            "generator_ema": self.generator_ema.state_dict(),
            "replay": self.replay.state_dict(),
            "student_optimizer": optimizer_state(self.student_optimizer),
            "generator_optimizer": optimizer_state(self.generator_optimizer),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "health": [{**measured} for measured in self.health],
            **({"hint_adapters": dict(self.hint_adapters)} if self.hint_adapters else {}),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        for name in ("student", "student_ema", "generator", "generator_ema"):
            getattr(self, name).load_state_dict(tensors_of(state, name))
        self.replay.load_state_dict(branch(state, "replay"))
        restore_optimizer(self.student_optimizer, branch(state, "student_optimizer"))
        restore_optimizer(self.generator_optimizer, branch(state, "generator_optimizer"))
        counters = {"macs": 0, **branch(state, "counters")}  # which were not counted before
        for name in _COUNTERS:
            setattr(self, name, int(number_of(counters, name)))
        self.health = _HEALTH.validate_python(state.get("health", []))
        if self.hints is not None and self.hint_adapters:
            self.hints.adapters.load_state_dict(tensors_of(state, "hint_adapters"))

    @property
    def hint_adapters(self) -> dict[str, Tensor]:
        """The weights of the learned 1x1 convolutions from the student's feature maps to the teacher's."""
        return {} if self.hints is None else self.hints.adapters.state_dict()

    def restart_generator(self, fresh: nn.Module) -> None:
        """Take over freshly drawn weights and forget the generator optimiser's moments."""
        self.generator.load_state_dict(fresh.state_dict())
        self.generator_optimizer.state.clear()
        self.reinits += 1
        self.updates_since_init = 0
        self.health.clear()

    def all_finite(self) -> bool:
        """Return whether every tensor of the state is finite: networks, averages, replay and optimisers."""
        tensors, _ = flatten(self.state_dict())
        return all(bool(torch.isfinite(t).all()) for t in tensors.values())


_HEALTH = TypeAdapter(list[dict[str, float]])
_COUNTERS = ("step", "generator_updates", "updates_since_init", "reinits", "rescues", "macs")


def generator_optimizer(generator: nn.Module, table: GeneratorTable, *, fused: bool) -> torch.optim.Optimizer:
    """Return the generator's Adam."""
    return torch.optim.Adam(generator.parameters(), lr=table.lr, betas=table.betas, fused=fused)


def student_optimizer(
    student: nn.Module, table: StudentUpdateTable, *, fused: bool, adapters: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimiser of the student and of what is learned beside it; each step sets its learning rate."""
    weights, decay = [*student.parameters(), *adapters], table.weight_decay
    make: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(weights, lr=table.lr, momentum=table.momentum, weight_decay=decay, fused=fused),
        "adam": lambda: torch.optim.Adam(weights, lr=table.lr, weight_decay=decay, fused=fused),
        "adamw": lambda: torch.optim.AdamW(weights, lr=table.lr, weight_decay=decay, fused=fused),
    }
    return make[table.optimizer]()
