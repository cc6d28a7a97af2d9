"""record.json: what a published folder was made from, the hashes of what it holds, and what its stage noted."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import Field, JsonValue, ValidationError

from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError
from edgekd.run.cards.base import Card, CardPart, NewerSchemaError

RECORD = "record.json"

Environment = dict[str, str | int | None]
"""What bit-identity depends on, by name."""


class Notes(CardPart):
    """What a stage notes in its record besides what every record holds."""


class IngestNotes(Notes):
    """What ingest notes."""

    trusted_pickle: str | None = None
    """The hash of a pickle whose code was run."""


class CheckpointNotes(Notes):
    """What belongs to a checkpoint and is no state."""

    events_bytes: int
    """The length of events.jsonl."""
    environment: Environment


class DistillNotes(Notes):
    """How a finished distillation went; what older ones did not note is None."""

    steps: int
    final: str
    """The folder of the final checkpoint."""
    environment: Environment = Field(default_factory=dict)
    reinits: int | None = None
    rescues: int | None = None
    inherited_tensors: int | None = None
    hinted_stages: list[str] | None = None
    replay: str | None = None
    replay_ready: bool | None = None
    replay_bytes: int | None = None
    replay_bytes_as_uint8_images: int | None = None


class ExportNotes(Notes):
    """What of an export was not published and, of a student from elsewhere, what had a part in it."""

    failures: list[str]
    run: str | None = None
    data_free: bool | None = None
    real_images: int | None = None


N = TypeVar("N", bound=Notes)


class Record(Card):
    """What a published stage was made from, and the hashes of what it holds."""

    file: ClassVar[str] = RECORD

    stage: str
    version: int
    key: str
    recipe_slice: dict[str, JsonValue]
    inputs: dict[str, str]
    outputs: dict[str, str]
    pruned: list[str] = Field(default_factory=list)
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the record of a stage folder, or None when it is missing or does not parse."""
        try:
            return cls.load(folder)
        except NewerSchemaError:
            raise
        except InputFileError:
            return None

    def noted(self, kind: type[N]) -> N:
        """Return the notes of one kind of stage; `InputFileError` where they are others."""
        try:
            return kind.model_validate(self.notes)
        except ValidationError as error:
            missing = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputFileError(
                f"the {RECORD} of {self.stage} does not hold what belongs there (notes.{missing}); give the command "
                f"that makes {self.stage} with --fresh."
            ) from error

    def damaged_output(self, folder: Path) -> str | None:
        """Return the first output whose bytes are not as recorded, or None when all are intact."""
        for name, expected in self.outputs.items():
            path = folder / name
            if name in self.pruned:
                continue
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != expected:
                return f"{name} does not hash as recorded"
        return None


def hash_outputs(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `folder` except its record, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {str(p.relative_to(folder)): sha256_of(p) for p in files}
