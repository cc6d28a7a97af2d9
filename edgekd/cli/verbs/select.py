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
    from edgekd.run.cards.judged import SelectionCard
    from edgekd.stages.catalog import DISTILL, SELECT

    found = targets.find_run(run, DISTILL)
    with session.locked_run(found) as stop:
        recipe = pipeline.open_recipe(found)
        pipeline.RunStatus(found, recipe).require(DISTILL)
        approval.approve(found, recipe)
        pipeline.advance(found, recipe, SELECT, stop=stop)
    selection = found.read(SelectionCard)
    if json:
        console.print_json({"run": found.name, **selection.to_json()})
    best = next(candidate for candidate in selection.candidates if candidate.name == selection.chosen)
    headline = f"{selection.chosen}: {best.agreement:.2%} synthetic agreement (not accuracy)"
    following = f"edgekd export {targets.run_argument(found)} --int8"
    console.closing(f"{found.stage('select')}/student.safetensors", headline, following)
