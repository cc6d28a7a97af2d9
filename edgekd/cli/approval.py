"""Which code from outside a command may run: what the user typed, and what a recipe or a run names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd.cli.changes import Changes
from edgekd.ingestion import outside_files
from edgekd.models.code import trust
from edgekd.recipe import Recipe
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir


def approve_typed(flags: Changes) -> None:
    """Take the code that the command line names, in flags of its own or by --set, as approved of by the user."""
    teacher, student = (
        table if isinstance(table := flags.get(name), Mapping) else {} for name in ("teacher", "student")
    )
    typed = (teacher.get("arch"), student.get("name"))
    trust.approve_code([name for name in typed if isinstance(name, str)], pickles=teacher.get("trust_pickle") is True)


def approve(run: RunDir, recipe: Recipe, *, teacher: bool = True, student: bool = True) -> None:
    """Raise UsageError, before any work, unless the user approves of all code that a recipe or a run names.

    What is missed here is refused where it would run; what is found here is told in one message.
    """
    asked: list[tuple[trust.UntrustedCode, str]] = []
    if teacher and Record.read(run.stage("teacher")) is None:
        file = Path(recipe.teacher.file)
        if trust.runs_own_code(recipe.teacher.arch):
            asked.append((trust.factory(recipe.teacher.arch), "teacher.arch"))
        if recipe.teacher.trust_pickle and outside_files.is_pickle(file):
            asked.append((trust.pickle(file), "teacher.trust_pickle"))
    elif teacher:
        arch = run.read(TeacherCard).arch
        if trust.runs_own_code(arch):
            asked.append((trust.factory(arch), "teacher/teacher.json"))
    if student and trust.runs_own_code(recipe.student.name):
        asked.append((trust.factory(recipe.student.name), "student.name"))
    keys = " and ".join(key for _, key in asked)
    trust.require_approval(list(dict.fromkeys(code for code, _ in asked)), f"{keys} of run {run.path}")
