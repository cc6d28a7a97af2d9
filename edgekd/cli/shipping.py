"""The verbs that ship a student and measure its accuracy: export, eval."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.cli.common import Options, approve, at_work, caveat, find_run, typed
from edgekd.cli.flags import Changes, approve_typed, combine
from edgekd.errors import UsageError
from edgekd.export import clipping
from edgekd.models import artefacts
from edgekd.models import images as images_of
from edgekd.recipe import Recipe
from edgekd.run.cards.exported import AgreementCard
from edgekd.run.directory import RunDir
from edgekd.stages import eval as evaluation
from edgekd.stages import export as exporting
from edgekd.stages.catalog import EXPORT, INGEST, SELECT
from edgekd.stopping import graceful


def export(name: str, flags: Changes, options: Options, *, clipping_of: Path | None = None) -> None:
    """Write the ONNX files; with `clipping_of` say how far their INT8 ranges clip the images of that folder."""
    approve_typed(flags)
    run = find_run(name, SELECT)
    with at_work(run, options) as stop:
        recipe = pipeline.adopt(run, recipe_module.with_changes(pipeline.open_recipe(run), flags), reads_teacher=False)
        _refuse_idle_images(recipe, flags, clipping_of)
        images = None if clipping_of is None else images_of.unlabelled(run, clipping_of, purpose="clipping")
        pipeline.Standing(run, recipe).require(SELECT)
        approve(run, recipe)
        pipeline.advance(run, recipe, EXPORT, stop=stop)
        clipped = None
        if images is not None:
            with images:
                clipped = clipping.run(run, recipe, images)
    if clipped is not None and not options.json:
        clipping.print_table(clipped, len(images or ()))
    extras = {} if clipped is None else {"clipping": {name: one.to_json() for name, one in clipped.items()}}
    following = f"edgekd bench {typed(run)}"
    _close_export(run, run.stage("export"), extras, options, following, data_free=run.data_free())
    exporting.refuse_failures(run)


def elsewhere(
    weights: Path | None, arch: str, out: Path | None, clipping_of: Path | None
) -> exporting.Elsewhere | None:
    """Return the student from elsewhere that the flags name, None where they name none."""
    given = {"--student-weights FILE": weights, "--arch NAME": arch, "--out DIR": out}
    missing = [flag for flag, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if weights is None or out is None or missing:
        raise UsageError(
            f"a student from elsewhere needs {', '.join(given)}; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    if clipping_of is not None:
        raise UsageError("--calib-data enters the images in the run's ledger, but --out leaves the run untouched.")
    return exporting.Elsewhere(weights, arch, out)


def export_elsewhere(name: str, student: exporting.Elsewhere, flags: Changes, options: Options) -> None:
    """Write the ONNX files of a student that the run did not make; the run is only read."""
    approve_typed(combine(flags, {"student": {"name": student.arch}}))
    run = find_run(name, SELECT)
    with graceful(options.max_seconds) as stop:
        kept = pipeline.open_recipe(run)
        recipe = recipe_module.with_changes(kept, flags)
        _refuse_idle_keys(kept, recipe)
        _refuse_idle_images(recipe, flags, None)
        pipeline.Standing(run, recipe).require(SELECT)
        approve(run, recipe, student=False)
        pipeline.Standing(run, kept).refuse_pruned(EXPORT)
        if not exporting.run_elsewhere(run, recipe, student, stop):
            console.say("export   already done")
    extras, following = {"out": str(student.out)}, f"edgekd bench {shlex.quote(str(student.out / 'student.fp32.onnx'))}"
    data_free = False if recipe.export.calibrates_on_real else None  # nobody knows what it was trained on
    _close_export(run, student.out, extras, options, following, data_free=data_free)
    exporting.refuse_failures_of(student.out)


def _refuse_idle_keys(kept: Recipe, recipe: Recipe) -> None:
    """Raise `UsageError` when --set changes what has no part in the export of a student from elsewhere."""
    changes = recipe_module.differences(kept.model_dump(mode="json"), recipe.model_dump(mode="json"))
    idle = [change for change in changes if not change.startswith(("export.", "machine.threads:"))]
    if idle:
        raise UsageError(
            f"--out takes the run as it is, so {'; '.join(idle)} would change nothing; of a recipe only [export] and "
            "machine.threads have a part in it."
        )


def _refuse_idle_images(recipe: Recipe, flags: Changes, clipping_of: Path | None) -> None:
    """Raise `UsageError` when real images are given for INT8 ranges and no INT8 file is made."""
    asked = {"--calib-data": clipping_of, "--calibrate-on-real": flags.get("export", {}).get("calibrate_on_real")}
    for flag, value in asked.items():
        if value and not recipe.export.int8:
            raise UsageError(f"{flag} is about the ranges of INT8 files; add --int8.")


def _close_export(
    run: RunDir, folder: Path, extras: dict[str, Any], options: Options, following: str, *, data_free: bool | None
) -> None:
    """Print the agreement chain, or JSON, and the closing lines of an export."""
    chain = AgreementCard.load(folder).chain
    chain = dict(sorted(chain.items(), key=lambda item: artefacts.precision_rank(item[0].split(" -> ")[1])))
    found = sorted(folder.glob("*.onnx"), key=lambda path: artefacts.precision_rank(path.name))
    files = {path.name: path.stat().st_size for path in found}
    if options.json:
        shown = {
            "run": run.name,
            "size_bytes": files,
            "agreement": {name: link.to_json() for name, link in chain.items()},
            "data_free": data_free,
        }
        console.print_json({**shown, **extras})
    else:
        shares = {link: "–" if value.share is None else f"{value.share:.2%}" for link, value in chain.items()}
        rows = [(link, share, str(chain[link].clear)) for link, share in shares.items()]
        console.print_table(("synthetic agreement (not accuracy)", "same answer", "decided samples"), rows)
    sizes = ", ".join(f"{file} {size / 1000:.0f} kB" for file, size in files.items())
    console.closing(f"{folder}/", caveat(data_free) + sizes, following)


def evaluate(name: str, data: Path | None, options: Options) -> None:
    """Measure accuracy on real images."""
    run = find_run(name, INGEST)
    with at_work(run, options) as stop:
        recipe = pipeline.open_recipe(run)
        folder = data or (Path(recipe.eval.data) if recipe.eval.data else None)
        if folder is None:
            raise UsageError("eval needs --data DIR, a folder with one subfolder of images per class.")
        pipeline.Standing(run, recipe).require(INGEST)
        approve(run, recipe, student=pipeline.Standing(run, recipe).intact(SELECT))
        result = evaluation.run(run, recipe, folder, stop)
    if options.json:
        shown = ("run", "data_free", "images", "accuracy", "accuracy_default_mode")
        console.print_json({name: value for name, value in result.to_json().items() if name in shown})
    else:
        rows = [(artefact, f"{value:.2%}") for artefact, value in result.accuracy.items()]
        console.print_table((f"accuracy on {result.images} images", "top-1"), rows)
    shares = [f"{artefact} {value:.2%}" for artefact, value in result.accuracy.items()]
    headline = caveat(result.data_free) + ", ".join(shares[:2])
    console.closing(f"{run.stage('eval')}/{result.data}.json", headline, f"edgekd report {typed(run)}")
