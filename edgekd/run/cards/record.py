"""record.json: what a published folder was made from, the hashes of its files, and notes of its stage."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import Field, JsonValue, ValidationError

from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError
from edgekd.run.cards.base import Card, CardPart, NewerSchemaError

RECORD = "record.json"

Environment = dict[str, str | int | None]
"""What bit-identity depends on, such as versions and threads, by name."""


class Notes(CardPart):
    """The keys of a record's `notes`, which each stage has of its own."""


class IngestNotes(Notes):
    """The notes of ingest."""

    trusted_pickle: str | None = None
    """SHA-256 of a pickle whose code was run."""


class CheckpointNotes(Notes):
    """The notes of a checkpoint: what resuming needs besides the state."""

    events_bytes: int
    """The length of events.jsonl when the checkpoint was written."""
    environment: Environment


class DistillNotes(Notes):
    """The notes of distill; None where an older edgekd did not write one."""

    steps: int
    final: str
    """The folder of the final checkpoint."""
    environment: Environment = Field(default_factory=dict)
    reinits: int | None = None
    """How often the generator was re-initialised."""
    rescues: int | None = None
    """How many of these followed a collapse of the generator, not the schedule."""
    inherited_tensors: int | None = None
    """The student's tensors that began as the teacher's."""
    hinted_stages: list[str] | None = None
    """The student's modules whose feature maps learn from hints."""
    replay: str | None = None
    """The replay source."""
    replay_ready: bool | None = None
    replay_bytes: int | None = None
    replay_bytes_as_uint8_images: int | None = None
    """The number of uint8 images that would take as much memory."""
    events_bytes: int | None = None
    events_sha256: str | None = None
    """The length of events.jsonl at the end, and the hash of so much of it; it may grow later."""


class ExportNotes(Notes):
    """The notes of export. For a student file from elsewhere also: the run that lent samples, and real images used."""

    failures: list[str]
    """Why files were not published: one sentence for each."""
    run: str | None = None
    data_free: bool | None = None
    real_images: int | None = None


N = TypeVar("N", bound=Notes)


class Record(Card):
    """The record of a published stage or checkpoint."""

    file: ClassVar[str] = RECORD

    stage: str
    version: int
    key: str
    """The stage key."""
    recipe_slice: dict[str, JsonValue]
    inputs: dict[str, str]
    """SHA-256 by name of what the stage read."""
    outputs: dict[str, str]
    """SHA-256 by path within the folder."""
    pruned: list[str] = Field(default_factory=list)
    """Outputs that were deleted since, to save disk."""
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record of a folder; None where it is missing or damaged, `NewerSchemaError` where it is newer."""
        try:
            return cls.load(folder)
        except NewerSchemaError:
            raise
        except InputFileError:
            return None

    def notes_as(self, kind: type[N]) -> N:
        """Validate the notes as those of one kind of stage; `InputFileError` where they are not."""
        try:
            return kind.model_validate(self.notes)
        except ValidationError as error:
            missing = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InputFileError(
                f"the {RECORD} of {self.stage} does not hold what belongs there (notes.{missing}); give the command "
                f"that makes {self.stage} with --fresh."
            ) from error

    def damaged_output(self, folder: Path) -> str | None:
        """Hash all outputs; say in words what is wrong with the first damaged one, or return None."""
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
    """Hash every file under `folder` except its record: SHA-256 by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {str(p.relative_to(folder)): sha256_of(p) for p in files}


def hash_as_recorded(path: Path) -> str:
    """Return the SHA-256 of a stage's output; `InputFileError` where its record says another one."""
    sha256, record = sha256_of(path), Record.read(path.parent)
    if record is not None and record.outputs.get(path.name, sha256) != sha256:
        raise InputFileError(
            f"{path} is damaged: it does not hash as {RECORD} beside it says. Make {record.stage} again; "
            "`edgekd status` names the command."
        )
    return sha256
