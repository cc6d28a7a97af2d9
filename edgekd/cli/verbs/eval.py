"""`edgekd eval`: the accuracy of everything a run holds on real images."""

from __future__ import annotations

from pathlib import Path

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError


@verb("edgekd eval --data val/", "edgekd eval my-run --data val/ --json")
def eval_(
    run: flags.RunArgument = "",
    data: flags.Data = None,
    trust_code: flags.TrustCode = None,
    json: flags.Json = False,
) -> None:
    """Measure the accuracy of everything a run holds on real images; nothing else changes."""
    from edgekd import pipeline
    from edgekd.cli import approval, lines, session, targets
    from edgekd.run.files import require_image_folder
    from edgekd.stages.catalog import INGEST, SELECT

    run_dir = targets.find_run(run, INGEST)
    with session.locked_run(run_dir) as stop:
        recipe = pipeline.open_recipe(run_dir)
        folder = data or (Path(recipe.eval.data) if recipe.eval.data else None)
        if folder is None:
            raise UsageError("eval needs --data DIR, a folder with one subfolder of images per class.")
        require_image_folder(folder, by_class=True)
        pipeline.RunStatus(run_dir, recipe).require(INGEST)
        approval.approve(run_dir, recipe, student=pipeline.RunStatus(run_dir, recipe).intact(SELECT))
        from edgekd.stages.eval import evaluate

        result = evaluate(run_dir, recipe, folder, stop)
    if json:
        shown = (
            *("run", "data_free", "images", "classes", "class_order", "accuracy", "accuracy_default_mode"),
            *("teacher_claim", "warnings"),
        )
        console.print_json({key: value for key, value in result.to_json().items() if key in shown})
    else:
        rows = [(artefact, f"{value:.2%}") for artefact, value in result.accuracy.items()]
        console.print_table((f"accuracy on {result.images} images", "top-1"), rows)
    shares = [f"{artefact} {value:.2%}" for artefact, value in result.accuracy.items()]
    headline = lines.data_free_warning(result.data_free) + ", ".join(shares[:2])
    written = f"{run_dir.stage('eval')}/{result.data}.json"
    console.closing(written, headline, f"edgekd report {targets.run_argument(run_dir)}")
