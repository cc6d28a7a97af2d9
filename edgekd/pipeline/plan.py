"""What a distillation is going to cost: measured on throwaway networks before the first real step."""

from __future__ import annotations

import math
import platform
import resource
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pydantic import JsonValue

from edgekd import console, machine
from edgekd.errors import MachineError, StoppedEarly
from edgekd.models import artefacts
from edgekd.pipeline import expectation
from edgekd.pipeline.cost import NOTHING, Clock, Cost, total
from edgekd.pipeline.expectation import Expectation
from edgekd.pipeline.peak import effective_peak
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.run.cards.ledger import CostPart, PlanningPart
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.files import digest
from edgekd.stages import distill
from edgekd.stages.catalog import DISTILL, INGEST
from edgekd.stopping import Stop
from edgekd.synthesis.images.procedural import ProceduralImages
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, generator_step, student_step
from edgekd.synthesis.teacher import Teacher


@dataclass(frozen=True)
class CostPlan:
    """The expected cost of a distillation: seconds and arithmetic of a step by part, memory."""

    steps: int
    cost_by_part: Mapping[str, Cost]
    """Mean cost a step of updating the generator, showing novel images to the student, training the replay, and showing
    replayed images."""
    waits: bool
    """Whether replay begins only once it is good enough, so that `replayed` may be paid from early on or never."""
    warmup: Cost
    """Of the generator's updates before the first step."""
    peak_memory_bytes: int
    device: str
    threads: int
    precision: str
    parameters: dict[str, int]
    """Parameters of each network that is trained."""
    machine_peak_flops: float
    """FLOP/s of matrix products on this machine, in the mix of precisions that the step runs in."""
    input_shape: tuple[int, ...]
    starts_from_teacher: bool
    """Whether the student begins with weights of the teacher."""

    @property
    def step(self) -> Cost:
        """Mean cost of a step, all parts."""
        return total(self.cost_by_part.values())

    @property
    def step_without_replay(self) -> Cost:
        """The same where nothing is ever replayed."""
        return total(cost for part, cost in self.cost_by_part.items() if part != "replayed")

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of a step, with replay from its start on."""
        return self.step.seconds

    @property
    def eta_seconds(self) -> float:
        """Expected seconds of training, with replay from its start on."""
        return self._total(self.step).seconds

    @property
    def eta_seconds_without_replay(self) -> float:
        """The same where nothing is ever replayed."""
        return self._total(self.step_without_replay).seconds

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the whole run, with replay from its start on."""
        return sum(self._total(self.step).flops.values()) / 2

    @property
    def macs_without_replay(self) -> float:
        """The same where nothing is ever replayed."""
        return sum(self._total(self.step_without_replay).flops.values()) / 2

    @property
    def flops_per_step(self) -> float:
        """FLOPs of one step, all parts."""
        return sum(self.step.flops.values())

    @property
    def utilization(self) -> float:
        """Achieved FLOP/s over the machine's peak."""
        return self.flops_per_step / self.seconds_per_step / self.machine_peak_flops

    @property
    def expectation(self) -> Expectation | None:
        """What students like this one reached at such a budget; None where nothing like it was measured."""
        return expectation.nearest(self.macs, self.input_shape, starts_from_teacher=self.starts_from_teacher)

    def with_steps(self, steps: int) -> CostPlan:
        """Return the plan for another number of steps."""
        return replace(self, steps=steps)

    def steps_within(self, seconds: float) -> int:
        """Return how many steps, at least one, fit into the seconds, with replay from its start on."""
        return max(1, math.floor((seconds - self.warmup.seconds) / self.seconds_per_step))

    def sentence(self) -> str:
        """Return the plan in one line."""
        memory = f"{self.peak_memory_bytes / 2**30:.1f} GiB"
        where = f"{self.device}, {self.precision}, {self.threads} threads"
        rate = f"{1000 * self.seconds_per_step:.0f} ms a step"
        eta = f"about {console.duration(self.eta_seconds)}"
        if self.waits:
            eta += f" ({console.duration(self.eta_seconds_without_replay)} if replay never begins)"
        return f"{where}, {rate}, {eta}, {memory} memory"

    def to_json(self) -> dict[str, JsonValue]:
        """Return what `distill --dry-run --json` prints."""
        near = self.expectation
        return {
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
            "flops_per_step": self.flops_per_step,
            "flops_by_part": {part: sum(cost.flops.values()) for part, cost in self.cost_by_part.items()},
            "parameters": {**self.parameters},
            "machine_peak_flops": self.machine_peak_flops,
            "utilisation": self.utilization,
            "eta_seconds": self.eta_seconds,
            "eta_seconds_without_replay": self.eta_seconds_without_replay,
            "macs": self.macs,
            "macs_without_replay": self.macs_without_replay,
            "peak_memory_bytes": self.peak_memory_bytes,
            "expectation": None if near is None else near.model_dump(mode="json"),
        }

    def _total(self, step: Cost) -> Cost:
        return self.warmup.plus(step.times(self.steps))


