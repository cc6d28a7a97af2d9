"""Which run, or which device, the user means."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path

from edgekd import console, pipeline
from edgekd.agent.device.files import real
from edgekd.agent.device.machine import sha256_of
from edgekd.bench.remote import Host
from edgekd.errors import EdgekdError, InputFileError, UsageError
from edgekd.ingestion import outside_files
from edgekd.pipeline import fresh_start
from edgekd.recipe import load_resolved
from edgekd.recipe.names import MOST_BYTES, name_problem
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.ownership import is_run
from edgekd.stages.base import Stage
from edgekd.stages.catalog import INGEST
from edgekd.text import is_utf8

RUNS = Path("runs")
_SUFFIXES = re.compile(r"(\.(pth|pt|th|tar|bin|ckpt|safetensors|pkl|pickle|gz))+$", re.IGNORECASE)
_SAYS_NOTHING = re.compile(
    r"((best|last|latest|final|first|initial|init|new|old|my|full|ckpt|chkpt|ckp|chkpnt|checkpoint|model|weight|network|"
    r"net|state|dict|param|parameter|pytorch|torch|ema|swa|avg|average|averaged|raw|epoch|step|iter|iteration|"
    r"acc|accuracy|loss|top|err|error|score|metric|auc|f1|val|valid|validation|test|eval|train|trained|training|"
    r"pretrained|finetuned|save|saved|backup|bak|file|output|result|copy|lightning|log|version|v\d|fold|run|trial|seed|"
    r"\d(e-?\d)?)s?[-_.=@ ()]*)+",
    re.IGNORECASE,
)
"""Names that many files and folders of checkpoints have, such as `model_best`, `epoch=9-val_loss=0.32` and `fold_0`."""


def named_run(name: str) -> RunDir:
    """Return the run that the user typed: a path, a run in this folder, or a name under runs/."""
    if any(len(os.fsencode(part)) > MOST_BYTES for part in Path(name).parts):
        raise UsageError(f"{name[:80]!r} is no name for a run: it is too long.")
    is_path = "/" in name or name in (".", "..") or is_run(Path(name))
    run = RunDir(Path(name) if is_path else RUNS / name)
    if not os.path.lexists(run.path):
        if name.startswith("~"):
            raise UsageError(f"{name!r} begins with ~, which your shell has left as it is; type the whole path.")
        if not name.isprintable():
            raise UsageError(f"{name!r} is no name for a run: it holds a character that cannot be printed.")
    return run


def run_called(name: str) -> RunDir:
    """Return the run under runs/ of a name that nobody typed as a path: a recipe's, or one made from a file's."""
    problem = name_problem(name)
    if problem:
        raise UsageError(f"{problem}; give the run another name with --run NAME.")
    return RunDir(RUNS / name)


def run_of(teacher: Path, name: str, label: str = "") -> RunDir:
    """Return the run that a teacher is read into: the named one, else one called after the file and `label`.

    What an older edgekd began with this file, under another name, goes on under that.

    Raises InputFileError where there is no such file, unless it moved away from a run that has it already.
    """
    require_utf8(teacher)
    names = _names_of(teacher, label)
    try:
        outside_files.require_file(teacher)
    except InputFileError:
        if os.access(teacher, os.F_OK) or any(map(name_problem, names)):
            raise
        for run in [named_run(name)] if name else map(run_called, names):
            fresh_start.recover(run)
            if run.recipe_file.is_file() and (name or run.path.name == names[0] or _began_with(run, teacher)):
                return run
        raise
    if name:
        return named_run(name)
    *others, latest = map(run_called, reversed(names))
    return next((run for run in others if not is_run(latest.path) and _began_with(run, teacher)), latest)


def _names_of(teacher: Path, label: str) -> list[str]:
    """Return what a run of a teacher may be called, the present name first; older edgekds took less of the path.

    Of a file whose name says nothing, such as `ckpt.pth`, the folders above it are a part of the name, up to one that
    does.
    """
    older = f"{teacher.stem.strip('.- ') or 'teacher'}{label}"
    folder = Path(os.path.abspath(teacher)).parent  # noqa: PTH100 - of a link, the folder that it lies in
    parts = [*folder.parts[1:], _SUFFIXES.sub("", teacher.name)]
    parts = [part.strip(".- ") for part in parts]
    telling = [place for place, part in enumerate(parts) if part and not _SAYS_NOTHING.fullmatch(part)]
    first = telling[-1] if telling else len(parts)
    names = ["-".join(filter(None, parts[place:])) + label for place in range(first, len(parts) - 1)]
    return [*(name for name in names if not name_problem(name)), older]


def _began_with(run: RunDir, teacher: Path) -> bool:
    """Return whether a run was begun with this file: by its path, or by its content."""
    with contextlib.suppress(EdgekdError, OSError):  # a run that cannot be read is another one
        fresh_start.recover(run)
        if not run.recipe_file.is_file():
            return False
        if real(Path(load_resolved(run.recipe_file).teacher.file)) == real(teacher):
            return True
        record = Record.read(run.stage(INGEST.folder))
        return record is not None and record.inputs.get("file") == sha256_of(teacher)
    return False


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
