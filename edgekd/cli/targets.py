"""Which run, or which device, the user means."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from edgekd import console, pipeline
from edgekd.bench.remote import Host
from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import outside_files
from edgekd.pipeline import fresh_start
from edgekd.recipe.names import MOST_BYTES, name_problem
from edgekd.run.directory import RunDir
from edgekd.run.ownership import is_run
from edgekd.stages.base import Stage
from edgekd.text import is_utf8

RUNS = Path("runs")


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


def run_of(teacher: Path, name: str, label: str = "") -> RunDir:
    """Return the run that a teacher is read into: the named one, else one called after the file and `label`.

    Raises InputFileError where there is no such file, unless it moved away from a run that has it already.
    """
    require_utf8(teacher)
    label = f"{teacher.stem.strip('.- ') or 'teacher'}{label}"
    try:
        outside_files.require_file(teacher)
    except InputFileError:
        if os.access(teacher, os.F_OK) or name_problem(label):
            raise
        run = named_run(name) if name else run_called(label)
        fresh_start.recover(run)
        if not run.recipe_file.is_file():
            raise
        return run
    return named_run(name) if name else run_called(label)


def require_utf8(file: Path) -> None:
    """Raise InputFileError for a file whose path UTF-8 has no bytes for: neither JSON nor a runtime takes it."""
    if not is_utf8(file):
        raise InputFileError(f"the name of {str(file)!r} is not in UTF-8; rename the file.")


def run_argument(run: RunDir) -> str:
    """Return what to type for a run: its name below runs/, else its path."""
    name, path = run.path.name, str(run.path)
    meant = (
        text for text in (name, path, f"./{path}") if text and named_run(text).path == run.path and text[:1] != "-"
    )
    return shlex.quote(next(meant))


def path_argument(path: Path | str) -> str:
    """Return what to type for a file: quoted, and never taken for a flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text[:1] == "-" else text)


def open_run(name: str) -> RunDir:
    """Return the run that the user typed, as a killed command would have left it had it ended."""
    run = named_run(name)
    if Path(name).is_file() and not run.path.is_dir():
        raise UsageError(
            f"{name} is a file, and no run is called so. `edgekd bench` measures files whose names end in .onnx; "
            "`edgekd distill` begins a run from a checkpoint."
        )
    fresh_start.recover(run)
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


def device(on: str, python: str, trtexec: str, *, clean: bool = False) -> Host | None:
    """Return the device to measure on, None for this machine; the flags about a device belong to one."""
    if on:
        return Host(on, python, trtexec)
    given = [flag for flag, value in (("--clean", clean), ("--trtexec", trtexec)) if value]
    if given or python != "python3":
        raise UsageError(f"{(given or ['--python'])[0]} belongs to a device: give it with --on user@host.")
    return None
