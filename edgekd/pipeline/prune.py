"""Remove what draws images the teacher takes for its classes, once the files are exported."""

from __future__ import annotations

from pathlib import Path

from edgekd import console
from edgekd.agent.device.files import real
from edgekd.run.cards.record import RECORD, Record
from edgekd.run.directory import RunDir
from edgekd.run.files import remove
from edgekd.run.ownership import REPLAY_WEIGHTS
from edgekd.stages.catalog import DISTILL, SELECT


def prune(run: RunDir) -> list[str]:
    """Remove checkpoints and replay networks and mark them in their records; return what was removed.

    Of a link, or a file with other names, only the name in the run goes; a warning says what stays.
    """
    removed = []
    for stage, sensitive in ((DISTILL, "checkpoints"), (SELECT, REPLAY_WEIGHTS)):
        folder = run.stage(stage.folder)
        record, place = Record.read(folder), folder / sensitive
        names = [] if record is None else [name for name in record.outputs if Path(name).parts[0] == sensitive]
        if record is not None and not set(names) <= set(record.pruned):
            # Marked first: a kill in between leaves files, which the next prune removes, never an unexplained hole.
            record.model_copy(update={"pruned": sorted({*record.pruned, *names})}).write(folder)
        inside = [] if place.is_symlink() else [path for path in place.rglob("*") if path.name != RECORD]
        for path in sorted([place, *inside]):
            if path.is_symlink():
                console.warn(f"{path} was a link to {real(path)}; what it leads to is yours to delete.")
            elif path.is_file():
                if path.stat().st_nlink > 1:
                    console.warn(f"{path} has another name on this disk (a hard link), which is yours to delete.")
                removed.append(f"{stage.name}/{path.relative_to(folder)}")
        remove(place)
    return removed
