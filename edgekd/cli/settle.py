"""What is decided once and kept in recipe.toml: the student and the preset of `auto`, and the steps of `--minutes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd import console, pipeline
from edgekd.cli.changes import Changes
from edgekd.recipe import AUTO, Recipe, load_resolved, parse, with_changes, with_preset_for
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir, command_line
from edgekd.stages.catalog import INIT
from edgekd.stopping import Stop

if TYPE_CHECKING:
    from edgekd.bench.remote import Host
    from edgekd.models.footprint import Footprint
    from edgekd.pipeline.plan import CostPlan

TIMED_UPDATES_FOR_MINUTES = 20


def wanted_recipe(run: RunDir, flags: Changes) -> Recipe:
    """Return the run's recipe, or a new one, with the flags applied; what was decided stands until asked anew."""
    if run.recipe_file.is_file():
        resolved = load_resolved(run.recipe_file)
        if _of_another_teacher(run, resolved, with_changes(resolved, {"teacher": flags.get("teacher", {})})):
            resolved = _without_answers(run, resolved)
        asked = flags.get("method", {})
        if "steps" in asked:  # else the same --minutes later would find these steps as its answer
            flags = {**flags, "method": {"minutes": 0.0, **asked}}
        elif asked.get("minutes", resolved.method.minutes) != resolved.method.minutes:
            flags = {**flags, "method": {**asked, "steps": 0}}  # another request needs another answer
        return _with_kept_student(with_changes(resolved, flags), resolved)
    preset = flags.get("method", {}).get("preset")
    base = parse({"method": {"preset": preset}} if preset else {}, origin="flags")
    return with_changes(base, flags)


def with_kept_answers(run: RunDir, recipe: Recipe, given: Changes) -> Recipe:
    """Return a recipe file's recipe with what was decided for the same requests in this run before.

    `given` is what the file and the flags say, without the values of a preset.
    """
    if not run.recipe_file.is_file():
        return recipe
    resolved = load_resolved(run.recipe_file)
    if _of_another_teacher(run, resolved, recipe):
        return recipe
    recipe = _with_kept_method(recipe, resolved, given)
    asked, answered = recipe.method, resolved.method
    if not asked.steps and (asked.minutes, asked.steps_by_area) == (answered.minutes, answered.steps_by_area):
        recipe = with_changes(recipe, {"method": {"steps": resolved.method.steps}})
    return _with_kept_student(recipe, resolved)


def _of_another_teacher(run: RunDir, resolved: Recipe, asked: Recipe) -> bool:
    """Return whether what was decided in a run was for another reading of the teacher, and nothing is trained yet."""
    before, now = resolved.teacher, asked.teacher
    return (before.input, before.arch) != (now.input, now.arch) and not run.stage("distill").exists()


def _without_answers(run: RunDir, resolved: Recipe) -> Recipe:
    """Return a recipe without what edgekd decided by the teacher: what the user typed is another number, and stays."""
    from edgekd.models import artefacts

    if not (run.stage("teacher") / TeacherCard.file).is_file():
        return resolved
    description, method = artefacts.description_of(run), resolved.method
    unasked = with_changes(resolved, {"method": {"steps": 0, "student": {"reuse": AUTO}}}).method
    changes: dict[str, dict[str, object]] = {"method": {}, "student": {}}
    if method.minutes or method.steps == unasked.steps_for(description.pixels, description.classes):
        changes["method"] |= {"steps": 0}
    student_macs = artefacts.student_footprint(resolved, description).macs if resolved.student.name != AUTO else 0
    if method.student.reuse == unasked.student.reuse_for(run.read(TeacherCard).probe.macs, student_macs):
        changes["method"] |= {"student": {"reuse": AUTO}}
    if resolved.student.auto_budget_ms:
        changes["student"] = {"name": AUTO}
    return with_changes(resolved, changes)


def _with_kept_method(recipe: Recipe, resolved: Recipe, given: Changes) -> Recipe:
    """Return the recipe with the preset and the number of passes that were chosen for the same networks before."""
    for batchnorm in (True, False):
        chosen = with_preset_for(recipe, given, batchnorm=batchnorm)
        if chosen.method.preset == resolved.method.preset:
            recipe = chosen
    if recipe.method.student.reuse == AUTO:
        recipe = with_changes(recipe, {"method": {"student": {"reuse": resolved.method.student.reuse}}})
    return recipe


