"""What every verb needs: which run, which recipe, the lock and the signals."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.cli.flags import Changes
from edgekd.errors import InputFileError, MachineError, RecipeError, UsageError
from edgekd.ingestion import outside_files
from edgekd.models import trust
from edgekd.pipeline import afresh
from edgekd.pipeline.afresh import Afresh
from edgekd.recipe import AUTO, Recipe
from edgekd.recipe.names import MOST_BYTES, name_problem
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir, command_line
from edgekd.run.files import remove, write_text
from edgekd.run.ownership import CONTENT, LEDGER, LOCK, is_run, refuse_foreign
from edgekd.stages.base import Stage
from edgekd.stopping import Stop, graceful

RUNS = Path("runs")


@dataclass(frozen=True)
class Options:
    """Flags that are in no recipe: they steer this one command."""

    max_seconds: float | None = None
    data: Path | None = None
    fresh: bool = False
    json: bool = False
    yes: bool = False


def caveat(data_free: bool | None) -> str:
    """Return what a headline has to begin with where files are not known to be data-free; empty otherwise."""
    if data_free is None:
        return "a student from elsewhere, not known to be data-free; "
    return "" if data_free else "NOT data-free, INT8 ranges are from real images; "


def named_run(name: str) -> RunDir:
    """Return the run that the user typed: a path, a run in this folder, or a name under runs/."""
    if any(len(os.fsencode(part)) > MOST_BYTES for part in Path(name).parts):
        raise UsageError(f"{name[:80]!r} is no name for a run: it is too long.")
    is_path = "/" in name or name in (".", "..") or is_run(Path(name))
    return RunDir(Path(name) if is_path else RUNS / name)


def run_called(name: str) -> RunDir:
    """Return the run under runs/ of a name that nobody typed as a path: a recipe's, or one made from a file's."""
    problem = name_problem(name)
    if problem:
        raise UsageError(f"{problem}; give the run another name with --run NAME.")
    return RunDir(RUNS / name)


def typed(run: RunDir) -> str:
    """Return what to type for a run: its name below runs/, else its path."""
    name, path = run.path.name, str(run.path)
    meant = (text for text in (name, path, f"./{path}") if named_run(text).path == run.path and text[:1] != "-")
    return shlex.quote(next(meant))


def open_run(name: str) -> RunDir:
    """Return the run that the user typed, as a killed command would have left it had it ended."""
    run = named_run(name)
    afresh.recover(run)
    pipeline.open_recipe(run)
    return run


def find_run(name: str, needed: Stage) -> RunDir:
    """Return the named run, or the newest one that has what the verb needs; say which in the first line."""
    if name:
        return open_run(name)
    run = pipeline.newest_run(RUNS, needed)
    console.say(f"run      {run.path}")
    pipeline.open_recipe(run)
    return run


@contextmanager
def at_work(run: RunDir, options: Options, *, teacher: Path | None = None) -> Iterator[Stop]:
    """Hold the run's lock and turn signals into requests; with --fresh replace what the run holds.

    What it held is deleted only when training has begun anew; whatever fails before brings it back. A command that
    is refused before it published anything leaves the run as it was, and no new folder.
    """
    refuse_foreign(run.path)
    made = [path for path in (run.path, *run.path.parents) if not path.exists()]
    beginning = Afresh(run)
    with run.lock(), graceful(options.max_seconds) as stop:
        beginning.settle()  # one that was killed
        before = _Before.of(run)
        try:
            if options.fresh:
                if teacher is None or not teacher.is_file():
                    raise InputFileError(f"--fresh replaces nothing: the teacher {teacher or ''} is not there.")
                beginning.begin(teacher)
            run.note_command(command_line())
            yield stop
        except BaseException as error:
            beginning.settle()
            if isinstance(error, UsageError | RecipeError | InputFileError | MachineError | OSError):
                before.restore(run, made)
            raise
        beginning.settle(succeeded=True)


@dataclass(frozen=True)
class _Before:
    """What a command that is refused may have changed already."""

    recipe: bytes | None
    ledger: bytes | None
    images: int
    published: dict[Path, int]

    @staticmethod
    def of(run: RunDir) -> _Before:
        def content(path: Path) -> bytes | None:
            return path.read_bytes() if path.is_file() else None

        published = {path: path.stat().st_mtime_ns for path in run.path.rglob("record.json")}
        images = run.ledger().real_images_read
        return _Before(content(run.recipe_file), content(run.ledger_file), images, published)

    def restore(self, run: RunDir, made: list[Path]) -> None:
        """Undo it, unless a stage was published; remove the folders that were made for it.

        Real images that were read stay in the ledger.
        """
        now = _Before.of(run)
        if now.published != self.published:
            return
        read = now.images != self.images
        if run.path in made and not read:
            for name in (*CONTENT, LEDGER, LOCK):  # run.json after what it makes a run of
                remove(run.path / name)
            with contextlib.suppress(OSError):  # somebody else put something there
                for parent in made:
                    parent.rmdir()
            return
        for path, content in ((run.recipe_file, self.recipe), *([] if read else [(run.ledger_file, self.ledger)])):
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                write_text(path, content.decode("utf-8"))


def approve(run: RunDir, recipe: Recipe, *, teacher: bool = True, student: bool = True) -> None:
    """Raise UsageError, before any work, unless the user approves of all code that a recipe or a run names.

    What is missed here is refused where it would run; what is found here is told in one message.
    """
    asked: list[tuple[trust.Code, str]] = []
    if teacher and Record.read(run.stage("teacher")) is None:
        file = Path(recipe.teacher.file)
        if trust.is_code(recipe.teacher.arch):
            asked.append((trust.factory(recipe.teacher.arch), "teacher.arch"))
        if recipe.teacher.trust_pickle and outside_files.is_pickle(file):
            asked.append((trust.pickle(file), "teacher.trust_pickle"))
    elif teacher:
        arch = run.read(TeacherCard).arch
        if trust.is_code(arch):
            asked.append((trust.factory(arch), "teacher/teacher.json"))
    if student and trust.is_code(recipe.student.name):
        asked.append((trust.factory(recipe.student.name), "student.name"))
    keys = " and ".join(key for _, key in asked)
    trust.require(list(dict.fromkeys(code for code, _ in asked)), f"{keys} of run {run.path}")


def wanted_recipe(run: RunDir, flags: Changes) -> Recipe:
    """Return the run's recipe, or a new one, with the flags applied."""
    if run.recipe_file.is_file():
        kept = recipe_module.load_resolved(run.recipe_file)
        asked = flags.get("method", {})
        if asked.get("minutes", kept.method.minutes) != kept.method.minutes and "steps" not in asked:
            flags = {**flags, "method": {**asked, "steps": 0}}  # another request needs another answer
        return with_chosen_student(recipe_module.with_changes(kept, flags), kept)
    preset = flags.get("method", {}).get("preset")
    base = recipe_module.parse({"method": {"preset": preset}} if preset else {}, origin="flags")
    return recipe_module.with_changes(base, flags)


def with_chosen_student(wanted: Recipe, kept: Recipe) -> Recipe:
    """Return `wanted` with the student that was chosen for the same latency budget on the same machine before."""
    asked, answered = wanted.student, kept.student
    equal = (asked.auto_budget_ms, asked.auto_on) == (answered.auto_budget_ms, answered.auto_on)
    if asked.name != AUTO or not equal:
        return wanted
    return recipe_module.with_changes(wanted, {"student": {"name": kept.student.name}})
