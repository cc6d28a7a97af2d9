"""Distil a teacher into a student without data: the algorithm of PRE-DFKD, top to bottom.

build networks, restore the newest checkpoint
while steps are left:
    every `period` steps: the generator learns to show what the student does not know yet
    the student learns the teacher's answers on novel images and on replayed ones
    the first steps of a period: the VAE learns the novel images and rehearses its own
    now and then: checkpoint, metrics, accuracy points
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import checkpoint, console, machine
from edgekd.errors import GateError
from edgekd.method import MethodTable
from edgekd.models import registry
from edgekd.recipe import Recipe
from edgekd.rng import Draws, forked_global
from edgekd.rundir import Record, RunDir, failpoint, hash_outputs
from edgekd.stages import artefacts
from edgekd.stopping import Stop
from edgekd.synthesis import health, losses, replay, schedules
from edgekd.synthesis.generator import Generator
from edgekd.synthesis.state import State, average_into, generator_optimizer, student_optimizer
from edgekd.synthesis.teacher import Teacher

Accuracy = Callable[[nn.Module], float]
"""Measures a network on real images, for numbers only."""


@dataclass(frozen=True)
class Step:
    """What a step knows besides the state: the method, the teacher, the draws."""

    method: MethodTable
    steps: int
    teacher: Teacher
    draws: Draws


def run(
    run_dir: RunDir,
    recipe: Recipe,
    *,
    key: str,
    inputs: dict[str, str],
    stop: Stop,
    accuracy: Accuracy | None = None,
) -> None:
    """Train until the last step and publish the final checkpoint; resumes from the newest intact one."""
    device = machine.resolve_device(recipe.machine.device)
    threads = machine.use_threads(recipe.machine.threads)
    environment = machine.environment(device, threads)
    teacher, description = artefacts.load_teacher(run_dir, recipe.precision, device)
    method = recipe.method
    steps = method.steps_for(description.pixels, description.classes)
    state = build(recipe, teacher, description, device)
    draws = Draws(recipe.seed, "distill", device)
    context = Step(method, steps, teacher, draws)
    period = recipe.checkpoint_period or max(1, steps // 20)
    log_period, curve_period = max(1, steps // 200), max(1, steps // 100)

    def save() -> None:
        _refuse_sick_state(state, run_dir)
        checkpoint.write(run_dir, state.step, state.state_dict(), key=key, environment=environment)

    _restore(run_dir, state, key, environment)
    clock = training_clock(run_dir)
    if state.step == 0:
        save()
        log_accuracy(run_dir, state, accuracy)
        warm_up(run_dir, state, context, recipe)

    with console.progress("distil", steps, done=state.step) as progress:
        while state.step < steps:
            if stop.requested:
                save()
                stop.raise_if_requested(f"distillation at step {state.step} of {steps}")
            logged: dict[str, Tensor] = {}
            if state.step % method.generator.period == 0:
                logged |= generator_step(state, context)
                care_for_generator(run_dir, state, context, recipe)
            logged |= student_step(state, context)
            state.step += 1
            if state.step % log_period == 0 or state.step == steps:
                progress.update(state.step, log(run_dir, state, logged, clock))
            if state.step % curve_period == 0 or state.step == steps:
                log_accuracy(run_dir, state, accuracy)
            if state.step % period == 0 or state.step == steps:
                save()
            failpoint("distill.step")
    publish(run_dir, recipe, state, key=key, inputs=inputs, environment=environment)


def build(recipe: Recipe, teacher: Teacher, description: artefacts.Description, device: torch.device) -> State:
    """Build student, generator, replay and their optimisers from the seed."""
    method, shape = recipe.method, description.input_shape
    student = artefacts.build_student(recipe, description)
    machine.float32_head(student, artefacts.student_head(student, shape))
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = build_generator(recipe, shape, generation=0).to(device)
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
    )
    if method.replay.source == "bank":
        state.replay = replay.BankReplay(method.replay, shape, device)
    elif method.replay.source == "ema-generator":
        latent = method.generator.latent
        state.replay = replay.EmaGeneratorReplay(state.generator_ema, latent, generator_precision)
    elif method.replay.source == "vae":
        with forked_global(recipe.seed, "build", "vae"):
            vae = artefacts.build_vae(method.vae, shape, method.generator.upsamplings).to(device)
        vae_precision = machine.precision_for(vae, device, recipe.precision)
        state.replay = replay.VaeReplay(vae, method.vae, teacher, vae_precision, fused=True)
    return state


def build_generator(recipe: Recipe, shape: tuple[int, int, int], generation: int) -> Generator:
    """Draw a generator's weights; each re-initialisation is a generation of its own."""
    with forked_global(recipe.seed, "build", "generator", generation):
        return artefacts.build_generator(recipe.method.generator, shape)