def measure_cost(run_dir: RunDir, recipe: Recipe, stop: Stop, *, least_steps: int = 1) -> CostPlan:
    """Time each kind of update on throwaway networks and weigh them by how often a run makes them.

    The run's own state is untouched. Each kind is timed `least_steps` times at least. What was measured before a stop
    is kept in the ledger, and the next call goes on from there: each measures one thing at least.
    """
    device = machine.resolve_device(recipe.machine.device)
    threads = machine.use_threads(recipe.machine.threads)
    machine.keep_malloc_pages()
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, recipe.precision, device)
    steps = recipe.method.steps_for(description.pixels, description.classes)
    pictures = ProceduralImages(description.input_shape) if recipe.images.folder else None  # of the same cost
    context = StepContext(recipe, steps, teacher, description, KeyedDraws(recipe.seed, "plan", device), pictures)
    key = _key(run_dir, recipe, steps, device, least_steps)
    costs, peak_before = _measured_before(run_dir, key)
    try:
        state = distill.build_state(context)
        waits = bool(state.replay.waits_for) and recipe.method.replay.batch_size > 0
        state.replay.assume_ready()
        clock = Clock(stop, device, least_steps, costs)
        rehearses = clock.once("all", lambda: _everything(state, context))
        cost_by_part, warmup = _costs(state, context, clock, rehearses=rehearses)
    except StoppedEarly:
        parts = {name: CostPart(seconds=c.seconds, flops=_by_name(c.flops)) for name, c in costs.items()}
        peak = max(peak_before, _peak_memory_bytes(device))
        run_dir.note_planning(PlanningPart(key=key, costs=parts, peak_memory_bytes=peak))
        raise
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{device} has too little memory for batches of {recipe.method.student.batch_size}; "
            f"{_largest_batch(context, stop)}"
        ) from error
    kinds = {"bf16" if p.bf16 else "fp32" for p in (teacher.precision, state.student_autocast)}
    return CostPlan(
        steps=steps,
        cost_by_part=cost_by_part,
        waits=waits,
        warmup=warmup,
        peak_memory_bytes=max(peak_before, _peak_memory_bytes(device)),
        device=str(device),
        threads=threads,
        precision="/".join(sorted(kinds)),
        parameters=_parameters(state),
        machine_peak_flops=effective_peak(Counter(total(cost_by_part.values()).flops), device),
        input_shape=description.input_shape,
        starts_from_teacher=bool(state.inherited),
    )


def _key(run_dir: RunDir, recipe: Recipe, steps: int, device: torch.device, least_steps: int) -> str:
    """A hash of what the times of a plan depend on."""
    teacher = Record.read(run_dir.stage(INGEST.folder))
    work = [DISTILL.slice(recipe), steps, least_steps, None if teacher is None else teacher.key]
    return digest([*work, str(device), torch.get_num_threads(), torch.__version__, platform.node()])


_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def _by_name(flops: Mapping[torch.dtype, float]) -> dict[str, float]:
    return {str(dtype): float(count) for dtype, count in flops.items()}


def _measured_before(run_dir: RunDir, key: str) -> tuple[dict[str, Cost], int]:
    """Return what an earlier planning of the same had measured when it was stopped, and its peak memory."""
    before = run_dir.ledger().planning
    if before is None or before.key != key or any(part.flops.keys() - _DTYPES for part in before.costs.values()):
        return {}, 0
    costs = {
        name: Cost(part.seconds, {_DTYPES[dtype]: count for dtype, count in part.flops.items()})
        for name, part in before.costs.items()
    }
    return costs, before.peak_memory_bytes


