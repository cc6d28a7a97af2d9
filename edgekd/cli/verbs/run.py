"""`edgekd run`: every stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb

if TYPE_CHECKING:
    from edgekd.recipe import Recipe


@verb("edgekd run recipes/quickstart.toml", "edgekd run my.toml --max-seconds 3000")
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    run: flags.RunOption = "",
    data: flags.Data = None,
    device: flags.Device = "",
    threads: flags.Threads = None,
    max_seconds: flags.MaxSeconds = None,
    set_: flags.Set = None,
    trust_code: flags.TrustCode = None,
    fresh: flags.Fresh = False,
    json: flags.Json = False,
) -> None:
    """Run the whole chain from a recipe: ingest, distill, select, export, bench, eval, report."""
    from edgekd import pipeline
    from edgekd.cli import approval, changes, lines, session, settle, targets
    from edgekd.recipe import parse, read_toml, recipes_folder, with_changes
    from edgekd.stages.catalog import BENCH, DISTILL, EXPORT, SELECT

    changed = changes.combine(changes.of_machine(device, threads), changes.of_set(set_))
    approval.approve_typed(changed)
    file = recipe if recipe.is_file() else recipes_folder() / f"{recipe}.toml"
    file = file if file.is_file() else recipe
    content = read_toml(file)
    resolved = with_changes(_beside(parse(content, origin=str(file)), file.parent), changed)
    given = changes.combine(content, changed)
    made = targets.named_run(run) if run else targets.run_called(resolved.name or file.stem)
    needed = (
        resolved.student.weights,
        resolved.pixels.classes,
        resolved.images.folder,
        resolved.export.images,
        data or resolved.eval.data,
    )
    source = Path(resolved.teacher.file)
    with session.locked_run(made, max_seconds=max_seconds, fresh=fresh, teacher=source, needed=needed) as stop:
        adopted = pipeline.adopt(made, settle.with_kept_answers(made, resolved, given))
        approval.approve(made, adopted)
        session.read_teacher(made, adopted, stop, data=data or adopted.eval.data)
        adopted, size = settle.student(made, adopted, stop)
        adopted = settle.method(made, adopted, size, given)
        lines.print_opening(made, adopted, size)
        adopted, cost = settle.steps(made, adopted, stop)
        lines.print_plan(adopted, cost)
        pipeline.advance(made, adopted, DISTILL, SELECT, EXPORT, BENCH, stop=stop)
        from edgekd.stages.eval import evaluate
        from edgekd.stages.export import refuse_failures
        from edgekd.stages.report import print_summary, write_report

        images = data or (Path(adopted.eval.data) if adopted.eval.data else None)
        evaluated = None if images is None else evaluate(made, adopted, images, stop)
        summary = write_report(made)
        refuse_failures(made)
    if json:
        console.print_json(summary.to_json())
    else:
        print_summary(summary)
    headline = lines.data_free_warning(summary.data_free) + (summary.verdict or "no latency measured")
    if evaluated is not None:
        headline = f"accuracy {evaluated.accuracy['student']:.2%} on {evaluated.images} images; {headline}"
    console.closing(f"{made.stage('report')}/report.html", headline, f"edgekd status {targets.run_argument(made)}")


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve the paths in a recipe against the recipe's folder."""
    from edgekd.cli import changes
    from edgekd.recipe import with_changes

    changed: changes.Changes = {}
    paths = (
        ("teacher", "file"),
        ("student", "weights"),
        ("pixels", "classes"),
        ("images", "folder"),
        ("export", "images"),
        ("eval", "data"),
    )
    for table, key in paths:
        value = getattr(getattr(recipe, table), key)
        if value and not Path(value).is_absolute() and (folder / value).exists():
            changed = changes.combine(changed, {table: {key: str(folder / value)}})
    return with_changes(recipe, changed)
