"""Distil a teacher into a student without data: the algorithm of PRE-DFKD, top to bottom.

build networks, restore the newest checkpoint
while steps are left:
    every `period` steps: the generator learns to show what the teacher is sure of, or what the student does not know
    the student learns the teacher's answers, and its feature maps where it has the same stages, on novel images and on
    replayed ones
    the first steps of a period: the VAE learns the novel images and rehearses its own
    now and then: checkpoint, metrics, accuracy points
in the last of these steps, the consolidation, generator and VAE rest and the student alone learns
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgekd import console, machine
from edgekd.errors import MachineError
from edgekd.failpoints import failpoint
from edgekd.models import inheritance
from edgekd.recipe import Recipe
from edgekd.rng import Draws, forked_global
from edgekd.rundir import RunDir
from edgekd.stages import artefacts
from edgekd.stages.logbook import Accuracy, Logbook
from edgekd.stopping import Stop
from edgekd.synthesis import health, hints, losses, replay, revival, schedules
from edgekd.synthesis.augmentation import augment
from edgekd.synthesis.generator import Generator
from edgekd.synthesis.hints import StageOutputs
from edgekd.synthesis.revival import ReluInputs
from edgekd.synthesis.state import State, average_into, generator_optimizer, student_optimizer
from edgekd.synthesis.teacher import Teacher
from edgekd.synthesis.watching import watched


@dataclass(frozen=True)
class Context:
    """What a step knows besides the state: the recipe, the teacher and its description, the draws."""

    recipe: Recipe
    steps: int
    teacher: Teacher
    description: artefacts.Description
    draws: Draws

    def explores(self, step: int) -> bool:
        """Return whether generator and replay still learn at a step; afterwards the student consolidates."""
        return step < self.exploration_steps

    @property
    def exploration_steps(self) -> int:
        """Return the number of steps before consolidation."""
        return schedules.exploration_steps(self.recipe.method, self.steps)


def run(
    run_dir: RunDir, recipe: Recipe, *, key: str, inputs: dict[str, str], stop: Stop, accuracy: Accuracy | None = None
) -> None:
    """Train until the last step and publish the final checkpoint; resumes from the newest intact one."""
    device = machine.resolve_device(recipe.machine.device)
    machine.keep_freed_memory()
    environment = machine.environment(device, machine.use_threads(recipe.machine.threads))
    teacher, description = artefacts.load_teacher(run_dir, recipe.precision, device)
    method, steps = recipe.method, recipe.method.steps_for(description.pixels, description.classes)
    if method.student.batch_size < 2 * description.classes and method.generator.balance:
        console.warn(
            f"a batch of {method.student.batch_size} is small for {description.classes} classes: the balance loss "
            f"needs at least {2 * description.classes} (method.student.batch_size)"
        )
    if method.generator.batchnorm and not description.batchnorm:
        held = (
            "" if method.generator.image_moments == "learned" else ", whose images keep mean 0 and variance 1 a channel"
        )
        console.warn(f"the teacher has no BatchNorm: no statistics of its training images guide the generator{held}")
    context = Context(recipe, steps, teacher, description, Draws(recipe.seed, "distill", device))
    state = build(recipe, teacher, description, device, artefacts.initial_weights(run_dir, recipe))
    book = Logbook(
        run_dir,
        steps=steps,
        generator_period=method.generator.period,
        checkpoint_period=recipe.checkpoint_period,
        key=key,
        environment=environment,
        accuracy=accuracy,
    )
    book.restore(state)
    if state.inherited and state.step == 0:
        console.say(f"student  of the teacher's family: starts from {len(state.inherited)} of its tensors")
    try:
        learn(state, context, book, stop)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{device} ran out of memory at step {state.step} of {steps}; close what else uses it and give the same "
            "command again, which continues from the newest checkpoint. `distill --dry-run` names a batch that fits."
        ) from error
    if not state.replay.ready and method.replay.batch_size and method.replay.source != "none":
        reason = "the bank holds less than one batch (method.replay.bank_period)"
        if method.replay.source == "vae":
            reason = "too few reconstructions of the VAE kept the teacher's answer (method.vae.gate)"
        console.warn(f"nothing was replayed: {reason}; train longer")
    book.publish(state, notes(state, recipe), recipe_slice=method.model_dump(mode="json"), inputs=inputs)


def learn(state: State, context: Context, book: Logbook, stop: Stop) -> None:
    """Go through the steps that are left, at the beginning through the generator's warm-up."""
    method, steps = context.recipe.method, context.steps
    if state.step == 0:
        book.accuracy(state)
        for update in range(method.generator.warmup):
            stop.raise_if_requested("distillation in its warm-up")
            generator_step(state, context, purpose=f"warm-up-{update}", adversary=0.0)

    with console.progress("distil", steps, done=state.step) as progress:
        while state.step < steps:
            if stop.requested:
                if state.step:  # the checkpoint of step 0 is from before the warm-up, which is repeated
                    book.save(state)
                stop.raise_if_requested(f"distillation at step {state.step} of {steps}")
            if context.explores(state.step) and state.step % method.generator.period == 0:
                book.generator(state, generator_step(state, context))
                care_for_generator(state, context, book)
            learned = student_step(state, context)
            state.step += 1
            facts = book.student(state, learned)
            if facts is not None:
                progress.update(state.step, facts)
            book.accuracy(state)
            book.checkpoint(state)
            failpoint("distill.step")


