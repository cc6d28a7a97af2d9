"""What in a folder is edgekd's: which names a run consists of, and whether a folder is a run.

Only these names are ever moved aside or deleted. Whatever else lies in a run is the user's.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from edgekd import console
from edgekd.agent.device.files import read_bytes
from edgekd.errors import InputFileError, UsageError
from edgekd.run.cards.base import BrokenSealError, NewerSchemaError
from edgekd.run.cards.evaluation import SelectionCard
from edgekd.run.cards.exported import AgreementCard, CalibrationCard, ParityCard
from edgekd.run.cards.ledger import LedgerCard
from edgekd.run.cards.record import RECORD, Record
from edgekd.run.cards.report import ReportCard
from edgekd.run.cards.teacher import InitCard, PixelsCard, TeacherCard
from edgekd.run.files import discard, remove

LEDGER, LOCK = LedgerCard.file, ".lock"
CONTENT = (
    "recipe.toml",
    "events.jsonl",
    "teacher",
    "init",
    "select",
    "export",
    "bench",
    "eval",
    "report",
    "distill",  # last: while it is there, or not yet there, every reader knows how far the run has come
)
"""What a run holds besides its ledger and its lock, in the order in which `--fresh` moves it."""

CHECKPOINT = re.compile(r"(damaged-)?step-\d{8}")
"""Names of checkpoints below distill/checkpoints/."""
TEACHER_WEIGHTS, STUDENT_WEIGHTS, REPLAY_WEIGHTS = "teacher.safetensors", "student.safetensors", "replay.safetensors"
STATE_TENSORS, STATE_VALUES = "state.safetensors", "state.json"
REPORT_PAGE = "report.html"
OUTPUTS = {
    "teacher": {TEACHER_WEIGHTS, TeacherCard.file, PixelsCard.file},
    "init": {STUDENT_WEIGHTS, InitCard.file},
    "select": {STUDENT_WEIGHTS, SelectionCard.file, REPLAY_WEIGHTS},
    "export": {ParityCard.file, AgreementCard.file, CalibrationCard.file},
    "report": {REPORT_PAGE, ReportCard.file},
}
_EXPORTED = re.compile(r"student\.[\w.-]+\.onnx")
_BENCH_FILES = {"environment.json", "results.json", "samples.json", "jetson.json", RECORD}


def is_run(folder: Path) -> bool:
    """Return whether edgekd made a folder: it writes run.json before anything else, and deletes it last."""
    try:
        LedgerCard.load(folder)
    except (NewerSchemaError, BrokenSealError):
        return True
    except InputFileError:
        return False
    return True


def refuse_foreign(folder: Path) -> None:
    """Raise `UsageError` unless a run may be written to a folder: it is one, or empty, or not there."""
    if not folder.is_dir() or is_run(folder):
        return
    begun = {LOCK, f".tmp-{LEDGER}"}  # all that a beginning leaves that was killed before it wrote run.json
    strange = sorted(path.name for path in folder.iterdir() if path.name not in begun)
    if LEDGER in strange:
        read_bytes(folder / LEDGER)  # what this user may not read is another matter, and its error says so
        raise UsageError(
            f"{folder} is left as it is: its run.json is damaged, or of another program. Put a copy of the run's back, "
            "or name another run."
        )
    if strange:
        raise UsageError(
            f"{folder} is left as it is: it holds {strange[0]}, but no run.json, so it is no run of edgekd. Name "
            "another run."
        )


def is_output(folder: Path, name: str) -> bool:
    """Return whether edgekd writes files of that name into that folder of a run."""
    if name in (RECORD, f".tmp-{RECORD}"):
        return True
    if folder.parent.name == "bench":
        return name in _BENCH_FILES
    if CHECKPOINT.fullmatch(folder.name):
        return name in (STATE_TENSORS, STATE_VALUES)
    return name in OUTPUTS.get(folder.name, ()) or (folder.name == "export" and _EXPORTED.fullmatch(name) is not None)


def strangers(folder: Path) -> list[Path]:
    """Return what in a folder of a run is the user's: what is not in its record or, without one, not named like ours.

    Anything counts: links, pipes, sockets, and folders that hold nothing.
    """
    record = Record.read(folder)
    paths = sorted(path for path in folder.rglob("*") if not is_folder(path) or not any(path.iterdir()))
    if record is None:
        return [path for path in paths if path.parent != folder or not is_output(folder, path.name) or is_folder(path)]
    own = {folder / name for name in (RECORD, f".tmp-{RECORD}", *record.outputs)}
    return [path for path in paths if path not in own]


def free_place(folder: Path, name: Path) -> Path:
    """Return where in a folder something of the user's called `name` can lie: there, or beside what has its name."""
    top, *below = name.parts
    for number in itertools.count():
        first = folder / (f"{top}.yours{number}" if number else top)
        place = first.joinpath(*below)
        if not exists(place) and (not below or not exists(first) or is_folder(first)):
            return place
    raise AssertionError  # count() does not end


