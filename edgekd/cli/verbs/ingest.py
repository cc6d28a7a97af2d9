"""`edgekd ingest`: read a teacher and say what it is, or change what is known of a run's real pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError
from edgekd.text import path_argument

if TYPE_CHECKING:
    from edgekd.run.cards.teacher import PixelsCard, TeacherCard
    from edgekd.run.directory import RunDir

MAPPED_LINES = 20


@verb("edgekd ingest teacher.pt", "edgekd ingest --run teacher-mobilenetv2 --normalize cifar10")
def ingest(
    teacher: Annotated[
        Path | None, typer.Argument(metavar="[TEACHER]", readable=False, help="The teacher's checkpoint, or timm:NAME.")
    ] = None,
    run: flags.RunOption = "",
    weights: flags.Weights = "",
    arch: flags.Arch = "",
    input_shape: flags.Input = "",
    normalize: flags.Normalize = "",
    mean: flags.Mean = "",
    std: flags.Std = "",
    classes: flags.Classes = "",
    accept_mapping: flags.AcceptMapping = False,
    trust_pickle: flags.TrustPickle = False,
    trust_code: flags.TrustCode = None,
    fresh: flags.Fresh = False,
    json: flags.Json = False,
) -> None:
    """Read a teacher and find out what it is; or, without TEACHER, set the normalisation of a run."""
    from edgekd import pipeline
    from edgekd.cli import approval, changes, published, session, settle, targets
    from edgekd.models.families.plain import in_short
    from edgekd.run.cards.record import Record
    from edgekd.run.cards.teacher import PixelsCard, TeacherCard

    named = published.teacher(teacher or Path(), weights, arch)
    changed = changes.combine(
        changes.of_teacher(named.arch, input_shape, accept_mapping, trust_pickle),
        changes.of_pixels(normalize, mean, std, classes),
    )
    approval.approve_typed(changed)
    if teacher is None and not run:
        raise UsageError("ingest takes a TEACHER, or --run NAME to set the normalisation of a run.")
    if teacher is not None:
        teacher = named.file
        made = targets.run_of(teacher, run)
        changed = changes.combine(changed, {"teacher": {"file": str(teacher)}})
    else:
        made = targets.open_run(run)
    with session.locked_run(made, fresh=fresh, teacher=teacher) as stop:
        changed = changes.combine(changed, named.pixels(made, changed))
        recipe = pipeline.adopt(made, settle.wanted_recipe(made, changed))
        approval.approve(made, recipe, teacher=Record.read(made.stage("teacher")) is None, student=False)
        session.read_teacher(made, recipe, stop)
    card, pixels = made.read(TeacherCard), made.read(PixelsCard)
    if json:
        timing = made.ledger().teacher_probe
        measured = {"teacher_probe": None if timing is None else timing.to_json()}
        console.print_json({"run": made.name, **card.to_json(), **pixels.to_json(), **measured})
    _say_what_it_is(made, card, pixels)
    console.closing(
        f"{made.stage('teacher')}/teacher.json",
        f"{in_short(card.arch)}, {card.classes} classes, {card.probe.parameters:,} parameters, "
        f"{card.probe.macs:,} MACs",
        f"edgekd distill {path_argument(recipe.teacher.file)} --run {targets.run_argument(made)}",
    )


def _say_what_it_is(run: RunDir, card: TeacherCard, pixels: PixelsCard) -> None:
    from edgekd.cli import lines
    from edgekd.ingestion.identify import mapping_in_short
    from edgekd.text import listed

    pairs = mapping_in_short(card.mapping)
    for pair in pairs[:MAPPED_LINES]:
        console.say(f"mapped   {pair}")
    if len(pairs) > MAPPED_LINES:
        console.say(f"mapped   {len(pairs) - MAPPED_LINES} more, all of them in teacher.json")
    for choice in card.assumptions:
        console.say(f"assumed  {choice.what} = {choice.value} (change it with {choice.flag})")
    if pixels.mean is None or pixels.std is None:
        normalization = "unknown; only real images need it (--normalize NAME, or --mean and --std)"
    else:
        normalization = f"mean {_numbers(pixels.mean)}, std {_numbers(pixels.std)}"
    console.say(f"pixels   {normalization}")
    if pixels.class_names:
        names = pixels.class_names
        of_file = card.claims is not None and names == card.claims.class_names
        origin = ", as the teacher's file says (change it with --classes FILE)" if of_file else ""
        twice = [name for name, count in Counter(names).items() if count > 1]
        origin += f"; more than once: {listed(twice)}" if twice else ""
        console.say(f"classes  {', '.join(names[:5])}{f' … {names[-1]}' if len(names) > 5 else ''}{origin}")
    if card.claims is not None:
        accuracy, epoch = card.claims.accuracy, card.claims.epoch
        said = [f"accuracy {accuracy:.2%} ({card.claims.accuracy_key})"] if accuracy is not None else []
        said += [f"epoch {epoch}"] if epoch is not None else []
        said += [f"{len(card.claims.class_names)} class names"] if card.claims.class_names else []
        console.say(f"claims   of the file, unchecked: {', '.join(said)}")
    console.say(f"probe    {lines.probe_sentence(run, card)}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
