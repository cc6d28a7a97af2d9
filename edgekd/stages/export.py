"""Publish a student as ONNX files: the run's own into export/, an external one into another folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgekd import console, machine
from edgekd.agent.device.files import real
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import GateError, InputFileError, UsageError
from edgekd.export import onnx_files
from edgekd.export.onnx_export import FLOAT_INPUT, UINT8_INPUT
from edgekd.export.samples import ExportSamples, image_batches, read_graph_normalization
from edgekd.ingestion import foreign, initial, outside_files, weights
from edgekd.models import artefacts, registry
from edgekd.models.description import Description
from edgekd.models.images import unlabeled
from edgekd.recipe import ExportTable, Recipe
from edgekd.run.cards.exported import AgreementCard
from edgekd.run.cards.record import RECORD, ExportNotes, Record
from edgekd.run.cards.teacher import PixelsCard, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.files import canonical_json, digest
from edgekd.run.ownership import REPLAY_WEIGHTS, TEACHER_WEIGHTS
from edgekd.run.realdata import RealImages
from edgekd.stages.base import Execution
from edgekd.stages.catalog import EXPORT, INGEST, SELECT
from edgekd.stopping import Stop
from edgekd.synthesis.teacher import Teacher

EXTERNAL_STAGE = "export-elsewhere"
"""The stage name in the record of an external student's files."""
HIDDEN_PREFIX = ".edgekd-"
"""Names of temporary folders beside an external student's folder start with this."""


def export_student(execution: Execution) -> None:
    """Publish export/: ONNX files, parity.json, calibration.json, agreement.json."""
    run_dir, recipe = execution.run, execution.recipe
    with _calibration_images(run_dir, recipe.export, execution.stop, purpose="calibration") as images:
        student = artefacts.student_network(run_dir)
        job = _export_job(run_dir, recipe, student, execution.inputs, images, execution.stop, external=False)
        if images is not None:
            run_dir.note_data_free(False)  # before any file is written, in case the process is killed
        try:
            with execution.publish() as (folder, notes):
                metrics = onnx_files.write_all(job, folder)
                notes |= ExportNotes(failures=metrics.failures).to_json()
        finally:
            run_dir.note_data_free(run_dir.data_free())
    onnx_files.print_export(metrics)


def refuse_failures(run_dir: RunDir) -> None:
    """Raise `GateError` when a file of the published export missed its gate."""
    refuse_failures_of(run_dir.stage("export"))


def refuse_failures_of(folder: Path) -> None:
    """Raise `GateError` when a file of an export missed its gate."""
    record = Record.read(folder)
    failures = [] if record is None else record.notes_as(ExportNotes).failures
    if record is None or not failures:
        return
    advice = ""
    if any("min_int8_agreement" in failure for failure in failures):
        verb = "Lower" if record.recipe_slice.get("qat") else "Fine-tune for INT8 with --qat, or lower"
        advice = f" {verb} the key with --set if this is good enough for you."
    raise GateError(
        f"{'; '.join(failures)}. That file is not published, everything that passed is; {folder / AgreementCard.file} "
        f"keeps the numbers.{advice}"
    )


@dataclass(frozen=True)
class ExternalStudent:
    """A student that the run did not make: its weights, its architecture, and the folder for its files."""

    file: Path
    arch: str
    out: Path


def export_external(run_dir: RunDir, recipe: Recipe, student: ExternalStudent, stop: Stop) -> bool:
    """Publish `student.out` with its own record, leave the run untouched; False if that was done before.

    Raises InputFileError if the weights do not fit, UsageError if the folder holds other files.
    """
    _refuse_foreign_folder(run_dir, student.out)
    network = _external_network(run_dir, student)
    with _calibration_images(run_dir, recipe.export, stop, purpose=None) as images:
        return _publish_external(run_dir, recipe, student, network, images, stop)


def _publish_external(
    run_dir: RunDir, recipe: Recipe, student: ExternalStudent, network: nn.Module, images: RealImages | None, stop: Stop
) -> bool:
    inputs = {"student": sha256_of(student.file), **_run_hashes(run_dir)}
    inputs |= {} if images is None else {"calibration_images": images.folder.sha256()}
    table = {"arch": student.arch, **recipe.export.model_dump(mode="json")}
    key = digest([EXTERNAL_STAGE, EXPORT.version, table, recipe.seed, inputs])
    previous = real(student.out).with_name(f"{HIDDEN_PREFIX}old-{real(student.out).name}")
    if previous.is_dir() and not student.out.exists():
        previous.rename(student.out)  # an earlier publication was killed between its two renames
    published = Record.read(student.out)
    if published is not None and published.key == key and published.damaged_output(student.out) is None:
        return False
    job = _export_job(run_dir, recipe, network, inputs, images, stop, external=True)
    out = real(student.out)
    with RunDir(out.parent).publish(out.name, hidden=HIDDEN_PREFIX) as (folder, record):
        metrics = onnx_files.write_all(job, folder)
        record |= {
            "stage": EXTERNAL_STAGE,
            "version": EXPORT.version,
            "key": key,
            "inputs": inputs,
            "recipe_slice": table,
        }
        notes = ExportNotes(failures=metrics.failures, run=run_dir.name, data_free=job.data_free)
        if images is not None:
            notes = notes.model_copy(update={"real_images": len(images)})
        record["notes"] = notes.to_json()
    onnx_files.print_export(metrics)
    return True


