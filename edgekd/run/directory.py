"""The run directory: records, atomic publishing, checkpoints, the lock and the ledger of files read.

What is written survives SIGKILL at any instant: a folder is prepared beside its place, every file is
flushed to disk, the record with their hashes comes last, and one rename publishes all of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from edgekd import __version__, console, locking
from edgekd.agent import files
from edgekd.errors import InputFileError, MachineError, RunBusyError, UsageError
from edgekd.run import ownership
from edgekd.run.failpoints import failpoint
from edgekd.run.ownership import RECORD, clean_leftovers, remove
from edgekd.text import visible


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading it in pieces."""
    with files.open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear `MachineError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            what = "a limit on the size of files is reached" if error.errno == errno.EFBIG else "the disk is full"
            raise MachineError(
                f"{what} ({error.strerror}): could not write {path}. Free some space and give the same command again; "
                "what was published before is intact."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise MachineError(
                f"no permission to write {path}; choose another folder with --run or mend its owner."
            ) from error
        if error.errno == errno.EXDEV:
            raise MachineError(
                f"{path} cannot be replaced: it belongs to a lower layer of an overlay file system (a container's "
                "image). Copy the run to a folder outside of it and go on there with --run."
            ) from error
        if error.filename is None:  # of a descriptor: the message names the path all the same
            error.filename = str(path)
        raise


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk; some network file systems cannot flush folders and say EINVAL."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _warn_of_power_cuts()
    finally:
        os.close(descriptor)


@cache
def _warn_of_power_cuts() -> None:
    console.warn("this file system cannot flush a folder to disk: after a power cut the newest files may be missing.")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and durably: temporary sibling, fsync, rename, fsync of the folder.

    Raises `UsageError` for text that UTF-8 has no bytes for: Linux takes any bytes for a name.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.end].rpartition("\n")[2].strip(' "') + text[error.end :].partition("\n")[0].rstrip(' ",')
        raise UsageError(f"{visible(line)} is not UTF-8, which {path.name} is written in; give another name.") from None
    temporary = path.with_name(f".tmp-{path.name}")
    with disk_errors(path):
        try:
            remove(temporary)  # a link that lies there must not lead the text elsewhere
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint(f"write.{path.name}")
            os.replace(temporary, path)  # noqa: PTH105 - the one atomic replace, spelled as the system call
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; a damaged one is an `InputFileError` that names it."""
    try:
        return files.parse_json(files.read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path} cannot be read as JSON ({error}).") from error


@dataclass(frozen=True)
class Record:
    """What a published stage was made from, and the hashes of what it holds."""

    stage: str
    version: int
    key: str
    recipe_slice: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    pruned: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Record | None:
        """Return the record of a stage folder, or None when it is missing or does not parse."""
        try:
            record = Record(**files.parse_json(files.read_bytes(folder / RECORD)))
            return replace(record, inputs={**record.inputs}, outputs={**record.outputs}, pruned=[*record.pruned])
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Publish the record of `folder` atomically."""
        write_json(folder / RECORD, asdict(self))

    def damaged_output(self, folder: Path) -> str | None:
        """Return the first output whose bytes are not as recorded, or None when all are intact."""
        for name, expected in self.outputs.items():
            path = folder / name
            if name in self.pruned:
                continue
            if not path.is_file():
                return f"{name} is missing"
            if sha256_file(path) != expected:
                return f"{name} does not hash as recorded"
        return None


def hash_outputs(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `folder` except its record, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {str(p.relative_to(folder)): sha256_file(p) for p in files}


def strangers(folder: Path) -> list[Path]:
    """Return what in a folder of a run is the user's, as far as its record tells."""
    record = Record.read(folder)
    return ownership.strangers(folder, None if record is None else record.outputs)


def blank_ledger() -> dict[str, Any]:
    """Return the ledger of a run that has only begun."""
    return {"files_read": {}, "commands": [], "real_images_read": 0, "data_free": True}


class RunDir:
    """One run on disk: `runs/<name>/` with its stages, events, ledger and lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name

    recipe_file = property(lambda self: self.path / "recipe.toml")
    events_file = property(lambda self: self.path / "events.jsonl")
    ledger_file = property(lambda self: self.path / "run.json")

    def stage(self, name: str) -> Path:
        """Return the folder of a stage (`bench/<target>` and `eval` included)."""
        return self.path / name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; a second process gets `RunBusyError` with the holder's pid.

        flock is freed by the kernel when its process dies, so no lock outlives a SIGKILL.
        """
        if self.path.is_file():
            raise UsageError(f"{self.path} is a file, not a run; choose another --run.")
        try:
            with disk_errors(self.path):
                descriptor, unlocked = locking.take(self.path / ".lock")
        except locking.HeldError as error:
            raise RunBusyError(
                f"run {self.path} is in use by process {error.pid}; wait for it or choose another --run."
            ) from None
        except locking.NotALockError:
            raise InputFileError(
                f"{self.path}/.lock is a link or a special file, which edgekd does not write to; remove it."
            ) from None
        try:
            if unlocked:
                console.warn(
                    f"the file system of {self.path} has no locks ({unlocked}); do not start a second command in it."
                )
            clean_leftovers(self.path)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def publish(self, name: str, *, hidden: str = ".") -> Iterator[tuple[Path, dict[str, Any]]]:
        """Publish the folder `name` whole or not at all.

        Yields (temporary folder, record fields). The caller fills both; afterwards every file is flushed,
        the record with the hashes of all files is written last and one rename puts the folder in place. Outside of a
        run, where anything may lie beside it, `hidden` begins the names of what is temporary.
        """
        place = self.path / name
        point = "checkpoint" if "checkpoints" in name else name
        temporary = place.with_name(f"{hidden}tmp-{place.name}")
        aside = place.with_name(f"{hidden}old-{place.name}")
        with disk_errors(place):
            try:
                remove(temporary)
                temporary.mkdir(parents=True)
                fields: dict[str, Any] = {}
                yield temporary, fields
                failpoint(f"{point}.before_fsync")
                for path in sorted(temporary.rglob("*")):
                    if path.is_file():
                        fsync(path)
                Record(outputs=hash_outputs(temporary), **fields).write(temporary)
                failpoint(f"{point}.before_rename")
                for mine in strangers(place):
                    ownership.keep(mine, place, temporary)
                if place.exists():
                    remove(aside)
                    place.rename(aside)
                    failpoint(f"{point}.between_renames")
                temporary.rename(place)
                fsync(place.parent)
                failpoint(f"{point}.after_rename")
                shutil.rmtree(aside, ignore_errors=True)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def append_event(self, event: Mapping[str, object]) -> None:
        """Append one metrics object to events.jsonl."""
        with disk_errors(self.events_file), self._open_events(os.O_APPEND | os.O_CREAT) as stream:
            stream.write(canonical_json(event) + "\n")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the events of one kind (or all); a torn last line, left by a kill, is ignored."""
        if not self.events_file.is_file():
            return []
        lines = files.read_bytes(self.events_file, limit=2**33).decode(errors="replace").split("\n")
        events = []
        for line in lines[:-1]:  # what follows the last newline is a torn line or nothing
            try:
                events.append(files.parse_json(line))
            except ValueError as error:
                raise InputFileError(f"{self.events_file} holds a damaged line: {line[:80]!r}.") from error
        return [event for event in events if kind is None or event.get("kind") == kind]

    def events_bytes(self) -> int:
        """Return the length of events.jsonl, which a checkpoint records."""
        return self.events_file.stat().st_size if self.events_file.is_file() else 0

    def sync_events(self) -> None:
        """Flush events.jsonl to disk, so that a checkpoint never records more than survives a power cut."""
        if self.events_file.is_file():
            fsync(self.events_file)

    def truncate_events(self, size_bytes: int) -> None:
        """Forget what was logged after the checkpoint that recorded `size_bytes`."""
        if self.events_bytes() > size_bytes:
            with disk_errors(self.events_file), self._open_events(0) as stream:
                stream.truncate(size_bytes)

    def _open_events(self, flags: int) -> TextIO:
        """Open events.jsonl for writing; through a link it would be somebody else's file."""
        try:
            descriptor = os.open(self.events_file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputFileError(f"{self.events_file} is a link, which edgekd does not write to.") from None
            raise
        return os.fdopen(descriptor, "w", encoding="utf-8")

    def ledger(self) -> dict[str, Any]:
        """Return run.json, or a fresh ledger."""
        if self.ledger_file.is_file():
            ledger: dict[str, Any] = read_json(self.ledger_file)
            return ledger
        return blank_ledger()

    def data_free(self) -> bool:
        """Return whether real images had no part in what export/ holds, by its record."""
        record = Record.read(self.stage("export"))
        return record is None or "calibration_images" not in record.inputs

    def note_command(self, command: list[str], threads: int | None = None) -> None:
        """Add a command line, this host and the versions at work to the ledger."""
        from importlib.metadata import PackageNotFoundError, version

        ledger = self.ledger()
        versions = {"edgekd": __version__, "python": platform.python_version()}
        for package in ("torch", "torchvision", "onnx", "onnxruntime", "numpy"):
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        host = {"system": platform.platform(), "machine": platform.machine(), "name": platform.node()}
        ledger |= {"run": self.name, "versions": versions, "host": host, "data_free": self.data_free()}
        if threads is not None:
            ledger["threads"] = threads
        if not ledger["commands"] or ledger["commands"][-1] != command:
            ledger["commands"].append(command)
        write_json(self.ledger_file, ledger)

    def note_difference(self, step: int, changed: dict[str, list[Any]]) -> None:
        """Record that a run was resumed in another environment: it is not bit-identical to an untouched one."""
        ledger = self.ledger()
        ledger.setdefault("not_bit_identical", []).append({"step": step, "changed": changed})
        write_json(self.ledger_file, ledger)

    def note(self, name: str, value: object) -> None:
        """Write one fact about how the run was made into the ledger."""
        write_json(self.ledger_file, {**self.ledger(), name: value})

    def note_file(self, path: Path, sha256: str) -> None:
        """Add a file from outside the run to the ledger."""
        ledger = self.ledger()
        if ledger["files_read"].get(str(path)) != sha256:
            ledger["files_read"][str(path)] = sha256
            write_json(self.ledger_file, ledger)


def command_line() -> list[str]:
    """Return this process's command as typed, without the path of the program."""
    return ["edgekd", *sys.argv[1:]]