def build(
    recipe: Recipe,
    teacher: Teacher,
    description: artefacts.Description,
    device: torch.device,
    initial: Mapping[str, Tensor] | None = None,
) -> State:
    """Build student, generator, replay and their optimisers from the seed, and the student's given weights if any."""
    method, shape = recipe.method, description.input_shape
    student = artefacts.build_student(recipe, description, initial)
    machine.float32_head(student, artefacts.student_head(student, shape))
    family = inheritance.shared_tensors(student, teacher.network)
    inherited = family if method.student.inherit and not initial else {}
    if inherited:
        student.load_state_dict(inherited, strict=False)
    student = student.to(device).to(memory_format=torch.channels_last)
    generator = build_generator(recipe, description, generation=0).to(device)
    student_precision = machine.precision_for(student, device, recipe.precision)
    generator_precision = machine.precision_for(generator, device, recipe.precision)
    state = State(
        student=student,
        generator=generator,
        replay=replay.Replay(),
        student_optimizer=student_optimizer(student, method.student, fused=True),
        generator_optimizer=generator_optimizer(generator, method.generator, fused=True),
        student_precision=student_precision,
        generator_precision=generator_precision,
        inherited=tuple(inherited),
    )
    if method.student.revive > 0:  # after the averages were copied, which must not be watched
        state.relu_inputs = ReluInputs(student)
    if family and method.student.hint > 0:
        stages = inheritance.shared_stages(student, teacher.network, shape)
        state.student_stages = StageOutputs(student, stages)
        state.teacher_stages = StageOutputs(teacher.network, stages)
    if method.replay.source == "bank":
        state.replay = replay.BankReplay(method.replay, shape, device)
    elif method.replay.source == "ema-generator":
        latent = method.generator.latent
        state.replay = replay.EmaGeneratorReplay(state.generator_ema, latent, generator_precision)
    elif method.replay.source == "vae":
        with forked_global(recipe.seed, "build", "vae"):
            vae = artefacts.build_vae(method.vae, description, method.generator.upsamplings).to(device)
        vae_precision = machine.precision_for(vae, device, recipe.precision)
        state.replay = replay.VaeReplay(vae, method.vae, teacher, vae_precision, fused=True)
    return state


def build_generator(recipe: Recipe, description: artefacts.Description, generation: int) -> Generator:
    """Draw a generator's weights; each re-initialisation is a generation of its own."""
    with forked_global(recipe.seed, "build", "generator", generation):
        return artefacts.build_generator(recipe.method.generator, description)


