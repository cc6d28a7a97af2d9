"""Choose the final student among the last weights, their average, and re-estimated BatchNorm, without data.

Nothing but the end of the training is a candidate, so no snapshot can be lucky. The judge is the agreement with the
teacher on samples drawn for this purpose alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgekd import console
from edgekd.errors import InputFileError
from edgekd.export.samples import read_pictures
from edgekd.models import artefacts
from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.run import checkpoint
from edgekd.run.cards.evaluation import SelectionCandidate, SelectionCard
from edgekd.run.cards.record import DistillNotes, Record
from edgekd.run.directory import RunDir
from edgekd.run.ownership import REPLAY_WEIGHTS, STUDENT_WEIGHTS
from edgekd.stages.base import Execution
from edgekd.state_dict import StateDict, flatten, tensors_of
from edgekd.stopping import Stop
from edgekd.synthesis.sampler import Sampler
from edgekd.synthesis.teacher import Teacher


def select_student(execution: Execution) -> None:
    """Publish select/: the student, why it was chosen, and the networks that draw synthetic samples."""
    run_dir, recipe, device = execution.run, execution.recipe, torch.device("cpu")
    description = artefacts.description_of(run_dir)
    teacher = Teacher.of(artefacts.teacher_network(run_dir, description), description, "fp32", device)
    state = final_state(run_dir)
    drawn_by = Sampler.state_of(state, recipe.method)
    pictures = read_pictures(run_dir, recipe.images.folder, purpose="choosing the student", stop=execution.stop)
    sampler = Sampler.from_state(drawn_by, recipe, description, pictures)
    draws = KeyedDraws(recipe.seed, "select", device)
    pool = balanced_pool(recipe, sampler, teacher, draws, description.classes)
    students = selection_candidates(recipe, description, state, sampler, execution.stop)
    judged = [judge(name, student, pool, teacher) for name, student in students.items()]
    chosen, reason = choose(judged, ships_average=recipe.method.student.ship_average)
    console.say(f"select   {chosen.name}: {chosen.agreement:.2%} synthetic agreement (not accuracy); {reason}")
    with execution.publish() as (folder, _):
        checkpoint.save_tensors(students[chosen.name].state_dict(), folder / STUDENT_WEIGHTS)
        checkpoint.save_tensors(flatten(drawn_by)[0], folder / REPLAY_WEIGHTS)
        SelectionCard(
            chosen=chosen.name,
            reason=reason,
            samples=len(pool),
            what="synthetic agreement with the teacher (not accuracy)",
            candidates=judged,
        ).write(folder)


def selection_candidates(
    recipe: Recipe, description: Description, state: StateDict, sampler: Sampler, stop: Stop
) -> dict[str, nn.Module]:
    """Return the last weights, their average, and each with BatchNorm statistics re-estimated, by name."""
    students: dict[str, nn.Module] = {}
    for name, weights in (("raw", tensors_of(state, "student")), ("ema", tensors_of(state, "student_ema"))):
        student = artefacts.build_student(recipe, description)
        student.load_state_dict(weights)
        students[name] = student.eval()
        if recipe.select.reestimate_batches and any(isinstance(m, nn.BatchNorm2d) for m in student.modules()):
            mix = training_mix(recipe, sampler, KeyedDraws(recipe.seed, "select", torch.device("cpu")))
            students[f"{name}+batchnorm"] = reestimate_batchnorm(student, mix)
        stop.raise_if_requested("select")
    return students


def final_state(run_dir: RunDir) -> StateDict:
    """Return the state of the final checkpoint."""
    record = Record.read(run_dir.stage("distill"))
    assert record is not None  # the pipeline ran distill first
    folder = run_dir.stage("distill") / record.notes_as(DistillNotes).final
    if not folder.is_dir():
        raise InputFileError(f"the final checkpoint {folder} is gone; distil again with --fresh.")
    return checkpoint.read_state(folder)


def balanced_pool(recipe: Recipe, sampler: Sampler, teacher: Teacher, draws: KeyedDraws, classes: int) -> Tensor:
    """Return samples balanced over the teacher's answers: drawn threefold, at most an even share kept a class."""
    share = math.ceil(recipe.select.samples / classes)
    batches: list[Tensor] = []
    counts = torch.zeros(classes, dtype=torch.long)
    for index in range(math.ceil(3 * recipe.select.samples / 128)):
        x = sampler.batch(draws, "judge", index, 128)
        for image, label in zip(x, teacher.logits(x).argmax(1).tolist(), strict=True):
            if counts[label] < share:
                counts[label] += 1
                batches.append(image)
    return torch.stack(batches)


def training_mix(recipe: Recipe, sampler: Sampler, draws: KeyedDraws) -> Iterator[Tensor]:
    """Yield batches for re-estimating BatchNorm statistics, apart from those that judge."""
    for index in range(recipe.select.reestimate_batches):
        yield sampler.batch(draws, "batchnorm", index, recipe.method.student.batch_size)


@torch.no_grad()
def reestimate_batchnorm(student: nn.Module, batches: Iterator[Tensor]) -> nn.Module:
    """Return a copy whose BatchNorm statistics are the plain average over the batches."""
    student = copy.deepcopy(student)
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None means a cumulative average
    student.train()
    for x in batches:
        student(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return student.eval()


@torch.no_grad()
def judge(name: str, student: nn.Module, pool: Tensor, teacher: Teacher) -> SelectionCandidate:
    """Return the share of samples on which a candidate gives the teacher's answer."""
    agreed = 0
    for x in pool.split(128):
        agreed += int((student(x).argmax(1) == teacher.logits(x).argmax(1)).sum())
    return SelectionCandidate.of(name, agreed / len(pool), len(pool))


def choose(candidates: list[SelectionCandidate], *, ships_average: bool) -> tuple[SelectionCandidate, str]:
    """Return the better of last weights and average; what has re-estimated BatchNorm only where it clearly beats both.

    Where agreement is equal, the last weights win. Clearly is by more than two standard errors of the difference: its
    statistics are those of synthetic images.
    """
    allowed = [c for c in candidates if ships_average or not c.name.startswith("ema")]
    by_agreement = sorted(allowed, key=lambda c: (c.agreement, c.name.startswith("raw")), reverse=True)
    best, plain = by_agreement[0], next(c for c in by_agreement if "+" not in c.name)
    if best.agreement <= plain.agreement:
        return plain, "highest agreement"
    if best.agreement - plain.agreement > 2 * math.hypot(best.standard_error, plain.standard_error):
        return best, f"more than two standard errors above {plain.name} ({plain.agreement:.2%})"
    return plain, f"within two standard errors of {best.name} ({best.agreement:.2%})"
