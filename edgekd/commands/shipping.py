"""The verbs that ship a student and measure its accuracy: export, eval."""

from __future__ import annotations

from pathlib import Path

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.commands.common import Options, at_work, find_run, typed
from edgekd.commands.flags import Changes
from edgekd.errors import UsageError
from edgekd.rundir import read_json
from edgekd.stages import artefacts
from edgekd.stages import eval as evaluation
from edgekd.stages import export as exporting


def export(name: str, flags: Changes, options: Options) -> None:
    """Write the ONNX files."""
    run = find_run(name, "select")
    with at_work(run, options) as stop:
        recipe = pipeline.adopt(run, recipe_module.with_changes(pipeline.open_recipe(run), flags), reads_teacher=False)
        pipeline.require(run, recipe, "select")
        pipeline.advance(run, recipe, ("export",), stop=stop)
    exporting.refuse_failures(run)
    folder = run.stage("export")
    chain = read_json(folder / "agreement.json")["chain"]
    chain = dict(sorted(chain.items(), key=lambda item: artefacts.precision_rank(item[0].split(" -> ")[1])))
    found = sorted(folder.glob("*.onnx"), key=lambda path: artefacts.precision_rank(path.name))
    files = {path.name: path.stat().st_size for path in found}
    if options.json:
        console.print_json({"run": run.name, "size_bytes": files, "agreement": chain})
    else:
        shares = {link: "–" if value["share"] is None else f"{value['share']:.2%}" for link, value in chain.items()}
        rows = [(link, share, str(chain[link]["clear"])) for link, share in shares.items()]
        console.print_table(("synthetic agreement (not accuracy)", "same answer", "decided samples"), rows)
    sizes = ", ".join(f"{file} {size / 1000:.0f} kB" for file, size in files.items())
    console.closing(f"{folder}/", sizes, f"edgekd bench {typed(run)}")


def evaluate(name: str, data: Path | None, options: Options) -> None:
    """Measure accuracy on real images."""
    run = find_run(name, "ingest")
    with at_work(run, options) as stop:
        recipe = pipeline.open_recipe(run)
        folder = data or (Path(recipe.eval.data) if recipe.eval.data else None)
        if folder is None:
            raise UsageError("eval needs --data DIR, a folder with one subfolder of images per class.")
        pipeline.require(run, recipe, "ingest")
        result = evaluation.run(run, recipe, folder, stop)
    if options.json:
        console.print_json({key: result[key] for key in ("run", "images", "accuracy")})
    else:
        rows = [(artefact, f"{value:.2%}") for artefact, value in result["accuracy"].items()]
        console.print_table((f"accuracy on {result['images']} images", "top-1"), rows)
    headline = ", ".join(f"{artefact} {value:.2%}" for artefact, value in list(result["accuracy"].items())[:2])
    console.closing(f"{run.stage('eval')}/{result['data']}.json", headline, f"edgekd report {typed(run)}")
