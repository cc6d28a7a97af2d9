"""`edgekd status`: which stages of a run are done, which are stale, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.text import path_argument

if TYPE_CHECKING:
    from edgekd.recipe import Recipe
    from edgekd.run.directory import RunDir
    from edgekd.stages.base import Stage


@verb("edgekd status", "edgekd status my-run --json")
def status(run: flags.RunArgument = "", json: flags.Json = False) -> None:
    """Show which stages are done, which are stale, and why."""
    from edgekd import pipeline
    from edgekd.cli import lines, targets
    from edgekd.run.unreadable import UnreadableFiles
    from edgekd.stages.catalog import INGEST

    run_dir = targets.find_run(run, INGEST)  # without its lock: it may be busy
    recipe = pipeline.open_recipe(run_dir)
    standing = pipeline.RunStatus(run_dir, recipe)
    stages: list[dict[str, Any]] = []
    for stage in standing.stages:
        try:
            reason = standing.reason_to_run(stage)
            state = "done" if reason is None else "stale" if standing.intact(stage) else "open"
        except OSError as error:  # whether it is whole is not known, and the others are told all the same
            state, reason = "open", f"{error.filename} cannot be read ({error.strerror})"
            console.warn(f"{reason}.")
        stages.append({"stage": stage.name, "state": state, "reason": reason})
    left_out = UnreadableFiles()
    last = left_out.unless(_last_step, run_dir)
    left_out.unless(run_dir.ledger)
    result: dict[str, Any] = {"run": run_dir.name, "data_free": run_dir.data_free(), "stages": stages, "step": last}
    result["steps"] = recipe.method.steps or None
    if json:
        console.print_json(result)
    else:
        rows = [(entry["stage"], entry["state"], entry["reason"] or "") for entry in stages]
        console.print_table(("stage", "state", "why"), rows)
    open_stages = [stage for stage, entry in zip(standing.stages, stages, strict=True) if entry["state"] != "done"]
    report = f"edgekd report {targets.run_argument(run_dir)}"
    following = _making(run_dir, recipe, open_stages[0]) if open_stages else report
    headline = (
        lines.data_free_warning(result["data_free"]) + f"{len(stages) - len(open_stages)} of {len(stages)} stages done"
    )
    console.closing("nothing", headline, following)


def _last_step(run: RunDir) -> int | None:
    """The last step that was logged."""
    from edgekd.run.cards.events import TrainEvent

    run.require_events()
    last = run.last_logged(TrainEvent)
    return None if last is None else last.step


def _making(run: RunDir, recipe: Recipe, stage: Stage) -> str:
    """The command that makes a stage of this run."""
    from edgekd.cli.targets import run_argument

    if "TEACHER" not in stage.command:
        return f"{stage.command} {run_argument(run)}"
    meant = {"TEACHER": recipe.teacher.file, "NAME": recipe.student.name, "FILE": recipe.student.weights}
    words = [path_argument(meant[word]) if meant.get(word) else word for word in stage.command.split()]
    return f"{' '.join(words)} --run {run_argument(run)}"
