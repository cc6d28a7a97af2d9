"""`edgekd distill`: read the teacher, train a student without data, choose the final checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.cli.changes import Changes
    from edgekd.pipeline.plan import CostPlan
    from edgekd.recipe import Recipe
    from edgekd.run.directory import RunDir
    from edgekd.run.run_logger import Accuracy
    from edgekd.stopping import Stop

LARGE_SIDE_PX, MANY_CLASSES = 128, 200


@verb("edgekd distill teacher.pt --student mobilenetv2", "edgekd distill teacher.pt --minutes 30 --data val/")
def distill(
    teacher: flags.Teacher,
    student: Annotated[
        str, typer.Option(metavar="NAME[@WIDTH]", help="Student, or auto; mobilenetv2 by default.")
    ] = "",
    budget_ms: flags.BudgetMs = None,
    student_weights: Annotated[
        str,
        typer.Option(metavar="FILE", help="Weights it starts from, in place of others."),
    ] = "",
    images: Annotated[
        str, typer.Option(metavar="DIR", help="Learn on these unlabelled pictures of your own: not data-free.")
    ] = "",
    run: flags.RunOption = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Student updates; by input size and classes by default.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Choose the number of steps that take M minutes.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="PRESET", help="Method preset, see `edgekd recipes`.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    weights: flags.Weights = "",
    arch: flags.Arch = "",
    input_shape: flags.Input = "",
    normalize: flags.Normalize = "",
    mean: flags.Mean = "",
    std: flags.Std = "",
    classes: flags.Classes = "",
    data: flags.Data = None,
    device: flags.Device = "",
    threads: flags.Threads = None,
    max_seconds: flags.MaxSeconds = None,
    set_: flags.Set = None,
    accept_mapping: flags.AcceptMapping = False,
    trust_pickle: flags.TrustPickle = False,
    trust_code: flags.TrustCode = None,
    on: flags.On = "",
    python: flags.RemotePython = "python3",
    trtexec: flags.Trtexec = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about runs that are expected to be hard.")] = False,
    fresh: flags.Fresh = False,
    json: flags.Json = False,
) -> None:
    """Distil TEACHER into a student: read the teacher, train without data, choose the final checkpoint."""
    from edgekd import pipeline
    from edgekd.cli import approval, changes, lines, published, session, settle, targets
    from edgekd.recipe import AUTO
    from edgekd.stages.catalog import DISTILL, SELECT

    named = published.teacher(teacher, weights, arch)
    teacher = named.file
    changed = changes.combine(
        changes.of_teacher(named.arch, input_shape, accept_mapping, trust_pickle),
        changes.of_pixels(normalize, mean, std, classes),
        _student_changes(student, budget_ms, student_weights, on),
        changes.only_given(seed=seed),
        changes.in_table("images", changes.only_given(folder=images)),
        changes.in_table("method", changes.only_given(preset=method, steps=steps, minutes=minutes)),
        changes.of_machine(device, threads),
        changes.of_set(set_),
    )
    host = targets.device(on, python, trtexec)
    if host is not None and changed.get("student", {}).get("name") != AUTO:
        raise UsageError("--on says where --student auto measures: give it with --student auto --budget-ms MS.")
    if steps is not None and minutes is not None:
        raise UsageError("--steps and --minutes both say how long to train: give one of them.")
    if dry_run and fresh:
        raise UsageError("--fresh starts training anew and --dry-run does not train: give one of them.")
    approval.approve_typed(changed)
    made = targets.run_of(teacher, run, f"-{_run_suffix(changed)}")
    changed = changes.combine(changed, {"teacher": {"file": str(teacher)}})
    needed = (student_weights, images, classes, data)
    with session.locked_run(made, max_seconds=max_seconds, fresh=fresh, teacher=teacher, needed=needed) as stop:
        changed = changes.combine(changed, named.pixels(made, changed))
        recipe = pipeline.adopt(made, settle.wanted_recipe(made, changed))
        approval.approve(made, recipe)
        session.read_teacher(made, recipe, stop, data=data)
        recipe, size = settle.student(made, recipe, stop, host)
        recipe = settle.method(made, recipe, size, changed)
        lines.print_opening(made, recipe, size)
        recipe, cost = settle.steps(made, recipe, stop)
        lines.print_plan(recipe, cost)
        _expectation(made, yes=yes)
        if dry_run:
            _dry_run(cost, json=json)
            return
        with _accuracy(made, recipe, data, stop) as accuracy:
            pipeline.advance(made, recipe, DISTILL, SELECT, stop=stop, accuracy=accuracy)
        from edgekd.run import curve
        from edgekd.stages.eval import evaluate

        result = curve.summary(made)
        if data is not None:
            evaluate(made, recipe, data, stop)
    if json:
        console.print_json(result.to_json())
    console.closing(
        f"{made.stage('select')}/student.safetensors",
        result.headline(),
        f"edgekd export {targets.run_argument(made)} --int8",
    )


def _student_changes(name: str, budget_ms: float | None, weights: str, on: str) -> Changes:
    """Change which student is trained; a student by name ends a choice by latency."""
    from edgekd.cli.changes import in_table, only_given
    from edgekd.recipe import AUTO

    budget = 0.0 if name and name != AUTO and budget_ms is None else budget_ms
    values = only_given(name=name, auto_budget_ms=budget, weights=weights)
    return in_table("student", {**values, "auto_on": on} if name else values)


def _run_suffix(changed: Changes) -> str:
    """What the student's flags add to the name of a run; a misspelt student leaves no folder behind."""
    from edgekd.models import registry
    from edgekd.recipe import AUTO, StudentNetworkTable

    asked = changed.get("student", {})
    student, budget_ms = asked.get("name") or StudentNetworkTable().name, asked.get("auto_budget_ms")
    if student == AUTO and not budget_ms:
        raise UsageError("--student auto takes the largest student within a latency: give it with --budget-ms MS.")
    if student == AUTO:
        return f"{AUTO}-{budget_ms:g}ms"
    if budget_ms:
        raise UsageError("--budget-ms belongs to --student auto; `edgekd students --budget-ms MS` marks what fits.")
    registry.ArchSpec.parse(student)
    return student.replace("/", "-").replace(":", "-")


