"""What a distillation is going to cost: measured on throwaway networks before the first real step."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pydantic import JsonValue

from edgekd import console, machine
from edgekd.errors import MachineError
from edgekd.models import artefacts
from edgekd.pipeline.peak import effective_peak
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.run.directory import RunDir
from edgekd.stages import distill
from edgekd.stopping import Stop
from edgekd.synthesis.images.procedural import ProceduralImages
from edgekd.synthesis.macs import FlopsByDtype
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, generator_step, student_step
from edgekd.synthesis.teacher import Teacher

_PERIODS = 1000
"""Length of the imagined run whose last period is timed."""
_LONGEST_S = 60.0
"""No further round is timed after so many seconds: where one takes minutes, the first says enough."""


@dataclass(frozen=True)
class CostPlan:
    """The expected cost of a distillation, with the arithmetic of a step by part."""

    steps: int
    seconds_per_step: float
    peak_memory_bytes: int
    device: str
    threads: int
    precision: str
    flops_by_part: dict[str, float]
    """FLOPs a step of the generator's, the student's and the replay's updates, at their share of a step."""
    parameters: dict[str, int]
    """Parameters of each network that is trained."""
    machine_peak_flops: float
    """FLOP/s of matrix products on this machine, in the mix of precisions that the step runs in."""

    @property
    def eta_seconds(self) -> float:
        """Expected seconds of training."""
        return self.steps * self.seconds_per_step

    @property
    def flops_per_step(self) -> float:
        """FLOPs of one step, all parts."""
        return sum(self.flops_by_part.values())

    @property
    def utilization(self) -> float:
        """Achieved FLOP/s over the machine's peak."""
        return self.flops_per_step / self.seconds_per_step / self.machine_peak_flops

    def with_steps(self, steps: int) -> CostPlan:
        """Return the plan for another number of steps."""
        return replace(self, steps=steps)

    def sentence(self) -> str:
        """Return the plan in one line."""
        memory = f"{self.peak_memory_bytes / 2**30:.1f} GiB"
        where = f"{self.device}, {self.precision}, {self.threads} threads"
        rate = f"{1000 * self.seconds_per_step:.0f} ms a step"
        return f"{where}, {rate}, about {console.duration(self.eta_seconds)}, {memory} memory"

    def to_json(self) -> dict[str, JsonValue]:
        """Return what `distill --dry-run --json` prints."""
        return {
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
            "flops_per_step": self.flops_per_step,
            "flops_by_part": {**self.flops_by_part},
            "parameters": {**self.parameters},
            "machine_peak_flops": self.machine_peak_flops,
            "utilisation": self.utilization,
            "eta_seconds": self.eta_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def measure_cost(run_dir: RunDir, recipe: Recipe, stop: Stop, *, least_steps: int = 1) -> CostPlan:
    """Time whole generator periods after one of warming up, with replay at work; the run's own state is untouched."""
    device = machine.resolve_device(recipe.machine.device)
    threads = machine.use_threads(recipe.machine.threads)
    machine.keep_malloc_pages()
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, recipe.precision, device)
    steps = recipe.method.steps_for(description.pixels, description.classes)
    pictures = ProceduralImages(description.input_shape) if recipe.images.folder else None  # of the same cost
    context = StepContext(recipe, steps, teacher, description, KeyedDraws(recipe.seed, "plan", device), pictures)
    share = context.exploration_steps / steps
    try:
        state = distill.build_state(context)
        state.replay.assume_ready()
        exploring = _exploring(context)
        # The first call of each kernel is slow, and the VAE rehearses from its second update on.
        _period(state, exploring, stop)
        parts = {name: _scaled(flops, share) for name, flops in _flops(state, exploring).items()}
        seconds = share * _seconds_per_step(_period, state, exploring, stop, least_steps)
        if share < 1:
            parts["consolidation"] = _scaled(_consolidation_flops(state, context, stop), 1 - share)
            seconds += (1 - share) * _seconds_per_step(_consolidation, state, context, stop, least_steps)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{device} has too little memory for batches of {recipe.method.student.batch_size}; "
            f"{_largest_batch(context, stop)}"
        ) from error
    kinds = {"bf16" if p.bf16 else "fp32" for p in (teacher.precision, state.student_autocast)}
    total: Counter[torch.dtype] = sum(parts.values(), Counter())
    return CostPlan(
        steps=steps,
        seconds_per_step=seconds,
        peak_memory_bytes=_peak_memory_bytes(device),
        device=str(device),
        threads=threads,
        precision="/".join(sorted(kinds)),
        flops_by_part={name: float(sum(flops.values())) for name, flops in parts.items()},
        parameters=_parameters(state),
        machine_peak_flops=effective_peak(total, device),
    )