def generator_step(
    state: State, context: Context, *, purpose: str = "generator", adversary: float | None = None
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
        "one_hot": table.one_hot * losses.one_hot(seen.logits),
        "balance": table.balance * losses.balance(seen.logits),
        "activation": table.activation * losses.activation(seen.features),
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
    state.health = [*state.health, health.measure(x, seen.logits)][-context.recipe.method.health.window :]
    return {name: value.detach() for name, value in parts.items()}


def student_step(state: State, context: Context) -> dict[str, Tensor]:
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
    with torch.no_grad(), watched(state.teacher_stages) as wanted:
        seen = context.teacher.observe(x)

    state.student.train()
    with state.student_precision(), watched(state.relu_inputs) as highest, watched(state.student_stages) as given:
        answers = state.student(x).float()
    lesson = schedules.lesson(method, step, context.steps)
    parts = {"student": losses.distance(answers, seen.logits, lesson.loss, lesson.temperature)}
    if given:
        parts["hint"] = table.hint * hints.distance(given, wanted)
    if highest:
        parts["revival"] = table.revive * revival.pull(highest)
    state.student_optimizer.zero_grad()
    torch.stack(list(parts.values())).sum().backward()
    del given, wanted  # feature maps, which the VAE's step has no memory for
    for group in state.student_optimizer.param_groups:
        group["lr"] = lesson.lr
    state.student_optimizer.step()
    average_into(state.student_ema, state.student, schedules.ema_decay(table.ema_decay, step))

    agree = (answers.argmax(1) == seen.logits.argmax(1)).float()
    logged = {name: value.detach() for name, value in parts.items()} | {"agreement_novel": agree[:novel].mean()}
    if highest:
        logged["dead_relus"] = revival.dead_share(highest)
    if len(x) > novel:
        logged["agreement_replay"] = agree[novel:].mean()
    due = step % method.generator.period < method.vae.updates or method.replay.source != "vae"
    if due and context.explores(step):
        learned = state.replay.learn(step, x[:novel], seen.first(novel), context.draws)
        logged |= {f"replay_{name}": value.detach() for name, value in learned.items()}
    return logged


def care_for_generator(state: State, context: Context, book: Logbook) -> None:
    """Re-initialise the generator when the schedule says so or it has collapsed; stop when that cannot help."""
    table, health_table = context.recipe.method.generator, context.recipe.method.health
    due = table.reinit_period > 0 and state.updates_since_init >= table.reinit_period
    scheduled = due and state.step < table.reinit_until * context.exploration_steps
    judged = state.updates_since_init >= health_table.grace
    sick = health.collapse(state.health, health_table) if judged else None
    if sick:
        if state.rescues >= health_table.max_reinits:
            raise book.collapsed(state, f"{sick}, also after {state.rescues} re-initialisations")
        updates_left = (context.exploration_steps - state.step) // table.period
        if updates_left < health_table.grace and context.exploration_steps < context.steps:
            # Consolidation would teach what a generator shows that has hardly begun.
            raise book.collapsed(state, f"{sick}, too late for another to learn before consolidation")
        state.rescues += 1
        console.warn(f"step {state.step}: {sick}; re-initialising it.")
    if sick or scheduled:
        state.restart_generator(build_generator(context.recipe, context.description, state.reinits + 1))
        book.reinit(state, sick or "schedule")


def notes(state: State, recipe: Recipe) -> dict[str, Any]:
    """Return what the record says of a finished distillation."""
    size = state.replay.size_bytes()
    return {
        "reinits": state.reinits,
        "rescues": state.rescues,
        "inherited_tensors": len(state.inherited),
        "hinted_stages": list(state.student_stages.names) if state.student_stages else [],
        "replay": recipe.method.replay.source,
        "replay_ready": state.replay.ready,
        "replay_bytes": size,
        "replay_bytes_as_uint8_images": size // math.prod(state.generator.shape),
    }
