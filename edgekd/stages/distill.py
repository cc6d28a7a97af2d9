"""Distil a teacher into a student without data: the algorithm of PRE-DFKD, top to bottom.

build networks, restore the newest checkpoint
while steps are left:
    every `period` steps: the generator learns to show what the teacher is sure of, or what the student does not know
    the student learns the teacher's logits, and its feature maps where both have one of the same resolution, on novel
    images and on replayed ones
    the first steps of a period: the VAE learns the novel images and rehearses its own
    now and then: checkpoint, metrics, accuracy on real images where the user gave some (nothing depends on it)
in the last of these steps, the consolidation, generator and VAE rest and the student alone learns
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd import console, machine
from edgekd.errors import MachineError
from edgekd.export.samples import read_pictures
from edgekd.models import artefacts, inheritance, layout
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws, seeded_global_rng
from edgekd.run.cards.record import DistillNotes, Environment
from edgekd.run.failpoints import failpoint
from edgekd.run.run_logger import RunLogger
from edgekd.stages.base import Execution
from edgekd.stopping import Stop
from edgekd.synthesis import health, replay
from edgekd.synthesis.hints import Hints
from edgekd.synthesis.macs import MacRates
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.revival import ReluInputMaxima
from edgekd.synthesis.state import State, generator_optimizer, student_optimizer
from edgekd.synthesis.steps import StepContext, generator_step, student_step
from edgekd.synthesis.teacher import Teacher


def distill_student(execution: Execution) -> None:
    """Train until the last step and publish the final checkpoint; resumes from the newest intact one."""
    run_dir, recipe = execution.run, execution.recipe
    device = machine.resolve_device(recipe.machine.device)
    machine.keep_malloc_pages()
    environment = machine.environment(device, machine.use_threads(recipe.machine.threads))
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, recipe.precision, device)
    method, steps = recipe.method, recipe.method.steps_for(description.pixels, description.classes)
    if method.generator_batch_size < 2 * description.classes and method.generator.balance:
        console.warn(
            f"a batch of {method.generator_batch_size} is small for {description.classes} classes: the balance loss "
            f"needs at least {2 * description.classes} (method.generator.batch_size)"
        )
    if method.generator.batchnorm and not description.batchnorm and not recipe.images.folder:
        held = (
            "" if method.generator.image_moments == "learned" else ", whose images keep mean 0 and variance 1 a channel"
        )
        console.warn(f"the teacher has no BatchNorm: no statistics of its training images guide the generator{held}")
    pictures = read_pictures(run_dir, recipe.images.folder, purpose="distillation", stop=execution.stop)
    if pictures is not None:
        run_dir.note_data_free(False)
        console.warn(f"the student learns on {len(pictures.pixels)} pictures of {recipe.images.folder}: not data-free.")
    draws = KeyedDraws(recipe.seed, "distill", device)
    context = StepContext(recipe, steps, teacher, description, draws, pictures)
    state = build_state(context, artefacts.initial_weights(run_dir, recipe))
    run_logger = RunLogger(
        run_dir, recipe, key=execution.key, steps=steps, environment=environment, accuracy=execution.accuracy
    )
    run_logger.restore(state)
    if state.inherited and state.step == 0:
        console.say(f"student  of the teacher's kind: starts from {len(state.inherited)} of its tensors")
    try:
        learn(state, context, run_logger, execution.stop)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{device} ran out of memory at step {state.step} of {steps}; close what else uses it and give the same "
            "command again, which continues from the newest checkpoint. `distill --dry-run` names a batch that fits."
        ) from error
    if not state.replay.ready and method.replay.batch_size and state.replay.waits_for:
        console.warn(f"nothing was replayed: {state.replay.waits_for}; train longer")
    final, outputs = run_logger.close(state)
    size, sha256 = execution.run.events_logged()
    facts = notes(state, recipe, final, environment)
    logged = {"events_bytes": size, "events_sha256": sha256}
    execution.publish_in_place(outputs, facts.model_copy(update=logged))


def learn(state: State, context: StepContext, run_logger: RunLogger, stop: Stop) -> None:
    """Go through the steps that are left, at the beginning through the generator's warm-up."""
    method, steps = context.recipe.method, context.steps
    macs = MacRates.measure(context, build_state)
    if state.step == 0:
        run_logger.accuracy(state)
        for update in range(method.generator.warmup if context.uses_generator else 0):
            stop.raise_if_interrupted("distillation in its warm-up")
            generator_step(state, context, purpose=f"warm-up-{update}", adversarial_weight=0.0)
            state.macs += macs.of_warmup(context)

    begin = state.step
    with console.progress("distil", steps, done=begin) as progress:
        while state.step < steps:
            # Where views are reused, a checkpoint only lies between two spans of steps that share theirs. By the
            # deadline at least one is made, or a --max-seconds shorter than the start would never come further.
            if state.step % method.student.span == 0 and stop.requested and (stop.interrupted or state.step > begin):
                if state.step:  # the checkpoint of step 0 is from before the warm-up, which is repeated
                    run_logger.save(state)
                stop.raise_if_requested(f"distillation at step {state.step} of {steps}")
            if context.generator_learns(state.step):
                state.macs += macs.of_generator_step(context, state.step)
                run_logger.generator(state, generator_step(state, context))
                maybe_reinit_generator(state, context, run_logger)
            state.macs += macs.of_student_step(state, context)
            logged = student_step(state, context)
            state.step += 1
            facts = run_logger.student(state, logged)
            if facts is not None:
                progress.update(state.step, facts)
            run_logger.accuracy(state)
            run_logger.checkpoint(state)
            failpoint("distill.step")  # where the tests of crashes kill the process


