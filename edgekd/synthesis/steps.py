"""The two steps of the algorithm: the generator's, and the student's with what the replay learns from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.synthesis import health, losses, revival, schedules
from edgekd.synthesis.answered import AnsweredViews, PartSizes
from edgekd.synthesis.hooks import recording
from edgekd.synthesis.images import ImageSource
from edgekd.synthesis.images.procedural import ProceduralImages
from edgekd.synthesis.state import State, update_ema
from edgekd.synthesis.teacher import Teacher
from edgekd.synthesis.views import view


@dataclass(frozen=True)
class StepContext:
    """What a step knows besides the state: the recipe, the teacher and its description, the draws, given pictures."""

    recipe: Recipe
    steps: int
    teacher: Teacher
    description: Description
    draws: KeyedDraws
    pictures: ImageSource | None = None
    """The user's pictures in place of a generator, where there are any."""

    @property
    def device(self) -> torch.device:
        """Where the networks train."""
        return self.draws.device

    @property
    def exploration_steps(self) -> int:
        """The number of steps before consolidation."""
        return schedules.exploration_steps(self.recipe.method, self.steps)

    def explores(self, step: int) -> bool:
        """Whether generator and replay still learn at a step; afterwards the student consolidates."""
        return step < self.exploration_steps

    def generator_learns(self, step: int) -> bool:
        """Whether a generator update comes before the student's at a step."""
        period = self.recipe.method.generator.period_at(step, self.steps)
        return self.uses_generator and self.explores(step) and step % period == 0

    def replays(self, state: State) -> bool:
        """Whether the state's step shows the student replayed images, too."""
        table = self.recipe.method.replay
        return state.replay.ready and table.batch_size > 0 and state.step >= table.start * self.steps

    def replay_learns(self, state: State) -> bool:
        """Whether the replay learns in the state's step."""
        return self.explores(state.step) and state.replay.learns_at(state.step % self.recipe.method.generator.period)

    def procedural_count(self, step: int) -> int:
        """How many of a step's novel images are procedural: none beside the user's pictures."""
        return 0 if self.pictures else schedules.procedural_count(self.recipe.method, step, self.steps)

    def part_sizes(self, state: State) -> PartSizes:
        """How many images of each part the state's batch has."""
        procedural = self.procedural_count(state.step)
        replayed = self.recipe.method.replay.batch_size if self.replays(state) else 0
        return PartSizes(self.recipe.method.student.batch_size - procedural, procedural, replayed)

    @property
    def uses_generator(self) -> bool:
        """Whether a generator takes part: not with pictures, nor where all images are procedural."""
        return self.pictures is None and self.recipe.method.procedural.leaves_generator


def generator_step(
    state: State, context: StepContext, *, purpose: str = "generator", adversarial_weight: float | None = None
) -> dict[str, Tensor]:
    """Update G on x = G(z): sure answers of T, strong features, even classes, its statistics; and where S disagrees.

    The last has the weight `adversarial_weight`. Return the weighted terms of the loss by name.
    """
    table = context.recipe.method.generator
    if adversarial_weight is None:
        adversarial_weight = schedules.adversarial_weight(table, state.step, context.steps)
    z = context.draws.normal(state.step, purpose, context.recipe.method.generator_batch_size, table.latent)
    state.generator.train()
    with state.generator_autocast():
        x = state.generator(z)
    outputs = context.teacher.observe(x, batchnorm=table.batchnorm > 0)
    parts = {
        "one_hot": table.one_hot * losses.one_hot_loss(outputs.logits),
        "balance": table.balance * losses.balance_loss(outputs.logits),
        "activation": table.activation * losses.activation_loss(outputs.features),
        "batchnorm": table.batchnorm * outputs.batchnorm,
    }
    if adversarial_weight > 0:
        state.student.train(table.student_mode == "train")
        with state.student_autocast():
            student_logits = state.student(x).float()
        teacher_logits = outputs.logits.detach() if table.detach_teacher else outputs.logits
        parts["adversary"] = -adversarial_weight * losses.GAPS[table.gap](student_logits, teacher_logits)
    state.generator_optimizer.zero_grad()
    # `inputs`: the student keeps no gradient. backward() also brings each gradient into its weight's memory layout,
    # which fused Adam relies on; autograd.grad() would not.
    torch.stack(list(parts.values())).sum().backward(inputs=list(state.generator.parameters()))
    for group in state.generator_optimizer.param_groups:
        group["lr"] = schedules.generator_learning_rate(table, state.step, context.exploration_steps)
    state.generator_optimizer.step()
    decay = schedules.ema_decay(context.recipe.method.replay.ema_decay, state.updates_since_init)
    update_ema(state.generator_ema, state.generator, decay)
    state.generator_updates += 1
    state.updates_since_init += 1
    state.health = [*state.health, health.image_health(x, outputs.logits)][-context.recipe.method.health.window :]
    return {name: value.detach() for name, value in parts.items()}


