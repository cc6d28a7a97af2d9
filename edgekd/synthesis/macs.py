"""The multiply-accumulates of a distillation's steps, counted once on a few images: all are linear in their number.

They are counted on networks that are thrown away. A counter looks into every operator, and with it the last bits of a
gradient may differ, so the networks that are kept are never counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgekd.models.flops import FlopsByDtype
from edgekd.synthesis import schedules
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, answered_views, generator_step, student_step

_FEW = 2
"""Images a step that are counted; BatchNorm in train mode needs more than one."""


@dataclass(frozen=True)
class MacRates:
    """Multiply-accumulates of all networks an image, forward and backward."""

    answer: float
    """Of the teacher's answer to one view."""
    update: float
    """Of showing one view to the student, and of its update."""
    generated: float
    """Of making one novel image, without a gradient."""
    replayed: float
    """Of making one replayed image."""
    generator_update: float
    adversary: float
    """Of asking the student, too, in a generator update."""
    replay_update: float
    """Of what the replay learns from one image."""
    rehearsed: float
    """Of making one image that the replay rehearses."""

    @classmethod
    def measure(cls, context: StepContext, build_state: Callable[[StepContext], State]) -> MacRates:
        """Count the work of a few images on networks that `build_state` makes for this alone."""
        resting, learning = _few_images(context), _few_images(context, learning=True)
        state = build_state(resting)
        with_generator = _counted(student_step, state, resting)
        view = _counted(student_step, state, _procedural(resting))
        answer = _counted(answered_views, state, _procedural(resting))
        first = _counted(student_step, state, learning) - with_generator
        second = _counted(student_step, state, learning) - with_generator
        rehearsed = context.recipe.method.vae.rehearsed > 0
        update, adversary = 0, 0
        if context.uses_generator:
            update = _counted(lambda *work: generator_step(*work, adversarial_weight=0.0), state, resting)
            adversary = _counted(lambda *work: generator_step(*work, adversarial_weight=1.0), state, resting) - update
        state.replay.assume_ready()
        replaying = _procedural(_few_images(context, replaying=True))
        replayed = _counted(student_step, state, replaying) - 2 * view if replaying.replays(state) else 0
        return cls(
            answer=answer / _FEW,
            update=(view - answer) / _FEW,
            generated=(with_generator - view) / _FEW,
            replayed=replayed / _FEW,
            generator_update=update / _FEW,
            adversary=adversary / _FEW,
            replay_update=first / _FEW,
            rehearsed=(second - 2 * first) / _FEW if rehearsed and second > first else 0.0,
        )

    def of_student_step(self, state: State, context: StepContext) -> int:
        """Return the multiply-accumulates of the state's next student step."""
        method, table = context.recipe.method, context.recipe.method.student
        begins = state.step % table.span == 0 or state.answered is None
        sizes = context.part_sizes(state) if state.answered is None or begins else state.answered.sizes
        macs = (sizes.novel + sizes.replayed) * self.update
        if begins:
            made = sizes.generated * self.generated + sizes.replayed * self.replayed
            macs += table.answered_batches * ((sizes.novel + sizes.replayed) * self.answer + made)
        if context.replay_learns(state):
            macs += method.vae.novel * self.replay_update
            if state.step > 0:  # there is nothing to rehearse before the first update
                macs += method.vae.rehearsed * (self.replay_update + self.rehearsed)
        return round(macs)

    def of_generator_step(self, context: StepContext, step: int) -> int:
        """Return the multiply-accumulates of a generator step."""
        table = context.recipe.method
        opposed = schedules.adversarial_weight(table.generator, step, context.steps) > 0
        return self.of_warmup(context) + round(opposed * table.generator_batch_size * self.adversary)

    def of_warmup(self, context: StepContext) -> int:
        """Return the multiply-accumulates of a generator step without an adversary."""
        return round(context.recipe.method.generator_batch_size * self.generator_update)


def _counted(work: Callable[[State, StepContext], object], state: State, context: StepContext) -> int:
    """Return the multiply-accumulates of a piece of work."""
    with FlopsByDtype() as counter:
        work(state, context)
    total: int = sum(counter.flops.values())
    return total // 2


def _few_images(context: StepContext, *, learning: bool = False, replaying: bool = False) -> StepContext:
    """Return the context of steps on a few generated images, in which the replay learns, replays or does neither."""
    method = context.recipe.method
    replayed = min(_FEW, method.replay.batch_size) if replaying else 0
    tables = {
        "generator": method.generator.model_copy(update={"batch_size": 0}),
        "student": method.student.model_copy(update={"batch_size": _FEW, "reuse": 1}),
        "replay": method.replay.model_copy(update={"batch_size": replayed, "start": 0.0}),
        "vae": method.vae.model_copy(update={"novel": _FEW, "rehearsed": min(_FEW, method.vae.rehearsed)}),
        "consolidation": method.consolidation.model_copy(update={"start": float(learning)}),
        "procedural": method.procedural.model_copy(update={"share": (0.0, 0.0)}),
    }
    few = method.model_copy(update=tables)
    return replace(context, recipe=context.recipe.model_copy(update={"method": few}))


def _procedural(context: StepContext) -> StepContext:
    """Return the context of the same steps on images that no network makes."""
    method = context.recipe.method
    table = method.procedural.model_copy(update={"share": (1.0, 1.0)})
    return replace(
        context,
        recipe=context.recipe.model_copy(update={"method": method.model_copy(update={"procedural": table})}),
    )
