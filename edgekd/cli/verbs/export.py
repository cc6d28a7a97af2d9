"""`edgekd export`: write the run's student, or one from elsewhere, as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError
from edgekd.text import path_argument

if TYPE_CHECKING:
    from edgekd.cli.changes import Changes
    from edgekd.recipe import Recipe
    from edgekd.run.directory import RunDir


@verb("edgekd export --int8", "edgekd export my-run --int8 --target tensorrt --qat")
def export(
    run: flags.RunArgument = "",
    int8: Annotated[bool | None, typer.Option("--int8/--no-int8", help="Also write INT8 files.")] = None,
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="Whom the INT8 files are for: cpu, tensorrt or all.")
    ] = "",
    uint8_input: Annotated[
        bool | None, typer.Option("--uint8-input/--float-input", help="Put the normalisation into the graph.")
    ] = None,
    qat: Annotated[
        bool | None,
        typer.Option("--qat/--no-qat", help="Fine-tune for an INT8 file that misses its gate otherwise."),
    ] = None,
    calib_data: Annotated[
        Path | None,
        typer.Option("--calib-data", metavar="DIR", help="Say how far INT8 ranges clip real images."),
    ] = None,
    images: Annotated[
        str,
        typer.Option("--images", metavar="DIR", help="Set INT8 ranges from pictures of your own: not data-free."),
    ] = "",
    calibrate_on_real: Annotated[
        str,
        typer.Option("--calibrate-on-real", metavar="DIR", help="The old name of --images.", hidden=True),
    ] = "",
    student_weights: Annotated[
        Path | None,
        typer.Option("--student-weights", metavar="FILE", help="Export this student from elsewhere."),
    ] = None,
    arch: Annotated[str, typer.Option("--arch", metavar="NAME", help="Architecture of that student.")] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for that student's files.")] = None,
    set_: flags.Set = None,
    trust_code: flags.TrustCode = None,
    json: flags.Json = False,
) -> None:
    """Write the student as ONNX files, INT8 calibrated on replayed samples, each held by a gate."""
    from edgekd.cli import changes

    switches = {"int8": int8, "uint8_input": uint8_input, "qat": qat}  # a switch that is off is given, too
    if images and calibrate_on_real:
        raise UsageError("--calibrate-on-real is the old name of --images: give --images alone.")
    if calibrate_on_real:
        console.warn("--calibrate-on-real is now called --images.")
    values = changes.only_given(target=target, images=images or calibrate_on_real)
    values |= {name: value for name, value in switches.items() if value is not None}
    changed = changes.combine(changes.in_table("export", values), changes.of_set(set_))
    given = {"--student-weights FILE": student_weights, "--arch NAME": arch, "--out DIR": out}
    missing = [flag for flag, value in given.items() if not value]
    if len(missing) == len(given):
        _own(run, changed, calib_data, json=json)
        return
    if student_weights is None or out is None or missing:
        raise UsageError(
            f"a student from elsewhere needs {', '.join(given)}; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    if calib_data is not None:
        raise UsageError("--calib-data enters the images in the run's ledger, but --out leaves the run untouched.")
    _elsewhere(run, changed, student_weights, arch, out, json=json)


def _own(name: str, changed: Changes, clipping_of: Path | None, *, json: bool) -> None:
    """Write the run's student; with `clipping_of` say how far INT8 ranges clip the images of that folder."""
    from edgekd import pipeline
    from edgekd.cli import approval, session, targets
    from edgekd.recipe import with_changes
    from edgekd.run.files import require_image_folder
    from edgekd.stages.catalog import EXPORT, SELECT

    approval.approve_typed(changed)
    run = targets.find_run(name, SELECT)
    if clipping_of is not None:
        require_image_folder(clipping_of, by_class=False)
    with session.locked_run(run) as stop:
        recipe = pipeline.adopt(run, with_changes(pipeline.open_recipe(run), changed), reads_teacher=False)
        _refuse_idle_images(recipe, changed, clipping_of)
        session.require_calibration_images(recipe, run.stage(EXPORT.folder))
        from edgekd.export import clipping
        from edgekd.models.images import unlabeled
        from edgekd.stages.export import refuse_failures

        images = None if clipping_of is None else unlabeled(run, clipping_of, purpose="clipping", stop=stop)
        pipeline.RunStatus(run, recipe).require(SELECT)
        approval.approve(run, recipe)
        pipeline.advance(run, recipe, EXPORT, stop=stop)
        clipped = None
        if images is not None:
            with images:
                clipped = clipping.measure_clipping(run, recipe, images)
    if clipped is not None and not json:
        clipping.print_clipping(clipped, len(images or ()))
    extras = {} if clipped is None else {"clipping": {file: rate.to_json() for file, rate in clipped.items()}}
    following = f"edgekd bench {targets.run_argument(run)}"
    _close(run, run.stage("export"), extras, following, data_free=run.data_free(), json=json)
    refuse_failures(run)


