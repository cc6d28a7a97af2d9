"""The verbs that make a student: distill, ingest, select, and run for the whole chain."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekd import console, machine, pipeline, stopping
from edgekd import recipe as recipe_module
from edgekd.bench import device as devices
from edgekd.bench import students
from edgekd.bench.remote import Host
from edgekd.cli.common import (
    Options,
    approve,
    at_work,
    caveat,
    find_run,
    named_run,
    run_called,
    typed,
    wanted_recipe,
    with_chosen_student,
)
from edgekd.cli.flags import Changes, approve_typed, combine
from edgekd.cli.teachers import probe_sentence, run_of
from edgekd.errors import UsageError
from edgekd.models import artefacts, registry
from edgekd.models import images as images_of
from edgekd.models.footprint import Footprint
from edgekd.pipeline import plan
from edgekd.recipe import AUTO, Recipe
from edgekd.run import curve
from edgekd.run.cards.judged import SelectionCard
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir, command_line
from edgekd.run.logbook import Accuracy
from edgekd.stages import eval as evaluation
from edgekd.stages import export as exporting
from edgekd.stages import report as reporting
from edgekd.stages.catalog import BENCH, DISTILL, EXPORT, INGEST, INIT, SELECT
from edgekd.stopping import Stop
from edgekd.text import sizes

PERIOD_STEPS_FOR_MINUTES = 20
LARGE_SIDE_PX, MANY_CLASSES = 128, 200


def distill(
    teacher: Path, name: str, flags: Changes, options: Options, *, dry_run: bool, host: Host | None = None
) -> None:
    """Ingest, distill and select; `host` is the device on which `auto` measures its students."""
    if host is not None and flags.get("student", {}).get("name") != AUTO:
        raise UsageError("--on says where --student auto measures: give it with --student auto --budget-ms MS.")
    if dry_run and options.fresh:
        raise UsageError("--fresh starts training anew and --dry-run does not train: give one of them.")
    approve_typed(flags)
    run = run_of(teacher, name, f"-{_student_label(flags)}")
    flags = combine(flags, {"teacher": {"file": str(teacher)}})
    with at_work(run, options, teacher=teacher) as stop:
        recipe = pipeline.adopt(run, wanted_recipe(run, flags))
        approve(run, recipe)
        pipeline.advance(run, recipe, INGEST, stop=stop)
        recipe, size = _student(run, recipe, stop, host)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, size, cost)
        _expectation(run, options)
        if dry_run:
            _dry_run(cost, options)
            return
        with _accuracy(run, recipe, options) as accuracy:
            pipeline.advance(run, recipe, DISTILL, SELECT, stop=stop, accuracy=accuracy)
        result = curve.summary(run)
        if options.data is not None:
            evaluation.run(run, recipe, options.data, stop)
    if options.json:
        console.print_json(result.to_json())
    console.closing(
        f"{run.stage('select')}/student.safetensors",
        result.headline(),
        f"edgekd export {typed(run)} --int8",
    )


def _student_label(flags: Changes) -> str:
    """Return what the student's flags add to the name of a run; a misspelt student leaves no folder behind."""
    asked = flags.get("student", {})
    student, budget_ms = asked.get("name") or recipe_module.StudentTable().name, asked.get("auto_budget_ms")
    if student == AUTO and not budget_ms:
        raise UsageError("--student auto takes the largest student within a latency: give it with --budget-ms MS.")
    if student == AUTO:
        return f"{AUTO}-{budget_ms:g}ms"
    if budget_ms:
        raise UsageError("--budget-ms belongs to --student auto; `edgekd students --budget-ms MS` marks what fits.")
    registry.ArchSpec.parse(student)
    return student.replace("/", "-").replace(":", "-")


