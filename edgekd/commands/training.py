"""The verbs that make a student: distill, ingest, select, and run for the whole chain."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from edgekd import console, machine, pipeline
from edgekd import recipe as recipe_module
from edgekd.commands.common import Options, at_work, find_run, named_run, wanted_recipe
from edgekd.commands.flags import Changes, combine
from edgekd.errors import UsageError
from edgekd.models import registry
from edgekd.recipe import Recipe
from edgekd.rundir import RunDir, command_line, read_json
from edgekd.stages import artefacts, curve, plan
from edgekd.stages import eval as evaluation
from edgekd.stages import export as exporting
from edgekd.stages import report as reporting
from edgekd.stopping import Stop

PERIOD_STEPS_FOR_MINUTES = 20
LARGE_SIDE_PX, MANY_CLASSES = 128, 200


def distill(teacher: Path, name: str, flags: Changes, options: Options, *, dry_run: bool) -> None:
    """Ingest, distill and select."""
    student = flags.get("student", {}).get("name") or recipe_module.StudentTable().name
    if dry_run and options.fresh:
        raise UsageError("--fresh starts training anew and --dry-run does not train: give one of them.")
    registry.ArchSpec.parse(student)  # a misspelt name leaves no folder behind
    run = named_run(name or f"{teacher.stem}-{student.replace('/', '-').replace(':', '-')}")
    flags = combine(flags, {"teacher": {"file": str(teacher)}})
    with at_work(run, options, teacher=teacher) as stop:
        recipe = pipeline.adopt(run, wanted_recipe(run, flags))
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, cost)
        _expectation(run, options)
        if dry_run:
            _dry_run(cost, options)
            return
        pipeline.advance(run, recipe, ("distill", "select"), stop=stop, distill=_accuracy(run, options))
        result = curve.summary(run)
        if options.data is not None:
            evaluation.run(run, recipe, options.data, stop)
    if options.json:
        console.print_json(result)
    console.closing(
        f"{run.stage('select')}/student.safetensors",
        curve.headline(result),
        f"edgekd export {run.name} --int8",
    )


def ingest(teacher: Path | None, name: str, flags: Changes, options: Options) -> None:
    """Read a teacher, or change the pixel metadata of a run."""
    if teacher is None and not name:
        raise UsageError("ingest takes a TEACHER, or --run NAME to set the normalisation of a run.")
    run = named_run(name or f"{teacher.stem if teacher else ''}")
    if teacher is not None:
        flags = combine(flags, {"teacher": {"file": str(teacher)}})
    else:
        pipeline.open_recipe(run)
    with at_work(run, options, teacher=teacher) as stop:
        recipe = pipeline.adopt(run, wanted_recipe(run, flags))
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
    description = read_json(run.stage("teacher") / "teacher.json")
    if options.json:
        console.print_json({"run": run.name, **description, **read_json(run.stage("teacher") / "pixels.json")})
    for assumption in description["assumptions"]:
        console.say(f"assumed  {assumption['what']} = {assumption['value']} (change it with {assumption['flag']})")
    probe = description["probe"]
    console.closing(
        f"{run.stage('teacher')}/teacher.json",
        f"{description['arch']}, {description['classes']} classes, {probe['parameters']:,} parameters, "
        f"{probe['macs']:,} MACs",
        f"edgekd distill {recipe.teacher.file} --run {run.name}",
    )


def run_recipe(path: Path, name: str, flags: Changes, options: Options) -> None:
    """Run every stage of a recipe."""
    file = path if path.is_file() else recipe_module.recipes_folder() / f"{path}.toml"
    loaded = recipe_module.load(file if file.is_file() else path)
    loaded = _beside(loaded, file.parent)
    wanted = recipe_module.with_changes(loaded, flags)
    run = named_run(name or wanted.name or file.stem)
    with at_work(run, options, teacher=Path(wanted.teacher.file)) as stop:
        if run.recipe_file.is_file():
            kept = recipe_module.load_resolved(run.recipe_file)
            asked, answered = wanted.method, kept.method
            if not asked.steps and (asked.minutes, asked.steps_by_area) == (answered.minutes, answered.steps_by_area):
                wanted = recipe_module.with_changes(wanted, {"method": {"steps": kept.method.steps}})
        recipe = pipeline.adopt(run, wanted)
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, cost)
        pipeline.advance(run, recipe, ("distill", "select", "export", "bench"), stop=stop)
        data = options.data or (Path(recipe.eval.data) if recipe.eval.data else None)
        evaluated = None
        if data is not None:
            evaluated = evaluation.run(run, recipe, data, stop)
        summary = reporting.run(run)
        exporting.refuse_failures(run)
    if options.json:
        console.print_json(summary)
    else:
        reporting.print_summary(summary)
    headline = summary["verdict"] or "no latency measured"
    if evaluated is not None:
        headline = f"accuracy {evaluated['accuracy']['student']:.2%} on {evaluated['images']} images; {headline}"
    console.closing(f"{run.stage('report')}/report.html", headline, f"edgekd status {run.name}")


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve the paths in a recipe against the recipe's folder."""
    changes: Changes = {}
    for table, key in (("teacher", "file"), ("eval", "data"), ("pixels", "classes")):
        value = getattr(getattr(recipe, table), key)
        if value and not Path(value).is_absolute() and (folder / value).exists():
            changes = combine(changes, {table: {key: str(folder / value)}})
    return recipe_module.with_changes(recipe, changes)


