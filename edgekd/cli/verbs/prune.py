"""`edgekd prune`: remove what is as sensitive as the teacher."""

from __future__ import annotations

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb


@verb("edgekd prune my-run", "edgekd prune")
def prune(run: flags.RunArgument = "", json: flags.Json = False) -> None:
    """Remove checkpoints and replay networks, which are as sensitive as the teacher, after export."""
    from edgekd import pipeline
    from edgekd.cli import session, targets
    from edgekd.stages.catalog import EXPORT

    run_dir = targets.find_run(run, EXPORT)
    with session.locked_run(run_dir):
        recipe = pipeline.open_recipe(run_dir)
        pipeline.RunStatus(run_dir, recipe).require(EXPORT)
        removed = pipeline.prune(run_dir)
    if json:
        console.print_json({"run": run_dir.name, "removed": removed})
    headline = f"removed {', '.join(removed) or 'nothing: already pruned'}"
    console.closing("nothing", headline, f"edgekd bench {targets.run_argument(run_dir)}")
