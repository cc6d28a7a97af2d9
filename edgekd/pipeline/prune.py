"""Remove what draws images the teacher takes for its classes, once the files are exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.run.directory import RECORD, Record, RunDir
from edgekd.run.ownership import remove
from edgekd.stages.catalog import DISTILL, SELECT


def prune(run: RunDir) -> list[str]:
    """Remove checkpoints and replay networks and mark them in their records; return what was removed."""
    removed = []
    for stage, sensitive in ((DISTILL, "checkpoints"), (SELECT, "replay.safetensors")):
        folder = run.stage(stage.folder)
        record, place = Record.read(folder), folder / sensitive
        names = [] if record is None else [name for name in record.outputs if Path(name).parts[0] == sensitive]
        if record is not None and not set(names) <= set(record.pruned):
            # Marked first: a kill in between leaves files, which the next prune removes, never an unexplained hole.
            replace(record, pruned=sorted({*record.pruned, *names})).write(folder)
        files = sorted(path for path in [place, *place.rglob("*")] if path.is_file() and path.name != RECORD)
        removed += [f"{stage.name}/{path.relative_to(folder)}" for path in files]
        remove(place)
    return removed