def keep_user_file(mine: Path, place: Path, successor: Path) -> None:
    """Give what is the user's in a folder a second name in the folder that is about to take its place."""
    name = mine.relative_to(place)
    if is_folder(mine) and is_folder(successor / name):
        return
    second_name = free_place(successor, name)
    if second_name != successor / name:
        console.warn(
            f"{mine} has the name of a file of edgekd, which takes its place; yours is now "
            f"{place / second_name.relative_to(successor)}."
        )
    second_name.parent.mkdir(parents=True, exist_ok=True)
    if is_folder(mine):
        second_name.mkdir()
        return
    try:
        os.link(mine, second_name, follow_symlinks=False)
    except OSError:  # a file system without hard links
        if not mine.is_symlink() and not mine.is_file():
            raise
        shutil.copyfile(mine, second_name, follow_symlinks=False)
        with suppress(OSError):  # nor with modes and times
            shutil.copystat(mine, second_name, follow_symlinks=False)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def exists(path: Path) -> bool:
    """Return whether a name is taken, be it by a link that leads nowhere."""
    return os.path.lexists(path)


def interrupted(run: Path) -> bool:
    """Return whether a process was killed between the two renames that replace a folder of the run."""
    places = [left.with_name(left.name[5:]) for left in _leftovers(run) if left.name.startswith(".old-")]
    return any(not exists(place) for place in places if place != run / "report")  # which is written without the lock


def clean_leftovers(run: Path) -> None:
    """Finish or undo what a killed process left of a run between two renames; the caller holds the lock."""
    for left in _leftovers(run):
        place = left.with_name(left.name[5:])
        if left.name.startswith(".old-") and not exists(place):
            left.rename(place)
        else:
            discard(left)


def remove_all_but(folder: Path, mine: Collection[Path]) -> None:
    """Delete a folder; where something in it is the user's, all but that."""
    if not mine:
        remove(folder)
        return
    own = {*mine, *(parent for path in mine for parent in path.parents)}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path not in own:
            path.rmdir() if is_folder(path) else path.unlink()


def _leftovers(run: Path) -> list[Path]:
    """The temporary names of edgekd in a run: of what is replaced as a whole, or written in place."""
    ours: dict[Path, Callable[[Path], bool]] = {
        run: lambda left: left.name[5:] in (*CONTENT, LEDGER),
        run / "bench": _is_of_a_bench,
        run / "eval": lambda left: left.name.startswith(".tmp-") and left.suffix == ".json" and not left.is_dir(),
        run / "select": lambda left: left.name == f".tmp-{RECORD}",
        run / "distill": lambda left: left.name == f".tmp-{RECORD}",
        run / "distill" / "checkpoints": lambda left: CHECKPOINT.fullmatch(left.name[5:]) is not None,
    }
    within = {parent: is_ours for parent, is_ours in ours.items() if parent == run or not parent.is_symlink()}
    leftovers = [(is_ours, left) for parent, is_ours in within.items() for left in sorted(parent.glob(".*"))]
    return [left for is_ours, left in leftovers if left.name[:5] in (".old-", ".tmp-") and is_ours(left)]


def _is_of_a_bench(left: Path) -> bool:
    """Whether a folder below bench/, where any target may stand, was published or begun by edgekd."""
    if left.is_symlink() or not left.is_dir():
        return False
    names = {path.name.removeprefix(".tmp-") for path in left.iterdir()}
    return RECORD in names or names <= _BENCH_FILES
