"""The run directory: publishing whole folders, the lock, events, and what is noted in the ledger.

What is written survives SIGKILL at any instant: a folder is prepared beside its place, every file is
flushed to disk, the record with their hashes comes last, and one rename publishes all of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypedDict, TypeVar

from pydantic import JsonValue

from edgekd import __version__, console, locking
from edgekd.agent.device.files import real
from edgekd.errors import InputFileError, MachineError, RecipeError, RunBusyError, UsageError
from edgekd.recipe import load_resolved
from edgekd.run import event_log, ownership
from edgekd.run.cards.base import Card
from edgekd.run.cards.events import Event
from edgekd.run.cards.ledger import EnvironmentDifference, LedgerCard, PlanningPart, ProbeTiming
from edgekd.run.cards.record import DistillNotes, Record, hash_outputs
from edgekd.run.failpoints import failpoint
from edgekd.run.files import canonical_json, discard, disk_errors, fsync, remove
from edgekd.run.ownership import LOCK, clean_leftovers, exists, strangers
from edgekd.text import path_argument

C = TypeVar("C", bound=Card)
E = TypeVar("E", bound=Event)


class RecordFields(TypedDict, total=False):
    """What a record holds besides the hashes of its outputs."""

    stage: str
    version: int
    key: str
    recipe_slice: dict[str, JsonValue]
    inputs: dict[str, str]
    notes: dict[str, JsonValue]


class RunDir:
    """One run on disk: `runs/<name>/` with its stages, events, ledger and lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = real(path).name
        self._held: int | None = None
        """The lock file of this run, open, while it is held."""

    recipe_file = property(lambda self: self.path / "recipe.toml")
    events_file = property(lambda self: self.path / "events.jsonl")
    ledger_file = property(lambda self: self.path / LedgerCard.file)

    def stage(self, name: str) -> Path:
        """Return the folder of a stage (`bench/<target>` and `eval` included)."""
        return self.path / name

    def read(self, kind: type[C]) -> C:
        """Read one of the run's JSON files; see `Card.load_file` for errors."""
        folder = self.path / kind.folder
        try:
            return kind.load(folder)
        except InputFileError as error:
            made_by_a_stage = kind.folder and (folder / kind.file).exists()
            if not made_by_a_stage or type(error) is not InputFileError:
                raise
            status = f"edgekd status {path_argument(self.path)}"
            raise InputFileError(f"{error} `{status}` says which command makes it again.") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; a second process gets `RunBusyError` with the holder's pid.

        flock is freed by the kernel when its process dies, so no lock outlives a SIGKILL.
        """
        if self.path.is_file():
            raise UsageError(f"{self.path} is a file, not a run; name another run.")
        try:
            with disk_errors(self.path):
                descriptor, unlocked = locking.take(self.path / LOCK)
        except locking.HeldError as error:
            raise RunBusyError(
                f"run {self.path} is in use by process {error.pid}; wait for it or name another run."
            ) from None
        except locking.NotALockError:
            raise InputFileError(
                f"{self.path / LOCK} is a link or a special file, which edgekd does not write to; remove it."
            ) from None
        try:
            if unlocked:
                console.warn(
                    f"the file system of {self.path} has no locks ({unlocked}); do not start a second command in it."
                )
            self._held = descriptor
            clean_leftovers(self.path)
            yield
        finally:
            self._held = None
            locking.release(descriptor)

    def _require_there(self) -> None:
        """Raise `MachineError` where the run has been moved away, removed or replaced: it must not be begun again."""
        held = self._held
        if not self.path.is_dir() or (held is not None and not locking.in_place(held, self.path / LOCK)):
            raise MachineError(
                f"{self.path} was moved away or removed while this command worked in it (or is another run now); "
                "nothing more is written. Give the command again where the run is."
            )

    @contextmanager
    def publish(self, name: str, *, hidden: str = ".") -> Iterator[tuple[Path, RecordFields]]:
        """Publish the folder `name` whole or not at all.

        Yields (temporary folder, record fields). The caller fills both; afterwards every file is flushed,
        the record with the hashes of all files is written last and one rename puts the folder in place. Outside of a
        run, where anything may lie beside it, `hidden` begins the names of what is temporary.
        """
        place = self.path / name
        point = "checkpoint" if "checkpoints" in name else name
        temporary = place.with_name(f"{hidden}tmp-{place.name}")
        aside = place.with_name(f"{hidden}old-{place.name}")
        within = hidden == "."
        with disk_errors(place):
            try:
                if within:
                    self._require_there()
                remove(temporary)
                temporary.mkdir(parents=True)
                fields: RecordFields = {"notes": {}}
                yield temporary, fields
                if within:
                    self._require_there()
                failpoint(f"{point}.before_fsync")
                for path in sorted(temporary.rglob("*")):
                    if path.is_file():
                        fsync(path)
                Record(outputs=hash_outputs(temporary), pruned=[], **fields).write(temporary)
                failpoint(f"{point}.before_rename")
                for mine in strangers(place):
                    ownership.keep_user_file(mine, place, temporary)
                if place.exists():
                    remove(aside)
                    place.rename(aside)
                    failpoint(f"{point}.between_renames")
                try:
                    temporary.rename(place)
                except OSError:
                    if exists(aside) and not exists(place):
                        aside.rename(place)
                    raise
                fsync(place.parent)
                failpoint(f"{point}.after_rename")
                discard(aside)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def append_event(self, event: Mapping[str, JsonValue]) -> None:
        """Append one metrics object to events.jsonl."""
        with disk_errors(self.events_file), self._open_events(os.O_APPEND | os.O_CREAT) as stream:
            stream.write(canonical_json(event) + "\n")

    def events(self, kind: str | None = None) -> list[dict[str, JsonValue]]:
        """Return the events of one kind (or all); a torn last line, left by a kill, is ignored."""
        return list(event_log.events(self.events_file, kind)) if self.events_file.is_file() else []

    def logged(self, kind: type[E]) -> Iterator[E]:
        """Yield the events of one kind as what they are; `InputFileError` where one is something else."""
        return event_log.logged(self.events_file, kind) if self.events_file.is_file() else iter(())

    def last_logged(self, kind: type[E]) -> E | None:
        """Return the last event of one kind, which is near the end of the file; None where there is none."""
        return event_log.last_logged(self.events_file, kind) if self.events_file.is_file() else None

    def events_bytes(self) -> int:
        """Return the length of events.jsonl, which a checkpoint records."""
        return self.events_file.stat().st_size if self.events_file.is_file() else 0

    def events_logged(self, size_bytes: int | None = None) -> tuple[int, str]:
        """Return the length and the hash of events.jsonl, or of no more than its first bytes."""
        size = self.events_bytes() if size_bytes is None else size_bytes
        return (
            event_log.digest(self.events_file, size)
            if self.events_file.is_file()
            else (0, hashlib.sha256().hexdigest())
        )

    def require_events(self) -> None:
        """Raise `InputFileError` where events.jsonl is no longer what a distillation that has ended logged."""
        record = Record.read(self.stage("distill"))
        notes = None if record is None else record.notes_as(DistillNotes)
        if notes is None or notes.events_sha256 is None:  # under way, or of an older edgekd
            return
        if self.events_logged(notes.events_bytes) != (notes.events_bytes, notes.events_sha256):
            raise InputFileError(
                f"{self.events_file} is damaged: it does not hash as the record in distill/ says. Only the curves of "
                "the report depend on it."
            )

    def sync_events(self) -> None:
        """Flush events.jsonl to disk, so that a checkpoint never records more than survives a power cut."""
        if self.events_file.is_file():
            fsync(self.events_file)

    def truncate_events(self, size_bytes: int) -> str | None:
        """Forget what was logged after the checkpoint that recorded `size_bytes`; what cannot be logged is told now.

        What was logged before it and is damaged is set aside as a whole: the run goes on, with a curve that begins
        there. Returns the warning that says so, None where all is well.
        """
        damage = event_log.damage(self.events_file, size_bytes) if size_bytes else None
        warning = None
        if damage is not None:
            kept = self.events_file.with_name(f"{self.events_file.name}.damaged")
            with suppress(FileNotFoundError), disk_errors(kept):
                self.events_file.replace(kept)
            warning = f"{damage} Training goes on, and the run's curves begin here; what was left is {kept}."
        with disk_errors(self.events_file), self._open_events(os.O_CREAT | os.O_APPEND) as stream:
            if self.events_bytes() > size_bytes:
                stream.truncate(size_bytes)
        return warning

    def _open_events(self, flags: int) -> TextIO:
        """Open events.jsonl for writing; through a link it would be somebody else's file."""
        try:
            descriptor = os.open(self.events_file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputFileError(f"{self.events_file} is a link, which edgekd does not write to.") from None
            raise
        return os.fdopen(descriptor, "w", encoding="utf-8")

    def ledger(self) -> LedgerCard:
        """Return run.json, or a fresh ledger."""
        return self.read(LedgerCard) if self.ledger_file.is_file() else LedgerCard.blank()

    def data_free(self) -> bool:
        """Return whether real images had no part in the student and in what export/ holds, by recipe and records."""
        with suppress(RecipeError):  # of a run whose recipe cannot be read, the records still tell
            if self.recipe_file.is_file() and load_resolved(self.recipe_file).images.folder:
                return False
        records = (Record.read(self.stage(stage)) for stage in ("distill", "export"))
        return not any({"images", "calibration_images"} & record.inputs.keys() for record in records if record)

    def note_command(self, command: list[str], threads: int | None = None) -> None:
        """Add a command line, this host and the versions at work to the ledger."""
        from importlib.metadata import PackageNotFoundError, version

        versions = {"edgekd": __version__, "python": platform.python_version()}
        for package in ("torch", "torchvision", "onnx", "onnxruntime", "numpy"):
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        host = {"system": platform.platform(), "machine": platform.machine(), "name": platform.node()}
        ledger = self.ledger().with_fields(run=self.name, versions=versions, host=host, data_free=self.data_free())
        if threads is not None:
            ledger = ledger.with_fields(threads=threads)
        if ledger.commands[-1:] != [command]:
            ledger = ledger.with_fields(commands=[*ledger.commands, command])
        ledger.write(self.path)

    def note_difference(self, step: int, changed: dict[str, list[JsonValue]]) -> None:
        """Record that a run was resumed in another environment: it is not bit-identical to an untouched one."""
        ledger, difference = self.ledger(), EnvironmentDifference(step=step, changed=changed)
        ledger.with_fields(not_bit_identical=[*ledger.not_bit_identical, difference]).write(self.path)

    def note_data_free(self, data_free: bool) -> None:
        """Write into the ledger whether real images had no part in what is exported."""
        self.ledger().with_fields(data_free=data_free).write(self.path)

    def note_trust(self, path: Path, sha256: str) -> None:
        """Add a pickle whose code is run to the ledger."""
        ledger = self.ledger()
        ledger.with_fields(trusted_pickles={**ledger.trusted_pickles, str(path): sha256}).write(self.path)

    def note_probe(self, timing: ProbeTiming) -> None:
        """Write into the ledger what the probe of the teacher took."""
        self.ledger().with_fields(teacher_probe=timing).write(self.path)

    def note_planning(self, planning: PlanningPart) -> None:
        """Write into the ledger what a planning measured before it was stopped."""
        self.ledger().with_fields(planning=planning).write(self.path)

    def note_file(self, path: Path, sha256: str) -> None:
        """Add a file from outside the run to the ledger."""
        ledger = self.ledger()
        if ledger.files_read.get(str(path)) != sha256:
            ledger.with_fields(files_read={**ledger.files_read, str(path): sha256}).write(self.path)


def command_line() -> list[str]:
    """Return this process's command as typed, without the path of the program."""
    return ["edgekd", *sys.argv[1:]]