def _refuse_foreign_folder(run_dir: RunDir, out: Path) -> None:
    """Raise UsageError if `out` overlaps the run or holds files that `export_external` did not make."""
    folder, run_folder = real(out), real(run_dir.path)
    if folder == run_folder or run_folder in folder.parents or folder in run_folder.parents:
        raise UsageError(f"--out {out} lies in the run, or the run in it; choose a folder of its own.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {out} is a file; choose a folder that does not exist yet.")
    record = Record.read(folder)
    expected = {RECORD, *record.outputs} if record is not None and record.stage == EXTERNAL_STAGE else set()
    foreign_names = sorted(path.name for path in folder.iterdir() if path.name not in expected)
    if foreign_names:
        raise UsageError(f"--out {out} holds {foreign_names[0]}, which is of something else; choose another folder.")


def _external_network(run_dir: RunDir, student: ExternalStudent) -> nn.Module:
    """Build the student's network and load its weights; InputFileError if they do not fit it."""
    description = artefacts.description_of(run_dir)
    shape, classes = description.input_shape, description.classes
    outside_files.require_file(student.file)
    network = registry.build(student.arch, input_shape=shape, classes=classes, seed=0)
    try:
        state_dict = weights.state_dict_of(foreign.read_checkpoint(student.file, trust_pickle=None))
        weights_to_load = initial.fit_to_student(network, state_dict, shape)
    except InputFileError as error:
        raise InputFileError(f"{student.file} is no {student.arch} for this run: {error}") from error
    if weights_to_load.left_random:
        raise InputFileError(
            f"{student.file} is no {student.arch} for this run's {classes} classes and "
            f"{'x'.join(map(str, shape))} images: {'; '.join(weights_to_load.left_random)}."
        )
    network.load_state_dict(dict(weights_to_load.tensors), strict=False)
    return artefacts.settled(network.eval().requires_grad_(False), student.arch, shape)


def _run_hashes(run_dir: RunDir) -> dict[str, str]:
    """Read the recorded hashes of the files of the run that an export uses."""
    hashes: dict[str, str] = {}
    for stage, names in (
        (INGEST, (TEACHER_WEIGHTS, TeacherCard.file, PixelsCard.file)),
        (SELECT, (REPLAY_WEIGHTS,)),
    ):
        record = Record.read(run_dir.stage(stage.folder))
        assert record is not None  # the verb has checked that both are published
        hashes |= {f"{stage.name}/{name}": record.outputs[name] for name in names}
    return hashes


def _calibration_images(
    run_dir: RunDir, table: ExportTable, stop: Stop, *, purpose: str | None
) -> AbstractContextManager[RealImages | None]:
    if not table.calibrates_on_images:
        return nullcontext()
    folder = Path(table.images)
    return unlabeled(run_dir, folder, purpose=purpose, count=table.calibration_samples, stop=stop)


def _export_job(
    run_dir: RunDir,
    recipe: Recipe,
    student: nn.Module,
    inputs: Mapping[str, str],
    images: RealImages | None,
    stop: Stop,
    *,
    external: bool,
) -> onnx_files.ExportJob:
    threads = machine.use_threads(recipe.machine.threads)
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, "fp32", torch.device("cpu"))
    samples = ExportSamples.of_run(run_dir, read_graph_normalization(run_dir, recipe.export), stop)
    if images is not None:
        console.warn(f"INT8 ranges come from {len(images)} real images of {images.folder.path}: not data-free.")
    data_free = False if images is not None or recipe.images.folder else None if external else True
    return onnx_files.ExportJob(
        student,
        teacher,
        description.input_shape,
        recipe.export,
        recipe.seed,
        samples,
        _metadata(run_dir, inputs, description, samples, external=external, data_free=data_free),
        data_free,
        threads,
        stop,
        None if images is None else image_batches(images, samples.graph_normalization),
    )


def _metadata(
    run_dir: RunDir,
    inputs: Mapping[str, str],
    description: Description,
    samples: ExportSamples,
    *,
    external: bool,
    data_free: bool | None,
) -> dict[str, str]:
    """Make the ONNX metadata: what a user of the file needs and where it comes from, no path of this machine."""
    pixels = run_dir.read(PixelsCard)
    values: dict[str, object] = {
        "student": "elsewhere" if external else None,
        "data_free": data_free,
        "input_name": FLOAT_INPUT if samples.graph_normalization is None else UINT8_INPUT,
        "input_shape": list(description.input_shape),
        "normalization_in_graph": samples.graph_normalization is not None,
        "mean": pixels.mean,
        "std": pixels.std,
        "class_names": pixels.class_names,
        "student_sha256": inputs["student" if external else "select/student.safetensors"],
        "teacher_sha256": inputs["ingest/teacher.safetensors"],
    }
    properties = {f"edgekd.{name}": canonical_json(value) for name, value in values.items() if value is not None}
    return {"edgekd.run": run_dir.name, **properties}
