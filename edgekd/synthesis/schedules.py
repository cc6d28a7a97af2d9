"""Schedules as pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekd.recipe.method import GeneratorTable, MethodTable, StudentUpdateTable


@dataclass(frozen=True)
class Objective:
    """What the student minimises at a step, and how fast it learns."""

    loss: str
    temperature: float
    lr: float


def objective_at(method: MethodTable, step: int, steps: int) -> Objective:
    """Return the student's loss, temperature and learning rate: exploration has its own, consolidation too."""
    table, exploration = method.consolidation, exploration_steps(method, steps)
    if step < exploration:
        return Objective(
            method.student.loss, method.student.temperature, learning_rate(method.student, step, exploration)
        )
    progress = (step - exploration) / (steps - exploration)
    return Objective(table.loss, table.temperature, _decayed(table.lr, "cosine", progress))


def exploration_steps(method: MethodTable, steps: int) -> int:
    """Return the number of steps before consolidation; all of them where a method has none."""
    return round(method.consolidation.start * steps)


def learning_rate(table: StudentUpdateTable, step: int, steps: int) -> float:
    """Return the student's learning rate while G explores: a linear warm-up, then constant or half a cosine to zero."""
    warmup = int(table.warmup * steps)
    if step < warmup:
        return table.lr * (step + 1) / warmup
    return _decayed(table.lr, table.schedule, (step - warmup) / max(1, steps - warmup))


def generator_learning_rate(table: GeneratorTable, step: int, steps: int) -> float:
    """Return the generator's learning rate: constant or half a cosine to zero."""
    return _decayed(table.lr, table.schedule, step / max(1, steps))


def _decayed(lr: float, schedule: str, progress: float) -> float:
    return lr if schedule == "constant" else lr * 0.5 * (1 + math.cos(math.pi * progress))


def adversarial_weight(table: GeneratorTable, step: int, steps: int) -> float:
    """Return the adversary's weight: 0 before the ramp, linear within it, full after it."""
    low, high = (fraction * steps for fraction in table.adversary_ramp)
    if step >= high:
        return table.adversary
    return 0.0 if step <= low else table.adversary * (step - low) / (high - low)


def hint_weight(table: StudentUpdateTable, step: int, steps: int, *, same_maps: bool) -> float:
    """Return the weight of hints: constant, or falling linearly to 0 over the steps.

    `same_maps` says that student and teacher have the same maps, channel by channel; there "auto" is linear.
    """
    falls = table.hint_schedule == "linear" or (table.hint_schedule == "auto" and same_maps)
    return table.hint * (1 - step / steps) if falls else table.hint


def procedural_count(method: MethodTable, step: int, steps: int) -> int:
    """Return how many of a step's novel images are procedural: a share that changes linearly over the steps."""
    first, last = method.procedural.share
    return round((first + (last - first) * step / max(1, steps - 1)) * method.student.batch_size)


def ema_decay(decay: float, updates: int) -> float:
    """Return the decay of an average after so many updates: a young average follows faster."""
    return min(decay, (1 + updates) / (10 + updates))