def run_recipe(path: Path, name: str, flags: Changes, options: Options) -> None:
    """Run every stage of a recipe."""
    approve_typed(flags)
    file = path if path.is_file() else recipe_module.recipes_folder() / f"{path}.toml"
    loaded = recipe_module.load(file if file.is_file() else path)
    loaded = _beside(loaded, file.parent)
    wanted = recipe_module.with_changes(loaded, flags)
    run = named_run(name) if name else run_called(wanted.name or file.stem)
    with at_work(run, options, teacher=Path(wanted.teacher.file)) as stop:
        if run.recipe_file.is_file():
            kept = recipe_module.load_resolved(run.recipe_file)
            asked, answered = wanted.method, kept.method
            if not asked.steps and (asked.minutes, asked.steps_by_area) == (answered.minutes, answered.steps_by_area):
                wanted = recipe_module.with_changes(wanted, {"method": {"steps": kept.method.steps}})
            wanted = with_chosen_student(wanted, kept)
        recipe = pipeline.adopt(run, wanted)
        approve(run, recipe)
        pipeline.advance(run, recipe, INGEST, stop=stop)
        recipe, size = _student(run, recipe, stop)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, size, cost)
        pipeline.advance(run, recipe, DISTILL, SELECT, EXPORT, BENCH, stop=stop)
        data = options.data or (Path(recipe.eval.data) if recipe.eval.data else None)
        evaluated = None
        if data is not None:
            evaluated = evaluation.run(run, recipe, data, stop)
        summary = reporting.run(run)
        exporting.refuse_failures(run)
    if options.json:
        console.print_json(summary.to_json())
    else:
        reporting.print_summary(summary)
    headline = caveat(summary.data_free) + (summary.verdict or "no latency measured")
    if evaluated is not None:
        headline = f"accuracy {evaluated.accuracy['student']:.2%} on {evaluated.images} images; {headline}"
    console.closing(f"{run.stage('report')}/report.html", headline, f"edgekd status {typed(run)}")


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve the paths in a recipe against the recipe's folder."""
    changes: Changes = {}
    paths = (
        *(("teacher", "file"), ("student", "weights"), ("pixels", "classes")),
        *(("export", "calibrate_on_real"), ("eval", "data")),
    )
    for table, key in paths:
        value = getattr(getattr(recipe, table), key)
        if value and not Path(value).is_absolute() and (folder / value).exists():
            changes = combine(changes, {table: {key: str(folder / value)}})
    return recipe_module.with_changes(recipe, changes)


def select(name: str, options: Options) -> None:
    """Choose the final student."""
    run = find_run(name, DISTILL)
    with at_work(run, options) as stop:
        recipe = pipeline.open_recipe(run)
        pipeline.Standing(run, recipe).require(DISTILL)
        approve(run, recipe)
        pipeline.advance(run, recipe, SELECT, stop=stop)
    selection = run.read(SelectionCard)
    if options.json:
        console.print_json({"run": run.name, **selection.to_json()})
    best = next(one for one in selection.candidates if one.name == selection.chosen)
    headline = f"{selection.chosen}: {best.agreement:.2%} synthetic agreement (not accuracy)"
    console.closing(f"{run.stage('select')}/student.safetensors", headline, f"edgekd export {typed(run)} --int8")


def _student(run: RunDir, recipe: Recipe, stop: Stop, host: Host | None = None) -> tuple[Recipe, Footprint]:
    """Settle which student is trained and from which weights, and make sure that it takes the teacher's images."""
    recipe = _chosen(run, recipe, stop, host)
    size = artefacts.student_footprint(recipe, artefacts.describe(run))
    pipeline.advance(run, recipe, INIT, stop=stop)
    return recipe, size


def _chosen(run: RunDir, recipe: Recipe, stop: Stop, host: Host | None) -> Recipe:
    """Fix the student of `auto` in recipe.toml once: the largest of the zoo whose latency keeps the budget."""
    if recipe.student.name != AUTO:
        return recipe
    description, budget_ms = artefacts.describe(run), recipe.student.auto_budget_ms
    host = host or (Host(recipe.student.auto_on) if recipe.student.auto_on else None)
    with devices.measurer_on(host, stop) as (measurer, runtime):
        chosen, larger = students.largest_within(
            budget_ms,
            description.input_shape,
            description.classes,
            below_macs=run.read(TeacherCard).probe.macs,
            stop=stop,
            threads=recipe.bench.threads[0],
            measurer=measurer,
            runtime=runtime,
            where="here" if host is None else f"on {host.address}",
        )
    too_slow = [f"{one.name} {one.latency_ms:.2f} ms" for one in larger if one.latency_ms is not None]
    console.say(
        f"auto     {chosen.name} takes {chosen.latency_ms:.2f} ms of {budget_ms:g} ms in FP32"
        + (f" on {host.address}" if host is not None else "")
        + (f"; too slow: {', '.join(too_slow)}" if too_slow else "")
    )
    for warning in chosen.warnings:
        console.warn(warning)
    return pipeline.adopt(run, recipe_module.with_changes(recipe, {"student": {"name": chosen.name}}))


