"""The verb that reads a teacher, and what the verbs say of one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from edgekd import console, pipeline
from edgekd.cli.common import Options, approve, at_work, named_run, open_run, run_called, typed, wanted_recipe
from edgekd.cli.flags import Changes, approve_typed, combine
from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import outside_files
from edgekd.ingestion.teacher import mapping_in_short
from edgekd.pipeline import afresh
from edgekd.recipe.names import name_problem
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import PixelsCard, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.stages.catalog import INGEST

MAPPED_LINES = 20


def ingest(teacher: Path | None, name: str, flags: Changes, options: Options) -> None:
    """Read a teacher, or change the pixel metadata of a run."""
    approve_typed(flags)
    if teacher is None and not name:
        raise UsageError("ingest takes a TEACHER, or --run NAME to set the normalisation of a run.")
    if teacher is not None:
        run = run_of(teacher, name)
        flags = combine(flags, {"teacher": {"file": str(teacher)}})
    else:
        run = open_run(name)
    with at_work(run, options, teacher=teacher) as stop:
        recipe = pipeline.adopt(run, wanted_recipe(run, flags))
        approve(run, recipe, teacher=Record.read(run.stage("teacher")) is None, student=False)
        pipeline.advance(run, recipe, INGEST, stop=stop)
    card, pixels = run.read(TeacherCard), run.read(PixelsCard)
    if options.json:
        timing = run.ledger().teacher_probe
        measured = {"teacher_probe": None if timing is None else timing.to_json()}
        console.print_json({"run": run.name, **card.to_json(), **pixels.to_json(), **measured})
    _say_what_it_is(run, card, pixels)
    console.closing(
        f"{run.stage('teacher')}/teacher.json",
        f"{card.arch}, {card.classes} classes, {card.probe.parameters:,} parameters, {card.probe.macs:,} MACs",
        f"edgekd distill {shlex.quote(recipe.teacher.file)} --run {typed(run)}",
    )


def run_of(teacher: Path, name: str, label: str = "") -> RunDir:
    """Return the run that a teacher is read into: the named one, else one called after the file and `label`.

    Raises InputFileError where there is no such file, unless it moved away from a run that has it already.
    """
    try:
        str(teacher).encode()
    except UnicodeEncodeError:
        raise InputFileError(f"the name of {str(teacher)!r} is not in UTF-8; rename the file.") from None
    label = f"{teacher.stem.strip('.- ') or 'teacher'}{label}"
    try:
        outside_files.require_file(teacher)
    except InputFileError:
        if os.access(teacher, os.F_OK) or name_problem(label):
            raise
        run = named_run(name) if name else run_called(label)
        afresh.recover(run)
        if not run.recipe_file.is_file():
            raise
        return run
    return named_run(name) if name else run_called(label)


def probe_sentence(run: RunDir, card: TeacherCard) -> str:
    """Return what the probe saw, in one line."""
    probe = card.probe
    kinds = {
        "logits": "logits",
        "probabilities": "probabilities: the softmax at its end is undone",
        "log-probabilities": "log-probabilities, which serve as logits",
    }
    norms = _count(probe.batchnorm_layers, "BatchNorm layer")
    sure = f"{probe.noise_confidence:.1%} sure on noise (chance {1 / card.classes:.1%})"
    parts = [f"answers (N, {card.classes}) finite {kinds[probe.emits]}", "head alive", norms, sure]
    timing = run.ledger().teacher_probe
    if timing is not None:
        threads = _count(timing.threads, "thread")
        parts.append(f"{timing.images} images in {_milliseconds(timing.seconds)} ms on {threads}")
    return "; ".join(parts)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _say_what_it_is(run: RunDir, card: TeacherCard, pixels: PixelsCard) -> None:
    pairs = mapping_in_short(card.mapping)
    for pair in pairs[:MAPPED_LINES]:
        console.say(f"mapped   {pair}")
    if len(pairs) > MAPPED_LINES:
        console.say(f"mapped   {len(pairs) - MAPPED_LINES} more, all of them in teacher.json")
    for assumed in card.assumptions:
        console.say(f"assumed  {assumed.what} = {assumed.value} (change it with {assumed.flag})")
    if pixels.mean is None or pixels.std is None:
        known = "unknown; only real images need it (--normalize NAME, or --mean and --std)"
    else:
        known = f"mean {_numbers(pixels.mean)}, std {_numbers(pixels.std)}"
    console.say(f"pixels   {known}")
    if pixels.class_names:
        names = pixels.class_names
        console.say(f"classes  {', '.join(names[:5])}{f' … {names[-1]}' if len(names) > 5 else ''}")
    console.say(f"probe    {probe_sentence(run, card)}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
