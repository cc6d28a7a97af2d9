"""Publish a student as ONNX files: the run's own into export/, one from elsewhere into a folder of its own."""

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
from edgekd.export.samples import ExportSamples, of_images, uint8_input
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

ELSEWHERE = "export-elsewhere"
"""The stage in the record of a student that is not the run's own."""
HIDDEN = ".edgekd-"
"""How names begin that are temporary beside the folder of such a student."""


def export_student(execution: Execution) -> None:
    """Publish export/: ONNX files, parity.json, calibration.json, agreement.json."""
    run_dir, recipe = execution.run, execution.recipe
    with _calibration_images(run_dir, recipe.export, execution.stop, purpose="calibration") as images:
        student = artefacts.student_network(run_dir)
        job = _job(run_dir, recipe, student, execution.inputs, images, execution.stop, own=True)
        if images is not None:
            run_dir.note_data_free(False)  # first, so that no kill leaves such files without it
        try:
            with execution.publish() as (folder, notes):
                numbers = onnx_files.write_all(job, folder)
                notes |= ExportNotes(failures=numbers.failures).to_json()
        finally:
            run_dir.note_data_free(run_dir.data_free())
    onnx_files.print_export(numbers)


def refuse_failures(run_dir: RunDir) -> None:
    """Raise `GateError` when a file of the published export missed its gate."""
    refuse_failures_of(run_dir.stage("export"))


def refuse_failures_of(folder: Path) -> None:
    """Raise `GateError` when a file of an export missed its gate."""
    record = Record.read(folder)
    failures = [] if record is None else record.notes_as(ExportNotes).failures
    if record is None or not failures:
        return
    remedy = ""
    if any("min_int8_agreement" in failure for failure in failures):
        qat = "Lower" if record.recipe_slice.get("qat") else "Fine-tune for INT8 with --qat, or lower"
        remedy = f" {qat} the key with --set if this is good enough for you."
    raise GateError(
        f"{'; '.join(failures)}. That file is not published, everything that passed is; {folder / AgreementCard.file} "
        f"keeps the numbers.{remedy}"
    )


@dataclass(frozen=True)
class ExternalStudent:
    """A student that was not made by the run: its weights, its architecture, and the folder its files go to."""

    file: Path
    arch: str
    out: Path


def export_external(run_dir: RunDir, recipe: Recipe, student: ExternalStudent, stop: Stop) -> bool:
    """Publish `student.out` with a record of its own and leave the run untouched; return False if it is done already.

    Raises InputFileError if the weights do not fit, UsageError if the folder holds anything else.
    """
    _refuse_folder(run_dir, student.out)
    network = _network(run_dir, student)
    with _calibration_images(run_dir, recipe.export, stop, purpose=None) as images:
        return _publish_elsewhere(run_dir, recipe, student, network, images, stop)


def _publish_elsewhere(
    run_dir: RunDir, recipe: Recipe, student: ExternalStudent, network: nn.Module, images: RealImages | None, stop: Stop
) -> bool:
    inputs = {"student": sha256_of(student.file), **_hashes(run_dir)}
    inputs |= {} if images is None else {"calibration_images": images.folder.sha256()}
    table = {"arch": student.arch, **recipe.export.model_dump(mode="json")}
    key = digest([ELSEWHERE, EXPORT.version, table, recipe.seed, inputs])
    previous = real(student.out).with_name(f"{HIDDEN}old-{real(student.out).name}")
    if previous.is_dir() and not student.out.exists():
        previous.rename(student.out)  # a kill between the two renames
    before = Record.read(student.out)
    if before is not None and before.key == key and before.damaged_output(student.out) is None:
        return False
    job = _job(run_dir, recipe, network, inputs, images, stop, own=False)
    out = real(student.out)
    with RunDir(out.parent).publish(out.name, hidden=HIDDEN) as (folder, record):
        numbers = onnx_files.write_all(job, folder)
        record |= {"stage": ELSEWHERE, "version": EXPORT.version, "key": key, "inputs": inputs, "recipe_slice": table}
        notes = ExportNotes(failures=numbers.failures, run=run_dir.name, data_free=job.data_free)
        if images is not None:
            notes = notes.model_copy(update={"real_images": len(images)})
        record["notes"] = notes.to_json()
    onnx_files.print_export(numbers)
    return True


