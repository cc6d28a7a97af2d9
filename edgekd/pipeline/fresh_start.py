"""`--fresh`: a new beginning in place of what a run holds, whole or not at all.

What the run holds is moved into a folder of its own, and only what lies there is ever deleted. A marker, on disk before
anything moves, decides what happens after a kill: "back" brings everything back, "forward" deletes it, and "open" goes
forward once training has begun anew, else back. run.json is never away: the marker holds the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from edgekd import console
from edgekd.agent.device.files import real
from edgekd.errors import InputFileError, RunBusyError, UsageError
from edgekd.run.cards.base import Card, NewerSchemaError
from edgekd.run.cards.evaluation import EvaluationCard
from edgekd.run.cards.ledger import LedgerCard
from edgekd.run.cards.record import RECORD, Record
from edgekd.run.directory import RunDir
from edgekd.run.files import discard, disk_errors, fsync, remove
from edgekd.run.ownership import CHECKPOINT, CONTENT, OUTPUTS, exists, free_place, interrupted, is_run, strangers

ASIDE = ".edgekd-aside"


class MarkerCard(Card):
    """Which way a new beginning goes, and what the run held before it."""

    folder: ClassVar[str] = ASIDE
    file: ClassVar[str] = "marker.json"

    direction: Literal["back", "open", "forward"]
    held: list[str]
    ledger: LedgerCard


class FreshStart:
    """The transaction of one `--fresh` on one run; the caller holds the run's lock."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._aside = run.path / ASIDE
        self._marker = self._aside / MarkerCard.file
        self._old, self._new = self._aside / "old", self._aside / "new"

    @property
    def pending(self) -> bool:
        """Whether something is, or may be, aside."""
        if self._aside.is_symlink() or self._aside.is_file():
            raise InputFileError(f"{self._aside} is a link or a file, which edgekd did not make; remove it.")
        return self._aside.is_dir()

    @property
    def away(self) -> bool:
        """Whether what the run held before is aside and may come back: what stands in its place is no run yet."""
        marker = self._read() if self.pending else None
        return marker is not None and self._way(marker) == "back"

    def begin(self, teacher: Path, *needed: Path) -> None:
        """Move what the run holds aside.

        Raises `UsageError`, with nothing moved, when the teacher, another file that is needed, or anything that is not
        edgekd's would go with it.
        """
        if not is_run(self.run.path):
            return
        held = [name for name in CONTENT if exists(self.run.path / name)]
        taken = [real(self.run.path / name) for name in held]
        if any(real(teacher).is_relative_to(place) for place in taken):
            raise UsageError(f"--fresh would replace {teacher}, the teacher; move it out of {self.run.path} first.")
        for file in needed:
            if any(real(file).is_relative_to(place) for place in taken):
                raise UsageError(
                    f"--fresh would replace {file}, which this command reads; move it out of {self.run.path} first."
                )
        stranger = next(_strangers(self.run), None)
        if stranger is not None:
            raise UsageError(f"--fresh would replace {stranger}, which edgekd did not write; move it away first.")
        with disk_errors(self.run.path):
            self.run.ledger().write(self.run.path)  # which another user's folder may refuse: now, with nothing moved
            self._aside.mkdir(exist_ok=True)
            marker = self._write(MarkerCard(direction="back", held=held, ledger=self.run.ledger()))
            fsync(self.run.path)
            self._old.mkdir()
            for name in held:
                (self.run.path / name).rename(self._old / name)
            fsync(self._old)
            LedgerCard.blank().write(self.run.path)
            self._write(marker.model_copy(update={"direction": "open"}))

    def settle(self, *, succeeded: bool = False) -> None:
        """End it: delete what is aside once training has begun anew (or the verb succeeded), else bring it back."""
        if not self.pending:
            return
        marker = self._read()
        with disk_errors(self.run.path):
            if marker is not None:
                self._settle(marker, succeeded=succeeded)
            # Without a marker nothing was moved yet, or everything is settled: the folder is empty.
            if exists(self._marker):  # not all of it can be deleted, as was said
                return
            remove(self._aside / f".tmp-{self._marker.name}")
            left = sorted(path.name for path in self._aside.iterdir())
            if left:
                console.warn(f"{self._aside} holds {left[0]}, which edgekd did not write; delete that folder.")
            else:
                self._aside.rmdir()

    def _settle(self, marker: MarkerCard, *, succeeded: bool) -> None:
        way = self._way(marker, succeeded=succeeded)
        if marker.direction == "open":
            if way == "back":
                ledger = _with_images(marker.ledger, self.run.ledger())
                marker = marker.model_copy(update={"ledger": ledger})
            for folder in filter(Path.is_dir, (self.run.stage("distill"), self.run.path)):
                fsync(folder)
            marker = self._write(marker.model_copy(update={"direction": way}))
        if way == "back":
            self._bring_back(marker)
            self._save_strangers()
        for folder in (self._old, self._new):
            discard(folder)
        if not exists(self._old) and not exists(self._new):
            self._marker.unlink()

    def _bring_back(self, marker: MarkerCard) -> None:
        """Put everything where it was; what the new beginning made goes aside in its place."""
        self._new.mkdir(exist_ok=True)
        made_now = self._new / str(sum(1 for _ in self._new.iterdir()))  # each attempt has its own
        made_now.mkdir()
        marker.ledger.write(self.run.path)
        for name in CONTENT:
            place, aside, made = self.run.path / name, self._old / name, made_now / name
            if exists(place) and (exists(aside) or name not in marker.held):
                place.rename(made)
            if exists(aside):
                aside.rename(place)
        fsync(self.run.path)

    def _save_strangers(self) -> None:
        """Bring back what the user has put among what the new beginning made, before that is deleted."""
        for made in sorted(self._new.iterdir()):
            for mine in [*_strangers(RunDir(made))]:
                place = free_place(self.run.path, mine.relative_to(made))
                place.parent.mkdir(parents=True, exist_ok=True)
                mine.rename(place)
                console.warn(f"{place} was put into a run that --fresh had not finished; it is kept.")
        fsync(self.run.path)

    def _way(self, marker: MarkerCard, *, succeeded: bool = False) -> Literal["back", "forward"]:
        if marker.direction != "open":
            return marker.direction
        begun = any((self.run.stage("distill") / "checkpoints").glob("step-*"))
        return "forward" if begun or succeeded else "back"

    def _read(self) -> MarkerCard | None:
        if not exists(self._marker):
            return None
        try:
            return MarkerCard.load(self._aside)
        except NewerSchemaError:
            raise
        except InputFileError as error:
            raise InputFileError(
                f"{self._marker} is damaged ({error}) What --fresh set aside lies in {self._old}; move it back "
                f"into {self.run.path} by hand, then delete {self._aside}."
            ) from error

    def _write(self, marker: MarkerCard) -> MarkerCard:
        marker.write(self._aside)
        return marker


