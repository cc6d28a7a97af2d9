"""Measure the accuracy of whatever a run holds on real images; nothing depends on the numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgekd import console, machine
from edgekd.agent.device.files import real
from edgekd.agent.kernels import kind_of
from edgekd.export import ort_session
from edgekd.export.onnx_export import Normalization
from edgekd.models import artefacts, doubts
from edgekd.models.images import labeled
from edgekd.recipe import Recipe
from edgekd.run.cards.evaluation import ClassPart, EvaluationCard
from edgekd.run.cards.record import hash_as_recorded
from edgekd.run.cards.teacher import PixelsCard, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.files import digest, write_json
from edgekd.run.ownership import STUDENT_WEIGHTS, TEACHER_WEIGHTS
from edgekd.run.realdata import RealImages, describe_transform
from edgekd.run.unreadable import UnreadableFiles
from edgekd.stopping import Stop
from edgekd.text import visible

LONGEST_NAME_BYTES = 200
"""A file name has at most 255, and a folder of images may be called so."""


def evaluate(run_dir: RunDir, recipe: Recipe, data: Path, stop: Stop) -> EvaluationCard:
    """Write eval/<name>.json and return it: images, accuracy (fractions) and hash by artefact.

    `accuracy_default_mode` is that of files in which ONNX Runtime saturates on this CPU unless asked not to.
    """
    threads = machine.use_threads(recipe.machine.threads)
    with labeled(run_dir, data, purpose="eval", stop=stop) as images:
        return _measured(run_dir, data, images, threads, stop)


def _measured(run_dir: RunDir, data: Path, images: RealImages, threads: int, stop: Stop) -> EvaluationCard:
    description = artefacts.description_of(run_dir)
    accuracy: dict[str, float] = {}
    default_mode: dict[str, float] = {}
    hashes: dict[str, str] = {}
    warnings = list(images.folder.remarks)
    teacher_file = run_dir.stage("teacher") / TEACHER_WEIGHTS
    student_file = run_dir.stage("select") / STUDENT_WEIGHTS
    models = sorted(
        run_dir.stage("export").glob("student.*.onnx"), key=lambda path: artefacts.precision_rank(path.name)
    )
    files = [file for file in (teacher_file, student_file, *models) if file.is_file()]
    with console.progress("evaluate", len(files)) as progress:
        for done, file in enumerate(files, start=1):
            stop.raise_if_requested("eval")
            name = file.name if file in models else file.stem
            hashes[name] = hash_as_recorded(file)
            if file == teacher_file:
                answers = images.network_answers(artefacts.teacher_network(run_dir, description))
                warnings += _warned(doubts.about(images, answers, run_dir.read(TeacherCard)))
            elif file == student_file:
                answers = images.network_answers(artefacts.student_network(run_dir))
            else:
                pixels = run_dir.read(PixelsCard)
                answers = _onnx_answers(file, images, pixels, threads)
                if kind_of(name) == "int8-cpu-x86" and ort_session.saturates():
                    in_default_mode = _onnx_answers(file, images, pixels, threads, default_kernels=True)
                    default_mode[name] = images.share_right(in_default_mode)
            warnings += _warned(doubts.about_answers(name, answers))
            accuracy[name] = images.share_right(answers)
            progress.update(done, f"{name} {accuracy[name]:.2%}")
    for name, share in default_mode.items():
        console.say(ort_session.saturation_note(name, "top-1", accuracy[name], share))
    run_dir.stage("eval").mkdir(exist_ok=True)
    folder_id, images_sha256 = digest(str(real(data)))[:8], images.folder.sha256()
    folder, claims = images.folder, run_dir.read(TeacherCard).claims
    by_class = zip(folder.classes, folder.images_by_class(), strict=True)
    result = EvaluationCard(
        run=run_dir.name,
        data_free=run_dir.data_free(),
        data=_free_name(run_dir.stage("eval"), real(data).name, folder_id, images_sha256),
        folder=str(data),
        folder_id=folder_id,
        images_sha256=images_sha256,
        images=len(images),
        classes=[ClassPart(name=visible(name)[:300], images=count) for name, count in by_class],
        class_order=folder.order,
        passed_over=str(folder.passed_over),
        transform=describe_transform(description.input_shape),
        accuracy=accuracy,
        accuracy_default_mode=default_mode,
        artefacts_sha256=hashes,
        teacher_claim=None if claims is None else claims.accuracy,
        warnings=warnings,
    )
    write_json(run_dir.stage("eval") / f"{result.data}.json", result.to_json())
    return result


def doubt_teacher(run_dir: RunDir, images: RealImages) -> None:
    """Warn of what speaks against the teacher's accuracy on images, before hours are spent on learning from it."""
    answers = images.network_answers(artefacts.teacher_network(run_dir, artefacts.description_of(run_dir)))
    teacher = run_dir.read(TeacherCard)
    _warned(doubts.about_answers("the teacher", answers) + doubts.about(images, answers, teacher))


def _warned(sentences: list[str]) -> list[str]:
    """Print warnings and return them."""
    for sentence in sentences:
        console.warn(sentence)
    return sentences


def _free_name(eval_folder: Path, name: str, folder_id: str, images_sha256: str) -> str:
    """The name of the record of a data folder: the folder's own, unless another one of that name has it.

    Of a damaged record nobody knows whose it is: it is told, and left to the user.
    """
    name = name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore")
    longer = f"{name}-{folder_id}"
    if (eval_folder / f"{longer}.json").is_file():
        return longer
    if not (eval_folder / f"{name}.json").is_file():
        return name
    card = UnreadableFiles().unless(EvaluationCard.load_file, eval_folder / f"{name}.json")
    same = card is not None and (card.folder_id == folder_id or card.images_sha256 == images_sha256)
    return name if same else longer


def _onnx_answers(
    file: Path, images: RealImages, pixels: PixelsCard, threads: int, *, default_kernels: bool = False
) -> Tensor:
    kind = kind_of(file.name)
    session = ort_session.open_for_target(file, kind, threads=threads, default_kernels=default_kernels)
    if session.get_inputs()[0].type == "tensor(uint8)":
        assert pixels.mean is not None
        assert pixels.std is not None
        to_pixels = Normalization(pixels.mean, pixels.std).to_uint8
        return images.answers(lambda x: torch.from_numpy(ort_session.logits(session, to_pixels(x.numpy()))))
    return images.answers(lambda x: torch.from_numpy(ort_session.logits(session, x.numpy())))