def _refuse_folder(run_dir: RunDir, out: Path) -> None:
    """Raise UsageError unless `out` is free, or holds what this verb made."""
    place, inside = real(out), real(run_dir.path)
    if place == inside or inside in place.parents or place in inside.parents:
        raise UsageError(f"--out {out} lies in the run, or the run in it; choose a folder of its own.")
    if not place.exists():
        return
    if not place.is_dir():
        raise UsageError(f"--out {out} is a file; choose a folder that does not exist yet.")
    record = Record.read(place)
    own = {RECORD, *record.outputs} if record is not None and record.stage == ELSEWHERE else set()
    strange = sorted(path.name for path in place.iterdir() if path.name not in own)
    if strange:
        raise UsageError(f"--out {out} holds {strange[0]}, which is of something else; choose another folder.")


def _network(run_dir: RunDir, student: ExternalStudent) -> nn.Module:
    """Build the network and give it all of its weights."""
    description = artefacts.description_of(run_dir)
    shape, classes = description.input_shape, description.classes
    outside_files.require_file(student.file)
    network = registry.build(student.arch, input_shape=shape, classes=classes, seed=0)
    try:
        loaded = weights.state_dict_of(foreign.read_checkpoint(student.file, trust_pickle=None))
        weights_to_load = initial.fit_to_student(network, loaded, shape)
    except InputFileError as error:
        raise InputFileError(f"{student.file} is no {student.arch} for this run: {error}") from error
    if weights_to_load.left_random:
        raise InputFileError(
            f"{student.file} is no {student.arch} for this run's {classes} classes and "
            f"{'x'.join(map(str, shape))} images: {'; '.join(weights_to_load.left_random)}."
        )
    network.load_state_dict(dict(weights_to_load.tensors), strict=False)
    return network.eval().requires_grad_(False)


def _hashes(run_dir: RunDir) -> dict[str, str]:
    """The recorded hashes of what the run lends."""
    hashes: dict[str, str] = {}
    for stage, names in (
        (INGEST, (TEACHER_WEIGHTS, TeacherCard.file, PixelsCard.file)),
        (SELECT, (REPLAY_WEIGHTS,)),
    ):
        record = Record.read(run_dir.stage(stage.folder))
        assert record is not None  # the verb asked for both
        hashes |= {f"{stage.name}/{name}": record.outputs[name] for name in names}
    return hashes


def _calibration_images(
    run_dir: RunDir, table: ExportTable, stop: Stop, *, purpose: str | None
) -> AbstractContextManager[RealImages | None]:
    if not table.calibrates_on_real:
        return nullcontext()
    folder = Path(table.calibrate_on_real)
    return unlabeled(run_dir, folder, purpose=purpose, count=table.calibration_samples, stop=stop)


def _job(
    run_dir: RunDir,
    recipe: Recipe,
    student: nn.Module,
    inputs: Mapping[str, str],
    images: RealImages | None,
    stop: Stop,
    *,
    own: bool,
) -> onnx_files.ExportJob:
    threads = machine.use_threads(recipe.machine.threads)
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, "fp32", torch.device("cpu"))
    samples = ExportSamples.of_run(run_dir, uint8_input(run_dir, recipe.export))
    if images is not None:
        console.warn(f"INT8 ranges come from {len(images)} real images of {images.folder.path}: not data-free.")
    data_free = False if images is not None else True if own else None
    return onnx_files.ExportJob(
        student,
        teacher,
        description.input_shape,
        recipe.export,
        recipe.seed,
        samples,
        _metadata(run_dir, inputs, description, samples, own=own, data_free=data_free),
        data_free,
        threads,
        stop,
        None if images is None else of_images(images, samples.pixels),
    )


def _metadata(
    run_dir: RunDir,
    inputs: Mapping[str, str],
    description: Description,
    samples: ExportSamples,
    *,
    own: bool,
    data_free: bool | None,
) -> dict[str, str]:
    """The ONNX metadata: what a user of the file needs and where it comes from, no path of this machine."""
    pixels = run_dir.read(PixelsCard)
    facts: dict[str, object] = {
        "student": None if own else "elsewhere",
        "data_free": data_free,
        "input_name": FLOAT_INPUT if samples.pixels is None else UINT8_INPUT,
        "input_shape": list(description.input_shape),
        "normalization_in_graph": samples.pixels is not None,
        "mean": pixels.mean,
        "std": pixels.std,
        "class_names": pixels.class_names,
        "student_sha256": inputs["select/student.safetensors" if own else "student"],
        "teacher_sha256": inputs["ingest/teacher.safetensors"],
    }
    text = {f"edgekd.{name}": canonical_json(value) for name, value in facts.items() if value is not None}
    return {"edgekd.run": run_dir.name, **text}