def _expectation(run: RunDir, *, yes: bool) -> None:
    """State the published expectation for large images or many classes, and ask for consent."""
    from edgekd import stopping
    from edgekd.models import artefacts

    description = artefacts.description_of(run)
    if max(description.input_shape[1:]) < LARGE_SIDE_PX and description.classes < MANY_CLASSES:
        return
    text = (
        "from 128 pixels or 200 classes on, expect less: published results for ImageNet, ResNet-50 to MobileNetV2, "
        "reach about 43 % top-1 after days of GPU."
    )
    if yes:
        console.warn(text)
    elif sys.stdin.isatty():
        with stopping.at_once():
            agreed = console.confirm(f"{text} Go on?")
        if not agreed:
            raise UsageError("stopped before training.")
    else:
        raise UsageError(f"{text} Give --yes to go on.")


def _dry_run(cost: CostPlan | None, *, json: bool) -> None:
    """Print the plan in place of the training."""
    if cost is None:
        raise UsageError("the run is done or under way; --dry-run plans new runs (choose another --run).")
    if json:
        console.print_json(cost.to_json())
    else:
        console.print_table(("network", "parameters"), [(name, f"{n:,}") for name, n in cost.parameters.items()])
        rows = [(part, f"{sum(each.flops.values()) / 1e9:.3f}") for part, each in cost.cost_by_part.items()]
        rows.append(("all", f"{cost.flops_per_step / 1e9:.3f}"))
        console.print_table(("update", "GFLOP a step"), rows)
        peak = f"{cost.machine_peak_flops / 1e9:.0f} GFLOP/s of matrix products here"
        console.say(f"utilisation {cost.utilization:.0%}: of {peak}, in the precisions of the step")
    console.closing("nothing but the teacher", cost.sentence(), "the same command without --dry-run")


@contextmanager
def _accuracy(run: RunDir, recipe: Recipe, data: Path | None, stop: Stop) -> Iterator[Accuracy | None]:
    """Yield the measure of accuracy on --data, for numbers only; None without."""
    if data is None:
        yield None
        return
    from edgekd import machine
    from edgekd.models.images import labeled
    from edgekd.stages.eval import doubt_teacher

    machine.use_threads(recipe.machine.threads)
    with labeled(run, data, purpose="accuracy curve", stop=stop) as images:
        images.load()  # before hours are spent
        doubt_teacher(run, images)
        images.poll = lambda: None  # from here on the loop looks itself, between steps that it can save
        yield images.network_accuracy
