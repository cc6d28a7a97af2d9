"""Real images in a run's ledger: each reading is entered before the first image is opened and corrected afterwards.

So the ledger never names fewer images than were read: whoever is killed in between leaves all of the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekd.run.directory import RECORD, RunDir, write_json
from edgekd.run.realdata import ImageFolder


class Reading:
    """One reading of a folder of real images, for the ledger of a run."""

    def __init__(self, run: RunDir, folder: ImageFolder, purpose: str) -> None:
        self._run, self._folder, self._purpose = run, folder, purpose
        self._entry: dict[str, Any] = {}

    def begin(self) -> None:
        """Enter all images of the folder, before any of them is opened, and the folder's hash."""
        self._entry = {
            "folder": str(self._folder.path),
            "images": len(self._folder.files),
            "for": self._purpose,
            "stages_done": sorted(str(one.parent.relative_to(self._run.path)) for one in _records(self._run)),
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        _enter(self._run, self._entry)
        self._run.note_file(self._folder.path, self._folder.sha256())

    def end(self, opened: int) -> None:
        """Correct the entry to the images that were opened."""
        if self._entry and self._entry["images"] != opened:
            self._entry["images"] = opened
            _enter(self._run, self._entry)


def _records(run: RunDir) -> list[Path]:
    return list(run.path.glob(f"*/{RECORD}"))


def _enter(run: RunDir, reading: Mapping[str, Any]) -> None:
    """Enter a reading, or correct the one that began at the same instant."""
    ledger = run.ledger()
    readings = {one.get("at", place): one for place, one in enumerate(ledger.get("real_images", []))}
    before = readings.get(reading["at"], {"images": 0})
    ledger["real_images_read"] += reading["images"] - before["images"]
    ledger["real_images"] = list({**readings, reading["at"]: dict(reading)}.values())
    write_json(run.ledger_file, ledger)
