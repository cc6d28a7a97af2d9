"""A command at work in a run: its lock, its signals, --fresh, and what a refused command leaves behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd import pipeline
from edgekd.agent.device.files import read_bytes
from edgekd.errors import InputFileError, MachineError, RecipeError, UsageError, lacks_memory
from edgekd.ingestion import outside_files
from edgekd.pipeline.fresh_start import FreshStart
from edgekd.recipe import AUTO, Recipe
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir, command_line
from edgekd.run.files import remove, require_image_folder, write_text
from edgekd.run.ownership import CONTENT, LEDGER, LOCK, refuse_foreign
from edgekd.stages.catalog import DISTILL, EXPORT, INGEST, INIT
from edgekd.stopping import Stop, graceful


@contextmanager
def locked_run(
    run: RunDir,
    *,
    max_seconds: float | None = None,
    fresh: bool = False,
    teacher: Path | None = None,
    needed: Iterable[Path | str | None] = (),
) -> Iterator[Stop]:
    """Hold the run's lock and turn signals into requests; with --fresh replace what the run holds.

    `needed` are further files that the command reads: they may not lie in what is replaced.
    What it held is deleted only when training has begun anew; whatever fails before brings it back. A command that
    is refused before it published anything leaves the run as it was, and no new folder.
    """
    refuse_foreign(run.path)
    made = [path for path in (run.path, *run.path.parents) if not path.exists()]
    beginning = FreshStart(run)
    with run.lock(), graceful(max_seconds) as stop:
        beginning.settle()  # one that was killed
        before = _RunBefore.of(run)
        try:
            if fresh:
                if teacher is None or not teacher.is_file():
                    raise InputFileError(f"--fresh replaces nothing: the teacher {teacher or ''} is not there.")
                beginning.begin(teacher, *(Path(file) for file in needed if file))
            run.note_command(command_line())
            yield stop
        except BaseException as error:
            beginning.settle()
            refused = isinstance(error, UsageError | RecipeError | InputFileError | MachineError | OSError)
            if refused or lacks_memory(error):
                before.restore(run, made)
            raise
        beginning.settle(succeeded=True)


@dataclass(frozen=True)
class _RunBefore:
    """What a command that is refused may have changed already."""

    recipe: bytes | None
    ledger: bytes | None
    images: int
    published: dict[Path, int]

    @staticmethod
    def of(run: RunDir) -> _RunBefore:
        def content(path: Path) -> bytes | None:
            return read_bytes(path) if path.is_file() else None

        published = {path: path.stat().st_mtime_ns for path in run.path.rglob("record.json")}
        images = run.ledger().real_images_read
        return _RunBefore(content(run.recipe_file), content(run.ledger_file), images, published)

    def restore(self, run: RunDir, made: list[Path]) -> None:
        """Undo it, unless a stage was published; remove the folders that were made for it.

        Real images that were read stay in the ledger.
        """
        now = _RunBefore.of(run)
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


def read_teacher(run: RunDir, recipe: Recipe, stop: Stop, *, data: Path | str | None = None) -> None:
    """Make teacher/ of the file that the recipe names; refuse first, and before torch is there, what cannot go well.

    `data` is the folder of labelled images that the command is going to read, if any.
    """
    require_architecture(recipe.student.name)
    _require_inputs(run, recipe)
    if data:
        require_image_folder(Path(data), by_class=True)
    if recipe.images.folder and Record.read(run.stage(DISTILL.folder)) is None:
        require_image_folder(Path(recipe.images.folder), by_class=False)
    require_calibration_images(recipe, run.stage(EXPORT.folder))
    pipeline.advance(run, recipe, INGEST, stop=stop)


def require_architecture(name: str) -> None:
    """Raise UsageError where an architecture is named that the zoo does not have."""
    from edgekd.models import registry

    if name and name != AUTO:
        registry.ArchSpec.parse(name)


def require_calibration_images(recipe: Recipe, place: Path) -> None:
    """Raise InputFileError where INT8 files that are not in `place` yet need images from a folder that is none."""
    if recipe.export.calibrates_on_images and Record.read(place) is None:
        require_image_folder(Path(recipe.export.images), by_class=False)


def _require_inputs(run: RunDir, recipe: Recipe) -> None:
    """Raise InputFileError where a file from outside is not there, or cannot be what a stage is to read.

    What moved away from a stage that is done is no longer asked for, and what runs a pickle has more to say first.
    """
    done = {stage for stage in (INGEST, INIT) if Record.read(run.stage(stage.folder)) is not None}
    for stage in (INGEST, INIT):
        file = stage.file(recipe)
        if not stage.wanted(recipe) or (stage is INGEST and recipe.teacher.trust_pickle):
            continue
        if stage not in done or (file.name and os.access(file, os.F_OK)):
            outside_files.require_checkpoint(file)
    if INGEST not in done:
        require_architecture(recipe.teacher.arch)
        if recipe.pixels.classes:
            outside_files.read_class_names(Path(recipe.pixels.classes))
