"""Read a teacher checkpoint from outside, find out what it is, and publish it in a form that needs no guessing."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import nn

from edgekd import console, rng
from edgekd.agent.device import files
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import claims, foreign, identify, outside_files
from edgekd.models import probe
from edgekd.models.code import adapting
from edgekd.models.statistics import StatisticsJudge
from edgekd.models.stems import Shape, parse_shape
from edgekd.recipe import PixelsTable, Recipe, TeacherTable
from edgekd.run import checkpoint
from edgekd.run.cards.ledger import ProbeTiming
from edgekd.run.cards.record import IngestNotes, Record
from edgekd.run.cards.teacher import AssumptionPart, ClaimsPart, PixelsCard, ProbePart, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.files import json_text, write_text
from edgekd.run.ownership import TEACHER_WEIGHTS
from edgekd.stages.base import Execution
from edgekd.synthesis.images import procedural

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation per channel of well-known data sets, of pixels in [0, 1]."""


def ingest_teacher(execution: Execution) -> None:
    """Publish teacher/: weights, description and the moments of real pixels."""
    execution.stop.raise_if_interrupted("ingest")
    run_dir, recipe = execution.run, execution.recipe
    published = run_dir.stage("teacher")
    still_holds = _still_holds(execution)
    if still_holds is not None:
        # The checkpoint moved away, or only the pixels changed: what was read from it is still here, bit for bit.
        tensors = checkpoint.load_tensors(published / TEACHER_WEIGHTS)
        card, notes = run_dir.read(TeacherCard), still_holds.notes
        written = files.read_text(published / TeacherCard.file)
    else:
        inferred, card, notes = _examined(run_dir, recipe, execution.inputs["file"])
        tensors = dict(inferred.state_dict)
        written = json_text(card.to_json())
    table = recipe.pixels
    names_moved_away = still_holds is not None and _names_moved_away(still_holds, table)
    if names_moved_away:
        table = table.model_copy(update={"classes": ""})
    pixels = pixel_moments(table, channels=card.input_shape[0], classes=card.classes)
    if names_moved_away:
        pixels = pixels.model_copy(update={"class_names": run_dir.read(PixelsCard).class_names})
    elif pixels.class_names is None and card.claims is not None and card.claims.class_names:
        pixels = pixels.model_copy(update={"class_names": card.claims.class_names})
    if table.classes:
        run_dir.note_file(Path(table.classes), sha256_of(Path(table.classes)))
    with execution.publish() as (folder, kept_notes):
        checkpoint.save_tensors(tensors, folder / TEACHER_WEIGHTS)
        write_text(folder / TeacherCard.file, written)
        pixels.write(folder)
        kept_notes |= notes


def _still_holds(execution: Execution) -> Record | None:
    """The record of teacher/ where it was read from this file with these settings."""
    folder = execution.run.stage("teacher")
    record = Record.read(folder)
    if record is None or record.inputs.get("file") != execution.inputs["file"]:
        return None
    if record.damaged_output(folder) is not None:
        return None
    # The record's slice held other keys, too, before the hashed slice was recorded.
    read_with, asked = record.recipe_slice.get("teacher"), execution.stage.slice(execution.recipe)["teacher"]
    if not isinstance(read_with, dict) or not isinstance(asked, dict):
        return None
    return record if asked.items() <= read_with.items() else None


def _names_moved_away(record: Record, table: PixelsTable) -> bool:
    """Whether the class names were read from a file that is no longer there; they are in pixels.json."""
    before = record.recipe_slice.get("pixels")
    same = isinstance(before, dict) and before.get("classes") == table.classes
    return bool(table.classes) and same and not os.access(table.classes, os.F_OK)


def _examined(
    run_dir: RunDir, recipe: Recipe, sha256: str
) -> tuple[identify.Inferred, TeacherCard, dict[str, JsonValue]]:
    """Read, identify and probe the teacher, a file of that hash; return it, its card, and notes for the record."""
    table = recipe.teacher
    path = Path(table.file)
    outside_files.require_file(path)
    run_dir.note_file(path, sha256)
    notes = IngestNotes()
    if table.trust_pickle:
        trusted = run_dir.ledger().trusted_pickles
        if trusted and sha256 not in trusted.values():
            raise InputFileError(
                f"{path} is not the pickle that this run was told to trust (sha256 {', '.join(trusted.values())}); "
                "read it into another run with --run NAME."
            )
        console.warn(f"--trust-pickle: any code that {path} names is run, sha256 {sha256}")
        notes = IngestNotes(trusted_pickle=sha256)
        run_dir.note_trust(path, sha256)
    content = foreign.read_checkpoint(path, trust_pickle=table.trust_pickle)
    weights = identify.weights_of(content)
    inferred = _identified(weights, table)
    network = identify.build_teacher(inferred)
    taken = adapting.taken_for_logits(network)
    if taken:
        assumption = identify.Assumption("logits", taken, "--arch net.py:NAME, code that returns them alone")
        inferred = replace(inferred, assumptions=(*inferred.assumptions, assumption))
    seen = probe.probe(network, input_shape=inferred.input_shape, classes=inferred.classes, seed=recipe.seed)
    if not seen.head_alive:
        raise InputFileError("the teacher answers every input alike: its last layer is dead or was never trained.")
    if weights.module is not None:
        _hold_to_module(weights.module, network, inferred, recipe.seed)
    timing = ProbeTiming(images=seen.batch, seconds=seen.seconds_per_batch, threads=torch.get_num_threads())
    run_dir.note_probe(timing)
    for remark in (*inferred.remarks, *seen.remarks):
        console.warn(remark)
    said = _claims_part(path, claims.claims_of(content), inferred.classes)
    return inferred, teacher_card(inferred, seen, network, said), notes.to_json()