def build_state(context: StepContext, initial: Mapping[str, Tensor] | None = None) -> State:
    """Build student, generator, replay and their optimizers from the seed, and the student's given weights if any."""
    recipe, teacher, shape, device = context.recipe, context.teacher, context.description.input_shape, context.device
    method = recipe.method
    student = artefacts.build_student(recipe, context.description, initial)
    machine.float32_head(student, artefacts.student_head(student, shape))
    shared_tensors, inherited = inheritance.shared_tensors(student, teacher.network), {}
    if method.student.inherit and not initial:
        slices = method.student.inherit_slices and not shared_tensors
        inherited = inheritance.sliced_tensors(student, teacher.network) if slices else shared_tensors
    if inherited:
        student.load_state_dict(inherited, strict=False)
    student = layout.laid_out(student.to(device))
    hints = build_hints(context, student, shares_tensors=bool(shared_tensors))
    generator = build_generator(context, generation=0).to(device)
    state = State(
        student=student,
        generator=generator,
        replay=replay.Replay(),
        student_optimizer=student_optimizer(
            student, method.student, fused=True, adapters=hints.adapters.parameters() if hints else ()
        ),
        generator_optimizer=generator_optimizer(generator, method.generator, fused=True),
        student_autocast=machine.precision_for(student, device, recipe.precision),
        generator_autocast=machine.precision_for(generator, device, recipe.precision),
        inherited=tuple(inherited),
        hints=hints,
    )
    # Where dead ReLU channels are to be revived. After State copied the student: its average is not to be watched.
    if method.student.revive > 0:
        state.relu_input_maxima = ReluInputMaxima(student)
    state.replay = replay.SOURCES[method.replay.source].build(context, state)
    return state


def build_hints(context: StepContext, student: nn.Module, *, shares_tensors: bool) -> Hints | None:
    """Pair the feature maps of student and teacher: by name where they share tensors, else by resolution."""
    table, teacher, shape = context.recipe.method.student, context.teacher.network, context.description.input_shape
    pairs = inheritance.shared_maps(student, teacher, shape) if shares_tensors else []
    if not pairs and table.hint_adapters:
        pairs = inheritance.matched_maps(student, teacher, shape)
    if not pairs or table.hint == 0:
        return None
    with seeded_global_rng(context.recipe.seed, "build", "hint-adapters"):
        hints = Hints(student, teacher, pairs)
    hints.adapters.to(context.device).to(memory_format=torch.channels_last)
    return hints


def build_generator(context: StepContext, generation: int) -> Generator:
    """Draw a generator's weights; each re-initialisation is a generation of its own."""
    description = context.description
    with seeded_global_rng(context.recipe.seed, "build", "generator", generation):
        return Generator.from_table(
            context.recipe.method.generator, description.input_shape, batchnorm=description.batchnorm
        )


def maybe_reinit_generator(state: State, context: StepContext, run_logger: RunLogger) -> None:
    """Re-initialise the generator when the schedule says so or it has collapsed; stop when that cannot help."""
    table, health_table = context.recipe.method.generator, context.recipe.method.health
    due = table.reinit_period > 0 and state.updates_since_init >= table.reinit_period
    scheduled = due and state.step < table.reinit_until * context.exploration_steps
    judged = state.updates_since_init >= health_table.grace
    sick = health.collapse(state.health, health_table) if judged else None
    if sick:
        if state.rescues >= health_table.max_reinits:
            raise run_logger.collapsed(state, f"{sick}, also after {state.rescues} re-initialisations")
        updates_left = (context.exploration_steps - state.step) // table.period
        if updates_left < health_table.grace and context.exploration_steps < context.steps:
            # Consolidation would teach what a generator shows that has hardly begun.
            raise run_logger.collapsed(state, f"{sick}, too late for another to learn before consolidation")
        state.rescues += 1
        console.warn(f"step {state.step}: {sick}; re-initialising it.")
    if sick or scheduled:
        state.restart_generator(build_generator(context, state.reinits + 1))
        run_logger.reinit(state, sick or "schedule")


def notes(state: State, recipe: Recipe, final: str, environment: Environment) -> DistillNotes:
    """Return what the record says of a finished distillation; its last checkpoint lies in `final`."""
    size = state.replay.size_bytes()
    return DistillNotes(
        steps=state.step,
        final=final,
        environment=environment,
        reinits=state.reinits,
        rescues=state.rescues,
        inherited_tensors=len(state.inherited),
        # Modules of the student. The key of the file calls them stages, as papers call the parts of a network.
        hinted_stages=[pair.student for pair in state.hints.pairs] if state.hints else [],
        replay=recipe.method.replay.source,
        replay_ready=state.replay.ready,
        replay_bytes=size,
        replay_bytes_as_uint8_images=size // math.prod(state.generator.shape),
    )
