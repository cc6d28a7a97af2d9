"""`edgekd ingest`: read a teacher and say what it is, or change what is known of a run's real pixels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.run.directory import RunDir

MAPPED_LINES = 20


@verb("edgekd ingest teacher.pt", "edgekd ingest --run teacher-mobilenetv2 --normalize cifar10")
def ingest(
    teacher: Annotated[
        Path | None, typer.Argument(metavar="[TEACHER]", readable=False, help="The teacher's checkpoint.")
    ] = None,
    run: flags.RunOption = "",
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
    from edgekd.cli import approval, changes, lines, session, settle, targets
    from edgekd.run.directory import Record, read_json

    changed = changes.combine(
        changes.of_teacher(arch, input_shape, accept_mapping, trust_pickle),
        changes.of_pixels(normalize, mean, std, classes),
    )
    approval.approve_typed(changed)
    if teacher is None and not run:
        raise UsageError("ingest takes a TEACHER, or --run NAME to set the normalisation of a run.")
    if teacher is not None:
        made = targets.run_of(teacher, run)
        changed = changes.combine(changed, {"teacher": {"file": str(teacher)}})
    else:
        made = targets.open_run(run)
    with session.at_work(made, fresh=fresh, teacher=teacher) as stop:
        recipe = pipeline.adopt(made, settle.wanted_recipe(made, changed))
        approval.approve(made, recipe, teacher=Record.read(made.stage("teacher")) is None, student=False)
        session.read_teacher(made, recipe, stop)
    description, pixels = (read_json(made.stage("teacher") / file) for file in ("teacher.json", "pixels.json"))
    if json:
        timing = lines.probe_timing(made)
        console.print_json({"run": made.name, **description, **pixels, "teacher_probe": timing})
    _say_what_it_is(made, description, pixels)
    probe = description["probe"]
    console.closing(
        f"{made.stage('teacher')}/teacher.json",
        f"{description['arch']}, {description['classes']} classes, {probe['parameters']:,} parameters, "
        f"{probe['macs']:,} MACs",
        f"edgekd distill {shlex.quote(recipe.teacher.file)} --run {targets.typed(made)}",
    )


def _say_what_it_is(run: RunDir, description: dict[str, Any], pixels: dict[str, Any]) -> None:
    from edgekd.cli import lines
    from edgekd.ingestion.teacher import mapping_in_short

    pairs = mapping_in_short(description.get("mapping", {}))
    for pair in pairs[:MAPPED_LINES]:
        console.say(f"mapped   {pair}")
    if len(pairs) > MAPPED_LINES:
        console.say(f"mapped   {len(pairs) - MAPPED_LINES} more, all of them in teacher.json")
    for assumption in description["assumptions"]:
        console.say(f"assumed  {assumption['what']} = {assumption['value']} (change it with {assumption['flag']})")
    if pixels["mean"] is None:
        known = "unknown; only real images need it (--normalize NAME, or --mean and --std)"
    else:
        known = f"mean {_numbers(pixels['mean'])}, std {_numbers(pixels['std'])}"
    console.say(f"pixels   {known}")
    if pixels["class_names"]:
        names = pixels["class_names"]
        console.say(f"classes  {', '.join(names[:5])}{f' … {names[-1]}' if len(names) > 5 else ''}")
    console.say(f"probe    {lines.probe_sentence(run, description)}")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