def warm_up(run_dir: RunDir, state: State, context: Step, recipe: Recipe) -> None:
    """Train the generator alone, without adversary, before the first student step."""
    for update in range(context.method.generator.warmup):
        generator_step(state, context, purpose=f"warm-up-{update}", adversary=0.0)
        care_for_generator(run_dir, state, context, recipe)


def generator_step(
    state: State, context: Step, *, purpose: str = "generator", adversary: float | None = None
) -> dict[str, Tensor]:
    """Update G on x = G(z): confident, class-balanced, teacher-like statistics, and far from the student."""
    table = context.method.generator
    if adversary is None:
        adversary = schedules.adversary_weight(table, state.step, context.steps)
    z = context.draws.normal(state.step, purpose, context.method.student.batch_size, table.latent)
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
    weights = list(state.generator.parameters())
    gradients = torch.autograd.grad(torch.stack(list(parts.values())).sum(), weights)  # the student keeps none
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    state.generator_optimizer.step()
    decay = schedules.ema_decay(context.method.replay.ema_decay, state.updates_since_init)
    average_into(state.generator_ema, state.generator, decay)
    state.generator_updates += 1
    state.updates_since_init += 1
    state.health = [*state.health, health.measure(x, seen.logits)][-context.method.health.window :]
    return parts


def student_step(state: State, context: Step) -> dict[str, Tensor]:
    """Update S towards T on novel images G(z) and replayed ones, in one batch; then let the replay learn."""
    method, step = context.method, state.step
    table = method.student
    with torch.no_grad(), state.generator_precision():
        state.generator.train()
        novel = state.generator(context.draws.normal(step, "novel", table.batch_size, method.generator.latent))
    x = novel
    if state.replay.ready and method.replay.batch_size and step >= method.replay.start * context.steps:
        x = torch.cat([novel, state.replay.sample(step, method.replay.batch_size, context.draws)])
    target = context.teacher.logits(x)

    state.student.train()
    with state.student_precision():
        answers = state.student(x).float()
    loss = losses.distance(answers, target, table.loss, table.temperature)
    state.student_optimizer.zero_grad()
    loss.backward()
    for group in state.student_optimizer.param_groups:
        group["lr"] = schedules.learning_rate(table, step, context.steps)
    state.student_optimizer.step()
    if table.ema_decay:
        average_into(state.student_ema, state.student, schedules.ema_decay(table.ema_decay, step))

    agree = (answers.argmax(1) == target.argmax(1)).float()
    logged = {"student": loss.detach(), "agreement_novel": agree[: len(novel)].mean()}
    if len(x) > len(novel):
        logged["agreement_replay"] = agree[len(novel) :].mean()
    if step % method.generator.period < method.vae.updates or method.replay.source != "vae":
        learned = state.replay.learn(step, novel, target[: len(novel)], context.draws)
        logged |= {f"replay_{name}": value.detach() for name, value in learned.items()}
    return logged


def care_for_generator(run_dir: RunDir, state: State, context: Step, recipe: Recipe) -> None:
    """Re-initialise the generator when the schedule says so or it has collapsed; stop when that did not help."""
    method = context.method
    scheduled = (
        method.generator.reinit_period > 0
        and state.updates_since_init >= method.generator.reinit_period
        and state.step < method.generator.reinit_until * context.steps
    )
    sick = None
    if state.updates_since_init >= method.health.grace:
        sick = health.collapse(state.health, method.health)
    if not (scheduled or sick):
        return
    if sick:
        if state.rescues >= method.health.max_reinits:
            raise GateError(
                f"distillation stopped at step {state.step}: {sick}, also after {state.rescues} re-initialisations. "
                f"{_last_good(run_dir)} Lower method.generator.lr or raise method.generator.balance."
            )
        state.rescues += 1
        console.warn(f"step {state.step}: {sick}; re-initialising it.")
    state.restart_generator(build_generator(recipe, state.generator.shape, state.reinits + 1))
    reason = sick or "schedule"
    run_dir.append_event({"kind": "reinit", "step": state.step, "generation": state.reinits, "reason": reason})


