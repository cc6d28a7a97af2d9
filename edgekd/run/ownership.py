"""What in a folder is edgekd's: which names a run consists of, and whether a folder is a run.

Only these names are ever moved aside or deleted. Whatever else lies in a run is the user's.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from edgekd.errors import UsageError

LEDGER, LOCK = "run.json", ".lock"
CONTENT = (
    *("recipe.toml", "events.jsonl", "teacher", "init", "select", "export", "bench", "eval", "report"),
    "distill",  # last: while it is there, or not yet there, every reader knows how far the run has come
)
"""What a run holds besides its ledger and its lock, in the order in which `--fresh` moves it."""

_WITH_LEFTOVERS = ("bench", "eval", "select", "distill", "distill/checkpoints")
"""Folders of a run in which something is written in place, so that a kill leaves its temporary name there."""


def is_run(folder: Path) -> bool:
    """Return whether edgekd made a folder: it writes run.json before anything else, and deletes it last."""
    try:
        ledger = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(ledger, dict) and {"files_read", "commands", "real_images_read"} <= ledger.keys()


def refuse_foreign(folder: Path) -> None:
    """Raise `UsageError` unless a run may be written to a folder: it is one, or empty, or not there."""
    if not folder.is_dir() or is_run(folder):
        return
    begun = {LOCK, f".tmp-{LEDGER}"}  # all that a beginning leaves that was killed before it wrote run.json
    strange = sorted(path.name for path in folder.iterdir() if path.name not in begun)
    if LEDGER in strange:
        raise UsageError(
            f"{folder} is left as it is: its run.json is damaged, or of another program. Put a copy of the run's back, "
            "or choose another run with --run NAME."
        )
    if strange:
        raise UsageError(
            f"{folder} is left as it is: it holds {strange[0]}, but no run.json, so it is no run of edgekd. Choose "
            "another run with --run NAME."
        )


def exists(path: Path) -> bool:
    """Return whether a name is taken, be it by a link that leads nowhere."""
    return os.path.lexists(path)


def remove(path: Path) -> None:
    """Delete a file, a folder with what it holds, or a link (never what it leads to)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def interrupted(run: Path) -> bool:
    """Return whether a process was killed between the two renames that replace a folder of the run."""
    parents = (run, *(run / name for name in _WITH_LEFTOVERS))
    places = [aside.with_name(aside.name[5:]) for parent in parents for aside in parent.glob(".old-*")]
    return any(not exists(place) for place in places if place != run / "report")  # which is written without the lock


def clean_leftovers(run: Path) -> None:
    """Finish or undo what a killed process left of a run between two renames; the caller holds the lock."""
    for parent in (run, *(run / name for name in _WITH_LEFTOVERS)):
        for leftover in [*parent.glob(".old-*"), *parent.glob(".tmp-*")]:
            name = leftover.name[5:]
            if parent == run and name not in (*CONTENT, LEDGER):
                continue
            if leftover.name.startswith(".old-") and not exists(parent / name):
                leftover.rename(parent / name)
            else:
                remove(leftover)
