"""What a distillation is going to cost: measured on throwaway networks before the first real step."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace

import torch

from edgekd import console, machine
from edgekd.errors import MachineError
from edgekd.recipe import Recipe
from edgekd.rng import Draws
from edgekd.rundir import RunDir
from edgekd.stages import artefacts, distill
from edgekd.stopping import Stop
from edgekd.synthesis.state import State
from edgekd.synthesis.teacher import Teacher


@dataclass(frozen=True)
class Plan:
    """The expected cost of a distillation."""

    steps: int
    seconds_per_step: float
    peak_memory_bytes: int
    device: str
    threads: int
    precision: str

    @property
    def eta_seconds(self) -> float:
        """Expected seconds of training."""
        return self.steps * self.seconds_per_step


def with_steps(cost: Plan, steps: int) -> Plan:
    """Return the plan for another number of steps."""
    return replace(cost, steps=steps)


def sentence(cost: Plan) -> str:
    """Return the plan in one line."""
    memory = f"{cost.peak_memory_bytes / 2**30:.1f} GiB"
    where = f"{cost.device}, {cost.precision}, {cost.threads} threads"
    rate = f"{1000 * cost.seconds_per_step:.0f} ms a step"
    return f"{where}, {rate}, about {console.duration(cost.eta_seconds)}, {memory} memory"


def to_json(cost: Plan) -> dict[str, float]:
    """Return what `distill --dry-run --json` prints."""
    return {
        "steps": cost.steps,
        "seconds_per_step": cost.seconds_per_step,
        "eta_seconds": cost.eta_seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
    }


def measure(run_dir: RunDir, recipe: Recipe, stop: Stop, *, least_steps: int = 1) -> Plan:
    """Time whole generator periods after one of warming up, with replay at work; the run's own state is untouched."""
    device = machine.resolve_device(recipe.machine.device)
    threads = machine.use_threads(recipe.machine.threads)
    teacher, description = artefacts.load_teacher(run_dir, recipe.precision, device)
    state = distill.build(recipe, teacher, description, device)
    steps = recipe.method.steps_for(description.pixels, description.classes)
    draws = Draws(recipe.seed, "plan", device)
    context = distill.Context(recipe, steps, teacher, draws)
    period = recipe.method.generator.period
    state.replay.assume_ready()
    try:
        _period(state, context, period)
        timed, start = 0, time.perf_counter()
        while timed < least_steps or time.perf_counter() - start < 1.0:
            stop.raise_if_requested("planning")
            _period(state, context, period)
            timed += period
        elapsed = time.perf_counter() - start
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{device} has too little memory for batches of {recipe.method.student.batch_size}; "
            f"{_largest_batch(recipe, teacher, description, device)}"
        ) from error
    kinds = {"bf16" if p.bf16 else "fp32" for p in (teacher.precision, state.student_precision)}
    return Plan(steps, elapsed / timed, _peak_memory_bytes(device), str(device), threads, "/".join(sorted(kinds)))


def _period(state: State, context: distill.Context, period: int) -> None:
    """Make the steps of one generator period, late enough that replay takes part."""
    first = context.steps - context.steps % period
    distill.generator_step(state, context)
    for offset in range(period):
        state.step = first + offset
        distill.student_step(state, context)
    if context.draws.device.type == "cuda":
        torch.cuda.synchronize(context.draws.device)


def _largest_batch(recipe: Recipe, teacher: Teacher, description: artefacts.Description, device: torch.device) -> str:
    """Halve the batch until one period fits and say so."""
    size = recipe.method.student.batch_size // 2
    while size >= 8:
        torch.cuda.empty_cache()
        student = recipe.method.student.model_copy(update={"batch_size": size})
        vae = recipe.method.vae.model_copy(update={"novel": min(size, recipe.method.vae.novel)})
        smaller = recipe.model_copy(
            update={"method": recipe.method.model_copy(update={"student": student, "vae": vae})}
        )
        try:
            state = distill.build(smaller, teacher, description, device)
            state.replay.assume_ready()
            context = distill.Context(smaller, 100, teacher, Draws(recipe.seed, "plan", device))
            _period(state, context, recipe.method.generator.period)
        except torch.OutOfMemoryError:
            size //= 2
            continue
        return f"a batch of {size} fits: --set method.student.batch_size={size}."
    return "not even a batch of 8 fits; use --device cpu or a smaller teacher."


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: of the device for CUDA, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
