"""`edgekd select`: choose the final student again."""

from __future__ import annotations

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb


@verb("edgekd select", "edgekd select my-run --json")
def select(run: flags.RunArgument = "", trust_code: flags.TrustCode = None, json: flags.Json = False) -> None:
    """Choose the final student again, from the last checkpoint, without data."""
    from edgekd import pipeline
    from edgekd.cli import approval, session, targets
    from edgekd.run.cards.evaluation import SelectionCard
    from edgekd.stages.catalog import DISTILL, SELECT

    run_dir = targets.find_run(run, DISTILL)
    with session.locked_run(run_dir) as stop:
        recipe = pipeline.open_recipe(run_dir)
        pipeline.RunStatus(run_dir, recipe).require(DISTILL)
        approval.approve(run_dir, recipe)
        pipeline.advance(run_dir, recipe, SELECT, stop=stop)
    selection = run_dir.read(SelectionCard)
    if json:
        console.print_json({"run": run_dir.name, **selection.to_json()})
    best = next(candidate for candidate in selection.candidates if candidate.name == selection.chosen)
    headline = f"{selection.chosen}: {best.agreement:.2%} synthetic agreement (not accuracy)"
    following = f"edgekd export {targets.run_argument(run_dir)} --int8"
    console.closing(f"{run_dir.stage('select')}/student.safetensors", headline, following)