def _exploring(context: StepContext) -> StepContext:
    """The context of a run of `_PERIODS` generator periods without consolidation."""
    return _consolidating_from(1.0, replace(context, steps=_PERIODS * context.recipe.method.generator.period))


def _consolidating_from(start: float, context: StepContext) -> StepContext:
    method = context.recipe.method
    method = method.model_copy(update={"consolidation": method.consolidation.model_copy(update={"start": start})})
    return replace(context, recipe=context.recipe.model_copy(update={"method": method}))


def _late(context: StepContext, offset: int = 0) -> int:
    """A step with the given place in the last period, when adversary and replay take part."""
    return context.steps - context.recipe.method.generator.period + offset


def _period(state: State, context: StepContext, stop: Stop) -> int:
    """Make the updates of one generator period; return the number of steps."""
    period = context.recipe.method.generator.period
    state.step = _late(context)
    if context.uses_generator:
        generator_step(state, context)
    for offset in range(period):
        stop.raise_if_requested("planning")
        state.step = _late(context, offset)
        student_step(state, context)
    return period


def _consolidation(state: State, context: StepContext, stop: Stop) -> int:
    """Make one of the last steps, in which the student alone learns; return 1."""
    stop.raise_if_requested("planning")
    state.step = context.steps - 1
    student_step(state, context)
    return 1


def _seconds_per_step(
    work: Callable[[State, StepContext, Stop], int],
    state: State,
    context: StepContext,
    stop: Stop,
    least_steps: int,
) -> float:
    """The median over three rounds of `work`, or more if they are short, fewer if they take minutes.

    A median, since other work only ever slows. `work` or what it consists of has run before.
    """
    rounds: list[float] = []
    steps, total = 0, 0.0
    while not rounds or (total < _LONGEST_S and (len(rounds) < 3 or steps < least_steps or total < 1.0)):
        start = time.perf_counter()
        done = work(state, context, stop)
        if context.draws.device.type == "cuda":
            torch.cuda.synchronize(context.draws.device)
        seconds = time.perf_counter() - start
        rounds.append(seconds / done)
        steps, total = steps + done, total + seconds
    return statistics.median(rounds)


def _consolidation_flops(state: State, context: StepContext, stop: Stop) -> Counter[torch.dtype]:
    with FlopsByDtype() as student:
        _consolidation(state, context, stop)
    return Counter(student.flops)


def _flops(state: State, context: StepContext) -> dict[str, Counter[torch.dtype]]:
    """Count the FLOPs of one generator period by part, divided by its number of steps."""
    method = context.recipe.method
    period = method.generator.period
    state.step = _late(context)
    with FlopsByDtype() as generator:
        if context.uses_generator:
            generator_step(state, context)
    with FlopsByDtype() as both:
        student_step(state, context)
    with FlopsByDtype() as student:  # a step in which the replay does not learn
        student_step(state, _consolidating_from(0.0, context))
    return {
        "generator": _scaled(generator.flops, 1 / period),
        "student": student.flops,
        "replay": _scaled(both.flops - student.flops, sum(map(state.replay.learns_at, range(period))) / period),
    }


def _parameters(state: State) -> dict[str, int]:
    """The number of parameters of each network that the state holds."""
    networks = {"student": state.student, "generator": state.generator, **state.replay.networks()}
    return {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}


def _scaled(flops: Counter[torch.dtype], share: float) -> Counter[torch.dtype]:
    return Counter({dtype: math.ceil(count * share) for dtype, count in flops.items()})


def _largest_batch(context: StepContext, stop: Stop) -> str:
    """Halve the batch until one period fits and say so."""
    recipe = context.recipe
    size = recipe.method.student.batch_size // 2
    while size >= 8:
        torch.cuda.empty_cache()
        if _fits(context, size, stop):
            novel = min(size, recipe.method.vae.novel)
            return f"a batch of {size} fits: --set method.student.batch_size={size} --set method.vae.novel={novel}."
        size //= 2
    return "not even a batch of 8 fits; use --device cpu or a smaller teacher."


def _fits(context: StepContext, size: int, stop: Stop) -> bool:
    recipe = context.recipe
    student = recipe.method.student.model_copy(update={"batch_size": size})
    vae = recipe.method.vae.model_copy(update={"novel": min(size, recipe.method.vae.novel)})
    method = recipe.method.model_copy(update={"student": student, "vae": vae})
    smaller = replace(context, recipe=recipe.model_copy(update={"method": method}))
    try:
        state = distill.build_state(smaller)
        state.replay.assume_ready()
        _period(state, _exploring(smaller), stop)
    except torch.OutOfMemoryError:
        return False
    return True


def _peak_memory_bytes(device: torch.device) -> int:
    """The peak memory: of the device for CUDA, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
