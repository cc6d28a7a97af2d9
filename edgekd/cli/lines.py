"""What several verbs say in the same words: the opening lines, what the probe saw, and a headline's caveat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd import console
from edgekd.run.directory import RunDir, read_json
from edgekd.text import sizes

if TYPE_CHECKING:
    from edgekd.models.footprint import Footprint
    from edgekd.pipeline.plan import Plan
    from edgekd.recipe import Recipe


def opening(run: RunDir, recipe: Recipe, size: Footprint, cost: Plan | None) -> None:
    """Print the five lines that a distillation begins with."""
    data = read_json(run.stage("teacher") / "teacher.json")
    assumed = [f"{a['what']} {a['value']} assumed ({a['flag']})" for a in data["assumptions"]]
    shape = sizes(data["input_shape"])
    student, method = recipe.student, recipe.method
    origin = f", starting from {student.weights}" if student.weights else ""
    todo = "done or under way" if cost is None else cost.sentence()
    cost_of_teacher = f"{data['probe']['parameters']:,} parameters, {data['probe']['macs']:,} MACs"
    console.opening(
        [
            ("run", str(run.path)),
            ("teacher", f"{data['arch']}, {cost_of_teacher}; {probe_sentence(run, data)}"),
            ("input", "; ".join([f"{shape}, {data['classes']} classes", *assumed])),
            ("student", f"{student.name}, {size.parameters:,} parameters, {size.macs:,} MACs{origin}"),
            ("plan", f"{method.preset}, {method.steps} steps, {todo}"),
        ]
    )


def probe_sentence(run: RunDir, description: dict[str, Any]) -> str:
    """Say what the probe saw of a teacher, in one line."""
    probe = description["probe"]
    kinds = {
        "logits": "logits",
        "probabilities": "probabilities: the softmax at its end is undone",
        "log-probabilities": "log-probabilities, which serve as logits",
    }
    norms = _count(probe["batchnorm_layers"], "BatchNorm layer")
    sure = f"{probe['noise_confidence']:.1%} sure on noise (chance {1 / description['classes']:.1%})"
    parts = [f"answers (N, {description['classes']}) finite {kinds[probe['emits']]}", "head alive", norms, sure]
    timing = probe_timing(run)
    if timing:
        threads = _count(timing["threads"], "thread")
        parts.append(f"{timing['images']} images in {_milliseconds(timing['seconds'])} ms on {threads}")
    return "; ".join(parts)


def probe_timing(run: RunDir) -> dict[str, Any] | None:
    """Return what the probe's batch took on the machine that read the teacher."""
    timing: dict[str, Any] | None = run.ledger().get("teacher_probe")
    return timing


def caveat(data_free: bool | None) -> str:
    """Return what a headline has to begin with where files are not known to be data-free; empty otherwise."""
    if data_free is None:
        return "a student from elsewhere, not known to be data-free; "
    return "" if data_free else "NOT data-free, INT8 ranges are from real images; "


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
