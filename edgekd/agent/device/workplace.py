"""`~/.cache/edgekd/` on a device: `work-<key>/` while a bench is under way, `engines/` for good, one lock for all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekd import locking
from edgekd.agent.device.machine import sha256_of
from edgekd.agent.refusal import RefusedError
from edgekd.schema import NAME, SHA256, SIZE_BYTES, required

SPARE_BYTES = 4 * 2**20
"""For results, and for a file system's own needs."""
FORGOTTEN_S = 24 * 3600.0
"""After so long nobody takes up the work that a cut connection left."""


@dataclass(frozen=True)
class FileFacts:
    """A file that travels, and what it should be when it has arrived."""

    name: str = field(metadata=required(NAME))
    sha256: str = field(metadata=required(SHA256))
    size_bytes: int = field(metadata=required(SIZE_BYTES))


class Workplace:
    """The folder of edgekd in a home directory, held by one process at a time."""

    def __init__(self, home: Path | None = None) -> None:
        self.root = (home or Path.home()) / ".cache" / "edgekd"
        self.engines = self.root / "engines"
        self._lock: int | None = None

    def hold(self) -> None:
        """Hold the device until this process ends; two measurements at once would disturb each other."""
        if self._lock is not None:
            return
        try:
            descriptor, _ = locking.take(self.root / "lock")
        except locking.HeldError as error:
            message = f"another bench is under way on this device (process {error.pid}); wait until it ends"
            raise RefusedError("busy", message) from None
        except locking.NotALockError as error:
            raise RefusedError("machine", f"{error} is a link or a special file; remove it") from None
        self._lock = descriptor
        for torn in self.engines.glob(".tmp-*"):
            torn.unlink()
        for left in self.root.glob("work-*"):
            if left.is_dir() and time.time() - left.stat().st_mtime > FORGOTTEN_S:
                shutil.rmtree(str(left), ignore_errors=True)

    def release(self) -> None:
        """Let others measure."""
        if self._lock is not None:
            locking.release(self._lock)
            self._lock = None

    def work(self, key: str) -> Path:
        """Return the folder of one bench, made if need be."""
        if not key.isalnum():
            raise RefusedError("protocol", f"{key!r} is no key")
        folder = self.root / f"work-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def missing(self, folder: Path, files: Sequence[FileFacts]) -> tuple[str, ...]:
        """Return the files that are not there, or not whole; refuse when they would not fit on the disk."""
        absent = [file for file in files if not arrived_whole(folder / file.name, file.sha256)]
        for file in absent:
            if (folder / file.name).exists():
                (folder / file.name).unlink()
        needed = sum(file.size_bytes for file in absent) + SPARE_BYTES
        free = shutil.disk_usage(str(folder)).free
        if absent and free < needed:
            raise RefusedError(
                "machine",
                f"the disk of this device is full: {free / 1e6:.1f} MB are free in {folder} and {needed / 1e6:.1f} MB "
                "are needed; free some space there, or remove what earlier benches left with --clean",
            )
        return tuple(file.name for file in absent)


def arrived_whole(path: Path, sha256: str) -> bool:
    """Return whether a file is there with the content it should have."""
    return path.is_file() and sha256_of(path) == sha256