def _elsewhere(name: str, changed: Changes, weights: Path, arch: str, out: Path, *, json: bool) -> None:
    """Write a student that the run did not make; the run is only read."""
    from edgekd import pipeline
    from edgekd.cli import approval, changes, session, targets
    from edgekd.ingestion import outside_files
    from edgekd.recipe import with_changes
    from edgekd.stages.catalog import EXPORT, SELECT
    from edgekd.stopping import graceful

    approval.approve_typed(changes.combine(changed, {"student": {"name": arch}}))
    run = targets.find_run(name, SELECT)
    session.require_architecture(arch)
    outside_files.require_checkpoint(weights)
    with graceful() as stop:
        resolved = pipeline.open_recipe(run)
        recipe = with_changes(resolved, changed)
        _refuse_idle_keys(resolved, recipe)
        _refuse_idle_images(recipe, changed, None)
        session.require_calibration_images(recipe, out)
        pipeline.RunStatus(run, recipe).require(SELECT)
        approval.approve(run, recipe, student=False)
        pipeline.RunStatus(run, resolved).refuse_pruned(EXPORT)
        from edgekd.stages.export import ExternalStudent, export_external, refuse_failures_of

        if not export_external(run, recipe, ExternalStudent(weights, arch, out), stop):
            console.say("export   already done")
    following = f"edgekd bench {path_argument(out / 'student.fp32.onnx')}"
    data_free = False if recipe.export.calibrates_on_images else None  # nobody knows what it was trained on
    _close(run, out, {"out": str(out)}, following, data_free=data_free, json=json)
    refuse_failures_of(out)


def _refuse_idle_keys(resolved: Recipe, recipe: Recipe) -> None:
    """Raise `UsageError` when --set changes what has no part in the export of a student from elsewhere."""
    from edgekd.recipe import differences

    changed = differences(resolved.model_dump(mode="json"), recipe.model_dump(mode="json"))
    idle = [change for change in changed if not change.startswith(("export.", "machine.threads:"))]
    if idle:
        raise UsageError(
            f"--out takes the run as it is, so {'; '.join(idle)} would change nothing; of a recipe only [export] and "
            "machine.threads have a part in it."
        )


def _refuse_idle_images(recipe: Recipe, changed: Changes, clipping_of: Path | None) -> None:
    """Raise `UsageError` when real images are given for INT8 ranges and no INT8 file is made."""
    table = changed.get("export", {})
    asked = {"--calib-data": clipping_of, "--images": table.get("images") or table.get("calibrate_on_real")}
    for flag, value in asked.items():
        if value and not recipe.export.int8:
            raise UsageError(f"{flag} is about the ranges of INT8 files; add --int8.")


def _close(
    run: RunDir, folder: Path, extras: dict[str, Any], following: str, *, data_free: bool | None, json: bool
) -> None:
    """Print the agreement chain, or JSON, and the closing lines of an export."""
    from edgekd.cli import lines
    from edgekd.models import artefacts
    from edgekd.run.cards.exported import AgreementCard

    chain = AgreementCard.load(folder).chain
    chain = dict(sorted(chain.items(), key=lambda item: artefacts.precision_rank(item[0].split(" -> ")[1])))
    onnx_files = sorted(folder.glob("*.onnx"), key=lambda path: artefacts.precision_rank(path.name))
    files = {path.name: path.stat().st_size for path in onnx_files}
    if json:
        agreement = {link: value.to_json() for link, value in chain.items()}
        shown = {"run": run.name, "size_bytes": files, "agreement": agreement, "data_free": data_free}
        console.print_json({**shown, **extras})
    else:
        shares = {link: "–" if value.share is None else f"{value.share:.2%}" for link, value in chain.items()}
        rows = [(link, share, str(chain[link].clear)) for link, share in shares.items()]
        console.print_table(("synthetic agreement (not accuracy)", "same answer", "decided samples"), rows)
    sizes = ", ".join(f"{file} {size / 1000:.0f} kB" for file, size in files.items())
    console.closing(f"{folder}/", lines.data_free_warning(data_free) + sizes, following)