def _planned(run: RunDir, recipe: Recipe, stop: Stop) -> tuple[Recipe, plan.Plan | None]:
    """Fix the number of steps in recipe.toml once; measure the cost unless the work is done or under way."""
    description = artefacts.describe(run)
    started = run.stage("distill").exists()
    cost = None
    if not started or not recipe.method.steps:
        least = PERIOD_STEPS_FOR_MINUTES if recipe.method.minutes else 1
        cost = plan.measure(run, recipe, stop, least_steps=least)
    steps = recipe.method.steps
    if not steps and recipe.method.minutes:
        assert cost is not None
        steps = max(1, math.floor(60 * recipe.method.minutes / cost.seconds_per_step))
    steps = steps or recipe.method.steps_for(description.pixels, description.classes)
    if steps != recipe.method.steps:
        recipe = pipeline.adopt(run, recipe_module.with_changes(recipe, {"method": {"steps": steps}}))
    run.note_command(command_line(), threads=machine.use_threads(recipe.machine.threads))
    if cost is not None and cost.steps != steps:
        cost = cost.with_steps(steps)
    return recipe, cost


def _opening(run: RunDir, recipe: Recipe, size: Footprint, cost: plan.Plan | None) -> None:
    """Print the five opening lines."""
    card = run.read(TeacherCard)
    assumed = [f"{one.what} {one.value} assumed ({one.flag})" for one in card.assumptions]
    student, method = recipe.student, recipe.method
    origin = f", starting from {student.weights}" if student.weights else ""
    todo = "done or under way" if cost is None else cost.sentence()
    cost_of_teacher = f"{card.probe.parameters:,} parameters, {card.probe.macs:,} MACs"
    console.opening(
        [
            ("run", str(run.path)),
            ("teacher", f"{card.arch}, {cost_of_teacher}; {probe_sentence(run, card)}"),
            ("input", "; ".join([f"{sizes(card.input_shape)}, {card.classes} classes", *assumed])),
            ("student", f"{student.name}, {size.parameters:,} parameters, {size.macs:,} MACs{origin}"),
            ("plan", f"{method.preset}, {method.steps} steps, {todo}"),
        ]
    )


def _expectation(run: RunDir, options: Options) -> None:
    """State the published expectation for large images or many classes, and ask for consent."""
    description = artefacts.describe(run)
    if max(description.input_shape[1:]) < LARGE_SIDE_PX and description.classes < MANY_CLASSES:
        return
    text = (
        "from 128 pixels or 200 classes on, expect less: published results for ImageNet, ResNet-50 to MobileNetV2, "
        "reach about 43 % top-1 after days of GPU."
    )
    if options.yes:
        console.warn(text)
    elif sys.stdin.isatty():
        with stopping.at_once():
            agreed = console.confirm(f"{text} Go on?")
        if not agreed:
            raise UsageError("stopped before training.")
    else:
        raise UsageError(f"{text} Give --yes to go on.")


def _dry_run(cost: plan.Plan | None, options: Options) -> None:
    if cost is None:
        raise UsageError("the run is done or under way; --dry-run plans new runs (choose another --run).")
    if options.json:
        console.print_json(cost.to_json())
    else:
        console.print_table(("network", "parameters"), [(name, f"{n:,}") for name, n in cost.parameters.items()])
        rows = [(part, f"{flops / 1e9:.3f}") for part, flops in cost.flops_by_part.items()]
        rows.append(("all", f"{cost.flops_per_step / 1e9:.3f}"))
        console.print_table(("update", "GFLOP a step"), rows)
        peak = f"{cost.machine_peak_flops / 1e9:.0f} GFLOP/s of matrix products here"
        console.say(f"utilisation {cost.utilisation:.0%}: of {peak}, in the precisions of the step")
    console.closing("nothing but the teacher", cost.sentence(), "the same command without --dry-run")


@contextmanager
def _accuracy(run: RunDir, recipe: Recipe, options: Options) -> Iterator[Accuracy | None]:
    """Yield the measure of accuracy on --data, for numbers only; None without."""
    if options.data is None:
        yield None
        return
    machine.use_threads(recipe.machine.threads)
    with images_of.labelled(run, options.data, purpose="accuracy curve") as images:
        images.load()  # before hours are spent
        yield images.network_accuracy