def select(name: str, options: Options) -> None:
    """Choose the final student."""
    run = find_run(name, "distill")
    with at_work(run, options) as stop:
        recipe = pipeline.open_recipe(run)
        pipeline.require(run, recipe, "distill")
        pipeline.advance(run, recipe, ("select",), stop=stop)
    selection = read_json(run.stage("select") / "selection.json")
    if options.json:
        console.print_json({"run": run.name, **selection})
    best = next(c for c in selection["candidates"] if c["name"] == selection["chosen"])
    headline = f"{selection['chosen']}: {best['agreement']:.2%} synthetic agreement (not accuracy)"
    console.closing(f"{run.stage('select')}/student.safetensors", headline, f"edgekd export {run.name} --int8")


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


def _opening(run: RunDir, recipe: Recipe, cost: plan.Plan | None) -> None:
    """Print the five opening lines."""
    data = read_json(run.stage("teacher") / "teacher.json")
    assumed = [f"{a['what']} {a['value']} assumed ({a['flag']})" for a in data["assumptions"]]
    shape = "x".join(map(str, data["input_shape"]))
    description = artefacts.describe(run)
    size = artefacts.student_complexity(recipe, description)
    method = recipe.method
    todo = "done or under way" if cost is None else cost.sentence()
    console.opening(
        [
            ("run", str(run.path)),
            ("teacher", f"{data['arch']}, {data['probe']['parameters']:,} parameters, {data['probe']['macs']:,} MACs"),
            ("input", "; ".join([f"{shape}, {data['classes']} classes", *assumed])),
            ("student", f"{recipe.student.name}, {size.parameters:,} parameters, {size.macs:,} MACs"),
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
        if not console.confirm(f"{text} Go on?"):
            raise UsageError("stopped before training.")
    else:
        raise UsageError(f"{text} Give --yes to go on.")


def _dry_run(cost: plan.Plan | None, options: Options) -> None:
    if cost is None:
        raise UsageError("the run is done or under way; --dry-run plans new runs (choose another --run).")
    if options.json:
        console.print_json(cost.to_json())
    else:
        rows = [(part, f"{flops / 1e9:.3f}") for part, flops in cost.flops_by_part.items()]
        rows.append(("all", f"{cost.flops_per_step / 1e9:.3f}"))
        console.print_table(("update", "GFLOP a step"), rows)
        peak = f"{cost.machine_peak_flops / 1e9:.0f} GFLOP/s of matrix products here"
        console.say(f"utilisation {cost.utilisation:.0%}: of {peak}, in the precisions of the step")
    console.closing("nothing but the teacher", cost.sentence(), "the same command without --dry-run")


def _accuracy(run: RunDir, options: Options) -> Changes:
    """Return distill's extra argument: the measure of accuracy on --data, for numbers only."""
    if options.data is None:
        return {}
    machine.use_threads(pipeline.open_recipe(run).machine.threads)
    return {"accuracy": evaluation.load_images(run, options.data, purpose="accuracy curve").network_accuracy}