def student_step(state: State, context: StepContext) -> dict[str, Tensor]:
    """Update S towards T on augmented views of novel images and replayed ones; then let the replay learn.

    T answers the very view that S is shown.

    Return what is logged, by name: the weighted terms of the loss, and agreement on each part of the batch, of which
    the procedural images are a part of the novel ones.
    """
    method, step, table = context.recipe.method, state.step, context.recipe.method.student
    place = step % table.span
    if place == 0 or state.answered is None:
        state.answered = answered_views(state, context)
    batch = state.answered.batch(place, step, context.draws)
    x, outputs, sizes, hints = batch.views, batch.outputs, batch.sizes, state.hints

    state.student.train()
    with (
        state.student_autocast(),
        recording(state.relu_input_maxima) as input_maxima,
        recording(hints.of_student if hints else None) as student_maps,
    ):
        logits = state.student(x).float()
    objective = schedules.objective_at(method, step, context.steps)
    parts = {"student": losses.logit_distance(logits, outputs.logits, objective.loss, objective.temperature)}
    if hints is not None and student_maps:
        distance = hints.distance(student_maps, batch.teacher_maps)
        weight = schedules.hint_weight(table, step, context.steps, same_maps=hints.same)
        parts["hint"] = weight * distance
    if input_maxima:
        parts["revival"] = table.revive * revival.pull(input_maxima)
    state.student_optimizer.zero_grad()
    torch.stack(list(parts.values())).sum().backward()
    if place == table.span - 1:
        state.answered = None
    del batch, student_maps  # feature maps, which the VAE's step has no memory for
    for group in state.student_optimizer.param_groups:
        group["lr"] = objective.lr
    state.student_optimizer.step()
    update_ema(state.student_ema, state.student, schedules.ema_decay(table.ema_decay, step))

    logged = {name: value.detach() for name, value in parts.items()}
    agrees = (logits.argmax(1) == outputs.logits.argmax(1)).float()
    parts_of_batch = {"novel": agrees[: sizes.novel], "procedural": agrees[sizes.generated : sizes.novel]}
    parts_of_batch["replay"] = agrees[sizes.novel :]
    logged |= {f"agreement_{name}": part.mean() for name, part in parts_of_batch.items() if len(part)}
    if input_maxima:
        logged["dead_relus"] = revival.dead_share(input_maxima)
    if context.replay_learns(state):
        learned = state.replay.learn(step, x[: sizes.novel], outputs.first(sizes.novel), context.draws)
        logged |= {f"replay_{name}": value.detach() for name, value in learned.items()}
    return logged


@torch.no_grad()
def answered_views(state: State, context: StepContext) -> AnsweredViews:
    """Make the views of as many batches as the teacher answers at once, and let it answer them."""
    table, step = context.recipe.method.student, state.step
    sizes = context.part_sizes(state)
    x = view(make_images(state, context, sizes.times(table.answered_batches)), table, step, context.draws)
    with recording(state.hints.of_teacher if state.hints else None) as teacher_maps:
        outputs = context.teacher.observe(x)
    return AnsweredViews(x, outputs, tuple(teacher_maps or ()), sizes, table.answered_batches)


def make_images(state: State, context: StepContext, sizes: PartSizes) -> Tensor:
    """Return the images of a step: generated ones or the user's pictures, procedural ones, then replayed ones."""
    step, draws = state.step, context.draws
    parts = []
    if sizes.generated and context.pictures is not None:
        parts.append(context.pictures.batch(draws, "novel", step, sizes.generated))
    elif sizes.generated:
        state.generator.train()
        with state.generator_autocast():
            z = draws.normal(step, "novel", sizes.generated, context.recipe.method.generator.latent)
            parts.append(state.generator(z))
    if sizes.procedural:
        source = ProceduralImages(context.description.input_shape)
        parts.append(source.batch(draws, "procedural", step, sizes.procedural))
    if sizes.replayed:
        parts.append(state.replay.sample(step, sizes.replayed, draws))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