def _identified(weights: identify.Weights, table: TeacherTable) -> identify.Inferred:
    """Infer the architecture; for a whole module of other code, add to the error which code that is."""
    try:
        inferred = identify.infer(
            weights.tensors,
            arch=table.arch or None,
            input_shape=parse_shape(table.input) if table.input else None,
            accept_mapping=table.accept_mapping,
            hint=weights.arch,
            judge=StatisticsJudge(_procedural),
        )
    except InputFileError as error:
        kind = type(weights.module)
        if weights.module is None or table.arch or kind.__module__.startswith("torch."):
            raise
        raise InputFileError(f"{error} The pickle's own is {kind.__module__}:{kind.__qualname__}.") from error
    return replace(inferred, assumptions=(*identify.other_entries(weights), *inferred.assumptions))


def _procedural(count: int, shape: Shape) -> torch.Tensor:
    """Images to judge BatchNorm statistics with."""
    return procedural.render(rng.generator(0, "statistics"), count, shape)


def _hold_to_module(module: nn.Module, network: nn.Module, inferred: identify.Inferred, seed: int) -> None:
    """Refuse a pickled module that answers otherwise than the network of the zoo with its weights."""
    if not probe.same_answers(module.float(), network, inferred.input_shape, seed=seed):
        shown = [assumption.flag for assumption in inferred.assumptions if not assumption.flag.startswith("--input")]
        flags = ", ".join(shown) or "another --arch"
        raise InputFileError(
            f"the pickled module answers otherwise than {inferred.arch} with its weights: what weights do not show "
            f"differs. Try {flags}, or give its code with --arch package.module:factory."
        )


def _claims_part(path: Path, claimed: claims.Claims, classes: int) -> ClaimsPart | None:
    """What the file says of itself, if anything; names that do not fit the network are left out with a warning."""
    if claimed.class_names and len(claimed.class_names) != classes:
        console.warn(
            f"{path} names {len(claimed.class_names)} classes, but the network has {classes}; they are not used."
        )
        claimed = replace(claimed, class_names=())
    return None if claimed == claims.Claims() else ClaimsPart.model_validate(asdict(claimed))


def teacher_card(
    inferred: identify.Inferred, seen: probe.Probe, network: nn.Module, said: ClaimsPart | None = None
) -> TeacherCard:
    """Return what teacher.json holds."""
    card = TeacherCard(
        arch=str(inferred.arch),
        input_shape=inferred.input_shape,
        classes=inferred.classes,
        head=probe.head_name(network, inferred.input_shape),
        undo=seen.undo,
        assumptions=[AssumptionPart.model_validate(asdict(assumption)) for assumption in inferred.assumptions],
        mapping=dict(inferred.mapping),
        probe=ProbePart.model_validate(asdict(seen)),  # without its timing, which would make equal teachers differ
    )
    return card if said is None else card.model_copy(update={"claims": said})


def pixel_moments(table: PixelsTable, *, channels: int, classes: int) -> PixelsCard:
    """Return what pixels.json holds: mean, std and class names, each None when unknown."""
    mean, std = table.mean, table.std
    if not mean and not std and table.normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif not mean and not std and table.normalize:
        mean, std = NORMALIZATIONS[table.normalize]
    if len(mean) != len(std) or (mean and len(mean) != channels) or any(s <= 0 for s in std):
        raise UsageError(
            f"mean {list(mean)} and std {list(std)} do not fit a teacher of {channels} channels: give one positive "
            "value per channel to both --mean and --std, or --normalize none."
        )
    if max((*mean, *std), default=0) > 1:
        raise UsageError(f"mean {list(mean)} and std {list(std)} are of pixels in [0, 1]; divide them by 255.")
    names = None
    if table.classes:
        names = tuple(class_names(Path(table.classes), classes))
    return PixelsCard(mean=tuple(mean) or None, std=tuple(std) or None, class_names=names)


def class_names(path: Path, classes: int) -> list[str]:
    """Read one class name a line; another number than the teacher has is an `InputFileError`.

    Names may be there twice, as ImageNet's are; where folders are matched by name, they must not.
    """
    names = outside_files.read_class_names(path)
    if len(names) != classes:
        raise InputFileError(f"{path} names {len(names)} classes, but the teacher has {classes}; one name a line.")
    return names