def _costs(state: State, context: StepContext, clock: Clock, *, rehearses: bool) -> tuple[dict[str, Cost], Cost]:
    """Return the mean cost a step of each part, and the cost of the generator's warm-up.

    `rehearses` says whether the VAE of this state has had its first update, which has nothing to rehearse.
    """
    method, steps, span = context.recipe.method, context.steps, context.recipe.method.student.span
    cycle = math.lcm(method.generator.period, span)
    middle = cycle * (steps // 2 // cycle)  # here the replay may learn, and procedural images have their mean share

    def generator_cost(name: str, step: int) -> Cost:
        def work() -> None:
            state.step = step
            generator_step(state, context)

        return clock.cost(name, work)

    def span_cost(name: str, where: StepContext, *, cold: bool = False) -> Cost:
        def work() -> None:
            for state.step in range(middle, middle + span):
                student_step(state, where)

        return clock.cost(name, work, cold=cold)

    parts, warmup = {}, NOTHING
    if context.uses_generator:
        updates = sum(map(context.generator_learns, range(steps)))
        last = steps - 1  # an adversary has its full weight then
        parts["generator"] = generator_cost("generator", last).times(updates / steps)
        if method.generator.warmup:
            warmup = generator_cost("warmup", 0).times(method.generator.warmup)
    shown = span_cost("student", _changed(context, explores=False, replays=False))
    parts["student"] = shown.times(1 / span)
    learning, period = _changed(context, explores=True, replays=False), method.generator.period
    learns = [state.replay.learns_at(step % period) for step in range(context.exploration_steps)]
    if state.replay.networks() and any(learns):
        in_span = sum(state.replay.learns_at(place % period) for place in range(span))
        parts["replay"] = (
            span_cost("replay", learning, cold=not rehearses).minus(shown).times(sum(learns) / in_span / steps)
        )
    if state.replay.ready and method.replay.batch_size:
        replaying = span_cost("replayed", _changed(context, explores=False, replays=True))
        parts["replayed"] = replaying.minus(shown).times((1 - method.replay.start) / span)
    return parts, warmup


def _changed(context: StepContext, *, explores: bool, replays: bool) -> StepContext:
    """Return the context in which all steps explore and replay, or none does."""
    method = context.recipe.method
    tables = {
        "consolidation": method.consolidation.model_copy(update={"start": float(explores)}),
        "replay": method.replay.model_copy(update={"start": float(not replays)}),
    }
    method = method.model_copy(update=tables)
    return replace(context, recipe=context.recipe.model_copy(update={"method": method}))


def _everything(state: State, context: StepContext) -> None:
    """Make the updates that take the most memory: all of them, with replay at work and the VAE rehearsing."""
    everything = _changed(context, explores=True, replays=True)
    if everything.uses_generator:
        generator_step(state, everything)
    for _ in range(2):  # the VAE rehearses from its second update on
        student_step(state, everything)


def _parameters(state: State) -> dict[str, int]:
    """The number of parameters of each network that the state holds."""
    networks = {"student": state.student, "generator": state.generator, **state.replay.networks()}
    return {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}


def _largest_batch(context: StepContext, stop: Stop) -> str:
    """Halve the batch until a step with all its updates fits, and say so."""
    recipe = context.recipe
    size = recipe.method.student.batch_size // 2
    while size >= 8:
        torch.cuda.empty_cache()
        stop.raise_if_requested("planning")
        if _fits(context, size):
            novel = min(size, recipe.method.vae.novel)
            return f"a batch of {size} fits: --set method.student.batch_size={size} --set method.vae.novel={novel}."
        size //= 2
    return "not even a batch of 8 fits; use --device cpu or a smaller teacher."


def _fits(context: StepContext, size: int) -> bool:
    recipe = context.recipe
    student = recipe.method.student.model_copy(update={"batch_size": size})
    vae = recipe.method.vae.model_copy(update={"novel": min(size, recipe.method.vae.novel)})
    method = recipe.method.model_copy(update={"student": student, "vae": vae})
    smaller = replace(context, recipe=recipe.model_copy(update={"method": method}))
    try:
        state = distill.build_state(smaller)
        state.replay.assume_ready()
        _everything(state, smaller)
    except torch.OutOfMemoryError:
        return False
    return True


def _peak_memory_bytes(device: torch.device) -> int:
    """The peak memory: of the device for CUDA, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