def _with_kept_student(recipe: Recipe, resolved: Recipe) -> Recipe:
    """Return `wanted` with the student that was chosen for the same latency budget on the same machine before."""
    asked, answered = recipe.student, resolved.student
    equal = (asked.auto_budget_ms, asked.auto_on) == (answered.auto_budget_ms, answered.auto_on)
    if asked.name != AUTO or not equal:
        return recipe
    return with_changes(recipe, {"student": {"name": resolved.student.name}})


def student(run: RunDir, recipe: Recipe, stop: Stop, host: Host | None = None) -> tuple[Recipe, Footprint]:
    """Settle which student is trained and from which weights, and make sure that it takes the teacher's images."""
    from edgekd.models import artefacts

    recipe = _chosen(run, recipe, stop, host)
    size = artefacts.student_footprint(recipe, artefacts.description_of(run))
    pipeline.advance(run, recipe, INIT, stop=stop)
    return recipe, size


def _chosen(run: RunDir, recipe: Recipe, stop: Stop, host: Host | None) -> Recipe:
    """Fix the student of `auto` in recipe.toml: the largest of the zoo whose latency keeps the budget."""
    if recipe.student.name != AUTO:
        return recipe
    from edgekd.bench import device, sized_students
    from edgekd.bench.remote import Host
    from edgekd.models import artefacts

    description, budget_ms = artefacts.description_of(run), recipe.student.auto_budget_ms
    host = host or (Host(recipe.student.auto_on) if recipe.student.auto_on else None)
    with device.measurer_on(host, stop) as (measurer, runtime):
        chosen, larger = sized_students.largest_within(
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
    too_slow = [
        f"{candidate.name} {candidate.latency_ms:.2f} ms" for candidate in larger if candidate.latency_ms is not None
    ]
    console.say(
        f"auto     {chosen.name} takes {chosen.latency_ms:.2f} ms of {budget_ms:g} ms in FP32"
        + (f" on {host.address}" if host is not None else "")
        + (f"; too slow: {', '.join(too_slow)}" if too_slow else "")
    )
    for warning in chosen.warnings:
        console.warn(warning)
    return pipeline.adopt(run, with_changes(recipe, {"student": {"name": chosen.name}}))


def method(run: RunDir, recipe: Recipe, size: Footprint, given: Changes) -> Recipe:
    """Fix what the method leaves to teacher and student: the preset, and how often a view is learned.

    What has begun stays as it is. `given` is what `with_kept_answers` takes.
    """
    from edgekd.models import artefacts

    decided = AUTO not in (recipe.method.preset, recipe.method.student.reuse)
    if decided and run.stage("distill").exists():
        return recipe  # else its recipe.toml was lost, and is made again
    batchnorm = artefacts.description_of(run).batchnorm
    chosen = with_preset_for(recipe, given, batchnorm=batchnorm)
    reuse = chosen.method.student.reuse_for(run.read(TeacherCard).probe.macs, size.macs)
    chosen = with_changes(chosen, {"method": {"student": {"reuse": reuse}}})
    return recipe if chosen == recipe else pipeline.adopt(run, chosen)


def steps(run: RunDir, recipe: Recipe, stop: Stop) -> tuple[Recipe, CostPlan | None]:
    """Fix the number of steps in recipe.toml; measure the cost unless the work is done or under way."""
    from edgekd import machine
    from edgekd.models import artefacts
    from edgekd.pipeline import plan

    description = artefacts.description_of(run)
    started = run.stage("distill").exists()
    cost = None
    if not started or not recipe.method.steps:
        least = TIMED_UPDATES_FOR_MINUTES if recipe.method.minutes else 1
        cost = plan.measure_cost(run, recipe, stop, least_steps=least)
    count = recipe.method.steps
    if not count and recipe.method.minutes:
        assert cost is not None
        count = cost.steps_within(60 * recipe.method.minutes)
    count = count or recipe.method.steps_for(description.pixels, description.classes)
    if count != recipe.method.steps:
        recipe = pipeline.adopt(run, with_changes(recipe, {"method": {"steps": count}}))
    run.note_command(command_line(), threads=machine.use_threads(recipe.machine.threads))
    if cost is not None and cost.steps != count:
        cost = cost.with_steps(count)
    return recipe, cost
