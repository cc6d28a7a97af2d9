"""The two steps of the algorithm: the generator's, and the student's with what the replay learns from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.synthesis import health, hints, losses, revival, schedules
from edgekd.synthesis.augmentation import augment
from edgekd.synthesis.hooks import recording
from edgekd.synthesis.state import State, average_into
from edgekd.synthesis.teacher import Teacher


@dataclass(frozen=True)
class StepContext:
    """What a step knows besides the state: the recipe, the teacher and its description, the draws."""

    recipe: Recipe
    steps: int
    teacher: Teacher
    description: Description
    draws: KeyedDraws

    @property
    def device(self) -> torch.device:
        """Where the networks train."""
        return self.draws.device

    def explores(self, step: int) -> bool:
        """Return whether generator and replay still learn at a step; afterwards the student consolidates."""
        return step < self.exploration_steps

    @property
    def exploration_steps(self) -> int:
        """The number of steps before consolidation."""
        return schedules.exploration_steps(self.recipe.method, self.steps)


def generator_step(
    state: State, context: StepContext, *, purpose: str = "generator", adversary: float | None = None
) -> dict[str, Tensor]:
    """Update G on x = G(z): confident, class-balanced, teacher-like statistics; with an adversary, far from S."""
    table = context.recipe.method.generator
    if adversary is None:
        adversary = schedules.adversary_weight(table, state.step, context.steps)
    z = context.draws.normal(state.step, purpose, context.recipe.method.student.batch_size, table.latent)
    state.generator.train()
    with state.generator_precision():
        x = state.generator(z)
    seen = context.teacher.observe(x, batchnorm=table.batchnorm > 0)
    parts = {
        "one_hot": table.one_hot * losses.one_hot_loss(seen.logits),
        "balance": table.balance * losses.balance_loss(seen.logits),
        "activation": table.activation * losses.activation_loss(seen.features),
        "batchnorm": table.batchnorm * seen.batchnorm,
    }
    if adversary > 0:
        state.student.train(table.student_mode == "train")
        with state.student_precision():
            answers = state.student(x).float()
        target = seen.logits.detach() if table.detach_teacher else seen.logits
        parts["adversary"] = -adversary * losses.GAPS[table.gap](answers, target)
    state.generator_optimizer.zero_grad()
    # `inputs`: the student keeps no gradient. backward() also brings each gradient into its weight's memory layout,
    # which fused Adam relies on; autograd.grad() would not.
    torch.stack(list(parts.values())).sum().backward(inputs=list(state.generator.parameters()))
    for group in state.generator_optimizer.param_groups:
        group["lr"] = schedules.generator_learning_rate(table, state.step, context.exploration_steps)
    state.generator_optimizer.step()
    decay = schedules.ema_decay(context.recipe.method.replay.ema_decay, state.updates_since_init)
    average_into(state.generator_ema, state.generator, decay)
    state.generator_updates += 1
    state.updates_since_init += 1
    state.health = [*state.health, health.image_health(x, seen.logits)][-context.recipe.method.health.window :]
    return {name: value.detach() for name, value in parts.items()}


def student_step(state: State, context: StepContext) -> dict[str, Tensor]:
    """Update S towards T on novel images G(z) and replayed ones, in one batch; then let the replay learn."""
    method, step = context.recipe.method, state.step
    table = method.student
    novel = table.batch_size
    with torch.no_grad(), state.generator_precision():
        state.generator.train()
        x = state.generator(context.draws.normal(step, "novel", novel, method.generator.latent))
    if state.replay.ready and method.replay.batch_size and step >= method.replay.start * context.steps:
        x = torch.cat([x, state.replay.sample(step, method.replay.batch_size, context.draws)])
    x = augment(x, table, step, context.draws)
    with torch.no_grad(), recording(state.teacher_stages) as teacher_maps:
        seen = context.teacher.observe(x)

    state.student.train()
    with state.student_precision(), recording(state.relu_inputs) as highest, recording(state.student_stages) as given:
        answers = state.student(x).float()
    objective = schedules.objective_at(method, step, context.steps)
    parts = {"student": losses.logit_distance(answers, seen.logits, objective.loss, objective.temperature)}
    if given:
        parts["hint"] = table.hint * hints.hint_distance(given, teacher_maps)
    if highest:
        parts["revival"] = table.revive * revival.pull(highest)
    state.student_optimizer.zero_grad()
    torch.stack(list(parts.values())).sum().backward()
    del given, teacher_maps  # feature maps, which the VAE's step has no memory for
    for group in state.student_optimizer.param_groups:
        group["lr"] = objective.lr
    state.student_optimizer.step()
    average_into(state.student_ema, state.student, schedules.ema_decay(table.ema_decay, step))

    agree = (answers.argmax(1) == seen.logits.argmax(1)).float()
    logged = {name: value.detach() for name, value in parts.items()} | {"agreement_novel": agree[:novel].mean()}
    if highest:
        logged["dead_relus"] = revival.dead_share(highest)
    if len(x) > novel:
        logged["agreement_replay"] = agree[novel:].mean()
    if context.explores(step) and state.replay.learns_at(step % method.generator.period):
        learned = state.replay.learn(step, x[:novel], seen.first(novel), context.draws)
        logged |= {f"replay_{name}": value.detach() for name, value in learned.items()}
    return logged
