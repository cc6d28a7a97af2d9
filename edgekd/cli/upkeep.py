"""The verbs that look after runs, recipes and the machine: status, report, prune, doctor, recipes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.cli.common import Options, at_work, caveat, find_run, typed
from edgekd.errors import UsageError
from edgekd.recipe import Recipe
from edgekd.run.cards.events import TrainEvent
from edgekd.run.directory import RunDir
from edgekd.run.left_out import LeftOut
from edgekd.stages.base import Stage
from edgekd.stages.catalog import EXPORT, INGEST


def status(name: str, options: Options) -> None:
    """Show the state of every stage; works while the run is busy."""
    run = find_run(name, INGEST)
    recipe = pipeline.open_recipe(run)
    standing = pipeline.Standing(run, recipe)
    stages: list[dict[str, Any]] = []
    for stage in standing.stages:
        reason = standing.reason_to_run(stage)
        state = "done" if reason is None else "stale" if standing.intact(stage) else "open"
        stages.append({"stage": stage.name, "state": state, "reason": reason})
    last = LeftOut().unless(_last_step, run)
    result: dict[str, Any] = {"run": run.name, "data_free": run.data_free(), "stages": stages, "step": last}
    result["steps"] = recipe.method.steps or None
    if options.json:
        console.print_json(result)
    else:
        rows = [(entry["stage"], entry["state"], entry["reason"] or "") for entry in stages]
        console.print_table(("stage", "state", "why"), rows)
    open_stages = [stage for stage, entry in zip(standing.stages, stages, strict=True) if entry["state"] != "done"]
    following = _making(run, recipe, open_stages[0]) if open_stages else f"edgekd report {typed(run)}"
    headline = caveat(result["data_free"]) + f"{len(stages) - len(open_stages)} of {len(stages)} stages done"
    console.closing("nothing", headline, following)


def _last_step(run: RunDir) -> int | None:
    """Return the last step that was logged."""
    last = run.logged(TrainEvent)[-1:]
    return last[0].step if last else None


def _making(run: RunDir, recipe: Recipe, stage: Stage) -> str:
    """Return the command that makes a stage of this run."""
    command, teacher = stage.command, shlex.quote(recipe.teacher.file or "TEACHER")
    if "TEACHER" not in command:
        return f"{command} {typed(run)}"
    command = command.replace("TEACHER", teacher).replace("NAME", shlex.quote(recipe.student.name))
    return f"{command.replace('FILE', shlex.quote(recipe.student.weights or 'FILE'))} --run {typed(run)}"


def report(name: str, options: Options) -> None:
    """Write the report; works while the run is busy."""
    from edgekd.stages import report as reporting  # imports ONNX Runtime, which doctor must be able to do without

    run = find_run(name, INGEST)
    summary = reporting.run(run)
    if options.json:
        console.print_json(summary.to_json())
    else:
        reporting.print_summary(summary)
    headline = caveat(summary.data_free) + (summary.verdict or "no latency measured yet")
    console.closing(f"{run.stage('report')}/report.html", headline, f"edgekd status {typed(run)}")


def prune(name: str, options: Options) -> None:
    """Remove what is as sensitive as the teacher."""
    run = find_run(name, EXPORT)
    with at_work(run, options):
        recipe = pipeline.open_recipe(run)
        pipeline.Standing(run, recipe).require(EXPORT)
        removed = pipeline.prune(run)
    if options.json:
        console.print_json({"run": run.name, "removed": removed})
    headline = f"removed {', '.join(removed) or 'nothing: already pruned'}"
    console.closing("nothing", headline, f"edgekd bench {typed(run)}")


def doctor(options: Options) -> None:
    """Say what this machine can do."""
    from edgekd.cli import doctor as checks

    findings = checks.examine()
    if options.json:
        console.print_json(findings)
    else:
        console.print_table(("check", "finding"), [(k, str(v)) for k, v in findings["facts"].items()])
    for problem in findings["problems"]:
        console.warn(problem)
    console.closing("nothing", f"{len(findings['problems'])} problems", "edgekd distill TEACHER")


def recipes(copy: str, check: Path | None, options: Options) -> None:
    """List, copy or check recipes."""
    folder = recipe_module.recipes_folder()
    shipped = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    methods = recipe_module.presets()
    if check is not None:
        resolved = recipe_module.load_any(check)
        if options.json:
            console.print_json(resolved.model_dump(mode="json"))
        else:
            console.print_toml(recipe_module.to_toml(resolved))
        headline, following = f"{check} is valid", f"edgekd run {shlex.quote(str(check))}"
        if not resolved.teacher.file:
            known = methods.get(check.stem)
            unchanged = known is not None and known.read_bytes() == check.read_bytes()
            headline += " and names no teacher; a method's keys belong into the [method] table of a recipe"
            following = (
                f"edgekd distill TEACHER --method {check.stem}" if unchanged else "edgekd recipes --copy quickstart"
            )
        console.closing("nothing", headline, following)
        return
    if copy:
        source = shipped.get(copy) or methods.get(copy)
        if source is None:
            raise UsageError(f"there is no recipe {copy!r} (known: {', '.join([*shipped, *methods])}).")
        target = Path(source.name)
        teacher = recipe_module.load_any(source).teacher.file
        copies = {target: source}
        if teacher and (source.parent / teacher).is_file():
            copies = {Path(teacher): source.parent / teacher, **copies}
        for place, original in copies.items():
            same = place != target and place.is_file() and place.read_bytes() == original.read_bytes()
            if place.exists() and not same:  # the same teacher: of a copying that was killed
                raise UsageError(f"{place} exists already; move it away first.")
        for place, original in copies.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".tmp-{place.name}")
            shutil.copyfile(original, temporary)
            temporary.rename(place)
        console.closing(str(target), f"a copy of {copy}", f"edgekd recipes --check {target}")
        return
    listing = {
        "recipes": {name: _first_comment(path) for name, path in shipped.items()},
        "methods": {name: _first_comment(path) for name, path in methods.items()},
    }
    if options.json:
        console.print_json(listing)
    else:
        rows = [(f"{kind[:-1]} {name}", text) for kind, entries in listing.items() for name, text in entries.items()]
        console.print_list(rows)
    following = "edgekd run quickstart"
    console.closing("nothing", f"{len(shipped)} recipes, {len(methods)} method presets", following)


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