def recover(run: RunDir) -> None:
    """Let a reader see a run as it is: finish what a killed process left undone, and leave a living one alone.

    Raises `RunBusyError` when a living `--fresh` has moved everything aside and nothing stands in its place yet.
    """
    afresh = FreshStart(run)
    if not is_run(run.path) or not (afresh.pending or interrupted(run.path)):
        return
    try:
        with run.lock():
            afresh.settle()
    except RunBusyError as error:
        if not afresh.away:
            return
        state = "is being started anew with --fresh; what it held is aside until training has begun"
        if not run.recipe_file.is_file():
            raise RunBusyError(f"run {run.path} {state}. Ask again in a moment. ({error})") from error
        console.warn(f"run {run.path} {state}")


def _with_images(ledger: LedgerCard, refused: LedgerCard) -> LedgerCard:
    """The ledger with the real images that a refused beginning read: they were read all the same."""
    if not refused.real_images_read:
        return ledger
    return ledger.with_fields(
        real_images_read=ledger.real_images_read + refused.real_images_read,
        real_images=[*ledger.real_images, *refused.real_images],
        files_read={**refused.files_read, **ledger.files_read},
    )


def _strangers(run: RunDir) -> Iterator[Path]:
    """Yield what lies in the folders of a run and is not edgekd's, as far as their records tell."""
    for name in CONTENT:  # a file in a folder's place, or a folder in a file's
        if exists(run.path / name) and (run.path / name).is_dir() == ("." in name):
            yield run.path / name
    for name in OUTPUTS:
        yield from strangers(run.stage(name))
    for folder in sorted(run.stage("bench").glob("*")):
        yield from [folder] if Record.read(folder) is None else strangers(folder)
    yield from (path for path in sorted(run.stage("eval").glob("*")) if not _is_evaluation(path))
    distill = run.stage("distill")
    yield from (path for path in sorted(distill.glob("*")) if path.name not in (RECORD, "checkpoints"))
    for checkpoint in sorted((distill / "checkpoints").glob("*")):
        yield from strangers(checkpoint) if CHECKPOINT.fullmatch(checkpoint.name) else [checkpoint]


def _is_evaluation(path: Path) -> bool:
    """Whether a file of eval/ is edgekd's; a damaged one is not known to be."""
    try:
        EvaluationCard.load_file(path)
    except NewerSchemaError:
        return True
    except InputFileError:
        return False
    return True