def log(run_dir: RunDir, state: State, logged: dict[str, Tensor], clock: Callable[[], float]) -> str:
    """Append the step's losses and health to events.jsonl and return the facts for the progress line."""
    values = {name: float(value) for name, value in logged.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise GateError(
            f"distillation stopped at step {state.step}: a loss is not finite "
            f"({', '.join(k for k, v in values.items() if not math.isfinite(v))}). {_last_good(run_dir)} "
            'Lower method.student.lr or method.generator.lr, or set precision = "fp32".'
        )
    health_now = (state.health or [{}])[-1]
    seconds = round(clock(), 3)
    run_dir.append_event({"kind": "train", "step": state.step, "seconds": seconds, **values, **health_now})
    facts = f"loss {values['student']:.3f} · agreement {values['agreement_novel']:.1%} novel"
    if "agreement_replay" in values:
        facts += f", {values['agreement_replay']:.1%} replay"
    return facts


def training_clock(run_dir: RunDir) -> Callable[[], float]:
    """Return a clock of the seconds spent training, those before an interruption included."""
    past = run_dir.events("train")[-1:]
    offset = float(past[0]["seconds"]) if past else 0.0
    start = time.monotonic()
    return lambda: offset + time.monotonic() - start


def log_accuracy(run_dir: RunDir, state: State, accuracy: Accuracy | None) -> None:
    """Append an accuracy point of raw and averaged weights; nothing else ever depends on it."""
    if accuracy is None:
        return
    raw, average = accuracy(state.student), accuracy(state.student_ema)
    run_dir.append_event({"kind": "accuracy", "step": state.step, "raw": raw, "ema": average})


def publish(
    run_dir: RunDir, recipe: Recipe, state: State, *, key: str, inputs: dict[str, str], environment: dict[str, Any]
) -> None:
    """Publish distill/ by its record alone: the final checkpoint's files are the outputs."""
    folder = run_dir.stage("distill")
    final = f"checkpoints/step-{state.step:08d}"
    outputs = {f"{final}/{name}": value for name, value in hash_outputs(folder / final).items()}
    size = state.replay.size_bytes()
    image = math.prod(state.generator.shape)
    notes = {
        "steps": state.step,
        "final": final,
        "reinits": state.reinits,
        "rescues": state.rescues,
        "replay": recipe.method.replay.source,
        "replay_bytes": size,
        "replay_bytes_as_uint8_images": size // image,
        "environment": environment,
        "student": str(registry.ArchSpec.parse(recipe.student.name)),
    }
    slice_ = {"student": recipe.student.model_dump(mode="json"), "method": recipe.method.model_dump(mode="json")}
    record = Record("distill", 1, key, slice_, inputs, outputs, notes=notes)
    failpoint("distill.before_record")
    record.write(folder)


def _restore(run_dir: RunDir, state: State, key: str, environment: dict[str, Any]) -> None:
    found, warnings = checkpoint.newest(run_dir, key=key)
    for warning in warnings:
        console.warn(warning)
    if found is None:
        run_dir.truncate_events(0)
        return
    if found.environment != environment:
        changed = [name for name in environment if environment[name] != found.environment.get(name)]
        console.warn(f"resumed under another {', '.join(changed)}: the result is not bit-identical to an untouched run")
        run_dir.note_difference(found.step, {n: [found.environment.get(n), environment[n]] for n in changed})
    state.load_state_dict(found.state)
    run_dir.truncate_events(found.events_bytes)
    if state.step:
        console.say(f"continuing at step {state.step}")


def _refuse_sick_state(state: State, run_dir: RunDir) -> None:
    if not state.all_finite():
        raise GateError(
            f"distillation stopped at step {state.step}: weights are not finite. {_last_good(run_dir)} "
            "Lower method.student.lr or method.generator.lr."
        )


def _last_good(run_dir: RunDir) -> str:
    kept = sorted((run_dir.path / "distill" / "checkpoints").glob("step-*"))
    return f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint was written yet."
