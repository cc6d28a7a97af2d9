"""Real images in a run's ledger: each reading is entered before the first image is opened and corrected afterwards.

So the ledger never names fewer images than were read: whoever is killed in between leaves all of the folder.
"""

from __future__ import annotations

from datetime import UTC, datetime

from edgekd.run.cards.ledger import ImagesReadPart
from edgekd.run.cards.record import RECORD
from edgekd.run.directory import RunDir
from edgekd.run.image_folder import ImageFolder


class ImageAccount:
    """One reading of a folder of real images, for the ledger of a run."""

    def __init__(self, run: RunDir, folder: ImageFolder, purpose: str) -> None:
        self._run, self._folder, self._purpose = run, folder, purpose
        self._entry: ImagesReadPart | None = None

    def begin(self) -> None:
        """Enter all images of the folder, before any of them is opened, and the folder's hash."""
        entry = {
            "folder": str(self._folder.path),
            "images": len(self._folder.files),
            "for": self._purpose,
            "stages_done": sorted(record.parent.name for record in self._run.path.glob(f"*/{RECORD}")),
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        self._entry = ImagesReadPart.model_validate(entry)
        _enter(self._run, self._entry)
        self._run.note_file(self._folder.path, self._folder.sha256())

    def end(self, opened: int) -> None:
        """Correct the entry to the images that were opened."""
        if self._entry is not None and self._entry.images != opened:
            self._entry = self._entry.model_copy(update={"images": opened})
            _enter(self._run, self._entry)


def _enter(run: RunDir, reading: ImagesReadPart) -> None:
    """Enter a reading, or correct the one that began at the same instant."""
    ledger = run.ledger()
    others = [entry for entry in ledger.real_images if entry.at != reading.at]
    before = sum(entry.images for entry in ledger.real_images if entry.at == reading.at)
    count = ledger.real_images_read + reading.images - before
    ledger.with_fields(real_images_read=count, real_images=[*others, reading]).write(run.path)
