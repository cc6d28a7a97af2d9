"""What several verbs say in the same words: the opening lines, what the probe saw, and a headline's caveat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd import console
from edgekd.models.families.plain import in_short
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir
from edgekd.text import counted, sizes

if TYPE_CHECKING:
    from edgekd.models.footprint import Footprint
    from edgekd.pipeline.plan import CostPlan
    from edgekd.recipe import Recipe


def print_opening(run: RunDir, recipe: Recipe, size: Footprint) -> None:
    """Print the four lines that a distillation begins with, before its cost is measured, which may take minutes."""
    card = run.read(TeacherCard)
    assumed = [f"{choice.what} {choice.value} assumed ({choice.flag})" for choice in card.assumptions]
    student = recipe.student
    origin = f", starting from {student.weights}" if student.weights else ""
    cost_of_teacher = f"{card.probe.parameters:,} parameters, {card.probe.macs:,} MACs"
    console.opening(
        [
            ("run", str(run.path)),
            ("teacher", f"{in_short(card.arch)}, {cost_of_teacher}; {probe_sentence(run, card)}"),
            ("input", "; ".join([f"{sizes(card.input_shape)}, {card.classes} classes", *assumed])),
            ("student", f"{student.name}, {size.parameters:,} parameters, {size.macs:,} MACs{origin}"),
        ]
    )


def print_plan(recipe: Recipe, cost: CostPlan | None) -> None:
    """Print the lines that follow them once the cost is known: what it takes, and what such students reached."""
    from edgekd.pipeline.expectation import tera

    todo = "done or under way" if cost is None else cost.sentence()
    rows = [("plan", f"{recipe.method.preset}, {recipe.method.steps} steps, {todo}")]
    if cost is not None:
        near = cost.expectation
        planned = f"{tera(cost.macs)} TMAC planned"
        rows.append(("expect", f"{planned}; {near.sentence() if near else 'nothing like it was measured'}"))
    console.opening(rows)


def probe_sentence(run: RunDir, card: TeacherCard) -> str:
    """Say what the probe saw of a teacher, in one line."""
    probe = card.probe
    kinds = {
        "logits": "logits",
        "probabilities": "probabilities: the softmax at its end is undone",
        "log-probabilities": "log-probabilities, which serve as logits",
    }
    norms = counted(probe.batchnorm_layers, "BatchNorm layer")
    sure = f"{probe.noise_confidence:.1%} sure on noise (chance {1 / card.classes:.1%})"
    parts = [f"answers (N, {card.classes}) finite {kinds[probe.emits]}", "head alive", norms, sure]
    timing = run.ledger().teacher_probe
    if timing is not None:
        threads = counted(timing.threads, "thread")
        parts.append(f"{timing.images} images in {_milliseconds(timing.seconds)} ms on {threads}")
    return "; ".join(parts)


def data_free_warning(data_free: bool | None) -> str:
    """Return what a headline has to begin with where files are not known to be data-free; empty otherwise."""
    if data_free is None:
        return "a student from elsewhere, not known to be data-free; "
    return "" if data_free else "NOT data-free, real images had a part in it; "


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"
